//! What callers want done: the arguments of the methods that write.
//!
//! The API's side makes and edits objects; the controller's side is [`Update`], a batch that is applied whole or
//! not at all.

use serde_json::Value;
use tram_types::{
    AppId, CredentialId, DeploymentId, DomainId, Generation, InstanceId, OrganizationId, ProjectId,
    RegionalDeploymentId, SecretId, ServiceId, SnapshotId, Timestamp, VolumeId,
    status::{
        AppStatus, CredentialType, DeploymentStatus, DomainStatus, DomainType, InstanceStatus,
        PersistentVolumeStatus, RegionalDeploymentStatus, SecretType, ServiceStatus, ServiceType,
    },
};
use uuid::Uuid;

use crate::{
    column::{Cell, Column},
    record::{App, Deployment, Domain, Instance, ObjectKind, ProxyPort, RegionalDeployment, Role, Service},
};

/// A new token.
#[derive(Debug, Clone)]
pub struct NewCredential {
    /// Its id.
    pub id: CredentialId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// The user it speaks for, or empty.
    pub user_id: String,
    /// Whom it speaks for.
    pub kind: CredentialType,
    /// What it may do.
    pub role: Role,
    /// For people.
    pub name: String,
    /// For people.
    pub description: String,
    /// From [`crate::token_sha256`].
    pub token_sha256: String,
    /// When it stops to work; `None`: never.
    pub expires_at: Option<Timestamp>,
}

/// A new app.
#[derive(Debug, Clone)]
pub struct NewApp {
    /// Its id.
    pub id: AppId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Unique in the organization.
    pub name: String,
    /// What it shows until the controller has looked at it; an app without services is healthy.
    pub status: AppStatus,
    /// Whether it goes with its last service.
    pub delete_when_empty: bool,
}

/// A new domain.
#[derive(Debug, Clone)]
pub struct NewDomain {
    /// Its id.
    pub id: DomainId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its project, if any.
    pub project_id: Option<ProjectId>,
    /// The app it leads to, if any.
    pub app_id: Option<AppId>,
    /// Unique on this installation; kept in lower case.
    pub name: String,
    /// Who chose it.
    pub kind: DomainType,
    /// ACTIVE when auto-assigned, PENDING when custom.
    pub status: DomainStatus,
    /// What a custom domain's CNAME must point to, or empty.
    pub intended_cname: String,
    /// The load balancer's member of the wire contract.
    pub load_balancer: Value,
}

/// A new service with its first deployment.
#[derive(Debug, Clone)]
pub struct NewService {
    /// Its id.
    pub id: ServiceId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its project, if any.
    pub project_id: Option<ProjectId>,
    /// Its app; must be there and not on its way out.
    pub app_id: AppId,
    /// Unique in the app.
    pub name: String,
    /// Web, worker, database or sandbox.
    pub kind: ServiceType,
    /// Seconds after its creation at which it is deleted; 0: never.
    pub delete_after_create_seconds: u32,
    /// Seconds of sleep after which it is deleted; 0: never.
    pub delete_after_sleep_seconds: u32,
    /// Its first deployment.
    pub deployment: NewDeployment,
    /// Service ports that want a public TCP port.
    pub proxy_ports: Vec<u16>,
}

/// A new deployment.
#[derive(Debug, Clone)]
pub struct NewDeployment {
    /// Its id.
    pub id: DeploymentId,
    /// As it came in.
    pub definition: Value,
    /// Trigger, git, archive, sandbox: as the wire contract has it.
    pub metadata: Value,
    /// PENDING, or STASHED for `save_only`.
    pub status: DeploymentStatus,
    /// Whether the last build is used again.
    pub skip_build: bool,
    /// The group it belongs to.
    pub deployment_group: String,
    /// The snapshot it starts from, or empty.
    pub instance_snapshot_id: String,
    /// Who asked for it, or empty.
    pub created_by: String,
    /// One a region.
    pub regional: Vec<NewRegionalDeployment>,
}

/// A new deployment in one region.
#[derive(Debug, Clone)]
pub struct NewRegionalDeployment {
    /// Its id.
    pub id: RegionalDeploymentId,
    /// The resolved region.
    pub region: String,
    /// The definition, flattened for this region.
    pub definition: Value,
}

/// A new secret; its value is given beside it.
#[derive(Debug, Clone)]
pub struct NewSecret {
    /// Its id.
    pub id: SecretId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its project; `None`: the whole organization may use it.
    pub project_id: Option<ProjectId>,
    /// Unique in the project, or among the organization's own.
    pub name: String,
    /// What it holds.
    pub kind: SecretType,
    /// The host names it is bound to; none: it may be used anywhere.
    pub hosts: Vec<String>,
}

