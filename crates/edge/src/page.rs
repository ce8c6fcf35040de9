//! Answers that the edge gives itself: why a request went no further and what to do about it.
//!
//! Every stage refuses with a [`Refusal`]; `pipeline.rs` turns it into a page here. Browsers get HTML, everything
//! else the API's error shape. A page tells nothing of other tenants: an unknown host and an unknown routing key look
//! the same whatever else is deployed.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, REFRESH, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use uuid::Uuid;

use crate::body::EdgeBody;

/// When to come back to a service whose first deployment is on its way: image pulls take about so long.
const DEPLOYING_RETRY_AFTER: Duration = Duration::from_secs(5);

/// When to come back to a service at its limit: some request will have ended.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// When to come back to a model that found no memory: as long as another stays at least once it is awake.
const NO_MEMORY_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Tells the edge's own answers from an instance's.
pub(crate) const X_TRAM_ERROR: HeaderName = HeaderName::from_static("x-tram-error");

/// Why a request was not forwarded, or came back without an answer.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// No application has this host name.
    NoSuchApp { host: String },
    /// The application has no route for this path.
    NoSuchRoute { host: String, path: String },
    /// No sandbox has this routing key, or none that serves this path.
    NoSuchSandbox,
    /// HTTP/1.1 wants exactly one `Host`.
    NoHost,
    /// `CONNECT` and other forms an origin does not serve.
    NotAnOrigin,
    /// Longer than [`crate::admit::URI_MAX_BYTES`].
    UriTooLong,
    /// The route asks for credentials.
    Unauthorized { basic: bool, api_key: bool },
    /// The service is at its limit of requests in flight.
    Busy { name: String },
    /// Too many callers wait for this service already.
    QueueFull { name: String, retry_after: Duration },
    /// The caller waited as long as the service allows.
    StillStarting { name: String, waited_ms: u64 },
    /// The same, and what it waits for is memory that others hold.
    NoMemory { name: String, waited_ms: u64 },
    /// The edge stops, and nobody will wake the service for this caller.
    Stopping { name: String },
    /// The start or the first deployment failed.
    StartFailed {
        name: String,
        message: String,
        deployment_id: Uuid,
    },
    /// The owner paused it.
    Paused { name: String },
    /// The first deployment has no instance yet.
    Deploying { name: String },
    /// Nothing to forward to.
    NoHealthyInstance { name: String },
    /// No instance accepted a connection.
    Unreachable { name: String },
    /// The instance hung up or spoke nonsense.
    BadAnswer { name: String },
    /// A question is larger than is kept.
    BodyTooLarge { most: u64 },
    /// Too many large questions are kept already.
    BodiesBusy,
    /// A question's body did not come whole.
    BodyBroken,
    /// Somebody vouches for whose question it is whom this edge does not know.
    UnknownFront,
    /// No first byte in time.
    TimedOut { name: String, waited_ms: u64 },
}

struct Words {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoSuchApp { .. } | Self::NoSuchRoute { .. } | Self::NoSuchSandbox => StatusCode::NOT_FOUND,
            Self::NoHost | Self::NotAnOrigin => StatusCode::BAD_REQUEST,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::Busy { .. }
            | Self::BodiesBusy
            | Self::UnknownFront
            | Self::QueueFull { .. }
            | Self::NoMemory { .. }
            | Self::Stopping { .. }
            | Self::StartFailed { .. }
            | Self::Paused { .. }
            | Self::Deploying { .. }
            | Self::NoHealthyInstance { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable { .. } | Self::BadAnswer { .. } => StatusCode::BAD_GATEWAY,
            Self::StillStarting { .. } | Self::TimedOut { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whether the connection cannot be trusted to be in step any more.
    fn closes(&self) -> bool {
        matches!(
            self,
            Self::NoHost
                | Self::NotAnOrigin
                | Self::UriTooLong
                | Self::BodyTooLarge { .. }
                | Self::BodiesBusy
                | Self::BodyBroken
        )
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. } => Some(*retry_after),
            Self::Busy { .. }
            | Self::BodiesBusy
            | Self::UnknownFront
            | Self::NoHealthyInstance { .. }
            | Self::Stopping { .. } => Some(BUSY_RETRY_AFTER),
            Self::Deploying { .. } | Self::StillStarting { .. } => Some(DEPLOYING_RETRY_AFTER),
            Self::NoMemory { .. } => Some(NO_MEMORY_RETRY_AFTER),
            _ => None,
        }
    }

