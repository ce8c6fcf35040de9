//! An endpoint: where it is, what it takes and gives, and what carries it out.
//!
//! The signature of a handler says it all: `async fn(Call<Query, Body>) -> Result<Reply, Error>`. The router, the
//! OpenAPI document and the tests of coverage are made from the same list of these values, so none can drift from
//! the others. What is the same for all of them happens once: decoding here, the
//! rest in [`crate::serve`].

use std::{fmt, future::Future, pin::Pin, str::FromStr, sync::Arc};

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderName, HeaderValue, Method, StatusCode, request::Parts};
use serde::{Serialize, de::DeserializeOwned};
use utoipa::{
    ToSchema,
    openapi::{RefOr, path::Parameter, schema::Schema},
};

use crate::{
    audit,
    auth::{Access, Caller},
    body::{BODY_MAX_BYTES, decode, decode_value},
    error::Error,
    mask::{self, UPDATE_MASK},
    merge::{masked, patch as patch_value},
    query::{Query, RawQuery},
    state::ApiState,
};

/// Names what was ignored of a request.
pub(crate) const WARNING_HEADER: HeaderName = HeaderName::from_static("x-tram-warning");

/// A request that was authenticated, not decoded yet.
pub(crate) struct Incoming {
    pub(crate) api: ApiState,
    /// `None` for anonymous endpoints alone.
    pub(crate) caller: Option<Caller>,
    pub(crate) parts: Parts,
    pub(crate) body: Body,
    pub(crate) path: Vec<(String, String)>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;

/// One endpoint of the contract.
#[derive(Clone)]
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// Upstream's name of the operation.
    pub(crate) operation: &'static str,
    pub(crate) access: Access,
    /// Whether it does what the contract says, or answers that it cannot.
    pub(crate) implemented: bool,
    /// The status of its refusal when it is not implemented.
    pub(crate) refusal: Option<StatusCode>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) takes: Option<Message>,
    pub(crate) gives: Option<Message>,
    run: Arc<dyn Fn(Incoming) -> Answer + Send + Sync>,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.method, self.path, self.operation)
    }
}

/// A message of the contract, for the OpenAPI document.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) name: String,
    pub(crate) schema: RefOr<Schema>,
    /// Every message that it refers to.
    pub(crate) parts: Vec<(String, RefOr<Schema>)>,
}

impl Message {
    pub(crate) fn of<T: ToSchema>() -> Self {
        let mut parts = Vec::new();
        T::schemas(&mut parts);
        Self {
            name: T::name().into_owned(),
            schema: T::schema(),
            parts,
        }
    }
}

/// A body that an endpoint takes.
pub(crate) trait Takes: DeserializeOwned + Send {
    fn message() -> Option<Message>;
}

impl<T: DeserializeOwned + ToSchema + Send> Takes for T {
    fn message() -> Option<Message> {
        let message = Message::of::<T>();
        (message.name != NoBody::name()).then_some(message)
    }
}

/// An endpoint that takes no body. One that is sent is read and ignored.
#[derive(Debug, Default, serde::Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct NoBody {}

/// A request, authenticated and decoded.
#[derive(Debug)]
pub(crate) struct Call<Q = crate::query::Nothing, B = NoBody> {
    pub(crate) api: ApiState,
    pub(crate) caller: Caller,
    pub(crate) method: Method,
    pub(crate) query: Q,
    pub(crate) body: B,
    /// The body as it came: an update must tell what was given from what was left out.
    pub(crate) given: serde_json::Value,
    /// Members of the body that the contract does not have.
    pub(crate) unknown: Vec<String>,
    path: Vec<(String, String)>,
}

/// What an id in a path must be.
pub(crate) trait ObjectId: FromStr {
    const KIND: &'static str;
}

macro_rules! object_ids {
    ($($id:ident),+ $(,)?) => {$(
        impl ObjectId for tram_types::$id {
            const KIND: &'static str = tram_types::$id::KIND;
        }
    )+};
}
object_ids!(
    AppId,
    ServiceId,
    DeploymentId,
    RegionalDeploymentId,
    InstanceId,
    InstanceSnapshotId,
    SecretId,
    DomainId,
    CredentialId,
    ProjectId,
    OrganizationId,
    SnapshotId,
    VolumeId,
    ServicePoolId,
    ClaimId,
);

impl<Q, B> Call<Q, B> {
    /// The id in the path. What is no id names nothing: clients look names up this way first.
    pub(crate) fn id<I: ObjectId>(&self, name: &str) -> Result<I, Error> {
        let text = self.text(name);
        text.parse().map_err(|_| Error::not_found(I::KIND, text))
    }

