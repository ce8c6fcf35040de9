//! Limits and how much of them is in use.

use std::collections::BTreeMap;

use tram_types::Int64;

tram_types::message! {
    /// Limits of an organization.
    pub struct Quotas {
        pub apps: Int64,
        pub services: Int64,
        pub domains: Int64,
        pub services_by_app: Int64,
        pub service_provisioning_concurrency: Int64,
        pub memory_mb: Int64,
        pub instance_types: Vec<String>,
        pub regions: Vec<String>,
        pub max_organization_members: Int64,
        pub max_instances_by_type: BTreeMap<String, Int64>,
        pub persistent_volumes_by_region: BTreeMap<String, PersistentVolumeQuotas>,
        pub custom_domains: Int64,
        pub domains_load_balancer: Option<DomainLoadBalancerQuotas>,
        pub metrics_retention: i64,
        pub logs_retention: i64,
        pub access_reserved_subdomains: Vec<String>,
        pub proxy_ports: i64,
        pub scale_to_zero: Option<ScaleToZeroQuotas>,
        pub archives: Int64,
        pub archive_max_size_mb: Int64,
        pub lifecycle: Option<LifecycleQuotas>,
        pub max_projects: Int64,
        pub instance_snapshots: Option<InstanceSnapshotQuotas>,
    }

    /// Limits of volumes, in GB.
    pub struct PersistentVolumeQuotas {
        pub max_total_size: i64,
        pub max_volume_size: i64,
        pub max_per_instance_size: i64,
    }

    /// Limits of load balancers.
    pub struct DomainLoadBalancerQuotas {
        pub max_koyeb: i64,
    }

    /// Limits of sleep, in seconds.
    pub struct ScaleToZeroQuotas {
        pub is_deep_sleep_enabled: bool,
        pub deep_sleep_idle_delay_min: i64,
        pub deep_sleep_idle_delay_max: i64,
        pub is_light_sleep_enabled: bool,
        pub light_sleep_idle_delay_min: i64,
        pub light_sleep_idle_delay_max: i64,
    }

    /// Limits of self-deletion, in seconds.
    pub struct LifecycleQuotas {
        pub delete_after_sleep_min: i64,
        pub delete_after_sleep_max: i64,
        pub delete_after_create_min: i64,
        pub delete_after_create_max: i64,
    }

    /// Limits of instance snapshots.
    pub struct InstanceSnapshotQuotas {
        pub filesystem: i64,
        pub full: i64,
    }

    /// The answer of `get quotas`.
    pub struct GetQuotasReply {
        pub quotas: Option<Quotas>,
    }

    /// The answer of `get organization quotas usage`.
    pub struct GetOrganizationQuotasUsageReply {
        pub usage: Option<QuotaUsage>,
    }

    /// What is used of each limit.
    pub struct QuotaUsage {
        pub apps_used: i64,
        pub apps_limit: i64,
        pub services_used: i64,
        pub services_limit: i64,
        pub memory_mb_used: i64,
        pub memory_mb_limit: i64,
        pub custom_domains_used: i64,
        pub custom_domains_limit: i64,
        pub koyeb_lb_domains_used: i64,
        pub koyeb_lb_domains_limit: i64,
        pub proxy_ports_used: i64,
        pub proxy_ports_limit: i64,
        pub instances_by_type: Vec<InstanceTypeUsage>,
        pub persistent_volumes_by_region: Vec<PersistentVolumeRegionUsage>,
        pub instance_snapshots_by_type: Vec<InstanceSnapshotTypeUsage>,
    }

    /// What is used of an instance type.
    pub struct InstanceTypeUsage {
        pub instance_type: String,
        pub used: i64,
        pub limit: i64,
    }

    /// What is used of the volumes of a region.
    pub struct PersistentVolumeRegionUsage {
        pub region: String,
        pub total_size_gb_used: i64,
        pub total_size_gb_limit: i64,
    }

    /// What is used of a type of snapshot.
    pub struct InstanceSnapshotTypeUsage {
        pub r#type: String,
        pub used: i64,
        pub limit: i64,
    }
}
