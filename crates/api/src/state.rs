//! What the API needs of the rest of the house, given once at the start.
//!
//! The API knows the store and the contract of sites. Everything else it needs from outside is a trait here, which
//! the composition root implements: whether an image can be had, whether a domain leads here, and the figures that the
//! edge and the sites measured.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::HeaderValue;
use tram_model::ModelStore;
use tram_site::{RegistryCredentials, Sites};
use tram_store::{
    Store,
    record::{Credential, Domain},
};
use tram_types::{
    Clock, InstanceId, OrganizationId, ProjectId, ServiceId, ServicePoolId, Timestamp, catalog::Catalog,
    status::MetricName,
};

use crate::{
    auth::FailureLimit,
    inference::{Budgets, Front, Places},
    known::Known,
    scaling::{NoScaling, ScalingSource},
    turns::Turns,
    wire::helper::VerifyDockerImageReplyErrCode,
};

/// Everything a handler may use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// What we keep.
    pub store: Store,
    /// Where instances run: for logs, commands and usage.
    pub sites: Sites,
    /// What there is to run on.
    pub catalog: Arc<Catalog>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What the operator chose.
    pub settings: Arc<Settings>,
    /// Says whether an image can be had.
    pub verifier: Arc<dyn ImageVerifier>,
    /// Says whether custom domains lead here.
    pub domains: Arc<dyn DomainChecker>,
    /// Has the figures.
    pub metrics: Arc<dyn MetricsSource>,
    /// Knows what the load decided.
    pub scaling: Arc<dyn ScalingSource>,
    /// The models of this installation; `None`: it serves none.
    pub models: Option<ModelStore>,
    /// The way to what serves models; `None`: nothing does.
    pub front: Option<Front>,
    /// What may be asked of models.
    pub budgets: Arc<Budgets>,
    /// Is told of claims.
    pub claims: Arc<dyn ClaimObserver>,
    /// How often tokens failed, by address.
    pub failures: Arc<FailureLimit>,
    /// Whose turn it is to change an app's services.
    pub(crate) turns: Arc<Turns>,
    /// What was read of the store a moment ago.
    pub(crate) known: Arc<KnownOfStore>,
}

/// What each question to a model needs of the store.
#[derive(Debug, Default)]
pub(crate) struct KnownOfStore {
    /// Good tokens, by their hashes.
    pub(crate) credentials: Known<String, Credential>,
    /// Where names of models lead, for whom.
    pub(crate) places: Known<(OrganizationId, Option<ProjectId>, String), Arc<Places>>,
}

impl ApiState {
    /// A state with no failed authentication yet.
    #[must_use]
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of the house, each once, in one call of one place"
    )]
    pub fn new(
        store: Store,
        sites: Sites,
        catalog: Arc<Catalog>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        verifier: Arc<dyn ImageVerifier>,
        domains: Arc<dyn DomainChecker>,
        metrics: Arc<dyn MetricsSource>,
    ) -> Self {
        Self {
            budgets: Arc::new(Budgets::new(store.clone(), Arc::clone(&clock))),
            store,
            sites,
            catalog,
            clock,
            settings: Arc::new(settings),
            verifier,
            domains,
            metrics,
            scaling: Arc::new(NoScaling),
            claims: Arc::new(NobodyCounts),
            models: None,
            front: None,
            failures: Arc::new(FailureLimit::default()),
            turns: Arc::default(),
            known: Arc::default(),
        }
    }
}

impl ApiState {
    /// The same, with somebody who knows what the load decides.
    #[must_use]
    pub fn with_scaling(mut self, scaling: Arc<dyn ScalingSource>) -> Self {
        self.scaling = scaling;
        self
    }

    /// The same, with budgets that somebody settles.
    #[must_use]
    pub fn with_budgets(mut self, budgets: Arc<Budgets>) -> Self {
        self.budgets = budgets;
        self
    }

    /// The same, with somebody who is told of claims.
    #[must_use]
    pub fn with_claims(mut self, claims: Arc<dyn ClaimObserver>) -> Self {
        self.claims = claims;
        self
    }

