//! The figures decisions are made with. One value, resolved once from the settings.

use std::time::Duration;

use crate::autoscale;

/// First wait before a failed replica is tried again: short, most first failures are a dependency that is not up yet.
const RESTART_DELAY_MIN: Duration = Duration::from_secs(1);
/// Longest wait: a program that has failed nine times in a row is tried once in five minutes, for ever.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(300);
/// An instance that was healthy for this long has earned a fresh start of the back-off.
const HEALTHY_RESETS: Duration = Duration::from_secs(60);
/// Runs of one replica before a deployment that was never healthy has failed: 1 + 2 + 4 + 8 s of waiting, long
/// enough for a database beside it to come up, short enough for a person who waits at a terminal.
const START_ATTEMPTS: u32 = 5;
/// Time from the first instance to healthy, beside the grace that the deployment's own checks ask for (up to fifteen
/// minutes): a person who waits should hear of a port nobody listens on before the coffee is cold.
const START_DEADLINE: Duration = Duration::from_secs(5 * 60);
/// Time from accepted to image ready: a 10 GB image over 50 Mbit/s takes half an hour.
const PROVISION_DEADLINE: Duration = Duration::from_secs(45 * 60);
/// Time a passing failure of a registry is retried for before the deployment fails with it.
const PROVISION_RETRY: Duration = Duration::from_secs(3 * 60);
/// Between two looks at an image on its way; news of the site usually come first.
const IMAGE_LOOK: Duration = Duration::from_secs(5);
/// Between two looks at anything else that should have come by news: what a lost signal costs at most.
const LOOK: Duration = Duration::from_secs(10);
/// Between two looks at a service that waits for memory: news of those that give it back usually come first, but that
/// one has stayed for long enough is no news.
const ROOM_LOOK: Duration = Duration::from_secs(1);
/// How long HEALTHY stays visible before SLEEPING: the slowest official client polls every five seconds
/// (`koyeb compose`), and waits for ever when it never sees HEALTHY.
const HEALTHY_VISIBLE: Duration = Duration::from_secs(6);
/// Time an instance without new requests gets to finish those it has.
const DRAIN: Duration = Duration::from_secs(30);
/// After the data plane confirmed a table, reports of requests still under way may be on their way here: they come
/// every second. Only after this is "nothing in flight" believed.
const SETTLE: Duration = Duration::from_secs(1);
/// Instances more than wanted while a rolling deployment replaces them, in hundredths: Kubernetes' figure, so that a
/// large service needs a quarter more of the machines and not as many again. At least one.
const ROLLING_SURGE_PERCENT: u32 = 25;
/// How long a canary has to stay healthy: two probes of the usual interval, long enough for the first mistakes of a
/// new version to show in its logs and figures.
const CANARY_BAKE: Duration = Duration::from_secs(60);
/// How long an instance stays frozen before it is moved to disk. The five-minute rule of Gray and Putzolu (1987): what is
/// not touched for some minutes costs less on disk than in memory, and it still holds for flash. Who comes back within
/// minutes gets the quickest wake.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(300);
/// Between the stop signal and the end by force.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// The figures decisions are made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// First wait before a failed replica is tried again; doubles with every failure in a row.
    pub restart_delay_min: Duration,
    /// Longest wait.
    pub restart_delay_max: Duration,
    /// Healthy time after which the back-off starts anew.
    pub healthy_resets: Duration,
    /// Runs of one replica before a deployment that was never healthy has failed.
    pub start_attempts: u32,
    /// Time from the first instance to healthy before the deployment has failed, beside its checks' own grace.
    pub start_deadline: Duration,
    /// Time from accepted to image ready before the deployment has failed.
    pub provision_deadline: Duration,
    /// Time from accepted in which a passing failure to get the image is retried.
    pub provision_retry: Duration,
    /// Between two looks at an image on its way.
    pub image_look: Duration,
    /// Between two looks at anything else that is under way.
    pub look: Duration,
    /// Between two looks at a service that waits for memory.
    pub room_look: Duration,
    /// How long HEALTHY stays visible before SLEEPING.
    pub healthy_visible: Duration,
    /// Time an instance without new requests gets to finish those it has.
    pub drain: Duration,
    /// Time after a confirmed table before "nothing in flight" is believed.
    pub settle: Duration,
    /// Instances more than wanted while a rolling deployment replaces them, in hundredths of them; at least one.
    pub rolling_surge_percent: u32,
    /// How long a canary has to stay healthy before the rest of its deployment comes up.
    pub canary_bake: Duration,
    /// How long light sleep keeps the memory of an instance before it is moved to disk; `None`: until memory is short.
    pub checkpoint_after: Option<Duration>,
    /// Between the stop signal and the end by force.
    pub stop_grace: Duration,
    /// How the load decides on the number of instances.
    pub scaling: autoscale::Policy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            restart_delay_min: RESTART_DELAY_MIN,
            restart_delay_max: RESTART_DELAY_MAX,
            healthy_resets: HEALTHY_RESETS,
            start_attempts: START_ATTEMPTS,
            start_deadline: START_DEADLINE,
            provision_deadline: PROVISION_DEADLINE,
            provision_retry: PROVISION_RETRY,
            image_look: IMAGE_LOOK,
            look: LOOK,
            room_look: ROOM_LOOK,
            healthy_visible: HEALTHY_VISIBLE,
            drain: DRAIN,
            settle: SETTLE,
            rolling_surge_percent: ROLLING_SURGE_PERCENT,
            canary_bake: CANARY_BAKE,
            checkpoint_after: Some(CHECKPOINT_AFTER),
            stop_grace: STOP_GRACE,
            scaling: autoscale::Policy::default(),
        }
    }
}
