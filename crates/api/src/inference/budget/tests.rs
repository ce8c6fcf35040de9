//! Laws of budgets, on a store and with a clock that the test sets.

use std::sync::atomic::{AtomicI64, Ordering};

use http::StatusCode;
use tram_store::{Options, keyring};
use tram_types::{
    ServiceId,
    inference::{Endpoint, JournalPosition, Outcome, TokenRecord},
};

use super::*;

#[derive(Debug)]
struct Hands(AtomicI64);

impl Clock for Hands {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

struct House {
    _directory: tempfile::TempDir,
    store: Store,
    clock: Arc<Hands>,
    budgets: Arc<Budgets>,
    asker: Asker,
}

impl House {
    async fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // The middle of a month.
        let noon: Timestamp = "2026-11-15T12:00:00Z".parse().unwrap();
        let clock = Arc::new(Hands(AtomicI64::new(noon.as_micros())));
        let store = Store::open(Options {
            database_url: format!("sqlite://{}", directory.path().join("state/tram.db").display()),
            keyring: keyring::Settings {
                path: directory.path().join("keys/keyring"),
                create: true,
            },
            proxy_ports: 20_000..=20_003,
            clock: Arc::<Hands>::clone(&clock),
        })
        .await
        .unwrap();
        let (organization, project) = (OrganizationId::random(), ProjectId::random());
        store
            .create_organization(organization, "acme", project, "default")
            .await
            .unwrap();
        let budgets = Arc::new(Budgets::new(store.clone(), Arc::<Hands>::clone(&clock)));
        Self {
            _directory: directory,
            store,
            clock,
            budgets,
            asker: Asker {
                organization,
                credential: CredentialId::random(),
                project: Some(project),
            },
        }
    }

    async fn limit(&self, scope: LimitScope, [requests, tokens, month]: [u64; 3]) {
        let subject_id = match scope {
            LimitScope::Credential => self.asker.credential.to_string(),
            LimitScope::Project => self.asker.project.unwrap().to_string(),
            LimitScope::Organization => self.asker.organization.to_string(),
        };
        let limit = ModelLimit {
            organization_id: self.asker.organization,
            scope,
            subject_id,
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            tokens_per_month: month,
            priority: Priority::High,
            created_at: Timestamp::EPOCH,
            updated_at: Timestamp::EPOCH,
        };
        self.store.set_model_limit(&limit).await.unwrap();
        self.budgets.changed(self.asker.organization);
    }

    fn wait(&self, span: Duration) {
        let micros = i64::try_from(span.as_micros()).unwrap();
        self.clock.0.fetch_add(micros, Ordering::SeqCst);
    }

    async fn ask(&self, tokens: u64) -> Result<Admitted, Refusal> {
        self.budgets.admit(self.asker, tokens).await
    }

    /// The edge says what a question cost.
    fn record(&self, question: Uuid, tokens: u64) -> Attributed {
        Attributed {
            record: TokenRecord {
                question_id: question,
                request_id: String::new(),
                service_id: ServiceId::random(),
                deployment_id: None,
                organization_id: None,
                tenant: Some(self.asker.credential),
                endpoint: Endpoint::ChatCompletions,
                model: "chat".to_owned(),
                asked: None,
                prompt_tokens: tokens,
                completion_tokens: 0,
                cached_tokens: 0,
                queue_ms: 0,
                ttft_ms: None,
                duration_ms: 1,
                status: 200,
                outcome: Outcome::Complete,
                finished_at: self.clock.now(),
            },
            organization: Some(self.asker.organization),
            project: self.asker.project,
            app: None,
            service_path: "ai/chat".to_owned(),
            model: "small".to_owned(),
            served: "small".to_owned(),
        }
    }

    fn aside(&self) -> usize {
        self.budgets.state().aside.len()
    }
}

/// What a refusal says: its code, when to come again, and whether clients should by themselves.
fn said(refused: Result<Admitted, Refusal>) -> (String, String, bool) {
    let refused = refused.expect_err("a refusal");
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    (
        refused.code.unwrap(),
        refused.retry_after.unwrap().to_str().unwrap().to_owned(),
        !refused.limited.unwrap().headers.contains_key("x-should-retry"),
    )
}

#[tokio::test]
async fn who_has_no_limit_asks_as_it_likes() {
    let house = House::build().await;
    for _ in 0..100 {
        let admitted = house.ask(1 << 40).await.unwrap();
        assert_eq!(
            (admitted.priority, &admitted.told),
            (Priority::Normal, &Told::default())
        );
    }
    assert_eq!(house.aside(), 0);
}

#[tokio::test]
async fn questions_a_minute_come_back_one_by_one() {
    let house = House::build().await;
    house.limit(LimitScope::Credential, [3, 0, 0]).await;
    for _ in 0..3 {
        assert_eq!(house.ask(10).await.unwrap().priority, Priority::High);
    }
    let refused = said(house.ask(10).await);
    assert_eq!(refused, ("rate_limit_exceeded".to_owned(), "20".to_owned(), true));
    house.wait(Duration::from_secs(19));
    assert_eq!(said(house.ask(10).await).1, "1");
    house.wait(Duration::from_secs(1));
    house.ask(10).await.unwrap();
    // Others are not touched.
    let other = Asker {
        credential: CredentialId::random(),
        ..house.asker
    };
    house.budgets.admit(other, 1).await.unwrap();
}

