//! The site itself: opening, the shared state, closing.
//!
//! Flow of `open`: lock the directory, hear from the supervisor, read the records, decide about each, take the
//! network over with what is alive, look after it, remove what nobody knows. The contract is in `contract`, the way
//! of an instance up in `start`, and what the supervisor tells in `news`.

mod adopt;
mod carry_on;
mod checkpoint;
mod contract;
mod entries;
mod instance_snapshots;
mod kept_executor;
mod news;
mod prompts;
mod snapshot_room;
mod snapshot_sums;
mod start;
mod volumes;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tram_image::{Digest, ImageStore};
use tram_sandbox::protocol as wire;
use tram_site::{Changed, Error};
use tram_types::{Clock, DeploymentId, InstanceId, SystemClock, Timestamp};

use self::entries::{Asleep, Entry, Live, Up};
use crate::config::Config;
use crate::disk;
use crate::dns::{Directory, Resolver, Server};
use crate::guard::{self, authority::Authority};
use crate::health::watch::{PROBES_MAX, Subject};
use crate::health::{self, View};
use crate::images::Images;
use crate::network::{self, Network, refusals};
use crate::record::{End, Record, Store};
use crate::supervisor::{self, Supervisor};
use crate::volumes::Volumes;

/// News that a slow listener may be behind before it must observe everything.
const CHANGES_MAX: usize = 1024;
/// Between two looks for logs that are too old: they are kept for days, an hour more or less is nothing.
const OLD_LOGS_LOOK: Duration = Duration::from_secs(60 * 60);
/// Woken instances whose memory is read back in from swap at a time: a device that reads large pieces is kept busy by two,
/// and each occupies a thread for as long as it reads.
const RETURNS_MAX: usize = 4;
/// After opening, instances that had been healthy are asked before anybody is told that they are not.
const FIRST_PROBES_PATIENCE: Duration = Duration::from_secs(1);

