//! What the sites say of processor and memory, as averages over the instances of a deployment in one region.

use std::{collections::HashMap, time::Duration};

use tram_types::{InstanceId, Timestamp};

use super::{Average, Policy, window::Series};

/// One instance at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Which.
    pub instance: InstanceId,
    /// Processor time since its start, in microseconds.
    pub cpu_usec: u64,
    /// What it may use, in millionths of a processor a second: 1,000,000 is one processor.
    pub cpu_limit_usec: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// What it may use, in bytes.
    pub memory_limit_bytes: u64,
}

/// Processor and memory over the last while.
#[derive(Debug, Clone)]
pub struct Usage {
    at: Option<Timestamp>,
    before: HashMap<InstanceId, u64>,
    cpu: Series,
    memory: Series,
    measured: u32,
}

impl Usage {
    /// Nothing known yet.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        let horizon = policy.usage_window.max(policy.usage_burst_window);
        Self {
            at: None,
            before: HashMap::new(),
            cpu: Series::new(horizon),
            memory: Series::new(horizon),
            measured: 0,
        }
    }

    /// Takes in one round: every instance that answered and is not in its first seconds. An instance counts from
    /// its second round on, since processor time is a total.
    pub fn record(&mut self, now: Timestamp, samples: &[Sample], policy: &Policy) {
        if self
            .at
            .is_some_and(|at| now < at || now.since(at) > policy.usage_window)
        {
            *self = Self::new(policy);
        }
        let len = self.at.map_or(Duration::ZERO, |at| now.since(at));
        let (mut cpu, mut memory, mut measured) = (0.0, 0.0, 0u32);
        for sample in samples {
            let Some(before) = self.before.get(&sample.instance) else {
                continue;
            };
            if len.is_zero() || sample.cpu_limit_usec == 0 || sample.memory_limit_bytes == 0 {
                continue;
            }
            let used = sample.cpu_usec.saturating_sub(*before);
            cpu += share(used, sample.cpu_limit_usec) / len.as_secs_f64();
            memory += share(sample.memory_bytes, sample.memory_limit_bytes);
            measured += 1;
        }
        if measured > 0 {
            // A clock that is read a moment late must not show more than there is.
            self.cpu.push(len, (100.0 * cpu / f64::from(measured)).min(100.0));
            self.memory
                .push(len, (100.0 * memory / f64::from(measured)).min(100.0));
        }
        self.measured = measured;
        self.at = Some(now);
        self.before = samples
            .iter()
            .map(|sample| (sample.instance, sample.cpu_usec))
            .collect();
    }

    /// Instances that the last round measured.
    #[must_use]
    pub const fn measured(&self) -> u32 {
        self.measured
    }

    fn average(&self, series: &Series, now: Timestamp, policy: &Policy) -> Option<Average> {
        let fresh = self
            .at
            .is_some_and(|at| now.since(at) <= policy.usage_burst_window);
        if self.measured == 0 || !fresh {
            return None;
        }
        let covered = series.covered();
        let burst = series.mean(policy.usage_burst_window)?;
        (covered >= policy.usage_burst_window).then(|| Average {
            peak: burst,
            burst,
            stable: series
                .mean(policy.usage_window)
                .filter(|_| covered >= policy.usage_window),
        })
    }

    /// Processor time in percent of what the instances may use.
    #[must_use]
    pub fn cpu_percent(&self, now: Timestamp, policy: &Policy) -> Option<Average> {
        self.average(&self.cpu, now, policy)
    }

    /// Memory in percent of what the instances may use.
    #[must_use]
    pub fn memory_percent(&self, now: Timestamp, policy: &Policy) -> Option<Average> {
        self.average(&self.memory, now, policy)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share needs no more than 53 bits")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn an_instance_counts_from_its_second_round_on() {
        let policy = Policy::default();
        let mut usage = Usage::new(&policy);
        let at = |second: i64| Timestamp::from_micros(1_767_225_600_000_000 + second * 1_000_000);
        let sample = |id: u128, cpu_usec: u64| Sample {
            instance: InstanceId::from_uuid(Uuid::from_u128(id)),
            cpu_usec,
            cpu_limit_usec: 500_000,
            memory_bytes: 25,
            memory_limit_bytes: 100,
        };
        for round in 0..=6u64 {
            let second = i64::try_from(round).unwrap() * 2;
            usage.record(at(second), &[sample(1, round * 800_000)], &policy);
        }
        assert_eq!(usage.measured(), 1);
        let cpu = usage.cpu_percent(at(12), &policy).unwrap();
        assert!((cpu.burst - 80.0).abs() < 1e-6 && cpu.stable.is_none(), "{cpu:?}");
        assert!((usage.memory_percent(at(12), &policy).unwrap().burst - 25.0).abs() < 1e-6);
        usage.record(at(14), &[sample(2, 90_000_000)], &policy);
        assert_eq!(usage.measured(), 0);
        assert_eq!(usage.cpu_percent(at(14), &policy), None);
    }
}
