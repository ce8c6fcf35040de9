//! A whole control plane but for the API: what the API would record is recorded by hand.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tram_controller::{
    Controller, ControllerHandle, DataPlane, Deps, NoObserver, Settings,
    data_plane::{Error, Event, ServiceActivity},
    domain::{Resolver, Unanswered},
    packing::ModelMemory,
};
use tram_planner::{Policy, prewake::Budget};
use tram_site::Sites;
use tram_store::{
    Options, Store, filter,
    intent::{Deployed, NewApp, NewDeployment, NewDomain, NewRegionalDeployment, NewService, ServiceEdit},
    keyring,
    record::{self, Deployment, Desired, Instance, ObjectKind, Service},
};
use tram_testkit::{FakeClock, FakeSite};
use tram_types::{
    AppId, Clock as _, DeploymentId, DomainId, InstanceId, OrganizationId, ProjectId, RegionalDeploymentId,
    ServiceId,
    routing::{self, RoutingTable, TableChange},
    status::{AppStatus, DeploymentStatus, DomainStatus, DomainType, ServiceStatus, ServiceType},
};
use uuid::Uuid;

/// Longest wait for a condition; far above what any takes.
const DEADLINE: Duration = Duration::from_secs(20);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(2);

/// How far the clock moves on between two looks where something takes time: small beside every deadline, so that a
/// slow machine does not miss one.
pub(crate) const STEP: Duration = Duration::from_millis(100);

/// An edge that keeps the last table and says what tests tell it.
#[derive(Debug, Clone)]
pub(crate) struct FakeDataPlane {
    table: watch::Sender<RoutingTable>,
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<Event>,
    down: bool,
    pub(crate) pushes: u64,
    changes: u64,
    /// Sleeping services that are open, with the version under which they are.
    opened: HashMap<ServiceId, u64>,
    busy: HashSet<ServiceId>,
    /// It takes nothing but tables.
    only_tables: bool,
}

impl FakeDataPlane {
    pub(crate) fn new() -> Self {
        Self {
            table: watch::channel(RoutingTable::default()).0,
            state: Arc::default(),
            news: Arc::default(),
        }
    }

    pub(crate) fn say(&self, event: Event) {
        self.state.lock().unwrap().events.push_back(event);
        self.news.notify_one();
    }

    /// The link comes up: held version, and a complete report of nothing going on.
    pub(crate) fn connect(&self) {
        self.state.lock().unwrap().down = false;
        let held = self.table.borrow().version;
        self.say(Event::Connected { held });
        self.say(Event::Report {
            complete: true,
            services: Vec::new(),
        });
    }

    /// Makes it hold this version; gives the one before.
    pub(crate) fn hold_version(&self, version: u64) -> u64 {
        let mut before = 0;
        self.table
            .send_modify(|table| before = std::mem::replace(&mut table.version, version));
        before
    }

    /// Makes it hold a table of this version with nothing in it.
    pub(crate) fn forget(&self, version: u64) {
        self.table.send_replace(RoutingTable {
            version,
            ..RoutingTable::default()
        });
    }

    pub(crate) fn disconnect(&self) {
        self.state.lock().unwrap().down = true;
        self.say(Event::Lost);
    }

    /// Requests of the service are under way, or not.
    pub(crate) fn set_busy(&self, service: ServiceId, busy: bool) {
        let mut state = self.state.lock().unwrap();
        if busy {
            state.busy.insert(service);
        } else {
            state.busy.remove(&service);
        }
    }

    /// It is of a version that knows nothing of light sleep.
    pub(crate) fn only_tables(&self) {
        self.state.lock().unwrap().only_tables = true;
    }

    /// Whether a request would reach an instance now.
    pub(crate) fn is_open(&self, service: ServiceId) -> bool {
        let version = self.table.borrow().version;
        let opened = self.state.lock().unwrap().opened.get(&service) == Some(&version);
        self.service(service)
            .is_some_and(|it| !it.endpoints.is_empty() && (it.state == routing::State::Ready || opened))
    }

    /// The version of the table under which a sleeping service was opened last.
    pub(crate) fn opened_under(&self, service: ServiceId) -> Option<u64> {
        self.state.lock().unwrap().opened.get(&service).copied()
    }

    pub(crate) fn wake(&self, service: ServiceId) {
        self.say(Event::Wake { service, waiting: 1 });
    }

