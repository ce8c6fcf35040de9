//! From the bytes of a request to what it asks for.
//!
//! Bodies are bounded in size and in time, so that nobody fills the sandbox's memory or holds a connection by sending
//! slowly.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::reply::Wrong;

/// Largest body: files travel as JSON text, so this holds about 200 MiB of text or 190 MiB of base64. Larger ones are
/// written in parts, or fetched from within the sandbox.
pub(crate) const BODY_BYTES_MAX: usize = 256 << 20;
/// Longest silence in the middle of a body: the edge passes on what it gets, so this is a client that has stalled.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Longest time a body may take in all: a client that trickles a byte now and then is not heard out.
const BODY_TIME_MAX: Duration = Duration::from_secs(15 * 60);
/// What a body without a declared length is given room for at first.
const FIRST_BYTES: usize = 4096;

/// The decoded body.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Wrong> {
    let bytes = timeout(BODY_TIME_MAX, collect(body)).await.unwrap_or_else(|_| {
        Err(Wrong::new(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not arrive within {} s", BODY_TIME_MAX.as_secs()),
        ))
    })?;
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        Wrong::new(
            StatusCode::BAD_REQUEST,
            format!("the body cannot be read as JSON: {error}"),
        )
    })
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>, Wrong> {
    let too_large = || {
        Wrong::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the body is larger than {} MiB: send the file in parts",
                BODY_BYTES_MAX >> 20
            ),
        )
    };
    let declared = body.size_hint().exact();
    if declared.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(FIRST_BYTES);
    loop {
        let frame = match timeout(SILENCE_MAX, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => {
                return Err(Wrong::new(
                    StatusCode::BAD_REQUEST,
                    format!("the body broke off: {error}"),
                ));
            }
            Err(_) => {
                let silence = SILENCE_MAX.as_secs();
                return Err(Wrong::new(
                    StatusCode::REQUEST_TIMEOUT,
                    format!("nothing of the body arrived for {silence} s"),
                ));
            }
        };
        if let Some(data) = frame.data_ref() {
            if bytes.len() + data.len() > BODY_BYTES_MAX {
                return Err(too_large());
            }
            bytes.extend_from_slice(data);
        }
    }
}

/// A command to run.
#[derive(Debug, Deserialize)]
pub(crate) struct Command {
    /// For the shell.
    pub(crate) cmd: String,
    /// Where. Absent or empty: where the executor was started.
    #[serde(default)]
    pub(crate) cwd: Option<String>,
    /// Added to the sandbox's own environment.
    #[serde(default)]
    pub(crate) env: Option<std::collections::BTreeMap<String, String>>,
}

/// The value of a parameter in a query string, percent-decoded.
pub(crate) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    query?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(match (escaped, *byte) {
            (Some(escaped), _) => escaped,
            (None, b'+') => b' ',
            (None, byte) => byte,
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_and_decoded() {
        let query = Some("id=a%2Fb+c&follow&x=%zz%");
        assert_eq!(parameter(query, "id").as_deref(), Some("a/b c"));
        assert_eq!(parameter(query, "follow").as_deref(), Some(""));
        assert_eq!(parameter(query, "x").as_deref(), Some("%zz%"));
        assert_eq!(parameter(query, "other"), None);
        assert_eq!(parameter(None, "id"), None);
    }
}