    /// The object as the caller wants it: PUT replaces, PATCH and any mask lay the given members over `current`.
    pub(crate) fn merged<T>(&self, current: &T, mask: Option<&str>) -> Result<T, Error>
    where
        T: Serialize + DeserializeOwned,
    {
        let mask = mask.unwrap_or_default();
        if self.method == Method::PUT && mask.is_empty() {
            return decode_value(&self.given);
        }
        let current = crate::definition::value(current)?;
        decode_value(&patch_value(&current, &masked(&self.given, mask)))
    }

    /// A part of the path as text.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.path
            .iter()
            .find(|(known, _)| known == name)
            .map_or("", |(_, value)| value.as_str())
    }
}

impl Endpoint {
    /// An endpoint that takes and gives JSON.
    pub(crate) fn new<Q, B, R, F, Fut>(
        method: Method,
        path: &'static str,
        operation: &'static str,
        handler: F,
    ) -> Self
    where
        Q: Query + 'static,
        B: Takes + 'static,
        R: Serialize + ToSchema + Send + 'static,
        F: Fn(Call<Q, B>) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Error>> + Send + 'static,
    {
        let verb = audit::verb(&method, path);
        let run = move |incoming: Incoming| -> Answer {
            let handler = handler.clone();
            Box::pin(async move {
                let note = audit::Note::of(&incoming, verb);
                let call = read::<Q, B>(incoming).await?;
                let note = note.filter(|_| !call.query.only_checks());
                let warning = warning("members", &call.unknown);
                let reply = handler(call).await?;
                let mut response = match note {
                    None => Json(reply).into_response(),
                    Some(note) => {
                        let reply = crate::definition::value(&reply)?;
                        note.keep(&reply).await;
                        Json(reply).into_response()
                    }
                };
                if let Some(warning) = warning {
                    response.headers_mut().insert(WARNING_HEADER, warning);
                }
                Ok(response)
            })
        };
        Self {
            access: if method == Method::GET {
                Access::Read
            } else {
                Access::Write
            },
            method,
            path,
            operation,
            implemented: true,
            refusal: None,
            parameters: Q::describe(),
            takes: B::message(),
            gives: Some(Message::of::<R>()),
            run: Arc::new(run),
        }
    }

    /// An endpoint that answers with a stream or takes over the connection.
    pub(crate) fn stream<Q, F, Fut>(
        path: &'static str,
        operation: &'static str,
        access: Access,
        handler: F,
    ) -> Self
    where
        Q: Query + 'static,
        F: Fn(Incoming) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        Self {
            method: Method::GET,
            path,
            operation,
            access,
            implemented: true,
            refusal: None,
            parameters: Q::describe(),
            takes: None,
            gives: None,
            run: Arc::new(move |incoming| Box::pin(handler(incoming))),
        }
    }

    /// An endpoint of the contract that this installation cannot carry out yet.
    pub(crate) fn missing(
        method: Method,
        path: &'static str,
        operation: &'static str,
        why: &'static str,
    ) -> Self {
        Self::refusing(method, path, operation, move || {
            Error::NotImplemented(why.to_owned())
        })
    }

    /// An endpoint of the contract that has nothing to show on an installation of one's own.
    pub(crate) fn absent(
        method: Method,
        path: &'static str,
        operation: &'static str,
        what: &'static str,
    ) -> Self {
        Self::refusing(method, path, operation, move || Error::Absent(what))
    }

    fn refusing(
        method: Method,
        path: &'static str,
        operation: &'static str,
        refusal: impl Fn() -> Error + Clone + Send + Sync + 'static,
    ) -> Self {
        Self {
            access: if method == Method::GET {
                Access::Read
            } else {
                Access::Write
            },
            method,
            path,
            operation,
            implemented: false,
            refusal: Some(refusal().status()),
            parameters: Vec::new(),
            takes: None,
            gives: None,
            run: Arc::new(move |_| {
                let refusal = refusal();
                Box::pin(async move { Err(refusal) })
            }),
        }
    }

    /// Carries out a request that was authenticated. Parameters that the endpoint does not have are ignored, and named.
    pub(crate) async fn run(&self, incoming: Incoming) -> Result<Response, Error> {
        let unknown = match self.implemented {
            true => self.unknown_parameters(&incoming.parts),
            false => Vec::new(),
        };
        let mut response = (self.run)(incoming).await?;
        if let Some(warning) = warning("parameters", &unknown) {
            response.headers_mut().append(WARNING_HEADER, warning);
        }
        Ok(response)
    }

    fn unknown_parameters(&self, parts: &Parts) -> Vec<String> {
        let Ok(query) = RawQuery::parse(parts.uri.query().unwrap_or_default()) else {
            return Vec::new();
        };
        let mut unknown: Vec<String> = Vec::new();
        for name in query.names() {
            if unknown.len() < NAMED_UNKNOWN_PARAMETERS
                && self.parameters.iter().all(|known| known.name != name)
                && unknown.iter().all(|known| known != name)
            {
                unknown.push(name.to_owned());
            }
        }
        unknown
    }

    /// The same endpoint, with the message it answers named for the OpenAPI document.
    pub(crate) fn giving<R: ToSchema>(mut self) -> Self {
        self.gives = Some(Message::of::<R>());
        self
    }

    /// The same endpoint, asking something else of its caller.
    pub(crate) fn access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

