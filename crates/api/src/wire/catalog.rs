//! The catalog: regions, datacenters, instance types and their availability.

use std::collections::BTreeMap;

use tram_types::status::AvailabilityLevel;

tram_types::message! {
    /// A place to run in.
    pub struct Region {
        pub id: String,
        pub name: String,
        pub coordinates: Vec<String>,
        pub status: String,
        pub instances: Vec<String>,
        pub datacenters: Vec<String>,
        pub volumes_enabled: bool,
        pub scope: String,
    }

    /// A region as lists show it.
    pub struct RegionListItem {
        pub id: String,
        pub name: String,
        pub coordinates: Vec<String>,
        pub status: String,
        pub instances: Vec<String>,
        pub datacenters: Vec<String>,
        pub volumes_enabled: bool,
        pub scope: String,
    }

    /// The answer of `get region`.
    pub struct GetRegionReply {
        pub region: Option<Region>,
    }

    /// The answer of `list regions`.
    pub struct ListRegionsReply {
        pub regions: Vec<RegionListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }

    /// A datacenter.
    pub struct DatacenterListItem {
        pub id: String,
        pub region_id: String,
        pub domain: String,
        pub coordinates: Vec<String>,
        pub use_gpu: bool,
        pub regions: Vec<String>,
    }

    /// The answer of `list datacenters`.
    pub struct ListDatacentersReply {
        pub datacenters: Vec<DatacenterListItem>,
    }

    /// An instance type.
    pub struct CatalogInstance {
        pub id: String,
        pub description: String,
        pub vcpu: i64,
        pub memory: String,
        pub disk: String,
        pub price_per_second: String,
        pub price_hourly: String,
        pub price_monthly: String,
        pub regions: Vec<String>,
        pub status: String,
        pub require_plan: Vec<String>,
        pub vcpu_shares: f64,
        pub display_name: String,
        pub aliases: Vec<String>,
        pub r#type: String,
        pub gpu: Option<CatalogGpuDetails>,
        pub service_types: Vec<String>,
        pub volumes_enabled: bool,
        pub light_sleep_enabled: bool,
        /// What stands between its instances and the machine: `container` or `gvisor` (beyond Koyeb).
        pub isolation: String,
    }

    /// An instance type as lists show it.
    pub struct CatalogInstanceListItem {
        pub id: String,
        pub description: String,
        pub vcpu: i64,
        pub memory: String,
        pub disk: String,
        pub price_per_second: String,
        pub price_hourly: String,
        pub price_monthly: String,
        pub regions: Vec<String>,
        pub status: String,
        pub require_plan: Vec<String>,
        pub vcpu_shares: f64,
        pub display_name: String,
        pub aliases: Vec<String>,
        pub r#type: String,
        pub gpu: Option<CatalogGpuDetails>,
        pub service_types: Vec<String>,
        pub volumes_enabled: bool,
        pub light_sleep_enabled: bool,
        /// What stands between its instances and the machine: `container` or `gvisor` (beyond Koyeb).
        pub isolation: String,
    }

    /// The accelerators of an instance type.
    #[schema(as = CatalogGPUDetails)]
    pub struct CatalogGpuDetails {
        pub count: i64,
        pub brand: String,
        pub memory: String,
        pub name: String,
    }

    /// The answer of `get catalog instance`.
    pub struct GetCatalogInstanceReply {
        pub instance: Option<CatalogInstance>,
    }

    /// The answer of `list catalog instances`.
    pub struct ListCatalogInstancesReply {
        pub instances: Vec<CatalogInstanceListItem>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }

    /// What there is to be had.
    pub struct CatalogUsage {
        pub instances: BTreeMap<String, InstanceAvailability>,
    }

    /// What there is of one instance type.
    pub struct InstanceAvailability {
        pub regions: BTreeMap<String, RegionAvailability>,
        pub availability: AvailabilityLevel,
    }

    /// What there is in one region.
    pub struct RegionAvailability {
        pub availability: AvailabilityLevel,
    }

    /// The answer of `list usage`.
    pub struct ListUsageReply {
        pub usage: Option<CatalogUsage>,
    }
}