    pub(crate) fn traffic(&self, activity: ServiceActivity) {
        self.say(Event::Report {
            complete: false,
            services: vec![activity],
        });
    }

    pub(crate) fn table(&self) -> RoutingTable {
        self.table.borrow().clone()
    }

    /// How many of the pushes were changes.
    pub(crate) fn changes(&self) -> u64 {
        self.state.lock().unwrap().changes
    }

    pub(crate) fn pushes(&self) -> u64 {
        self.state.lock().unwrap().pushes
    }

    pub(crate) fn service(&self, id: ServiceId) -> Option<routing::Service> {
        let table = self.table.borrow();
        let found = table.services.iter().find(|it| it.id == id.uuid());
        found.map(|it| (**it).clone())
    }
}

#[async_trait]
impl DataPlane for FakeDataPlane {
    async fn push(&self, table: &RoutingTable) -> Result<(), Error> {
        {
            let mut state = self.state.lock().unwrap();
            if state.down {
                return Err(Error::Lost(None));
            }
            state.pushes += 1;
        }
        let held = self.table.borrow().version;
        if table.version < held {
            return Err(Error::Refused {
                held,
                reason: "it is older".to_owned(),
            });
        }
        self.table.send_replace(table.clone());
        Ok(())
    }

    async fn change(&self, change: &TableChange) -> Result<bool, Error> {
        {
            let mut state = self.state.lock().unwrap();
            if state.down {
                return Err(Error::Lost(None));
            }
            if state.only_tables {
                return Ok(false);
            }
            state.pushes += 1;
            state.changes += 1;
        }
        let held = self.table.borrow().version;
        if change.base != held {
            return Err(Error::Refused {
                held,
                reason: "it is of another table".to_owned(),
            });
        }
        self.table.send_modify(|table| apply(table, change));
        Ok(true)
    }

    async fn thawed(
        &self,
        service: ServiceId,
        version: u64,
        instances: Vec<InstanceId>,
    ) -> Result<bool, Error> {
        let Some(held) = self.service(service) else {
            return Ok(false);
        };
        let mut state = self.state.lock().unwrap();
        if state.down {
            return Err(Error::Lost(None));
        }
        let answers = |id| instances.iter().any(|instance| instance.uuid() == id);
        let open = !state.only_tables
            && self.table.borrow().version == version
            && held.state == routing::State::Sleeping
            && !held.endpoints.is_empty()
            && held
                .endpoints
                .iter()
                .all(|endpoint| answers(endpoint.instance_id));
        if open {
            state.opened.insert(service, version);
        }
        Ok(open)
    }

    async fn is_quiet(&self, service: ServiceId) -> Result<bool, Error> {
        let asleep = self
            .service(service)
            .is_some_and(|it| it.state == routing::State::Sleeping);
        let busy = self.state.lock().unwrap().busy.contains(&service);
        Ok(asleep && !busy && !self.is_open(service))
    }

    async fn next_event(&self) -> Option<Event> {
        loop {
            if let Some(event) = self.state.lock().unwrap().events.pop_front() {
                return Some(event);
            }
            self.news.notified().await;
        }
    }
}

fn apply(table: &mut RoutingTable, change: &TableChange) {
    table.version = change.version;
    let new = |id: Uuid| change.services.iter().any(|it| it.id == id) || change.services_gone.contains(&id);
    table.services.retain(|it| !new(it.id));
    table.services.extend(change.services.iter().cloned());
    let new =
        |name: &String| change.hosts.iter().any(|it| it.name == *name) || change.hosts_gone.contains(name);
    table.hosts.retain(|it| !new(&it.name));
    table.hosts.extend(change.hosts.iter().cloned());
    let new = |key: &String| {
        change.routing_keys.iter().any(|it| it.key == *key) || change.routing_keys_gone.contains(key)
    };
    table.routing_keys.retain(|it| !new(&it.key));
    table.routing_keys.extend(change.routing_keys.iter().cloned());
    let new = |port: u16| {
        change.tcp_ports.iter().any(|it| it.public_port == port) || change.tcp_ports_gone.contains(&port)
    };
    table.tcp_ports.retain(|it| !new(it.public_port));
    table.tcp_ports.extend(change.tcp_ports.iter().cloned());
}

/// No name leads anywhere.
#[derive(Debug)]
struct NoNames;

