//! The life of a request: the stages in their order, and what a request carries from one to the next.
//!
//! Called by `accept.rs` for each request of each connection. Nothing here decides: a stage answers or refuses.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HOST, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tram_types::routing::Protocol;

use crate::access_log::Entry;
use crate::account::{InFlight, Live};
use crate::alarm::Alarm;
use crate::body::{EdgeBody, Progress, RequestBody};
use crate::forwarded::{self, Client, X_REQUEST_ID, X_ROUTING_KEY, X_TRAM_FRONT};
use crate::inference::{Asked, Asks, Caller, Followed, Question};
use crate::page::{self, Refusal};
use crate::pool::{Http1, Seat, SharedStream};
use crate::relay::Passed;
use crate::streams::Place;
use crate::table::{Gate, Route};
use crate::trace::RequestSpan;
use crate::worker::Worker;
use crate::{admit, forward, route, tunnel, waiting, wake};

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) worker: Arc<Worker>,
    pub(crate) client: Client,
    /// Its deadlines, where one task does all of the connection.
    pub(crate) alarm: Arc<Alarm>,
}

/// The status in the accounts of a request whose client left before an answer began; nginx's, which tools know.
const CLIENT_LEFT: u16 = 499;

/// How long a browser that opens a page is held before it is shown that the service is waking up: as long as people
/// wait for a page before they look elsewhere. The page loads itself again.
const BROWSER_HOLD: Duration = Duration::from_secs(10);

/// What a request leaves behind on its way, for the accounts. Dropped before it is answered, it tells that the client
/// left.
#[derive(Debug)]
struct Trace {
    started: Instant,
    live: Option<Arc<Live>>,
    entry: Option<Box<Entry>>,
    span: Option<Box<RequestSpan>>,
    progress: Option<Arc<Progress>>,
    /// Whether it waits for a wake, for a client who may want to hear so.
    holding: Option<Arc<AtomicBool>>,
    answered: bool,
}

