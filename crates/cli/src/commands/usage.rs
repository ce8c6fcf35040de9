//! `tram usage`: what questions to models cost.
//!
//! The API answers by month; here the months of the span are added up, so that a row is one service, model, token or
//! project.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use serde_json::{Value, json};
use tram_types::Timestamp;

use crate::{
    age,
    error::Error,
    session::Session,
    view::{list, number, short, text},
};

/// Arguments of `usage`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// From when: a time such as 2026-11-01T00:00:00Z, or how long ago, such as 7d; the first of the month when left out
    #[arg(long, value_name = "WHEN")]
    pub since: Option<String>,
    /// To when, likewise; now when left out
    #[arg(long, value_name = "WHEN")]
    pub until: Option<String>,
    /// What to tell apart
    #[arg(long, value_enum, value_name = "WHAT", default_value = "service")]
    pub by: By,
}

/// What usage is told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The service that answered.
    Service,
    /// The model that it served.
    Model,
    /// The API token that asked.
    Credential,
    /// The project of the service.
    Project,
}

impl By {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Model => "model",
            Self::Credential => "credential",
            Self::Project => "project",
        }
    }

    /// What tells rows apart, and what people call it.
    fn name(self, row: &Value) -> (String, String) {
        let of = |kind: &str| {
            let (id, name) = (
                text(row, &format!("{kind}_id")),
                text(row, &format!("{kind}_name")),
            );
            (id.to_owned(), name.to_owned())
        };
        let (id, name) = match self {
            Self::Model => return (text(row, "model").to_owned(), text(row, "model").to_owned()),
            Self::Service => {
                let (id, name) = of("service");
                let app = text(row, "app_name");
                let path = if app.is_empty() {
                    name
                } else {
                    format!("{app}/{name}")
                };
                (id, path)
            }
            Self::Credential => of("credential"),
            Self::Project => of("project"),
        };
        let shown = match (id.as_str(), name.as_str()) {
            ("", _) if self == Self::Credential => "(no token)".to_owned(),
            ("", _) => "(none)".to_owned(),
            (id, "") => format!("{} (deleted)", short(id)),
            _ => name,
        };
        (id, shown)
    }
}

/// Members that add up.
const SUMS: [&str; 7] = [
    "requests",
    "failed_requests",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "queue_ms",
    "duration_ms",
];

pub(crate) async fn run(session: Session, arguments: Arguments) -> Result<(), Error> {
    let client = session.client()?;
    let now = session.now();
    let since = match &arguments.since {
        Some(given) => when("--since", given, now)?,
        None => month(now),
    };
    let until = match &arguments.until {
        Some(given) => when("--until", given, now)?,
        None => now,
    };
    let (start, end) = (since.to_string(), until.to_string());
    let query = [
        ("starting_time", start.as_str()),
        ("ending_time", end.as_str()),
        ("by", arguments.by.as_str()),
    ];
    let reply = client.get("/v1/usages", &query).await?;
    let rows = added_up(&reply, arguments.by);
    let header = [
        "NAME",
        "REQUESTS",
        "FAILED",
        "PROMPT",
        "CACHED",
        "ANSWER",
        "TOKENS",
        "QUEUED",
        "FIRST TOKEN",
    ];
    session.printer.list(&rows, "usage of models", &header, |row| {
        let tokens = number(row, "prompt_tokens") + number(row, "completion_tokens");
        vec![
            text(row, "name").to_owned(),
            number(row, "requests").to_string(),
            number(row, "failed_requests").to_string(),
            number(row, "prompt_tokens").to_string(),
            number(row, "cached_tokens").to_string(),
            number(row, "completion_tokens").to_string(),
            tokens.to_string(),
            format!("{} ms", number(row, "queue_ms")),
            format!("{} ms", number(row, "mean_first_token_ms")),
        ]
    })
}

/// A time, or a span before now.
fn when(flag: &str, given: &str, now: Timestamp) -> Result<Timestamp, Error> {
    if let Ok(time) = given.parse::<Timestamp>() {
        return Ok(time);
    }
    let span = age::parse_span(given).map_err(|_| {
        Error::input(
            format!("`{flag} {given}` is no time"),
            "give one such as 2026-11-01T00:00:00Z, or how long ago, such as 7d",
        )
    })?;
    Ok(now.minus(span))
}

/// The first moment of the month, in UTC.
fn month(at: Timestamp) -> Timestamp {
    let first = at.jiff().to_zoned(TimeZone::UTC).first_of_month();
    let first = first.and_then(|day| day.start_of_day());
    first.map_or(at, |start| start.timestamp().into())
}

/// The rows of all months together, the most tokens first.
fn added_up(reply: &Value, by: By) -> Vec<Value> {
    let periods = reply["usage"]["periods"].as_object();
    let mut rows: BTreeMap<String, (Value, i64)> = BTreeMap::new();
    for row in periods.into_iter().flat_map(|periods| periods.values()) {
        for row in list(row, "tokens") {
            let (id, name) = by.name(row);
            let (sum, first_token) = rows
                .entry(id.clone())
                .or_insert_with(|| (json!({ "id": id, "name": name }), 0));
            for member in SUMS {
                sum[member] = json!(number(sum, member) + number(row, member));
            }
            // A mean of means, weighted by the questions it is of.
            *first_token += number(row, "mean_first_token_ms").saturating_mul(number(row, "requests"));
        }
    }
    let mut rows: Vec<Value> = rows
        .into_values()
        .map(|(mut row, first_token)| {
            let mean = first_token.checked_div(number(&row, "requests")).unwrap_or(0);
            row["mean_first_token_ms"] = json!(mean);
            row
        })
        .collect();
    rows.sort_by_key(|row| -(number(row, "prompt_tokens") + number(row, "completion_tokens")));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_add_up() {
        let row = |service: &str, requests, prompt, first| {
            json!({
                "service_id": service, "service_name": "chat", "app_name": "ai", "requests": requests,
                "prompt_tokens": prompt, "completion_tokens": 1, "mean_first_token_ms": first,
            })
        };
        let reply = json!({"usage": {"periods": {
            "2026-10": {"tokens": [row("a", 1, 10, 40)]},
            "2026-11": {"tokens": [row("a", 3, 20, 20), row("b", 1, 100, 5)]},
        }}});
        let rows = added_up(&reply, By::Service);
        assert_eq!(rows.len(), 2);
        assert_eq!(
            (number(&rows[0], "prompt_tokens"), text(&rows[0], "id")),
            (100, "b")
        );
        assert_eq!(text(&rows[1], "name"), "ai/chat");
        assert_eq!(
            (
                number(&rows[1], "requests"),
                number(&rows[1], "mean_first_token_ms")
            ),
            (4, 25)
        );
        assert_eq!(added_up(&json!({}), By::Model), Vec::<Value>::new());
    }

    #[test]
    fn times_are_absolute_or_ago() {
        let now: Timestamp = "2026-11-26T12:00:00Z".parse().unwrap();
        assert_eq!(
            when("--since", "1d", now).unwrap().to_string(),
            "2026-11-25T12:00:00Z"
        );
        let exact = "2026-11-01T00:00:00Z";
        assert_eq!(when("--since", exact, now).unwrap().to_string(), exact);
        assert!(when("--since", "yesterday", now).is_err());
        assert_eq!(month(now).to_string(), exact);
    }
}
