//! The catalog: what there is to run on.
//!
//! An installation publishes what it can run and nothing else. Prices are zero, since nobody pays here.

use std::collections::BTreeMap;

use tram_types::{
    catalog::{self, Family, InstanceType},
    gpu::Gpu,
    status::AvailabilityLevel,
    units::MIB,
};

use super::volumes::has_volumes;
use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::count,
    wire::catalog::{
        CatalogGpuDetails, CatalogInstance, CatalogInstanceListItem, CatalogUsage, DatacenterListItem,
        GetCatalogInstanceReply, GetRegionReply, InstanceAvailability, ListCatalogInstancesReply,
        ListDatacentersReply, ListRegionsReply, ListUsageReply, Region, RegionAvailability, RegionListItem,
    },
};

crate::query! {
    /// Which entries of the catalog.
    struct Entries {
        page: Page,
        id: Option<String>,
    }
    /// Availability of what.
    struct InRegion {
        region: Option<String>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/catalog/regions", "ListRegions", list_regions),
        get("/v1/catalog/regions/{id}", "GetRegion", get_region),
        get("/v1/catalog/datacenters", "ListDatacenters", list_datacenters),
        get("/v1/catalog/instances", "ListCatalogInstances", list_instances),
        get("/v1/catalog/instances/{id}", "GetCatalogInstance", get_instance),
        get("/v1/catalog/usage", "ListUsage", list_usage),
    ]
}

async fn list_regions(call: Call<Entries>) -> Result<ListRegionsReply, Error> {
    let regions: Vec<RegionListItem> = call
        .api
        .catalog
        .regions
        .iter()
        .filter(|region| call.query.id.as_ref().is_none_or(|id| *id == region.id))
        .map(|entry| {
            let region = region(&call.api, entry);
            RegionListItem {
                id: region.id,
                name: region.name,
                coordinates: region.coordinates,
                status: region.status,
                instances: region.instances,
                datacenters: region.datacenters,
                volumes_enabled: region.volumes_enabled,
                scope: region.scope,
            }
        })
        .collect();
    Ok(ListRegionsReply {
        count: count(regions.len() as u64),
        limit: call.query.page.limit,
        offset: call.query.page.offset,
        regions: call.query.page.of(regions),
    })
}

async fn get_region(call: Call) -> Result<GetRegionReply, Error> {
    let id = call.text("id");
    let found = call.api.catalog.regions.iter().find(|region| region.id == id);
    let found = found.ok_or_else(|| Error::not_found("region", id))?;
    Ok(GetRegionReply {
        region: Some(region(&call.api, found)),
    })
}

async fn list_datacenters(call: Call<Nothing>) -> Result<ListDatacentersReply, Error> {
    let datacenters = call.api.catalog.regions.iter().map(|region| DatacenterListItem {
        id: region.datacenter.clone(),
        region_id: region.id.clone(),
        domain: call.api.settings.base_domain.clone(),
        coordinates: coordinates(region),
        use_gpu: call
            .api
            .catalog
            .instance_types
            .iter()
            .any(|kind| kind.gpu.is_some()),
        regions: vec![region.id.clone()],
    });
    Ok(ListDatacentersReply {
        datacenters: datacenters.collect(),
    })
}

async fn list_instances(call: Call<Entries>) -> Result<ListCatalogInstancesReply, Error> {
    let instances: Vec<CatalogInstanceListItem> = call
        .api
        .catalog
        .instance_types
        .iter()
        .filter(|kind| call.query.id.as_ref().is_none_or(|id| *id == kind.id))
        .map(|kind| item(instance(&call.api, kind)))
        .collect();
    Ok(ListCatalogInstancesReply {
        count: count(instances.len() as u64),
        limit: call.query.page.limit,
        offset: call.query.page.offset,
        instances: call.query.page.of(instances),
    })
}

async fn get_instance(call: Call) -> Result<GetCatalogInstanceReply, Error> {
    let id = call.text("id");
    let found = call.api.catalog.instance_type(id);
    let found = found.ok_or_else(|| Error::not_found("instance type", id))?;
    Ok(GetCatalogInstanceReply {
        instance: Some(instance(&call.api, found)),
    })
}

/// How much is still free is the sites' to know, and they do not tell yet: unknown is what the contract has for it.
async fn list_usage(call: Call<InRegion>) -> Result<ListUsageReply, Error> {
    let catalog = &call.api.catalog;
    let wanted = |id: &str| call.query.region.as_deref().is_none_or(|region| region == id);
    let regions: BTreeMap<String, RegionAvailability> = catalog
        .regions
        .iter()
        .filter(|region| wanted(&region.id))
        .map(|region| {
            let availability = AvailabilityLevel::Unknown;
            (region.id.clone(), RegionAvailability { availability })
        })
        .collect();
    let instances = catalog.instance_types.iter().map(|kind| {
        let entry = InstanceAvailability {
            regions: regions.clone(),
            availability: AvailabilityLevel::Unknown,
        };
        (kind.id.to_string(), entry)
    });
    Ok(ListUsageReply {
        usage: Some(CatalogUsage {
            instances: instances.collect(),
        }),
    })
}

