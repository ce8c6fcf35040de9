//! A site in memory: the whole contract of `tram-site`, driven by a script.
//!
//! Every clone is the same site. It keeps the contract where a careless controller would trip: old generations are
//! refused, ended instances stay until they are forgotten, a running one cannot be forgotten, an unreachable site
//! answers with an error and never with an empty report.

mod instance;
mod instance_snapshots;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc, watch};
use tram_site::{
    Capabilities, Changed, Continuation, EndCause, Error, ExecRequest, ExecSession, ImageSpec, InstancePhase,
    InstanceSpec, LogCursor, LogEntry, LogPage, LogQuery, LogStream, Observation, ObservedImage,
    ObservedInstance, Site, Usage,
    streams::{EXEC_CHANNEL_FRAMES, ExecInput, ExecOutput},
};
use tram_types::{
    Clock, DeploymentId, Generation, InstanceId, InstanceSnapshotId, SnapshotId, VolumeId,
    status::InstanceSnapshotType,
};

use crate::behaviour::{Behaviour, ImageBehaviour, Life};
use instance::FakeInstance;
pub use instance_snapshots::{Failure, Taking};

/// News a slow receiver may miss before it has to observe everything: large enough for a thousand services that
/// change at once, so that lagging is what a test asks for and not an accident.
const NEWS_CAPACITY: usize = 16 * 1024;

/// How often each order was given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Calls {
    /// `ensure_image`.
    pub ensure_image: u64,
    /// `release_image`.
    pub release_image: u64,
    /// `start`.
    pub start: u64,
    /// `stop`.
    pub stop: u64,
    /// `forget`.
    pub forget: u64,
    /// `freeze` and `thaw`.
    pub freeze_or_thaw: u64,
    /// `checkpoint`.
    pub checkpoint: u64,
    /// `observe` and `observe_instance`.
    pub observe: u64,
    /// Orders refused for an old generation.
    pub refused_generations: u64,
}

/// A site in memory.
#[derive(Debug, Clone)]
pub struct FakeSite {
    state: Arc<Mutex<State>>,
    news: broadcast::Sender<Changed>,
    clock: Arc<dyn Clock>,
    taking: watch::Sender<Taking>,
}

#[derive(Debug, Default)]
struct State {
    behaviours: BTreeMap<String, Behaviour>,
    default_behaviour: Behaviour,
    capabilities: Capabilities,
    instances: BTreeMap<InstanceId, FakeInstance>,
    /// The newest generation seen, of forgotten instances too.
    generations: BTreeMap<InstanceId, Generation>,
    image_asks: BTreeMap<String, u32>,
    /// Volumes with their sizes, in bytes.
    volumes: BTreeMap<VolumeId, u64>,
    snapshots: BTreeSet<SnapshotId>,
    /// Deployments whose image is kept.
    pinned: BTreeSet<DeploymentId>,
    logs: BTreeMap<InstanceId, Vec<LogEntry>>,
    calls: Calls,
    unreachable: bool,
    silent: bool,
    /// Orders to stop that will be accepted and lost.
    stops_to_lose: u32,
    /// Why nothing can be frozen.
    unfreezable: Option<String>,
    /// Why nothing can be checkpointed.
    uncheckpointable: Option<String>,
    /// Instances that cannot be stopped.
    unstoppable: BTreeSet<InstanceId>,
    addresses: u32,
}

impl FakeSite {
    /// A site on which every image is there and every program is healthy at once.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let (news, _) = broadcast::channel(NEWS_CAPACITY);
        Self {
            state: Arc::default(),
            news,
            clock,
            taking: watch::Sender::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reachable(&self) -> Result<MutexGuard<'_, State>, Error> {
        let state = self.lock();
        if state.unreachable {
            return Err(Error::Unavailable {
                message: "the fake site is switched off".to_owned(),
                source: None,
            });
        }
        Ok(state)
    }

    fn announce(&self, silent: bool, changed: Changed) {
        if !silent {
            // Nobody listening is fine: news are hints.
            let _listeners = self.news.send(changed);
        }
    }

    /// What happens with `image` from now on; instances that already run keep their life.
    pub fn script(&self, image: &str, behaviour: Behaviour) {
        self.lock().behaviours.insert(image.to_owned(), behaviour);
    }

    /// What happens with images that have no script of their own.
    pub fn script_default(&self, behaviour: Behaviour) {
        self.lock().default_behaviour = behaviour;
    }

