//! The private network: a namespace for each instance, its address, and who it may talk to.
//!
//! Used by the site's start and end of instances. Owns what the machine's network gets from us: interfaces named
//! with our prefix, routes through them, one address on `lo`, one nftables table, and the files of the namespaces.
//!
//! The one design choice to know: routed pairs, no bridge. Each instance has a pair of interfaces of its own and a
//! /32; the machine routes between them, so every packet passes the firewall and no instance shares a link with
//! another. The machine's own address is on `lo`: it is there before the first instance and needs no device of its
//! own. Both ends know the other's hardware address, so there is no ARP to wait for or to forge.
//!
//! Namespaces are made ahead (a few are kept ready) because wiring one takes longer than starting a program in it.

mod addresses;
pub(crate) mod firewall;
mod host;
mod reach;
pub(crate) mod refusals;
mod stale;
mod v6;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::Ipv6Net;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::addresses::Addresses;
pub use self::addresses::{InvalidNetwork, Ipv4Network};
use self::firewall::{Firewall, Frame, Member};
pub use self::refusals::Refused;
pub use self::v6::Ipv6;
use self::v6::Prefix;
pub(crate) use self::v6::{is_everything, is_reachable};
use crate::config::NetworkConfig;

/// A machine that cannot make namespaces is not asked more often than this.
const REFILL_PAUSE: Duration = Duration::from_secs(2);

/// Why the network of an instance could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The block of addresses has no room, or too much.
    #[error("the network {0} is too small or too large for instances: use a prefix of 8 to 28 bits")]
    BadNetwork(Ipv4Network),
    /// The machine reaches something else there.
    #[error("the network {network} is in use on this machine ({route}): give the instances another one")]
    Conflict {
        /// Ours.
        network: Ipv4Network,
        /// The route that leads elsewhere.
        route: String,
    },
    /// The machine reaches something else where instances have their IPv6 addresses.
    #[error(
        "the IPv6 network of the instances, {network}, is in use on this machine ({route}): remove that route, \
         or set `network_v6` to `off`"
    )]
    ConflictV6 {
        /// Ours.
        network: Ipv6Net,
        /// The route that leads elsewhere.
        route: String,
    },
    /// Instances must have IPv6, and the machine cannot carry it.
    #[error("this machine cannot give IPv6 to instances: {0}; or set `network_v6` to `off`")]
    NoIpv6(&'static str),
    /// Instances run with addresses of another network than the settings say.
    #[error(
        "instances run in the network {running}, and the settings say {wanted}: set it back, or pause every \
         service before changing it"
    )]
    Changed {
        /// What they have.
        running: Ipv4Network,
        /// What the settings say.
        wanted: Ipv4Network,
    },
    /// Every address is taken.
    #[error("all addresses of {0} are in use: give the instances a larger network")]
    Full(Ipv4Network),
    /// The kernel refused something about a link, an address or a route.
    #[error("cannot {what}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Its answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// A file or a setting below `/proc/sys` could not be used.
    #[error("cannot {what}")]
    Files {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be had or removed.
    #[error("cannot make or remove the network of an instance")]
    Namespace(#[from] tram_sandbox::netns::Error),
    /// nftables is missing or said no.
    #[error("{message}")]
    Firewall {
        /// What was tried, with the first line it said.
        message: String,
        /// Why it could not be run.
        #[source]
        source: Option<io::Error>,
    },
    /// The network was closed.
    #[error("the network is closed")]
    Closed,
}

impl Error {
    fn files(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Files { what, source }
    }
}

/// A place in the network: which address, and by it the names of everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot(pub(crate) u32);

/// An instance that has a place already when the site opens.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) slot: Slot,
    pub(crate) member: Member,
}

/// The network of one site. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    network: Ipv4Network,
    /// Of the IPv6 addresses, if instances have any.
    prefix: Option<Prefix>,
    pool: usize,
    names: Names,
    netlink: rtnetlink::Handle,
    firewall: Firewall,
    reach: reach::Reach,
    refusals: refusals::Refusals,
    state: Mutex<State>,
    /// The pool is not full.
    wanted: Notify,
    end: CancellationToken,
    refill: Mutex<Option<JoinHandle<()>>>,
    /// Until the guard takes it.
    guard: Mutex<Option<TcpListener>>,
}

#[derive(Debug)]
struct State {
    addresses: Addresses,
    /// Where the round of addresses stands, for the next process.
    mark: PathBuf,
    /// Made and given to nobody.
    ready: VecDeque<Slot>,
    /// Made, whoever has them.
    made: BTreeMap<Slot, PathBuf>,
}

