//! Three models within the memory of two.

use std::time::Duration;

use serde_json::{Value, json};
use tram_controller::data_plane::{Latency, ServiceActivity};
use tram_store::record::ObjectKind;
use tram_types::{
    DeploymentId, InstanceId, ServiceId,
    status::{DeploymentStatus as D, InstanceStatus, ServiceStatus as S},
    units::MIB,
};

use crate::world::{STEP, World};

/// What an instance of type `micro` has.
const EACH: u64 = 512 * MIB;
/// A second, as long as time has to pass at all: residence is ten.
const COARSE: Duration = Duration::from_secs(1);

fn model(min: u32) -> Value {
    json!({
        "name": "web", "type": "WEB", "regions": ["na"], "model": {"source": "tiny"},
        "ports": [{"port": 8000, "protocol": "http"}], "routes": [{"port": 8000, "path": "/"}],
        "scalings": [{"min": min, "max": min.max(1), "targets": [{"sleep_idle_delay": {"deep_sleep_value": 3600}}]}],
        "instance_types": [{"type": "micro"}],
    })
}

#[derive(Debug, Clone, Copy)]
struct Model {
    service: ServiceId,
    deployment: DeploymentId,
}

struct Machine {
    world: World,
}

impl Machine {
    async fn new(models: u64) -> Self {
        let mut world = World::without_controller().await;
        world.model_bytes = Some(models * EACH);
        world.start();
        Self { world }
    }

    async fn make(&self, name: &str, min: u32) -> Model {
        let made = self.world.create(name, model(min)).await;
        Model {
            service: made.service.id,
            deployment: made.deployment.id,
        }
    }

    /// Makes one for which there is room. It comes up in no time, so that wakes cost the same however busy the machine
    /// of the test is; and a second later than the one before.
    async fn awake(&self, name: &str, min: u32) -> Model {
        let model = self.make(name, min).await;
        self.world.deployment_becomes(model.deployment, D::Healthy).await;
        self.world.endpoints_become(model.service, 1).await;
        self.world.pass(COARSE).await;
        model
    }

    /// Two that are awake, and one that had to go for the second: nobody was called since.
    async fn three() -> (Self, [Model; 3]) {
        let machine = Self::new(2).await;
        let first = machine.awake("a", 0).await;
        let second = machine.awake("b", 0).await;
        let third = machine.make("c", 0).await;
        machine.becomes(third, D::Healthy).await;
        (machine, [first, second, third])
    }

    async fn becomes(&self, model: Model, status: D) {
        self.world
            .pass_until(COARSE, &format!("the model is {status}"), async || {
                // At no moment is more held than there is.
                let running = self.world.site.running().len();
                assert!(running <= 2, "{running} run");
                let deployment = self.world.deployment(model.deployment).await;
                match deployment.status {
                    seen if seen == status => Ok(()),
                    _ => Err(format!("{deployment:#?}")),
                }
            })
            .await;
    }

    fn report(&self, model: Model, in_flight: u64, queued: u64) {
        self.world.edge.traffic(ServiceActivity {
            service: model.service,
            in_flight,
            queued,
            last_at: Some(self.world.now()),
            arrivals: Some(1),
            latency: Latency::default(),
        });
    }

    async fn status(&self, model: Model) -> D {
        self.world.deployment(model.deployment).await.status
    }

    async fn live(&self, model: Model) -> Vec<InstanceId> {
        let instances = self.world.instances(model.service).await;
        let live = instances.into_iter().filter(|it| !it.status.is_final());
        live.map(|it| it.id).collect()
    }

    /// It waits, and its owner and its callers can know why.
    async fn waits(&self, model: Model, why: &str) {
        self.world
            .pass_until(COARSE, "it says what it waits for", async || {
                let deployment = self.world.deployment(model.deployment).await;
                let told = deployment.messages.join("; ");
                let routed = self.world.edge.service(model.service);
                let held = routed.is_some_and(|it| it.waits_for_memory);
                if told.starts_with("waiting for memory") && told.contains(why) && held {
                    return Ok(());
                }
                Err(format!("{told}; the data plane knows: {held}"))
            })
            .await;
    }
}

#[tokio::test]
async fn the_one_that_rested_for_longest_makes_room_and_says_so() {
    let (machine, [first, second, third]) = Machine::three().await;
    assert_eq!(machine.status(first).await, D::Sleeping);
    assert_eq!(machine.status(second).await, D::Healthy);
    let told = machine
        .world
        .messages(ObjectKind::Deployment, first.deployment.uuid())
        .await;
    assert!(
        told.iter()
            .any(|it| it.ends_with("put to sleep to make room for shop/c")),
        "{told:?}"
    );
    // And round it goes.
    machine.world.edge.wake(first.service);
    machine.becomes(first, D::Healthy).await;
    assert_eq!(machine.status(second).await, D::Sleeping);
    assert_eq!(machine.status(third).await, D::Healthy);
    machine.world.running_come_to(2).await;
}

#[tokio::test]
async fn a_stream_is_waited_for_however_long_it_is_and_the_caller_is_told_why() {
    let (machine, [first, second, third]) = Machine::three().await;
    machine.report(second, 1, 0);
    machine.report(third, 1, 0);
    machine.world.edge.wake(first.service);
    machine.waits(first, "2 answer or are waited for").await;
    machine.world.pass(Duration::from_secs(30)).await;
    assert_eq!(machine.status(second).await, D::Healthy);
    assert_eq!(machine.status(third).await, D::Healthy);
    // Whoever ends first makes room.
    machine.report(third, 0, 0);
    machine.becomes(first, D::Healthy).await;
    assert_eq!(machine.status(third).await, D::Sleeping);
    assert_eq!(machine.status(second).await, D::Healthy);
    machine
        .world
        .until(
            "the data plane knows that it waits no more",
            async || match machine.world.edge.service(first.service) {
                Some(routed) if !routed.waits_for_memory => Ok(()),
                other => Err(format!("{other:#?}")),
            },
        )
        .await;
    let deployment = machine.world.deployment(first.deployment).await;
    assert_eq!(deployment.messages, Vec::<String>::new());
}

