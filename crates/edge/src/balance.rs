//! Which instance gets the request: the one with the least in flight.
//!
//! Small sets are scanned whole; in large ones two random candidates are compared, which is nearly as even and
//! does not grow with the set. An instance that refused a connection is avoided for a short time.
//!
//! Where weights differ, a canary takes its share beside others: which weight a request belongs to is drawn at random,
//! in proportion, and the least busy one of that weight gets it. Load would not do there: of idle instances it always
//! prefers the heavy ones, and a canary would see nothing before the others are busy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderMap;

use crate::canary::{Group, Trial};
use crate::forwarded::random;
use crate::page::Refusal;
use crate::pool::{ConnectError, Endpoint, Seat};
use crate::table::{Route, Table};

/// Up to this many instances a scan costs less than the random numbers.
const SCAN_MAX: usize = 8;

/// Instances asked before the caller hears that none accepts connections.
const CONNECT_ATTEMPTS: usize = 4;

/// The endpoints for one request, one after another as connections fail.
#[derive(Debug)]
pub(crate) struct Candidates<'s> {
    tables: &'s ArcSwap<Table>,
    version: u64,
    route: Arc<Route>,
    tried: Vec<Arc<Endpoint>>,
    /// Boxed: few requests have one, and all carry its place.
    preference: Option<Box<Preference>>,
    group: Option<Group>,
    /// When the request came, where a canary is tried.
    begun: Option<Instant>,
}

/// Which one a caller would have.
#[derive(Debug)]
struct Preference {
    /// The one to take first, as long as it is there.
    preferred: Arc<Endpoint>,
    /// How many of those that were tried were passed over from the beginning.
    passed_over: usize,
}

impl<'s> Candidates<'s> {
    /// `version` is the table's that `route` is of.
    pub(crate) fn new(tables: &'s ArcSwap<Table>, version: u64, route: &Arc<Route>) -> Self {
        Self::of_group(tables, version, route, None)
    }

    /// Only those of the deployment that the request asks for, where two of them answer.
    pub(crate) fn asked_by(
        headers: &HeaderMap,
        tables: &'s ArcSwap<Table>,
        version: u64,
        route: &Arc<Route>,
    ) -> Self {
        let group = route.has_canary().then(|| Group::asked(headers)).flatten();
        Self::of_group(tables, version, route, group)
    }

    fn of_group(tables: &'s ArcSwap<Table>, version: u64, route: &Arc<Route>, group: Option<Group>) -> Self {
        Self {
            tables,
            version,
            route: Arc::clone(route),
            tried: Vec::new(),
            preference: None,
            group,
            begun: route.has_canary().then(Instant::now),
        }
    }

    /// Takes this one first and the others only when it accepts no connection; never `passed_over`.
    pub(crate) fn prefer(mut self, preferred: Arc<Endpoint>, passed_over: Vec<Arc<Endpoint>>) -> Self {
        self.preference = Some(Box::new(Preference {
            passed_over: passed_over.len(),
            preferred,
        }));
        self.tried = passed_over;
        self
    }

    /// Watches how the request turns out there, where that may tell a canary from the others. Boxed: few requests have
    /// one, and all carry its place.
    pub(crate) fn watch(&self, seat: &Seat) -> Option<Box<Trial>> {
        let time_out_ms = self.route.service.spec.request_timeout_ms;
        let time_out = (time_out_ms > 0).then(|| Duration::from_millis(time_out_ms));
        let begun = self.begun.filter(|_| self.route.has_canary())?;
        Some(Box::new(Trial::begin(&seat.endpoint, begun, time_out)))
    }

    /// A place on the next best endpoint. Whoever sees a newer table once the place is taken looks again there: a
    /// controller that removed an instance and hears that nothing is in flight on it may stop it at once.
    pub(crate) fn next(&mut self) -> Result<Seat, Refusal> {
        loop {
            let passed_over = self.preference.as_ref().map_or(0, |it| it.passed_over);
            if self.tried.len() >= CONNECT_ATTEMPTS + passed_over {
                return Err(Refusal::Unreachable { name: self.name() });
            }
            #[expect(clippy::cast_possible_truncation, reason = "any 32 of 64 random bits will do")]
            let rotation = if self.route.endpoints.len() > 1 {
                random() as u32
            } else {
                0
            };
            let preferred = self.preference.as_ref().map(|it| &it.preferred);
            let preferred = preferred.filter(|preferred| {
                let is_there = |(other, _): &Weighted| Arc::ptr_eq(other, preferred);
                !is_in(&self.tried, preferred) && self.route.endpoints.iter().any(is_there)
            });
            let seat = preferred
                .or_else(|| pick(&self.route, self.group, &self.tried, rotation))
                .map(Seat::take);
            if self.follow() {
                continue;
            }
            return match seat {
                Some(seat) => Ok(seat),
                None if self.tried.is_empty() => Err(Refusal::NoHealthyInstance { name: self.name() }),
                None => Err(Refusal::Unreachable { name: self.name() }),
            };
        }
    }

