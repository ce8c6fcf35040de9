//! The audit feed.

use std::collections::BTreeMap;

use tram_types::Timestamp;

tram_types::message! {
    /// One entry of the audit feed: who did what to which object.
    pub struct Activity {
        pub id: String,
        pub actor: Option<ActivityObject>,
        pub object: Option<ActivityObject>,
        pub verb: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
        pub created_at: Option<Timestamp>,
    }

    /// An actor or an object of the feed.
    #[schema(as = Object)]
    pub struct ActivityObject {
        pub id: String,
        pub name: String,
        pub r#type: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
        pub deleted: bool,
    }

    /// A page of the audit feed.
    pub struct ActivityList {
        pub activities: Vec<Activity>,
        pub limit: i64,
        pub offset: i64,
        pub has_next: bool,
    }

    /// An activity somebody should know of.
    pub struct Notification {
        pub id: String,
        pub activity: Option<Activity>,
        pub is_read: bool,
        pub is_seen: bool,
        pub created_at: Option<Timestamp>,
    }

    /// A page of notifications.
    pub struct NotificationList {
        pub notifications: Vec<Notification>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub is_read: bool,
        pub is_seen: bool,
        pub unread: i64,
        pub unseen: i64,
    }
}
