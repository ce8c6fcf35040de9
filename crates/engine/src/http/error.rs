//! Errors in OpenAI's shape.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value, json};

use crate::engine::Refusal;
use crate::request::Failure;

/// What a client did wrong, or the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    message: String,
    /// The field that is wrong.
    parameter: Option<String>,
    code: Option<&'static str>,
    pub(crate) retry_after: Option<Duration>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self {
            status,
            kind,
            message,
            parameter: None,
            code: None,
            retry_after: None,
        }
    }

    /// A request that cannot be understood as a whole.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message.into())
    }

    /// A field with a value that cannot be.
    pub(crate) fn field(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            parameter: Some(name.into()),
            code: Some("invalid_value"),
            ..Self::bad(message)
        }
    }

    /// A field that nobody knows.
    pub(crate) fn unknown_field(name: &str) -> Self {
        Self {
            parameter: Some(name.to_owned()),
            code: Some("unknown_parameter"),
            ..Self::bad(format!("Unrecognized request argument supplied: {name}"))
        }
    }

    /// More tokens than the model's context has.
    pub(crate) fn context_length(field: &str, most: usize, tokens: Option<usize>) -> Self {
        let found = tokens.map_or_else(
            || "your input is far longer than that".to_owned(),
            |tokens| format!("your input has {tokens} tokens"),
        );
        Self {
            parameter: Some(field.to_owned()),
            code: Some("context_length_exceeded"),
            ..Self::bad(format!(
                "This model's maximum context length is {most} tokens, with the answer. However, {found}. Please \
                 shorten it."
            ))
        }
    }

    /// A text of more tokens than a model that makes embeddings reads at once; none when it surely is longer.
    pub(crate) fn text_length(field: &str, most: usize, tokens: Option<usize>) -> Self {
        let found = tokens.map_or_else(|| "far more than that".to_owned(), |tokens| tokens.to_string());
        Self {
            parameter: Some(field.to_owned()),
            code: Some("context_length_exceeded"),
            ..Self::bad(format!(
                "This model reads texts of at most {most} tokens. However, '{field}' has {found}. Please shorten it or \
                 cut it into several."
            ))
        }
    }

    /// What a model that makes embeddings is not for.
    pub(crate) fn embeds_only(name: &str) -> Self {
        Self::bad(format!(
            "The model `{name}` makes embeddings of texts and writes none itself: ask it at /v1/embeddings."
        ))
    }

    /// An answer that another engine began and this one cannot go on with.
    pub(crate) fn cannot_resume(why: &str) -> Self {
        Self {
            code: Some("cannot_resume"),
            ..Self::new(
                StatusCode::CONFLICT,
                "invalid_request_error",
                format!("The answer cannot be continued: {why}."),
            )
        }
    }

    pub(crate) fn too_large(most: usize) -> Self {
        let message = format!("The request is too large: a body may have {most} bytes.");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    pub(crate) fn no_such_model(name: &str) -> Self {
        Self {
            parameter: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::new(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                format!("The model `{name}` does not exist here."),
            )
        }
    }

    pub(crate) fn no_such_path(method: &str, path: &str) -> Self {
        let message = format!("Invalid URL ({method} {path})");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {method} on {path}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    /// The model is not there yet, or not any more.
    pub(crate) fn unavailable(message: &str) -> Self {
        Self {
            retry_after: Some(UNAVAILABLE_RETRY),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "service_unavailable",
                message.to_owned(),
            )
        }
    }

    pub(crate) fn internal(message: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(crate) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.parameter,
            "code": self.code,
        }})
    }
}

impl ApiError {
    /// The same in Anthropic's shape.
    pub(crate) fn anthropic(&self) -> Value {
        let kind = match self.status {
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        json!({"type": "error", "error": {"type": kind, "message": self.message}})
    }
}

/// When to ask again while the model loads or another engine takes over.
const UNAVAILABLE_RETRY: Duration = Duration::from_secs(1);

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Busy { retry_after } => Self {
                code: Some("rate_limit_exceeded"),
                retry_after: Some(retry_after),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "requests",
                    format!(
                        "Too many requests are waiting. Please try again in {} s.",
                        retry_after.as_secs_f64().ceil()
                    ),
                )
            },
            Refusal::Stopping => Self::unavailable("The engine is stopping."),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Kernels(why) => Self::internal(format!("The model could not compute the answer: {why}")),
            Failure::Grammar(why) => {
                Self::internal(format!("The answer left the schema it has to match: {why}"))
            }
            Failure::Stopping => Self::unavailable("The engine is stopping."),
        }
    }
}
