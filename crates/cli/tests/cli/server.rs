//! A server of the test's own: answers by hand to calls it was told of, and keeps what it was sent.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{WebSocket, handshake::derive_accept_key, protocol::Role};

/// A WebSocket on the server's side.
pub(crate) type Socket = WebSocket<TcpStream>;
type Play = Box<dyn FnMut(Socket) + Send>;

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// `GET /v1/apps`
    pub(crate) line: String,
    /// After the question mark.
    pub(crate) query: String,
    /// Lower-case names.
    pub(crate) headers: HashMap<String, String>,
    /// JSON, or null for none.
    pub(crate) body: Value,
}

#[derive(Default)]
struct State {
    answers: HashMap<String, Vec<(u16, Value)>>,
    warnings: HashMap<String, String>,
    sockets: HashMap<String, Play>,
    calls: Vec<Call>,
}

/// The server, until it is dropped.
pub(crate) struct Server {
    /// Its address.
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    stopping: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// On any free port, with an account, a region and no apps.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        let server = Self {
            url: format!("http://{address}"),
            state,
            stopping,
            listener: Some(thread),
        };
        server.answer(
            "GET /v1/account/organization",
            json!({ "organization": { "id": "o", "name": "acme" } }),
        );
        server.answer(
            "GET /v1/catalog/regions",
            json!({ "regions": [{ "id": "local", "status": "AVAILABLE" }] }),
        );
        server
    }

    /// Answers a call so, every time.
    pub(crate) fn answer(&self, line: &str, body: Value) {
        self.answers(line, vec![(200, body)]);
    }

    /// Refuses a call so, every time.
    pub(crate) fn refuse(&self, line: &str, status: u16, body: Value) {
        self.answers(line, vec![(status, body)]);
    }

    /// Answers a call by one of these after the other; the last one stays.
    pub(crate) fn answers(&self, line: &str, mut answers: Vec<(u16, Value)>) {
        answers.reverse();
        self.state
            .lock()
            .unwrap()
            .answers
            .insert(line.to_owned(), answers);
    }

    /// Warns of a call so, every time.
    pub(crate) fn warn(&self, line: &str, warning: &str) {
        let mut state = self.state.lock().unwrap();
        state.warnings.insert(line.to_owned(), warning.to_owned());
    }

    /// Plays the other end of a WebSocket at this path.
    pub(crate) fn socket(&self, path: &str, play: impl FnMut(Socket) + Send + 'static) {
        self.state
            .lock()
            .unwrap()
            .sockets
            .insert(path.to_owned(), Box::new(play));
    }

    /// Every call of this line so far.
    pub(crate) fn calls(&self, line: &str) -> Vec<Call> {
        let state = self.state.lock().unwrap();
        state
            .calls
            .iter()
            .filter(|call| call.line == line)
            .cloned()
            .collect()
    }

    /// The lines of all calls that changed something.
    pub(crate) fn changes(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let lines = state.calls.iter().map(|call| call.line.clone());
        lines.filter(|line| !line.starts_with("GET ")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A last connection wakes the thread, which then sees that it shall stop.
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(call) = read(&mut reader) {
        state.lock().unwrap().calls.push(call.clone());
        let path = call.line.split(' ').nth(1).unwrap_or_default().to_owned();
        let play = state.lock().unwrap().sockets.remove(&path);
        if let (Some(mut play), Some(key)) = (play, call.headers.get("sec-websocket-key")) {
            let accept = derive_accept_key(key.as_bytes());
            write!(
                &stream,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            )
            .unwrap();
            play(WebSocket::from_raw_socket(stream, Role::Server, None));
            return;
        }
        let (status, body) = {
            let mut state = state.lock().unwrap();
            match state.answers.get_mut(&call.line) {
                Some(answers) if answers.len() > 1 => answers.pop().unwrap(),
                Some(answers) => answers.last().unwrap().clone(),
                None => (
                    404,
                    json!({ "status": 404, "code": "not_found", "message": format!("nobody answers {}", call.line) }),
                ),
            }
        };
        let warning = state.lock().unwrap().warnings.get(&call.line).cloned();
        let warning = warning.map_or(String::new(), |text| format!("X-Tram-Warning: {text}\r\n"));
        let body = body.to_string();
        let sent = write!(
            &stream,
            "HTTP/1.1 {status} Whatever\r\nContent-Type: application/json\r\n{warning}Content-Length: {}\r\n\r\n\
             {body}",
            body.len()
        );
        if sent.is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Call> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.to_owned()),
            None => break,
        };
    }
    let length: usize = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Call {
        line: format!("{method} {path}"),
        query: query.to_owned(),
        headers,
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

/// A page of a list.
pub(crate) fn page(member: &str, items: Value) -> Value {
    let count = items.as_array().unwrap().len();
    json!({ member: items, "limit": 100, "offset": 0, "count": count, "has_next": false })
}

/// Id of the app `shop` in tests.
pub(crate) const APP_ID: &str = "a0000000-0000-4000-8000-000000000001";
/// Id of the service `shop/web` in tests.
pub(crate) const SERVICE_ID: &str = "50000000-0000-4000-8000-000000000001";
/// Id of its deployment.
pub(crate) const DEPLOYMENT_ID: &str = "d0000000-0000-4000-8000-000000000001";
/// Id of its instance.
pub(crate) const INSTANCE_ID: &str = "10000000-0000-4000-8000-000000000001";

/// The app `shop`.
pub(crate) fn app() -> Value {
    json!({
        "id": APP_ID, "name": "shop", "status": "HEALTHY", "messages": [],
        "created_at": "2026-03-01T09:00:00Z",
        "domains": [{ "name": "shop-acme-01020304.tram.localhost", "status": "ACTIVE" }],
    })
}

/// The service `shop/web`.
pub(crate) fn service() -> Value {
    json!({
        "id": SERVICE_ID, "name": "web", "type": "WEB", "app_id": APP_ID, "status": "HEALTHY", "messages": [],
        "created_at": "2026-03-01T09:00:00Z", "active_deployment_id": DEPLOYMENT_ID,
        "latest_deployment_id": DEPLOYMENT_ID,
    })
}

/// A deployment of it in this status.
pub(crate) fn deployment(status: &str, messages: &[&str]) -> Value {
    json!({ "deployment": {
        "id": DEPLOYMENT_ID, "service_id": SERVICE_ID, "app_id": APP_ID, "status": status, "version": "3",
        "created_at": "2026-03-01T11:58:00Z", "messages": messages, "metadata": { "proxy_ports": [] },
        "definition": {
            "name": "web", "type": "WEB", "ports": [{ "port": 80, "protocol": "http" }],
            "routes": [{ "port": 80, "path": "/" }], "regions": ["local"],
            "env": [{ "key": "A", "value": "1" }], "instance_types": [{ "type": "nano" }],
            "scalings": [{ "min": 1, "max": 1, "targets": [] }], "docker": { "image": "shop:1" },
        },
    }})
}

impl Server {
    /// With the app `shop`, its service `web` and its healthy deployment.
    pub(crate) fn with_shop(self) -> Self {
        self.answer("GET /v1/apps", page("apps", json!([app()])));
        self.answer(&format!("GET /v1/apps/{APP_ID}"), json!({ "app": app() }));
        self.answer("GET /v1/services", page("services", json!([service()])));
        self.answer(
            &format!("GET /v1/services/{SERVICE_ID}"),
            json!({ "service": service() }),
        );
        self.answer(
            &format!("GET /v1/deployments/{DEPLOYMENT_ID}"),
            deployment("HEALTHY", &[]),
        );
        self.answer(
            &format!("GET /v1/deployment/{DEPLOYMENT_ID}/scaling"),
            json!({ "replicas": [], "decisions": [{
                "region": "local", "wanted": 5, "ready": 4, "min": 1, "max": 5, "reason": "at_maximum",
                "message": "stays at 5: 14.2 requests in flight per instance, target 3 (that is the maximum)",
                "last_change": "scaled 2 to 5: 20.1 requests in flight per instance, target 3",
            }]}),
        );
        self
    }
}
