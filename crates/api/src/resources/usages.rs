//! What an organization used: seconds of instances, by month, app, service, region and type; and, ours, what questions to
//! models cost.
//!
//! Seconds are counted from the instances the store still knows; the controller removes those of deleted services after their
//! end, and with them their share.

mod tokens;

use std::collections::BTreeMap;

use jiff::{ToSpan as _, tz::TimeZone};
use tram_store::{filter, record};
use tram_types::{FieldViolation, OrganizationId, Timestamp};

use super::quotas::every;
use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::{Order, Page},
    state::ApiState,
    views::count,
    wire::summary::{
        AppUsage, GetOrganizationUsageDetailsReply, GetOrganizationUsageReply, InstanceUsage, PeriodUsage,
        RegionUsage, ServiceUsage, Usage, UsageDetails,
    },
};

/// Longest span of time that is added up in one answer: three years of months.
const MONTHS_MAX: usize = 36;

crate::query! {
    /// Of which time, and by what questions to models are told apart.
    struct Asked {
        starting_time: Option<Timestamp>,
        ending_time: Option<Timestamp>,
        by: Vec<String>,
    }
    /// Of which time, page by page.
    struct Details {
        page: Page,
        starting_time: Option<Timestamp>,
        ending_time: Option<Timestamp>,
        order: Order,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/usages", "GetOrganizationUsage", usage),
        get("/v1/usages/details", "GetOrganizationUsageDetails", details),
    ]
}

/// The asked span; without a start it begins with the month.
fn span(
    api: &ApiState,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
) -> Result<Vec<(String, Timestamp, Timestamp)>, Error> {
    let end = end.unwrap_or_else(|| api.clock.now());
    let invalid = |field: &str, description: String| {
        Error::InvalidParameters(vec![FieldViolation::new(field, description)])
    };
    let too_far = |field: &str| invalid(field, "lies too far away to be divided into months".to_owned());
    let start = match start {
        Some(start) => start,
        None => month(end).ok_or_else(|| too_far("ending_time"))?.1,
    };
    let wrong = |description: String| Err(invalid("starting_time", description));
    if start > end {
        return wrong("must not be after `ending_time`".to_owned());
    }
    let mut months = Vec::new();
    let mut from = start;
    while from < end {
        if months.len() == MONTHS_MAX {
            return wrong(format!("may be at most {MONTHS_MAX} months before `ending_time`"));
        }
        let (name, _, next) = month(from).ok_or_else(|| {
            too_far(match from == start {
                true => "starting_time",
                false => "ending_time",
            })
        })?;
        months.push((name, from, next.min(end)));
        from = next;
    }
    Ok(months)
}

/// The month a moment is in: its name, its first moment and that of the next; `None` at the ends of the calendar.
fn month(at: Timestamp) -> Option<(String, Timestamp, Timestamp)> {
    let first = at.jiff().to_zoned(TimeZone::UTC).first_of_month().ok()?;
    let first = first.start_of_day().ok()?;
    let next = first.checked_add(1.month()).ok()?;
    let name = format!("{:04}-{:02}", first.year(), first.month());
    Some((name, first.timestamp().into(), next.timestamp().into()))
}

/// Names of apps and services by their id.
struct Names {
    apps: BTreeMap<String, String>,
    services: BTreeMap<String, String>,
}

async fn names(api: &ApiState, id: OrganizationId) -> Result<Names, Error> {
    let store = &api.store;
    let apps = every(|page| async move { store.list_apps(id, &filter::Apps::default(), page).await }).await?;
    let services =
        every(|page| async move { store.list_services(id, &filter::Services::default(), page).await })
            .await?;
    Ok(Names {
        apps: apps
            .into_iter()
            .map(|app| (app.id.to_string(), app.name))
            .collect(),
        services: services
            .into_iter()
            .map(|service| (service.id.to_string(), service.name))
            .collect(),
    })
}

async fn instances(
    api: &ApiState,
    id: OrganizationId,
    start: Timestamp,
    end: Timestamp,
    order: Order,
) -> Result<Vec<record::Instance>, Error> {
    let filter = filter::Instances {
        starting_time: Some(start),
        ending_time: Some(end),
        order: order.stored(),
        ..filter::Instances::default()
    };
    every(|page| api.store.list_instances(id, &filter, page)).await
}

/// Seconds that an instance ran between `from` and `to`.
fn seconds(instance: &record::Instance, from: Timestamp, to: Timestamp) -> i64 {
    let Some(started) = instance.started_at else {
        return 0;
    };
    let began = started.max(from);
    let ended = instance.terminated_at.map_or(to, |end| end.min(to));
    count(ended.since(began).as_secs())
}

