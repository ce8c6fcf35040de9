//! `tram up`: the control plane, and the order in which everything starts and stops.
//!
//! ```text
//! lock the data directory -> take the API's port -> edge (it takes its ports) and supervisor, adopted or started
//!   -> store -> images -> this machine as a site -> link to the edge -> controller -> API
//! ```
//!
//! Whatever can fail for want of a port, a permission or a file fails before any work starts. SIGTERM, Ctrl-C and the
//! end of the terminal stop in the reverse order and leave nothing running; kill -9 leaves the edge and the instances
//! running, and the next start adopts them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tram_api::ApiState;
use tram_cli::{
    Printer, Settings, context,
    settings::{NetworkV6, OnStop, SleepMemory, SnapshotSpace, UserNamespaces},
};
use tram_controller::{
    Controller, ControllerHandle, Deps,
    domain::{Checker, Resolver, SystemResolver},
};
use tram_site::{Site, Sites};
use tram_site_local::{LocalSite, config::DEFAULT_LOGS_RETENTION as LOGS_KEPT};
use tram_store::{Options, Store, keyring};
use tram_types::{Clock, SystemClock};
use uuid::Uuid;

use crate::isolation::Classes;
use crate::{
    addresses::{edge_address, port_suffix, reachable},
    admin::{self, Admin},
    bootstrap, collector,
    data_plane::EdgeLink,
    engine, engine_image,
    figures::{Figures, KEPT},
    helper_logs, invoker,
    leadership::{self, Leader},
    logging::{self, LogSettings},
    members::Members,
    metrics::Metrics,
    observe::{self, Observed},
    paths::Paths,
    processes::{DirectoryLock, Helper, Keeper, patience},
    roles::{self, EdgeSettings},
    sampler, scaling,
    stops::{Stops, ToldToStop},
    traces::Traces,
    usage::{self, Counted},
    verifier::{Domains, Verifier},
};

/// Name of the lock on the data directory; holds the process id of `tram up`.
pub const LOCK_NAME: &str = "up.lock";
/// A helper process that is not there after this time has a reason that its log tells.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether a helper is there. Each look is one connect on a Unix socket.
const HELPER_LOOK: Duration = Duration::from_millis(5);
/// Open API calls get this long to finish; streams of logs and terminals are cut then.
const API_DRAIN: Duration = Duration::from_secs(5);
/// Open requests through the edge get this long to finish: its own bound and a little more.
const EDGE_DRAIN: Duration = Duration::from_secs(35);
/// Instances get this long between the stop signal and the end by force when everything stops.
const INSTANCE_GRACE: Duration = Duration::from_secs(10);
/// All instances are gone after this time, or something is badly wrong.
const INSTANCES_PATIENCE: Duration = Duration::from_secs(30);
/// The supervisor leaves at once when told.
const SUPERVISOR_PATIENCE: Duration = Duration::from_secs(5);
/// How often the figure of the backlog is brought up to date; scrapers come about as often.
const BACKLOG_LOOK: Duration = Duration::from_secs(5);
/// How often memory that nothing lives in goes back to the machine: soon after a burst of work, and seldom enough that
/// the milliseconds it takes are nothing.
const GIVE_BACK_PERIOD: Duration = Duration::from_secs(20);

