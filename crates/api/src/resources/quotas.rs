//! Limits, what is used of them, counters for dashboards.
//!
//! An installation of one's own has no limits but its machine, so the limits shown are high and the figures of use
//! are real. Volumes are bounded by the disk. What does not exist here yet (archives) has the limit
//! zero, which tells clients.

use std::{collections::BTreeMap, future::Future};

use tram_store::{filter, record};
use tram_types::{
    Int64, OrganizationId,
    status::{DomainType, InstanceSnapshotType, InstanceStatus},
    units::GIB,
    validate::DELAY_MAX_SECONDS,
};

use super::{
    catalog::can_sleep_lightly,
    instances::LIVE,
    organizations::own,
    services::accept::LIFE_CYCLE_MAX_SECONDS,
    volumes::{has_volumes, room},
};
use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    state::ApiState,
    views::count,
    wire::{
        quota::{
            DomainLoadBalancerQuotas, GetOrganizationQuotasUsageReply, GetQuotasReply,
            InstanceSnapshotQuotas, InstanceSnapshotTypeUsage, InstanceTypeUsage, LifecycleQuotas,
            PersistentVolumeQuotas, PersistentVolumeRegionUsage, QuotaUsage, Quotas, ScaleToZeroQuotas,
        },
        summary::{
            AppsSummary, DomainsSummary, GetOrganizationSummaryReply, InstancesSummary, MembersSummary,
            NeonPostgresSummary, OrganizationSummary, SecretsSummary, ServiceSummary,
        },
    },
};

/// What clients are shown where there is no limit: no real installation comes near.
const UNLIMITED: i64 = 1_000_000;

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/organizations/{organization_id}/quotas", "GetQuotas", quotas),
        get(
            "/v1/quotas/organizations/{organization_id}/usage",
            "GetOrganizationQuotasUsage",
            usage,
        ),
        get(
            "/v1/organizations/{organization_id}/summary",
            "GetOrganizationSummary",
            summary,
        ),
    ]
}

async fn quotas(call: Call) -> Result<GetQuotasReply, Error> {
    own(&call, "organization_id")?;
    let catalog = &call.api.catalog;
    let volumes = volumes_by_region(&call.api, call.caller.organization).await?;
    let volumes = volumes
        .into_iter()
        .map(|(region, (_, limit))| {
            let quotas = PersistentVolumeQuotas {
                max_total_size: limit,
                max_volume_size: limit,
                max_per_instance_size: limit,
            };
            (region, quotas)
        })
        .collect();
    let many = Int64(UNLIMITED);
    let days = |days: u32| i64::from(days);
    let life_cycle = i64::from(LIFE_CYCLE_MAX_SECONDS);
    Ok(GetQuotasReply {
        quotas: Some(Quotas {
            apps: many,
            services: many,
            domains: many,
            services_by_app: many,
            service_provisioning_concurrency: many,
            memory_mb: many,
            instance_types: catalog
                .instance_types
                .iter()
                .map(|kind| kind.id.to_string())
                .collect(),
            regions: catalog.regions.iter().map(|region| region.id.clone()).collect(),
            max_organization_members: many,
            max_instances_by_type: catalog
                .instance_types
                .iter()
                .map(|kind| (kind.id.to_string(), many))
                .collect(),
            persistent_volumes_by_region: volumes,
            custom_domains: many,
            domains_load_balancer: Some(DomainLoadBalancerQuotas { max_koyeb: UNLIMITED }),
            metrics_retention: days(call.api.settings.metrics_retention_days),
            logs_retention: days(call.api.settings.logs_retention_days),
            access_reserved_subdomains: Vec::new(),
            proxy_ports: UNLIMITED,
            scale_to_zero: Some(ScaleToZeroQuotas {
                is_deep_sleep_enabled: true,
                deep_sleep_idle_delay_min: 1,
                deep_sleep_idle_delay_max: DELAY_MAX_SECONDS,
                is_light_sleep_enabled: can_sleep_lightly(&call.api),
                light_sleep_idle_delay_min: 1,
                light_sleep_idle_delay_max: DELAY_MAX_SECONDS,
            }),
            archives: Int64(0),
            archive_max_size_mb: Int64(0),
            lifecycle: Some(LifecycleQuotas {
                delete_after_sleep_min: 1,
                delete_after_sleep_max: life_cycle,
                delete_after_create_min: 1,
                delete_after_create_max: life_cycle,
            }),
            max_projects: many,
            instance_snapshots: Some(InstanceSnapshotQuotas {
                filesystem: call.api.settings.snapshots_max.into(),
                full: match can_checkpoint(&call.api) {
                    true => call.api.settings.snapshots_max.into(),
                    false => 0,
                },
            }),
        }),
    })
}