async fn usage(call: Call<Asked>) -> Result<GetOrganizationUsageReply, Error> {
    let id = call.caller.organization;
    let months = span(&call.api, call.query.starting_time, call.query.ending_time)?;
    let by = tokens::by(&call.query.by)?;
    let mut periods = BTreeMap::new();
    if let (Some((_, start, _)), Some((_, _, end))) = (months.first(), months.last()) {
        let names = names(&call.api, id).await?;
        let instances = instances(&call.api, id, *start, *end, Order::Ascending).await?;
        for (name, from, to) in &months {
            periods.insert(name.clone(), period(&instances, &names, *from, *to));
        }
        let token_names = tokens::Names::read(&call.api, id, &by).await?;
        for (name, from, to) in &months {
            let sums = call.api.store.token_usages(id, *from, *to, &by).await?;
            if let Some(period) = periods.get_mut(name) {
                period.tokens = sums
                    .into_iter()
                    .filter(|sum| sum.tokens.requests > 0)
                    .map(|sum| tokens::shown(sum, &names, &token_names))
                    .collect();
            }
        }
        let is_running = call.api.clock.now() <= *end;
        if let Some(period) = periods.values_mut().last().filter(|_| is_running) {
            show_checkpoints(&call.api, &instances, period).await;
        }
    }
    Ok(GetOrganizationUsageReply {
        usage: Some(Usage {
            organization_id: id.to_string(),
            periods,
        }),
    })
}

/// Says what services take on disk while they sleep. A site that does not answer says nothing.
async fn show_checkpoints(api: &ApiState, instances: &[record::Instance], period: &mut PeriodUsage) {
    let mut taken: BTreeMap<String, u64> = BTreeMap::new();
    for (_, site) in api.sites.iter() {
        let sizes = match site.checkpoint_bytes().await {
            Ok(sizes) => sizes,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "cannot tell the size of checkpoints"
                );
                continue;
            }
        };
        for instance in instances {
            if let Some(bytes) = sizes.get(&instance.id) {
                *taken.entry(instance.service_id.to_string()).or_default() += bytes;
            }
        }
    }
    for service in period.apps.iter_mut().flat_map(|app| &mut app.services) {
        service.checkpoint_bytes = taken.get(&service.service_id).map_or(0, |bytes| count(*bytes));
    }
}

fn period(instances: &[record::Instance], names: &Names, from: Timestamp, to: Timestamp) -> PeriodUsage {
    type Services = BTreeMap<String, BTreeMap<String, RegionUsage>>;
    let mut apps: BTreeMap<String, Services> = BTreeMap::new();
    for instance in instances {
        let ran = seconds(instance, from, to);
        if ran > 0 {
            apps.entry(instance.app_id.to_string())
                .or_default()
                .entry(instance.service_id.to_string())
                .or_default()
                .entry(instance.region.clone())
                .or_default()
                .instances
                .entry(instance.instance_type.clone())
                .or_insert(InstanceUsage { duration_seconds: 0 })
                .duration_seconds += ran;
        }
    }
    PeriodUsage {
        starting_time: Some(from),
        ending_time: Some(to),
        apps: apps
            .into_iter()
            .map(|(app_id, services)| AppUsage {
                app_name: names.apps.get(&app_id).cloned().unwrap_or_default(),
                app_id,
                services: services
                    .into_iter()
                    .map(|(service_id, regions)| ServiceUsage {
                        service_name: names.services.get(&service_id).cloned().unwrap_or_default(),
                        service_id,
                        regions,
                        checkpoint_bytes: 0,
                    })
                    .collect(),
                databases: Vec::new(),
            })
            .collect(),
        tokens: Vec::new(),
    }
}

async fn details(call: Call<Details>) -> Result<GetOrganizationUsageDetailsReply, Error> {
    let id = call.caller.organization;
    let page = call.query.page;
    let months = span(&call.api, call.query.starting_time, call.query.ending_time)?;
    let mut reply = GetOrganizationUsageDetailsReply {
        limit: page.limit,
        offset: page.offset,
        order: call.query.order.as_str().to_owned(),
        ..GetOrganizationUsageDetailsReply::default()
    };
    let (Some((_, start, _)), Some((_, _, end))) = (months.first(), months.last()) else {
        return Ok(reply);
    };
    let names = names(&call.api, id).await?;
    let mut used = instances(&call.api, id, *start, *end, call.query.order).await?;
    used.retain(|instance| instance.started_at.is_some());
    reply.count = count(used.len() as u64);
    reply.usage_details = page
        .of(used)
        .into_iter()
        .map(|instance| UsageDetails {
            organization_id: id.to_string(),
            instance_id: instance.id.to_string(),
            app_id: instance.app_id.to_string(),
            app_name: names
                .apps
                .get(&instance.app_id.to_string())
                .cloned()
                .unwrap_or_default(),
            service_id: instance.service_id.to_string(),
            service_name: names
                .services
                .get(&instance.service_id.to_string())
                .cloned()
                .unwrap_or_default(),
            regional_deployment_id: instance.regional_deployment_id.to_string(),
            duration_seconds: seconds(&instance, *start, *end),
            region: instance.region,
            deployment_id: instance.deployment_id.to_string(),
            instance_type: instance.instance_type,
            started_at: instance.started_at,
            terminated_at: instance.terminated_at,
        })
        .collect();
    Ok(reply)
}

#[cfg(test)]
mod tests {
    use super::month;

    #[test]
    fn months_begin_and_end_where_the_calendar_says() {
        let (name, first, next) = month("2026-12-24T18:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(name, "2026-12");
        assert_eq!(first.to_string(), "2026-12-01T00:00:00Z");
        assert_eq!(next.to_string(), "2027-01-01T00:00:00Z");
    }
}