    /// Says that an image may have changed, as a site does when a pull ends.
    pub fn announce_image(&self, image: &str) {
        let silent = self.lock().silent;
        self.announce(silent, Changed::Image(image.to_owned()));
    }

    /// Switches the site off and on: while off, every call fails and instances live on.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.lock().unreachable = unreachable;
    }

    /// Loses all news from now on, as a broken connection does.
    pub fn set_silent(&self, silent: bool) {
        self.lock().silent = silent;
    }

    /// Accepts the next so many orders to stop, and does not carry them out: they get lost behind the site.
    pub fn lose_stops(&self, count: u32) {
        self.lock().stops_to_lose = count;
    }

    /// Fails every order to stop this instance.
    pub fn refuse_stop(&self, instance: InstanceId) {
        self.lock().unstoppable.insert(instance);
    }

    /// Refuses every order to freeze with these words, or no more.
    pub fn set_unfreezable(&self, why: Option<&str>) {
        self.lock().unfreezable = why.map(ToOwned::to_owned);
    }

    /// Finds every instance to be none that can be checkpointed, for this reason, or no more.
    pub fn set_uncheckpointable(&self, why: Option<&str>) {
        self.lock().uncheckpointable = why.map(ToOwned::to_owned);
    }

    /// The instances whose memory is on disk.
    #[must_use]
    pub fn checkpointed(&self) -> Vec<InstanceId> {
        let state = self.lock();
        let asleep = state
            .instances
            .iter()
            .filter(|(_, instance)| instance.phase == InstancePhase::Checkpointed);
        asleep.map(|(id, _)| *id).collect()
    }

    /// The instances that are frozen.
    #[must_use]
    pub fn frozen(&self) -> Vec<InstanceId> {
        let state = self.lock();
        let frozen = state
            .instances
            .iter()
            .filter(|(_, instance)| instance.phase == InstancePhase::Frozen);
        frozen.map(|(id, _)| *id).collect()
    }

    /// What the site says it can do.
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.lock().capabilities = capabilities;
    }

    /// How often each order was given so far.
    #[must_use]
    pub fn calls(&self) -> Calls {
        self.lock().calls
    }

    /// What an instance may reach outside now, as its site was told last; `None`: everything, or there is no such
    /// instance.
    #[must_use]
    pub fn egress_of(&self, instance: InstanceId) -> Option<Vec<String>> {
        self.lock().instances.get(&instance)?.spec.egress_allow.clone()
    }

    /// Ids of instances that have not ended.
    #[must_use]
    pub fn running(&self) -> Vec<InstanceId> {
        let state = self.lock();
        state
            .instances
            .iter()
            .filter(|(_, instance)| !instance.phase.is_ended())
            .map(|(id, _)| *id)
            .collect()
    }

    /// Deployments whose image the site keeps: asked for and not released.
    #[must_use]
    pub fn pinned(&self) -> Vec<DeploymentId> {
        self.lock().pinned.iter().copied().collect()
    }

    /// How many instances the site keeps, ended ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().instances.len()
    }

    /// Whether the site keeps no instance.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What an instance was told to run.
    #[must_use]
    pub fn spec(&self, instance: InstanceId) -> Option<InstanceSpec> {
        self.lock().instances.get(&instance).map(|it| it.spec.clone())
    }

    /// Every spec the site holds.
    #[must_use]
    pub fn specs(&self) -> Vec<InstanceSpec> {
        self.lock().instances.values().map(|it| it.spec.clone()).collect()
    }

    /// Ends a running instance, whatever its script says. Does nothing when it is not there.
    pub fn end(&self, instance: InstanceId, cause: EndCause) {
        let now = self.clock.now();
        let silent = {
            let mut state = self.lock();
            if let Some(instance) = state
                .instances
                .get_mut(&instance)
                .filter(|it| !it.phase.is_ended())
            {
                instance.phase = InstancePhase::Ended { cause, at: now };
            }
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
    }

    /// Loses an instance without a trace, as a machine that was reinstalled does.
    pub fn lose(&self, instance: InstanceId) {
        let silent = {
            let mut state = self.lock();
            state.instances.remove(&instance);
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
    }

    /// Sets the health of a running instance and how many probes failed in a row.
    pub fn set_health(&self, instance: InstanceId, healthy: bool, failures: u32) {
        let silent = {
            let mut state = self.lock();
            if let Some(instance) = state
                .instances
                .get_mut(&instance)
                .filter(|it| !it.phase.is_ended())
            {
                instance.life = Life::HealthyAfter(0);
                instance.pinned = true;
                instance.phase = InstancePhase::Running {
                    healthy,
                    failures,
                    last_failure: (!healthy).then(|| "the probe was answered with status 500".to_owned()),
                };
            }
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
    }

    /// Adds a line to an instance's log as if its program had written it.
    pub fn write_log(&self, instance: InstanceId, stream: LogStream, message: &str) {
        let at = self.clock.now();
        let mut state = self.lock();
        let lines = state.logs.entry(instance).or_default();
        let cursor = LogCursor(lines.last().map_or(1, |last| last.cursor.0 + 1));
        lines.push(LogEntry {
            instance,
            at,
            stream,
            message: message.to_owned(),
            cursor,
        });
    }
}

impl State {
    fn behaviour(&self, image: &str) -> &Behaviour {
        self.behaviours.get(image).unwrap_or(&self.default_behaviour)
    }

    /// Refuses an order older than the newest one; remembers a newer one.
    fn guard(&mut self, instance: InstanceId, given: Generation) -> Result<(), Error> {
        let seen = self.generations.entry(instance).or_insert(given);
        if given < *seen {
            let seen = seen.0;
            self.calls.refused_generations += 1;
            return Err(Error::OldGeneration {
                instance,
                given: given.0,
                seen,
            });
        }
        *seen = given;
        if let Some(known) = self.instances.get_mut(&instance) {
            known.generation = given;
        }
        Ok(())
    }

    fn next_address(&mut self) -> IpAddr {
        self.addresses += 1;
        let [_, high, middle, low] = self.addresses.to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(127, high.wrapping_add(1), middle, low))
    }
}

#[async_trait]
impl Site for FakeSite {
    fn capabilities(&self) -> Capabilities {
        self.lock().capabilities
    }

    fn volumes(&self) -> Option<&dyn tram_site::Volumes> {
        Some(self)
    }

    async fn ensure_image(&self, image: &ImageSpec) -> Result<ObservedImage, Error> {
        let (observed, silent) = {
            let mut state = self.reachable()?;
            state.calls.ensure_image += 1;
            state.pinned.insert(image.deployment);
            let asked = {
                let asks = state.image_asks.entry(image.reference.clone()).or_default();
                *asks += 1;
                *asks
            };
            let observed = match &state.behaviour(&image.reference).image {
                ImageBehaviour::ReadyAfter(after) if asked > *after => ObservedImage::Ready {
                    digest: format!("sha256:{:064x}", image.reference.len()),
                    size_bytes: 1024,
                    notice: None,
                },
                ImageBehaviour::ReadyAfter(after) => ObservedImage::Pulling {
                    done_bytes: u64::from(asked),
                    total_bytes: Some(u64::from(*after)),
                    step: format!("unpacking layer {asked} of {after}"),
                },
                ImageBehaviour::PullsForever => ObservedImage::Pulling {
                    done_bytes: 0,
                    total_bytes: None,
                    step: "waiting for the registry".to_owned(),
                },
                ImageBehaviour::Fails { message, retryable } => ObservedImage::Failed {
                    message: message.clone(),
                    retryable: *retryable,
                },
            };
            let again = matches!(
                observed,
                ObservedImage::Pulling {
                    total_bytes: Some(_),
                    ..
                }
            );
            (observed, state.silent || !again)
        };
        self.announce(silent, Changed::Image(image.reference.clone()));
        Ok(observed)
    }

    async fn release_image(&self, deployment: DeploymentId) -> Result<(), Error> {
        let mut state = self.reachable()?;
        state.calls.release_image += 1;
        let runs = |it: &FakeInstance| it.spec.deployment_id == deployment && !it.phase.is_ended();
        if state.instances.values().any(runs) {
            return Err(Error::Refused {
                message: format!("an instance of deployment {deployment} still runs: stop it first"),
            });
        }
        state.pinned.remove(&deployment);
        Ok(())
    }

    async fn start(&self, spec: &InstanceSpec, generation: Generation) -> Result<(), Error> {
        let now = self.clock.now();
        let silent = {
            let mut state = self.reachable()?;
            state.calls.start += 1;
            state.guard(spec.id, generation)?;
            if state.instances.contains_key(&spec.id) {
                return Ok(());
            }
            let behaviour = state.behaviour(&spec.image.reference).clone();
            match &behaviour.life {
                Life::Refused { message } => {
                    return Err(Error::Refused {
                        message: message.clone(),
                    });
                }
                Life::Unavailable => {
                    return Err(Error::Unavailable {
                        message: "the fake site has no room now".to_owned(),
                        source: None,
                    });
                }
                _ => {}
            }
            let address = state.next_address();
            let instance = FakeInstance::new(spec.clone(), generation, behaviour, address, now);
            state.instances.insert(spec.id, instance);
            state.silent
        };
        self.announce(silent, Changed::Instance(spec.id));
        Ok(())
    }

    async fn stop(
        &self,
        instance: InstanceId,
        _grace: Duration,
        generation: Generation,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let silent = {
            let mut state = self.reachable()?;
            state.calls.stop += 1;
            state.guard(instance, generation)?;
            if state.unstoppable.contains(&instance) {
                return Err(Error::Unavailable {
                    message: "the fake site cannot stop it now".to_owned(),
                    source: None,
                });
            }
            if state.stops_to_lose > 0 {
                state.stops_to_lose -= 1;
                return Ok(());
            }
            if let Some(known) = state.instances.get_mut(&instance) {
                known.stop(now);
            }
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
        Ok(())
    }

    async fn forget(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        let mut state = self.reachable()?;
        state.calls.forget += 1;
        state.guard(instance, generation)?;
        match state.instances.get(&instance) {
            Some(known) if !known.phase.is_ended() => Err(Error::Refused {
                message: format!("instance {instance} still runs: stop it first"),
            }),
            _ => {
                state.instances.remove(&instance);
                Ok(())
            }
        }
    }

    async fn freeze(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        let silent = {
            let mut state = self.reachable()?;
            state.calls.freeze_or_thaw += 1;
            if !state.capabilities.freeze {
                return Err(Error::Refused {
                    message: "this site cannot freeze instances".to_owned(),
                });
            }
            state.guard(instance, generation)?;
            if let Some(message) = state.unfreezable.clone() {
                return Err(Error::Refused { message });
            }
            let known = state
                .instances
                .get_mut(&instance)
                .ok_or(Error::NoSuchInstance(instance))?;
            if !known.phase.is_ended() && known.phase != InstancePhase::Checkpointed {
                known.phase = InstancePhase::Frozen;
            }
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
        Ok(())
    }

    async fn checkpoint(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        let silent = {
            let mut state = self.reachable()?;
            state.calls.checkpoint += 1;
            if !state.capabilities.checkpoint {
                return Err(Error::Refused {
                    message: "this site cannot checkpoint instances".to_owned(),
                });
            }
            state.guard(instance, generation)?;
            let why = state.uncheckpointable.clone();
            let known = state
                .instances
                .get_mut(&instance)
                .ok_or(Error::NoSuchInstance(instance))?;
            if known.phase == InstancePhase::Frozen {
                if why.is_none() {
                    known.phase = InstancePhase::Checkpointed;
                }
                known.uncheckpointable = why;
            }
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
        Ok(())
    }

    async fn thaw(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        let silent = {
            let mut state = self.reachable()?;
            state.calls.freeze_or_thaw += 1;
            state.guard(instance, generation)?;
            let known = state
                .instances
                .get_mut(&instance)
                .ok_or(Error::NoSuchInstance(instance))?;
            if known.phase.is_asleep() {
                known.phase = instance::healthy();
                known.uncheckpointable = None;
            }
            state.silent
        };
        self.announce(silent, Changed::Instance(instance));
        Ok(())
    }

    async fn continue_as(
        &self,
        instance: InstanceId,
        continuation: &Continuation,
        generation: Generation,
    ) -> Result<(), Error> {
        let mut state = self.reachable()?;
        state.guard(instance, generation)?;
        let known = state.instances.get_mut(&instance);
        let known = known.filter(|it| !it.phase.is_ended());
        let known = known.ok_or(Error::NoSuchInstance(instance))?;
        known.spec.deployment_id = continuation.deployment_id;
        known.spec.regional_deployment_id = continuation.regional_deployment_id;
        known.spec.egress_allow.clone_from(&continuation.egress_allow);
        state.pinned.insert(continuation.deployment_id);
        Ok(())
    }

    async fn take_snapshot(
        &self,
        _instance: InstanceId,
        snapshot: InstanceSnapshotId,
        _kind: InstanceSnapshotType,
    ) -> Result<u64, Error> {
        self.take(snapshot).await
    }

    async fn remove_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        self.remove(snapshot)
    }

    async fn observe(&self) -> Result<Observation, Error> {
        let now = self.clock.now();
        let mut state = self.reachable()?;
        state.calls.observe += 1;
        let mut moving = Vec::new();
        let mut observation = Observation::default();
        for (id, instance) in &mut state.instances {
            if instance.step(now) {
                moving.push(*id);
            }
            observation.instances.insert(*id, instance.observed());
        }
        let silent = state.silent;
        drop(state);
        for id in moving {
            self.announce(silent, Changed::Instance(id));
        }
        Ok(observation)
    }

    async fn observe_instance(&self, instance: InstanceId) -> Result<Option<ObservedInstance>, Error> {
        let now = self.clock.now();
        let (observed, silent) = {
            let mut state = self.reachable()?;
            state.calls.observe += 1;
            let Some(known) = state.instances.get_mut(&instance) else {
                return Ok(None);
            };
            let moving = known.step(now);
            (known.observed(), state.silent || !moving)
        };
        self.announce(silent, Changed::Instance(instance));
        Ok(Some(observed))
    }

    fn changed(&self) -> broadcast::Receiver<Changed> {
        self.news.subscribe()
    }

    async fn usage(&self, instance: InstanceId) -> Result<Usage, Error> {
        let now = self.clock.now();
        let state = self.reachable()?;
        let known = state
            .instances
            .get(&instance)
            .ok_or(Error::NoSuchInstance(instance))?;
        let age = now.since(known.started_at);
        Ok(Usage {
            cpu_usec: u64::try_from(age.as_micros() / 100).unwrap_or(u64::MAX),
            memory_bytes: 16 * tram_types::units::MIB,
            pids: 1,
        })
    }

    async fn logs(&self, instance: InstanceId, query: &LogQuery) -> Result<LogPage, Error> {
        let state = self.reachable()?;
        let mut entries: Vec<LogEntry> = state
            .logs
            .get(&instance)
            .into_iter()
            .flatten()
            .filter(|line| query.after.is_none_or(|after| line.cursor > after))
            .filter(|line| query.start.is_none_or(|start| line.at >= start))
            .filter(|line| query.end.is_none_or(|end| line.at < end))
            .filter(|line| query.streams.is_empty() || query.streams.contains(&line.stream))
            .cloned()
            .collect();
        let has_more = entries.len() > query.limit;
        if query.newest {
            entries.drain(..entries.len().saturating_sub(query.limit));
        } else {
            entries.truncate(query.limit);
        }
        Ok(LogPage { entries, has_more })
    }

    async fn log_platform(&self, instance: InstanceId, message: &str) -> Result<(), Error> {
        drop(self.reachable()?);
        self.write_log(instance, LogStream::Koyeb, message);
        Ok(())
    }

    async fn remove_logs(&self, instance: InstanceId) -> Result<(), Error> {
        self.reachable()?.logs.remove(&instance);
        Ok(())
    }

    async fn exec(&self, instance: InstanceId, request: &ExecRequest) -> Result<ExecSession, Error> {
        {
            let state = self.reachable()?;
            let known = state
                .instances
                .get(&instance)
                .ok_or(Error::NoSuchInstance(instance))?;
            if known.phase.is_ended() {
                return Err(Error::Refused {
                    message: "the instance has ended: choose a running one".to_owned(),
                });
            }
        }
        Ok(echo(request))
    }
}

/// A command that prints its own words, then whatever it is given, and leaves with 0 when its input ends.
fn echo(request: &ExecRequest) -> ExecSession {
    let (input, mut given) = mpsc::channel(EXEC_CHANNEL_FRAMES);
    let (printed, output) = mpsc::channel(EXEC_CHANNEL_FRAMES);
    let greeting = format!("{}\n", request.command.join(" "));
    tokio::spawn(async move {
        if printed.send(ExecOutput::Stdout(greeting.into())).await.is_err() {
            return;
        }
        while let Some(frame) = given.recv().await {
            let sent = match frame {
                ExecInput::Stdin(bytes) => printed.send(ExecOutput::Stdout(bytes)).await,
                ExecInput::Resize(_) => Ok(()),
                ExecInput::CloseStdin => break,
            };
            if sent.is_err() {
                return;
            }
        }
        let _gone = printed.send(ExecOutput::Exited { code: 0 }).await;
    });
    ExecSession { input, output }
}

#[cfg(test)]
mod tests;
