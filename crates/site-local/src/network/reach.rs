//! Where the names of an allow list lead: addresses that an instance may reach for as long as they are good.
//!
//! Called by the name server before it answers. The one design choice to know: a time in the firewall is longer than
//! the answer's own, because programs use an address a little longer than they were told to; and it is not renewed for
//! each answer, because that would run nftables' tool for each look-up.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::firewall::{Firewall, Named};

/// Answers that are good for seconds only are used for longer: a connection is made after the look-up, and again when
/// it breaks.
const TIME_MIN: Duration = Duration::from_secs(60);
/// Names that say they never change do: what was let through is asked for again within a day.
const TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// What a program uses an answer longer than it may: resolvers round up, and connections take their time.
const GRACE: Duration = Duration::from_secs(30);
/// Addresses of one instance at a time: a name that leads somewhere else at each question (or one that is meant to
/// fill the firewall) stops here, and what was there stays.
const ADDRESSES_PER_INSTANCE_MAX: usize = 2048;

/// What is let through, until when.
#[derive(Debug, Default)]
pub(super) struct Reach {
    known: Mutex<HashMap<Ipv4Addr, HashMap<IpAddr, Instant>>>,
}

impl Reach {
    /// With what an earlier process had let through.
    pub(super) fn new(named: Named) -> Self {
        let now = Instant::now();
        let until = |found: Vec<(IpAddr, Duration)>| {
            let found = found.into_iter().map(|(address, time)| (address, now + time));
            found.collect::<HashMap<_, _>>()
        };
        let known = named
            .into_iter()
            .map(|(instance, found)| (instance, until(found)));
        Self {
            known: Mutex::new(known.collect()),
        }
    }

    /// Lets an instance reach what an answer led to; false when it has reached its bound or the firewall says no.
    pub(super) async fn open(
        &self,
        firewall: &Firewall,
        instance: Ipv4Addr,
        found: &[(IpAddr, Duration)],
    ) -> bool {
        let now = Instant::now();
        let Some(due) = self.due(instance, found, now) else {
            tracing::warn!(%instance, "the names of an allow list lead to too many addresses");
            return false;
        };
        if due.is_empty() {
            return true;
        }
        if let Err(error) = firewall.reach(instance, due.clone()).await {
            tracing::warn!(%instance, error = crate::chain(&error), "cannot let an instance reach what a name leads to");
            return false;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of_instance = known.entry(instance).or_default();
        of_instance.extend(due.into_iter().map(|(address, time)| (address, now + time)));
        true
    }

    /// What must be told to the firewall, with the time; `None` when that would be too much.
    fn due(
        &self,
        instance: Ipv4Addr,
        found: &[(IpAddr, Duration)],
        now: Instant,
    ) -> Option<Vec<(IpAddr, Duration)>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of_instance = known.entry(instance).or_default();
        of_instance.retain(|_, until| *until > now);
        let mut due: HashMap<IpAddr, Duration> = HashMap::new();
        for (address, good) in found {
            let good_until = now + (*good).min(TIME_MAX);
            if of_instance.get(address).is_none_or(|until| *until < good_until) {
                // Twice as long: an answer asked for again at its end then changes nothing in the firewall.
                let time = (*good * 2 + GRACE).clamp(TIME_MIN, TIME_MAX + GRACE);
                let longest = due.entry(*address).or_default();
                *longest = time.max(*longest);
            }
        }
        let new = due
            .keys()
            .filter(|address| !of_instance.contains_key(*address))
            .count();
        (of_instance.len() + new <= ADDRESSES_PER_INSTANCE_MAX).then(|| due.into_iter().collect())
    }

    /// The instance is gone: whoever gets its address next begins with nothing. Returns what was let through.
    pub(super) fn forget(&self, instance: Ipv4Addr) -> Vec<IpAddr> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .remove(&instance)
            .map(|addresses| addresses.into_keys().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTANCE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
    const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn remember(reach: &Reach, due: &[(IpAddr, Duration)], now: Instant) {
        let mut known = reach.known.lock().unwrap();
        let of_instance = known.entry(INSTANCE).or_default();
        of_instance.extend(due.iter().map(|(address, time)| (*address, now + *time)));
    }

    #[test]
    fn an_address_is_let_through_for_longer_than_its_answer_and_not_told_each_time() {
        let reach = Reach::default();
        let now = Instant::now();
        let secs = Duration::from_secs;
        let first = reach.due(INSTANCE, &[(SERVER, secs(5))], now).unwrap();
        assert_eq!(first, [(SERVER, TIME_MIN)]);
        remember(&reach, &first, now);
        for later in [0, 30, 54] {
            let due = reach
                .due(INSTANCE, &[(SERVER, secs(5))], now + secs(later))
                .unwrap();
            assert!(due.is_empty(), "{later}");
        }
        let again = reach.due(INSTANCE, &[(SERVER, secs(5))], now + secs(56)).unwrap();
        assert_eq!(again.len(), 1, "before it runs out");
        let long = reach
            .due(INSTANCE, &[(SERVER, secs(u64::from(u32::MAX)))], now)
            .unwrap();
        assert_eq!(long, [(SERVER, TIME_MAX + GRACE)]);
    }

    #[test]
    fn names_that_lead_everywhere_stop_at_the_bound() {
        let reach = Reach::default();
        let now = Instant::now();
        let many: Vec<(IpAddr, Duration)> = (0..2048_u32)
            .map(|index| (Ipv4Addr::from(0x0b00_0000 + index).into(), TIME_MIN))
            .collect();
        let due = reach.due(INSTANCE, &many, now).unwrap();
        remember(&reach, &due, now);
        assert_eq!(reach.due(INSTANCE, &[(SERVER, TIME_MIN)], now), None);
        assert_eq!(reach.forget(INSTANCE).len(), 2048);
        assert!(reach.due(INSTANCE, &[(SERVER, TIME_MIN)], now).is_some());
    }
}
