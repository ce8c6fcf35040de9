//! Carries decisions out: observe, plan, execute.
//!
//! Everything here is a reconciler: it takes no argument, does bounded work, may be repeated at any time, and says
//! what it did in a typed report. Reconcilers wake by signal and by clock; a lost signal costs time and nothing else.
//! Nothing is decided here: [`tram_planner`] decides, this crate records the intent in the store, then gives the
//! orders to the sites and the data plane.
//!
//! | module | what it keeps true |
//! |---|---|
//! | [`service`] | services run as their owners want |
//! | [`routing`] | the data plane serves what the store says |
//! | [`scaling`] | services have as many instances as their load asks for |
//! | [`orphan`] | sites run nothing that the store does not know |
//! | [`packing`] | the models of a machine hold no more memory than they have |
//! | [`light`] | who waits for a frozen service waits for a thaw and nothing else |
//! | [`domain`] | custom domains are active once they lead here |
//! | [`volume`] | volumes and their snapshots are what their owners want |
//! | `instance_snapshot` | snapshots of instances are taken and removed as their owners want |
//! | [`pool`] | pools have as many services ready as they should |
//! | [`retention`] | what is over is forgotten in time; the one to read first |
//!
//! Start with [`Controller::start`]; [`driver`] runs the reconcilers.

pub mod activity;
pub mod data_plane;
pub mod domain;
pub mod driver;
mod error;
mod follow;
mod habits;
pub mod instance_snapshot;
pub mod light;
pub mod orphan;
pub mod packing;
pub mod pool;
pub mod queue;
pub mod retention;
pub mod routing;
pub mod scaling;
pub mod service;
mod spec;
pub mod volume;

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tram_planner::Policy;
use tram_site::Sites;
use tram_store::{Change, Retention, Store};
use tram_types::{Clock, catalog::Catalog};

pub use data_plane::{DataPlane, Detached};
pub use driver::{NoObserver, Observer, Outcome};
pub use error::Error;
pub use service::ServiceReport;
pub use spec::credentials::registry_login;
pub use spec::model::ENGINE_IMAGE;

use crate::{
    activity::Activities,
    driver::drive,
    follow::follow_store,
    light::{Sleepers, Waker},
    packing::Packing,
    queue::Queue,
    routing::Confirmed,
    scaling::Scaling,
};

/// Services reconciled at a time: they wait for the database and for sites most of the time, and a site that hangs
/// holds back its own services alone as long as there are others.
const WORKERS: usize = 8;
/// Longest time the tasks get to end the step they are in.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// What the controller needs of the rest of the house.
#[derive(Debug, Clone)]
pub struct Deps {
    /// What we keep.
    pub store: Store,
    /// Where instances run.
    pub sites: Sites,
    /// What carries user traffic.
    pub data_plane: Arc<dyn DataPlane>,
    /// Says whether custom domains lead here.
    pub resolver: Arc<dyn domain::Resolver>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What there is to run on.
    pub catalog: Arc<Catalog>,
    /// The figures decisions are made with.
    pub policy: Policy,
    /// What the operator chose.
    pub settings: Settings,
    /// Is told what reconcilers do.
    pub observer: Arc<dyn Observer>,
}

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Domain under which apps get their names, such as `localhost`.
    pub base_domain: String,
    /// Hosts on which sandbox routing keys are honoured.
    pub public_hosts: Vec<String>,
    /// The platform's own hosts, such as the API's and the console's, with the services they lead to.
    pub platform_hosts: Vec<tram_types::routing::Host>,
    /// The services that [`Settings::platform_hosts`] name.
    pub platform_services: Vec<tram_types::routing::Service>,
    /// How long what is over stays.
    pub retention: Retention,
    /// How often the clock is looked at for what has become due. Small in tests with a fake clock.
    pub tick: Duration,
    /// How often everything that is not at rest is looked at, whether or not there were signals.
    pub sweep: Duration,
    /// What waking services before they are called may cost; `None`: it is not done.
    pub prewake: Option<tram_planner::prewake::Budget>,
    /// How many bytes the snapshots of instances of one organization may take; `None`: what the disk has.
    pub snapshot_bytes_max: Option<u64>,
    /// How much memory the models of a machine have together; `None`: nothing is bounded.
    pub model_memory: Option<packing::ModelMemory>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_domain: "localhost".to_owned(),
            public_hosts: Vec::new(),
            platform_hosts: Vec::new(),
            platform_services: Vec::new(),
            retention: Retention::default(),
            tick: Duration::from_secs(1),
            sweep: Duration::from_secs(120),
            prewake: None,
            snapshot_bytes_max: None,
            model_memory: None,
        }
    }
}

