//! Services that are called at regular times are woken before.

use std::time::Duration;

use tram_controller::data_plane::{Latency, ServiceActivity};
use tram_planner::prewake::Budget;
use tram_store::{CallPattern, record::ObjectKind};
use tram_types::{DeploymentId, ServiceId, Timestamp, status::DeploymentStatus as D};

use crate::world::{World, web};

const MINUTE: Duration = Duration::from_secs(60);
/// Between two calls.
const PERIOD: Duration = Duration::from_secs(30 * 60);
/// What the test's service idles before it sleeps, and a second.
const DELAY: Duration = Duration::from_secs(301);

struct Sleeper {
    world: World,
    service: ServiceId,
    deployment: DeploymentId,
    calls: u64,
    called_at: Timestamp,
}

impl Sleeper {
    /// One that sleeps and was called once.
    async fn new(prewake: Option<Budget>) -> Self {
        let mut world = World::without_controller().await;
        world.prewake = prewake;
        world.start();
        let made = world.create("web", web("sleeper", 0)).await;
        world.endpoints_become(made.service.id, 1).await;
        let mut sleeper = Self {
            world,
            service: made.service.id,
            deployment: made.deployment.id,
            calls: 0,
            called_at: Timestamp::EPOCH,
        };
        sleeper.report(0);
        sleeper.call().await;
        sleeper
    }

    fn report(&self, in_flight: u64) {
        self.world.edge.traffic(ServiceActivity {
            service: self.service,
            in_flight,
            queued: 0,
            last_at: (self.calls > 0).then_some(self.called_at),
            arrivals: Some(self.calls),
            latency: Latency::default(),
        });
    }

    /// A call that takes no time, and the sleep after it.
    async fn call(&mut self) {
        self.calls += 1;
        self.called_at = self.world.now();
        self.world.edge.wake(self.service);
        self.report(1);
        self.becomes(D::Healthy).await;
        self.report(0);
        self.falls_asleep().await;
    }

    async fn becomes(&self, status: D) {
        self.world.deployment_becomes(self.deployment, status).await;
    }

    async fn falls_asleep(&self) {
        self.world.clock.advance(DELAY);
        self.world
            .pass_until(MINUTE / 6, "it sleeps", async || {
                match self.world.deployment(self.deployment).await.status {
                    D::Sleeping => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        self.world.running_come_to(0).await;
    }

    /// Lets time pass until so long after the last call.
    fn advance_to(&self, idle: Duration) {
        let so_far = self.world.now().since(self.called_at);
        self.world.clock.advance(idle.saturating_sub(so_far));
    }

    async fn called_every_half_hour(mut self, times: usize) -> Self {
        for _ in 0..times {
            self.advance_to(PERIOD);
            self.call().await;
        }
        self
    }

    async fn is_woken_for_a_call_that_is_expected(&self) {
        self.advance_to(PERIOD - 3 * MINUTE);
        self.world.pass(MINUTE).await;
        assert_eq!(self.world.deployment(self.deployment).await.status, D::Sleeping);
        self.advance_to(PERIOD - MINUTE);
        self.becomes(D::Healthy).await;
        let events = self
            .world
            .messages(ObjectKind::Deployment, self.deployment.uuid())
            .await;
        let last = events.last().map(String::as_str).unwrap_or_default();
        assert!(last.contains("a call is expected soon"), "{events:?}");
    }
}

#[tokio::test]
async fn who_calls_every_half_hour_finds_the_service_awake() {
    let mut sleeper = Sleeper::new(Some(Budget::of(10.0)))
        .await
        .called_every_half_hour(5)
        .await;
    sleeper.is_woken_for_a_call_that_is_expected().await;
    // The call comes, and the habit lives on.
    sleeper.advance_to(PERIOD);
    sleeper.call().await;
    sleeper.is_woken_for_a_call_that_is_expected().await;
    // Nobody comes: it sleeps again, and stays asleep.
    sleeper.falls_asleep().await;
    sleeper.world.pass(PERIOD * 4).await;
    assert_eq!(
        sleeper.world.deployment(sleeper.deployment).await.status,
        D::Sleeping
    );
}

#[tokio::test]
async fn without_a_budget_nobody_is_woken() {
    let sleeper = Sleeper::new(None).await.called_every_half_hour(5).await;
    sleeper.world.pass(PERIOD).await;
    assert_eq!(
        sleeper.world.deployment(sleeper.deployment).await.status,
        D::Sleeping
    );
    assert!(sleeper.world.store.call_patterns().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_learned_outlives_the_controller_and_goes_with_the_service() {
    let mut sleeper = Sleeper::new(Some(Budget::of(10.0)))
        .await
        .called_every_half_hour(5)
        .await;
    let controller = sleeper.world.controller.take().expect("it runs");
    controller.shutdown().await;
    let kept = sleeper.world.store.call_patterns().await.unwrap();
    let [CallPattern { service, counts, .. }] = kept.as_slice() else {
        panic!("{kept:?}");
    };
    assert_eq!((*service, counts.as_slice()), (sleeper.service, &[(30, 5)][..]));
    sleeper.world.start();
    sleeper.is_woken_for_a_call_that_is_expected().await;
    sleeper
        .world
        .want(sleeper.service, tram_store::record::Desired::Delete)
        .await;
    sleeper
        .world
        .until("it is gone with its habits", async || {
            let left = sleeper.world.store.call_patterns().await.unwrap();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        })
        .await;
}