fn coordinates(region: &catalog::Region) -> Vec<String> {
    region.coordinates.iter().map(ToString::to_string).collect()
}

fn region(api: &ApiState, region: &catalog::Region) -> Region {
    let catalog = &api.catalog;
    Region {
        id: region.id.clone(),
        name: region.name.clone(),
        coordinates: coordinates(region),
        status: "AVAILABLE".to_owned(),
        instances: catalog
            .instance_types
            .iter()
            .map(|kind| kind.id.to_string())
            .collect(),
        datacenters: vec![region.datacenter.clone()],
        volumes_enabled: has_volumes(api, &region.id),
        scope: "metropolitan".to_owned(),
    }
}

/// Whether instances can be frozen here: asked of the sites, which know.
pub(crate) fn can_sleep_lightly(api: &ApiState) -> bool {
    let mut sites = api.sites.iter().peekable();
    sites.peek().is_some() && sites.all(|(_, site)| site.capabilities().freeze)
}

fn instance(api: &ApiState, kind: &InstanceType) -> CatalogInstance {
    let catalog = &api.catalog;
    let light_sleep_enabled = kind.gpu.is_none() && can_sleep_lightly(api);
    let zero = || "0".to_owned();
    CatalogInstance {
        id: kind.id.to_string(),
        description: description(kind),
        vcpu: i64::from(kind.cpu_millis.div_ceil(1000)),
        memory: megabytes(kind.memory_mib()),
        disk: megabytes(kind.disk_bytes / MIB),
        price_per_second: zero(),
        price_hourly: zero(),
        price_monthly: zero(),
        regions: catalog.regions.iter().map(|region| region.id.clone()).collect(),
        status: match kind.unusable {
            None => "AVAILABLE",
            Some(_) => "UNAVAILABLE",
        }
        .to_owned(),
        require_plan: Vec::new(),
        vcpu_shares: shares(kind),
        display_name: kind.display_name.to_string(),
        aliases: Vec::new(),
        r#type: match kind.family {
            Family::Free => "free",
            Family::Eco => "eco",
            Family::Standard => "standard",
            Family::Gpu => "gpu",
        }
        .to_owned(),
        gpu: kind.gpu.as_ref().map(gpu),
        service_types: ["WEB", "WORKER", "SANDBOX"].map(str::to_owned).to_vec(),
        volumes_enabled: catalog.regions.iter().all(|region| has_volumes(api, &region.id)),
        light_sleep_enabled,
        isolation: kind.isolation.to_string(),
    }
}

fn description(kind: &InstanceType) -> String {
    let text = format!(
        "{} vCPU, {} of memory",
        shares(kind),
        megabytes(kind.memory_mib())
    );
    match &kind.gpu {
        None => text,
        Some(gpu) => match gpu.share_bytes {
            None => format!("{} {}, {text}", gpu.count, gpu.name),
            Some(bytes) => format!("{} of a {}, {text}", megabytes(bytes / MIB), gpu.name),
        },
    }
}

/// Its memory is that of one device, as upstream has it, or the share of it that an instance is meant to take.
fn gpu(gpu: &Gpu) -> CatalogGpuDetails {
    CatalogGpuDetails {
        count: i64::from(gpu.count),
        brand: gpu.brand.clone(),
        memory: gpu
            .share_bytes
            .or(gpu.memory_bytes)
            .map_or_else(String::new, |bytes| megabytes(bytes / MIB)),
        name: gpu.name.clone(),
    }
}

fn item(kind: CatalogInstance) -> CatalogInstanceListItem {
    CatalogInstanceListItem {
        id: kind.id,
        description: kind.description,
        vcpu: kind.vcpu,
        memory: kind.memory,
        disk: kind.disk,
        price_per_second: kind.price_per_second,
        price_hourly: kind.price_hourly,
        price_monthly: kind.price_monthly,
        regions: kind.regions,
        status: kind.status,
        require_plan: kind.require_plan,
        vcpu_shares: kind.vcpu_shares,
        display_name: kind.display_name,
        aliases: kind.aliases,
        r#type: kind.r#type,
        gpu: kind.gpu,
        service_types: kind.service_types,
        volumes_enabled: kind.volumes_enabled,
        light_sleep_enabled: kind.light_sleep_enabled,
        isolation: kind.isolation,
    }
}

fn shares(kind: &InstanceType) -> f64 {
    f64::from(kind.cpu_millis) / 1000.0
}

/// `512MB`, `1GB`, `2.5GB`: how the contract writes sizes.
fn megabytes(mebibytes: u64) -> String {
    match mebibytes {
        small if small < 1024 => format!("{small}MB"),
        whole if whole % 1024 == 0 => format!("{}GB", whole / 1024),
        other => format!("{}.{}GB", other / 1024, other % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::megabytes;

    #[test]
    fn sizes_as_the_contract_writes_them() {
        assert_eq!(
            [256, 1024, 2560, 2048].map(megabytes),
            ["256MB", "1GB", "2.5GB", "2GB"]
        );
    }
}
