//! Refusals in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER};
use serde_json::json;

use crate::{error::Error, serve::chain};

/// Why a question was not passed on, or came back without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    /// The field that is wrong.
    pub(super) parameter: Option<&'static str>,
    /// For programs.
    pub(super) code: Option<String>,
    /// When to come again.
    pub(super) retry_after: Option<HeaderValue>,
    /// That a budget is short.
    pub(super) limited: Option<Box<Limited>>,
}

/// What a client is told whose budget is short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limited {
    /// OpenAI's word for what is short.
    pub(super) kind: &'static str,
    /// What else the answer's headers say.
    pub(super) headers: HeaderMap,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            parameter: None,
            code: None,
            retry_after: None,
            limited: None,
        }
    }

    /// A request that breaks a rule.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The same, naming the field.
    pub(super) fn of(mut self, parameter: &'static str) -> Self {
        self.parameter = Some(parameter);
        self
    }

    /// The same, with a word for programs.
    pub(super) fn coded(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    pub(super) fn no_such_model(name: &str) -> Self {
        let shown: String = name.chars().take(SHOWN_CHARACTERS).collect();
        let message = format!("there is no model `{shown}`: GET /v1/models lists those you can ask");
        Self::new(StatusCode::NOT_FOUND, message)
            .of("model")
            .coded("model_not_found")
    }

    pub(super) fn no_models() -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "models are not served here").coded("not_implemented")
    }

    /// OpenAI's word for whose fault it is.
    fn kind(&self) -> &'static str {
        if let Some(limited) = &self.limited {
            return limited.kind;
        }
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        }
    }
}

/// Longest part of a name that is repeated in a message, in characters.
const SHOWN_CHARACTERS: usize = 200;

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        if error.is_ours() {
            tracing::error!(error = %chain(&error), "a question to a model failed");
        }
        let retry_after = match &error {
            Error::TooManyFailures { retry_after_seconds } => Some(HeaderValue::from(*retry_after_seconds)),
            _ => None,
        };
        Self {
            status: error.status(),
            message: error.message("in the answer's headers"),
            parameter: None,
            code: Some(error.code().to_owned()),
            retry_after,
            limited: None,
        }
    }
}

impl From<tram_store::Error> for Refusal {
    fn from(error: tram_store::Error) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.parameter,
            "code": self.code,
        }});
        let mut response = (self.status, Json(body)).into_response();
        if let Some(limited) = self.limited {
            response.headers_mut().extend(limited.headers);
        }
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, after);
        }
        response
    }
}