/// Starts the reconcilers.
#[derive(Debug)]
pub struct Controller;

/// The running reconcilers. Dropping it stops them at once, between any two steps: that is what a crash does, and
/// they are made for it.
#[derive(Debug)]
pub struct ControllerHandle {
    deps: Deps,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
    queue: Arc<Queue>,
    scaling: Arc<Scaling>,
    packing: Arc<Packing>,
    services: Arc<service::Reconciler>,
}

impl Controller {
    /// Starts every reconciler. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(deps: Deps) -> ControllerHandle {
        let cancel = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let queue = Arc::new(Queue::default());
        let activities = Arc::new(Activities::default());
        let confirmed = Arc::new(Confirmed::default());
        let scaling = Arc::new(Scaling::new(&deps));
        let sleepers = Arc::new(Sleepers::default());
        let packing = Arc::new(Packing::new(deps.settings.model_memory.clone()));
        let routing_signal = Arc::new(Notify::new());
        let routing = Arc::new(routing::Reconciler::new(
            deps.clone(),
            Arc::clone(&confirmed),
            Arc::clone(&sleepers),
            Arc::clone(&packing),
            Arc::clone(&queue),
        ));
        let habits = habits::Habits::new(deps.settings.prewake, Arc::clone(&deps.clock));
        let habits = Arc::new(habits.learns(packing.memory().is_some()));
        let waker = Arc::new(Waker {
            deps: deps.clone(),
            sleepers,
            confirmed,
            routing: Arc::clone(&routing),
            routing_signal: Arc::clone(&routing_signal),
            queue: Arc::clone(&queue),
        });
        let services = Arc::new(service::Reconciler::new(
            &waker,
            Arc::clone(&activities),
            Arc::clone(&scaling),
            Arc::clone(&habits),
            Arc::clone(&packing),
        ));
        let observer = &deps.observer;
        for _ in 0..WORKERS {
            tasks.spawn(service::work(
                Arc::clone(&services),
                Arc::clone(&queue),
                deps.clone(),
                cancel.clone(),
            ));
        }
        tasks.spawn(service::tell_time(
            Arc::clone(&queue),
            deps.clone(),
            cancel.clone(),
        ));
        tasks.spawn(service::follow_store(
            Arc::clone(&queue),
            Arc::clone(&routing),
            Arc::clone(&routing_signal),
            Arc::clone(&activities),
            Arc::clone(&waker),
            deps.clone(),
            cancel.clone(),
        ));
        for (region, site) in deps.sites.iter() {
            tasks.spawn(service::follow_site(
                region.to_owned(),
                Arc::clone(site),
                Arc::clone(&services),
                Arc::clone(&queue),
                cancel.clone(),
            ));
        }
        tasks.spawn(habits::follow(
            habits,
            Arc::clone(&waker),
            Arc::clone(&activities),
            cancel.clone(),
        ));
        tasks.spawn(activity::follow_data_plane(
            waker,
            Arc::clone(&services),
            Arc::clone(&activities),
            cancel.clone(),
        ));
        tasks.spawn(scaling::decide(
            Arc::clone(&scaling),
            Arc::clone(&queue),
            deps.clone(),
            cancel.clone(),
        ));
        tasks.spawn(scaling::measure(
            Arc::clone(&scaling),
            deps.clone(),
            cancel.clone(),
        ));
        tasks.spawn(drive(
            routing,
            routing_signal,
            Arc::clone(observer),
            cancel.clone(),
        ));
        let by_clock = || Arc::new(Notify::new());
        let orphans = Arc::new(orphan::Reconciler::new(&deps));
        tasks.spawn(drive(orphans, by_clock(), Arc::clone(observer), cancel.clone()));
        let retention = Arc::new(retention::Reconciler::new(&deps));
        tasks.spawn(drive(retention, by_clock(), Arc::clone(observer), cancel.clone()));
        let domains = Arc::new(domain::Reconciler::new(&deps));
        let domain_signal = Arc::new(Notify::new());
        tasks.spawn(follow_store(
            deps.store.subscribe(),
            Arc::clone(&domain_signal),
            cancel.clone(),
            |change| matches!(change, Change::Domain(_)),
        ));
        tasks.spawn(drive(
            domains,
            domain_signal,
            Arc::clone(observer),
            cancel.clone(),
        ));
        let volumes = Arc::new(volume::Reconciler::new(&deps));
        let volume_signal = Arc::new(Notify::new());
        tasks.spawn(volume::follow(
            deps.store.subscribe(),
            deps.sites.clone(),
            Arc::clone(&volume_signal),
            cancel.clone(),
        ));
        tasks.spawn(drive(
            volumes,
            volume_signal,
            Arc::clone(observer),
            cancel.clone(),
        ));
        let snapshot_signal = Arc::new(Notify::new());
        let snapshots = Arc::new(instance_snapshot::Reconciler::new(
            &deps,
            Arc::clone(&snapshot_signal),
        ));
        tasks.spawn(follow_store(
            deps.store.subscribe(),
            Arc::clone(&snapshot_signal),
            cancel.clone(),
            |change| matches!(change, Change::InstanceSnapshot(_)),
        ));
        tasks.spawn(drive(
            snapshots,
            snapshot_signal,
            Arc::clone(observer),
            cancel.clone(),
        ));
        ControllerHandle {
            deps,
            tasks,
            cancel,
            queue,
            scaling,
            packing,
            services,
        }
    }
}