/// Whether any region keeps processes and memory.
fn can_checkpoint(api: &ApiState) -> bool {
    let mut regions = api.catalog.regions.iter();
    regions.any(|region| {
        api.sites
            .for_region(&region.id)
            .is_some_and(|site| site.capabilities().checkpoint)
    })
}

/// Every entry of a list, page by page.
pub(crate) async fn every<T, F, Fut>(list: F) -> Result<Vec<T>, Error>
where
    F: Fn(filter::Page) -> Fut,
    Fut: Future<Output = tram_store::Result<filter::Listed<T>>>,
{
    let mut all = Vec::new();
    let mut page = filter::Page::largest();
    loop {
        let listed = list(page).await?;
        let last = listed.items.len() < page.limit as usize;
        all.extend(listed.items);
        if last {
            return Ok(all);
        }
        page.offset = page.offset.saturating_add(page.limit);
    }
}

async fn live_instances(
    api: &ApiState,
    organization: OrganizationId,
) -> Result<Vec<record::Instance>, Error> {
    let filter = filter::Instances {
        statuses: LIVE.to_vec(),
        ..filter::Instances::default()
    };
    every(|page| api.store.list_instances(organization, &filter, page)).await
}

async fn usage(call: Call) -> Result<GetOrganizationQuotasUsageReply, Error> {
    let id = own(&call, "organization_id")?;
    let store = &call.api.store;
    let one = filter::Page { limit: 1, offset: 0 };
    let apps = store.list_apps(id, &filter::Apps::default(), one).await?.count;
    let services =
        every(|page| async move { store.list_services(id, &filter::Services::default(), page).await });
    let services = services.await?;
    let ids: Vec<_> = services.iter().map(|service| service.id).collect();
    let mut proxy_ports = 0;
    for chunk in ids.chunks(filter::PAGE_ITEMS_MAX as usize) {
        proxy_ports += store.proxy_ports(id, chunk).await?.len();
    }
    let custom = filter::Domains {
        kinds: vec![DomainType::Custom],
        ..filter::Domains::default()
    };
    let mut snapshots = Vec::new();
    for kind in [InstanceSnapshotType::Filesystem, InstanceSnapshotType::Full] {
        snapshots.push(InstanceSnapshotTypeUsage {
            r#type: kind.to_string(),
            used: count(store.count_instance_snapshots(id, kind).await?),
            limit: call.api.settings.snapshots_max.into(),
        });
    }
    let domains = every(|page| store.list_domains(id, &custom, page)).await?;
    let balanced = domains
        .iter()
        .filter(|domain| domain.load_balancer.get("koyeb").is_some());
    let mut by_type: BTreeMap<String, i64> = BTreeMap::new();
    let mut memory_mib: u64 = 0;
    for instance in live_instances(&call.api, id).await? {
        // A sleeping instance may be frozen, and then still holds its memory.
        memory_mib += call
            .api
            .catalog
            .instance_type(&instance.instance_type)
            .map_or(0, |kind| kind.memory_mib());
        *by_type.entry(instance.instance_type).or_default() += 1;
    }
    Ok(GetOrganizationQuotasUsageReply {
        usage: Some(QuotaUsage {
            apps_used: count(apps),
            apps_limit: UNLIMITED,
            services_used: count(services.len() as u64),
            services_limit: UNLIMITED,
            memory_mb_used: count(memory_mib),
            memory_mb_limit: UNLIMITED,
            custom_domains_used: count(domains.len() as u64),
            custom_domains_limit: UNLIMITED,
            koyeb_lb_domains_used: count(balanced.count() as u64),
            koyeb_lb_domains_limit: UNLIMITED,
            proxy_ports_used: count(proxy_ports as u64),
            proxy_ports_limit: UNLIMITED,
            instances_by_type: by_type
                .into_iter()
                .map(|(instance_type, used)| InstanceTypeUsage {
                    instance_type,
                    used,
                    limit: UNLIMITED,
                })
                .collect(),
            persistent_volumes_by_region: volumes_by_region(&call.api, id)
                .await?
                .into_iter()
                .map(|(region, (used, limit))| PersistentVolumeRegionUsage {
                    region,
                    total_size_gb_used: used,
                    total_size_gb_limit: limit,
                })
                .collect(),
            instance_snapshots_by_type: snapshots,
        }),
    })
}

