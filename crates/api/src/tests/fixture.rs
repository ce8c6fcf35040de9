//! An API with two organizations and a way to talk to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use axum::{Router, body::Body};
use http::{HeaderValue, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;
use tram_site::{RegistryCredentials, Sites};
use tram_store::{
    Options, Store,
    intent::{DomainEdit, NewCredential},
    keyring,
    record::{Domain, Organization, Role},
};
use tram_testkit::{FakeClock, FakeSite};
use tram_types::{
    Clock, CredentialId, OrganizationId, ProjectId, Timestamp,
    catalog::Catalog,
    status::{CredentialType, DomainStatus},
    units::GIB,
};

use crate::{
    ApiState, DomainChecker, DomainVerdict, ImageVerdict, ImageVerifier, MetricSeries, MetricsError,
    MetricsQuery, MetricsSource, Settings, wire::helper::VerifyDockerImageReplyErrCode,
};

/// The one page that may call the API from a browser.
pub(super) const PANEL: &str = "https://panel.example.org";

/// One API with its store, and tokens to call it with.
pub(super) struct Fixture {
    pub(super) api: ApiState,
    pub(super) router: Router,
    pub(super) site: Arc<FakeSite>,
    pub(super) dns: Arc<Dns>,
    pub(super) clock: Arc<FakeClock>,
    pub(super) acme: Tenant,
    pub(super) other: Tenant,
    _directories: (tempfile::TempDir, tempfile::TempDir),
}

/// An organization and its tokens.
pub(super) struct Tenant {
    pub(super) organization: Organization,
    pub(super) owner: String,
    pub(super) reader: String,
    pub(super) user: String,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: http::HeaderMap,
    pub(super) body: Value,
}

impl Reply {
    /// The body of an answer that must be good.
    #[track_caller]
    pub(super) fn good(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        self.body
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub(super) fn bad(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(self.body["status"], status, "{}", self.body);
        assert!(
            self.body["code"].is_string() && self.body["message"].is_string(),
            "{}",
            self.body
        );
        self.body
    }
}

#[derive(Debug)]
struct Verifier;

#[async_trait]
impl ImageVerifier for Verifier {
    async fn verify(&self, image: &str, credentials: Option<RegistryCredentials>) -> ImageVerdict {
        match (image, credentials) {
            ("private/app", Some(found)) if found.password == "p" => ImageVerdict::Good,
            ("nginx", None) => ImageVerdict::Good,
            _ => ImageVerdict::Bad {
                code: VerifyDockerImageReplyErrCode::AnonNotFound,
                reason: format!("there is no image `{image}`"),
            },
        }
    }
}

/// Finds that every domain leads here, as below `localhost`, unless the DNS is silent.
#[derive(Debug)]
pub(super) struct Dns {
    store: Store,
    pub(super) is_silent: std::sync::atomic::AtomicBool,
}

#[async_trait]
impl DomainChecker for Dns {
    async fn check(&self, domain: &Domain) -> Result<DomainVerdict, tram_store::Error> {
        if self.is_silent.load(std::sync::atomic::Ordering::Relaxed) {
            return Ok(DomainVerdict::Unanswered);
        }
        let edit = DomainEdit {
            status: Some(DomainStatus::Active),
            ..DomainEdit::default()
        };
        self.store
            .update_domain(domain.organization_id, domain.id, &edit)
            .await?;
        Ok(DomainVerdict::Recorded)
    }
}

#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) asked: Mutex<Vec<MetricsQuery>>,
}

#[async_trait]
impl MetricsSource for Figures {
    async fn query(&self, query: &MetricsQuery) -> Result<Vec<MetricSeries>, MetricsError> {
        self.asked.lock().unwrap().push(query.clone());
        Ok(vec![MetricSeries {
            labels: BTreeMap::from([("code".to_owned(), "2xx".to_owned())]),
            samples: vec![(query.start, 1.5)],
        }])
    }
}

impl Fixture {
    pub(super) async fn new() -> Self {
        Self::at("http://sandboxes.localhost:8080/").await
    }

    async fn at(sandbox_url: &str) -> Self {
        let directories = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let clock = Arc::new(FakeClock::at(Timestamp::from_micros(1_790_000_000_000_000)));
        let store = Store::open(Options {
            database_url: format!("sqlite://{}", directories.0.path().join("tram.db").display()),
            keyring: keyring::Settings {
                path: directories.1.path().join("keys"),
                create: true,
            },
            proxy_ports: 20_000..=20_009,
            clock: Arc::<FakeClock>::clone(&clock),
        })
        .await
        .unwrap();
        let site = Arc::new(FakeSite::new(Arc::<FakeClock>::clone(&clock)));
        let acme = Tenant::new(&store, "acme", "ana").await;
        let other = Tenant::new(&store, "other", "otto").await;
        let dns = Arc::new(Dns {
            store: store.clone(),
            is_silent: false.into(),
        });
        let api = ApiState::new(
            store,
            Sites::single("fra", Arc::<FakeSite>::clone(&site)),
            Arc::new(Catalog::local("fra", "Frankfurt", 4000, 8 * GIB)),
            Arc::<FakeClock>::clone(&clock),
            Settings {
                base_domain: "tram.localhost".to_owned(),
                api_url: "http://127.0.0.1:8080".to_owned(),
                sandbox_url: sandbox_url.to_owned(),
                https_port: 443,
                proxy_host: "proxy.localhost".to_owned(),
                snapshots_max: 1000,
                snapshot_bytes_max: None,
                pool_members_max: 1000,
                logs_retention_days: 7,
                metrics_retention_days: 7,
                allowed_origins: vec![HeaderValue::from_static(PANEL)],
            },
            Arc::new(Verifier),
            Arc::clone(&dns) as Arc<dyn DomainChecker>,
            Arc::new(Figures::default()),
        );
        Self {
            router: crate::router(api.clone()),
            api,
            site,
            dns,
            clock,
            acme,
            other,
            _directories: directories,
        }
    }

    /// Calls with any token and any body.
    pub(super) async fn send(&self, token: Option<&str>, method: Method, path: &str, body: Vec<u8>) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.call(request.body(Body::from(body)).unwrap()).await
    }

    /// Forgets how often tokens failed.
    pub(super) fn forget_failures(&mut self) {
        self.api.failures = Arc::default();
        self.router = crate::router(self.api.clone());
    }

    /// Reads for one project, as newer clients do.
    pub(super) async fn get_in(&self, project: &str, path: &str) -> Reply {
        let request = Request::get(path)
            .header("authorization", format!("Bearer {}", self.acme.owner))
            .header("x-koyeb-project-id", project);
        self.call(request.body(Body::empty()).unwrap()).await
    }

    /// Calls with any request.
    pub(super) async fn call(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, 64 * 1024 * 1024).await.unwrap();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
        }
    }

    pub(super) async fn get(&self, path: &str) -> Reply {
        self.send(Some(&self.acme.owner), Method::GET, path, Vec::new())
            .await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Reply {
        self.with(Method::POST, path, body).await
    }

    pub(super) async fn with(&self, method: Method, path: &str, body: Value) -> Reply {
        self.send(
            Some(&self.acme.owner),
            method,
            path,
            body.to_string().into_bytes(),
        )
        .await
    }

    /// Makes an app; gives its id.
    pub(super) async fn app(&self, name: &str) -> String {
        text(&self.post("/v1/apps", json!({ "name": name })).await.good()["app"]["id"])
    }

    /// Makes a service from an image; gives the service.
    pub(super) async fn service(&self, app: &str, name: &str, path: &str) -> Value {
        let body = json!({"app_id": app, "definition": web(name, path)});
        self.post("/v1/services", body).await.good()["service"].clone()
    }
}