/// Why a site cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file could not be used.
    #[error("cannot {what}")]
    Files {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("the site in {} is in use by another process: stop it first", .0.display())]
    Busy(PathBuf),
    /// Nobody answered.
    #[error("the supervisor of instances does not answer in {}: is it running?", .0.display())]
    NoSupervisor(PathBuf),
    /// The network could not be had.
    #[error("cannot set the private network up")]
    Network(#[from] network::Error),
    /// The name server could not listen.
    #[error("cannot start the name server of the private network on {address}")]
    NameServer {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// This machine as a site. Dropping it ends its tasks and leaves the instances running; the next
/// [`LocalSite::open`] adopts them.
#[derive(Debug)]
pub struct LocalSite {
    shared: Arc<Shared>,
    dns: Server,
    guard: guard::Server,
    _lock: File,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    store: Store,
    images: Arc<Images>,
    supervisor: Supervisor,
    network: Network,
    volumes: Volumes,
    /// What the snapshots that are being taken will write.
    snapshot_room: Arc<snapshot_room::Room>,
    directory: Arc<Directory>,
    /// What instances with bound secrets trust.
    authority: Arc<Authority>,
    entries: Mutex<HashMap<InstanceId, Entry>>,
    changed: broadcast::Sender<Changed>,
    probes: Arc<Semaphore>,
    /// One at a time gives memory back.
    reclaims: Semaphore,
    /// A few at a time have theirs read back in.
    returns: Arc<Semaphore>,
    /// One at a time is written to disk.
    checkpoints: Semaphore,
    /// Snapshots that are being read.
    verifications: Arc<Semaphore>,
    /// Snapshots that were taken and not read yet.
    unread: Arc<snapshot_sums::Unread>,
    /// The machine's memory is short.
    memory_short: AtomicBool,
    /// Something of an instance's view changed; for waiting inside the site.
    viewed: watch::Sender<()>,
    /// Starts and ends under way: not interrupted, and waited for when the site closes.
    tasks: TaskTracker,
    end: CancellationToken,
}

impl LocalSite {
    /// Opens the site: adopts what runs, cleans what was cut in half, removes what nobody knows.
    ///
    /// # Errors
    /// See [`OpenError`]. The supervisor must be running.
    pub async fn open(config: Config, images: ImageStore) -> Result<Arc<Self>, OpenError> {
        let files = |what| move |source| OpenError::Files { what, source };
        let store = Store::open(&config.state_dir).map_err(files("make the site's directory"))?;
        let lock = store.lock().map_err(files("lock the site's directory"))?;
        let lock = lock.ok_or_else(|| OpenError::Busy(store.root().to_owned()))?;
        let (supervisor, mut news) = Supervisor::start(&config.supervisor_dir, config.supervisor_patience)
            .map_err(files("start the thread that watches the supervisor"))?;
        let first = tokio::time::timeout(config.supervisor_patience, news.recv()).await;
        let Ok(Some(supervisor::News::Present { instances, asked_at })) = first else {
            return Err(OpenError::NoSupervisor(config.supervisor_dir));
        };

        let (root, overcommit) = (store.root().to_owned(), config.volumes_overcommit);
        let supervisor_dir = config.supervisor_dir.clone();
        let opening = move || {
            tram_sandbox::snapshot::thaw_all(&supervisor_dir)?;
            Volumes::open(&root, overcommit)
        };
        let volumes = tokio::task::spawn_blocking(opening)
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(files("open the directory of volumes"))?;
        // No reason not to open: it is tried again with the next start.
        if let Err(error) = store.sweep_prompts(config.kept_prompts_bytes.is_some()) {
            tracing::warn!(%error, "cannot remove what was computed of prompts and is not wanted any more");
        }
        let records = store.load().map_err(files("read the records of instances"))?;
        let decided = adopt::decide(records, &instances, SystemClock.now());
        let network = Network::open(&config.network, store.root(), &adopt::held(&decided, &config)).await?;
        let directory = Arc::new(Directory::default());
        let address = (network.gateway(), crate::dns::PORT).into();
        let name_servers = config.network.name_servers.clone();
        let gate = Arc::new(network.clone());
        let dns = Server::start(address, Arc::clone(&directory), name_servers, gate)
            .await
            .map_err(|source| OpenError::NameServer { address, source })?;

        let authority = Authority::open(&store.root().join("guard"))
            .map_err(files("open the authority for hosts of bound secrets"))?;
        let authority = Arc::new(authority);
        let more_roots = match &config.secret_roots {
            Some(path) => {
                guard::own_roots(path).map_err(files("read the file of authorities for hosts of secrets"))?
            }
            None => Vec::new(),
        };
        let resolver = Resolver::new(config.network.name_servers.clone(), network.gateway().into());
        let listener = network.take_guard().ok_or(network::Error::Closed)?;
        let guard = guard::Server::start(
            listener,
            guard::Parts {
                authority: Arc::clone(&authority),
                directory: Arc::clone(&directory),
                outside: guard::Outside::new(
                    resolver,
                    config.network.addresses,
                    &config.network.denied,
                    more_roots,
                ),
                network: network.clone(),
                values: config.secrets.clone(),
            },
        );

        let (changed, _) = broadcast::channel(CHANGES_MAX);
        let end = CancellationToken::new();
        let images = Images::new(
            images,
            config.models.clone(),
            store.clone(),
            changed.clone(),
            end.clone(),
        );
        let shared = Arc::new(Shared {
            config,
            store,
            images: Arc::new(images),
            supervisor,
            network,
            volumes,
            snapshot_room: Arc::default(),
            directory,
            authority,
            entries: Mutex::default(),
            changed,
            probes: Arc::new(Semaphore::new(PROBES_MAX)),
            reclaims: Semaphore::new(1),
            returns: Arc::new(Semaphore::new(RETURNS_MAX)),
            checkpoints: Semaphore::new(1),
            verifications: Arc::new(Semaphore::new(instance_snapshots::VERIFICATIONS_MAX)),
            unread: Arc::default(),
            memory_short: AtomicBool::new(false),
            viewed: watch::channel(()).0,
            tasks: TaskTracker::new(),
            end: end.clone(),
        });
        adopt::adopt(&shared, decided).await;
        // Whatever it has that we have no record of, or that runs although it is over on record.
        news::reconcile(&shared, &instances, asked_at);
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(news::listen(Arc::downgrade(&shared), news)),
        );
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(measure_disks(Arc::downgrade(&shared))),
        );
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(tell_refusals(Arc::downgrade(&shared))),
        );
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(watch_memory(Arc::downgrade(&shared))),
        );
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(snapshot_sums::read_all(Arc::downgrade(&shared))),
        );
        tokio::spawn(end.run_until_cancelled_owned(remove_old_logs(Arc::downgrade(&shared))));
        shared.first_probes().await;
        Ok(Arc::new(Self {
            shared,
            dns,
            guard,
            _lock: lock,
        }))
    }

    /// The manifests of all images that must be kept: those pinned for a deployment that was not released, and those
    /// of instances. Known in full from the moment the site is open.
    ///
    /// # Errors
    /// When a record cannot be read, or an instance runs whose image is not on record: nothing may be collected then.
    pub async fn images_in_use(&self) -> io::Result<Vec<Digest>> {
        let (pinned, live) = {
            // A start that comes in between holds its image in memory, which the store of images sees.
            let entries = self.shared.lock();
            let live: Vec<_> = entries
                .values()
                .filter(|entry| !matches!(entry.live, Live::Over))
                .map(|entry| {
                    let image = entry.image.as_ref().map(|image| image.manifest_digest);
                    (entry.record.spec.id, entry.record.spec.image.deployment, image)
                })
                .collect();
            (self.shared.store.clone(), live)
        };
        tokio::task::spawn_blocking(move || crate::images::in_use(&pinned.pinned_images()?, live)).await?
    }

    /// How many deployments this machine keeps a model for. Blocks on files.
    ///
    /// # Errors
    /// When the records cannot be read: what must be kept is then not known.
    pub fn model_uses(&self, model: &tram_model::Digest) -> io::Result<usize> {
        crate::models::uses(&self.shared.store, model)
    }

    /// Deployments whose image is kept.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub async fn pinned_deployments(&self) -> io::Result<Vec<DeploymentId>> {
        let store = self.shared.store.clone();
        let pinned = tokio::task::spawn_blocking(move || store.pinned_images()).await??;
        Ok(pinned.into_keys().collect())
    }

    /// How often instances were refused something on their way out, since the site was opened.
    #[must_use]
    pub fn refused(&self) -> network::Refused {
        self.shared.network.refused()
    }

    /// What became of requests to hosts that secrets are bound to, since the site was opened.
    #[must_use]
    pub fn guarded(&self) -> guard::Guard {
        self.guard.counts()
    }

    /// Waits until a pull fails because the disk is full. One that failed since the last call counts.
    pub async fn space_wanted(&self) {
        self.shared.images.space_wanted().await;
    }

    /// Ends the site's tasks and removes what no instance uses: with no instance left, also the firewall's table
    /// and the machine's address in the private network. Instances go on.
    ///
    /// # Errors
    /// When something could not be removed; the next [`LocalSite::open`] tries again.
    pub async fn close(&self) -> Result<(), network::Error> {
        self.shared.end.cancel();
        self.dns.close();
        self.guard.close();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.network.close().await
    }
}

