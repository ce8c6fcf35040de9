//! One connection of a program: its requests, carried on one after the other.
//!
//! Values are read for each request and live as long as it does. The one design choice to know: the connection to the
//! real host belongs to this connection of this instance alone, so nothing of one instance's can arrive at another's.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tram_types::bound;

use super::head::{self, Refusal, Replacement};
use super::{HEAD_BYTES_MAX, Held, Shared};
use crate::dns::Guarded;

type Body = BoxBody<Bytes, hyper::Error>;

/// What one connection is about.
#[derive(Debug)]
pub(super) struct Conversation {
    shared: Arc<Shared>,
    asker: Ipv4Addr,
    /// By which the connection was opened, in lower case.
    host: String,
    port: u16,
    /// Its places among all connections, for as long as anything of it is open.
    held: Arc<Held>,
    /// Cancelled when the guard ends.
    end: CancellationToken,
    /// The connection to the real host, between two requests.
    kept: Mutex<Option<SendRequest<Incoming>>>,
}

impl Conversation {
    pub(super) fn new(
        shared: Arc<Shared>,
        asker: Ipv4Addr,
        (host, port): (String, u16),
        held: Arc<Held>,
        end: CancellationToken,
    ) -> Self {
        Self {
            shared,
            asker,
            host,
            port,
            held,
            end,
            kept: Mutex::default(),
        }
    }

    /// What the program is answered.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match self.carry_on(request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                self.shared
                    .refuse(self.asker, &format!("{}: {}", self.host, refusal.status));
                let text = Full::new(Bytes::from(format!("tramontane: {}\n", refusal.message)));
                let mut answer = Response::new(text.map_err(|never| match never {}).boxed());
                *answer.status_mut() = refusal.status;
                answer
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                // What is left of a request that was not read is not another request.
                answer
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
                answer
            }
        }
    }

    async fn carry_on(&self, mut request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        head::check(&method, &uri, request.headers(), &self.host, self.port)?;
        // As things stand now: the policy may have changed since the last request.
        let gone = || {
            Refusal::new(
                StatusCode::FORBIDDEN,
                "no secret of this instance is bound to this host",
            )
        };
        let guarded = self.shared.parts.directory.guarded(self.asker).ok_or_else(gone)?;
        if !guarded.is_bound(&self.host) {
            return Err(gone());
        }
        let replacements = self.replacements(&guarded, &uri, &request).await?;
        let websocket = head::is_websocket(request.headers());
        head::strip(request.headers_mut(), websocket);
        request.headers_mut().remove(header::EXPECT);
        let target = head::fill(&uri, request.headers_mut(), &replacements)?;
        *request.uri_mut() = Uri::from(target);
        *request.version_mut() = Version::HTTP_11;
        // Written by us: it is the host that was verified, whatever form the program gave it.
        let named = match self.port {
            443 => self.host.clone(),
            port => format!("{}:{port}", self.host),
        };
        let named = HeaderValue::from_str(&named).map_err(|_| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "the host's name does not fit into a request",
            )
        })?;
        request.headers_mut().insert(header::HOST, named);
        if !replacements.is_empty() {
            self.shared.counts.filled.fetch_add(1, Ordering::Relaxed);
        }
        let theirs = websocket.then(|| hyper::upgrade::on(&mut request));
        let (sender, mut answer) = self.send(&guarded, request).await?;
        head::hide(answer.headers_mut(), &replacements);
        // Some servers repeat the request's first line in it.
        answer.extensions_mut().remove::<hyper::ext::ReasonPhrase>();
        if let Some(theirs) = theirs
            && answer.status() == StatusCode::SWITCHING_PROTOCOLS
        {
            let ours = hyper::upgrade::on(&mut answer);
            let (over, held, end) = (guarded.over.clone(), Arc::clone(&self.held), self.end.clone());
            tokio::spawn(async move {
                let _held = held;
                end.run_until_cancelled(over.run_until_cancelled(join(theirs, ours)))
                    .await;
            });
            let (parts, _) = answer.into_parts();
            let nothing = Full::new(Bytes::new()).map_err(|never| match never {});
            return Ok(Response::from_parts(parts, nothing.boxed()));
        }
        head::strip(answer.headers_mut(), false);
        // It leads to another port and protocol, which the guard does not speak.
        answer.headers_mut().remove(header::ALT_SVC);
        *self.kept.lock().await = Some(sender);
        Ok(answer.map(|body| body.boxed()))
    }

    /// The secrets that this request mentions, with their values as they are now.
    async fn replacements(
        &self,
        guarded: &Guarded,
        uri: &Uri,
        request: &Request<Incoming>,
    ) -> Result<Vec<Replacement>, Refusal> {
        let mut replacements = Vec::new();
        for secret in guarded.secrets(&self.host) {
            let placeholder = bound::placeholder(secret.id);
            if !head::mentions(uri, request.headers(), &placeholder) {
                continue;
            }
            let later = |why: &str| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why);
            let Some(values) = &self.shared.parts.values else {
                return Err(later("secrets cannot be read here"));
            };
            let found = values.bound_value(guarded.organization, secret.id).await;
            let found = found.map_err(|error| {
                tracing::warn!(error = crate::chain(&error), secret = %secret.id, "a bound secret cannot be read");
                later("the secret cannot be read now")
            })?;
            let refused = |why: &str| Refusal::new(StatusCode::FORBIDDEN, why);
            let found = found.ok_or_else(|| refused("the secret was deleted"))?;
            if !found.hosts.is_empty() && !found.hosts.contains(&self.host) {
                return Err(refused("the secret is not bound to this host any more"));
            }
            replacements.push(Replacement {
                placeholder,
                value: found.value,
            });
        }
        Ok(replacements)
    }

    /// Sends a request over the connection that is there, or over a new one.
    async fn send(
        &self,
        guarded: &Guarded,
        request: Request<Incoming>,
    ) -> Result<(SendRequest<Incoming>, Response<Incoming>), Refusal> {
        let failed = |error: hyper::Error| {
            Refusal::new(
                StatusCode::BAD_GATEWAY,
                format!("{} did not answer: {error}", self.host),
            )
        };
        let mut request = request;
        let kept = self.kept.lock().await.take();
        if let Some(mut sender) = kept
            && sender.ready().await.is_ok()
        {
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok((sender, answer)),
                // The host closed it while it was idle; nothing was sent.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failed(error.into_error())),
                },
            }
        }
        let stream = self
            .shared
            .parts
            .outside
            .connect(guarded, &self.host, self.port)
            .await?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let (over, end) = (guarded.over.clone(), self.end.clone());
        tokio::spawn(
            end.run_until_cancelled_owned(over.run_until_cancelled_owned(async move {
                // How it ended is seen by whoever reads the answer.
                drop(connection.with_upgrades().await);
            })),
        );
        let answer = sender.send_request(request).await.map_err(failed)?;
        Ok((sender, answer))
    }
}

/// Carries a WebSocket's bytes, both ways.
async fn join(theirs: hyper::upgrade::OnUpgrade, ours: hyper::upgrade::OnUpgrade) {
    let (Ok(theirs), Ok(ours)) = tokio::join!(theirs, ours) else {
        return;
    };
    let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
    let _ended = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await;
}