/// A new volume.
#[derive(Debug, Clone)]
pub struct NewVolume {
    /// Its id.
    pub id: VolumeId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its project; `None`: the whole organization may use it.
    pub project_id: Option<ProjectId>,
    /// Unique in the project, or among the organization's own.
    pub name: String,
    /// The resolved region.
    pub region: String,
    /// In GB.
    pub max_size: u32,
    /// Whether instances may only read it.
    pub read_only: bool,
    /// The snapshot it is made from, if any.
    pub snapshot_id: Option<SnapshotId>,
}

/// A new snapshot of a volume.
#[derive(Debug, Clone)]
pub struct NewSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its organization.
    pub organization_id: OrganizationId,
    /// Its project; `None`: the whole organization may use it.
    pub project_id: Option<ProjectId>,
    /// Unique in the project, or among the organization's own.
    pub name: String,
    /// Of which volume.
    pub volume_id: VolumeId,
}

/// A new entry of an object's history.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The organization of the object.
    pub organization_id: OrganizationId,
    /// What kind of object.
    pub object_kind: ObjectKind,
    /// Which object.
    pub object_id: Uuid,
    /// What happened, as an upper-case word.
    pub kind: String,
    /// The same in a sentence.
    pub message: String,
    /// What more there is to know.
    pub metadata: Value,
}

/// A new entry of the audit feed.
#[derive(Debug, Clone)]
pub struct NewActivity {
    /// The organization.
    pub organization_id: OrganizationId,
    /// Who, as the wire contract has it.
    pub actor: Value,
    /// Did what.
    pub verb: String,
    /// To what, as the wire contract has it.
    pub object: Value,
    /// What more there is to know.
    pub metadata: Value,
}

/// What making a service, or deploying one anew, made.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployed {
    /// The service as it is now.
    pub service: Service,
    /// The new deployment.
    pub deployment: Deployment,
    /// Its regional deployments.
    pub regional: Vec<RegionalDeployment>,
    /// Every public port of the service.
    pub proxy_ports: Vec<ProxyPort>,
}

/// What [`Store::compose`](crate::Store::compose) made or found.
#[derive(Debug, Clone, PartialEq)]
pub struct Composed {
    /// The app.
    pub app: App,
    /// Its domain, when the app is new.
    pub domain: Option<Domain>,
    /// What was made of each service, in the order given.
    pub services: Vec<Deployed>,
}

/// The app of a composition.
#[derive(Debug, Clone)]
pub enum ComposeApp {
    /// Make this app with this domain.
    New(NewApp, Option<NewDomain>),
    /// It is there already: change this of it.
    Existing(OrganizationId, AppId, AppEdit),
}

/// A service of a composition.
#[derive(Debug, Clone)]
pub enum ComposeService {
    /// Make it.
    New(Box<NewService>),
    /// It is there already: deploy it anew.
    Existing(ServiceId, ServiceEdit, Box<NewDeployment>),
}

/// Declares a struct of changes to a table's row: what is `None` stays.
macro_rules! edits {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$member_meta:meta])* pub $member:ident: $type:ty ),* $(,)? }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $name { $( $(#[$member_meta])* pub $member: Option<$type>, )* }

        impl $name {
            /// The columns to change.
            pub(crate) fn cells(&self) -> Vec<(&'static str, Cell)> {
                let mut cells = Vec::new();
                $( if let Some(value) = &self.$member {
                    cells.push((stringify!($member), value.to_cell()));
                } )*
                cells
            }
        }
    )+};
}

