//! Kept logs: one page for each call.

use std::{collections::BTreeMap, time::Duration};

use tram_site::LogEntry;
use tram_store::record::Instance;
use tram_types::FieldViolation;

use super::{
    scan::{self, Window},
    select::{Lines, Selection},
};
use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::MAX_LIMIT,
    wire::stream::{self, QueryLogsReply, QueryLogsReplyPagination},
};

/// How far back a query without a start looks.
const DEFAULT_WINDOW: Duration = Duration::from_secs(15 * 60);
/// Lines of a page when the client does not say.
const DEFAULT_LINES: usize = 100;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![get("/v1/streams/logs/query", "QueryLogs", query)]
}

async fn query(call: Call<Lines>) -> Result<QueryLogsReply, Error> {
    let selection = Selection::new(&call.api, call.caller.organization, &call.query)?;
    let limit = limit(call.query.limit)?.unwrap_or(DEFAULT_LINES);
    selection.check_owner(&call.api).await?;
    let end = call
        .query
        .end
        .unwrap_or_else(|| scan::after(call.api.clock.now()));
    let start = call.query.start.unwrap_or_else(|| end.minus(DEFAULT_WINDOW));
    let instances = selection.instances(&call.api, Some(start), Some(end)).await?;
    let window = Window {
        start,
        end,
        order: call.query.order,
        limit,
    };
    let scanned = scan::page(&call.api, &instances, &selection, window).await?;
    Ok(QueryLogsReply {
        data: scanned
            .lines
            .into_iter()
            .filter_map(|(index, line)| Some(entry(instances.get(index)?, line)))
            .collect(),
        pagination: Some(QueryLogsReplyPagination {
            has_more: scanned.next.is_some(),
            next_start: Some(scanned.next.map_or(start, |(start, _)| start)),
            next_end: Some(scanned.next.map_or(end, |(_, end)| end)),
        }),
    })
}

/// How many lines are asked for.
pub(super) fn limit(given: Option<i64>) -> Result<Option<usize>, Error> {
    match given {
        None | Some(0) => Ok(None),
        Some(limit) if (1..=MAX_LIMIT).contains(&limit) => Ok(usize::try_from(limit).ok()),
        Some(_) => Err(Error::InvalidParameters(vec![FieldViolation::new(
            "limit",
            format!("must be between 1 and {MAX_LIMIT}"),
        )])),
    }
}

/// A line as clients see it.
pub(super) fn entry(instance: &Instance, line: LogEntry) -> stream::LogEntry {
    let labels = [
        ("type", "runtime".to_owned()),
        ("stream", line.stream.as_str().to_owned()),
        ("organization_id", instance.organization_id.to_string()),
        ("app_id", instance.app_id.to_string()),
        ("service_id", instance.service_id.to_string()),
        ("deployment_id", instance.deployment_id.to_string()),
        (
            "regional_deployment_id",
            instance.regional_deployment_id.to_string(),
        ),
        ("instance_id", instance.id.to_string()),
        ("region", instance.region.clone()),
    ];
    let labels: BTreeMap<String, serde_json::Value> = labels
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    stream::LogEntry {
        msg: line.message,
        created_at: Some(line.at),
        labels,
    }
}
