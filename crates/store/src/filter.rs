//! What lists can be asked for. Every member left empty filters nothing.

use tram_types::{
    AppId, CredentialId, DeploymentId, DomainId, InstanceId, InstanceSnapshotId, OrganizationId, ProjectId,
    RegionalDeploymentId, SecretId, ServiceId, ServicePoolId, Timestamp, VolumeId,
    status::{
        CredentialType, DeploymentStatus, DomainStatus, DomainType, InstanceSnapshotStatus,
        InstanceSnapshotType, InstanceStatus, PoolClaimStatus, SecretType, ServiceStatus, ServiceType,
        SnapshotStatus,
    },
};
use uuid::Uuid;

use crate::record::ObjectKind;

/// Most items one page holds, whatever was asked: it bounds the memory of one request.
pub const PAGE_ITEMS_MAX: u32 = 1000;

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many items; clamped to [`PAGE_ITEMS_MAX`].
    pub limit: u32,
    /// After so many items.
    pub offset: u32,
}

impl Default for Page {
    /// What a client gets that asks for nothing in particular.
    fn default() -> Self {
        Self {
            limit: 100,
            offset: 0,
        }
    }
}

impl Page {
    /// The largest first page.
    #[must_use]
    pub const fn largest() -> Self {
        Self {
            limit: PAGE_ITEMS_MAX,
            offset: 0,
        }
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed<T> {
    /// The items of the page.
    pub items: Vec<T>,
    /// How many items all pages have together.
    pub count: u64,
}

/// Which claims.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Of this pool.
    pub pool_id: Option<ServicePoolId>,
    /// With this status.
    pub status: Option<PoolClaimStatus>,
}

/// Which end of a list comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The oldest.
    Ascending,
    /// The newest; what clients expect when they do not say.
    #[default]
    Descending,
}

/// Which projects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Projects {
    /// With exactly this name.
    pub name: Option<String>,
    /// Among these.
    pub ids: Vec<ProjectId>,
}

/// Which tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Credentials {
    /// Of this type.
    pub kind: Option<CredentialType>,
    /// With exactly this name.
    pub name: Option<String>,
    /// Of this user.
    pub user_id: Option<String>,
    /// Among these.
    pub ids: Vec<CredentialId>,
}

/// Which apps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Apps {
    /// With exactly this name.
    pub name: Option<String>,
    /// Among these.
    pub ids: Vec<AppId>,
}

/// Which services.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Services {
    /// Of this app.
    pub app_id: Option<AppId>,
    /// Of this project.
    pub project_id: Option<ProjectId>,
    /// With exactly this name.
    pub name: Option<String>,
    /// Of one of these types.
    pub kinds: Vec<ServiceType>,
    /// In one of these statuses.
    pub statuses: Vec<ServiceStatus>,
    /// Whose newest deployment is in one of these (resolved) regions.
    pub regions: Vec<String>,
    /// Among these.
    pub ids: Vec<ServiceId>,
}

/// Which entries of the audit feed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Activities {
    /// About objects of one of these types.
    pub object_types: Vec<String>,
    /// By this user or token.
    pub actor_id: Option<String>,
}

/// Which deployments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Deployments {
    /// Of this app.
    pub app_id: Option<AppId>,
    /// Of this service.
    pub service_id: Option<ServiceId>,
    /// Of the services of this project.
    pub project_id: Option<ProjectId>,
    /// In one of these statuses.
    pub statuses: Vec<DeploymentStatus>,
    /// Among these.
    pub ids: Vec<DeploymentId>,
}

/// Which regional deployments.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RegionalDeployments {
    /// Of this deployment.
    pub deployment_id: Option<DeploymentId>,
    /// Among these.
    pub ids: Vec<RegionalDeploymentId>,
}

/// Which instances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Instances {
    /// Of this app.
    pub app_id: Option<AppId>,
    /// Of this service.
    pub service_id: Option<ServiceId>,
    /// Of this deployment.
    pub deployment_id: Option<DeploymentId>,
    /// Of this regional deployment.
    pub regional_deployment_id: Option<RegionalDeploymentId>,
    /// With this index.
    pub replica_index: Option<u32>,
    /// In one of these statuses.
    pub statuses: Vec<InstanceStatus>,
    /// Among these.
    pub ids: Vec<InstanceId>,
    /// That were there at this time or later.
    pub starting_time: Option<Timestamp>,
    /// That were there at this time or earlier.
    pub ending_time: Option<Timestamp>,
    /// Which end first.
    pub order: Order,
}

/// Which domains.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Domains {
    /// Of one of these types.
    pub kinds: Vec<DomainType>,
    /// In one of these statuses.
    pub statuses: Vec<DomainStatus>,
    /// Of one of these apps.
    pub app_ids: Vec<AppId>,
    /// Of this project.
    pub project_id: Option<ProjectId>,
    /// With exactly this name.
    pub name: Option<String>,
    /// Among these.
    pub ids: Vec<DomainId>,
}

/// Which snapshots of instances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceSnapshots {
    /// With exactly this name.
    pub name: Option<String>,
    /// In one of these statuses. Empty: all but what was removed.
    pub statuses: Vec<InstanceSnapshotStatus>,
    /// Of this type.
    pub kind: Option<InstanceSnapshotType>,
    /// Of this service.
    pub service_id: Option<ServiceId>,
    /// Of this project.
    pub project_id: Option<ProjectId>,
    /// Among these.
    pub ids: Vec<InstanceSnapshotId>,
}

/// Which secrets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Secrets {
    /// With exactly this name.
    pub name: Option<String>,
    /// Of one of these types.
    pub kinds: Vec<SecretType>,
    /// Of this project.
    pub project_id: Option<ProjectId>,
    /// Among these.
    pub ids: Vec<SecretId>,
}

/// Which volumes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Volumes {
    /// Of this service.
    pub service_id: Option<ServiceId>,
    /// In this (resolved) region.
    pub region: Option<String>,
    /// With exactly this name.
    pub name: Option<String>,
    /// Of this project.
    pub project_id: Option<ProjectId>,
    /// Among these.
    pub ids: Vec<VolumeId>,
}

/// Which snapshots of volumes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshots {
    /// In one of these statuses.
    pub statuses: Vec<SnapshotStatus>,
    /// In this (resolved) region.
    pub region: Option<String>,
    /// Of this project.
    pub project_id: Option<ProjectId>,
}

/// Which events. One of the members should be given, or the whole organization's history of that kind is meant.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    /// Of objects of this kind.
    pub object_kind: ObjectKind,
    /// Of these objects.
    pub object_ids: Vec<Uuid>,
    /// Of one of these types.
    pub kinds: Vec<String>,
    /// Which end first.
    pub order: Order,
}

impl Events {
    /// The history of one object, newest first.
    #[must_use]
    pub const fn of_kind(object_kind: ObjectKind) -> Self {
        Self {
            object_kind,
            object_ids: Vec::new(),
            kinds: Vec::new(),
            order: Order::Descending,
        }
    }
}

/// Which organizations (for the operator, not for tenants).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Organizations {
    /// With exactly this name.
    pub name: Option<String>,
    /// Among these.
    pub ids: Vec<OrganizationId>,
}
