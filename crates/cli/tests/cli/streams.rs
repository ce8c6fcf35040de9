//! Logs and exec over real WebSockets.

use std::sync::mpsc;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame, protocol::frame::coding::CloseCode};

use crate::{
    server::{INSTANCE_ID, SERVICE_ID, Server, Socket, page},
    tram::Tram,
};

const QUERY: &str = "GET /v1/streams/logs/query";
const TAIL: &str = "/v1/streams/logs/tail";
const EXEC: &str = "/v1/streams/instances/exec";

fn entry(time: &str, message: &str) -> Value {
    json!({ "msg": message, "created_at": time, "labels": { "stream": "stdout", "instance_id": INSTANCE_ID } })
}

fn say(socket: &mut Socket, message: &Value) {
    socket.send(Message::text(message.to_string())).unwrap();
}

/// The next message of the client; `None` when it has left.
fn hear(socket: &mut Socket) -> Option<Value> {
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => return Some(serde_json::from_str(&text).unwrap()),
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

fn close(mut socket: Socket, code: CloseCode) {
    let _ = socket.close(Some(CloseFrame {
        code,
        reason: "".into(),
    }));
    while hear(&mut socket).is_some() {}
}

#[test]
fn past_lines_come_page_after_page() {
    let server = Server::start().with_shop();
    server.answers(
        QUERY,
        vec![
            (
                200,
                json!({ "data": [entry("2026-03-01T11:58:00.5Z", "one\n")], "pagination": {
                    "has_more": true, "next_start": "2026-03-01T11:58:00.5Z", "next_end": "2026-03-01T12:00:00Z" } }),
            ),
            (
                200,
                json!({ "data": [entry("2026-03-01T11:59:00Z", "two")], "pagination": { "has_more": false } }),
            ),
        ],
    );
    let tram = Tram::of(&server.url);
    tram.run("logs web --since 5m --stream stdout").expect(
        0,
        "2026-03-01T11:58:00.500Z 10000000 stdout one\n2026-03-01T11:59:00.000Z 10000000 stdout two\n",
        "",
    );
    let queries: Vec<String> = server.calls(QUERY).into_iter().map(|call| call.query).collect();
    assert_eq!(
        queries[0],
        format!(
            "type=runtime&service_id={SERVICE_ID}&streams=stdout&start=2026-03-01T11%3A55%3A00Z\
             &end=2026-03-01T12%3A00%3A00Z&order=asc&limit=1000"
        )
    );
    assert!(
        queries[1].contains("start=2026-03-01T11%3A58%3A00.5Z&end=2026-03-01T12"),
        "{}",
        queries[1]
    );
    tram.run("logs web --raw").expect(0, "two\n", "");
    let json = tram.run("logs web -o json");
    assert_eq!(
        serde_json::from_str::<Value>(&json.out).unwrap(),
        entry("2026-03-01T11:59:00Z", "two")
    );
}

#[test]
fn no_lines_are_said() {
    let server = Server::start().with_shop();
    server.answer(QUERY, json!({ "data": [], "pagination": { "has_more": false } }));
    Tram::of(&server.url).run("logs web").expect(
        0,
        "",
        "no lines in the last 15m; look further back with `--since`\n",
    );
}

#[test]
fn following_goes_on_after_a_break_where_it_was() {
    let server = Server::start().with_shop();
    server.answer(
        QUERY,
        json!({ "data": [entry("2026-03-01T11:59:00Z", "past")], "pagination": { "has_more": false } }),
    );
    server.socket(TAIL, |mut socket| {
        say(
            &mut socket,
            &json!({ "result": entry("2026-03-01T12:00:01Z", "first") }),
        );
        close(socket, CloseCode::Away);
    });
    let tram = Tram::of(&server.url);
    // The second connection finds no WebSocket: a 404 is no break that passes, so the command ends with it.
    let ran = tram.run("logs web -f --raw");
    assert_eq!(ran.out, "past\nfirst\n");
    assert!(
        ran.err
            .starts_with("the stream broke: closed by the server with code 1001; trying again in 2s\n"),
        "{}",
        ran.err
    );
    let starts: Vec<String> = server
        .calls(&format!("GET {TAIL}"))
        .into_iter()
        .map(|call| call.query.split("start=").nth(1).unwrap_or_default().to_owned())
        .collect();
    assert_eq!(starts, ["2026-03-01T11%3A59%3A00Z", "2026-03-01T12%3A00%3A01Z"]);
}

#[test]
fn a_stream_that_ends_as_agreed_ends_the_command() {
    let server = Server::start().with_shop();
    server.answer(QUERY, json!({ "data": [], "pagination": { "has_more": false } }));
    server.socket(TAIL, |socket| close(socket, CloseCode::Normal));
    Tram::of(&server.url).run("logs web -f").expect(0, "", "");
}

#[test]
fn ctrl_c_ends_following() {
    let server = Server::start().with_shop();
    server.answer(QUERY, json!({ "data": [], "pagination": { "has_more": false } }));
    server.socket(TAIL, |mut socket| while hear(&mut socket).is_some() {});
    let tram = Tram::of(&server.url);
    tram.interrupt.notify_one();
    tram.run("logs web -f").expect(0, "", "");
}

#[test]
fn exec_passes_bytes_both_ways_and_the_exit_code_back() {
    let server = Server::start().with_shop();
    let (heard, first) = mpsc::channel();
    server.socket(EXEC, move |mut socket| {
        heard.send(hear(&mut socket).unwrap()).unwrap();
        // As `cat` does, and one line of talk.
        let mut input = Vec::new();
        while let Some(message) = hear(&mut socket) {
            let stdin = &message["body"]["stdin"];
            if stdin["close"] == true {
                break;
            }
            input.extend(BASE64.decode(stdin["data"].as_str().unwrap()).unwrap());
        }
        for chunk in input.chunks(1000) {
            let data = BASE64.encode(chunk);
            say(
                &mut socket,
                &json!({ "result": { "stdout": { "data": data }, "stderr": null, "exited": false, "exit_code": 0 } }),
            );
        }
        say(
            &mut socket,
            &json!({ "result": { "stdout": null, "stderr": { "data": BASE64.encode("talk\n") }, "exited": false,
                                 "exit_code": 0 } }),
        );
        say(
            &mut socket,
            &json!({ "result": { "stdout": null, "stderr": null, "exited": true, "exit_code": 3 } }),
        );
        while hear(&mut socket).is_some() {}
    });
    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    let tram = Tram::of(&server.url).typing(&bytes);
    let ran = tram.run("exec -i web -- cat -u");
    assert_eq!((ran.code, ran.err.as_str()), (Some(3), "talk\n"));
    assert!(tram.stdout.bytes() == bytes, "the bytes came back changed");
    assert_eq!(
        first.recv().unwrap(),
        json!({ "id": SERVICE_ID, "idType": "SERVICE_ID", "body": { "command": ["cat", "-u"], "disableTty": true } })
    );
}

#[test]
fn exec_reaches_an_instance_and_closes_its_input() {
    let server = Server::start().with_shop();
    server.answer(
        "GET /v1/instances",
        page("instances", json!([{ "id": INSTANCE_ID }])),
    );
    let (heard, messages) = mpsc::channel();
    server.socket(EXEC, move |mut socket| {
        for _ in 0..2 {
            heard.send(hear(&mut socket).unwrap()).unwrap();
        }
        say(
            &mut socket,
            &json!({ "error": { "code": 9, "message": "The instance is asleep.", "details": [] } }),
        );
        while hear(&mut socket).is_some() {}
    });
    Tram::of(&server.url)
        .run("exec 10000000")
        .expect(1, "", "error: The instance is asleep\n");
    let first = messages.recv().unwrap();
    assert_eq!(
        (&first["idType"], &first["id"]),
        (&json!("INSTANCE_ID"), &json!(INSTANCE_ID))
    );
    assert_eq!(first["body"]["command"], json!(["/bin/sh"]));
    assert_eq!(
        messages.recv().unwrap(),
        json!({ "body": { "stdin": { "close": true } } })
    );
}

#[test]
fn a_refused_stream_says_why() {
    let server = Server::start().with_shop();
    server.refuse(
        &format!("GET {EXEC}"),
        400,
        json!({ "status": 400, "code": "failed_precondition", "message": "The service has no running instance" }),
    );
    let tram = Tram::of(&server.url);
    tram.run("exec web -- ls")
        .expect(1, "", "error: The service has no running instance\n");
    tram.run("exec -it web -- sh").expect(
        2,
        "",
        "error: standard input is not a terminal\nhint: leave `-t` out: `-i` alone passes any input on\n",
    );
}