edits! {
    /// Changes of an organization by its owner.
    pub struct OrganizationEdit {
        /// New name.
        pub name: String,
        /// New default project.
        pub default_project_id: Option<ProjectId>,
    }
    /// Changes of a project by its owner.
    pub struct ProjectEdit {
        /// New name.
        pub name: String,
        /// New description.
        pub description: String,
    }
    /// Changes of a token by its owner.
    pub struct CredentialEdit {
        /// New name.
        pub name: String,
        /// New description.
        pub description: String,
        /// What it may do from now on.
        pub role: Role,
        /// When it stops to work; `None`: never.
        pub expires_at: Option<Timestamp>,
    }
    /// Changes of an app by its owner.
    pub struct AppEdit {
        /// New name.
        pub name: String,
        /// Whether it goes with its last service.
        pub delete_when_empty: bool,
    }
    /// Changes of a service by its owner that need no deployment.
    pub struct ServiceEdit {
        /// New name.
        pub name: String,
        /// New type.
        pub kind: ServiceType,
        /// Seconds after its creation at which it is deleted; 0: never.
        pub delete_after_create_seconds: u32,
        /// Seconds of sleep after which it is deleted; 0: never.
        pub delete_after_sleep_seconds: u32,
    }
    /// Changes of a domain, by its owner or by who verifies it.
    pub struct DomainEdit {
        /// New name.
        pub name: String,
        /// New app, or none.
        pub app_id: Option<AppId>,
        /// New project, or none.
        pub project_id: Option<ProjectId>,
        /// New status.
        pub status: DomainStatus,
        /// New messages.
        pub messages: Vec<String>,
        /// New target of the CNAME.
        pub intended_cname: String,
        /// New load balancer.
        pub load_balancer: Value,
        /// When its CNAME was found.
        pub verified_at: Option<Timestamp>,
    }
    /// Changes of a secret by its owner; a new value is given beside it.
    pub struct SecretEdit {
        /// New name.
        pub name: String,
        /// New type.
        pub kind: SecretType,
        /// New project, or none.
        pub project_id: Option<ProjectId>,
    }
    /// Changes of a volume by its owner.
    pub struct VolumeEdit {
        /// New name.
        pub name: String,
        /// New size, in GB.
        pub max_size: u32,
    }
    /// Changes of a snapshot by its owner.
    pub struct SnapshotEdit {
        /// New name.
        pub name: String,
    }
    /// What was seen of a volume at its site.
    pub struct VolumeSeen {
        /// New status.
        pub status: PersistentVolumeStatus,
        /// How large it is there, in GB.
        pub made_size: u32,
        /// How much of it is in use.
        pub used_bytes: u64,
    }
    /// What the controller confirmed of an app.
    pub struct AppSet {
        /// New status.
        pub status: AppStatus,
        /// New messages.
        pub messages: Vec<String>,
        /// When its first service started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it was paused.
        pub paused_at: Option<Timestamp>,
        /// When it was resumed.
        pub resumed_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }
    /// What the controller confirmed of a service.
    pub struct ServiceSet {
        /// New status.
        pub status: ServiceStatus,
        /// New messages.
        pub messages: Vec<String>,
        /// The deployment that serves now.
        pub active_deployment_id: Option<DeploymentId>,
        /// The newest deployment whose image was provisioned.
        pub last_provisioned_deployment_id: Option<DeploymentId>,
        /// Since when it sleeps.
        pub sleeping_since: Option<Timestamp>,
        /// The controller's own notes.
        pub controller_memory: Value,
        /// When its first deployment started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it was paused.
        pub paused_at: Option<Timestamp>,
        /// When it was resumed.
        pub resumed_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }
    /// What the controller confirmed of a deployment.
    pub struct DeploymentSet {
        /// New status.
        pub status: DeploymentStatus,
        /// New messages.
        pub messages: Vec<String>,
        /// New metadata.
        pub metadata: Value,
        /// Image, commit and build stages.
        pub provisioning_info: Value,
        /// When its first instance was given a place.
        pub allocated_at: Option<Timestamp>,
        /// When its first instance started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }
    /// What the controller confirmed of a regional deployment.
    pub struct RegionalDeploymentSet {
        /// New status.
        pub status: RegionalDeploymentStatus,
        /// New messages.
        pub messages: Vec<String>,
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
    /// What the controller ordered and confirmed of an instance.
    pub struct InstanceSet {
        /// The deployment it is one of from now on.
        pub deployment_id: DeploymentId,
        /// The regional deployment it is one of from now on.
        pub regional_deployment_id: RegionalDeploymentId,
        /// New status.
        pub status: InstanceStatus,
        /// New messages.
        pub messages: Vec<String>,
        /// The newest order.
        pub generation: Generation,
        /// Where it listens.
        pub address: String,
        /// Whether its site forgot it.
        pub forgotten: bool,
        /// When its process started.
        pub started_at: Option<Timestamp>,
        /// When it was first healthy.
        pub succeeded_at: Option<Timestamp>,
        /// When it ended.
        pub terminated_at: Option<Timestamp>,
    }
}

/// One of the controller's changes to what belongs to one service.
///
/// `expected` is the status the controller saw when it decided. When the row has another by now, the whole batch is
/// refused with [`Error::Conflict`](crate::Error::Conflict): read again.
#[derive(Debug, Clone)]
pub enum Update {
    /// Refuse the batch when the service's intent changed since this version was read.
    ExpectVersion(i64),
    /// Change the service.
    Service {
        /// The status that was seen.
        expected: ServiceStatus,
        /// What changes.
        set: Box<ServiceSet>,
    },
    /// Change a deployment.
    Deployment {
        /// Which.
        id: DeploymentId,
        /// The status that was seen.
        expected: DeploymentStatus,
        /// What changes.
        set: Box<DeploymentSet>,
    },
    /// Change a regional deployment.
    RegionalDeployment {
        /// Which.
        id: RegionalDeploymentId,
        /// The status that was seen.
        expected: RegionalDeploymentStatus,
        /// What changes.
        set: Box<RegionalDeploymentSet>,
    },
    /// Make an instance, before its site is told to start it.
    InsertInstance(Box<Instance>),
    /// Change an instance.
    Instance {
        /// Which.
        id: InstanceId,
        /// The status that was seen.
        expected: InstanceStatus,
        /// What changes.
        set: Box<InstanceSet>,
    },
    /// Add to an object's history.
    Event(Box<NewEvent>),
}