impl Trace {
    fn set_holding(&self, holding: bool) {
        if let Some(told) = &self.holding {
            told.store(holding, Relaxed);
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let bytes_in = self
            .progress
            .as_ref()
            .map_or(0, |progress| progress.bytes.load(Relaxed));
        if let Some(live) = &self.live {
            live.count(CLIENT_LEFT);
            live.bytes_in.fetch_add(bytes_in, Relaxed);
        }
        if let Some(mut span) = self.span.take() {
            span.left(CLIENT_LEFT, bytes_in);
        }
        if let Some(mut entry) = self.entry.take() {
            entry.status = CLIENT_LEFT;
            entry.bytes_in = bytes_in;
            entry.complete = false;
            entry.write();
        }
    }
}

/// A request's future, apart from its connection's: hyper keeps the place of a service's future for as long as the
/// connection lives, and idle connections are many. `place`: of its stream, on an HTTP/2 connection.
pub(crate) fn boxed(
    context: Arc<Context>,
    request: Request<Incoming>,
    place: Option<Place>,
) -> Pin<Box<impl Future<Output = Result<Response<EdgeBody>, Infallible>>>> {
    Box::pin(handle(context, request, place))
}

/// Answers one request.
pub(crate) async fn handle(
    context: Arc<Context>,
    request: Request<Incoming>,
    place: Option<Place>,
) -> Result<Response<EdgeBody>, Infallible> {
    let started = Instant::now();
    let id = forwarded::request_id(request.headers());
    let html = page::prefers_html(request.headers());
    let log = context.worker.shared.log.as_ref();
    let mut trace = Trace {
        started,
        live: None,
        entry: log.map(|log| Box::new(Entry::new(log, &request, &context.client, &id, started))),
        span: context
            .worker
            .shared
            .tracer
            .as_ref()
            .map(|tracer| tracer.begin(&request, &context.client, &id)),
        progress: None,
        holding: None,
        answered: false,
    };
    let mut response = if waiting::reads_events(request.headers()) {
        let holding = Arc::new(AtomicBool::new(false));
        trace.holding = Some(Arc::clone(&holding));
        let own = Box::pin(answer(context, request, id.clone(), html, trace));
        waiting::answer(own, holding).await
    } else {
        answer(context, request, id.clone(), html, trace).await
    };
    if let Some(place) = place {
        response.body_mut().hold(place);
    }
    response.headers_mut().insert(X_REQUEST_ID, id);
    Ok(response)
}

async fn answer(
    context: Arc<Context>,
    request: Request<Incoming>,
    id: HeaderValue,
    html: bool,
    mut trace: Trace,
) -> Response<EdgeBody> {
    let served = serve(&context, request, &id, html, &mut trace).await;
    trace.answered = true;
    match served {
        Ok(response) => response,
        Err(refusal) => refuse(&context, refusal, html, trace),
    }
}

fn refuse(context: &Context, refusal: Refusal, html: bool, mut trace: Trace) -> Response<EdgeBody> {
    let status = refusal.status().as_u16();
    if let Some(live) = &trace.live {
        live.count(status);
        live.latency.observe(trace.started.elapsed());
    } else {
        context.worker.shared.unrouted.fetch_add(1, Relaxed);
    }
    if let Some(mut span) = trace.span.take() {
        span.refused(status);
    }
    if let Some(mut entry) = trace.entry.take() {
        entry.status = status;
        entry.refusal = true;
        entry.write();
    }
    refusal.into_response(html)
}

/// What admission leaves: a place in the service, and where to go.
struct Admitted {
    route: Arc<Route>,
    /// Of the table that the route is of.
    version: u64,
    in_flight: InFlight,
    target: Option<PathAndQuery>,
    by_key: bool,
    host: HeaderValue,
}

async fn serve(
    context: &Context,
    mut request: Request<Incoming>,
    id: &HeaderValue,
    html: bool,
    trace: &mut Trace,
) -> Result<Response<EdgeBody>, Refusal> {
    let started = trace.started;
    let admitted = admit(context, &request, html, trace).await?;
    let route = admitted.route;
    if route.service.spec.engine.is_some()
        && let Some(proof) = request.headers().get(X_TRAM_FRONT)
        && !Box::pin(context.worker.shared.inference.fronts.know_soon(proof.as_bytes())).await
    {
        return Err(Refusal::UnknownFront);
    }
    let caller = route.service.spec.engine.as_ref().map(|_| {
        let fronts = &context.worker.shared.inference.fronts;
        let security = route.security.as_deref();
        // Boxed: few requests have one, and all carry its place.
        Box::new(Caller::take(
            fronts,
            request.headers_mut(),
            context.client.ip,
            security,
        ))
    });
    if let Some(entry) = &mut trace.entry {
        entry.held = started.elapsed();
    }
    let upgrade = prepare(
        &mut request,
        context,
        admitted.target,
        admitted.by_key,
        admitted.host,
        id,
        route.protocol,
    );
    if let Some(span) = &trace.span {
        span.inject(request.headers_mut());
    }
    let on_client = upgrade.map(|protocol| {
        request
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, protocol);
        hyper::upgrade::on(&mut request)
    });
    if let Some(caller) = &caller {
        caller.tell(request.headers_mut());
    }
    if let Some(caller) = caller
        && let Some(asks) = Asks::of(request.method(), request.uri().path())
    {
        let (version, in_flight) = (admitted.version, admitted.in_flight);
        return Box::pin(ask(
            context,
            (asks, caller),
            version,
            &route,
            in_flight,
            request,
            trace,
        ))
        .await;
    }
    let (parts, incoming) = request.into_parts();
    let (body, progress) = if incoming.is_end_stream() {
        (RequestBody::Empty, None)
    } else {
        let progress = Arc::new(Progress::new());
        (
            RequestBody::Stream {
                incoming,
                progress: Arc::clone(&progress),
            },
            Some(progress),
        )
    };
    trace.progress.clone_from(&progress);
    let answer = forward::forward(
        &context.worker,
        admitted.version,
        &route,
        Request::from_parts(parts, body),
        progress.as_ref(),
        Some(&context.alarm).filter(|alarm| alarm.is_watched()),
    )
    .await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(refusal) => {
            if let Some(progress) = progress {
                admitted
                    .in_flight
                    .live()
                    .bytes_in
                    .fetch_add(progress.bytes.load(Relaxed), Relaxed);
            }
            return Err(refusal);
        }
    };
    let exchange = Box::new(Exchange {
        in_flight: admitted.in_flight,
        worker: context.worker.index,
        seat: Some(answer.seat),
        connection: answer.connection,
        _stream: answer.stream,
        tunnel: None,
        progress,
        bytes_out: 0,
        entry: trace.entry.take(),
        span: trace.span.take(),
        complete: false,
    });
    match respond(context, answer.response, exchange, on_client, started, None) {
        Ok(response) => Ok(response),
        Err(exchange) => Err(no_answer(&route, exchange, trace)),
    }
}

