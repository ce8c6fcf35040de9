//! Instances.

use tram_types::{Timestamp, status::InstanceStatus};

tram_types::message! {
    /// One run of a deployment.
    pub struct Instance {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub organization_id: String,
        pub app_id: String,
        pub service_id: String,
        pub regional_deployment_id: String,
        pub allocation_id: String,
        pub r#type: String,
        pub replica_index: i64,
        pub region: String,
        pub datacenter: String,
        pub hypervisor: String,
        pub status: InstanceStatus,
        pub messages: Vec<String>,
        pub started_at: Option<Timestamp>,
        pub succeeded_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
        pub xyz_deployment_id: String,
    }

    /// An instance as lists show it.
    pub struct InstanceListItem {
        pub id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub organization_id: String,
        pub app_id: String,
        pub service_id: String,
        pub regional_deployment_id: String,
        pub allocation_id: String,
        pub r#type: String,
        pub replica_index: i64,
        pub region: String,
        pub datacenter: String,
        pub status: InstanceStatus,
        pub messages: Vec<String>,
        pub xyz_deployment_id: String,
    }

    /// The answer of `get instance`.
    pub struct GetInstanceReply {
        pub instance: Option<Instance>,
    }

    /// The answer of `list instances`.
    pub struct ListInstancesReply {
        pub instances: Vec<InstanceListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub order: String,
    }
}
