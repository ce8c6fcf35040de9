//! The policies of keeping alive: ours from the planner, and those it is compared with.
//!
//! | name | what it does |
//! |---|---|
//! | `fixed-M` | awake for M minutes, then deep |
//! | `never` | awake for ever |
//! | `hybrid-M` | the hybrid histogram of Shahrad et al., ATC 2020; M minutes where the histogram says nothing |
//! | `prewake-P` | the planner's [`tram_planner::prewake`], awake or deep, at a price of P minutes |
//! | `habits-M-P` | what the product does without light sleep: a time-out of M minutes, and early wakes at a price of P |
//! | `RUNG-P` | the same, with light sleep on that rung between: `frozen`, `zram`, `reclaimed`, `checkpointed` |

use std::{fmt, str::FromStr, time::Duration};

use tram_planner::prewake::{Budget, Pattern};

use super::{Depth, RUNGS, Rung, SETTLE_SECONDS, Stretch};
use crate::simulator::Error;

/// Seconds of a minute.
const MINUTE_SECONDS: f64 = 60.0;
/// Sparing the wake of a light sleeper is worth so many minutes awake when sparing a start is worth 1: the ratio of
/// their waits is 15 to 600, and what cannot be noticed is worth little.
const LIGHT_WAKE_WORTH: f64 = 0.002;
/// The least share that a rung is taken to keep: a checkpoint on disk is not free either, and has to end some time.
const SHARE_MIN: f64 = 0.001;

/// What decides for one service.
pub trait KeepAlive: fmt::Debug {
    /// How deep the service sleeps in the idle minutes to come, in order.
    fn stretches(&self) -> Vec<Stretch>;
    /// The idle time has ended with a call in the minute `gap`.
    fn learn(&mut self, gap: u32);
}

/// A policy.
#[derive(Debug, Clone, PartialEq)]
pub enum Policy {
    /// Awake for so many minutes, then deep.
    Fixed(u32),
    /// Awake for ever.
    Never,
    /// The hybrid histogram; minutes awake where it says nothing.
    Hybrid(u32),
    /// The planner's, awake or deep, at this price.
    Prewake(f64),
    /// A time-out of so many minutes, and early wakes by the planner's rule at this price.
    Habits(u32, f64),
    /// The planner's, with light sleep on a rung.
    Light(Rung, f64),
}

/// The policies that are compared when none is named: the published baselines, and the whole curve of ours.
pub const ALL: [&str; 42] = [
    "fixed-5",
    "fixed-10",
    "fixed-20",
    "fixed-60",
    "fixed-240",
    "never",
    "hybrid-60",
    "hybrid-240",
    "prewake-5",
    "prewake-10",
    "prewake-20",
    "prewake-40",
    "prewake-100",
    "prewake-300",
    "habits-1-5",
    "habits-1-20",
    "habits-5-5",
    "habits-5-10",
    "habits-5-20",
    "habits-5-100",
    "habits-10-10",
    "habits-10-40",
    "habits-20-20",
    "habits-20-100",
    "frozen-10",
    "frozen-40",
    "frozen-100",
    "zram-10",
    "zram-40",
    "zram-100",
    "zram-300",
    "reclaimed-5",
    "reclaimed-10",
    "reclaimed-15",
    "reclaimed-20",
    "reclaimed-25",
    "reclaimed-40",
    "reclaimed-100",
    "checkpointed-1",
    "checkpointed-5",
    "checkpointed-20",
    "checkpointed-100",
];

impl Policy {
    /// One service's share of it.
    #[must_use]
    pub fn keeper(&self) -> Box<dyn KeepAlive> {
        match self {
            Self::Fixed(minutes) => Box::new(Constant(vec![Stretch {
                until: minutes.saturating_add(1),
                depth: Depth::Awake,
            }])),
            Self::Never => Box::new(Constant(vec![Stretch {
                until: u32::MAX,
                depth: Depth::Awake,
            }])),
            Self::Hybrid(standard) => Box::new(Hybrid::new(*standard)),
            Self::Prewake(price) => Box::new(Learned {
                pattern: Pattern::default(),
                awake: Budget::of(*price),
                light: None,
            }),
            Self::Habits(minutes, price) => Box::new(Habits {
                pattern: Pattern::default(),
                budget: Budget::of(*price),
                stays: *minutes,
            }),
            Self::Light(rung, price) => Box::new(Learned {
                pattern: Pattern::default(),
                awake: Budget::of(*price * LIGHT_WAKE_WORTH),
                light: Some((Budget::of(*price), rung.resident_share.max(SHARE_MIN))),
            }),
        }
    }

