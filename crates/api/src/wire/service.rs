//! Services.

use tram_types::{
    Int64, Timestamp,
    definition::DeploymentDefinition,
    status::{ServiceStatus, ServiceType},
};

use super::deployment::{Deployment, DeploymentMetadata};

tram_types::message! {
    /// What a user keeps running.
    pub struct Service {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub started_at: Option<Timestamp>,
        pub succeeded_at: Option<Timestamp>,
        pub paused_at: Option<Timestamp>,
        pub resumed_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
        pub name: String,
        pub r#type: ServiceType,
        pub organization_id: String,
        pub app_id: String,
        pub status: ServiceStatus,
        pub messages: Vec<String>,
        pub version: Int64,
        pub active_deployment_id: String,
        pub latest_deployment_id: String,
        pub last_provisioned_deployment_id: String,
        pub state: Option<ServiceState>,
        pub life_cycle: Option<ServiceLifeCycle>,
        pub project_id: String,
        pub service_account_id: String,
    }

    /// A service as lists show it.
    pub struct ServiceListItem {
        pub id: String,
        pub name: String,
        pub r#type: ServiceType,
        pub organization_id: String,
        pub app_id: String,
        pub updated_at: Option<Timestamp>,
        pub created_at: Option<Timestamp>,
        pub status: ServiceStatus,
        pub messages: Vec<String>,
        pub version: Int64,
        pub state: Option<ServiceState>,
        pub active_deployment_id: String,
        pub latest_deployment_id: String,
        pub life_cycle: Option<ServiceLifeCycle>,
        pub project_id: String,
        pub service_account_id: String,
    }

    /// What a service is meant to run.
    pub struct ServiceState {
        pub desired_deployment: Option<DesiredDeployment>,
        pub auto_release: Option<AutoRelease>,
    }

    /// The deployments meant to serve.
    pub struct DesiredDeployment {
        pub groups: Vec<DesiredDeploymentGroup>,
    }

    /// The deployments of one group.
    #[schema(as = DesiredDeployment::Group)]
    pub struct DesiredDeploymentGroup {
        pub name: String,
        pub deployment_ids: Vec<String>,
    }

    /// What pushes release.
    pub struct AutoRelease {
        pub groups: Vec<AutoReleaseGroup>,
    }

    /// What pushes release in one group.
    #[schema(as = AutoRelease::Group)]
    pub struct AutoReleaseGroup {
        pub name: String,
        pub repository: String,
        pub git_ref: String,
        pub latest_sha: String,
    }

    /// When a service goes by itself, in seconds; 0 is never.
    pub struct ServiceLifeCycle {
        pub delete_after_sleep: i64,
        pub delete_after_create: i64,
    }

    /// A service to make.
    pub struct CreateService {
        pub app_id: String,
        pub definition: Option<DeploymentDefinition>,
        pub life_cycle: Option<ServiceLifeCycle>,
        pub project_id: String,
        pub name: String,
        pub instance_snapshot_id: String,
        pub service_account_id: String,
    }

    /// What to change of a service.
    pub struct UpdateService {
        pub definition: Option<DeploymentDefinition>,
        pub metadata: Option<DeploymentMetadata>,
        pub skip_build: bool,
        pub save_only: bool,
        pub life_cycle: Option<ServiceLifeCycle>,
        pub instance_snapshot_id: String,
    }

    /// The answer of `create service`.
    pub struct CreateServiceReply {
        pub service: Option<Service>,
    }

    /// The answer of `get service`.
    pub struct GetServiceReply {
        pub service: Option<Service>,
    }

    /// The answer of `list services`.
    pub struct ListServicesReply {
        pub services: Vec<ServiceListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }

    /// The answer of `update service`.
    pub struct UpdateServiceReply {
        pub service: Option<Service>,
    }

    /// The empty answer of `delete service`.
    pub struct DeleteServiceReply {}

    /// The empty answer of `pause service`.
    pub struct PauseServiceReply {}

    /// The empty answer of `resume service`.
    pub struct ResumeServiceReply {}

    /// How to deploy again.
    #[schema(as = RedeployRequest::Info)]
    pub struct RedeployRequestInfo {
        pub deployment_group: String,
        pub sha: String,
        pub use_cache: bool,
        pub skip_build: bool,
    }

    /// The answer of `redeploy`.
    pub struct RedeployReply {
        pub deployment: Option<Deployment>,
    }

    /// A number of instances set by hand.
    pub struct ManualServiceScaling {
        pub scopes: Vec<String>,
        pub instances: i64,
    }

    /// Numbers of instances set by hand.
    pub struct UpdateServiceScalingRequest {
        pub scalings: Vec<ManualServiceScaling>,
    }

    /// The answer of `get service scaling`.
    pub struct GetServiceScalingReply {
        pub scalings: Vec<ManualServiceScaling>,
    }

    /// The empty answer of `update service scaling`.
    pub struct UpdateServiceScalingReply {}

    /// The empty answer of `delete service scaling`.
    pub struct DeleteServiceScalingReply {}

    /// A definition whose variables are asked for.
    pub struct AutocompleteRequest {
        pub definition: Option<DeploymentDefinition>,
    }

    /// The answer of `autocomplete`.
    pub struct AutocompleteReply {
        pub secrets: Vec<String>,
        pub user_env: Vec<String>,
        pub system_env: Vec<String>,
    }
}