    fn name(&self) -> String {
        self.route.service.spec.name.clone()
    }

    /// Passes an endpoint over for the rest of this request.
    pub(crate) fn failed(&mut self, seat: Seat, error: &ConnectError) {
        tracing::debug!(error = error as &dyn std::error::Error, address = %seat.endpoint.address, "cannot connect to an instance");
        if self.route.has_canary() {
            seat.endpoint.tally.count(true);
        }
        self.tried.push(Arc::clone(&seat.endpoint));
    }

    /// Goes over to the table in force when it is another and has endpoints for the same port; true when it did.
    fn follow(&mut self) -> bool {
        let table = self.tables.load();
        if table.version == self.version {
            return false;
        }
        self.version = table.version;
        match table.same_target(&self.route) {
            Some(route) if !route.endpoints.is_empty() => {
                self.route = Arc::clone(route);
                true
            }
            _ => false,
        }
    }
}

/// One endpoint of a route, `rotation` breaking ties so that equals share. `tried` were refused in this very
/// request. Endpoints under avoidance are taken only when nothing else is left. `None`: all were tried.
fn pick<'r>(
    route: &'r Route,
    group: Option<Group>,
    tried: &[Arc<Endpoint>],
    rotation: u32,
) -> Option<&'r Arc<Endpoint>> {
    let all = route.of_group(group);
    if let [(only, _)] = all {
        return (!is_in(tried, only)).then_some(only);
    }
    let load = |index: usize| (all[index].0.in_flight(), all[index].1);
    let untried = |index: usize| !is_in(tried, &all[index].0);
    let usable = |index: usize| untried(index) && !all[index].0.is_avoided();
    let of_drawn = || {
        let drawn = draw(all, rotation);
        choose(all.len(), rotation, load, |index| {
            usable(index) && all[index].1 == drawn
        })
    };
    let found = if route.even { None } else { of_drawn() };
    found
        .or_else(|| choose(all.len(), rotation, load, usable))
        .or_else(|| choose(all.len(), rotation, load, untried))
        .map(|index| &all[index].0)
}

fn is_in(tried: &[Arc<Endpoint>], endpoint: &Arc<Endpoint>) -> bool {
    tried.iter().any(|other| Arc::ptr_eq(other, endpoint))
}

pub(crate) type Weighted = (Arc<Endpoint>, u32);

/// One of the weights, as often as the instances that have it weigh together.
pub(crate) fn draw(all: &[Weighted], random: u32) -> u32 {
    let whole: u64 = all.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let mut rest = (u64::from(random) * whole) >> 32;
    for (_, weight) in all {
        match rest.checked_sub(u64::from(*weight)) {
            Some(less) => rest = less,
            None => return *weight,
        }
    }
    all.last().map_or(1, |(_, weight)| *weight)
}

/// One of `count` instances by requests in flight and weight: what the data plane and the simulator choose with.
/// Those that are not usable are passed over; `None`: none is. `rotation` is random.
pub fn choose(
    count: usize,
    rotation: u32,
    load: impl Fn(usize) -> (u32, u32),
    usable: impl Fn(usize) -> bool,
) -> Option<usize> {
    let begin = usize::try_from(rotation).unwrap_or_default() % count.max(1);
    let lighter = |a: usize, b: usize| is_lighter(load(a), load(b));
    if count > SCAN_MAX {
        let other = rotation.rotate_left(16).wrapping_mul(0x9E37_79B9);
        let other = usize::try_from(other).unwrap_or_default() % count;
        let better = if lighter(other, begin) { other } else { begin };
        if usable(better) {
            return Some(better);
        }
    }
    let around = (begin..count).chain(0..begin);
    around
        .filter(|index| usable(*index))
        .reduce(|best, next| if lighter(next, best) { next } else { best })
}

/// Whether `a` would carry less for its weight than `b` with one request more.
fn is_lighter(a: (u32, u32), b: (u32, u32)) -> bool {
    let load = |in_flight: u32| u64::from(in_flight) + 1;
    load(a.0) * u64::from(b.1) < load(b.0) * u64::from(a.1)
}

#[cfg(test)]
mod tests;
