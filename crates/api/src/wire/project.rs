//! Projects.

use tram_types::{Int64, Timestamp};

tram_types::message! {
    /// A group of services.
    pub struct Project {
        pub id: String,
        pub name: String,
        pub description: String,
        pub organization_id: String,
        pub updated_at: Option<Timestamp>,
        pub created_at: Option<Timestamp>,
        pub service_count: Int64,
    }

    /// A project to make.
    pub struct CreateProject {
        pub name: String,
        pub description: String,
    }

    /// The answer of `create project`.
    pub struct CreateProjectReply {
        pub project: Option<Project>,
    }

    /// The answer of `get project`.
    pub struct GetProjectReply {
        pub project: Option<Project>,
    }

    /// The answer of `list projects`.
    pub struct ListProjectsReply {
        pub projects: Vec<Project>,
        pub limit: i64,
        pub offset: i64,
    }

    /// The answer of `update project`.
    pub struct UpdateProjectReply {
        pub project: Option<Project>,
    }

    /// The empty answer of `delete project`.
    pub struct DeleteProjectReply {}
}