    fn words(&self) -> Words {
        let (code, message, hint) = match self {
            Self::NoSuchApp { host } => (
                "no_such_app",
                format!("No app answers to {host}."),
                "Check the spelling of the address. `tram apps list` shows the apps and their domains; an app that was deleted loses its address at once.".to_owned(),
            ),
            Self::NoSuchRoute { host, path } => (
                "no_such_route",
                format!("The app at {host} has no route for {path}."),
                "Add a route for this path to one of the app's services, for example `tram deploy … --route /:8000`.".to_owned(),
            ),
            Self::NoSuchSandbox => (
                "no_such_sandbox",
                "No sandbox answers to this routing key.".to_owned(),
                "The sandbox may have been deleted. Create a new one, or take the key from the service's latest deployment.".to_owned(),
            ),
            Self::NoHost => (
                "no_host",
                "The request must name exactly one host.".to_owned(),
                "Send one Host header with the app's domain.".to_owned(),
            ),
            Self::NotAnOrigin => (
                "not_a_proxy",
                "This server does not tunnel to other servers.".to_owned(),
                "Ask for a path of an app, not for CONNECT.".to_owned(),
            ),
            Self::UriTooLong => (
                "uri_too_long",
                format!("The address is longer than {} bytes.", crate::admit::URI_MAX_BYTES),
                "Send long data in the body of a POST request.".to_owned(),
            ),
            Self::Unauthorized { basic, api_key } => (
                "unauthorized",
                "This route asks for credentials.".to_owned(),
                match (basic, api_key) {
                    (true, true) => "Send the user and password of the route, or one of its API keys as `Authorization: Bearer <key>` or `X-API-Key: <key>`.",
                    (true, false) => "Send the user and password of the route.",
                    _ => "Send one of the route's API keys as `Authorization: Bearer <key>` or `X-API-Key: <key>`.",
                }
                .to_owned(),
            ),
            Self::Busy { name } => (
                "service_busy",
                format!("{name} has as many requests in flight as it may have."),
                "Try again in a moment. Its owner can add instances with `tram scale`.".to_owned(),
            ),
            Self::QueueFull { name, .. } => (
                "queue_full",
                format!("{name} is waking up and too many callers wait for it already."),
                "Try again after the time in Retry-After. Its owner can keep one instance awake with a minimum scale of 1.".to_owned(),
            ),
            Self::StillStarting { name, waited_ms } => (
                "still_starting",
                format!("{name} is still starting after {} seconds.", waited_ms / 1000),
                "It will go on starting: try again. `tram logs` shows what it is doing.".to_owned(),
            ),
            Self::NoMemory { name, waited_ms } => (
                "no_memory",
                format!(
                    "{name} sleeps, and other models have needed the memory of this machine for the {} seconds that it waited.",
                    waited_ms / 1000
                ),
                "Try again after the time in Retry-After: models that rest make room. The messages of the deployment say what is in the way.".to_owned(),
            ),
            Self::Stopping { name } => (
                "edge_stopping",
                format!("{name} sleeps, and the server stops or starts again."),
                "Try again in a moment.".to_owned(),
            ),
            Self::StartFailed { name, message, deployment_id } => (
                "deployment_failed",
                format!("{name} could not start: {}", message.trim_end_matches('.')) + ".",
                format!("`tram logs --deployment {deployment_id}` shows the last output of the deployment. Mend the cause and redeploy."),
            ),
            Self::Paused { name } => (
                "service_paused",
                format!("{name} is paused."),
                "Its owner can start it again with `tram resume`.".to_owned(),
            ),
            Self::Deploying { name } => (
                "still_deploying",
                format!("{name} is being deployed for the first time and has no healthy instance yet."),
                "Try again in a few seconds. `tram deployments get` shows how far it is.".to_owned(),
            ),
            Self::NoHealthyInstance { name } => (
                "no_healthy_instance",
                format!("{name} has no healthy instance at the moment."),
                "Try again in a moment. `tram instances list` and `tram logs` show what happened to its instances.".to_owned(),
            ),
            Self::Unreachable { name } => (
                "instance_unreachable",
                format!("No instance of {name} accepted a connection."),
                "Check that the program listens on 0.0.0.0 (not on 127.0.0.1 alone) and on the port that the service declares.".to_owned(),
            ),
            Self::BadAnswer { name } => (
                "bad_answer",
                format!("An instance of {name} closed the connection without a complete answer."),
                "`tram logs` shows whether the program crashed. A port that speaks HTTP/2 must be declared as http2.".to_owned(),
            ),
            Self::BodyTooLarge { most } => (
                "body_too_large",
                format!("A question to a model may have at most {most} bytes."),
                "Send less at once.".to_owned(),
            ),
            Self::UnknownFront => (
                "unknown_front",
                "This edge does not know yet who asks.".to_owned(),
                "Try again. Only the platform's own address sends `x-tram-front`: leave it out elsewhere.".to_owned(),
            ),
            Self::BodiesBusy => (
                "busy",
                "Too many large questions to models are under way.".to_owned(),
                "Try again in a moment.".to_owned(),
            ),
            Self::BodyBroken => (
                "body_broken",
                "The body of the question did not come whole.".to_owned(),
                "Send all of it, without a pause of a minute.".to_owned(),
            ),
            Self::TimedOut { name, waited_ms } => (
                "request_timeout",
                format!("{name} did not begin to answer within {} seconds.", waited_ms / 1000),
                "Answer sooner and stream the rest, or raise the request timeout of the service's domain.".to_owned(),
            ),
        };
        Words {
            status: self.status(),
            code,
            message,
            hint,
        }
    }

    /// In words, for where no page can be shown any more.
    pub(crate) fn said(&self) -> String {
        self.words().message.trim_end_matches('.').to_owned()
    }

