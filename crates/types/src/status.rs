//! Statuses and kinds, with the exact strings of the wire contract (digest, section 2.1).
//!
//! An unknown member fails the whole reply in official clients, so nothing outside these lists is ever sent.

crate::wire_enum! {
    /// What an app is doing, derived from its services.
    pub enum AppStatus as "App.Status" {
        Starting = "STARTING", Healthy = "HEALTHY", Degraded = "DEGRADED", Unhealthy = "UNHEALTHY",
        Deleting = "DELETING", Deleted = "DELETED", Pausing = "PAUSING", Paused = "PAUSED", Resuming = "RESUMING",
    }
    /// What a service is doing, derived from its deployments.
    pub enum ServiceStatus as "Service.Status" {
        Starting = "STARTING", Healthy = "HEALTHY", Degraded = "DEGRADED", Unhealthy = "UNHEALTHY",
        Deleting = "DELETING", Deleted = "DELETED", Pausing = "PAUSING", Paused = "PAUSED", Resuming = "RESUMING",
    }
    /// Where a deployment is in its life; see [`crate::machine`] for the arrows.
    pub enum DeploymentStatus as "Deployment.Status" {
        Pending = "PENDING", Provisioning = "PROVISIONING", Scheduled = "SCHEDULED", Canceling = "CANCELING",
        Canceled = "CANCELED", Allocating = "ALLOCATING", Starting = "STARTING", Healthy = "HEALTHY",
        Degraded = "DEGRADED", Unhealthy = "UNHEALTHY", Stopping = "STOPPING", Stopped = "STOPPED",
        Erroring = "ERRORING", Error = "ERROR", Stashed = "STASHED", Sleeping = "SLEEPING",
    }
    /// Where a deployment is in its life in one region.
    pub enum RegionalDeploymentStatus as "RegionalDeployment.Status" {
        Pending = "PENDING", Provisioning = "PROVISIONING", Scheduled = "SCHEDULED", Canceling = "CANCELING",
        Canceled = "CANCELED", Allocating = "ALLOCATING", Starting = "STARTING", Healthy = "HEALTHY",
        Degraded = "DEGRADED", Unhealthy = "UNHEALTHY", Stopping = "STOPPING", Stopped = "STOPPED",
        Erroring = "ERRORING", Error = "ERROR", Sleeping = "SLEEPING",
    }
    /// Where an instance is in its life.
    pub enum InstanceStatus as "Instance.Status" {
        Allocating = "ALLOCATING", Starting = "STARTING", Healthy = "HEALTHY", Unhealthy = "UNHEALTHY",
        Stopping = "STOPPING", Stopped = "STOPPED", Error = "ERROR", Sleeping = "SLEEPING",
    }
    /// Where a snapshot of an instance is in its life.
    pub enum InstanceSnapshotStatus as "InstanceSnapshotStatus" {
        Invalid = "INSTANCE_SNAPSHOT_STATUS_INVALID", Creating = "INSTANCE_SNAPSHOT_STATUS_CREATING",
        Available = "INSTANCE_SNAPSHOT_STATUS_AVAILABLE", Error = "INSTANCE_SNAPSHOT_STATUS_ERROR",
        Deleting = "INSTANCE_SNAPSHOT_STATUS_DELETING", Deleted = "INSTANCE_SNAPSHOT_STATUS_DELETED",
    }
    /// What a snapshot of an instance holds: its disk, or its disk and its processes.
    pub enum InstanceSnapshotType as "InstanceSnapshotType" {
        Invalid = "INSTANCE_SNAPSHOT_TYPE_INVALID", Filesystem = "INSTANCE_SNAPSHOT_TYPE_FILESYSTEM",
        Full = "INSTANCE_SNAPSHOT_TYPE_FULL",
    }
    /// Where a domain is in its life.
    pub enum DomainStatus as "Domain.Status" {
        Pending = "PENDING", Active = "ACTIVE", Error = "ERROR", Deleting = "DELETING", Deleted = "DELETED",
    }
    /// Who chose a domain's name.
    pub enum DomainType as "Domain.Type" { Autoassigned = "AUTOASSIGNED", Custom = "CUSTOM" }
    /// What part a deployment plays beside the others of its service.
    pub enum DeploymentRole as "Deployment.Role" {
        Invalid = "INVALID", Active = "ACTIVE", Upcoming = "UPCOMING", Current = "CURRENT",
    }
    /// What part a regional deployment plays beside the others of its service.
    pub enum RegionalDeploymentRole as "RegionalDeployment.Role" {
        Invalid = "INVALID", Active = "ACTIVE", Upcoming = "UPCOMING", Current = "CURRENT",
    }
    /// What kind of thing a definition defines.
    pub enum DefinitionType as "DeploymentDefinition.Type" {
        Invalid = "INVALID", Web = "WEB", Worker = "WORKER", Database = "DATABASE", Sandbox = "SANDBOX",
    }
    /// The same, for one region; the underscore is upstream's.
    pub enum RegionalDefinitionType as "RegionalDeploymentDefinition.Type" {
        Invalid = "INVALID", Web = "WEB", Worker = "WORKER", Database = "_", Sandbox = "SANDBOX",
    }
    /// What kind of thing a service is.
    pub enum ServiceType as "Service.Type" {
        Invalid = "INVALID_TYPE", Web = "WEB", Worker = "WORKER", Database = "DATABASE", Sandbox = "SANDBOX",
    }
    /// How a new deployment takes over from the old one.
    pub enum DeploymentStrategyType {
        Invalid = "DEPLOYMENT_STRATEGY_TYPE_INVALID", Default = "DEPLOYMENT_STRATEGY_TYPE_DEFAULT",
        Canary = "DEPLOYMENT_STRATEGY_TYPE_CANARY", Rolling = "DEPLOYMENT_STRATEGY_TYPE_ROLLING",
        BlueGreen = "DEPLOYMENT_STRATEGY_TYPE_BLUE_GREEN", Immediate = "DEPLOYMENT_STRATEGY_TYPE_IMMEDIATE",
    }
    /// Whether a deployment joins the organization's private network.
    pub enum DeploymentMesh {
        Auto = "DEPLOYMENT_MESH_AUTO", Enabled = "DEPLOYMENT_MESH_ENABLED", Disabled = "DEPLOYMENT_MESH_DISABLED",
    }
    /// Whether a regional deployment joins the organization's private network.
    pub enum RegionalDeploymentMesh {
        Auto = "REGIONAL_DEPLOYMENT_MESH_AUTO", Enabled = "REGIONAL_DEPLOYMENT_MESH_ENABLED",
        Disabled = "REGIONAL_DEPLOYMENT_MESH_DISABLED",
    }
    /// Which services may reach each other.
    pub enum MeshScope {
        Unspecified = "MESH_SCOPE_UNSPECIFIED", Organization = "MESH_SCOPE_ORGANIZATION",
        Workspace = "MESH_SCOPE_WORKSPACE", App = "MESH_SCOPE_APP", Custom = "MESH_SCOPE_CUSTOM",
    }
    /// What an instance may reach outside.
    pub enum EgressPolicyMode {
        Default = "EGRESS_POLICY_MODE_DEFAULT", DenyAll = "EGRESS_POLICY_MODE_DENY_ALL",
    }
    /// What a proxied port speaks.
    pub enum ProxyPortProtocol { Tcp = "tcp" }
    /// What a secret holds.
    pub enum SecretType { Simple = "SIMPLE", Registry = "REGISTRY", Managed = "MANAGED" }
    /// Whom a token speaks for.
    pub enum CredentialType { Invalid = "INVALID", User = "USER", Organization = "ORGANIZATION" }
    /// How far a stage of provisioning is.
    pub enum StageStatus as "DeploymentProvisioningInfo.Stage.Status" {
        Unknown = "UNKNOWN", Pending = "PENDING", Running = "RUNNING", Failed = "FAILED",
        Completed = "COMPLETED", Aborted = "ABORTED",
    }
    /// What made a deployment.
    pub enum TriggerType as "TriggerDeploymentMetadata.TriggerType" {
        Unknown = "UNKNOWN_TYPE", Git = "GIT", Resume = "RESUME", DatabaseSync = "DATABASE_SYNC",
    }
    /// Who made a deployment.
    pub enum ActorType as "TriggerDeploymentMetadata.ActorType" { Unknown = "UNKNOWN_ACTOR", User = "USER", System = "SYSTEM" }
    /// Where a pushed commit came from.
    pub enum GitProvider as "TriggerGitDeploymentMetadata.Provider" { Unknown = "UNKNOWN", Github = "GITHUB" }
    /// What may be asked of the metrics endpoint.
    pub enum MetricName {
        Unknown = "UNKNOWN", CpuTotalPercent = "CPU_TOTAL_PERCENT", MemRss = "MEM_RSS",
        HttpThroughput = "HTTP_THROUGHPUT", HttpResponseTime50P = "HTTP_RESPONSE_TIME_50P",
        HttpResponseTime90P = "HTTP_RESPONSE_TIME_90P", HttpResponseTime99P = "HTTP_RESPONSE_TIME_99P",
        HttpResponseTimeMax = "HTTP_RESPONSE_TIME_MAX", PublicDataTransferIn = "PUBLIC_DATA_TRANSFER_IN",
        PublicDataTransferOut = "PUBLIC_DATA_TRANSFER_OUT",
    }
    /// Where a persistent volume is in its life.
    pub enum PersistentVolumeStatus {
        Invalid = "PERSISTENT_VOLUME_STATUS_INVALID", Attached = "PERSISTENT_VOLUME_STATUS_ATTACHED",
        Detached = "PERSISTENT_VOLUME_STATUS_DETACHED", Deleting = "PERSISTENT_VOLUME_STATUS_DELETING",
        Deleted = "PERSISTENT_VOLUME_STATUS_DELETED", Archiving = "PERSISTENT_VOLUME_STATUS_ARCHIVING",
    }
    /// What a persistent volume lies on.
    pub enum PersistentVolumeBackingStore {
        Invalid = "PERSISTENT_VOLUME_BACKING_STORE_INVALID", LocalBlk = "PERSISTENT_VOLUME_BACKING_STORE_LOCAL_BLK",
    }
    /// Where a snapshot of a volume is in its life.
    pub enum SnapshotStatus {
        Invalid = "SNAPSHOT_STATUS_INVALID", Creating = "SNAPSHOT_STATUS_CREATING",
        Available = "SNAPSHOT_STATUS_AVAILABLE", Migrating = "SNAPSHOT_STATUS_MIGRATING",
        Deleting = "SNAPSHOT_STATUS_DELETING", Deleted = "SNAPSHOT_STATUS_DELETED",
    }
    /// Where a snapshot of a volume lies.
    pub enum SnapshotType {
        Invalid = "SNAPSHOT_TYPE_INVALID", Local = "SNAPSHOT_TYPE_LOCAL", Remote = "SNAPSHOT_TYPE_REMOTE",
    }
    /// Whether a service pool has what it keeps ready.
    pub enum ServicePoolStatus {
        Unspecified = "UNSPECIFIED", Ready = "READY", Provisioning = "PROVISIONING", Error = "ERROR",
        Deleting = "DELETING",
    }
    /// Where a claim of a service of a pool is in its life.
    pub enum PoolClaimStatus {
        Unspecified = "UNSPECIFIED", Pending = "PENDING", Fulfilled = "FULFILLED", Failed = "FAILED",
        Released = "RELEASED",
    }
    /// How much of a kind of instance there is to be had.
    pub enum AvailabilityLevel { Unknown = "UNKNOWN", Low = "LOW", Medium = "MEDIUM", High = "HIGH" }
}

