//! The figures that the metrics endpoint answers with: what the edge and the sites measured, a day of it.
//!
//! The edge reports running totals; each report is turned into what happened since the last one and added to the
//! slot of its minute. Usage of instances is sampled once a minute. Everything is in memory and bounded: figures are
//! for looking at, long histories belong to Prometheus. The one choice to know: a minute in which nothing happened
//! has no slot, so thousands of sleeping services cost nothing.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tram_api::{MetricSeries, MetricsError, MetricsQuery, MetricsSource};
use tram_edge::link::{Report, ServiceReport};
use tram_types::{InstanceId, ServiceId, Timestamp, status::MetricName};
use uuid::Uuid;

/// Length of a slot.
pub const SLOT: Duration = Duration::from_secs(60);
/// How long slots are kept: a day, the retention that the quotas announce.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Slots kept in all, of all services: about 25 MiB. The oldest of the service with the most go first.
const SLOTS_MAX: usize = 100_000;
/// Microseconds in a millisecond.
const US_PER_MS: f64 = 1000.0;

/// A minute of one service's traffic.
#[derive(Debug, Clone, Default, PartialEq)]
struct Traffic {
    minute: i64,
    classes: [u64; 5],
    latency_counts: Vec<u64>,
    bytes_in: u64,
    bytes_out: u64,
}

/// A minute of one instance's usage.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    minute: i64,
    cpu_percent: f64,
    memory_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    edge: Option<Uuid>,
    totals: HashMap<Uuid, ServiceReport>,
    bounds_us: Vec<u64>,
    traffic: HashMap<ServiceId, VecDeque<Traffic>>,
    usage: HashMap<InstanceId, (ServiceId, VecDeque<Usage>)>,
    slots: usize,
    /// Slots older than this minute were let go.
    oldest: i64,
}

/// The figures of the last day.
#[derive(Debug, Default)]
pub struct Figures {
    state: Mutex<State>,
}

impl Figures {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in a report of the edge that called itself `edge` when the link was made.
    pub fn traffic(&self, edge: Uuid, report: &Report) {
        let minute = minute(Timestamp::from(report.at));
        self.with(|state| {
            if state.edge != Some(edge) {
                // Another edge process: its totals begin at zero.
                state.edge = Some(edge);
                state.totals.clear();
            }
            for service in &report.services {
                state.add_traffic(minute, service);
            }
            state.forget_before(minute - slots_kept());
        });
    }

    /// Takes in what an instance used of what it may use.
    pub fn usage(
        &self,
        service: ServiceId,
        instance: InstanceId,
        at: Timestamp,
        cpu_percent: f64,
        memory_bytes: u64,
    ) {
        let minute = minute(at);
        self.with(|state| {
            let (_, kept) = state
                .usage
                .entry(instance)
                .or_insert_with(|| (service, VecDeque::new()));
            kept.push_back(Usage {
                minute,
                cpu_percent,
                memory_bytes,
            });
            state.slots += 1;
            state.forget_before(minute - slots_kept());
        });
    }
}