    /// The page, in the shape that the caller prefers.
    pub(crate) fn into_response(self, html: bool) -> Response<EdgeBody> {
        let words = self.words();
        let (kind, body) = if html {
            ("text/html; charset=utf-8", html_page(&words))
        } else {
            ("application/json", json(&words))
        };
        let mut response = Response::new(EdgeBody::full(Bytes::from(body)));
        *response.status_mut() = words.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_TRAM_ERROR, HeaderValue::from_static(words.code));
        if let Some(wait) = self.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        if html
            && matches!(
                self,
                Self::Deploying { .. } | Self::StillStarting { .. } | Self::NoMemory { .. }
            )
        {
            headers.insert(REFRESH, HeaderValue::from(DEPLOYING_RETRY_AFTER.as_secs()));
        }
        if let Self::Unauthorized { basic, .. } = self {
            let scheme = if basic {
                "Basic realm=\"this route\", charset=\"UTF-8\""
            } else {
                "Bearer"
            };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(scheme));
        }
        if self.closes() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Whether the caller would rather read HTML: it names `text/html`, and names it before JSON.
pub(crate) fn prefers_html(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(ACCEPT).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    accept
        .find("text/html")
        .is_some_and(|html| accept.find("application/json").is_none_or(|json| html < json))
}

fn json(words: &Words) -> String {
    serde_json::json!({
        "status": words.status.as_u16(),
        "code": words.code,
        "message": format!("{} {}", words.message, words.hint),
    })
    .to_string()
}

fn html_page(words: &Words) -> String {
    let status = words.status.as_u16();
    let reason = words.status.canonical_reason().unwrap_or_default();
    let mut page = String::with_capacity(2048);
    page.push_str(PAGE_HEAD);
    let _infallible = write!(
        page,
        "<title>{status} {reason}</title>{PAGE_STYLE}<main><p class=s>{status} <span>{reason}</span></p><h1>"
    );
    escape_into(&mut page, &words.message);
    page.push_str("</h1><p>");
    escape_into(&mut page, &words.hint);
    let _infallible = write!(
        page,
        "</p><footer>tramontane · <code>{}</code></footer></main></body></html>",
        words.code
    );
    page
}

const PAGE_HEAD: &str = "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\"><meta name=robots content=noindex>";

const PAGE_STYLE: &str = "<style>:root{color-scheme:light dark;--i:#16324a;--m:#5b7186;--b:#f5f8fa;--a:#1f7a8c}@media(prefers-color-scheme:dark){:root{--i:#e6eef4;--m:#94a9ba;--b:#0f1a24;--a:#5cc2d4}}body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--b);color:var(--i);font:16px/1.55 system-ui,sans-serif}main{max-width:36rem;padding:2rem;border-left:4px solid var(--a)}.s{margin:0;font-weight:600;color:var(--a)}.s span{color:var(--m);font-weight:400}h1{margin:.4rem 0 1rem;font-size:1.5rem;line-height:1.3;overflow-wrap:anywhere}p{margin:0 0 1rem;overflow-wrap:anywhere}footer{color:var(--m);font-size:.85rem}code{font-family:ui-monospace,monospace}</style></head><body>";

fn escape_into(page: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            other => page.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn text(response: Response<EdgeBody>) -> String {
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a whole body")
            .to_bytes();
        String::from_utf8(bytes.to_vec()).expect("text")
    }

    fn accepting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn browsers_get_html_and_programs_do_not() {
        assert!(prefers_html(&accepting(
            "text/html,application/xhtml+xml,*/*;q=0.8"
        )));
        assert!(!prefers_html(&accepting("application/json, text/html;q=0.1")));
        assert!(!prefers_html(&accepting("*/*")));
        assert!(!prefers_html(&HeaderMap::new()));
    }

    #[test]
    fn browsers_look_again_by_themselves_while_a_service_starts() {
        let deploying = |html| {
            Refusal::Deploying {
                name: "shop/web".into(),
            }
            .into_response(html)
        };
        assert_eq!(deploying(true).headers()["refresh"], "5");
        assert!(!deploying(false).headers().contains_key("refresh"));
    }

    #[tokio::test]
    async fn a_host_name_cannot_inject_markup() {
        let page = text(
            Refusal::NoSuchApp {
                host: "<script>x".into(),
            }
            .into_response(true),
        )
        .await;
        assert!(page.contains("&lt;script&gt;x") && !page.contains("<script>"));
    }

    #[tokio::test]
    async fn programs_get_the_apis_error_shape() {
        let refusal = Refusal::StartFailed {
            name: "shop/web".into(),
            message: "exit code 1".into(),
            deployment_id: Uuid::nil(),
        };
        let value: serde_json::Value =
            serde_json::from_str(&text(refusal.into_response(false)).await).expect("JSON");
        assert_eq!(
            (value["status"].as_u64(), value["code"].as_str()),
            (Some(503), Some("deployment_failed"))
        );
        assert!(
            value["message"]
                .as_str()
                .is_some_and(|message| message.contains("exit code 1."))
        );
    }
}
