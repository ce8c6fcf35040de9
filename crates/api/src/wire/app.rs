//! Apps.

use tram_types::{Int64, Timestamp, status::AppStatus};

use super::domain::Domain;

tram_types::message! {
    /// A namespace of services with domains.
    pub struct App {
        pub id: String,
        pub name: String,
        pub organization_id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub started_at: Option<Timestamp>,
        pub succeeded_at: Option<Timestamp>,
        pub paused_at: Option<Timestamp>,
        pub resumed_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
        pub status: AppStatus,
        pub messages: Vec<String>,
        pub version: Int64,
        pub domains: Vec<Domain>,
        pub life_cycle: Option<AppLifeCycle>,
    }

    /// An app as lists show it.
    pub struct AppListItem {
        pub id: String,
        pub name: String,
        pub organization_id: String,
        pub updated_at: Option<Timestamp>,
        pub created_at: Option<Timestamp>,
        pub domains: Vec<Domain>,
        pub status: AppStatus,
        pub messages: Vec<String>,
    }

    /// When an app goes by itself.
    pub struct AppLifeCycle {
        pub delete_when_empty: bool,
    }

    /// An app to make.
    pub struct CreateApp {
        pub name: String,
        pub life_cycle: Option<AppLifeCycle>,
        pub project_id: String,
    }

    /// What to change of an app.
    pub struct UpdateApp {
        pub name: Option<String>,
        pub life_cycle: Option<AppLifeCycle>,
    }

    /// The answer of `create app`.
    pub struct CreateAppReply {
        pub app: Option<App>,
    }

    /// The answer of `get app`.
    pub struct GetAppReply {
        pub app: Option<App>,
    }

    /// The answer of `list apps`.
    pub struct ListAppsReply {
        pub apps: Vec<AppListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }

    /// The answer of `update app`.
    pub struct UpdateAppReply {
        pub app: Option<App>,
    }

    /// The empty answer of `delete app`.
    pub struct DeleteAppReply {}

    /// The empty answer of `pause app`.
    pub struct PauseAppReply {}

    /// The empty answer of `resume app`.
    pub struct ResumeAppReply {}
}
