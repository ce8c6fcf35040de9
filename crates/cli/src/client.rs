//! A thin client of the REST API: one call, one page after another, one stream.
//!
//! Bodies are [`serde_json::Value`]: the command line shows what the API says and needs few members of it. Every
//! call has a deadline. A stream is opened as an ordinary request that is upgraded, so that TLS, proxies and error
//! bodies are those of every other call.

mod answer;
mod error;
mod stream;

use std::time::Duration;

use reqwest::{Method, Response, Url, header};
use serde_json::Value;

pub(crate) use self::error::Error;
pub(crate) use self::stream::{Receiver, Sender};
use crate::printer::Printer;

/// How long connecting may take: the server is near, or it is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a call may take, body included: nearly every call answers at once, the work comes after it. The others are made
/// by a client that is [`Client::patient`].
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest body that is read: the longest page of anything is far below; a wrong server's download is not.
const BODY_MAX_BYTES: usize = 64 * 1024 * 1024;
/// How many items a page has, the most that servers of this contract give.
const PAGE_ITEMS: usize = 100;
/// How many pages a list may have: a server that never ends its list must not hold us for ever.
const PAGES_MAX: usize = 1000;

/// Names what the server ignored of a request.
const WARNING_HEADER: &str = "x-tram-warning";

/// The query of a call.
pub(crate) type Query<'q> = &'q [(&'q str, &'q str)];

/// Calls the API of one server with one token. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: String,
    /// Where the server's warnings are said.
    printer: Printer,
    /// How long a call may take.
    patience: Duration,
}

impl Client {
    /// A client of the server at `base`; an empty token sends none.
    pub(crate) fn new(base: &str, token: &str, printer: &Printer) -> Result<Self, Error> {
        let url = Url::parse(base.trim_end_matches('/')).map_err(|source| Error::Address {
            url: base.to_owned(),
            reason: source.to_string(),
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Error::Address {
                url: base.to_owned(),
                reason: "it must start with http:// or https://".to_owned(),
            });
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("tram/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // An upgrade to a WebSocket is of HTTP/1.1.
            .http1_only();
        if is_loopback(&url) {
            // What listens on this machine is never behind a proxy.
            builder = builder.no_proxy();
        }
        Ok(Self {
            http: builder.build().map_err(Error::Build)?,
            base: url,
            token: token.to_owned(),
            printer: printer.clone(),
            patience: CALL_TIMEOUT,
        })
    }

    /// The same for calls that take `more` than others do.
    pub(crate) fn patient(&self, more: Duration) -> Self {
        Self {
            patience: CALL_TIMEOUT + more,
            ..self.clone()
        }
    }

    /// Where to tell how far something got.
    pub(crate) fn printer(&self) -> &Printer {
        &self.printer
    }

    /// The server's address.
    pub(crate) fn base(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(crate) async fn get(&self, path: &str, query: Query<'_>) -> Result<Value, Error> {
        self.call(Method::GET, path, query, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.call(Method::POST, path, &[], Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.call(Method::PUT, path, &[], Some(body)).await
    }

    pub(crate) async fn patch(&self, path: &str, query: Query<'_>, body: &Value) -> Result<Value, Error> {
        self.call(Method::PATCH, path, query, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<Value, Error> {
        self.call(Method::DELETE, path, &[], None).await
    }

    /// Every item of a list, page after page, up to `limit` when there is one.
    pub(crate) async fn list(
        &self,
        path: &str,
        member: &str,
        query: Query<'_>,
        limit: Option<usize>,
    ) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        for _ in 0..PAGES_MAX {
            let wanted = limit.map_or(PAGE_ITEMS, |limit| {
                limit.saturating_sub(items.len()).min(PAGE_ITEMS)
            });
            if wanted == 0 {
                break;
            }
            let (page_limit, offset) = (wanted.to_string(), items.len().to_string());
            let mut query = query.to_vec();
            query.extend([("limit", page_limit.as_str()), ("offset", offset.as_str())]);
            let mut reply = self.get(path, &query).await?;
            let Value::Array(page) = crate::view::take(&mut reply, member) else {
                return Err(self.unexpected(path, format!("the reply has no `{member}`")));
            };
            let is_full = page.len() >= wanted;
            let is_empty = page.is_empty();
            items.extend(page);
            // Some lists say whether more follows, some how many there are, some neither.
            let has_next = reply.get("has_next").and_then(Value::as_bool);
            let count = reply.get("count").and_then(Value::as_u64);
            let last = is_empty
                || match (has_next, count) {
                    (Some(has_next), _) => !has_next,
                    (None, Some(count)) => u64::try_from(items.len()).is_ok_and(|read| read >= count),
                    (None, None) => !is_full,
                };
            if last {
                break;
            }
        }
        Ok(items)
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        body: Option<&Value>,
    ) -> Result<Value, Error> {
        let mut request = self.request(method, path, query)?.timeout(self.patience);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|source| self.transport(path, source))?;
        for warning in response.headers().get_all(WARNING_HEADER) {
            self.printer.warning(format_args!(
                "the server {}",
                warning.to_str().unwrap_or_default()
            ));
        }
        self.body(path, response).await
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
    ) -> Result<reqwest::RequestBuilder, Error> {
        let url = format!("{}{path}", self.base());
        let mut url = Url::parse(&url).map_err(|source| Error::Address {
            url,
            reason: source.to_string(),
        })?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self
            .http
            .request(method, url)
            .header(header::ACCEPT, "application/json");
        if !self.token.is_empty() {
            request = request.bearer_auth(&self.token);
        }
        Ok(request)
    }

    /// The body of a response: JSON, or the error that it tells of.
    async fn body(&self, path: &str, mut response: Response) -> Result<Value, Error> {
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| self.transport(path, source))?
        {
            if bytes.len() + chunk.len() > BODY_MAX_BYTES {
                return Err(self.unexpected(path, format!("the reply is larger than {BODY_MAX_BYTES} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        if !status.is_success() {
            return Err(Error::of_reply(self.base(), status.as_u16(), &bytes));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes)
            .map_err(|source| self.unexpected(path, format!("the reply is not JSON ({source})")))
    }

    fn transport(&self, path: &str, source: reqwest::Error) -> Error {
        if source.is_timeout() && !source.is_connect() {
            Error::TimedOut {
                call: path.to_owned(),
                after: self.patience,
            }
        } else if mentions_certificate(&source) {
            Error::Untrusted {
                url: self.base().to_owned(),
                source,
            }
        } else if source.is_connect() || source.is_timeout() {
            Error::Unreachable {
                url: self.base().to_owned(),
                source,
            }
        } else {
            Error::Broken {
                url: self.base().to_owned(),
                source,
            }
        }
    }

    fn unexpected(&self, path: &str, what: String) -> Error {
        Error::Unexpected {
            url: format!("{}{path}", self.base()),
            what,
        }
    }
}

/// Whether a call failed because of the server's certificate. The TLS library's own error is wrapped several times,
/// in types that are not ours to name, so its words are what there is to go by.
fn mentions_certificate(error: &reqwest::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        if source.to_string().contains("certificate") {
            return true;
        }
        cause = source.source();
    }
    false
}

/// Whether the address is this machine's own.
pub(crate) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.ends_with(".localhost")
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback())
    })
}
