//! Which instance gets the request: the one with the least in flight for its weight.
//!
//! Small sets are scanned whole; in large ones two random candidates are compared, which is nearly as even and
//! does not grow with the set. An instance that refused a connection is avoided for a short time.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::pool::Endpoint;
use crate::table::Route;

/// Up to this many instances a scan costs less than the random numbers.
const SCAN_MAX: usize = 8;

/// One endpoint of a route, `rotation` breaking ties so that equals share. `tried` were refused in this very
/// request. Endpoints under avoidance are taken only when nothing else is left. `None`: all were tried.
pub(crate) fn pick<'r>(route: &'r Route, tried: &[&Endpoint], rotation: u32, now: Instant) -> Option<&'r Arc<Endpoint>> {
    let all = &route.endpoints;
    if let [(only, _)] = &**all {
        return (!is_in(tried, only)).then_some(only);
    }
    if all.len() > SCAN_MAX && tried.is_empty() {
        let first = at(all, rotation);
        let second = at(all, rotation.rotate_left(16).wrapping_mul(0x9E37_79B9));
        let better = if lighter(second, first) { second } else { first };
        if !better.0.is_avoided(now) {
            return Some(&better.0);
        }
    }
    let begin = usize::try_from(rotation).unwrap_or_default() % all.len().max(1);
    let untried = || all[begin..].iter().chain(&all[..begin]).filter(|(endpoint, _)| !is_in(tried, endpoint));
    least(untried().filter(|(endpoint, _)| !endpoint.is_avoided(now))).or_else(|| least(untried()))
}

fn is_in(tried: &[&Endpoint], endpoint: &Endpoint) -> bool {
    tried.iter().any(|other| std::ptr::eq(*other, endpoint))
}

type Weighted = (Arc<Endpoint>, u32);

fn at(all: &[Weighted], random: u32) -> &Weighted {
    &all[usize::try_from(random).unwrap_or_default() % all.len()]
}

fn least<'r>(candidates: impl Iterator<Item = &'r Weighted>) -> Option<&'r Arc<Endpoint>> {
    candidates.reduce(|best, next| if lighter(next, best) { next } else { best }).map(|(endpoint, _)| endpoint)
}

/// Whether `a` would carry less for its weight than `b` with one request more.
fn lighter(a: &Weighted, b: &Weighted) -> bool {
    let load = |endpoint: &Endpoint| u64::from(endpoint.in_flight.load(Relaxed)) + 1;
    load(&a.0) * u64::from(b.1) < load(&b.0) * u64::from(a.1)
}

#[cfg(test)]
mod tests;
