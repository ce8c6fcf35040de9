//! What registries' answers say: headers, error documents, and failures of the transport.

use std::time::Duration;

use reqwest::header::{CONTENT_RANGE, HeaderMap, RETRY_AFTER};
use serde::Deserialize;

use crate::error::Error;

pub(super) fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// Seconds only: registries do not send dates, and a date would need a trusted clock.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()
        .map(Duration::from_secs)
}

/// The registry's own words from its error document.
pub(super) fn error_text(body: &[u8]) -> String {
    const SHOWN_CHARS: usize = 200;
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else {
        return String::new();
    };
    let texts: Vec<String> = answer
        .errors
        .into_iter()
        .map(|item| {
            if item.message.is_empty() {
                item.code
            } else {
                item.message
            }
        })
        .collect();
    texts
        .join("; ")
        .chars()
        .filter(|character| !character.is_control())
        .take(SHOWN_CHARS)
        .collect()
}

/// Sorts a failure of the transport by what the user can do about it.
pub(super) fn transport(host: &str, doing: &'static str, error: reqwest::Error, limit: Duration) -> Error {
    let registry = host.to_owned();
    if error.is_timeout() {
        return Error::Timeout {
            registry,
            doing,
            limit,
        };
    }
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        // hyper-util marks a failed look-up by this text alone.
        if current.to_string() == "dns error" {
            return Error::Dns {
                registry,
                source: error,
            };
        }
        cause = current.source();
    }
    Error::Transport {
        registry,
        doing,
        source: error,
    }
}