#[async_trait]
impl Resolver for NoNames {
    async fn addresses(&self, _host: &str) -> Result<Vec<IpAddr>, Unanswered> {
        Ok(Vec::new())
    }
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) clock: FakeClock,
    pub(crate) site: FakeSite,
    pub(crate) sites: Sites,
    pub(crate) edge: FakeDataPlane,
    pub(crate) organization: OrganizationId,
    pub(crate) project: ProjectId,
    pub(crate) app: AppId,
    pub(crate) controller: Option<ControllerHandle>,
    pub(crate) sweep: Duration,
    pub(crate) prewake: Option<Budget>,
    /// What the models of region `fra` have together, in bytes.
    pub(crate) model_bytes: Option<u64>,
    options: Options,
    _directory: tempfile::TempDir,
}

impl World {
    /// Everything, with the controller running.
    pub(crate) async fn new() -> Self {
        let mut world = Self::without_controller().await;
        world.start();
        world
    }

    pub(crate) async fn without_controller() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = FakeClock::new();
        let keys = directory.path().join("keys");
        let options = Options {
            database_url: format!("sqlite://{}", directory.path().join("data/tram.db").display()),
            keyring: keyring::Settings {
                path: keys.join("secrets.key"),
                create: true,
            },
            proxy_ports: 30_000..=30_100,
            clock: Arc::new(clock.clone()),
        };
        std::fs::create_dir_all(directory.path().join("data")).unwrap();
        std::fs::create_dir_all(&keys).unwrap();
        let store = Store::open(options.clone()).await.unwrap();
        let (organization, project) = (OrganizationId::random(), ProjectId::random());
        store
            .create_organization(organization, "acme", project, "default")
            .await
            .unwrap();
        let site = FakeSite::new(Arc::new(clock.clone()));
        let mut world = Self {
            store,
            clock,
            sites: Sites::single("fra", Arc::new(site.clone())),
            site,
            edge: FakeDataPlane::new(),
            organization,
            project,
            app: AppId::random(),
            controller: None,
            sweep: DEADLINE * 100,
            prewake: None,
            model_bytes: None,
            options,
            _directory: directory,
        };
        world.app = world.create_app("shop", false).await;
        world
    }

    pub(crate) fn deps(&self) -> Deps {
        Deps {
            store: self.store.clone(),
            sites: self.sites.clone(),
            data_plane: Arc::new(self.edge.clone()),
            resolver: Arc::new(NoNames),
            clock: Arc::new(self.clock.clone()),
            catalog: Arc::new(tram_types::catalog::unlimited()),
            policy: Policy::default(),
            settings: Settings {
                tick: Duration::from_millis(5),
                // Signals alone have to do: what only a sweep finds would take two minutes.
                sweep: self.sweep,
                prewake: self.prewake,
                model_memory: self.model_bytes.map(|bytes| ModelMemory {
                    region: "fra".to_owned(),
                    bytes,
                }),
                ..Settings::default()
            },
            observer: Arc::new(NoObserver),
        }
    }

    pub(crate) fn start(&mut self) {
        self.edge.connect();
        self.controller = Some(Controller::start(self.deps()));
    }

    /// The same database opened once more: the controller hears nothing of what is changed through this one.
    pub(crate) async fn silent_store(&self) -> Store {
        Store::open(self.options.clone()).await.unwrap()
    }

    /// The same with keys of its own: what is encrypted by this one, no other store can read. Only while there are no
    /// secrets yet.
    pub(crate) async fn foreign_store(&self) -> Store {
        let mut options = self.options.clone();
        options.keyring.path.set_file_name("foreign.key");
        Store::open(options).await.unwrap()
    }

    /// What kill -9 does.
    pub(crate) fn kill(&mut self) {
        self.controller = None;
    }

    pub(crate) async fn create_app(&self, name: &str, delete_when_empty: bool) -> AppId {
        let id = AppId::random();
        let app = NewApp {
            id,
            organization_id: self.organization,
            name: name.to_owned(),
            status: AppStatus::Healthy,
            delete_when_empty,
        };
        let domain = NewDomain {
            id: DomainId::random(),
            organization_id: self.organization,
            project_id: None,
            app_id: Some(id),
            name: format!("{name}-acme.localhost"),
            kind: DomainType::Autoassigned,
            status: DomainStatus::Active,
            intended_cname: String::new(),
            load_balancer: json!({"cloudflare": {}}),
        };
        self.store.create_app_with_domain(app, domain).await.unwrap();
        id
    }

    pub(crate) fn new_deployment(&self, definition: Value) -> NewDeployment {
        NewDeployment {
            id: DeploymentId::random(),
            definition,
            metadata: json!({}),
            status: DeploymentStatus::Pending,
            skip_build: false,
            deployment_group: "prod".to_owned(),
            instance_snapshot_id: String::new(),
            created_by: String::new(),
            regional: vec![NewRegionalDeployment {
                id: RegionalDeploymentId::random(),
                region: "fra".to_owned(),
                definition: json!({}),
            }],
        }
    }

    pub(crate) async fn create(&self, name: &str, definition: Value) -> Deployed {
        self.create_in(self.app, name, definition).await
    }

    pub(crate) async fn create_in(&self, app: AppId, name: &str, definition: Value) -> Deployed {
        let service = NewService {
            id: ServiceId::random(),
            organization_id: self.organization,
            project_id: Some(self.project),
            app_id: app,
            name: name.to_owned(),
            kind: ServiceType::Web,
            delete_after_create_seconds: 0,
            delete_after_sleep_seconds: 0,
            deployment: self.new_deployment(definition),
            proxy_ports: Vec::new(),
        };
        self.store.create_service(service).await.unwrap()
    }

    pub(crate) async fn deploy(&self, service: ServiceId, definition: Value) -> DeploymentId {
        let deployment = self.new_deployment(definition);
        let edit = ServiceEdit::default();
        let deployed = self
            .store
            .add_deployment(self.organization, service, &edit, deployment, &[])
            .await;
        deployed.unwrap().deployment.id
    }

    pub(crate) async fn want(&self, service: ServiceId, desired: Desired) {
        self.store
            .set_service_desired(self.organization, service, desired)
            .await
            .unwrap();
    }

    pub(crate) async fn service(&self, id: ServiceId) -> Service {
        self.store.service_unscoped(id).await.unwrap()
    }

    pub(crate) async fn deployment(&self, id: DeploymentId) -> Deployment {
        self.store.deployment_unscoped(id).await.unwrap()
    }

    /// Every instance of a service, oldest first.
    pub(crate) async fn instances(&self, service: ServiceId) -> Vec<Instance> {
        let filter = filter::Instances {
            service_id: Some(service),
            order: filter::Order::Ascending,
            ..filter::Instances::default()
        };
        let listed = self
            .store
            .list_instances(self.organization, &filter, filter::Page::largest())
            .await;
        listed.unwrap().items
    }

    /// Kinds of the events of an object, oldest first.
    /// The kinds of all events of an object, oldest first.
    pub(crate) async fn events(&self, kind: ObjectKind, id: Uuid) -> Vec<String> {
        let events = self.told(kind, id).await;
        events.into_iter().map(|event| event.kind).collect()
    }

    /// What all events of an object say, oldest first.
    pub(crate) async fn messages(&self, kind: ObjectKind, id: Uuid) -> Vec<String> {
        let events = self.told(kind, id).await;
        events.into_iter().map(|event| event.message).collect()
    }

    async fn told(&self, kind: ObjectKind, id: Uuid) -> Vec<record::Event> {
        let filter = filter::Events {
            object_ids: vec![id],
            order: filter::Order::Ascending,
            ..filter::Events::of_kind(kind)
        };
        let listed = self
            .store
            .list_events(self.organization, &filter, filter::Page::largest())
            .await;
        listed.unwrap().items
    }

    async fn look_at_deployment(
        &self,
        id: DeploymentId,
        status: DeploymentStatus,
    ) -> Result<Deployment, String> {
        let deployment = self.deployment(id).await;
        if deployment.status == status {
            Ok(deployment)
        } else {
            Err(format!("{deployment:#?}"))
        }
    }

    async fn look_at_service(&self, id: ServiceId, status: ServiceStatus) -> Result<Service, String> {
        let service = self.service(id).await;
        if service.status == status {
            Ok(service)
        } else {
            Err(format!("{service:#?}"))
        }
    }

    pub(crate) async fn deployment_becomes(&self, id: DeploymentId, status: DeploymentStatus) -> Deployment {
        self.until(&format!("the deployment is {status}"), async || {
            self.look_at_deployment(id, status).await
        })
        .await
    }

    /// The same, where it takes time.
    pub(crate) async fn deployment_comes_to(&self, id: DeploymentId, status: DeploymentStatus) -> Deployment {
        self.pass_until(STEP, &format!("the deployment is {status}"), async || {
            self.look_at_deployment(id, status).await
        })
        .await
    }

    pub(crate) async fn service_becomes(&self, id: ServiceId, status: ServiceStatus) -> Service {
        self.until(&format!("the service is {status}"), async || {
            self.look_at_service(id, status).await
        })
        .await
    }

    /// The same, where it takes time.
    pub(crate) async fn service_comes_to(&self, id: ServiceId, status: ServiceStatus) -> Service {
        self.pass_until(STEP, &format!("the service is {status}"), async || {
            self.look_at_service(id, status).await
        })
        .await
    }

    /// So many instances run in the end, and the site keeps no other.
    pub(crate) async fn running_come_to(&self, count: usize) -> Vec<InstanceId> {
        self.pass_until(STEP, &format!("{count} instances run"), async || {
            let running = self.site.running();
            if running.len() == count && self.site.len() == count {
                Ok(running)
            } else {
                Err(format!("{running:?} of {}", self.site.len()))
            }
        })
        .await
    }

    /// The end of an instance is on record.
    pub(crate) async fn ended(&self, service: ServiceId, id: InstanceId) {
        self.until("the end is on record", async || {
            let instances = self.instances(service).await;
            match instances.iter().find(|instance| instance.id == id) {
                Some(instance) if !instance.status.is_final() => Err(format!("{instance:#?}")),
                _ => Ok(()),
            }
        })
        .await;
    }

    pub(crate) async fn gone(&self, id: ServiceId) {
        self.until("the service is gone", async || {
            match self.store.service_unscoped(id).await {
                Err(tram_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(format!("{error:?}")),
                Ok(service) => Err(format!("{service:#?}\n{:#?}", self.instances(id).await)),
            }
        })
        .await;
    }

    /// The data plane has so many endpoints of the service.
    /// Waits until requests go to so many instances, and the store knows it where these are the first.
    pub(crate) async fn endpoints_become(&self, id: ServiceId, count: usize) -> routing::Service {
        self.until(&format!("the table has {count} endpoints"), async || {
            match self.edge.service(id) {
                Some(routed) if routed.endpoints.len() == count => {
                    let service = self.service(id).await;
                    match count > 0 && service.active_deployment_id.is_none() {
                        false => Ok(routed),
                        true => Err(format!("{service:#?}")),
                    }
                }
                other => Err(format!("{other:#?}")),
            }
        })
        .await
    }

    /// Waits until `look` is content; tells what it saw last when it never is.
    pub(crate) async fn until<T>(&self, what: &str, look: impl AsyncFn() -> Result<T, String>) -> T {
        let began = tokio::time::Instant::now();
        loop {
            match look().await {
                Ok(seen) => return seen,
                Err(last) => {
                    assert!(began.elapsed() < DEADLINE, "never: {what}; the last was {last}");
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }

    /// The same, with the clock moved on by `step` before every other look: for what comes when some time has passed,
    /// however late this machine gets to it.
    pub(crate) async fn pass_until<T>(
        &self,
        step: Duration,
        what: &str,
        look: impl AsyncFn() -> Result<T, String>,
    ) -> T {
        self.until(what, async || {
            let seen = look().await;
            if seen.is_err() {
                self.clock.advance(step);
            }
            seen
        })
        .await
    }

    /// Moves the clock on in steps, so that everything that becomes due on the way happens. What is due in the end may
    /// still be on its way here: wait for it with [`World::pass_until`].
    pub(crate) async fn pass(&self, time: Duration) {
        const STEPS: u32 = 20;
        for _ in 0..STEPS {
            self.clock.advance(time / STEPS);
            tokio::time::sleep(POLL * 3).await;
        }
    }

    pub(crate) fn now(&self) -> tram_types::Timestamp {
        self.clock.now()
    }
}

/// A web service from `image` with `min` instances.
pub(crate) fn web(image: &str, min: u32) -> Value {
    json!({
        "name": "web", "type": "WEB", "regions": ["na"],
        "docker": {"image": image},
        "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}],
        "scalings": [{"min": min, "max": min.max(1)}],
        "instance_types": [{"type": "micro"}],
    })
}