impl Drop for LocalSite {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Entry>> {
        // Entries change in single steps, so what a panic leaves is whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, id: InstanceId) {
        // Nobody may be listening.
        let _unheard = self.changed.send(Changed::Instance(id));
    }

    /// Writes a record; a failure is the machine's trouble and must not stop what is under way.
    fn save(&self, record: &Record) {
        if let Err(error) = self.store.save(record) {
            tracing::error!(instance = %record.spec.id, %error, "cannot write the record of an instance");
        }
    }

    /// The program runs: look after it.
    fn go_up(self: &Arc<Self>, id: InstanceId, pid: Option<i32>, started_at: Timestamp, is_frozen: bool) {
        let (frozen, see_frozen) = watch::channel(is_frozen);
        let (pid, see_pid) = watch::channel(pid);
        let token = self.end.child_token();
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&id) else { return };
        let (Live::Preparing, Some(slot)) = (&entry.live, entry.slot()) else {
            return;
        };
        let address = self.network.address(slot);
        let spec = &entry.record.spec;
        let now = Instant::now();
        let age = SystemClock.now().since(started_at);
        let subject = Subject {
            address: address.into(),
            pid: see_pid,
            ports: spec.ports.clone(),
            checks: spec.health_checks.clone(),
            started_at: now.checked_sub(age).unwrap_or(now),
            became_healthy: entry.record.became_healthy,
            frozen: see_frozen,
            probes: Arc::clone(&self.probes),
        };
        // One whose policy cannot be read was not admitted either.
        if let Ok(known) = entries::names(spec, self.network.gateway(), self.network.has_v6()) {
            self.directory.insert(address, known);
        }
        let view = View {
            became_healthy: entry.record.became_healthy,
            ..View::default()
        };
        entry.live = Live::Up(Up {
            pid,
            started_at,
            known_since: now,
            view,
            frozen,
            asleep: Asleep::default(),
            checkpoint_bytes: None,
            _watcher: token.clone().drop_guard(),
        });
        drop(entries);
        self.announce(id);
        let shared = Arc::downgrade(self);
        tokio::spawn(
            token.run_until_cancelled_owned(health::watch::watch(subject, move |view| {
                if let Some(shared) = shared.upgrade() {
                    shared.view(id, view);
                }
            })),
        );
    }

    /// Takes a new view of an instance's health.
    fn view(&self, id: InstanceId, view: View) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&id) else { return };
        let Live::Up(up) = &mut entry.live else { return };
        up.view = view;
        if up.view.became_healthy && !entry.record.became_healthy {
            // Before anybody is told: after a restart it must not be "starting" again.
            entry.record.became_healthy = true;
            self.save(&entry.record);
        }
        self.refresh_name(entry);
        drop(entries);
        self.announce(id);
        self.viewed.send_replace(());
    }

    /// Lets names lead to an instance, or not.
    fn refresh_name(&self, entry: &Entry) {
        if let Some(slot) = entry.slot() {
            self.directory
                .set_healthy(self.network.address(slot), entry.takes_traffic());
        }
    }

    /// The instance is over: write it down, tell, and give its place back.
    fn finish(self: &Arc<Self>, id: InstanceId, end: End) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&id) else { return };
        if matches!(entry.live, Live::Over) {
            return;
        }
        tracing::info!(instance = %id, cause = %end.cause, "an instance ended");
        let was = std::mem::replace(&mut entry.live, Live::Over);
        let left_disk = matches!(was, Live::Up(up) if up.asleep == Asleep::Checkpointed);
        entry.record.end = Some(end);
        entry.image = None;
        entry.halt.cancel();
        self.save(&entry.record);
        let lines = std::mem::take(&mut entry.early_lines);
        drop(entries);
        self.announce(id);
        if left_disk {
            self.room_came();
        }
        let shared = Arc::clone(self);
        self.tasks.spawn(async move {
            shared.write_lines(id, lines).await;
            shared.give_place_back(id).await;
        });
    }

    /// Gives the place of an ended instance back, once.
    async fn give_place_back(&self, id: InstanceId) {
        let (slot, spec) = {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            let Some(slot) = entry.slot() else { return };
            entry.record.slot = None;
            entry.record.devices = None;
            (slot, entry.record.spec.clone())
        };
        let address = self.network.address(slot);
        self.directory.remove(address);
        let Ok(member) = entries::member(&spec, address) else {
            return;
        };
        match self.network.release(slot, member).await {
            Ok(()) => {
                if let Some(entry) = self.lock().get(&id) {
                    self.save(&entry.record);
                }
            }
            Err(error) => {
                tracing::error!(instance = %id, error = crate::chain(&error), "cannot remove an instance's network");
            }
        }
    }

    /// Waits until every instance that had been healthy was asked once, for a bounded time.
    async fn first_probes(&self) {
        let mut viewed = self.viewed.subscribe();
        let settled = || {
            self.lock().values().all(|entry| match &entry.live {
                Live::Up(up) => {
                    !up.view.became_healthy
                        || up.view.healthy
                        || up.view.last_failure.is_some()
                        || *up.frozen.borrow()
                }
                Live::Preparing | Live::Over => true,
            })
        };
        let all = async { while !settled() && viewed.changed().await.is_ok() {} };
        // Whoever is not settled by then shows as not healthy until it is.
        let _late = tokio::time::timeout(FIRST_PROBES_PATIENCE, all).await;
    }

    /// Removes the logs that are older than they are kept; tells of how many instances. Blocks.
    fn remove_old_logs(&self) -> io::Result<usize> {
        let Some(before) = SystemTime::now().checked_sub(self.config.logs_retention) else {
            return Ok(0);
        };
        let mut old = self.store.kept_before(before)?;
        old.retain(|id| !self.lock().contains_key(id));
        for id in &old {
            self.store.remove_kept(*id)?;
        }
        Ok(old.len())
    }

    /// An order about a program to the supervisor.
    async fn call<T, F>(&self, id: InstanceId, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(&tram_sandbox::client::Client, &wire::InstanceId) -> Result<T, tram_sandbox::client::Error>
            + Send
            + Sync
            + 'static,
    {
        let name = wire_id(id)?;
        self.supervisor
            .call(move |client| work(client, &name))
            .await
            .map_err(|error| translate(id, error))
    }
}

