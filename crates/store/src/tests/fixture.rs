//! An open store with a clock that the test sets, and short ways to make things in it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tram_types::{
    AppId, Clock, DeploymentId, DomainId, InstanceId, OrganizationId, ProjectId, RegionalDeploymentId,
    ServiceId, Timestamp,
    status::{AppStatus, DeploymentStatus, DomainStatus, DomainType, InstanceStatus, ServiceType},
};

use crate::{
    Options, Store,
    intent::{
        Deployed, InstanceSet, NewApp, NewDeployment, NewDomain, NewRegionalDeployment, NewService, Update,
    },
    keyring,
    record::{App, Instance},
};

#[derive(Debug)]
pub(super) struct TestClock(AtomicI64);

impl TestClock {
    pub(super) fn advance(&self, by: Duration) {
        self.0
            .fetch_add(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }

    pub(super) fn go_back(&self, by: Duration) {
        self.0
            .fetch_sub(i64::try_from(by.as_micros()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

pub(super) struct Fixture {
    pub(super) store: Store,
    pub(super) clock: Arc<TestClock>,
    pub(super) options: Options,
    pub(super) directory: tempfile::TempDir,
}

impl Fixture {
    pub(super) async fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("state/tram.db").display());
        Self::open(directory, url).await
    }

    pub(super) async fn postgres(url: String) -> Self {
        Self::open(tempfile::tempdir().unwrap(), url).await
    }

    async fn open(directory: tempfile::TempDir, database_url: String) -> Self {
        let clock = Arc::new(TestClock(AtomicI64::new(1_795_000_000_000_000)));
        let options = Options {
            database_url,
            keyring: keyring::Settings {
                path: directory.path().join("keys/keyring"),
                create: true,
            },
            proxy_ports: 20_000..=20_003,
            clock: Arc::<TestClock>::clone(&clock),
        };
        let store = Store::open(options.clone()).await.unwrap();
        Self {
            store,
            clock,
            options,
            directory,
        }
    }

    pub(super) fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(super) async fn organization(&self) -> (OrganizationId, ProjectId) {
        let (id, project) = (OrganizationId::random(), ProjectId::random());
        self.store
            .create_organization(id, &format!("org-{}", id.short()), project, "default")
            .await
            .unwrap();
        (id, project)
    }

    pub(super) async fn app(&self, organization: OrganizationId) -> App {
        self.store
            .create_app(new_app(organization, &format!("app-{}", AppId::random().short())))
            .await
            .unwrap()
    }

    /// A service called `web` in an app of its own.
    pub(super) async fn service(&self, organization: OrganizationId) -> Deployed {
        let app = self.app(organization).await;
        self.store.create_service(new_service(&app, "web")).await.unwrap()
    }

    /// An instance of the newest deployment.
    pub(super) async fn instance(&self, of: &Deployed) -> Instance {
        let instance = new_instance(of, self.clock.now());
        self.store
            .apply(
                of.service.id,
                vec![Update::InsertInstance(Box::new(instance.clone()))],
            )
            .await
            .unwrap();
        instance
    }

    /// Ends an instance and has it forgotten.
    pub(super) async fn end(&self, instance: &Instance) {
        let set = InstanceSet {
            status: Some(InstanceStatus::Stopped),
            forgotten: Some(true),
            terminated_at: Some(Some(self.clock.now())),
            ..InstanceSet::default()
        };
        self.store
            .apply(
                instance.service_id,
                vec![Update::Instance {
                    id: instance.id,
                    expected: instance.status,
                    set: Box::new(set),
                }],
            )
            .await
            .unwrap();
    }
}

pub(super) fn new_app(organization: OrganizationId, name: &str) -> NewApp {
    NewApp {
        id: AppId::random(),
        organization_id: organization,
        name: name.to_owned(),
        status: AppStatus::Healthy,
        delete_when_empty: false,
    }
}

pub(super) fn new_domain(organization: OrganizationId, app: Option<AppId>, name: &str) -> NewDomain {
    NewDomain {
        id: DomainId::random(),
        organization_id: organization,
        project_id: None,
        app_id: app,
        name: name.to_owned(),
        kind: DomainType::Autoassigned,
        status: DomainStatus::Active,
        intended_cname: String::new(),
        load_balancer: json!({"cloudflare": {}}),
    }
}

pub(super) fn new_service(app: &App, name: &str) -> NewService {
    NewService {
        id: ServiceId::random(),
        organization_id: app.organization_id,
        project_id: None,
        app_id: app.id,
        name: name.to_owned(),
        kind: ServiceType::Web,
        delete_after_create_seconds: 0,
        delete_after_sleep_seconds: 0,
        deployment: new_deployment(),
        proxy_ports: vec![],
    }
}

pub(super) fn new_deployment() -> NewDeployment {
    NewDeployment {
        id: DeploymentId::random(),
        definition: json!({"name": "web", "docker": {"image": "nginx"}, "env": [{"key": "A", "value": "{{ secret.B }}"}]}),
        metadata: json!({"trigger": {"type": "UNKNOWN_TYPE"}}),
        status: DeploymentStatus::Pending,
        skip_build: false,
        deployment_group: "prod".to_owned(),
        instance_snapshot_id: String::new(),
        created_by: String::new(),
        regional: vec![NewRegionalDeployment {
            id: RegionalDeploymentId::random(),
            region: "fra".to_owned(),
            definition: json!({"region": "fra"}),
        }],
    }
}

pub(super) fn new_instance(of: &Deployed, now: Timestamp) -> Instance {
    Instance {
        id: InstanceId::random(),
        organization_id: of.service.organization_id,
        app_id: of.service.app_id,
        service_id: of.service.id,
        deployment_id: of.deployment.id,
        regional_deployment_id: of.regional[0].id,
        region: "fra".to_owned(),
        datacenter: "fra1".to_owned(),
        site: "local".to_owned(),
        instance_type: "nano".to_owned(),
        replica_index: 0,
        status: InstanceStatus::Allocating,
        messages: vec![],
        generation: tram_types::Generation(1),
        address: String::new(),
        forgotten: false,
        created_at: now,
        updated_at: now,
        started_at: None,
        succeeded_at: None,
        terminated_at: None,
    }
}
