//! The figures of autoscaling. docs/concepts/autoscaling.md has them as a table for operators.

use std::time::Duration;

/// Requests in flight are averaged over this: long enough that one slow answer does not count for a trend, and a
/// sixth of Knative's 60 s, since a wrong step costs an instance for half a minute and not a machine.
const CONCURRENCY_WINDOW: Duration = Duration::from_secs(10);
/// A burst is told from the last second, the time between two reports of the data plane: what waits a second longer is
/// a second late for everybody in the burst.
const BURST_WINDOW: Duration = Duration::from_secs(1);
/// Arrivals are averaged over a minute: they come in clusters, and what they cost shows in flight first.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Processor and memory are averaged over a minute: garbage collectors and caches make them jump.
const USAGE_WINDOW: Duration = Duration::from_secs(60);
/// A burst of work is told from ten seconds of processor time: less than that is one heavy request.
const USAGE_BURST_WINDOW: Duration = Duration::from_secs(10);
/// Response times are looked at over ten seconds: the quantile of less is the quantile of a handful of requests.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);
/// An instance goes only when none of the last thirty seconds asked for it: a pause between two pages of a person
/// is shorter.
const DOWN_WINDOW: Duration = Duration::from_secs(30);
/// What a burst asked for is kept for a third of that: callers that queued up in its first moments inflate it, and they
/// are gone in seconds. What of it lasts shows in the long window by then.
const BURST_HOLD: Duration = Duration::from_secs(10);
/// However slowly instances start, the window above grows no further than to the five minutes of Kubernetes.
const DOWN_WINDOW_MAX: Duration = Duration::from_secs(300);
/// An instance is kept for this many times what it takes to start one: to stop it too early costs that time again,
/// to everybody who waits for it.
const START_FACTOR: u32 = 5;
/// Load within this share of the target changes nothing, as in Kubernetes: below it is noise.
const TOLERANCE_PERCENT: u32 = 10;
/// A burst is at least one and a half of what the instances should carry. Knative waits for twice.
const BURST_PERCENT: u32 = 150;
/// One step up at most doubles …
const UP_FACTOR: u32 = 2;
/// … or adds this many, whichever is more: from one instance doubling is too slow.
const UP_STEP: u32 = 4;
/// Between two steps up. Shorter than the second between two looks, so that each look may take one; news that come
/// faster than that do not add up to one large step.
const UP_PERIOD: Duration = Duration::from_millis(500);
/// One step down keeps at least one of so many: a wrong guess leaves a quarter of the instances.
const DOWN_DIVISOR: u32 = 4;
/// Between two steps down: the load that the stopped ones had has to show on the others first.
const DOWN_PERIOD: Duration = Duration::from_secs(5);
/// One step up for response times: they do not fall in proportion, so a large excess does not justify a large step.
const LATENCY_STEP_PERCENT: u32 = 150;
/// Below so many answers in its window a quantile says nothing: p95 of fewer than twenty is the slowest one.
const LATENCY_REQUESTS: u64 = 20;
/// How long a number that turned out to answer too slowly is not tried again under the same load: without that, a
/// service whose time is just above the target with two and far below it with three would go up and down for ever.
const LATENCY_MEMORY: Duration = Duration::from_secs(600);
/// What an instance uses in its first seconds is its start and not its load.
const USAGE_GRACE: Duration = Duration::from_secs(10);
/// A busy service of which nothing was heard for so long is unknown: reports come each second.
const STALE: Duration = Duration::from_secs(5);

/// The figures of autoscaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Over which requests in flight are averaged.
    pub concurrency_window: Duration,
    /// Over which requests in flight and arrivals tell a burst.
    pub burst_window: Duration,
    /// Over which arrivals are averaged.
    pub rate_window: Duration,
    /// Over which processor and memory are averaged.
    pub usage_window: Duration,
    /// Over which processor and memory tell a burst.
    pub usage_burst_window: Duration,
    /// Over which the quantile of response times is taken, and between two steps up for them.
    pub latency_window: Duration,
    /// The largest number that was recommended in this time is kept.
    pub down_window: Duration,
    /// What a burst asked for is kept for this time.
    pub burst_hold: Duration,
    /// The longest that window becomes when instances start slowly.
    pub down_window_max: Duration,
    /// The window lasts at least so many times as long as an instance takes to start.
    pub start_factor: u32,
    /// Load within this share of the target changes nothing, in percent.
    pub tolerance_percent: u32,
    /// Load from this share of what the instances should carry on is a burst, in percent.
    pub burst_percent: u32,
    /// One step up at most multiplies by this …
    pub up_factor: u32,
    /// … or adds this, whichever is more.
    pub up_step: u32,
    /// Between two steps up.
    pub up_period: Duration,
    /// One step down at most divides by this, or takes one away.
    pub down_divisor: u32,
    /// Between two steps down.
    pub down_period: Duration,
    /// One step up for response times at most multiplies by this, in percent, or adds one.
    pub latency_step_percent: u32,
    /// Answers in the window below which response times say nothing.
    pub latency_requests: u64,
    /// How long a number that answered too slowly is not tried again under the same load.
    pub latency_memory: Duration,
    /// How long after its first health an instance's processor and memory do not count.
    pub usage_grace: Duration,
    /// After so much silence nothing is known of a service that was busy.
    pub stale: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            concurrency_window: CONCURRENCY_WINDOW,
            burst_window: BURST_WINDOW,
            rate_window: RATE_WINDOW,
            usage_window: USAGE_WINDOW,
            usage_burst_window: USAGE_BURST_WINDOW,
            latency_window: LATENCY_WINDOW,
            down_window: DOWN_WINDOW,
            burst_hold: BURST_HOLD,
            down_window_max: DOWN_WINDOW_MAX,
            start_factor: START_FACTOR,
            tolerance_percent: TOLERANCE_PERCENT,
            burst_percent: BURST_PERCENT,
            up_factor: UP_FACTOR,
            up_step: UP_STEP,
            up_period: UP_PERIOD,
            down_divisor: DOWN_DIVISOR,
            down_period: DOWN_PERIOD,
            latency_step_percent: LATENCY_STEP_PERCENT,
            latency_requests: LATENCY_REQUESTS,
            latency_memory: LATENCY_MEMORY,
            usage_grace: USAGE_GRACE,
            stale: STALE,
        }
    }
}

impl Policy {
    /// How long what a burst asked for is kept. `start_time`: as below.
    #[must_use]
    pub fn burst_hold_for(&self, start_time: Option<Duration>) -> Duration {
        let slow = start_time.unwrap_or_default().saturating_mul(self.start_factor);
        slow.min(self.down_window_max).max(self.burst_hold)
    }

    /// How long an instance is kept after the load last asked for it. `start_time`: what instances of the service
    /// took to become healthy.
    #[must_use]
    pub fn down_window_for(&self, start_time: Option<Duration>) -> Duration {
        let slow = start_time.unwrap_or_default().saturating_mul(self.start_factor);
        slow.min(self.down_window_max).max(self.down_window)
    }
}