/// Measures what instances write, for as long as the site is open.
async fn measure_disks(shared: Weak<Shared>) {
    let mut over = disk::Over::default();
    loop {
        tokio::time::sleep(disk::INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        let running: Vec<disk::Running> = shared
            .lock()
            .iter()
            .filter_map(|(id, entry)| match &entry.live {
                Live::Up(up) => Some(disk::Running {
                    id: *id,
                    pid: *up.pid.borrow(),
                    limit_bytes: entry.record.spec.limits.disk_bytes,
                }),
                _ => None,
            })
            .collect();
        for (id, line) in over.measure(&shared.config.supervisor_dir, running).await {
            tracing::warn!(instance = %id, line, "an instance has no disk left");
            shared.write_lines(id, vec![line]).await;
        }
    }
}

/// Tells instances' owners what was refused, for as long as the site is open.
async fn tell_refusals(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(refusals::INTERVAL).await;
        let Some(shared) = shared.upgrade() else { return };
        // An idle machine runs nothing for this.
        if !shared
            .lock()
            .values()
            .any(|entry| matches!(entry.live, Live::Up(_)))
        {
            continue;
        }
        let lines = match shared.network.refusals().await {
            Ok(lines) => lines,
            Err(error) => {
                tracing::warn!(
                    error = crate::chain(&error),
                    "cannot read what instances were refused"
                );
                continue;
            }
        };
        for (address, line) in lines {
            let held = |entry: &Entry| {
                entry
                    .slot()
                    .is_some_and(|slot| shared.network.address(slot) == address)
            };
            let id = shared
                .lock()
                .iter()
                .find(|(_, entry)| held(entry))
                .map(|(id, _)| *id);
            if let Some(id) = id {
                shared.write_lines(id, vec![line]).await;
            }
        }
    }
}