    /// The rung of its light sleep.
    #[must_use]
    pub const fn rung(&self) -> Option<&Rung> {
        match self {
            Self::Light(rung, _) => Some(rung),
            _ => None,
        }
    }

    /// Minutes before a service that is not kept awake is seen to be idle.
    #[must_use]
    pub const fn settle_minutes(&self) -> f64 {
        match self {
            Self::Light(..) => SETTLE_SECONDS / MINUTE_SECONDS,
            _ => 0.0,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(minutes) => write!(formatter, "fixed-{minutes}"),
            Self::Never => formatter.write_str("never"),
            Self::Hybrid(minutes) => write!(formatter, "hybrid-{minutes}"),
            Self::Prewake(price) => write!(formatter, "prewake-{price}"),
            Self::Habits(minutes, price) => write!(formatter, "habits-{minutes}-{price}"),
            Self::Light(rung, price) => write!(formatter, "{}-{price}", rung.name),
        }
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || {
            Error::Policy {
            name: text.to_owned(),
            known: "all, fixed-MINUTES, never, hybrid-MINUTES, prewake-PRICE, habits-MINUTES-PRICE, frozen-PRICE, zram-PRICE, \
                    reclaimed-PRICE, checkpointed-PRICE, planner"
                .to_owned(),
        }
        };
        if text == "never" {
            return Ok(Self::Never);
        }
        let (name, number) = text.split_once('-').ok_or_else(unknown)?;
        let minutes = || number.parse::<u32>().map_err(|_| unknown());
        let price = |number: &str| {
            let price = number.parse::<f64>().ok();
            price
                .filter(|price| price.is_finite() && *price >= 0.0)
                .ok_or_else(unknown)
        };
        match name {
            "fixed" => Ok(Self::Fixed(minutes()?)),
            "hybrid" => Ok(Self::Hybrid(minutes()?)),
            "prewake" => Ok(Self::Prewake(price(number)?)),
            "habits" => {
                let (minutes, number) = number.split_once('-').ok_or_else(unknown)?;
                let minutes = minutes.parse().ok().filter(|minutes| *minutes > 0);
                Ok(Self::Habits(minutes.ok_or_else(unknown)?, price(number)?))
            }
            _ => {
                let rung = RUNGS.into_iter().find(|rung| rung.name == name);
                Ok(Self::Light(rung.ok_or_else(unknown)?, price(number)?))
            }
        }
    }
}

#[derive(Debug)]
struct Constant(Vec<Stretch>);

impl KeepAlive for Constant {
    fn stretches(&self) -> Vec<Stretch> {
        self.0.clone()
    }

    fn learn(&mut self, _gap: u32) {}
}

/// The planner's own: awake where that is worth it, light where light is, deep elsewhere.
#[derive(Debug)]
struct Learned {
    pattern: Pattern,
    awake: Budget,
    light: Option<(Budget, f64)>,
}

impl KeepAlive for Learned {
    fn stretches(&self) -> Vec<Stretch> {
        let awake = self.pattern.worth_keeping(&self.awake, 1.0);
        let light = self
            .light
            .as_ref()
            .map(|(budget, share)| self.pattern.worth_keeping(budget, *share))
            .unwrap_or_default();
        let mut edges: Vec<u32> = awake
            .iter()
            .chain(&light)
            .flat_map(|it| [it.start, it.end])
            .collect();
        edges.sort_unstable();
        edges.dedup();
        let inside =
            |ranges: &[std::ops::Range<u32>], minute: u32| ranges.iter().any(|it| it.contains(&minute));
        let mut from = 0;
        let mut stretches = Vec::new();
        for until in edges.into_iter().filter(|edge| *edge > 0) {
            let depth = if inside(&awake, from) {
                Depth::Awake
            } else if inside(&light, from) {
                Depth::Light
            } else {
                Depth::Deep
            };
            stretches.push(Stretch { until, depth });
            from = until;
        }
        stretches.push(Stretch {
            until: u32::MAX,
            depth: Depth::Deep,
        });
        stretches
    }

    fn learn(&mut self, gap: u32) {
        self.pattern.learn(Duration::from_secs(u64::from(gap) * 60));
    }
}

