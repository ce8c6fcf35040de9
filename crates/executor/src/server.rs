//! Accept, authorise, route.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::accept::Connections;
use crate::auth::Door;
use crate::blind::{Blind, Seal};
use crate::children::Children;
use crate::files::Operation;
use crate::processes::Processes;
use crate::relay::Binding;
use crate::reply::{Reply, Wrong, json};
use crate::streaming::{Transfers, What};
use crate::terminal::Terminals;
use crate::{request, run};

/// Connections at once. Streams of thousands of commands come through fewer; what waits is in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;
/// A connection without a whole request header for this long is closed. The edge keeps connections for less.
const HEADER_TIME_MAX: Duration = Duration::from_secs(120);

/// Where terminals are.
const TERMINAL: &str = "/terminal";

/// All that requests need.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) door: Door,
    pub(crate) children: Children,
    pub(crate) processes: Processes,
    pub(crate) binding: Binding,
    pub(crate) transfers: Transfers,
    pub(crate) terminals: Terminals,
}

#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
}

/// Serves for ever.
pub(crate) async fn serve(listener: TcpListener, state: Arc<State>) {
    let connections = Connections::of(listener, CONNECTIONS_MAX);
    while let Some((stream, place)) = connections.next().await {
        // Events are small and go out one by one.
        let _ = stream.set_nodelay(true);
        let (http, state) = (http(), Arc::clone(&state));
        tokio::spawn(async move {
            attend(&http, stream, state).await;
            drop(place);
        });
    }
}

/// How connections are spoken with.
pub(crate) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME_MAX);
    http
}

/// Answers the requests of one connection until it ends.
pub(crate) async fn attend<S>(http: &http1::Builder, stream: S, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (stream, seal) = Blind::new(stream);
    let service = service_fn(move |request| {
        let (state, seal) = (Arc::clone(&state), Arc::clone(&seal));
        async move { Ok::<_, Infallible>(answer(&state, &seal, request).await) }
    });
    let served = http
        .serve_connection(TokioIo::new(stream), service)
        // For terminals.
        .with_upgrades();
    // What breaks a connection is the client's affair, and it knows.
    let _ = served.await;
}

async fn answer(state: &State, seal: &Seal, request: Request<Incoming>) -> Reply {
    match route(state, seal, request).await {
        Ok(reply) => reply,
        Err(wrong) => wrong.into(),
    }
}

async fn route(state: &State, seal: &Seal, mut request: Request<Incoming>) -> Result<Reply, Wrong> {
    let upgrade = (request.uri().path() == TERMINAL).then(|| hyper::upgrade::on(&mut request));
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if (&head.method, path) == (&Method::GET, "/health") {
        return Ok(json(StatusCode::OK, &Health { status: "ok" }));
    }
    let shown = head
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    match state.door.opens(seal.shown(shown).as_ref()) {
        Ok(true) => {}
        Ok(false) => return Err(Wrong::new(StatusCode::UNAUTHORIZED, "Unauthorized")),
        Err(error) => {
            let words = format!("the secret of this sandbox cannot be written down: {error}");
            return Err(Wrong::new(StatusCode::INTERNAL_SERVER_ERROR, words));
        }
    }
    let method = &head.method;
    if let (Some(operation), &Method::POST) = (file_operation(path), method) {
        return Ok(operation.carry_out(request::read(body).await?).await);
    }
    if let (Some(upgrade), &Method::GET) = (upgrade, method) {
        let reply = state.terminals.open(&state.children, &head, upgrade)?;
        seal.upgrade();
        return Ok(reply);
    }
    if let Some(what) = What::at(path) {
        return state
            .transfers
            .carry_out(what, method, head.uri.query(), body)
            .await;
    }
    let allowed = match path {
        "/list_processes" | "/process_logs_streaming" | "/port_status" | TERMINAL => Method::GET,
        _ => Method::POST,
    };
    if is_known(path) && *method != allowed {
        return Err(Wrong::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("use {allowed}"),
        ));
    }
    match path {
        "/run" => {
            let wanted = request::read(body).await?;
            Ok(run::whole(&state.children, &wanted).await)
        }
        "/run_streaming" => {
            let wanted = request::read(body).await?;
            Ok(run::streaming(&state.children, &wanted))
        }
        "/bind_port" => Ok(state.binding.bind(&request::read(body).await?)),
        // Always succeeds, whatever the body names: clients unbind before they bind.
        "/unbind_port" => Ok(state.binding.unbind()),
        "/port_status" => Ok(state.binding.status()),
        "/start_process" => Ok(state.processes.start(&state.children, request::read(body).await?)),
        "/list_processes" => Ok(state.processes.list()),
        "/kill_process" => Ok(state.processes.kill(&request::read(body).await?)),
        "/process_logs_streaming" => {
            let query = head.uri.query();
            let id = request::parameter(query, "id").unwrap_or_default();
            let follow =
                request::parameter(query, "follow").is_some_and(|value| value == "true" || value == "1");
            Ok(state.processes.logs(&id, follow))
        }
        _ => Err(Wrong::new(
            StatusCode::NOT_FOUND,
            format!("there is nothing at {path}"),
        )),
    }
}

fn file_operation(path: &str) -> Option<Operation> {
    Some(match path {
        "/write_file" => Operation::Write,
        "/read_file" => Operation::Read,
        "/delete_file" => Operation::Delete,
        "/make_dir" => Operation::MakeDirectory,
        "/delete_dir" => Operation::DeleteDirectory,
        "/list_dir" => Operation::ListDirectory,
        "/stat_file" => Operation::Stat,
        _ => return None,
    })
}

fn is_known(path: &str) -> bool {
    file_operation(path).is_some()
        || matches!(
            path,
            "/run"
                | "/run_streaming"
                | "/bind_port"
                | "/unbind_port"
                | "/port_status"
                | "/start_process"
                | "/list_processes"
                | "/kill_process"
                | "/process_logs_streaming"
                | TERMINAL
        )
}