impl State {
    /// A free address. The mark of the round is on the disk before the address is used.
    fn take(&mut self) -> Option<Slot> {
        let index = self.addresses.take()?;
        if let Some(mark) = self.addresses.due_mark()
            && let Err(error) = host::write_whole(&self.mark, format!("{mark}\n").as_bytes())
        {
            // No reason to refuse an instance: addresses may come back soon after the next restart, no more.
            tracing::warn!(error = crate::chain(&error), file = %self.mark.display(), "cannot write down which addresses were used");
        }
        Some(Slot(index))
    }
}

/// How things are called, so that several installations live on one machine.
#[derive(Debug, Clone)]
struct Names {
    prefix: String,
    table: String,
    directory: PathBuf,
}

impl Names {
    fn new(state_dir: &Path) -> Self {
        // FNV-1a: the same in every build, unlike the hasher of the standard library.
        let hash = state_dir
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| {
                (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
            });
        let hash = format!("{:06x}", (hash >> 24) ^ (hash & 0x00ff_ffff));
        Self {
            prefix: format!("tr{hash}-"),
            table: format!("tram_{hash}"),
            directory: state_dir.join("netns"),
        }
    }

    /// At most 15 characters, the kernel's limit: the prefix has 9, an index 6 hexadecimal ones.
    fn interface(&self, slot: Slot) -> String {
        format!("{}{:x}", self.prefix, slot.0)
    }

    fn namespace(&self, slot: Slot) -> PathBuf {
        self.directory.join(format!("{:x}", slot.0))
    }
}

impl Network {
    /// Takes the network over: keeps the places of `held`, removes everything else that an earlier process left,
    /// and begins to fill the pool.
    pub(crate) async fn open(config: &NetworkConfig, state_dir: &Path, held: &[Held]) -> Result<Self, Error> {
        let network = config.addresses;
        let mut addresses = Addresses::new(network).ok_or(Error::BadNetwork(network))?;
        let names = Names::new(state_dir);
        std::fs::create_dir_all(&names.directory)
            .map_err(Error::files("make the directory of namespaces"))?;
        remember_network(state_dir, network, !held.is_empty())?;
        let mark = state_dir.join("network-mark");
        if let Some(index) = read_mark(&mark) {
            addresses.resume(index);
        }
        let has_v6 = v6::decide(config.v6)?;
        let prefix = Prefix::of(state_dir);
        let netlink = wire::connect().map_err(Error::files("speak to the kernel about links"))?;
        host::refuse_conflicts(network, &names.prefix)?;
        stale::remove_tables(network, &names.table).await?;
        let uplinks = host::prepare(&netlink, network).await?;
        let frame_v6 = if has_v6 {
            let gateway = network.gateway();
            Some(firewall::v6::Frame {
                prefix,
                denied: config.denied_v6.clone(),
                uplinks: v6::prepare(&netlink, prefix, gateway, &names.prefix).await?,
            })
        } else {
            None
        };
        let guard = crate::guard::bind(network.gateway())
            .await
            .map_err(Error::files("listen for requests with bound secrets"))?;
        let guard_port = guard
            .local_addr()
            .map_err(Error::files("listen for requests with bound secrets"))?
            .port();
        let mut made = BTreeMap::new();
        for place in held {
            if !addresses.hold(place.slot.0) {
                tracing::warn!(slot = place.slot.0, %network, "a recorded address is outside of the network or taken twice");
            }
            made.insert(place.slot, names.namespace(place.slot));
        }
        let frame = Frame {
            table: names.table.clone(),
            interface_prefix: names.prefix.clone(),
            network,
            denied: config.denied.clone(),
            uplinks,
            guard_port,
            v6: frame_v6,
        };
        let members: Vec<Member> = held.iter().map(|place| place.member.clone()).collect();
        let (firewall, named) = Firewall::install(&frame, &members).await?;
        if !has_v6 && v6::is_left(prefix, network.gateway()) {
            // By an earlier process. Its table was replaced by one that drops all of it.
            v6::restore(&netlink, prefix, network.gateway()).await?;
        }
        let inner = Arc::new(Inner {
            network,
            prefix: has_v6.then_some(prefix),
            pool: config.pool,
            names,
            netlink,
            firewall,
            reach: reach::Reach::new(named),
            refusals: refusals::Refusals::default(),
            state: Mutex::new(State {
                addresses,
                mark,
                ready: VecDeque::new(),
                made,
            }),
            wanted: Notify::new(),
            end: CancellationToken::new(),
            refill: Mutex::default(),
            guard: Mutex::new(Some(guard)),
        });
        inner.sweep().await?;
        let task = tokio::spawn(refill(Arc::clone(&inner)));
        *inner.refill.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(Self { inner })
    }