/// Runs the whole cloud on this machine until SIGTERM, Ctrl-C or the end of the terminal.
///
/// # Errors
/// With what is wrong, for the user.
pub async fn run(settings: Settings, printer: &Printer) -> anyhow::Result<()> {
    logging::control_plane(&log_settings(&settings)).map_err(anyhow::Error::msg)?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "`tram up` needs root: instances get namespaces, cgroups, mounts and addresses of their own. \
             Run `sudo tram up`; the other commands need no root"
        );
    }
    let traces = Traces::start(&settings.otlp_endpoint, "tram-control-plane")?;
    let stops = Stops::listen(printer)?;
    let running = match Box::pin(Running::start(&settings, printer, &stops)).await {
        // What was brought up is gone again.
        Err(error) if error.is::<ToldToStop>() => return Ok(()),
        started => started?,
    };
    tokio::select! {
        () = stops.asked.cancelled() => {}
        () = running.leader.lost() => {}
        never = running.watch_backlog() => match never {},
        never = Running::give_back_memory() => match never {},
    }
    let lost = running.leader.is_lost();
    printer.note(match settings.on_stop {
        _ if lost => "stopping the control plane; the edge and the instances go on",
        OnStop::Stop => "stopping: finishing open requests, then instances",
        OnStop::Keep => "stopping the control plane; the edge and the instances go on",
    });
    Box::pin(running.stop(&stops.hurry)).await;
    if let Some(traces) = traces
        && let Err(error) = tokio::task::spawn_blocking(move || traces.finish()).await
    {
        tracing::warn!(error = %crate::chain(&error), "the last traces were not sent");
    }
    if lost {
        bail!(leadership::LOST);
    }
    Ok(())
}

/// Everything that runs, in the order of the start.
struct Running {
    _lock: DirectoryLock,
    /// One machine, one control plane on this database.
    leader: Leader,
    supervisor: Keeper,
    edge: Keeper,
    store: Store,
    site: Arc<LocalSite>,
    controller: ControllerHandle,
    api: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
    on_stop: OnStop,
}

impl Running {
    async fn start(settings: &Settings, printer: &Printer, stops: &Stops) -> anyhow::Result<Self> {
        // What was written wrong is told before anything is touched.
        crate::images::aliases(settings)?;
        crate::images::fallbacks(settings)?;
        crate::network::denied(settings)?;
        let paths = Paths::new(&settings.data_dir);
        if let Err((room, source)) = paths.ensure() {
            return Err(source).with_context(|| format!("cannot make {}", room.display()));
        }
        let lock = lock(&paths)?;
        let api_listener = TcpListener::bind(settings.api_listen).await.with_context(|| {
            format!(
                "cannot listen on {} for the API: stop what listens there, or choose another with `--api-listen`",
                settings.api_listen
            )
        })?;
        let api_address = api_listener.local_addr()?;
        let door =
            admin::bind(&paths.root().join(admin::SOCKET)).context("cannot make the operator's socket")?;

        let edge = keep_edge(settings, &paths, stops).await?;
        let supervisor = match keep_supervisor(settings, &paths, stops).await {
            Ok(supervisor) => supervisor,
            Err(error) => {
                edge.undo(EDGE_DRAIN, &stops.hurry).await;
                return Err(error);
            }
        };
        let inside = Inside {
            lock,
            api_listener,
            api_address,
            door,
        };
        match Box::pin(inside.start(settings, printer, &paths, &stops.asked)).await {
            Ok(started) => Ok(started.with(edge, supervisor, settings.on_stop)),
            Err(error) => {
                // What this start brought up goes again; what it found running stays.
                edge.undo(EDGE_DRAIN, &stops.hurry).await;
                supervisor.undo(SUPERVISOR_PATIENCE, &stops.hurry).await;
                Err(error)
            }
        }
    }
}

/// What was taken before the helper processes were started.
struct Inside {
    lock: DirectoryLock,
    api_listener: TcpListener,
    api_address: SocketAddr,
    door: tokio::net::UnixListener,
}

