//! Histories of objects.

use std::collections::BTreeMap;

use tram_types::Timestamp;

tram_types::message! {
    /// One entry of an app's history.
    pub struct AppEvent {
        pub id: String,
        pub when: Option<Timestamp>,
        pub organization_id: String,
        pub app_id: String,
        pub r#type: String,
        pub message: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `list app events`.
    pub struct ListAppEventsReply {
        pub events: Vec<AppEvent>,
        pub limit: i64,
        pub offset: i64,
        pub order: String,
        pub has_next: bool,
    }

    /// One entry of a service's history.
    pub struct ServiceEvent {
        pub id: String,
        pub when: Option<Timestamp>,
        pub organization_id: String,
        pub service_id: String,
        pub r#type: String,
        pub message: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `list service events`.
    pub struct ListServiceEventsReply {
        pub events: Vec<ServiceEvent>,
        pub limit: i64,
        pub offset: i64,
        pub order: String,
        pub has_next: bool,
    }

    /// One entry of a deployment's history.
    pub struct DeploymentEvent {
        pub id: String,
        pub when: Option<Timestamp>,
        pub organization_id: String,
        pub deployment_id: String,
        pub r#type: String,
        pub message: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `list deployment events`.
    pub struct ListDeploymentEventsReply {
        pub events: Vec<DeploymentEvent>,
        pub limit: i64,
        pub offset: i64,
        pub order: String,
        pub has_next: bool,
    }

    /// One entry of a regional deployment's history.
    pub struct RegionalDeploymentEvent {
        pub id: String,
        pub when: Option<Timestamp>,
        pub organization_id: String,
        pub regional_deployment_id: String,
        pub r#type: String,
        pub message: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `list regional deployment events`.
    pub struct ListRegionalDeploymentEventsReply {
        pub events: Vec<RegionalDeploymentEvent>,
        pub limit: i64,
        pub offset: i64,
        pub order: String,
        pub has_next: bool,
    }

    /// One entry of an instance's history.
    pub struct InstanceEvent {
        pub id: String,
        pub when: Option<Timestamp>,
        pub organization_id: String,
        pub instance_id: String,
        pub r#type: String,
        pub message: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `list instance events`.
    pub struct ListInstanceEventsReply {
        pub events: Vec<InstanceEvent>,
        pub limit: i64,
        pub offset: i64,
        pub order: String,
        pub has_next: bool,
    }
}
