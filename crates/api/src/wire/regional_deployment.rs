//! Regional deployments.

use tram_types::{
    Int64, Timestamp,
    definition::{
        ArchiveSource, ConfigFile, DeploymentHealthCheck, DeploymentScalingTarget, DeploymentStrategy,
        DockerSource, GitSource, ModelSource, NetworkPolicy, SecurityPolicies,
    },
    status::{
        RegionalDefinitionType, RegionalDeploymentMesh, RegionalDeploymentRole, RegionalDeploymentStatus,
    },
};

use super::deployment::DeploymentProvisioningInfo;

tram_types::message! {
    /// A deployment in one region.
    pub struct RegionalDeployment {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub scheduled_at: Option<Timestamp>,
        pub allocated_at: Option<Timestamp>,
        pub started_at: Option<Timestamp>,
        pub succeeded_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
        pub organization_id: String,
        pub app_id: String,
        pub service_id: String,
        pub region: String,
        pub parent_id: String,
        pub child_id: String,
        pub status: RegionalDeploymentStatus,
        pub messages: Vec<String>,
        pub definition: Option<RegionalDeploymentDefinition>,
        pub datacenters: Vec<String>,
        pub metadata: Option<RegionalDeploymentMetadata>,
        pub provisioning_info: Option<DeploymentProvisioningInfo>,
        pub role: RegionalDeploymentRole,
        pub version: Int64,
        pub deployment_group: String,
        pub deployment_id: String,
        pub instance_snapshot_id: String,
    }

    /// A regional deployment as lists show it.
    pub struct RegionalDeploymentListItem {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub region: String,
        pub status: RegionalDeploymentStatus,
        pub messages: Vec<String>,
        pub definition: Option<RegionalDeploymentDefinition>,
        pub instance_snapshot_id: String,
    }

    /// A definition as it holds in one region.
    pub struct RegionalDeploymentDefinition {
        pub name: String,
        pub r#type: RegionalDefinitionType,
        pub strategy: Option<DeploymentStrategy>,
        pub routes: Vec<Route>,
        pub ports: Vec<Port>,
        pub env: Vec<Env>,
        pub region: String,
        pub scaling: Option<Scaling>,
        pub instance_type: String,
        pub deployment_group: String,
        pub health_checks: Vec<DeploymentHealthCheck>,
        pub volumes: Vec<RegionalDeploymentVolume>,
        pub config_files: Vec<ConfigFile>,
        pub skip_cache: bool,
        pub mesh: RegionalDeploymentMesh,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub docker: Option<DockerSource>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub git: Option<GitSource>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub archive: Option<ArchiveSource>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub model: Option<ModelSource>,
        pub network_policy: Option<NetworkPolicy>,
    }

    /// A path that leads to a port.
    pub struct Route {
        pub port: i64,
        pub path: String,
        pub security_policies: Option<SecurityPolicies>,
    }

    /// A port the program listens on.
    pub struct Port {
        pub port: i64,
        pub protocol: String,
    }

    /// A variable.
    pub struct Env {
        pub key: String,
        pub value: String,
        pub secret: String,
    }

    /// How many instances.
    pub struct Scaling {
        pub min: i64,
        pub max: i64,
        pub targets: Vec<DeploymentScalingTarget>,
    }

    /// A volume attached to an instance.
    pub struct RegionalDeploymentVolume {
        pub id: String,
        pub path: String,
        pub replica_index: i64,
    }

    /// Nothing, upstream too.
    pub struct RegionalDeploymentMetadata {}

    /// The answer of `get regional deployment`.
    pub struct GetRegionalDeploymentReply {
        pub regional_deployment: Option<RegionalDeployment>,
    }

    /// The answer of `list regional deployments`.
    pub struct ListRegionalDeploymentsReply {
        pub regional_deployments: Vec<RegionalDeploymentListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }
}