/// It is told as a refusal, not as the exchange that it did not become.
fn no_answer(route: &Route, mut exchange: Box<Exchange>, trace: &mut Trace) -> Refusal {
    trace.entry = exchange.entry.take();
    trace.span = exchange.span.take();
    Refusal::BadAnswer {
        name: route.service.spec.name.clone(),
    }
}

/// A question to a model: read whole, asked, and its answer followed to its end.
async fn ask(
    context: &Context,
    (asks, caller): (Asks, Box<Caller>),
    version: u64,
    route: &Arc<Route>,
    in_flight: InFlight,
    request: Request<Incoming>,
    trace: &mut Trace,
) -> Result<Response<EdgeBody>, Refusal> {
    let started = trace.started;
    let progress = Arc::new(Progress::new());
    trace.progress = Some(Arc::clone(&progress));
    let (parts, incoming) = request.into_parts();
    let (worker, alarm) = (
        &context.worker,
        Some(&context.alarm).filter(|alarm| alarm.is_watched()),
    );
    let mut question =
        Question::read(asks, caller, worker, route, parts, incoming, &progress, started).await?;
    let asked = question.ask(version, alarm).await;
    let Asked { answer, tells } = match asked {
        Ok(asked) => asked,
        Err(refusal) => {
            let bytes = progress.bytes.load(Relaxed);
            in_flight.live().bytes_in.fetch_add(bytes, Relaxed);
            return Err(refusal);
        }
    };
    let exchange = Box::new(Exchange {
        in_flight,
        worker: context.worker.index,
        seat: Some(answer.seat),
        connection: answer.connection,
        _stream: answer.stream,
        tunnel: None,
        progress: Some(progress),
        bytes_out: 0,
        entry: trace.entry.take(),
        span: trace.span.take(),
        complete: false,
    });
    respond(
        context,
        answer.response,
        exchange,
        None,
        started,
        Some((question, tells)),
    )
    .map_err(|exchange| no_answer(route, exchange, trace))
}

