//! Frames of the streams: `{"result": …}` or `{"error": {"code", "message", "details"}}`.

use axum::extract::ws::{CloseCode, CloseFrame, Message, WebSocketUpgrade, close_code};
use http::request::Parts;
use serde::Serialize;
use serde_json::json;

use crate::{auth::WEBSOCKET_PROTOCOL, error::Error};

/// Numbers of gRPC, which these streams carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Code {
    InvalidArgument = 3,
    NotFound = 5,
    PermissionDenied = 7,
    FailedPrecondition = 9,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Code {
    /// The number for what went wrong.
    pub(super) fn of(error: &Error) -> Self {
        match error.status().as_u16() {
            400 => match error {
                Error::Precondition(_) => Self::FailedPrecondition,
                _ => Self::InvalidArgument,
            },
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::NotFound,
            503 => Self::Unavailable,
            _ => Self::Internal,
        }
    }
}

pub(super) fn result(message: &impl Serialize) -> String {
    json!({ "result": message }).to_string()
}

pub(super) fn failure(code: Code, message: &str) -> String {
    json!({ "error": { "code": code as u8, "message": message, "details": [] } }).to_string()
}

/// Whether the client wants a WebSocket.
pub(super) fn wants_websocket(parts: &Parts) -> bool {
    parts
        .headers
        .get(http::header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The upgrade of a request to a WebSocket whose messages have at most `max_bytes`.
pub(super) async fn upgrade(parts: &mut Parts, max_bytes: usize) -> Result<WebSocketUpgrade, Error> {
    use axum::extract::FromRequestParts as _;
    let upgrade = WebSocketUpgrade::from_request_parts(parts, &())
        .await
        .map_err(|_| Error::Precondition("this endpoint speaks WebSocket: ask for an upgrade".to_owned()))?;
    Ok(upgrade
        .protocols([WEBSOCKET_PROTOCOL])
        .max_message_size(max_bytes)
        .max_frame_size(max_bytes))
}

pub(super) fn text(frame: String) -> Message {
    Message::Text(frame.into())
}

/// A close that clients do not take for a failure.
pub(super) fn normal_close() -> Message {
    close(close_code::NORMAL)
}

/// The close after `error`: one that says so when the caller may not go on, so that clients do not just try again.
pub(super) fn close_after(error: &Error) -> Message {
    match error {
        Error::Unauthenticated(_) | Error::Forbidden(_) => close(close_code::POLICY),
        _ => normal_close(),
    }
}

fn close(code: CloseCode) -> Message {
    Message::Close(Some(CloseFrame {
        code,
        reason: "".into(),
    }))
}