impl State {
    fn add_traffic(&mut self, minute: i64, now: &ServiceReport) {
        let before = self.totals.insert(now.service_id, now.clone());
        let since = |now: u64, before: Option<u64>| now.saturating_sub(before.unwrap_or(0));
        let classes: [u64; 5] = std::array::from_fn(|class| {
            since(
                now.classes[class],
                before.as_ref().map(|before| before.classes[class]),
            )
        });
        let latency: Vec<u64> = now
            .latency
            .counts
            .iter()
            .enumerate()
            .map(|(bucket, count)| {
                since(
                    *count,
                    before
                        .as_ref()
                        .and_then(|before| before.latency.counts.get(bucket).copied()),
                )
            })
            .collect();
        let bytes_in = since(now.bytes_in, before.as_ref().map(|before| before.bytes_in));
        let bytes_out = since(now.bytes_out, before.as_ref().map(|before| before.bytes_out));
        if classes.iter().sum::<u64>() + bytes_in + bytes_out == 0 {
            return;
        }
        self.bounds_us.clone_from(&now.latency.bounds_us);
        let kept = self
            .traffic
            .entry(ServiceId::from_uuid(now.service_id))
            .or_default();
        if kept.back().is_none_or(|last| last.minute < minute) {
            kept.push_back(Traffic {
                minute,
                latency_counts: vec![0; latency.len()],
                ..Traffic::default()
            });
            self.slots += 1;
        }
        let Some(slot) = kept.back_mut() else { return };
        slot.classes
            .iter_mut()
            .zip(classes)
            .for_each(|(sum, more)| *sum += more);
        slot.latency_counts
            .iter_mut()
            .zip(latency)
            .for_each(|(sum, more)| *sum += more);
        slot.bytes_in += bytes_in;
        slot.bytes_out += bytes_out;
    }

    /// Lets old slots go. All are looked at once a minute, however many reports come in it.
    fn forget_before(&mut self, oldest: i64) {
        if oldest > self.oldest {
            self.oldest = oldest;
            self.forget_old();
        }
        while self.slots > SLOTS_MAX {
            let Some(longest) = self.traffic.values_mut().max_by_key(|kept| kept.len()) else {
                break;
            };
            if longest.pop_front().is_none() {
                break;
            }
            self.slots -= 1;
        }
    }

    fn forget_old(&mut self) {
        let (mut slots, oldest) = (self.slots, self.oldest);
        self.traffic.retain(|_, kept| {
            while kept.front().is_some_and(|slot| slot.minute < oldest) {
                kept.pop_front();
                slots -= 1;
            }
            !kept.is_empty()
        });
        self.usage.retain(|_, (_, kept)| {
            while kept.front().is_some_and(|slot| slot.minute < oldest) {
                kept.pop_front();
                slots -= 1;
            }
            !kept.is_empty()
        });
        self.slots = slots;
    }

    fn answer(&self, query: &MetricsQuery) -> Vec<MetricSeries> {
        match query.name {
            MetricName::Unknown => Vec::new(),
            MetricName::CpuTotalPercent => self.usage_series(query, |usage| usage.cpu_percent),
            #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
            MetricName::MemRss => self.usage_series(query, |usage| usage.memory_bytes as f64),
            MetricName::HttpThroughput => (0..5)
                .map(|class| {
                    let label = ("code".to_owned(), format!("{}xx", class + 1));
                    self.traffic_series(query, [label], |slots| {
                        per_second(query, slots, |slot| slot.classes[class])
                    })
                })
                .collect(),
            MetricName::HttpResponseTime50P => vec![self.quantile_series(query, 0.5)],
            MetricName::HttpResponseTime90P => vec![self.quantile_series(query, 0.9)],
            MetricName::HttpResponseTime99P => vec![self.quantile_series(query, 0.99)],
            MetricName::HttpResponseTimeMax => vec![self.quantile_series(query, 1.0)],
            #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
            MetricName::PublicDataTransferIn => {
                vec![self.traffic_series(query, [], |slots| {
                    slots.iter().map(|slot| slot.bytes_in).sum::<u64>() as f64
                })]
            }
            #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
            MetricName::PublicDataTransferOut => {
                vec![self.traffic_series(query, [], |slots| {
                    slots.iter().map(|slot| slot.bytes_out).sum::<u64>() as f64
                })]
            }
        }
    }

