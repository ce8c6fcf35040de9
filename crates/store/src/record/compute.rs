//! What runs: apps, services, deployments, regional deployments, instances.
//!
//! `desired` is intent, written by the API; `status`, `messages` and the times are what was confirmed, written by
//! the controller (and the transitional statuses by the API, with the intent).

use serde_json::Value;
use tram_types::{
    AppId, DeploymentId, Generation, InstanceId, OrganizationId, ProjectId, RegionalDeploymentId, ServiceId,
    Timestamp,
    status::{
        AppStatus, DeploymentStatus, InstanceStatus, RegionalDeploymentStatus, ServiceStatus, ServiceType,
    },
};

use crate::record::{Desired, ManualScaling, records};

records! {
    /// A namespace of services with domains.
    pub struct App in "apps" as "app" {
        /// Its id.
        pub id: AppId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Unique in the organization.
        pub name: String,
        /// What its owner wants.
        pub desired: Desired,
        /// What was confirmed.
        pub status: AppStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// Counts changes of intent.
        pub version: i64,
        /// Whether the controller removes it with its last service.
        pub delete_when_empty: bool,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
        /// When its first service started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it was last paused.
        pub paused_at: Option<Timestamp>,
        /// When it was last resumed.
        pub resumed_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }

    /// What a user keeps running.
    pub struct Service in "services" as "service" {
        /// Its id.
        pub id: ServiceId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project, if any.
        pub project_id: Option<ProjectId>,
        /// Its app.
        pub app_id: AppId,
        /// Unique in the app.
        pub name: String,
        /// Web, worker, database or sandbox.
        pub kind: ServiceType,
        /// What its owner wants.
        pub desired: Desired,
        /// What was confirmed.
        pub status: ServiceStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// Counts changes of intent: the controller's plan names the version it was made for.
        pub version: i64,
        /// The deployment that serves; `None` until one was healthy.
        pub active_deployment_id: Option<DeploymentId>,
        /// The newest deployment.
        pub latest_deployment_id: Option<DeploymentId>,
        /// The newest deployment whose image was provisioned.
        pub last_provisioned_deployment_id: Option<DeploymentId>,
        /// Seconds after its creation at which it is deleted; 0: never.
        pub delete_after_create_seconds: u32,
        /// Seconds of sleep after which it is deleted; 0: never.
        pub delete_after_sleep_seconds: u32,
        /// The owner's override of the definition's scaling; empty: none.
        pub manual_scaling: Vec<ManualScaling>,
        /// Since when it sleeps.
        pub sleeping_since: Option<Timestamp>,
        /// The controller's own notes that must survive a restart (back-off, scaling history). Opaque here.
        pub controller_memory: Value,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
        /// When its first deployment started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it was last paused.
        pub paused_at: Option<Timestamp>,
        /// When it was last resumed.
        pub resumed_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }

    /// One immutable version of a service's definition.
    pub struct Deployment in "deployments" as "deployment" {
        /// Its id.
        pub id: DeploymentId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project, if any.
        pub project_id: Option<ProjectId>,
        /// Its app.
        pub app_id: AppId,
        /// Its service.
        pub service_id: ServiceId,
        /// 1, 2, 3 … in its service.
        pub version: i64,
        /// What was confirmed.
        pub status: DeploymentStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// As it came in, templates included.
        pub definition: Value,
        /// Trigger, git, archive, sandbox: as the wire contract has it.
        pub metadata: Value,
        /// Image, commit and build stages, as the wire contract has it; `null` before provisioning.
        pub provisioning_info: Value,
        /// Whether the last build is used again.
        pub skip_build: bool,
        /// Whether its owner wants it cancelled.
        pub cancel_requested: bool,
        /// The deployment before it.
        pub parent_id: Option<DeploymentId>,
        /// The deployment after it.
        pub child_id: Option<DeploymentId>,
        /// The group it belongs to; `prod` unless said otherwise.
        pub deployment_group: String,
        /// The snapshot it starts from, or empty.
        pub instance_snapshot_id: String,
        /// Who asked for it, or empty.
        pub created_by: String,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
        /// When its first instance was given a place.
        pub allocated_at: Option<Timestamp>,
        /// When its first instance started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }

    /// A deployment in one region.
    pub struct RegionalDeployment in "regional_deployments" as "regional deployment" {
        /// Its id.
        pub id: RegionalDeploymentId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project, if any.
        pub project_id: Option<ProjectId>,
        /// Its app.
        pub app_id: AppId,
        /// Its service.
        pub service_id: ServiceId,
        /// Its deployment.
        pub deployment_id: DeploymentId,
        /// The resolved region.
        pub region: String,
        /// The version of its deployment.
        pub version: i64,
        /// What was confirmed.
        pub status: RegionalDeploymentStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// The definition, flattened for this region.
        pub definition: Value,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
        /// When it was given to a site.
        pub scheduled_at: Option<Timestamp>,
        /// When its first instance was given a place.
        pub allocated_at: Option<Timestamp>,
        /// When its first instance started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }

    /// One run of a copy of a deployment. A crashed one is replaced by another row, never revived.
    pub struct Instance in "instances" as "instance" {
        /// Its id.
        pub id: InstanceId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its app.
        pub app_id: AppId,
        /// Its service.
        pub service_id: ServiceId,
        /// Its deployment.
        pub deployment_id: DeploymentId,
        /// Its regional deployment.
        pub regional_deployment_id: RegionalDeploymentId,
        /// The resolved region.
        pub region: String,
        /// The datacenter in the region.
        pub datacenter: String,
        /// The site it was given to.
        pub site: String,
        /// How large it is: a type of the catalog.
        pub instance_type: String,
        /// 0, 1, 2 … in its regional deployment; an instance and its replacement share it.
        pub replica_index: u32,
        /// What was confirmed.
        pub status: InstanceStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// The newest order for it.
        pub generation: Generation,
        /// Where the site said it listens, as text; empty before it has an address. A cache: the site knows better.
        pub address: String,
        /// Whether its site has been told to forget it, and did.
        pub forgotten: bool,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
        /// When its process started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }
}