/// Route, admit and wake, over and over until one table lets the request through as a whole.
async fn admit(
    context: &Context,
    request: &Request<Incoming>,
    html: bool,
    trace: &mut Trace,
) -> Result<Admitted, Refusal> {
    let started = trace.started;
    let shared = &context.worker.shared;
    let authority = admit::form(request)?;
    let host = route::canonical(authority);
    let path = request.uri().path();
    loop {
        let (route, version, rest_at, by_key) = {
            let table = shared.table.load();
            let matched = route::find(
                &table,
                &host,
                path,
                request.headers().get(X_ROUTING_KEY).map(HeaderValue::as_bytes),
            )?;
            (
                Arc::clone(matched.route),
                table.version,
                matched.rest_at,
                matched.by_key,
            )
        };
        let spec = &route.service.spec;
        if trace.live.as_ref().is_none_or(|live| live.id != spec.id) {
            route.service.live.arrive(started);
            if let Some(entry) = &mut trace.entry {
                entry.service = Some(spec.id);
            }
            trace.live = Some(Arc::clone(&route.service.live));
            if let Some(span) = &mut trace.span {
                span.routed(spec.id, &spec.name, &route.prefix);
            }
        }
        if let Some(security) = &route.security {
            admit::authorise(security, request.headers())?;
        }
        match route.gate(version) {
            Gate::Open => {
                let Some(in_flight) = route.service.live.enter(spec.max_concurrent_requests) else {
                    return Err(Refusal::Busy {
                        name: spec.name.clone(),
                    });
                };
                if shared.table.load().version == version {
                    let target = route::stripped(path, request.uri().query(), rest_at)
                        .and_then(|target| PathAndQuery::try_from(target).ok());
                    let host = match request.headers().get(HOST) {
                        Some(host) if request.uri().authority().is_none() => host.clone(),
                        _ => HeaderValue::from_str(authority).map_err(|_| Refusal::NoHost)?,
                    };
                    return Ok(Admitted {
                        route,
                        version,
                        in_flight,
                        target,
                        by_key,
                        host,
                    });
                }
            }
            Gate::Hold => {
                let patience = Duration::from_millis(spec.hold_deadline_ms);
                // A person is shown a page that comes back by itself; what a form sends is held to the end.
                let patience = if html && request.method() == Method::GET {
                    patience.min(BROWSER_HOLD)
                } else {
                    patience
                };
                let deadline = started + patience;
                trace.set_holding(true);
                let cause = trace.span.as_mut().and_then(|span| {
                    span.held();
                    span.traceparent()
                });
                let held = Box::pin(wake::hold(
                    &route.service,
                    || shared.table.load().version == version && route.gate(version) == Gate::Hold,
                    deadline,
                    cause,
                ));
                let held = tokio::select! {
                    biased;
                    held = held => held,
                    () = shared.stop.cancelled() => Err(Refusal::Stopping {
                        name: spec.name.clone(),
                    }),
                };
                if let Some(span) = &mut trace.span {
                    span.released();
                }
                trace.set_holding(false);
                held?;
            }
            Gate::Refuse => return Err(refusal_of(&route)),
        }
    }
}

/// Why a closed gate is closed.
pub(crate) fn refusal_of(route: &Route) -> Refusal {
    use tram_types::routing::State;
    let name = route.service.spec.name.clone();
    match &route.service.spec.state {
        State::Failed {
            message,
            deployment_id,
        } => Refusal::StartFailed {
            name,
            message: message.clone(),
            deployment_id: *deployment_id,
        },
        State::Paused => Refusal::Paused { name },
        State::Deploying => Refusal::Deploying { name },
        State::Ready | State::Sleeping | State::Starting { .. } => Refusal::NoHealthyInstance { name },
    }
}