    /// The same, with models to serve, and the way to what serves them.
    #[must_use]
    pub fn with_models(mut self, models: ModelStore, front: Front) -> Self {
        self.models = Some(models);
        self.front = Some(front);
        self
    }
}

/// What the operator chose, as far as the contract shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Domain under which apps get their names, such as `localhost`.
    pub base_domain: String,
    /// Where this API is reached, such as `http://127.0.0.1:8080`; named in the OpenAPI document.
    pub api_url: String,
    /// Where sandboxes are reached, without a slash at the end: clients add `/koyeb-sandbox` or `/r/<key>/`.
    pub sandbox_url: String,
    /// The edge's port for HTTPS: where it is not the usual one, domains say their whole URL.
    pub https_port: u16,
    /// Host that clients of proxied TCP ports connect to.
    pub proxy_host: String,
    /// Days that logs are kept.
    pub logs_retention_days: u32,
    /// Days that figures are kept.
    pub metrics_retention_days: u32,
    /// How many snapshots of each type an organization may have of its instances.
    pub snapshots_max: u32,
    /// How many bytes they may take together; `None`: what the disk has.
    pub snapshot_bytes_max: Option<u64>,
    /// How many services the pools of an organization may keep ready together.
    pub pool_members_max: u32,
    /// Origins of web pages that may call this API from a browser, such as `https://panel.example.org`; none: no page
    /// of another origin may.
    pub allowed_origins: Vec<HeaderValue>,
}

/// Is told of claims; metrics hang on it.
pub trait ClaimObserver: Send + Sync + Debug {
    /// A claim of a pool was answered for the first time: with a member that was ready, or with a service that was made for
    /// it.
    fn claimed(&self, pool: ServicePoolId, prewarmed: bool, took: Duration);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy)]
struct NobodyCounts;

impl ClaimObserver for NobodyCounts {
    fn claimed(&self, _pool: ServicePoolId, _prewarmed: bool, _took: Duration) {}
}

/// Says whether an image can be had.
#[async_trait]
pub trait ImageVerifier: Send + Sync + Debug {
    /// Looks an image up in its registry without pulling it.
    async fn verify(&self, image: &str, credentials: Option<RegistryCredentials>) -> ImageVerdict;
}

/// Whether an image can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageVerdict {
    /// It can.
    Good,
    /// It cannot.
    Bad {
        /// For programs.
        code: VerifyDockerImageReplyErrCode,
        /// For people: what is wrong and what to do.
        reason: String,
    },
}

/// Says whether a custom domain leads here, and records it: by the same rule, whoever asks.
#[async_trait]
pub trait DomainChecker: Send + Sync + Debug {
    /// Looks a domain up now.
    ///
    /// # Errors
    /// Those of the store.
    async fn check(&self, domain: &Domain) -> Result<DomainVerdict, tram_store::Error>;
}

/// What a look at a domain gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainVerdict {
    /// Its status is what was found.
    Recorded,
    /// The DNS gave no answer, and nothing was changed.
    Unanswered,
}

/// Has the figures that were measured.
#[async_trait]
pub trait MetricsSource: Send + Sync + Debug {
    /// The series that answer a query; none when nothing was measured.
    async fn query(&self, query: &MetricsQuery) -> Result<Vec<MetricSeries>, MetricsError>;
}

/// Which figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsQuery {
    /// What was measured.
    pub name: MetricName,
    /// Of this service.
    pub service: ServiceId,
    /// Of these instances only; empty: all of the service's.
    pub instances: Vec<InstanceId>,
    /// From here, included.
    pub start: Timestamp,
    /// To here, excluded.
    pub end: Timestamp,
    /// One point for each such span.
    pub step: Duration,
}

/// One line of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricSeries {
    /// What it is of: `instance_id`, or `code` (`1xx` … `5xx`) for throughput.
    pub labels: BTreeMap<String, String>,
    /// Its points, oldest first.
    pub samples: Vec<(Timestamp, f64)>,
}

/// The figures cannot be had now.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct MetricsError {
    /// What was being done.
    pub message: String,
    /// Why it failed.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
