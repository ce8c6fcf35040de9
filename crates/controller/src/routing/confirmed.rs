//! What the data plane has confirmed of each service: the instances it may send new requests to, and since when.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tram_planner::Edge;
use tram_types::{InstanceId, ServiceId, Timestamp};

/// What was confirmed, by service.
#[derive(Debug, Default)]
pub struct Confirmed {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When the first table of this link was confirmed; `None`: none was, or the link is down.
    linked: Option<Timestamp>,
    /// The last confirmed table.
    version: u64,
    services: HashMap<ServiceId, Entry>,
    /// Services of tables that are on their way.
    offered: HashMap<ServiceId, BTreeSet<InstanceId>>,
}

#[derive(Debug)]
struct Entry {
    endpoints: BTreeSet<InstanceId>,
    since: Timestamp,
    /// The version that said so first.
    version: u64,
}

impl Confirmed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the planner may know of a service.
    #[must_use]
    pub fn of(&self, service: ServiceId) -> Edge {
        let state = self.lock();
        let Some(linked) = state.linked else {
            return Edge::Unknown;
        };
        let (mut endpoints, since) = match state.services.get(&service) {
            Some(entry) => (entry.endpoints.clone(), entry.since),
            None => (BTreeSet::new(), linked),
        };
        let offered = state.offered.get(&service);
        // One that says the same again is no news when it is confirmed either.
        let settled = offered.is_none_or(|offered| *offered == endpoints);
        endpoints.extend(offered.into_iter().flatten());
        Edge::Known {
            endpoints,
            since,
            settled,
        }
    }

    /// The confirmed version that gave the service its present endpoints; `None` while nothing is confirmed of it.
    pub(crate) fn version_of(&self, service: ServiceId) -> Option<u64> {
        let state = self.lock();
        state.linked?;
        state.services.get(&service).map(|entry| entry.version)
    }

    /// The data plane is about to be told that it may send requests to these instances of a service under the confirmed
    /// table, which says that it sleeps. Gives that table's version; `None` while none is confirmed.
    pub(crate) fn open(&self, service: ServiceId, instances: &BTreeSet<InstanceId>) -> Option<u64> {
        let mut state = self.lock();
        let (linked, version) = (state.linked?, state.version);
        let entry = state.services.entry(service).or_insert_with(|| Entry {
            endpoints: BTreeSet::new(),
            since: linked,
            version,
        });
        entry.endpoints.extend(instances);
        Some(version)
    }

    /// A table is about to be pushed in which this service has these endpoints.
    pub(super) fn offer(&self, service: ServiceId, endpoints: BTreeSet<InstanceId>) {
        self.lock().offered.insert(service, endpoints);
    }

    /// The table is in force. Gives the services for which that is news.
    pub(super) fn confirm(&self, version: u64, now: Timestamp) -> Vec<ServiceId> {
        let mut state = self.lock();
        state.version = version;
        let mut news = Vec::new();
        if state.linked.is_none() {
            state.linked = Some(now);
            news.extend(state.services.keys().copied());
        }
        for (service, endpoints) in std::mem::take(&mut state.offered) {
            let same = state
                .services
                .get(&service)
                .is_some_and(|entry| entry.endpoints == endpoints);
            if endpoints.is_empty() && !state.services.contains_key(&service) {
                continue;
            }
            if !same {
                news.push(service);
                state.services.insert(
                    service,
                    Entry {
                        endpoints,
                        since: now,
                        version,
                    },
                );
            }
        }
        news
    }

    /// The service is gone.
    pub(super) fn remove(&self, service: ServiceId) {
        self.lock().services.remove(&service);
    }

    /// The link is down: what was confirmed may not hold any more.
    pub(super) fn lost(&self) {
        self.lock().linked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_that_was_opened_counts_as_served_until_a_table_without_it_is_confirmed() {
        let confirmed = Confirmed::default();
        let (service, instance) = (ServiceId::random(), InstanceId::random());
        let now = Timestamp::EPOCH;
        let woken = BTreeSet::from([instance]);
        assert_eq!(confirmed.open(service, &woken), None, "nothing is in force");
        confirmed.confirm(7, now);
        assert_eq!(confirmed.open(service, &woken), Some(7));
        let served =
            |edge: Edge| matches!(edge, Edge::Known { endpoints, .. } if endpoints.contains(&instance));
        assert!(served(confirmed.of(service)));
        confirmed.offer(service, BTreeSet::new());
        assert!(served(confirmed.of(service)));
        assert_eq!(confirmed.confirm(8, now), [service]);
        assert!(!served(confirmed.of(service)));
        assert_eq!(confirmed.version_of(service), Some(8));
    }

    #[test]
    fn an_instance_counts_as_served_while_a_table_with_it_is_on_its_way() {
        let confirmed = Confirmed::default();
        let (service, instance) = (ServiceId::random(), InstanceId::random());
        let now = Timestamp::EPOCH;
        assert_eq!(confirmed.of(service), Edge::Unknown);
        confirmed.offer(service, BTreeSet::from([instance]));
        assert_eq!(confirmed.of(service), Edge::Unknown);
        assert_eq!(confirmed.confirm(1, now), [service]);
        confirmed.offer(service, BTreeSet::new());
        let served =
            |edge: Edge| matches!(edge, Edge::Known { endpoints, .. } if endpoints.contains(&instance));
        assert!(served(confirmed.of(service)), "the old table is still in force");
        assert_eq!(confirmed.confirm(1, now), [service]);
        assert!(!served(confirmed.of(service)));
        confirmed.offer(service, BTreeSet::from([instance]));
        assert!(
            served(confirmed.of(service)),
            "the new one may be in force any moment"
        );
        let settled = |edge: Edge| matches!(edge, Edge::Known { settled: true, .. });
        assert!(!settled(confirmed.of(service)), "and may as well be lost");
        assert_eq!(confirmed.confirm(2, now), [service]);
        assert!(settled(confirmed.of(service)));
        confirmed.offer(service, BTreeSet::from([instance]));
        assert!(
            settled(confirmed.of(service)),
            "nobody is told of what changes nothing"
        );
        assert!(confirmed.confirm(3, now).is_empty());
        confirmed.lost();
        assert_eq!(confirmed.of(service), Edge::Unknown);
    }
}