#[tokio::test]
async fn a_wish_that_nobody_waits_for_any_more_displaces_nobody_later() {
    let (machine, [first, second, third]) = Machine::three().await;
    machine.report(second, 1, 0);
    machine.report(third, 1, 0);
    machine.world.edge.wake(first.service);
    machine.waits(first, "2 answer").await;
    // Its caller left.
    machine.report(first, 0, 0);
    machine
        .world
        .pass_until(COARSE, "it sleeps on", async || {
            match machine
                .world
                .deployment(first.deployment)
                .await
                .messages
                .as_slice()
            {
                [] => Ok(()),
                told => Err(format!("{told:?}")),
            }
        })
        .await;
    machine.report(second, 0, 0);
    machine.report(third, 0, 0);
    machine.world.pass(Duration::from_secs(30)).await;
    assert_eq!(machine.status(first).await, D::Sleeping);
    assert_eq!(machine.status(second).await, D::Healthy);
    assert_eq!(machine.status(third).await, D::Healthy);
}

#[tokio::test]
async fn one_with_a_minimum_or_with_a_session_open_never_goes() {
    let machine = Machine::new(2).await;
    let promised = machine.awake("a", 1).await;
    let visited = machine.awake("b", 0).await;
    let [instance] = machine.live(visited).await[..] else {
        panic!("one instance");
    };
    let session = machine.world.sites.sessions().open(instance);
    let third = machine.make("c", 0).await;
    machine
        .world
        .pass_until(COARSE, "it waits", async || {
            let told = machine
                .world
                .deployment(third.deployment)
                .await
                .messages
                .join("; ");
            let all = ["1 answers or is waited for", "1 has to run or is being deployed"];
            if all.iter().all(|part| told.contains(part)) {
                return Ok(());
            }
            Err(told)
        })
        .await;
    drop(session);
    machine.becomes(third, D::Healthy).await;
    assert_eq!(machine.status(visited).await, D::Sleeping);
    assert_eq!(machine.status(promised).await, D::Healthy);
}

#[tokio::test]
async fn what_woke_just_now_stays_for_a_while() {
    let (machine, [first, ..]) = Machine::three().await;
    machine.world.edge.wake(first.service);
    machine.becomes(first, D::Healthy).await;
    let woken = machine.world.now();
    // Both that are awake now answered just now; whoever goes had its time.
    let instances = machine.live(first).await;
    let next = machine.make("d", 0).await;
    machine.becomes(next, D::Healthy).await;
    let stayed = machine.world.now().since(woken);
    assert!(
        machine.live(first).await == instances || stayed >= Duration::from_secs(10),
        "put to sleep after {stayed:?}"
    );
}

#[tokio::test]
async fn what_is_larger_than_all_there_is_fails_at_once_with_advice() {
    let machine = Machine::new(2).await;
    let mut definition = model(0);
    definition["instance_types"] = json!([{"type": "xlarge"}]);
    let made = machine.world.create("large", definition).await;
    let failed = machine
        .world
        .deployment_comes_to(made.deployment.id, D::Error)
        .await;
    let told = failed.messages.join("; ");
    assert!(
        told.contains("all models of this machine have 1 GiB together") && told.contains("`models_memory`"),
        "{told}"
    );
    machine
        .world
        .service_comes_to(made.service.id, S::Unhealthy)
        .await;
}

#[tokio::test]
async fn a_process_that_starts_anew_knows_what_is_held() {
    let (mut machine, [first, second, third]) = Machine::three().await;
    machine.world.kill();
    machine.world.start();
    machine.world.edge.wake(first.service);
    machine.becomes(first, D::Healthy).await;
    assert_eq!(machine.world.site.running().len(), 2);
    let asleep = [machine.status(second).await, machine.status(third).await];
    assert_eq!(asleep.iter().filter(|it| **it == D::Sleeping).count(), 1);
}

#[tokio::test]
async fn what_is_frozen_counts_and_gives_its_memory_up() {
    let mut world = World::without_controller().await;
    world.model_bytes = Some(EACH);
    world.site.set_capabilities(tram_site::Capabilities {
        freeze: true,
        ..tram_site::Capabilities::default()
    });
    world.start();
    let machine = Machine { world };
    let mut definition = model(0);
    definition["scalings"][0]["targets"][0]["sleep_idle_delay"]["light_sleep_value"] = json!(5);
    let made = machine.world.create("a", definition).await;
    machine
        .world
        .pass_until(STEP * 10, "it is frozen", async || {
            let instances = machine.world.instances(made.service.id).await;
            match instances.iter().any(|it| it.status == InstanceStatus::Sleeping) {
                true => Ok(()),
                false => Err(format!("{instances:#?}")),
            }
        })
        .await;
    let second = machine.make("b", 0).await;
    machine.becomes(second, D::Healthy).await;
    machine.world.running_come_to(1).await;
    let deployment = machine.world.deployment(made.deployment.id).await;
    assert_eq!(deployment.status, D::Sleeping);
}

#[tokio::test]
async fn without_a_bound_nobody_makes_room() {
    let mut world = World::without_controller().await;
    world.start();
    for name in ["a", "b", "c"] {
        let made = world.create(name, model(0)).await;
        world.deployment_comes_to(made.deployment.id, D::Healthy).await;
    }
    assert_eq!(world.site.running().len(), 3);
}
