//! Who is in the private network, by name and by address.
//!
//! Written by the site as instances get addresses, become healthy and end; read by the name server for each
//! question. One lock, held for a look-up.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use tokio_util::sync::CancellationToken;
use tram_site::secrets::BoundSecret;
use tram_types::OrganizationId;

use super::Names;
use crate::network::Ipv4Network;

/// An instance as the name server knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) organization: OrganizationId,
    pub(crate) app: String,
    pub(crate) service: String,
    /// Whether it takes part; one that does not may still ask for names of the outside.
    pub(crate) mesh: bool,
    /// Whether names lead to it now.
    pub(crate) healthy: bool,
    /// Which names of the outside it may ask for.
    pub(crate) outside: Names,
    /// What of the outside it may reach by address; `None`: everything.
    pub(crate) networks: Option<Arc<[Ipv4Network]>>,
    /// Its secrets that are bound to hosts.
    pub(crate) bound: Arc<[BoundSecret]>,
}

/// What the guard needs to know of an instance with bound secrets.
#[derive(Debug, Clone)]
pub(crate) struct Guarded {
    pub(crate) organization: OrganizationId,
    bound: Arc<[BoundSecret]>,
    outside: Names,
    networks: Option<Arc<[Ipv4Network]>>,
    /// The instance is gone, or another one has its address, or its policy changed.
    pub(crate) over: CancellationToken,
}

impl Guarded {
    /// The secrets that are bound to a host, which is in lower case.
    pub(crate) fn secrets(&self, host: &str) -> impl Iterator<Item = &BoundSecret> {
        self.bound
            .iter()
            .filter(move |secret| secret.hosts.iter().any(|bound| bound == host))
    }

    pub(crate) fn is_bound(&self, host: &str) -> bool {
        self.secrets(host).next().is_some()
    }

    /// Whether the instance may reach a host at an address.
    pub(crate) fn may_reach(&self, host: &str, address: Ipv4Addr) -> bool {
        let Some(networks) = &self.networks else {
            return true;
        };
        let named = match &self.outside {
            // By a list that lets it ask for every name, which opens none.
            Names::All => false,
            Names::Listed(patterns) | Names::AllOpening(patterns) => {
                patterns.iter().any(|pattern| pattern.matches(host))
            }
        };
        named || networks.iter().any(|network| network.contains(address))
    }
}

/// What a name of the private network leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// There is no such service for this asker.
    Nothing,
    /// Addresses of its healthy instances; may be empty.
    Service(Vec<Ipv4Addr>),
}

#[derive(Debug, Default)]
pub(crate) struct Directory {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    by_address: HashMap<Ipv4Addr, Entry>,
    /// Of those with bound secrets.
    over: HashMap<Ipv4Addr, CancellationToken>,
    /// Organization, service, app; so that an unqualified name finds its apps in order.
    by_name: BTreeMap<(OrganizationId, String, String), BTreeSet<Ipv4Addr>>,
}

fn key(entry: &Entry) -> (OrganizationId, String, String) {
    (entry.organization, entry.service.clone(), entry.app.clone())
}

impl Directory {
    /// Puts an instance in, or changes what is known of it.
    pub(crate) fn insert(&self, address: Ipv4Addr, entry: Entry) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        // An instance that is told of again, when it runs: what it has opened meanwhile stays.
        let same = state.by_address.get(&address).is_some_and(|before| {
            before.organization == entry.organization
                && before.bound == entry.bound
                && before.outside == entry.outside
                && before.networks == entry.networks
        });
        let over = same.then(|| state.over.remove(&address)).flatten();
        state.remove(address);
        if entry.mesh {
            state.by_name.entry(key(&entry)).or_default().insert(address);
        }
        if !entry.bound.is_empty() {
            state.over.insert(address, over.unwrap_or_default());
        }
        state.by_address.insert(address, entry);
    }

    /// An instance with bound secrets.
    pub(crate) fn guarded(&self, address: Ipv4Addr) -> Option<Guarded> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let over = state.over.get(&address)?.clone();
        let entry = state.by_address.get(&address)?;
        Some(Guarded {
            organization: entry.organization,
            bound: Arc::clone(&entry.bound),
            outside: entry.outside.clone(),
            networks: entry.networks.clone(),
            over,
        })
    }

    /// Says whether names lead to an instance.
    pub(crate) fn set_healthy(&self, address: Ipv4Addr, healthy: bool) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.by_address.get_mut(&address) {
            entry.healthy = healthy;
        }
    }

    /// Changes what of the outside an instance may ask for and reach.
    pub(crate) fn set_outside(
        &self,
        address: Ipv4Addr,
        outside: Names,
        networks: Option<Arc<[Ipv4Network]>>,
    ) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = state.by_address.get_mut(&address) {
            entry.outside = outside;
            entry.networks = networks;
        }
        // What the guard carries for it goes by the old policy: programs open it anew, and are judged by this one.
        if let Some(over) = state.over.get_mut(&address) {
            std::mem::take(over).cancel();
        }
    }

    /// Which names of the outside an instance may ask for; `None` for one that is not here.
    pub(crate) fn outside(&self, asker: Ipv4Addr) -> Option<Names> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        state.by_address.get(&asker).map(|entry| entry.outside.clone())
    }

    /// Takes an instance out.
    pub(crate) fn remove(&self, address: Ipv4Addr) {
        self.state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(address);
    }

    /// Looks a service up for the instance at `asker`: in `app`, or, without one, in the asker's own app and then
    /// in the organization's others by name.
    pub(crate) fn find(&self, asker: Ipv4Addr, service: &str, app: Option<&str>) -> Found {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let Some(asker) = state.by_address.get(&asker).filter(|asker| asker.mesh) else {
            return Found::Nothing;
        };
        let exact = |app: &str| {
            state
                .by_name
                .get(&(asker.organization, service.to_owned(), app.to_owned()))
        };
        let addresses = match app {
            Some(app) => exact(app),
            None => exact(&asker.app).or_else(|| {
                let first = (asker.organization, service.to_owned(), String::new());
                state
                    .by_name
                    .range(first..)
                    .next()
                    .filter(|((organization, name, _), _)| {
                        *organization == asker.organization && name == service
                    })
                    .map(|(_, addresses)| addresses)
            }),
        };
        match addresses {
            None => Found::Nothing,
            Some(addresses) => Found::Service(
                addresses
                    .iter()
                    .filter(|address| state.by_address.get(address).is_some_and(|entry| entry.healthy))
                    .copied()
                    .collect(),
            ),
        }
    }
}

impl State {
    fn remove(&mut self, address: Ipv4Addr) {
        if let Some(over) = self.over.remove(&address) {
            over.cancel();
        }
        let Some(entry) = self.by_address.remove(&address) else {
            return;
        };
        if let Some(addresses) = self.by_name.get_mut(&key(&entry)) {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.by_name.remove(&key(&entry));
            }
        }
    }
}