/// Everything that runs inside this process.
struct Started {
    lock: DirectoryLock,
    leader: Leader,
    store: Store,
    site: Arc<LocalSite>,
    controller: ControllerHandle,
    api: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Started {
    fn with(self, edge: Keeper, supervisor: Keeper, on_stop: OnStop) -> Running {
        Running {
            _lock: self.lock,
            leader: self.leader,
            supervisor,
            edge,
            store: self.store,
            site: self.site,
            controller: self.controller,
            api: self.api,
            stop: self.stop,
            metrics: self.metrics,
            on_stop,
        }
    }
}

impl Inside {
    async fn start(
        self,
        settings: &Settings,
        printer: &Printer,
        paths: &Paths,
        asked: &CancellationToken,
    ) -> anyhow::Result<Started> {
        let Self {
            lock,
            api_listener,
            api_address,
            door,
        } = self;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // Side by side: CRIU takes tens of milliseconds to say what it can here, gVisor some hundred.
        let opening = async {
            tokio::join!(
                open_store(settings, paths, Arc::clone(&clock)),
                crate::checkpoint::program(settings),
                Classes::find(settings),
                crate::gpus::read(settings)
            )
        };
        let (opened, checkpoint, classes, devices) = tokio::select! {
            all = opening => all,
            () = asked.cancelled() => return Err(ToldToStop.into()),
        };
        let (store, leader) = opened?;
        let api_url = format!("http://{}", reachable(api_address));
        let images = crate::images::open(settings, paths)?;
        if let Some(program) = engine::PROGRAM {
            engine_image::ensure(&images, program).await?;
        }
        let models = crate::models::open(paths, settings)?;
        let mut site_config = tram_site_local::Config::new(paths.site());
        site_config.models = Some(models.clone());
        site_config.supervisor_dir = paths.supervisor();
        site_config.executor =
            Some(crate::executor::ensure(paths).context("cannot lay out the executor of sandboxes")?);
        site_config
            .network
            .name_servers
            .clone_from(&settings.name_servers.0);
        site_config.reclaim_frozen = settings.light_sleep_memory == SleepMemory::Reclaim;
        site_config.user_namespaces = match settings.user_namespaces {
            UserNamespaces::None => tram_site_local::UserNamespaces::Never,
            UserNamespaces::Sandboxes => tram_site_local::UserNamespaces::Untrusted,
            UserNamespaces::All => tram_site_local::UserNamespaces::Always,
        };
        site_config.gvisor.clone_from(&classes.gvisor);
        site_config
            .cdi_directories
            .clone_from(&settings.cdi_directories.0);
        site_config.checkpoint = checkpoint;
        site_config.checkpoints_max_bytes = settings.checkpoints_max.bytes();
        site_config.kept_prompts_bytes = settings.kept_prompts_max.bytes();
        site_config.snapshot_space = match settings.snapshot_space_total_max {
            SnapshotSpace::Size(size) => size.bytes().map_or(
                tram_site_local::SnapshotSpace::Disk,
                tram_site_local::SnapshotSpace::Bytes,
            ),
            SnapshotSpace::Percent(percent) => tram_site_local::SnapshotSpace::Percent(percent),
        };
        site_config.secrets = Some(Arc::new(crate::secret_values::StoreValues(store.clone())));
        if !settings.secret_roots.as_os_str().is_empty() {
            site_config.secret_roots = Some(settings.secret_roots.clone());
        }
        (site_config.network.denied, site_config.network.denied_v6) = crate::network::denied(settings)?;
        site_config.network.v6 = match settings.network_v6 {
            NetworkV6::Off => tram_site_local::Ipv6::Off,
            NetworkV6::Auto => tram_site_local::Ipv6::Auto,
            NetworkV6::On => tram_site_local::Ipv6::On,
        };
        let site = crate::network::open_site(paths, site_config, images.clone(), &settings.network).await?;
        // A token is made when nothing that comes after can fail: it is shown once, at the end.
        let access = if asked.is_cancelled() {
            Err(ToldToStop.into())
        } else {
            bootstrap::ensure(&store, &settings.organization, &api_url, invoker::context_file)
                .await
                .context("cannot prepare the first organization")
        };
        let access = match access {
            Ok(access) => access,
            Err(error) => {
                close_site(&site).await;
                return Err(error);
            }
        };
        let sites = Sites::single(settings.region.clone(), Arc::clone(&site) as Arc<dyn Site>);
        let catalog = Arc::new(classes.catalog(settings, &devices));

        let figures = Arc::new(Figures::default());
        let metrics = Arc::new(Metrics::new(store.clone()));
        // New with every start: nobody but these two processes has it.
        let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let link = Arc::new(EdgeLink::start(
            tram_edge::link::socket_path(&paths.edge()),
            Some(tram_edge::secret::hash(&secret)),
            Arc::clone(&figures),
            Arc::clone(&metrics),
        ));
        let resolver: Arc<dyn Resolver> = Arc::new(SystemResolver);
        let domains = Domains(Checker::new(
            store.clone(),
            Arc::clone(&resolver),
            Arc::clone(&clock),
            &settings.base_domain,
        ));
        let mut controller = Controller::start(Deps {
            store: store.clone(),
            sites: sites.clone(),
            data_plane: Arc::clone(&link) as Arc<dyn tram_controller::DataPlane>,
            resolver,
            clock: Arc::clone(&clock),
            catalog: Arc::clone(&catalog),
            policy: tram_planner::Policy {
                scaling: scaling::policy(&settings.scaling),
                checkpoint_after: crate::checkpoint::after(settings),
                ..tram_planner::Policy::default()
            },
            settings: tram_controller::Settings {
                base_domain: settings.base_domain.clone(),
                public_hosts: vec![settings.base_domain.clone()],
                prewake: Some(tram_planner::prewake::Budget::of(f64::from(
                    settings.prewake_minutes.0,
                ))),
                snapshot_bytes_max: settings.snapshot_space_max.bytes(),
                model_memory: crate::models::memory(settings),
                ..tram_controller::Settings::default()
            },
            observer: Arc::clone(&metrics) as Arc<dyn tram_controller::Observer>,
        });

        let stop = CancellationToken::new();
        tokio::spawn(sampler::run(
            sites.clone(),
            store.clone(),
            Arc::clone(&catalog),
            Arc::clone(&clock),
            Arc::clone(&figures),
            Arc::clone(&metrics),
            stop.clone(),
        ));
        tokio::spawn(collector::run(
            images.clone(),
            Arc::clone(&site),
            store.clone(),
            stop.clone(),
        ));
        let budgets = Arc::new(tram_api::Budgets::new(store.clone(), Arc::clone(&clock)));
        let counting = (paths.edge(), store.clone(), stop.clone());
        let listeners: Vec<Arc<dyn Counted>> = vec![
            Arc::clone(&metrics) as Arc<dyn Counted>,
            Arc::clone(&budgets) as Arc<dyn Counted>,
        ];
        tokio::spawn(async move {
            let (edge, store, stop) = counting;
            usage::run(&edge, store, listeners, stop).await;
        });
        let state = ApiState::new(
            store.clone(),
            sites,
            catalog,
            clock,
            api_settings(settings, &api_url),
            Arc::new(Verifier {
                images: images.clone(),
            }),
            Arc::new(domains),
            figures,
        )
        .with_scaling(Arc::new(scaling::Decisions(controller.scaling())))
        .with_models(
            models.clone(),
            tram_api::Front::new(edge_address(settings), &secret),
        )
        .with_budgets(budgets)
        .with_claims(Arc::clone(&metrics) as Arc<dyn tram_api::ClaimObserver>);
        controller.keep_pools(Arc::new(Members(state.clone())));
        let observed = Observed {
            store: store.clone(),
            edge: Arc::clone(&link),
            metrics: Arc::clone(&metrics),
        };
        let api = serve_api(
            api_listener,
            observe::around(tram_api::router(state), observed),
            stop.clone(),
        );
        serve_door(
            door,
            Admin {
                images,
                models,
                site: Arc::clone(&site),
                edge: link,
                metrics: Arc::clone(&metrics),
                store: store.clone(),
                api_url: api_url.clone(),
            },
            stop.clone(),
        );
        announce(settings, printer, &api_url, &access);
        Ok(Started {
            lock,
            leader,
            store,
            site,
            controller,
            api,
            stop,
            metrics,
        })
    }
}

impl Running {
    /// Keeps the figure of the backlog up to date, and the logs of the helpers within bounds.
    async fn watch_backlog(&self) -> std::convert::Infallible {
        let mut tick = tokio::time::interval(BACKLOG_LOOK);
        loop {
            tick.tick().await;
            self.metrics.set_backlog(self.controller.backlog());
            self.metrics.set_scaling(&self.controller.scaling().totals());
            self.metrics.set_packing(self.controller.packing().await);
            let refused = self.site.refused();
            self.metrics.set_refused(refused.packets, refused.names);
            let guarded = self.site.guarded();
            self.metrics.set_guarded(guarded.filled, guarded.refused);
            for helper in [self.edge.helper(), self.supervisor.helper()] {
                helper_logs::bound(&helper.log).await;
            }
        }
    }

