//! Logs, commands and figures, over real sockets.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use http::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest as _},
};
use tram_site::{LogStream, Site as _, spec};
use tram_store::record::Instance;
use tram_types::{Generation, InstanceId};

use super::fixture::{Fixture, text};

/// Longest that a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// An API that listens, with one service whose instance runs at the fake site.
struct Live {
    fixture: Fixture,
    address: String,
    service: Value,
    instance: Instance,
}

impl Live {
    async fn new() -> Self {
        let fixture = Fixture::new().await;
        let app = fixture.app("shop").await;
        let service = fixture.service(&app, "web", "/").await;
        let instance = fixture.instance(&service).await;
        fixture
            .site
            .start(&spec_of(&instance), Generation(1))
            .await
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = fixture.router.clone();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            fixture,
            address,
            service,
            instance,
        }
    }

    /// Opens a WebSocket as the command line client does.
    async fn open(&self, path: &str) -> Socket {
        self.open_with(&self.fixture.acme.owner, path).await
    }

    async fn open_with(&self, token: &str, path: &str) -> Socket {
        let mut request = format!("ws://{}{path}", self.address)
            .into_client_request()
            .unwrap();
        let bearer = format!("Bearer {token}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        connect_async(request).await.unwrap().0
    }

    fn log(&self, message: &str) {
        self.fixture
            .site
            .write_log(self.instance.id, LogStream::Stdout, message);
    }
}

pub(super) fn spec_of(instance: &Instance) -> spec::InstanceSpec {
    spec::InstanceSpec {
        id: instance.id,
        organization_id: instance.organization_id,
        app_id: instance.app_id,
        app_name: "shop".to_owned(),
        service_id: instance.service_id,
        service_name: "web".to_owned(),
        deployment_id: instance.deployment_id,
        regional_deployment_id: instance.regional_deployment_id,
        replica_index: 0,
        image: spec::ImageSpec {
            reference: "nginx".to_owned(),
            credentials: None,
            model: None,
            adapters: Vec::new(),
            draft: None,
            keeps: false,
            deployment: instance.deployment_id,
        },
        entrypoint: Vec::new(),
        command: String::new(),
        args: Vec::new(),
        env: Default::default(),
        files: Vec::new(),
        ports: Vec::new(),
        health_checks: Vec::new(),
        isolation: Default::default(),
        devices: None,
        volumes: Vec::new(),
        limits: spec::Limits {
            cpu_millis: 100,
            memory_bytes: 1 << 28,
            disk_bytes: 1 << 28,
        },
        mesh: false,
        egress_allow: None,
        bound_secrets: Vec::new(),
        untrusted: false,
        snapshot: None,
        executor: None,
    }
}