    /// The machine's address in the network.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.inner.network.gateway()
    }

    /// Whether instances have IPv6.
    pub(crate) fn has_v6(&self) -> bool {
        self.inner.prefix.is_some()
    }

    /// Where instances with bound secrets are led; there is one, so it can be taken once.
    pub(crate) fn take_guard(&self) -> Option<TcpListener> {
        let mut guard = self.inner.guard.lock().unwrap_or_else(PoisonError::into_inner);
        guard.take()
    }

    /// Takes notice that the guard refused something to `asker`.
    pub(crate) fn tell_guarded(&self, asker: Ipv4Addr, why: &str) {
        self.inner.refusals.guarded(asker, why);
    }

    /// The address of a place.
    pub(crate) fn address(&self, slot: Slot) -> Ipv4Addr {
        self.inner.network.nth(slot.0)
    }

    /// Takes a place. It is the caller's until [`Network::release`], so it is written down before it is used.
    pub(crate) fn lease(&self) -> Result<Slot, Error> {
        let mut state = self.inner.lock();
        let slot = match state.ready.pop_front() {
            Some(slot) => Some(slot),
            None => state.take(),
        };
        self.inner.wanted.notify_one();
        slot.ok_or(Error::Full(self.inner.network))
    }

    /// Takes back a lease that was never used.
    pub(crate) fn unlease(&self, slot: Slot) {
        let mut state = self.inner.lock();
        if state.made.contains_key(&slot) {
            state.ready.push_back(slot);
        } else {
            state.addresses.release(slot.0);
        }
    }

    /// The namespace of a leased place, made now if it was not ready.
    pub(crate) async fn ensure(&self, slot: Slot) -> Result<PathBuf, Error> {
        if let Some(path) = self.inner.lock().made.get(&slot) {
            return Ok(path.clone());
        }
        self.inner.make(slot).await
    }

    /// Lets an instance talk as its spec says.
    pub(crate) async fn admit(&self, member: Member) -> Result<(), Error> {
        self.inner.firewall.admit(member).await
    }

    /// Gives an instance another policy while it talks. `keeps_names`: what names of its list led to stays.
    pub(crate) async fn replace(&self, member: Member, keeps_names: bool) -> Result<(), Error> {
        let named = if keeps_names {
            Vec::new()
        } else {
            self.inner.reach.forget(member.address)
        };
        self.inner.firewall.replace(member, named).await
    }

    /// Takes a place back and removes everything of it. On an error the place stays taken, and the next start of
    /// the site removes what is left.
    pub(crate) async fn release(&self, slot: Slot, member: Member) -> Result<(), Error> {
        let named = self.inner.reach.forget(member.address);
        self.inner.firewall.revoke(member, named).await?;
        self.inner.unmake(slot).await?;
        self.inner.lock().addresses.release(slot.0);
        Ok(())
    }

    /// What instances were refused since the last look, by address.
    pub(crate) async fn refusals(&self) -> Result<Vec<(Ipv4Addr, String)>, Error> {
        self.inner
            .refusals
            .look(&self.inner.firewall, self.inner.prefix)
            .await
    }

    /// How often anything was refused.
    pub(crate) fn refused(&self) -> Refused {
        self.inner.refusals.all()
    }

    /// Ends the pool and removes what nobody uses; with nothing in use, the table and the address too.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        self.inner.end.cancel();
        let refill = self
            .inner
            .refill
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(refill) = refill {
            // It is not interrupted while it makes a namespace, and reports its own troubles.
            let _ended = refill.await;
        }
        let unused: Vec<Slot> = self.inner.lock().ready.drain(..).collect();
        for slot in unused {
            self.inner.unmake(slot).await?;
        }
        if self.inner.lock().made.is_empty() {
            self.inner.firewall.remove().await?;
            if let Some(prefix) = self.inner.prefix {
                v6::restore(&self.inner.netlink, prefix, self.inner.network.gateway()).await?;
            }
            host::restore(&self.inner.netlink, self.inner.network).await?;
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl crate::dns::Gate for Network {
    async fn let_reach(&self, asker: Ipv4Addr, found: &[(IpAddr, Duration)]) -> bool {
        let has_v6 = self.has_v6();
        let found = found.iter().filter(|(address, _)| has_v6 || address.is_ipv4());
        let found: Vec<_> = found.copied().collect();
        self.inner.reach.open(&self.inner.firewall, asker, &found).await
    }

    fn refused(&self, asker: Ipv4Addr, name: &str) {
        self.inner.refusals.name(asker, name);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is a single step, so what a panic leaves is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self, slot: Slot) -> Result<PathBuf, Error> {
        let plan = wire::Plan {
            interface: self.names.interface(slot),
            namespace: self.names.namespace(slot),
            address: self.network.nth(slot.0),
            gateway: self.network.gateway(),
            prefix: self.prefix,
        };
        if let Err(error) = wire::make(&self.netlink, &plan).await {
            if let Err(left) = wire::remove(&self.netlink, &plan.interface, &plan.namespace).await {
                tracing::warn!(interface = plan.interface, error = %left, "a half-made namespace could not be removed");
            }
            return Err(error);
        }
        self.lock().made.insert(slot, plan.namespace.clone());
        Ok(plan.namespace)
    }

    async fn unmake(&self, slot: Slot) -> Result<(), Error> {
        wire::remove(
            &self.netlink,
            &self.names.interface(slot),
            &self.names.namespace(slot),
        )
        .await?;
        self.lock().made.remove(&slot);
        Ok(())
    }

    /// Removes interfaces and namespaces that no record speaks of.
    async fn sweep(&self) -> Result<(), Error> {
        let (interfaces, namespaces): (Vec<String>, Vec<PathBuf>) = {
            let state = self.lock();
            state
                .made
                .keys()
                .map(|slot| (self.names.interface(*slot), self.names.namespace(*slot)))
                .unzip()
        };
        let mut removed = 0_usize;
        for name in host::interfaces(&self.names.prefix).map_err(Error::files("list the interfaces"))? {
            if !interfaces.contains(&name) {
                wire::remove_link(&self.netlink, &name).await?;
                removed += 1;
            }
        }
        let directory = &self.names.directory;
        for entry in std::fs::read_dir(directory).map_err(Error::files("list the namespaces"))? {
            let path = entry.map_err(Error::files("list the namespaces"))?.path();
            if !namespaces.contains(&path) {
                tram_sandbox::netns::delete(&path)?;
                removed += 1;
            }
        }
        if removed > 0 {
            tracing::info!(
                removed,
                "removed interfaces and namespaces that an earlier process left"
            );
        }
        Ok(())
    }
}

/// Writes down which network the instances are in, and refuses another one while some run.
fn remember_network(state_dir: &Path, wanted: Ipv4Network, in_use: bool) -> Result<(), Error> {
    let file = state_dir.join("network");
    let before = std::fs::read_to_string(&file)
        .ok()
        .and_then(|text| text.trim().parse::<Ipv4Network>().ok());
    match before {
        Some(running) if running == wanted => Ok(()),
        Some(running) if in_use => Err(Error::Changed { running, wanted }),
        _ => host::write_whole(&file, format!("{wanted}\n").as_bytes())
            .map_err(Error::files("write the network down")),
    }
}

/// Where the round of addresses of an earlier process stood.
fn read_mark(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Keeps the pool full until the network is closed or dropped.
async fn refill(inner: Arc<Inner>) {
    let end = inner.end.clone();
    let weak = Arc::downgrade(&inner);
    drop(inner);
    loop {
        let Some(inner) = weak.upgrade() else { return };
        let slot = {
            let mut state = inner.lock();
            if state.ready.len() < inner.pool {
                state.take()
            } else {
                None
            }
        };
        if let Some(slot) = slot {
            match inner.make(slot).await {
                Ok(_) if end.is_cancelled() => {
                    let _reported_by_close = inner.unmake(slot).await;
                    return;
                }
                Ok(_) => inner.lock().ready.push_back(slot),
                Err(error) => {
                    inner.lock().addresses.release(slot.0);
                    tracing::warn!(
                        error = crate::chain(&error),
                        "cannot make a network namespace ahead"
                    );
                    tokio::select! {
                        () = end.cancelled() => return,
                        () = tokio::time::sleep(REFILL_PAUSE) => {}
                    }
                }
            }
            continue;
        }
        tokio::select! {
            () = end.cancelled() => return,
            () = inner.wanted.notified() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_process_begins_where_this_one_stood() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("network-mark");
        assert_eq!(read_mark(&mark), None);
        let state = || State {
            addresses: Addresses::new(Ipv4Network::DEFAULT).unwrap(),
            mark: mark.clone(),
            ready: VecDeque::new(),
            made: BTreeMap::new(),
        };
        let mut first = state();
        let last = (0..100).filter_map(|_| first.take()).last().unwrap();
        let mut second = state();
        second.addresses.resume(read_mark(&mark).unwrap());
        assert!(second.take().unwrap() > last);
    }
}