/// What the controller does: asleep after the definition's delay, woken when the planner says so, and asleep again after
/// the same delay when nobody called. It has to have slept once before it is woken early.
#[derive(Debug)]
struct Habits {
    pattern: Pattern,
    budget: Budget,
    stays: u32,
}

impl KeepAlive for Habits {
    fn stretches(&self) -> Vec<Stretch> {
        let minutes = |count: u32| Duration::from_secs(u64::from(count) * 60);
        let until = |until: u32, depth: Depth| Stretch { until, depth };
        let mut asleep = self.stays;
        // As a fixed time-out: a call in the minute in which it would fall asleep finds it awake.
        let mut stretches = vec![until(asleep.saturating_add(1), Depth::Awake)];
        while let Some(wake) = self
            .pattern
            .wake_after(&self.budget, minutes(asleep), minutes(self.stays))
        {
            asleep = wake.saturating_add(self.stays);
            stretches.push(until(wake, Depth::Deep));
            stretches.push(until(asleep, Depth::Awake));
        }
        stretches.push(until(u32::MAX, Depth::Deep));
        stretches
    }

    fn learn(&mut self, gap: u32) {
        self.pattern.learn(Duration::from_secs(u64::from(gap) * 60));
    }
}

/// Range of the histogram, in minutes: four hours.
const RANGE: u32 = 240;
/// Idle times before the histogram is asked at all.
const ENOUGH: u32 = 10;
/// The share of idle times beyond the range above which the histogram says nothing.
const BEYOND_SHARE: f64 = 0.5;
/// The coefficient of variation of the bins' counts from which on the histogram is believed.
const BELIEVED: f64 = 2.0;
/// Where the pre-warming and the keep-alive window end, as quantiles of the idle times.
const HEAD: f64 = 0.05;
const TAIL: f64 = 0.99;
/// The margin on both.
const MARGIN: f64 = 0.1;

/// The hybrid histogram policy, re-implemented from the paper's section 4 without its time-series forecast, which the
/// paper uses for functions whose idle times are mostly beyond the range.
#[derive(Debug)]
struct Hybrid {
    bins: Vec<u32>,
    within: u32,
    beyond: u32,
    standard: u32,
}

impl Hybrid {
    fn new(standard: u32) -> Self {
        Self {
            bins: (0..=RANGE).map(|_| 0).collect(),
            within: 0,
            beyond: 0,
            standard,
        }
    }

    fn is_believed(&self) -> bool {
        let all = f64::from(self.within + self.beyond);
        if self.within < ENOUGH || f64::from(self.beyond) > BEYOND_SHARE * all {
            return false;
        }
        let bins = f64::from(RANGE);
        let mean = f64::from(self.within) / bins;
        let square = |count: &u32| (f64::from(*count) - mean).powi(2);
        let variance = self.bins.iter().map(square).sum::<f64>() / bins;
        variance.sqrt() >= BELIEVED * mean
    }

    fn quantile(&self, share: f64) -> f64 {
        let target = share * f64::from(self.within);
        let mut sum = 0.0;
        for (minute, count) in (0u32..).zip(&self.bins) {
            sum += f64::from(*count);
            if sum >= target && sum > 0.0 {
                return f64::from(minute);
            }
        }
        f64::from(RANGE)
    }
}

impl KeepAlive for Hybrid {
    fn stretches(&self) -> Vec<Stretch> {
        let awake_until = |minute: u32| Stretch {
            until: minute.saturating_add(1),
            depth: Depth::Awake,
        };
        if !self.is_believed() {
            return vec![awake_until(self.standard)];
        }
        let prewarm = minute((self.quantile(HEAD) * (1.0 - MARGIN)).floor());
        let keep = awake_until(minute((self.quantile(TAIL) * (1.0 + MARGIN)).ceil()));
        if prewarm <= 1 {
            return vec![keep];
        }
        let away = Stretch {
            until: prewarm,
            depth: Depth::Deep,
        };
        vec![away, keep]
    }

    fn learn(&mut self, gap: u32) {
        match self.bins.get_mut(usize::try_from(gap).unwrap_or(usize::MAX)) {
            Some(bin) => {
                *bin += 1;
                self.within += 1;
            }
            None => self.beyond += 1,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "whole minutes between 0 and 264"
)]
fn minute(value: f64) -> u32 {
    value as u32
}
