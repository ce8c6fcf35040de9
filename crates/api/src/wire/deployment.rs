//! Deployments.

use tram_types::{
    Int64, Timestamp,
    definition::DeploymentDefinition,
    status::{
        ActorType, DeploymentRole, DeploymentStatus, GitProvider, ProxyPortProtocol, StageStatus, TriggerType,
    },
};

use super::instance::Instance;

tram_types::message! {
    /// One immutable version of a service.
    pub struct Deployment {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub allocated_at: Option<Timestamp>,
        pub started_at: Option<Timestamp>,
        pub succeeded_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
        pub organization_id: String,
        pub app_id: String,
        pub service_id: String,
        pub parent_id: String,
        pub child_id: String,
        pub status: DeploymentStatus,
        pub metadata: Option<DeploymentMetadata>,
        pub definition: Option<DeploymentDefinition>,
        pub messages: Vec<String>,
        pub provisioning_info: Option<DeploymentProvisioningInfo>,
        pub database_info: Option<DeploymentDatabaseInfo>,
        pub skip_build: bool,
        pub role: DeploymentRole,
        pub version: Int64,
        pub deployment_group: String,
        pub project_id: String,
        pub instance_snapshot_id: String,
        pub created_by: String,
    }

    /// A deployment as lists show it.
    pub struct DeploymentListItem {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub allocated_at: Option<Timestamp>,
        pub started_at: Option<Timestamp>,
        pub succeeded_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
        pub organization_id: String,
        pub app_id: String,
        pub service_id: String,
        pub parent_id: String,
        pub child_id: String,
        pub status: DeploymentStatus,
        pub metadata: Option<DeploymentMetadata>,
        pub definition: Option<DeploymentDefinition>,
        pub messages: Vec<String>,
        pub provisioning_info: Option<DeploymentProvisioningInfo>,
        pub database_info: Option<DeploymentDatabaseInfo>,
        pub version: Int64,
        pub deployment_group: String,
        pub project_id: String,
        pub instance_snapshot_id: String,
        pub created_by: String,
    }

    /// What the platform knows of a deployment beside its definition.
    pub struct DeploymentMetadata {
        pub trigger: Option<TriggerDeploymentMetadata>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub database: Option<DatabaseDeploymentMetadata>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub git: Option<GitDeploymentMetadata>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub archive: Option<ArchiveDeploymentMetadata>,
        pub proxy_ports: Vec<DeploymentProxyPortMetadata>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub sandbox: Option<SandboxMetadata>,
    }

    /// What made a deployment.
    pub struct TriggerDeploymentMetadata {
        pub r#type: TriggerType,
        pub actor: ActorType,
        pub git: Option<TriggerGitDeploymentMetadata>,
    }

    /// The push that made a deployment.
    pub struct TriggerGitDeploymentMetadata {
        pub provider: GitProvider,
        pub repository: String,
        pub branch: String,
        pub sha: String,
        pub message: String,
        pub sender_username: String,
        pub sender_avatar_url: String,
        pub sender_profile_url: String,
    }

    /// Orders to a database.
    pub struct DatabaseDeploymentMetadata {
        pub neon_postgres: Option<NeonPostgresDatabaseDeploymentMetadata>,
    }

    /// Orders to a PostgreSQL.
    pub struct NeonPostgresDatabaseDeploymentMetadata {
        pub reset_role_passwords: Vec<String>,
    }

    /// The sources of a deployment.
    pub struct GitDeploymentMetadata {
        pub last_provisioned_deployment_id: String,
        pub git_env: Option<GitEnvDeploymentMetadata>,
    }

    /// The commit of a deployment.
    pub struct GitEnvDeploymentMetadata {
        pub sha: String,
        pub commit_author: String,
        pub commit_message: String,
    }

    /// The uploaded sources of a deployment.
    pub struct ArchiveDeploymentMetadata {
        pub last_provisioned_deployment_id: String,
    }

    /// Where a proxied port is reached.
    pub struct DeploymentProxyPortMetadata {
        pub host: String,
        pub public_port: i64,
        pub port: i64,
        pub protocol: ProxyPortProtocol,
    }

    /// How a sandbox is reached.
    pub struct SandboxMetadata {
        pub public_url: String,
        pub routing_key: String,
    }

    /// How the image came to be.
    pub struct DeploymentProvisioningInfo {
        pub sha: String,
        pub image: String,
        pub stages: Vec<DeploymentProvisioningInfoStage>,
    }

    /// One stage of provisioning.
    #[schema(as = DeploymentProvisioningInfo::Stage)]
    pub struct DeploymentProvisioningInfoStage {
        pub name: String,
        pub status: StageStatus,
        pub messages: Vec<String>,
        pub started_at: Option<Timestamp>,
        pub finished_at: Option<Timestamp>,
        pub build_attempts: Vec<DeploymentProvisioningInfoStageBuildAttempt>,
    }

    /// One attempt at a stage.
    #[schema(as = DeploymentProvisioningInfo::Stage::BuildAttempt)]
    pub struct DeploymentProvisioningInfoStageBuildAttempt {
        pub id: i64,
        pub status: StageStatus,
        pub messages: Vec<String>,
        pub started_at: Option<Timestamp>,
        pub finished_at: Option<Timestamp>,
        pub steps: Vec<DeploymentProvisioningInfoStageBuildAttemptBuildStep>,
        pub image_pushed: bool,
        pub internal_failure: bool,
        pub retryable_failure: bool,
        pub wait_completion: bool,
    }

    /// One step of an attempt.
    #[schema(as = DeploymentProvisioningInfo::Stage::BuildAttempt::BuildStep)]
    pub struct DeploymentProvisioningInfoStageBuildAttemptBuildStep {
        pub name: String,
        pub status: StageStatus,
        pub messages: Vec<String>,
        pub started_at: Option<Timestamp>,
        pub finished_at: Option<Timestamp>,
    }

    /// What is known of a database.
    pub struct DeploymentDatabaseInfo {
        pub neon_postgres: Option<DeploymentNeonPostgresDatabaseInfo>,
    }

    /// What is known of a PostgreSQL.
    pub struct DeploymentNeonPostgresDatabaseInfo {
        pub active_time_seconds: Int64,
        pub compute_time_seconds: Int64,
        pub written_data_bytes: Int64,
        pub data_transfer_bytes: Int64,
        pub data_storage_bytes_hour: Int64,
        pub server_host: String,
        pub server_port: i64,
        pub endpoint_state: String,
        pub endpoint_last_active: Option<Timestamp>,
        pub default_branch_id: String,
        pub default_branch_name: String,
        pub default_branch_state: String,
        pub default_branch_logical_size: Int64,
        pub roles: Vec<DeploymentNeonPostgresDatabaseInfoRole>,
    }

    /// A role of a PostgreSQL.
    pub struct DeploymentNeonPostgresDatabaseInfoRole {
        pub name: String,
        pub secret_id: String,
    }

    /// The answer of `get deployment`.
    pub struct GetDeploymentReply {
        pub deployment: Option<Deployment>,
    }

    /// The answer of `list deployments`.
    pub struct ListDeploymentsReply {
        pub deployments: Vec<DeploymentListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }

    /// The empty answer of `cancel deployment`.
    pub struct CancelDeploymentReply {}

    /// The answer of `get deployment scaling`.
    pub struct GetDeploymentScalingReply {
        pub replicas: Vec<GetDeploymentScalingReplyItem>,
        /// How many instances each region should have, and why. An addition of ours; empty: the deployment does not run.
        pub decisions: Vec<DeploymentScalingDecision>,
    }

    /// How many instances a deployment should have in one region, and why.
    pub struct DeploymentScalingDecision {
        pub region: String,
        /// How many there should be.
        pub wanted: i64,
        /// How many are healthy.
        pub ready: i64,
        /// Fewest, by the definition.
        pub min: i64,
        /// Most, by the definition.
        pub max: i64,
        /// `manual`, `fixed`, `asleep`, `above_target`, `burst`, `below_target`, `on_target`, `settling`, `waiting`,
        /// `at_maximum`, `at_minimum` or `unknown`.
        pub reason: String,
        /// The same in words and numbers.
        pub message: String,
        /// The target that decided, such as `concurrent_requests`; empty: none did.
        pub signal: String,
        /// What was seen of it for one instance, in the target's unit.
        pub observed: f64,
        /// The target's value.
        pub target: i64,
        /// When this was decided; none: it did not have to be.
        pub decided_at: Option<Timestamp>,
        /// The last change of the number, in words; empty: none since the control plane started.
        pub last_change: String,
        /// When that was.
        pub changed_at: Option<Timestamp>,
    }

    /// One replica with its instances.
    pub struct GetDeploymentScalingReplyItem {
        pub region: String,
        pub replica_index: i64,
        pub instances: Vec<Instance>,
    }
}
