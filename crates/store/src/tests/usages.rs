//! What questions cost: counted once, whoever is killed, and told by what it was.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tram_types::{
    CredentialId, OrganizationId, ProjectId, ServiceId, Timestamp,
    inference::{Endpoint, JournalPosition, Outcome, Priority, TokenRecord},
};
use uuid::Uuid;

use super::fixture::{Fixture, new_deployment, new_service};
use crate::{
    Error, Retention, Store,
    record::{LimitScope, ModelLimit},
    token_usages::{By, Tokens},
};

fn record(service: ServiceId, tenant: Option<CredentialId>, at: Timestamp) -> TokenRecord {
    TokenRecord {
        question_id: Uuid::new_v4(),
        request_id: String::new(),
        service_id: service,
        deployment_id: None,
        organization_id: None,
        tenant,
        endpoint: Endpoint::ChatCompletions,
        model: "as the edge says".to_owned(),
        asked: None,
        prompt_tokens: 10,
        completion_tokens: 5,
        cached_tokens: 4,
        queue_ms: 7,
        ttft_ms: Some(20),
        duration_ms: 50,
        status: 200,
        outcome: Outcome::Complete,
        finished_at: at,
    }
}

fn at(journal: Uuid, segment: u64, offset: u64) -> JournalPosition {
    JournalPosition {
        journal,
        segment,
        offset,
    }
}

/// A service of this organization that serves the model `small`.
async fn model_service(fixture: &Fixture, organization: OrganizationId, project: ProjectId) -> ServiceId {
    let app = fixture.app(organization).await;
    let mut new = new_service(&app, "chat");
    new.project_id = Some(project);
    new.deployment = new_deployment();
    new.deployment.definition = json!({"name": "chat", "model": {"source": "small"}});
    fixture.store.create_service(new).await.unwrap().service.id
}

async fn total(store: &Store, organization: OrganizationId) -> Tokens {
    let end = Timestamp::from_micros(i64::MAX);
    let sums = store
        .token_usages(organization, Timestamp::EPOCH, end, &[])
        .await
        .unwrap();
    sums[0].tokens
}

pub(super) async fn usage_is_told_apart(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let (other, _) = fixture.organization().await;
    let service = model_service(fixture, organization, project).await;
    let (one, two) = (CredentialId::random(), CredentialId::random());
    let now = fixture.clock_now();
    let mut failed = record(service, Some(two), now);
    failed.outcome = Outcome::Failed;
    failed.ttft_ms = None;
    let gone = record(ServiceId::random(), None, now);
    let mut deployed = record(service, None, now.plus(Duration::from_secs(3600)));
    let state = store.load_service_state(service).await.unwrap();
    deployed.deployment_id = state.service.latest_deployment_id;
    deployed.asked = Some("assistant".to_owned());
    let records = vec![record(service, Some(one), now), failed, gone, deployed];
    let journal = Uuid::new_v4();
    let start = store.usage_position(journal).await.unwrap();
    assert_eq!(start, JournalPosition::start(journal));
    let attributed = store
        .add_usage(records, start, at(journal, 1, 400))
        .await
        .unwrap();
    assert_eq!(attributed[0].organization, Some(organization));
    assert!(attributed[0].service_path.ends_with("/chat"));
    assert_eq!(attributed[2].organization, None);
    assert_eq!(
        (attributed[3].model.as_str(), attributed[3].served.as_str()),
        ("assistant", "small")
    );

    let span = (
        now.minus(Duration::from_secs(3600)),
        now.plus(Duration::from_secs(7200)),
    );
    let by = async |by: &[By]| {
        store
            .token_usages(organization, span.0, span.1, by)
            .await
            .unwrap()
    };
    let all = by(&[]).await;
    let expected = Tokens {
        requests: 3,
        failed_requests: 1,
        prompt_tokens: 30,
        completion_tokens: 15,
        cached_tokens: 12,
        queue_ms: 21,
        answered_requests: 2,
        ttft_ms: 40,
        duration_ms: 150,
    };
    assert_eq!((all.len(), all[0].tokens), (1, expected));
    let tokens = by(&[By::Credential]).await;
    assert_eq!(tokens.len(), 3);
    assert!(tokens.iter().any(|sum| sum.credential.is_none()), "a direct call");
    assert_eq!(by(&[By::Service]).await[0].service, Some(service));
    assert_eq!(by(&[By::Project]).await[0].project, Some(project));
    assert_eq!(by(&By::ALL).await.len(), 4 - 1);
    assert_eq!(total(store, other).await, Tokens::default());
    let none = store
        .token_usages(organization, span.0, span.0, &[By::Service])
        .await;
    assert!(none.unwrap().is_empty());

    let spent = async |scope, subject: String| {
        store
            .tokens_spent(organization, scope, &subject, span.0)
            .await
            .unwrap()
    };
    assert_eq!(
        spent(LimitScope::Organization, organization.to_string()).await,
        45
    );
    assert_eq!(spent(LimitScope::Credential, one.to_string()).await, 15);
    assert_eq!(spent(LimitScope::Project, project.to_string()).await, 45);

    // Three years later.
    fixture.clock.advance(Duration::from_secs(4 * 366 * 24 * 3600));
    assert!(store.prune(&Retention::default()).await.unwrap().usages >= 4);
    assert_eq!(total(store, organization).await, Tokens::default());
    assert_eq!(
        store.usage_position(journal).await.unwrap(),
        at(journal, 1, 400),
        "nothing is counted again"
    );
}