macro_rules! methods {
    ($($name:ident = $method:ident;)+) => {$(
        /// An endpoint with this method.
        pub(crate) fn $name<Q, B, R, F, Fut>(
            path: &'static str,
            operation: &'static str,
            handler: F,
        ) -> Endpoint
        where
            Q: Query + 'static,
            B: Takes + 'static,
            R: Serialize + ToSchema + Send + 'static,
            F: Fn(Call<Q, B>) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output = Result<R, Error>> + Send + 'static,
        {
            Endpoint::new(Method::$method, path, operation, handler)
        }
    )+};
}
methods! { get = GET; post = POST; put = PUT; patch = PATCH; delete = DELETE; }

/// Decodes query and body.
async fn read<Q: Query, B: Takes>(incoming: Incoming) -> Result<Call<Q, B>, Error> {
    let query: Q = read_query(&incoming.parts)?;
    if let Some(message) = B::message() {
        check_mask::<Q>(&incoming.parts, &message)?;
    }
    let caller = incoming.caller.ok_or(Error::Internal {
        doing: "reading a request without a caller",
        source: None,
    })?;
    let bytes = axum::body::to_bytes(incoming.body, BODY_MAX_BYTES)
        .await
        .map_err(|error| body_error(&error))?;
    let takes_body = B::message().is_some();
    let decoded = decode::<B>(if takes_body { &bytes } else { b"" })?;
    Ok(Call {
        api: incoming.api,
        caller,
        method: incoming.parts.method,
        query,
        body: decoded.message,
        given: decoded.given,
        unknown: decoded.unknown,
        path: incoming.path,
    })
}

/// Refuses an `update_mask`, where there is one, with names that the message has not.
fn check_mask<Q: Query>(parts: &Parts, message: &Message) -> Result<(), Error> {
    let query = parts.uri.query().unwrap_or_default();
    if !query.contains(UPDATE_MASK) || Q::describe().iter().all(|known| known.name != UPDATE_MASK) {
        return Ok(());
    }
    let raw = RawQuery::parse(query).map_err(|violation| Error::InvalidParameters(vec![violation]))?;
    let wrong: Vec<_> = raw
        .every(UPDATE_MASK)
        .flat_map(|mask| mask::violations(mask, message))
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Error::InvalidParameters(wrong)),
    }
}

/// Reads the parameters of a query, all of whose faults are told at once.
pub(crate) fn read_query<Q: Query>(parts: &Parts) -> Result<Q, Error> {
    let raw = RawQuery::parse(parts.uri.query().unwrap_or_default())
        .map_err(|violation| Error::InvalidParameters(vec![violation]))?;
    let mut wrong = Vec::new();
    let query = Q::read(&raw, &mut wrong);
    if wrong.is_empty() {
        Ok(query)
    } else {
        Err(Error::InvalidParameters(wrong))
    }
}

fn body_error(error: &axum::Error) -> Error {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(current) = cause {
        if current.is::<http_body_util::LengthLimitError>() {
            return Error::TooLarge {
                limit_bytes: BODY_MAX_BYTES,
            };
        }
        cause = current.source();
    }
    Error::Malformed("the body ended before it was complete".to_owned())
}

fn warning(what: &str, unknown: &[String]) -> Option<HeaderValue> {
    if unknown.is_empty() {
        return None;
    }
    let text: String = format!("ignored unknown {what}: {}", unknown.join(", "))
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .take(WARNING_MAX_CHARACTERS)
        .collect();
    HeaderValue::from_str(&text).ok()
}

/// Most unknown parameters that are named, as with members.
const NAMED_UNKNOWN_PARAMETERS: usize = 10;
/// Longest warning: some clients refuse headers beyond 8 KiB.
const WARNING_MAX_CHARACTERS: usize = 1024;