async fn frame(socket: &mut Socket) -> Option<Value> {
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("no frame in time") {
            Some(Ok(Message::Text(text))) => return Some(serde_json::from_str(&text).unwrap()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(reason))) => {
                assert_eq!(reason.map(|reason| u16::from(reason.code)), Some(1000));
                return None;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn output(frame: &Value) -> Vec<u8> {
    let result = &frame["result"];
    assert_eq!(
        (&result["exited"], &result["exit_code"]),
        (&json!(false), &json!(0)),
        "{frame}"
    );
    STANDARD
        .decode(result["stdout"]["data"].as_str().unwrap())
        .unwrap()
}

#[tokio::test]
async fn a_command_runs_as_the_command_line_client_asks() {
    let live = Live::new().await;
    let mut socket = live.open("/v1/streams/instances/exec").await;
    let base = |body: Value| {
        let mut all = json!({"command":["cat"],"disableTty":true});
        all.as_object_mut()
            .unwrap()
            .extend(body.as_object().unwrap().clone());
        Message::text(json!({"id":live.instance.id,"idType":"INSTANCE_ID","body":all}).to_string())
    };
    socket.send(base(json!({}))).await.unwrap();
    assert_eq!(output(&frame(&mut socket).await.unwrap()), b"cat\n");
    socket.send(Message::Ping(vec![1].into())).await.unwrap();
    let bytes = [0_u8, 255, 10, 128];
    socket
        .send(base(json!({"stdin":{"data":STANDARD.encode(bytes)}})))
        .await
        .unwrap();
    assert_eq!(output(&frame(&mut socket).await.unwrap()), bytes);
    socket.send(base(json!({"stdin":{"close":true}}))).await.unwrap();
    let last = frame(&mut socket).await.unwrap();
    assert_eq!(
        last["result"],
        json!({"stdout":null,"stderr":null,"exited":true,"exit_code":0})
    );
    assert_eq!(frame(&mut socket).await, None);
}

#[tokio::test]
async fn a_command_runs_as_a_browser_asks() {
    let live = Live::new().await;
    let url = format!(
        "ws://{}/v1/streams/instances/exec?id={}",
        live.address, live.instance.id
    );
    let mut request = url.into_client_request().unwrap();
    let protocol = format!("Bearer, {}", live.fixture.acme.owner).parse().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let (mut socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "Bearer");
    let start = json!({"body":{"command":["/bin/sh"],"tty_size":{"height":24,"width":80}}});
    socket.send(Message::text(start.to_string())).await.unwrap();
    assert_eq!(output(&frame(&mut socket).await.unwrap()), b"/bin/sh\n");
    for body in [
        json!({"tty_size":{"height":30,"width":90}}),
        json!({"stdin":{"data":"aGkK"}}),
    ] {
        socket
            .send(Message::text(json!({ "body": body }).to_string()))
            .await
            .unwrap();
    }
    assert_eq!(output(&frame(&mut socket).await.unwrap()), b"hi\n");
    socket.close(None).await.unwrap();
}

#[tokio::test]
async fn a_service_is_as_good_as_an_instance_and_faults_are_told() {
    let live = Live::new().await;
    let mut socket = live.open("/v1/streams/instances/exec").await;
    let start = json!({"id":live.service["id"],"id_type":"SERVICE_ID","body":{"command":["id"]}});
    socket.send(Message::text(start.to_string())).await.unwrap();
    assert_eq!(output(&frame(&mut socket).await.unwrap()), b"id\n");
    for (first, code) in [
        (json!({"id":InstanceId::random(),"body":{"command":["id"]}}), 5),
        (json!({"id":live.instance.id,"body":{"command":[]}}), 3),
        (json!({"body":{"command":["id"]}}), 3),
        (
            json!({"id":live.instance.id,"id_type":"HOST","body":{"command":["id"]}}),
            3,
        ),
        (json!(7), 3),
    ] {
        let mut socket = live.open("/v1/streams/instances/exec").await;
        socket.send(Message::text(first.to_string())).await.unwrap();
        let refused = frame(&mut socket).await.unwrap();
        assert_eq!(refused["error"]["code"], code, "{refused}");
        assert!(refused["error"]["message"].is_string() && refused["error"]["details"].is_array());
        assert_eq!(frame(&mut socket).await, None);
    }
}

#[tokio::test]
async fn others_and_readers_run_nothing() {
    let live = Live::new().await;
    for (token, status) in [
        (&live.fixture.other.owner, 404),
        (&live.fixture.acme.reader, 403),
        (&"nonsense".to_owned(), 401),
    ] {
        let url = format!(
            "ws://{}/v1/streams/instances/exec?id={}",
            live.address, live.instance.id
        );
        let mut request = url.into_client_request().unwrap();
        request
            .headers_mut()
            .insert("authorization", format!("Bearer {token}").parse().unwrap());
        match connect_async(request).await.unwrap_err() {
            tokio_tungstenite::tungstenite::Error::Http(response) => {
                assert_eq!(response.status().as_u16(), status);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn following_starts_after_the_last_line_and_ends_with_the_instance() {
    let live = Live::new().await;
    live.log("old");
    let at = live.fixture.api.clock.now();
    live.fixture.clock.advance(Duration::from_secs(1));
    live.log("missed");
    let path = format!(
        "/v1/streams/logs/tail?instance_id={}&start={at}&regex=&text=",
        live.instance.id
    );
    let mut socket = live.open(&path).await;
    let first = frame(&mut socket).await.unwrap();
    assert_eq!(first["result"]["msg"], "missed");
    assert_eq!(first["result"]["labels"]["stream"], "stdout");
    assert_eq!(first["result"]["labels"]["instance_id"], json!(live.instance.id));
    assert!(text(&first["result"]["created_at"]).ends_with('Z'));
    live.fixture.clock.advance(Duration::from_secs(1));
    live.log("new");
    assert_eq!(frame(&mut socket).await.unwrap()["result"]["msg"], "new");
    let set = tram_store::intent::InstanceSet {
        status: Some(tram_types::status::InstanceStatus::Stopped),
        ..Default::default()
    };
    let update = tram_store::intent::Update::Instance {
        id: live.instance.id,
        expected: live.instance.status,
        set: Box::new(set),
    };
    live.fixture
        .api
        .store
        .apply(live.instance.service_id, vec![update])
        .await
        .unwrap();
    assert_eq!(frame(&mut socket).await, None);
}

#[tokio::test]
async fn following_without_an_upgrade_gives_lines_of_json() {
    let live = Live::new().await;
    live.log("one");
    live.log("two");
    let mut stream = TcpStream::connect(&live.address).await.unwrap();
    let request = format!(
        "GET /v1/streams/logs/tail?service_id={}&limit=1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
        text(&live.service["id"]),
        live.fixture.acme.owner
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = String::new();
    while !read.contains("\"two\"") {
        let mut buffer = [0; 4096];
        let size = timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(size > 0, "{read}");
        read += &String::from_utf8_lossy(&buffer[..size]);
    }
    assert!(
        read.starts_with("HTTP/1.1 200") && !read.contains("\"one\""),
        "{read}"
    );
    // A limit is how many lines there are in all: then the answer ends.
    while !read.ends_with("0\r\n\r\n") {
        let mut buffer = [0; 4096];
        let size = timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(size > 0, "{read}");
        read += &String::from_utf8_lossy(&buffer[..size]);
    }
    assert_eq!(read.matches("\"result\"").count(), 1, "{read}");
}

#[tokio::test]
async fn a_command_without_an_upgrade_is_told_in_one_answer() {
    let live = Live::new().await;
    let path = |query: &str| format!("/v1/streams/instances/exec?{query}");
    let instance = live.instance.id;
    let reply = live
        .fixture
        .get(&path(&format!(
            "id={instance}&body.command=cat&body.command=&body.command=a%20b&body.stdin.data=aGkK\
             &body.stdin.close=true&body.disableTty=true"
        )))
        .await
        .good();
    let result = &reply["result"];
    assert!(reply.get("error").is_none(), "{reply}");
    assert_eq!(result["exited"], true);
    assert_eq!(result["exit_code"], 0);
    let stdout = STANDARD.decode(text(&result["stdout"]["data"])).unwrap();
    assert_eq!(String::from_utf8_lossy(&stdout), "cat  a b\nhi\n");
    assert_eq!(result["stderr"]["data"], "");
    let service = text(&live.service["id"]);
    let by_service = path(&format!("id={service}&id_type=SERVICE_ID&body.command=ls"));
    assert_eq!(
        live.fixture.get(&by_service).await.good()["result"]["exited"],
        true
    );
    for (query, status, field) in [
        (format!("id={instance}"), 400, Some("body.command")),
        ("body.command=ls".to_owned(), 400, Some("id")),
        (
            format!("id={instance}&body.command=ls&body.stdin.data=%21"),
            400,
            Some("body.stdin.data"),
        ),
        (
            format!("id={instance}&body.command=ls&body.disableTty=perhaps"),
            400,
            Some("body.disableTty"),
        ),
        (format!("id={service}&body.command=ls"), 404, None),
    ] {
        let refused = live.fixture.get(&path(&query)).await.bad(status);
        if let Some(field) = field {
            assert_eq!(refused["fields"][0]["field"], field, "{query} {refused}");
        }
    }
}

#[tokio::test]
async fn pages_of_logs_join_without_gap_or_double() {
    let live = Live::new().await;
    for number in 0..25 {
        // Three lines a moment: pages must not cut a moment apart.
        if number % 3 == 0 {
            live.fixture.clock.advance(Duration::from_millis(1));
        }
        live.log(&format!("line {number:02}"));
    }
    live.fixture.clock.advance(Duration::from_secs(1));
    for order in ["asc", "desc"] {
        let base = format!(
            "/v1/streams/logs/query?service_id={}&order={order}&limit=4",
            text(&live.service["id"])
        );
        let mut path = base.clone();
        let mut found = Vec::new();
        let mut pages = 0;
        loop {
            let page = live.fixture.get(&path).await.good();
            found.extend(
                page["data"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|line| text(&line["msg"])),
            );
            pages += 1;
            assert!(pages < 20, "pages without end");
            if page["pagination"]["has_more"] == false {
                break;
            }
            let (start, end) = (
                text(&page["pagination"]["next_start"]),
                text(&page["pagination"]["next_end"]),
            );
            path = format!("{base}&start={start}&end={end}");
        }
        if order == "desc" {
            found.reverse();
        }
        let expected: Vec<String> = (0..25).map(|number| format!("line {number:02}")).collect();
        assert_eq!(found, expected, "{order}");
        assert!(pages > 3);
    }
    let service = text(&live.service["id"]);
    for (filter, count) in [
        ("text=line%2007", 1),
        ("regex=line%200%5B1-3%5D", 3),
        ("streams=stderr", 0),
        ("regions=none", 0),
        ("type=build", 0),
    ] {
        let page = live
            .fixture
            .get(&format!("/v1/streams/logs/query?service_id={service}&{filter}"))
            .await
            .good();
        assert_eq!(page["data"].as_array().unwrap().len(), count, "{filter}");
        assert_eq!(page["pagination"]["has_more"], false);
    }
}

#[tokio::test]
async fn figures_are_asked_for_by_the_second() {
    let live = Live::new().await;
    let path = format!(
        "/v1/streams/metrics?name=HTTP_THROUGHPUT&instance_id={}&step=5m",
        live.instance.id
    );
    let found = live.fixture.with(Method::GET, &path, json!({})).await.good();
    assert_eq!(found["metrics"][0]["labels"], json!({"code":"2xx"}));
    assert_eq!(found["metrics"][0]["samples"][0]["value"], 1.5);
    assert!(text(&found["metrics"][0]["samples"][0]["timestamp"]).ends_with('Z'));
}

/// A second token of the owner, which the test may end; gives its path.
async fn another_token(live: &Live) -> (String, String) {
    let made = live
        .fixture
        .post("/v1/credentials", json!({"name":"lost"}))
        .await
        .good()["credential"]
        .clone();
    (
        text(&made["token"]),
        format!("/v1/credentials/{}", text(&made["id"])),
    )
}

/// What a stream says when its token is no longer good: why, and a close that is no invitation to come back.
async fn refused(socket: &mut Socket) -> Value {
    let mut told = Value::Null;
    loop {
        match timeout(PATIENCE, socket.next()).await.expect("no frame in time") {
            Some(Ok(Message::Text(text))) => told = serde_json::from_str(&text).unwrap(),
            Some(Ok(Message::Close(reason))) => {
                assert_eq!(reason.map(|reason| u16::from(reason.code)), Some(1008), "{told}");
                return told;
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let live = Live::new().await;
    let instance = live.instance.id;
    let exec = "/v1/streams/instances/exec".to_owned();
    let tail = format!("/v1/streams/logs/tail?instance_id={instance}");
    let start = json!({"id":instance,"body":{"command":["cat"],"disable_tty":true}}).to_string();
    for (path, first, body, code) in [
        (&exec, Some(&start), None, 16),
        (&tail, None, None, 16),
        (&exec, Some(&start), Some(json!({"role":"READ_ONLY"})), 7),
    ] {
        let (token, credential) = another_token(&live).await;
        let mut socket = live.open_with(&token, path).await;
        if let Some(first) = first {
            socket.send(Message::text(first.clone())).await.unwrap();
            assert_eq!(output(&frame(&mut socket).await.unwrap()), b"cat\n");
        }
        let method = match body {
            Some(_) => Method::PATCH,
            None => Method::DELETE,
        };
        live.fixture
            .with(method, &credential, body.unwrap_or_default())
            .await
            .good();
        let told = refused(&mut socket).await;
        assert_eq!(told["error"]["code"], code, "{path} {told}");
    }
    // A token that expires is as good as revoked.
    let (token, credential) = another_token(&live).await;
    let end = live.fixture.api.clock.now().plus(Duration::from_secs(60));
    let ends = json!({ "expires_at": end });
    live.fixture.with(Method::PATCH, &credential, ends).await.good();
    let mut socket = live.open_with(&token, &tail).await;
    live.fixture.clock.advance(Duration::from_secs(61));
    assert_eq!(refused(&mut socket).await["error"]["code"], 16);
}

#[tokio::test]
async fn a_command_is_in_the_audit_feed_without_its_words() {
    let live = Live::new().await;
    let path = format!(
        "/v1/streams/instances/exec?id={}&body.command=s3cret&body.stdin.close=true",
        live.instance.id
    );
    live.fixture.get(&path).await.good();
    let feed = live.fixture.get("/v1/activities?types=instance").await.good();
    let entries = feed["activities"].as_array().unwrap();
    assert_eq!(entries.len(), 1, "{feed}");
    assert_eq!(
        (&entries[0]["verb"], &entries[0]["object"]["id"]),
        (&json!("executed"), &json!(live.instance.id))
    );
    assert!(!feed.to_string().contains("s3cret"));
}