pub(super) async fn a_position_is_passed_once(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let service = model_service(fixture, organization, project).await;
    let now = fixture.clock_now();
    let journal = Uuid::new_v4();
    let start = JournalPosition::start(journal);
    let add = |from, to| store.add_usage(vec![record(service, None, now)], from, to);
    // Two readers of one journal, from the same place at the same time.
    let (one, two) = tokio::join!(add(start, at(journal, 1, 10)), add(start, at(journal, 1, 10)));
    assert!(one.is_ok() != two.is_ok(), "{one:?} {two:?}");
    let refused = one.err().or(two.err()).unwrap();
    assert!(
        matches!(refused, Error::Conflict { .. } | Error::Unavailable { .. }),
        "{refused}"
    );
    assert!(add(start, at(journal, 1, 20)).await.is_err());
    assert!(add(at(journal, 1, 9), at(journal, 1, 20)).await.is_err());
    add(at(journal, 1, 10), at(journal, 1, 20)).await.unwrap();
    assert_eq!(total(store, organization).await.requests, 2);
}

/// A reader that is cut off at any moment, between any two awaits, and begins again from what is kept.
pub(super) async fn a_reader_that_is_cut_off_counts_once(fixture: &Fixture) {
    const RECORDS: u64 = 200;
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let service = model_service(fixture, organization, project).await;
    let now = fixture.clock_now();
    let journal = Uuid::new_v4();
    let seed: u64 = std::env::var("TRAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    loop {
        let position = store.usage_position(journal).await.unwrap();
        if position.offset >= RECORDS {
            break;
        }
        let count = random.random_range(1..20).min(RECORDS - position.offset);
        let records = (0..count).map(|_| record(service, None, now)).collect();
        let to = at(journal, 1, position.offset + count);
        let adding = store.add_usage(records, position, to);
        let patience = Duration::from_micros(random.random_range(0..15_000));
        // Dropped in the midst, as by a crash: it happened or it did not.
        let _ = tokio::time::timeout(patience, adding).await;
    }
    let sum = total(store, organization).await;
    assert_eq!(
        (sum.requests, sum.prompt_tokens),
        (RECORDS, 10 * RECORDS),
        "seed {seed}"
    );
}

pub(super) async fn limits_are_kept_and_go_with_their_subject(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let (other, _) = fixture.organization().await;
    let limit = |scope, subject: String| ModelLimit {
        organization_id: organization,
        scope,
        subject_id: subject,
        requests_per_minute: 60,
        tokens_per_minute: 0,
        tokens_per_month: 1_000_000,
        priority: Priority::Low,
        created_at: Timestamp::EPOCH,
        updated_at: Timestamp::EPOCH,
    };
    let token = CredentialId::random().to_string();
    store
        .set_model_limit(&limit(LimitScope::Credential, token.clone()))
        .await
        .unwrap();
    store
        .set_model_limit(&limit(LimitScope::Project, project.to_string()))
        .await
        .unwrap();
    let mut changed = limit(LimitScope::Credential, token.clone());
    changed.tokens_per_minute = 9;
    store.set_model_limit(&changed).await.unwrap();
    let kept = store.model_limits(organization).await.unwrap();
    assert_eq!(kept.len(), 2);
    assert_eq!(
        (kept[0].tokens_per_minute, kept[0].priority, kept[0].created_at),
        (9, Priority::Low, fixture.clock_now())
    );
    assert!(store.model_limits(other).await.unwrap().is_empty());
    let refused = store
        .delete_model_limit(other, LimitScope::Credential, &token)
        .await;
    assert!(matches!(refused, Err(Error::NotFound { .. })));
    // The token is not there any more: neither is its limit for long.
    store.prune(&Retention::default()).await.unwrap();
    let kept = store.model_limits(organization).await.unwrap();
    assert_eq!(kept.len(), 1);
    store
        .delete_model_limit(organization, LimitScope::Project, &project.to_string())
        .await
        .unwrap();
    assert!(store.model_limits(organization).await.unwrap().is_empty());
}