/// How many GB of volumes an organization has in each region that keeps them, and how many it could have: what the
/// machines have room for bounds it, and nothing else.
async fn volumes_by_region(
    api: &ApiState,
    organization: OrganizationId,
) -> Result<BTreeMap<String, (i64, i64)>, Error> {
    let filter = filter::Volumes::default();
    let all = every(|page| api.store.list_volumes(organization, &filter, page)).await?;
    let mut by_region = BTreeMap::new();
    for region in api
        .catalog
        .regions
        .iter()
        .filter(|region| has_volumes(api, &region.id))
    {
        let own = all.iter().filter(|volume| volume.region == region.id);
        let used: i64 = own.map(|volume| i64::from(volume.max_size)).sum();
        let limit = match room(api, &region.id).await? {
            Some(room) => used.saturating_add(count(room / GIB)),
            None => UNLIMITED,
        };
        by_region.insert(region.id.clone(), (used, limit));
    }
    Ok(by_region)
}

/// How many there are of each kind.
fn tally(kinds: impl Iterator<Item = String>) -> (Int64, BTreeMap<String, Int64>) {
    let mut by_kind: BTreeMap<String, Int64> = BTreeMap::new();
    let mut total = 0;
    for kind in kinds {
        by_kind.entry(kind).or_default().0 += 1;
        total += 1;
    }
    (Int64(total), by_kind)
}

async fn summary(call: Call) -> Result<GetOrganizationSummaryReply, Error> {
    let id = own(&call, "organization_id")?;
    let store = &call.api.store;
    let apps = every(|page| async move { store.list_apps(id, &filter::Apps::default(), page).await }).await?;
    let services =
        every(|page| async move { store.list_services(id, &filter::Services::default(), page).await })
            .await?;
    let domains =
        every(|page| async move { store.list_domains(id, &filter::Domains::default(), page).await }).await?;
    let secrets =
        every(|page| async move { store.list_secrets(id, &filter::Secrets::default(), page).await }).await?;
    let instances = live_instances(&call.api, id).await?;
    let awake = instances
        .iter()
        .filter(|instance| instance.status != InstanceStatus::Sleeping);
    let (instances_total, by_type) = tally(awake.map(|instance| instance.instance_type.clone()));
    let (apps_total, apps_by_status) = tally(apps.iter().map(|app| app.status.to_string()));
    let (domains_total, domains_by_status) = tally(domains.iter().map(|domain| domain.status.to_string()));
    let (secrets_total, secrets_by_type) = tally(secrets.iter().map(|secret| secret.kind.to_string()));
    let mut by_kind: BTreeMap<String, ServiceSummary> = BTreeMap::new();
    for service in &services {
        let entry = by_kind.entry(service.kind.to_string()).or_default();
        entry.total.0 += 1;
        entry.by_status.entry(service.status.to_string()).or_default().0 += 1;
    }
    Ok(GetOrganizationSummaryReply {
        summary: Some(OrganizationSummary {
            organization_id: id.to_string(),
            instances: Some(InstancesSummary {
                total: instances_total,
                by_type,
            }),
            apps: Some(AppsSummary {
                total: apps_total,
                by_status: apps_by_status,
            }),
            services: by_kind,
            domains: Some(DomainsSummary {
                total: domains_total,
                by_status: domains_by_status,
            }),
            secrets: Some(SecretsSummary {
                total: secrets_total,
                by_type: secrets_by_type,
            }),
            neon_postgres: Some(NeonPostgresSummary::default()),
            members: Some(MembersSummary::default()),
        }),
    })
}