/// The definition of a web service.
pub(super) fn web(name: &str, path: &str) -> Value {
    json!({
        "name": name, "type": "WEB", "regions": ["na"], "docker": {"image": "nginx"},
        "ports": [{"port": 80, "protocol": "http"}], "routes": [{"port": 80, "path": path}],
        "instance_types": [{"type": "nano"}], "scalings": [{"min": 1, "max": 1}],
        "env": [{"key": "GREETING", "value": "{{ KOYEB_APP_NAME }}"}],
    })
}

/// A member that must be text.
#[track_caller]
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

impl Tenant {
    async fn new(store: &Store, name: &str, user: &str) -> Self {
        let id = OrganizationId::random();
        let organization = store
            .create_organization(id, name, ProjectId::random(), "default")
            .await
            .unwrap();
        let mut tokens = Vec::new();
        for (role, user) in [(Role::Owner, ""), (Role::ReadOnly, ""), (Role::Owner, user)] {
            let token = crate::resources::credentials::random_token();
            store
                .create_credential(NewCredential {
                    id: CredentialId::random(),
                    organization_id: id,
                    user_id: user.to_owned(),
                    kind: match user {
                        "" => CredentialType::Organization,
                        _ => CredentialType::User,
                    },
                    role,
                    name: format!("{name} {role}"),
                    description: String::new(),
                    token_sha256: tram_store::token_sha256(&token),
                    expires_at: None,
                })
                .await
                .unwrap();
            tokens.push(token);
        }
        let mut tokens = tokens.into_iter();
        Self {
            organization,
            owner: tokens.next().unwrap(),
            reader: tokens.next().unwrap(),
            user: tokens.next().unwrap(),
        }
    }
}

