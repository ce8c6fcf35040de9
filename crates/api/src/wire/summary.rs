//! Counters of an organization, and what it used over time.

use std::collections::BTreeMap;

use tram_types::{Int64, Timestamp};

tram_types::message! {
    /// Counters for dashboards.
    pub struct OrganizationSummary {
        pub organization_id: String,
        pub instances: Option<InstancesSummary>,
        pub apps: Option<AppsSummary>,
        pub services: BTreeMap<String, ServiceSummary>,
        pub domains: Option<DomainsSummary>,
        pub secrets: Option<SecretsSummary>,
        pub neon_postgres: Option<NeonPostgresSummary>,
        pub members: Option<MembersSummary>,
    }

    /// Instances by type.
    pub struct InstancesSummary {
        pub total: Int64,
        pub by_type: BTreeMap<String, Int64>,
    }

    /// Apps by status.
    pub struct AppsSummary {
        pub total: Int64,
        pub by_status: BTreeMap<String, Int64>,
    }

    /// Services by status.
    pub struct ServiceSummary {
        pub total: Int64,
        pub by_status: BTreeMap<String, Int64>,
    }

    /// Domains by status.
    pub struct DomainsSummary {
        pub total: Int64,
        pub by_status: BTreeMap<String, Int64>,
    }

    /// Secrets by type.
    pub struct SecretsSummary {
        pub total: Int64,
        pub by_type: BTreeMap<String, Int64>,
    }

    /// Databases by size.
    pub struct NeonPostgresSummary {
        pub total: Int64,
        pub by_instance_type: BTreeMap<String, Int64>,
    }

    /// Members.
    pub struct MembersSummary {
        pub total: Int64,
        pub invitations_by_status: BTreeMap<String, Int64>,
    }

    /// The answer of `get organization summary`.
    pub struct GetOrganizationSummaryReply {
        pub summary: Option<OrganizationSummary>,
    }

    /// Seconds of instances, by period.
    pub struct Usage {
        pub organization_id: String,
        pub periods: BTreeMap<String, PeriodUsage>,
    }

    /// Usage in one period.
    pub struct PeriodUsage {
        pub starting_time: Option<Timestamp>,
        pub ending_time: Option<Timestamp>,
        pub apps: Vec<AppUsage>,
        /// Ours: what questions to models cost, told apart as `by` asks; the largest first.
        pub tokens: Vec<TokenUsage>,
    }

    /// Ours: what questions to models cost. What it is not told apart by, and what is not known, is empty.
    pub struct TokenUsage {
        pub app_id: String,
        pub app_name: String,
        pub service_id: String,
        pub service_name: String,
        /// The model, as the deployment that answered names it.
        pub model: String,
        pub project_id: String,
        pub project_name: String,
        /// The token that asked; empty for those who asked at a service's own URL.
        pub credential_id: String,
        pub credential_name: String,
        pub requests: i64,
        /// Those of them that were refused by the engine or broke off.
        pub failed_requests: i64,
        /// Cached ones among them.
        pub prompt_tokens: i64,
        pub completion_tokens: i64,
        /// Tokens of prompts that had not to be computed.
        pub cached_tokens: i64,
        /// How long they waited for an instance, all together, in milliseconds.
        pub queue_ms: i64,
        /// Mean time to the first byte of an answer, of those that had one, in milliseconds.
        pub mean_first_token_ms: i64,
        /// How long they took, all together, in milliseconds.
        pub duration_ms: i64,
    }

    /// Usage of an app.
    pub struct AppUsage {
        pub app_id: String,
        pub app_name: String,
        pub services: Vec<ServiceUsage>,
        pub databases: Vec<DatabaseUsage>,
    }

    /// Usage of a service.
    pub struct ServiceUsage {
        pub service_id: String,
        pub service_name: String,
        pub regions: BTreeMap<String, RegionUsage>,
        /// Ours: what its instances that are asleep on disk take there now; shown of the month that is running.
        pub checkpoint_bytes: i64,
    }

    /// Usage in a region, by instance type.
    pub struct RegionUsage {
        pub instances: BTreeMap<String, InstanceUsage>,
    }

    /// Usage of an instance type.
    pub struct InstanceUsage {
        pub duration_seconds: i64,
    }

    /// Usage of a database.
    pub struct DatabaseUsage {
        pub service_id: String,
        pub service_name: String,
        pub compute_time_seconds: i64,
        pub data_storage_megabytes_hours: i64,
    }

    /// The answer of `get organization usage`.
    pub struct GetOrganizationUsageReply {
        pub usage: Option<Usage>,
    }

    /// Usage of one instance.
    pub struct UsageDetails {
        pub organization_id: String,
        pub instance_id: String,
        pub app_id: String,
        pub app_name: String,
        pub service_id: String,
        pub service_name: String,
        pub regional_deployment_id: String,
        pub region: String,
        pub deployment_id: String,
        pub instance_type: String,
        pub duration_seconds: i64,
        pub started_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
    }

    /// Usage of one database.
    pub struct DatabaseUsageDetails {
        pub organization_id: String,
        pub app_id: String,
        pub app_name: String,
        pub service_id: String,
        pub service_name: String,
        pub compute_time_seconds: i64,
        pub data_storage_megabytes_hour: i64,
        pub started_at: Option<Timestamp>,
        pub terminated_at: Option<Timestamp>,
    }

    /// The answer of `get organization usage details`.
    pub struct GetOrganizationUsageDetailsReply {
        pub usage_details: Vec<UsageDetails>,
        pub database_details: Vec<DatabaseUsageDetails>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub order: String,
    }
}
