//! What one decision of the planner costs, and whether it grows with the number of services.
//!
//! `cargo run --release -p tram-testkit --example planner_million [-- COUNT]`: makes up to COUNT services (a million
//! when it is not said), nine of ten asleep and one serving, and plans for ones picked at random, as news of any of
//! them would. Prints a line a size and, last, one JSON object.

use std::{
    hint::black_box,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use tram_planner::{Drain, Edge, Instance, Observed, Policy, ServiceView, Tally, plan};
use tram_site::{InstancePhase, ObservedInstance};
use tram_testkit::simulator::{Rng, world::asleep};
use tram_types::{
    Generation, InstanceId, Timestamp,
    status::{DeploymentStatus, InstanceStatus},
};

/// Services when nothing is said.
const COUNT: usize = 1_000_000;
/// The smallest number of services measured, with which larger ones are compared: the views of fewer fit into the
/// processor's caches, which no server has to itself.
const FIRST: usize = 10_000;
/// Decisions timed at each size: the p99 of so many is that of two thousand.
const DECISIONS: usize = 200_000;
/// One of so many services is awake and serving.
const AWAKE: usize = 10;
/// 2026-01-01T00:00:00Z.
const START_MICROS: i64 = 1_767_225_600_000_000;

fn serving(mut view: ServiceView, now: Timestamp, rng: &mut Rng) -> ServiceView {
    let id = InstanceId::from_uuid(uuid::Uuid::from_u128(rng.bits_128()));
    view.sleeping_since = None;
    view.edge = Edge::Known {
        endpoints: [id].into(),
        since: now,
        settled: true,
    };
    if let Some(deployment) = view.deployments.first_mut() {
        deployment.status = DeploymentStatus::Healthy;
        if let Some(region) = deployment.regions.first_mut() {
            region.instances.push(Instance {
                id,
                replica_index: 0,
                status: InstanceStatus::Healthy,
                messages: Vec::new(),
                generation: Generation(1),
                address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                forgotten: false,
                created_at: now,
                healthy_at: Some(now),
                ended_at: None,
                drain: Drain::Unknown,
                tally: Tally::default(),
                trouble: None,
                unfreezable: None,
                observed: Observed::Seen(ObservedInstance {
                    id,
                    generation: Generation(1),
                    phase: InstancePhase::Running {
                        healthy: true,
                        failures: 0,
                        last_failure: None,
                    },
                    address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    started_at: Some(now),
                    deployment: None,
                    uncheckpointable: None,
                }),
            });
        }
    }
    view
}

/// p50 and p99 of one decision, in microseconds, and decisions a second.
fn measure(views: &[ServiceView], now: Timestamp, rng: &mut Rng) -> [f64; 3] {
    let policy = Policy::default();
    let mut taken: Vec<Duration> = Vec::with_capacity(DECISIONS);
    let begun = Instant::now();
    for _ in 0..DECISIONS {
        let view = &views[rng.below(views.len())];
        let started = Instant::now();
        black_box(plan(black_box(view), &policy, now));
        taken.push(started.elapsed());
    }
    let whole = begun.elapsed().as_secs_f64();
    taken.sort_unstable();
    let micros = |place: usize| taken[place].as_secs_f64() * 1e6;
    [
        micros(DECISIONS / 2),
        micros(DECISIONS / 100 * 99),
        DECISIONS as f64 / whole,
    ]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let most = std::env::args().nth(1).map_or(Ok(COUNT), |count| count.parse())?;
    let mut out = std::io::stdout();
    let start = Timestamp::from_micros(START_MICROS);
    let now = start.plus(Duration::from_secs(60));
    let mut rng = Rng::new(1);
    let mut views: Vec<ServiceView> = Vec::new();
    let mut first = None;
    let mut size = FIRST.min(most).max(1);
    let last = loop {
        while views.len() < size {
            let view = asleep(start, Duration::from_secs(300), &mut rng);
            let awake = views.len().is_multiple_of(AWAKE);
            views.push(if awake {
                serving(view, start, &mut rng)
            } else {
                view
            });
        }
        let last = measure(&views, now, &mut rng);
        let base = *first.get_or_insert(last[0]);
        writeln!(
            out,
            "{size} services: p50 {:.2} us, p99 {:.2} us, {:.0} decisions a second, {:.2} times the first",
            last[0],
            last[1],
            last[2],
            last[0] / base
        )?;
        if size >= most {
            break last;
        }
        size = (size * 10).min(most);
    };
    let growth = last[0] / first.unwrap_or(last[0]);
    writeln!(
        out,
        "{{\"services\": {size}, \"p50_us\": {:.3}, \"p99_us\": {:.3}, \"decisions_per_second\": {:.0}, \"growth\": \
         {growth:.3}}}",
        last[0], last[1], last[2]
    )?;
    Ok(())
}