macro_rules! default_member {
    ($($name:ident => $variant:ident),+ $(,)?) => {$(
        impl Default for $name {
            fn default() -> Self {
                Self::$variant
            }
        }
    )+};
}

default_member! {
    AppStatus => Starting, ServiceStatus => Starting, DeploymentStatus => Pending,
    RegionalDeploymentStatus => Pending, InstanceStatus => Allocating, DomainStatus => Pending,
    DomainType => Autoassigned, DeploymentRole => Invalid, RegionalDeploymentRole => Invalid,
    DefinitionType => Invalid, RegionalDefinitionType => Invalid, ServiceType => Invalid,
    DeploymentStrategyType => Invalid, DeploymentMesh => Auto, RegionalDeploymentMesh => Auto,
    MeshScope => Unspecified, EgressPolicyMode => Default, ProxyPortProtocol => Tcp, SecretType => Simple,
    CredentialType => Invalid, StageStatus => Unknown, TriggerType => Unknown, ActorType => Unknown,
    InstanceSnapshotStatus => Invalid, InstanceSnapshotType => Invalid,
    GitProvider => Unknown, MetricName => Unknown, AvailabilityLevel => Unknown,
    PersistentVolumeStatus => Invalid, PersistentVolumeBackingStore => Invalid, SnapshotStatus => Invalid,
    SnapshotType => Invalid,
    ServicePoolStatus => Unspecified, PoolClaimStatus => Unspecified,
}

impl From<DefinitionType> for ServiceType {
    fn from(kind: DefinitionType) -> Self {
        match kind {
            DefinitionType::Invalid => Self::Invalid,
            DefinitionType::Web => Self::Web,
            DefinitionType::Worker => Self::Worker,
            DefinitionType::Database => Self::Database,
            DefinitionType::Sandbox => Self::Sandbox,
        }
    }
}

impl From<DefinitionType> for RegionalDefinitionType {
    fn from(kind: DefinitionType) -> Self {
        match kind {
            DefinitionType::Invalid => Self::Invalid,
            DefinitionType::Web => Self::Web,
            DefinitionType::Worker => Self::Worker,
            DefinitionType::Database => Self::Database,
            DefinitionType::Sandbox => Self::Sandbox,
        }
    }
}

impl From<DeploymentStatus> for RegionalDeploymentStatus {
    /// A stashed deployment has no regional one; it maps to pending.
    fn from(status: DeploymentStatus) -> Self {
        status.as_str().parse().unwrap_or(Self::Pending)
    }
}