    /// Gives back what bursts of work needed.
    async fn give_back_memory() -> std::convert::Infallible {
        let mut tick = tokio::time::interval(GIVE_BACK_PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        tick.tick().await;
        loop {
            tick.tick().await;
            // It cannot fail; a runtime that stops does not start it any more.
            drop(tokio::task::spawn_blocking(tram_sandbox::heap::give_back).await);
        }
    }

    /// Stops in the reverse order: no new intents, no new decisions, no new requests, then what runs.
    async fn stop(self, hurry: &CancellationToken) {
        self.stop.cancel();
        let api = self.api.abort_handle();
        let in_time = tokio::select! {
            _ = self.api => true,
            () = patience(API_DRAIN, hurry) => false,
        };
        if !in_time {
            tracing::warn!("open API calls were cut off");
            api.abort();
        }
        // What runs is another control plane's to decide on once this one does not lead any more.
        if self.on_stop == OnStop::Keep || self.leader.is_lost() {
            self.controller.shutdown().await;
            self.edge.leave().await;
            self.supervisor.leave().await;
            self.store.close().await;
            return;
        }
        let edge_state = self.edge.helper().state_dir.clone();
        // At once: a caller whom nobody will wake any more is told so by an edge that stops.
        tokio::join!(self.controller.shutdown(), self.edge.stop(EDGE_DRAIN, hurry));
        forget_instances(&edge_state);
        stop_instances(&self.site, hurry).await;
        close_site(&self.site).await;
        self.supervisor.stop(SUPERVISOR_PATIENCE, hurry).await;
        self.store.close().await;
    }
}

/// Instances that are stopped on purpose are gone at the next start: the edge that starts then, before anything else,
/// must not send traffic to their addresses.
fn forget_instances(edge_state: &std::path::Path) {
    if let Err(error) = tram_edge::forget_instances(edge_state) {
        tracing::warn!(error = %crate::chain(&error), "the edge's routing table still names the stopped instances");
    }
}

async fn close_site(site: &LocalSite) {
    if let Err(error) = site.close().await {
        tracing::warn!(error = %crate::chain(&error), "the private network could not be taken down");
    }
}

fn lock(paths: &Paths) -> anyhow::Result<DirectoryLock> {
    match DirectoryLock::take(paths.root(), LOCK_NAME)? {
        Ok(lock) => Ok(lock),
        Err(holder) => {
            let who = holder
                .pid
                .map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
            bail!(
                "{who} runs on the data directory {} already: stop it, or give this one another with `--data-dir`",
                paths.root().display()
            )
        }
    }
}

/// The edge, adopted when it runs with these settings, else started; it has its ports when this returns.
async fn keep_edge(settings: &Settings, paths: &Paths, stops: &Stops) -> anyhow::Result<Keeper> {
    let on = |port: u16| {
        settings
            .http_listen
            .iter()
            .map(|address| SocketAddr::new(*address, port))
            .collect()
    };
    let wanted = EdgeSettings {
        base_domain: settings.base_domain.clone(),
        http: on(settings.http_port),
        https: on(settings.https_port),
        tcp: settings.http_listen.clone(),
        access_log: paths.access_log(),
        otlp_endpoint: settings.otlp_endpoint.clone(),
        log: log_settings(settings),
    };
    let helper = Helper {
        role: "edge",
        arguments: roles::arguments(&paths.edge(), None),
        state_dir: paths.edge(),
        lock_name: roles::LOCK_NAME,
        log: paths.logs().join("edge.log"),
    };
    if helper.running().is_some() && EdgeSettings::read(&paths.edge()).as_ref() != Some(&wanted) {
        tracing::info!("the settings of the edge changed; starting it again");
        Keeper::keep(helper.clone())?.stop(EDGE_DRAIN, &stops.hurry).await;
    }
    wanted
        .write(&paths.edge())
        .context("cannot write the settings of the edge")?;
    link_certificates(settings, paths)?;
    let keeper = Keeper::keep(helper)?;
    let socket = tram_edge::link::socket_path(&paths.edge());
    wait_for_helper(keeper, "edge", stops, || async {
        tram_edge::link::Client::connect(&socket).await.is_ok()
    })
    .await
}

/// Certificates for custom domains are where the operator says; the edge looks in its own directory.
fn link_certificates(settings: &Settings, paths: &Paths) -> anyhow::Result<()> {
    if settings.certificates_dir.as_os_str().is_empty() {
        return Ok(());
    }
    let link = paths.edge().join("certs");
    match std::fs::symlink_metadata(&link) {
        Ok(found) if found.is_symlink() => std::fs::remove_file(&link)?,
        Ok(_) => bail!(
            "{} is in the way: move its certificates to the `certificates_dir`",
            link.display()
        ),
        Err(_) => {}
    }
    std::os::unix::fs::symlink(&settings.certificates_dir, &link)
        .with_context(|| format!("cannot lead {} to the certificates", link.display()))
}

async fn keep_supervisor(settings: &Settings, paths: &Paths, stops: &Stops) -> anyhow::Result<Keeper> {
    let directory = paths.supervisor();
    let keeper = Keeper::keep(Helper {
        role: "supervise",
        arguments: roles::arguments(&directory, Some(&log_settings(settings))),
        state_dir: directory.clone(),
        lock_name: roles::LOCK_NAME,
        log: paths.logs().join("supervise.log"),
    })?;
    wait_for_helper(keeper, "supervise", stops, || async {
        let directory = directory.clone();
        tokio::task::spawn_blocking(move || tram_sandbox::client::Client::new(directory).ping().is_ok())
            .await
            .unwrap_or(false)
    })
    .await
}

fn log_settings(settings: &Settings) -> LogSettings {
    LogSettings {
        filter: settings.log_filter.clone(),
        format: settings.log_format,
    }
}

/// Waits until a helper answers; when it does not, its own last words say why.
async fn wait_for_helper<F: Future<Output = bool>>(
    keeper: Keeper,
    role: &str,
    stops: &Stops,
    answers: impl Fn() -> F,
) -> anyhow::Result<Keeper> {
    let deadline = tokio::time::Instant::now() + HELPER_PATIENCE;
    while !answers().await {
        if stops.asked.is_cancelled() {
            keeper.undo(SUPERVISOR_PATIENCE, &stops.hurry).await;
            return Err(ToldToStop.into());
        }
        let ended = keeper.has_ended();
        if ended || tokio::time::Instant::now() > deadline {
            let words = keeper.helper().last_words();
            keeper.stop(SUPERVISOR_PATIENCE, &stops.hurry).await;
            bail!("the `{role}` process does not come up; its last words:\n{words}");
        }
        tokio::time::sleep(HELPER_LOOK).await;
    }
    Ok(keeper)
}

async fn open_store(
    settings: &Settings,
    paths: &Paths,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<(Store, Leader)> {
    let database_url = if settings.database_url.is_empty() {
        format!("sqlite://{}", paths.sqlite().display())
    } else {
        settings.database_url.clone()
    };
    let store = Store::open(Options {
        database_url,
        keyring: keyring::Settings {
            path: paths.keyring(),
            create: true,
        },
        proxy_ports: settings.proxy_ports.first..=settings.proxy_ports.last,
        clock,
    })
    .await
    .context("cannot open the database")?;
    let leader = Leader::take(&store).await?;
    Ok((store, leader))
}

fn api_settings(settings: &Settings, api_url: &str) -> tram_api::Settings {
    const SECONDS_A_DAY: u64 = 24 * 3600;
    tram_api::Settings {
        base_domain: settings.base_domain.clone(),
        api_url: api_url.to_owned(),
        sandbox_url: format!(
            "http://{}{}",
            settings.base_domain,
            port_suffix(settings.http_port, 80)
        ),
        https_port: settings.https_port,
        proxy_host: settings.base_domain.clone(),
        logs_retention_days: u32::try_from(LOGS_KEPT.as_secs() / SECONDS_A_DAY).unwrap_or(1),
        snapshots_max: settings.snapshots_max.0,
        pool_members_max: settings.pool_members_max.0,
        snapshot_bytes_max: settings.snapshot_space_max.bytes(),
        metrics_retention_days: u32::try_from(KEPT.as_secs() / SECONDS_A_DAY).unwrap_or(1),
        allowed_origins: settings
            .allowed_origins
            .0
            .iter()
            .filter_map(|origin| origin.parse().ok())
            .collect(),
    }
}

fn serve_api(
    listener: TcpListener,
    router: axum::Router,
    stop: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        if let Err(error) = axum::serve(listener, service)
            .with_graceful_shutdown(stop.cancelled_owned())
            .await
        {
            tracing::error!(error = %crate::chain(&error), "the API stopped");
        }
    })
}

fn serve_door(listener: tokio::net::UnixListener, admin: Admin, stop: CancellationToken) {
    tokio::spawn(async move {
        let served =
            axum::serve(listener, admin::router(admin)).with_graceful_shutdown(stop.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(error = %crate::chain(&error), "the operator's socket stopped");
        }
    });
}

fn announce(settings: &Settings, printer: &Printer, api_url: &str, access: &bootstrap::Access) {
    let https = port_suffix(settings.https_port, 443);
    printer.note("Tramontane is up");
    printer.note(format_args!("  API       {api_url}"));
    // As tram_types::names::auto_assigned_domain makes them.
    printer.note(format_args!(
        "  services  https://<app>-{}-<8 hex digits>.{}{https}",
        access.organization, settings.base_domain
    ));
    let Some(token) = &access.token else {
        printer.note(match &access.kept {
            Some(kept) => format!("  token     in context `{}` of {}", kept.context, kept.file.display()),
            None => "  token     made by the first start; if it is lost, `sudo tram admin new-token` makes another".to_owned(),
        });
        return;
    };
    // Shown this once, and so in any case.
    printer.error_bytes(format!("  token     {token}\n").as_bytes());
    match (&access.kept, &access.trouble) {
        (Some(kept), _) => {
            printer.note(format_args!(
                "The token is shown this once; it is kept for the command line as context `{}` in {}",
                kept.context,
                kept.file.display()
            ));
            if kept.context != context::LOCAL {
                printer.note(format_args!(
                    "Context `{}` is of another installation and stays; `tram context use NAME` goes from one to the other",
                    context::LOCAL
                ));
            }
        }
        (None, trouble) => {
            let why = trouble
                .as_ref()
                .map(|error| crate::chain(error))
                .unwrap_or_default();
            printer.error_bytes(
                format!("Keep the token: it is shown this once, and could not be kept for the command line ({why})\n")
                    .as_bytes(),
            );
        }
    }
}

/// Ends every instance of this machine. Their intents stay: the next start runs them again.
async fn stop_instances(site: &Arc<LocalSite>, hurry: &CancellationToken) {
    let mut changed = site.changed();
    let stopping = async {
        loop {
            let Ok(observation) = site.observe().await else {
                return;
            };
            let left: Vec<_> = observation
                .instances
                .values()
                .filter(|seen| !seen.phase.is_ended())
                .collect();
            if left.is_empty() {
                return;
            }
            let grace = if hurry.is_cancelled() {
                Duration::ZERO
            } else {
                INSTANCE_GRACE
            };
            for seen in left {
                if let Err(error) = site.stop(seen.id, grace, seen.generation).await {
                    tracing::warn!(instance = %seen.id, error = %crate::chain(&error), "cannot stop an instance");
                }
            }
            // News come with every end; the look by clock is for one that was lost.
            let _ = tokio::time::timeout(Duration::from_millis(200), changed.recv()).await;
        }
    };
    if tokio::time::timeout(INSTANCES_PATIENCE, stopping).await.is_err() {
        tracing::error!("some instances did not stop in time");
    }
}
