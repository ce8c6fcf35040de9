//! Why a call failed, and what the client is told.
//!
//! Four questions, each answered by one exhaustive match: whose fault ([`Error::status`]), which code the contract
//! has for it ([`Error::code`]), what the client may see ([`Error::message`]), and whether somebody should look into
//! it ([`Error::is_ours`], which decides whether the cause is logged). The body is always
//! `{"status", "code", "message"}` with `fields` for a request that breaks a rule: one official client dereferences
//! `status` without looking.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use tram_types::FieldViolation;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No token, or none that we know.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// The token is good, its role does not reach that far.
    #[error("{0}")]
    Forbidden(&'static str),
    /// Too many tokens that we do not know came from one place.
    #[error("too many failed authentications from this address: try again in {retry_after_seconds} seconds")]
    TooManyFailures {
        /// When the next attempt is looked at.
        retry_after_seconds: u64,
    },
    /// There is no such object for this caller.
    #[error("there is no {kind} `{given}`")]
    NotFound {
        /// Which kind of object.
        kind: &'static str,
        /// What was given to find it by.
        given: String,
    },
    /// The contract has it, an installation of one's own has nothing of the kind.
    #[error("there is no {0} on an installation of your own")]
    Absent(&'static str),
    /// There is no such path.
    #[error("there is no endpoint {method} {path}")]
    NoSuchEndpoint {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The path is there, the method is not.
    #[error("{path} does not answer to {method}")]
    MethodNotAllowed {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The body breaks rules.
    #[error("{}", summary(.0))]
    Invalid(Vec<FieldViolation>),
    /// Parameters of the query break rules.
    #[error("{}", summary(.0))]
    InvalidParameters(Vec<FieldViolation>),
    /// The body is no JSON object.
    #[error("the request's body is not valid JSON: {0}")]
    Malformed(String),
    /// The body is larger than any valid one.
    #[error("the request's body may have at most {limit_bytes} bytes")]
    TooLarge {
        /// The bound.
        limit_bytes: usize,
    },
    /// The request is good, the object is in no state for it.
    #[error("{0}")]
    Precondition(String),
    /// The contract has it, this installation has not.
    #[error("{0}")]
    NotImplemented(String),
    /// A part of the platform cannot answer now.
    #[error("{message}")]
    Unavailable {
        /// What the client may see.
        message: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A part of the world cannot answer now, which is nobody's fault here.
    #[error("{0}")]
    Unanswered(String),
    /// The store failed; what it merely answered (no such object, name taken) became one of the others.
    #[error("the store failed")]
    Store(#[source] tram_store::Error),
    /// We broke.
    #[error("internal error while {doing}")]
    Internal {
        /// What this layer was doing.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// One sentence for all violations: clients that show only `message` still say what is wrong.
fn summary(fields: &[FieldViolation]) -> String {
    match fields {
        [] => "the request is not valid".to_owned(),
        [only] => format!("{}: {}", only.field, only.description),
        [first, rest @ ..] => format!("{}: {} (and {} more)", first.field, first.description, rest.len()),
    }
}

impl Error {
    /// One field that breaks a rule.
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![FieldViolation::new(field, description)])
    }

    /// An object that is not there.
    pub fn not_found(kind: &'static str, given: impl std::fmt::Display) -> Self {
        Self::NotFound {
            kind,
            given: given.to_string().chars().take(SHOWN_CHARACTERS).collect(),
        }
    }

    /// Something that cannot happen did.
    pub fn internal(
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Internal {
            doing,
            source: Some(source.into()),
        }
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::TooManyFailures { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound { .. } | Self::Absent(_) | Self::NoSuchEndpoint { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Invalid(_) | Self::InvalidParameters(_) | Self::Malformed(_) | Self::Precondition(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotImplemented(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable { .. }
            | Self::Unanswered(_)
            | Self::Store(tram_store::Error::Unavailable { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The contract's word for it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unauthenticated(_) => "authentication_error",
            Self::Forbidden(_) => "authorization_error",
            Self::TooManyFailures { .. } => "rate_limit_exceeded",
            Self::NotFound { .. } | Self::Absent(_) | Self::NoSuchEndpoint { .. } => "not_found",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::Invalid(_) | Self::Malformed(_) | Self::TooLarge { .. } => "invalid_argument",
            Self::InvalidParameters(_) => "invalid_parameter",
            Self::Precondition(_) => "failed_precondition",
            Self::NotImplemented(_) => "not_implemented",
            Self::Unavailable { .. }
            | Self::Unanswered(_)
            | Self::Store(tram_store::Error::Unavailable { .. }) => "unavailable",
            Self::Store(_) => "internal",
            Self::Internal { .. } => "internal",
        }
    }

    /// Whether the fault is ours: the cause is then worth a line in the log.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.status().is_server_error() && !matches!(self, Self::NotImplemented(_) | Self::Unanswered(_))
    }

    /// What the client may see. Our own faults are told by the request's id alone.
    #[must_use]
    pub fn message(&self, request_id: &str) -> String {
        match self {
            Self::Store(_) | Self::Internal { .. } if self.is_ours() => {
                format!("the platform failed to do this; give request id {request_id} to whoever operates it")
            }
            other => other.to_string(),
        }
    }

    fn fields(&self) -> &[FieldViolation] {
        match self {
            Self::Invalid(fields) | Self::InvalidParameters(fields) => fields,
            _ => &[],
        }
    }

    /// The answer to the client.
    pub(crate) fn respond(&self, request_id: &str) -> Response {
        let body = Body {
            status: self.status().as_u16(),
            code: self.code(),
            message: self.message(request_id),
            fields: self.fields(),
        };
        let mut response = (self.status(), Json(body)).into_response();
        if let Self::TooManyFailures { retry_after_seconds } = self {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(*retry_after_seconds));
        }
        if matches!(self, Self::Unauthenticated(_)) {
            response
                .headers_mut()
                .insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<tram_store::Error> for Error {
    fn from(error: tram_store::Error) -> Self {
        match error {
            // Official clients compare this description exactly.
            tram_store::Error::AlreadyExists { field, .. } => Self::field(field, "already exists"),
            tram_store::Error::NotFound { object, id } => Self::not_found(object, id),
            refusal @ (tram_store::Error::Conflict { .. } | tram_store::Error::Exhausted { .. }) => {
                Self::Precondition(refusal.to_string())
            }
            failure => Self::Store(failure),
        }
    }
}

/// Longest part of a wrong id or name that is repeated in a message, in characters.
const SHOWN_CHARACTERS: usize = 64;

#[derive(serde::Serialize)]
struct Body<'a> {
    status: u16,
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    fields: &'a [FieldViolation],
}