impl ControllerHandle {
    /// Keeps service pools filled too, with members that `maker` describes.
    pub fn keep_pools(&mut self, maker: Arc<dyn pool::MemberMaker>) {
        let deps = &self.deps;
        let signal = Arc::new(Notify::new());
        self.tasks.spawn(follow_store(
            deps.store.subscribe(),
            Arc::clone(&signal),
            self.cancel.clone(),
            |change| matches!(change, Change::Pool(_)),
        ));
        self.tasks.spawn(drive(
            Arc::new(pool::Reconciler::new(deps, maker)),
            signal,
            Arc::clone(&deps.observer),
            self.cancel.clone(),
        ));
    }

    /// Stops taking up work, waits for the steps under way, then ends.
    pub async fn shutdown(mut self) {
        self.cancel.cancel();
        let ended = tokio::time::timeout(SHUTDOWN, async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = ended {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a reconciler ended badly"
                    );
                }
            }
        });
        if ended.await.is_err() {
            tracing::warn!("reconcilers did not end in time and are cut off");
        }
    }

    /// What the load decides on, for those who ask.
    #[must_use]
    pub fn scaling(&self) -> Arc<Scaling> {
        Arc::clone(&self.scaling)
    }

    /// What the models of a machine hold: figures for metrics.
    pub async fn packing(&self) -> packing::Totals {
        self.services.count_models().await;
        self.packing.totals()
    }

    /// How many services and apps wait to be looked at: a figure for metrics.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.queue.len()
    }
}