/// Looks whether memory is short, for as long as the site is open.
async fn watch_memory(shared: Weak<Shared>) {
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            let was_short = shared.memory_short.load(Ordering::Relaxed);
            match crate::memory::is_short(was_short) {
                Ok(is_short) => {
                    shared.memory_short.store(is_short, Ordering::Relaxed);
                    if is_short && !was_short {
                        tracing::warn!(
                            "memory is short: what sleeps lightly goes to disk, where that is possible"
                        );
                        shared.announce_frozen();
                    }
                }
                // Unknown: what was found before holds.
                Err(error) => tracing::debug!(%error, "cannot see whether memory is short"),
            }
        }
        tokio::time::sleep(crate::memory::INTERVAL).await;
    }
}

/// Removes the logs of instances that were forgotten long ago, for as long as the site is open.
async fn remove_old_logs(shared: Weak<Shared>) {
    loop {
        {
            let Some(shared) = shared.upgrade() else { return };
            let looking = shared.clone();
            let removed = tokio::task::spawn_blocking(move || looking.remove_old_logs()).await;
            match removed.map_err(io::Error::other).and_then(|removed| removed) {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "removed old logs of instances"),
                Err(error) => {
                    tracing::warn!(%error, "cannot remove old logs of instances; trying again later");
                }
            }
        }
        tokio::time::sleep(OLD_LOGS_LOOK).await;
    }
}

fn wire_id(id: InstanceId) -> Result<wire::InstanceId, Error> {
    wire::InstanceId::new(id.to_string()).map_err(|error| Error::Refused {
        message: error.to_string(),
    })
}

/// A refusal of the supervisor in the site's words.
fn translate(id: InstanceId, error: supervisor::Error) -> Error {
    use wire::Refusal as R;
    match error {
        supervisor::Error::Refused(R::UnknownInstance { .. } | R::NotRunning { .. }) => {
            Error::NoSuchInstance(id)
        }
        supervisor::Error::Refused(R::Frozen { .. }) => Error::Refused {
            message: "the instance sleeps: wake it first".to_owned(),
        },
        supervisor::Error::Refused(R::Launch { failure }) => Error::Refused {
            message: crate::end::explain(&failure),
        },
        supervisor::Error::Refused(R::InvalidSpec { reason }) => Error::Refused { message: reason },
        other => Error::unavailable("the supervisor of instances did not carry an order out", other),
    }
}