impl Fixture {
    /// An instance of a service as the controller would have made it, running at the fake site.
    pub(super) async fn instance(&self, service: &Value) -> tram_store::record::Instance {
        use tram_store::{intent::Update, record::Instance};
        use tram_types::{Generation, InstanceId, ServiceId, status::InstanceStatus};
        let organization = self.acme.organization.id;
        let service: ServiceId = text(&service["id"]).parse().unwrap();
        let service = self.api.store.service(organization, service).await.unwrap();
        let deployment = service.latest_deployment_id.unwrap();
        let filter = tram_store::filter::RegionalDeployments {
            deployment_id: Some(deployment),
            ..Default::default()
        };
        let page = tram_store::Page::default();
        let regional = self
            .api
            .store
            .list_regional_deployments(organization, &filter, page)
            .await
            .unwrap();
        let now = self.clock.now();
        let instance = Instance {
            id: InstanceId::random(),
            organization_id: organization,
            app_id: service.app_id,
            service_id: service.id,
            deployment_id: deployment,
            regional_deployment_id: regional.items[0].id,
            region: "fra".to_owned(),
            datacenter: "fra1".to_owned(),
            site: "local".to_owned(),
            instance_type: "nano".to_owned(),
            replica_index: 0,
            status: InstanceStatus::Healthy,
            messages: Vec::new(),
            generation: Generation(1),
            address: "127.0.0.1".to_owned(),
            forgotten: false,
            created_at: now,
            updated_at: now,
            started_at: Some(now),
            succeeded_at: Some(now),
            terminated_at: None,
        };
        self.api
            .store
            .apply(
                service.id,
                vec![Update::InsertInstance(Box::new(instance.clone()))],
            )
            .await
            .unwrap();
        instance
    }

    /// Confirms a pause, as the controller would have done.
    pub(super) async fn paused(&self, service: &Value) {
        use tram_store::intent::{ServiceSet, Update};
        use tram_types::{ServiceId, status::ServiceStatus};
        let service: ServiceId = text(&service["id"]).parse().unwrap();
        let set = ServiceSet {
            status: Some(ServiceStatus::Paused),
            ..ServiceSet::default()
        };
        let update = Update::Service {
            expected: ServiceStatus::Pausing,
            set: Box::new(set),
        };
        self.api.store.apply(service, vec![update]).await.unwrap();
    }

    /// Confirms that the newest deployment of a service is healthy, as the controller would have done.
    pub(super) async fn healthy(&self, service: &Value) {
        use tram_store::intent::{DeploymentSet, Update};
        use tram_types::{DeploymentId, ServiceId, status::DeploymentStatus};
        let id: ServiceId = text(&service["id"]).parse().unwrap();
        let deployment: DeploymentId = text(&service["latest_deployment_id"]).parse().unwrap();
        let set = DeploymentSet {
            status: Some(DeploymentStatus::Healthy),
            ..DeploymentSet::default()
        };
        let update = Update::Deployment {
            id: deployment,
            expected: DeploymentStatus::Pending,
            set: Box::new(set),
        };
        self.api.store.apply(id, vec![update]).await.unwrap();
    }
}