/// Rewrites target and headers to what the instance shall see. Returns the upgrade to carry through.
fn prepare(
    request: &mut Request<Incoming>,
    context: &Context,
    target: Option<PathAndQuery>,
    by_key: bool,
    host: HeaderValue,
    id: &HeaderValue,
    protocol: Protocol,
) -> Option<HeaderValue> {
    let version = request.version();
    if target.is_some() || request.uri().authority().is_some() {
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = target.or_else(|| request.uri().path_and_query().cloned());
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    let headers = request.headers_mut();
    if by_key {
        headers.remove(X_ROUTING_KEY);
    }
    headers.insert(HOST, host.clone());
    let upgrade = forwarded::request(headers, &context.client, host, id);
    upgrade
        .filter(|_| version == Version::HTTP_11 && protocol == Protocol::Http)
        .and_then(forwarded::without_h2c)
}

/// Gives the exchange back when the instance switched to a protocol that nobody asked for.
fn respond(
    context: &Context,
    mut response: Response<Incoming>,
    mut exchange: Box<Exchange>,
    on_client: Option<OnUpgrade>,
    started: Instant,
    question: Option<(Box<Question>, bool)>,
) -> Result<Response<EdgeBody>, Box<Exchange>> {
    let status = response.status();
    let switched = status == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = forwarded::strip_hop_by_hop(response.headers_mut());
    if switched && on_client.is_none() {
        return Err(exchange);
    }
    exchange.in_flight.live().count(status.as_u16());
    let took = started.elapsed();
    exchange.in_flight.live().latency.observe(took);
    let instance_id = exchange.instance_id();
    if let Some(span) = &mut exchange.span {
        span.answered(status.as_u16(), instance_id);
    }
    if let Some(entry) = &mut exchange.entry {
        entry.status = status.as_u16();
        entry.instance = Some(instance_id);
        entry.first_byte = took;
    }
    if let (true, Some(on_client)) = (switched, on_client) {
        let on_instance = hyper::upgrade::on(&mut response);
        tunnel::splice(&context.worker.shared.open, on_client, on_instance, exchange);
        let mut response = response.map(|_| EdgeBody::full(bytes::Bytes::new()));
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = upgrade {
            response.headers_mut().insert(UPGRADE, protocol);
        }
        return Ok(response);
    }
    if let Some((question, tells)) = question {
        let (parts, incoming) = response.into_parts();
        let head = (parts.status, &parts.headers);
        let body = EdgeBody::model(Followed::new(question, tells, head, incoming, exchange));
        return Ok(Response::from_parts(parts, body));
    }
    Ok(response.map(|incoming| EdgeBody::stream(incoming, exchange)))
}

/// A request from its admission to the last byte of its answer. Its end is accounted for on drop, whole or not.
#[derive(Debug)]
pub(crate) struct Exchange {
    in_flight: InFlight,
    worker: usize,
    /// None while an answer that its instance left is on its way to another.
    seat: Option<Seat>,
    connection: Option<Http1>,
    _stream: Option<SharedStream>,
    /// What passes after an upgrade, which is no body.
    tunnel: Option<Arc<Passed>>,
    progress: Option<Arc<Progress>>,
    pub(crate) bytes_out: u64,
    entry: Option<Box<Entry>>,
    span: Option<Box<RequestSpan>>,
    complete: bool,
}

impl Exchange {
    /// The instance that has it; none has it while it is on its way to another.
    fn instance_id(&self) -> uuid::Uuid {
        self.seat
            .as_ref()
            .map_or_else(uuid::Uuid::nil, |seat| seat.endpoint.instance_id)
    }

    /// Its instance is gone, or is left.
    pub(crate) fn lost(&mut self) {
        self.connection = None;
        self._stream = None;
        self.seat = None;
    }

    /// Another instance goes on with the answer.
    pub(crate) fn moved(&mut self, seat: Seat, connection: Option<Http1>, stream: Option<SharedStream>) {
        self.connection = connection;
        self._stream = stream;
        self.seat = Some(seat);
    }

    /// The answer was passed on whole.
    pub(crate) fn finish(mut self) {
        self.complete = true;
        // An instance that answered before it read the whole request would read the rest as the next one.
        let request_done = self
            .progress
            .as_ref()
            .is_none_or(|progress| progress.done.load(Relaxed));
        if let (true, Some(connection), Some(seat)) = (request_done, self.connection.take(), &self.seat) {
            seat.endpoint.checkin(self.worker, connection, Instant::now());
        }
    }

    /// From now on bytes pass outside of bodies.
    pub(crate) fn become_tunnel(&mut self) -> Arc<Passed> {
        let passed = Passed::new(self.in_flight.live());
        Arc::clone(self.tunnel.insert(passed))
    }

    /// Both sides of the tunnel have closed.
    pub(crate) fn tunnel_closed(&mut self) {
        self.complete = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let live = self.in_flight.live();
        let bytes_in = self
            .progress
            .as_ref()
            .map_or(0, |progress| progress.bytes.load(Relaxed));
        live.bytes_in.fetch_add(bytes_in, Relaxed);
        live.bytes_out.fetch_add(self.bytes_out, Relaxed);
        // A tunnel's are counted as they pass.
        let (from_client, to_client) = self
            .tunnel
            .as_ref()
            .map_or((0, 0), |passed| (passed.bytes_in(), passed.bytes_out()));
        let (bytes_in, bytes_out) = (bytes_in + from_client, self.bytes_out + to_client);
        if let Some(mut span) = self.span.take() {
            span.finish(bytes_in, bytes_out, self.complete);
        }
        if let Some(mut entry) = self.entry.take() {
            entry.bytes_in = bytes_in;
            entry.bytes_out = bytes_out;
            entry.complete = self.complete;
            entry.write();
        }
    }
}
