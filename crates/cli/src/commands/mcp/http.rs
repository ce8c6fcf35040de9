//! The Model Context Protocol over streamable HTTP.
//!
//! Stateless: every request is answered by itself, so nothing is kept for clients that went away. Whoever may call this
//! has the user's sandboxes, so beside the bearer token the `Host` must be ours and an `Origin` is refused, as the
//! specification asks against DNS rebinding: no agent is a web page.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse as _, Response},
};
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::never::NeverSessionManager,
};
use subtle::ConstantTimeEq as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{Server, factory, tools::FILE_BYTES_MAX};
use crate::{error::Error, session::Session};

/// Where clients find it.
const PATH: &str = "/mcp";
/// The variable with the token that clients show. No flag: arguments are seen by everyone on the machine.
const TOKEN_VARIABLE: &str = "TRAM_MCP_TOKEN";
/// Shortest token that keeps anybody out.
const TOKEN_CHARACTERS_MIN: usize = 16;
/// Largest request: a file to write, as text in which every byte may be an escape of six, and the rest of the message.
const REQUEST_BYTES_MAX: usize = FILE_BYTES_MAX * 6 + 64 * 1024;

/// Serves until the user stops it.
pub(super) async fn serve(
    session: &Session,
    server: Server,
    address: SocketAddr,
    allowed: Vec<String>,
) -> Result<(), Error> {
    let token = token(session.host.variable(TOKEN_VARIABLE), address)?;
    let mut hosts = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !address.ip().is_unspecified() {
        hosts.push(address.ip().to_string());
    }
    hosts.extend(allowed);
    let config = StreamableHttpServerConfig::default()
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_max_request_body_bytes(REQUEST_BYTES_MAX)
        .with_allowed_hosts(hosts)
        .enforce_origin_validation();
    let service =
        StreamableHttpService::new(factory(server), Arc::new(NeverSessionManager::default()), config);
    let router = Router::new()
        .route_service(PATH, service)
        .layer(from_fn_with_state(token.map(Arc::from), authorized));
    let failed = |source| Error::Read {
        what: format!("connections at {address}"),
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    session
        .printer
        .note(format_args!("listening at http://{bound}{PATH}"));
    let mut end = signal(SignalKind::terminate()).map_err(Error::Terminal)?;
    tokio::select! {
        served = axum::serve(listener, router) => served.map_err(failed),
        () = session.host.interrupt.wait() => Err(Error::Interrupted),
        _ = end.recv() => Ok(()),
    }
}

/// The token that clients must show, which only loopback may do without.
fn token(given: Option<&str>, address: SocketAddr) -> Result<Option<String>, Error> {
    match given.filter(|given| !given.is_empty()) {
        Some(given) if given.len() < TOKEN_CHARACTERS_MIN => Err(Error::input(
            format!("{TOKEN_VARIABLE} is shorter than {TOKEN_CHARACTERS_MIN} characters"),
            "take a random one, such as of `openssl rand -hex 32`",
        )),
        Some(given) => Ok(Some(given.to_owned())),
        None if address.ip().is_loopback() => Ok(None),
        None => Err(Error::input(
            format!("--listen {address} can be reached from other machines, and there is no token"),
            format!("set {TOKEN_VARIABLE} to what clients shall show, or listen on 127.0.0.1"),
        )),
    }
}

/// Lets those pass who show the token.
async fn authorized(State(token): State<Option<Arc<str>>>, request: Request, next: Next) -> Response {
    let shown = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map_or("", |(_, shown)| shown.trim());
    match token {
        Some(token) if !bool::from(token.as_bytes().ct_eq(shown.as_bytes())) => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            "show the token of TRAM_MCP_TOKEN as a bearer token\n",
        )
            .into_response(),
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_needs_no_token() {
        let long = "0123456789abcdef";
        for (given, address, allowed) in [
            (None, "127.0.0.1:1", true),
            (None, "[::1]:1", true),
            (None, "0.0.0.0:1", false),
            (None, "10.0.0.1:1", false),
            (Some(""), "10.0.0.1:1", false),
            (Some("short"), "127.0.0.1:1", false),
            (Some(long), "10.0.0.1:1", true),
        ] {
            let found = token(given, address.parse().unwrap());
            assert_eq!(found.is_ok(), allowed, "{given:?} {address}");
        }
    }
}