    fn usage_series(&self, query: &MetricsQuery, value: impl Fn(&Usage) -> f64) -> Vec<MetricSeries> {
        let mut series: Vec<MetricSeries> = self
            .usage
            .iter()
            .filter(|(instance, (service, _))| {
                *service == query.service
                    && (query.instances.is_empty() || query.instances.contains(instance))
            })
            .map(|(instance, (_, kept))| MetricSeries {
                labels: BTreeMap::from([("instance_id".to_owned(), instance.to_string())]),
                samples: steps(query)
                    .filter_map(|(start, end)| {
                        let within: Vec<f64> = kept
                            .iter()
                            .filter(|slot| inside(slot.minute, start, end))
                            .map(&value)
                            .collect();
                        #[expect(clippy::cast_precision_loss, reason = "at most a day of minutes")]
                        (!within.is_empty())
                            .then(|| (start, within.iter().sum::<f64>() / within.len() as f64))
                    })
                    .collect(),
            })
            .collect();
        series.sort_by(|a, b| a.labels.cmp(&b.labels));
        series
    }

    fn traffic_series(
        &self,
        query: &MetricsQuery,
        labels: impl IntoIterator<Item = (String, String)>,
        value: impl Fn(&[&Traffic]) -> f64,
    ) -> MetricSeries {
        let samples = steps(query)
            .map(|(start, end)| {
                let slots: Vec<&Traffic> = self
                    .traffic
                    .get(&query.service)
                    .into_iter()
                    .flatten()
                    .filter(|slot| inside(slot.minute, start, end))
                    .collect();
                (start, value(&slots))
            })
            .collect();
        MetricSeries {
            labels: labels.into_iter().collect(),
            samples,
        }
    }

    fn quantile_series(&self, query: &MetricsQuery, quantile: f64) -> MetricSeries {
        self.traffic_series(query, [], |slots| {
            let mut counts = vec![0_u64; self.bounds_us.len() + 1];
            for slot in slots {
                counts
                    .iter_mut()
                    .zip(&slot.latency_counts)
                    .for_each(|(sum, more)| *sum += more);
            }
            quantile_ms(&self.bounds_us, &counts, quantile)
        })
    }
}

/// The value below which a share of a histogram lies, in milliseconds: the upper bound of its bucket.
fn quantile_ms(bounds_us: &[u64], counts: &[u64], quantile: f64) -> f64 {
    let total: u64 = counts.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
    let wanted = total as f64 * quantile;
    let mut seen = 0_u64;
    for (bucket, count) in counts.iter().enumerate() {
        seen += count;
        #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
        if *count > 0 && seen as f64 >= wanted {
            let bound = bounds_us.get(bucket).or(bounds_us.last()).copied().unwrap_or(0);
            return bound as f64 / US_PER_MS;
        }
    }
    0.0
}

fn per_second(query: &MetricsQuery, slots: &[&Traffic], value: impl Fn(&Traffic) -> u64) -> f64 {
    let sum: u64 = slots.iter().map(|slot| value(slot)).sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
    let sum = sum as f64;
    sum / query.step.max(SLOT).as_secs_f64()
}

/// Which minute since the epoch.
fn minute(at: Timestamp) -> i64 {
    at.as_micros()
        .div_euclid(i64::try_from(SLOT.as_micros()).unwrap_or(i64::MAX))
}

fn slots_kept() -> i64 {
    i64::try_from(KEPT.as_secs() / SLOT.as_secs()).unwrap_or(i64::MAX)
}

/// Whether the minute begins within the span.
fn inside(slot: i64, start: Timestamp, end: Timestamp) -> bool {
    let begins = slot.saturating_mul(i64::try_from(SLOT.as_micros()).unwrap_or(i64::MAX));
    begins >= start.as_micros() && begins < end.as_micros()
}

/// The spans of a query, each at least a slot long and aligned to it.
fn steps(query: &MetricsQuery) -> impl Iterator<Item = (Timestamp, Timestamp)> {
    let step = query.step.max(SLOT);
    let slot_micros = i64::try_from(SLOT.as_micros()).unwrap_or(i64::MAX);
    let aligned = Timestamp::from_micros(
        query
            .start
            .as_micros()
            .div_euclid(slot_micros)
            .saturating_mul(slot_micros),
    );
    let end = query.end;
    std::iter::successors(Some(aligned), move |start| Some(start.plus(step)))
        .take_while(move |start| *start < end)
        // More points than a day has minutes say nothing new.
        .take(usize::try_from(slots_kept()).unwrap_or(usize::MAX))
        .map(move |start| (start, start.plus(step)))
}