#[tokio::test]
async fn what_was_set_aside_is_settled_by_what_it_cost() {
    let house = House::build().await;
    house.limit(LimitScope::Organization, [0, 1000, 0]).await;
    let first = house.ask(900).await.unwrap();
    assert!(house.ask(200).await.is_err(), "900 are set aside");
    let question = first.question;
    drop(first);
    assert!(house.ask(200).await.is_err(), "until the record comes");
    house.budgets.settle(&[house.record(question, 100)]);
    assert_eq!(house.aside(), 0);
    let second = house.ask(900).await.unwrap();
    let mut headers = http::HeaderMap::new();
    second.told.write(&mut headers);
    assert_eq!(headers["x-ratelimit-limit-tokens"], "1000");
    assert_eq!(headers["x-ratelimit-remaining-tokens"], "0");
    assert_eq!(headers["x-ratelimit-reset-tokens"], "1m0s");
    assert!(!headers.contains_key("x-ratelimit-limit-requests"));
    // It cost more than was thought: the debt is waited for.
    house.budgets.settle(&[house.record(second.question, 1900)]);
    drop(second);
    assert_eq!(house.aside(), 0);
    let (_, after, _) = said(house.ask(100).await);
    assert_eq!(after, "66");
    house.wait(Duration::from_secs(66));
    house.ask(100).await.unwrap();
}

#[tokio::test]
async fn a_question_that_was_not_sent_costs_nothing() {
    let house = House::build().await;
    house.limit(LimitScope::Project, [0, 100, 1000]).await;
    house.ask(100).await.unwrap().undo();
    assert_eq!(house.aside(), 0);
    house.ask(100).await.unwrap().undo();
    // More than a minute's worth is let in when all of it is there.
    house.ask(5000).await.expect_err("more than is left of the month");
    house.ask(500).await.unwrap();
}

#[tokio::test]
async fn a_record_that_never_comes_is_not_waited_for_for_ever() {
    let house = House::build().await;
    house.limit(LimitScope::Credential, [0, 0, 1000]).await;
    drop(house.ask(800).await.unwrap());
    assert!(house.ask(800).await.is_err());
    house.wait(RECORD_PATIENCE);
    let open = house.ask(800).await.unwrap();
    assert_eq!(house.aside(), 1);
    house.wait(RECORD_PATIENCE);
    assert!(house.ask(800).await.is_err(), "that one has not ended");
    house.wait(QUESTION_MAX);
    house.ask(800).await.unwrap();
    drop(open);
}

#[tokio::test]
async fn a_month_is_what_the_store_says_and_ends() {
    let house = House::build().await;
    let journal = Uuid::new_v4();
    let start = JournalPosition::start(journal);
    let to = JournalPosition { offset: 9, ..start };
    let spent = house.record(Uuid::new_v4(), 700).record;
    house.store.add_usage(vec![spent], start, to).await.unwrap();
    house.limit(LimitScope::Credential, [0, 0, 1000]).await;
    // The service is not the organization's, and the token is not kept: the store knows nothing of whose that was.
    house.ask(1000).await.unwrap().undo();
    let question = house.ask(200).await.unwrap().question;
    house.budgets.settle(&[house.record(question, 900)]);
    let (code, after, is_retried) = said(house.ask(200).await);
    assert_eq!((code.as_str(), is_retried), ("insufficient_quota", false));
    // Until the first of December.
    assert_eq!(after.parse::<u64>().unwrap(), (15 * 24 + 12) * 3600);
    house.ask(100).await.unwrap().undo();
    house.wait(Duration::from_secs((15 * 24 + 12) * 3600));
    house.ask(1000).await.unwrap();
}

#[tokio::test]
async fn a_limit_that_changes_holds_at_once() {
    let house = House::build().await;
    house.limit(LimitScope::Credential, [1, 0, 0]).await;
    house.ask(1).await.unwrap();
    assert!(house.ask(1).await.is_err());
    house.limit(LimitScope::Credential, [0, 50, 0]).await;
    house.ask(50).await.unwrap();
    assert!(house.ask(50).await.is_err());
    let subject = house.asker.credential.to_string();
    house
        .store
        .delete_model_limit(house.asker.organization, LimitScope::Credential, &subject)
        .await
        .unwrap();
    // By another process: not at once.
    assert!(house.ask(50).await.is_err());
    house.wait(LIMITS_AGE);
    house.ask(50).await.unwrap();
}

#[tokio::test]
async fn accounts_of_those_who_left_are_given_up() {
    let house = House::build().await;
    house.limit(LimitScope::Credential, [10, 1000, 5000]).await;
    let admitted = house.ask(100).await.unwrap();
    let accounts = || house.budgets.state().accounts.len();
    assert_eq!(accounts(), 1);
    // It is under way: that is not forgotten.
    house.wait(MONTH_AGE * 2);
    house.budgets.settle(&[]);
    assert_eq!(accounts(), 1);
    let question = admitted.question;
    drop(admitted);
    house.budgets.settle(&[house.record(question, 40)]);
    house.wait(MONTH_AGE * 2);
    house.budgets.settle(&[]);
    assert_eq!(accounts(), 0);
}

#[tokio::test]
async fn a_month_is_not_read_while_it_is_counted() {
    let house = House::build().await;
    house.limit(LimitScope::Credential, [0, 0, 5000]).await;
    let counting = house.budgets.counting();
    let held = counting.lock().await;
    let asked = house.ask(100);
    tokio::pin!(asked);
    // Everything but the lock is ready.
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut asked).await;
    assert!(waits.is_err(), "it is read between the store and the account");
    drop(held);
    assert!(asked.await.is_ok());
}
