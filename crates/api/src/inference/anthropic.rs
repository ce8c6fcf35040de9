//! What Anthropic's contract has differently around the question: where the key stands, and how a refusal looks.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, RETRY_AFTER},
};
use serde_json::json;

use super::error::Refusal;

/// Where Anthropic's clients put the key.
const KEY: HeaderName = HeaderName::from_static("x-api-key");

/// A key in Anthropic's place becomes one in everybody's; `Authorization` counts when both are there.
pub(super) fn take_key(headers: &mut HeaderMap) {
    let Some(key) = headers.remove(KEY) else { return };
    if headers.contains_key(AUTHORIZATION) {
        return;
    }
    let bearer = key
        .to_str()
        .ok()
        .and_then(|key| HeaderValue::try_from(format!("Bearer {key}")).ok());
    if let Some(mut bearer) = bearer {
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
}

/// A refusal in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.
pub(super) fn refuse(refusal: Refusal) -> Response {
    let kind = match refusal.status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    let body = json!({"type": "error", "error": {"type": kind, "message": refusal.message}});
    let mut response = (refusal.status, Json(body)).into_response();
    if let Some(limited) = refusal.limited {
        response.headers_mut().extend(limited.headers);
    }
    if let Some(after) = refusal.retry_after {
        response.headers_mut().insert(RETRY_AFTER, after);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_token_unless_there_is_another() {
        let mut headers = HeaderMap::new();
        headers.insert(KEY, HeaderValue::from_static("abc"));
        take_key(&mut headers);
        assert_eq!(headers.get(AUTHORIZATION).unwrap(), "Bearer abc");
        assert!(!headers.contains_key(KEY));
        headers.insert(KEY, HeaderValue::from_static("other"));
        take_key(&mut headers);
        assert_eq!(headers.get(AUTHORIZATION).unwrap(), "Bearer abc");
        assert!(!headers.contains_key(KEY), "a key is nothing for an engine");
    }
}