#[async_trait]
impl MetricsSource for Figures {
    async fn query(&self, query: &MetricsQuery) -> Result<Vec<MetricSeries>, MetricsError> {
        Ok(self.with(|state| state.answer(query)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tram_edge::link::Histogram;

    fn report(at: Timestamp, service: Uuid, answered: u64, slow: u64) -> Report {
        Report {
            at: at.jiff(),
            table_version: 1,
            complete: false,
            busy_instances: Vec::new(),
            closed_ports: Vec::new(),
            services: vec![ServiceReport {
                service_id: service,
                in_flight: 0,
                queued: 0,
                last_activity: None,
                arrivals: answered,
                classes: [0, answered, 0, 0, 0],
                latency: Histogram {
                    bounds_us: vec![1000, 50_000],
                    counts: vec![answered - slow, slow, 0],
                    sum_us: 0,
                },
                bytes_in: 0,
                bytes_out: answered * 10,
                holds: 0,
                wakes: 0,
                tallies: Vec::new(),
            }],
        }
    }

    fn query(name: MetricName, service: Uuid, start: Timestamp) -> MetricsQuery {
        MetricsQuery {
            name,
            service: ServiceId::from_uuid(service),
            instances: Vec::new(),
            start,
            end: start.plus(Duration::from_secs(120)),
            step: SLOT,
        }
    }

    #[tokio::test]
    async fn totals_become_rates_per_minute() {
        let (figures, service, edge) = (Figures::default(), Uuid::new_v4(), Uuid::new_v4());
        let start = Timestamp::from_micros(60_000_000 * 1000);
        figures.traffic(edge, &report(start, service, 60, 0));
        figures.traffic(
            edge,
            &report(start.plus(Duration::from_secs(30)), service, 120, 30),
        );
        figures.traffic(edge, &report(start.plus(SLOT), service, 180, 30));
        let series = figures
            .query(&query(MetricName::HttpThroughput, service, start))
            .await
            .unwrap();
        assert_eq!(series[1].labels["code"], "2xx");
        assert_eq!(
            series[1]
                .samples
                .iter()
                .map(|sample| sample.1)
                .collect::<Vec<_>>(),
            [2.0, 1.0]
        );
        let slow = figures
            .query(&query(MetricName::HttpResponseTime90P, service, start))
            .await
            .unwrap();
        assert_eq!(
            slow[0].samples.iter().map(|sample| sample.1).collect::<Vec<_>>(),
            [50.0, 1.0]
        );
    }

    #[tokio::test]
    async fn another_edge_begins_at_zero() {
        let (figures, service) = (Figures::default(), Uuid::new_v4());
        let start = Timestamp::from_micros(60_000_000 * 1000);
        figures.traffic(Uuid::new_v4(), &report(start, service, 100, 0));
        figures.traffic(Uuid::new_v4(), &report(start, service, 20, 0));
        let series = figures
            .query(&query(MetricName::PublicDataTransferOut, service, start))
            .await
            .unwrap();
        assert_eq!(series[0].samples[0].1, 1200.0);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let figures = Figures::default();
        let (service, edge) = (Uuid::new_v4(), Uuid::new_v4());
        for minute in 0..3000_u32 {
            let at = Timestamp::EPOCH.plus(SLOT * minute);
            figures.traffic(edge, &report(at, service, u64::from(minute) + 1, 0));
        }
        let kept = figures.with(|state| state.slots);
        assert_eq!(i64::try_from(kept).unwrap(), slots_kept() + 1);
    }
}
