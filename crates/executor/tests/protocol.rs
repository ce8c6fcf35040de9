//! The executor from the outside: its binary, and requests as clients send them.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "between two looks at a condition, with a deadline"
)]

mod ports;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use ports::free_port;

const SECRET: &str = "a-secret_of-the-tests";
/// A slow machine under load still answers within this.
const DEADLINE: Duration = Duration::from_secs(20);

struct Executor {
    child: Child,
    port: u16,
    proxy_port: u16,
}

struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{} {}", self.status, self.body))
    }

    /// The data of the events, in their order.
    fn events(&self) -> Vec<Value> {
        let data = self.body.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Executor {
    fn start(environment: &[(&str, &str)], command: &[&str]) -> Self {
        let (port, proxy_port) = (free_port(), free_port());
        let mut executor = Command::new(env!("CARGO_BIN_EXE_tram-executor"));
        executor
            .args([
                "--port",
                &port.to_string(),
                "--proxy-port",
                &proxy_port.to_string(),
            ])
            .env("SANDBOX_SECRET", SECRET)
            .envs(environment.iter().copied());
        if !command.is_empty() {
            executor.arg("--").args(command);
        }
        let child = executor.stdout(Stdio::piped()).spawn().unwrap();
        let executor = Self {
            child,
            port,
            proxy_port,
        };
        wait_for("the executor listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        executor
    }

    fn send(&self, method: &str, path: &str, secret: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nAuthorization: Bearer {secret}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        stream
    }

    fn ask(&self, method: &str, path: &str, secret: &str, body: &str) -> Answer {
        let mut text = Vec::new();
        self.send(method, path, secret, body)
            .read_to_end(&mut text)
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            body: body.to_owned(),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, SECRET, &body.to_string())
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, SECRET, "")
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process runs: the dead ones that nobody reaped yet do not.
fn runs(pid: i64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

#[test]
fn only_the_health_is_open() {
    let executor = Executor::start(&[], &[]);
    let health = executor.ask("GET", "/health", "", "");
    assert_eq!((health.status, health.json()), (200, json!({"status": "ok"})));
    for secret in ["", "wrong", "a-secret_of-the-test"] {
        let answer = executor.ask("POST", "/run", secret, r#"{"cmd":"true"}"#);
        assert_eq!((answer.status, answer.body.as_str()), (401, "Unauthorized"));
    }
    assert_eq!(executor.get("/nothing").status, 404);
    assert_eq!(executor.get("/run").status, 405);
    let bad = executor.ask("POST", "/run", SECRET, "{");
    assert!(bad.status == 400 && bad.body.contains("JSON"), "{}", bad.body);
    let missing = executor.post("/run", &json!({}));
    assert!(
        missing.status == 400 && missing.body.contains("`cmd`"),
        "{}",
        missing.body
    );
}

#[test]
fn a_command_answers_with_both_streams_and_its_code() {
    let executor = Executor::start(&[("MINE", "1"), ("PORT", "8000")], &[]);
    let run = |body: Value| executor.post("/run", &body);
    let answer = run(json!({"cmd": "echo out; echo err >&2; exit 3"})).json();
    let expected = json!({"stdout": "out\n", "stderr": "err\n", "code": 3, "error": "Non-zero exit code"});
    assert_eq!(answer, expected);
    let here = run(
        json!({"cmd": "pwd; echo $MINE$PORT$EXTRA$SANDBOX_SECRET", "cwd": "/tmp", "env": {"EXTRA": "x"}}),
    );
    assert_eq!(here.json()["stdout"], "/tmp\n18000x\n");
    let nowhere = run(json!({"cmd": "pwd", "cwd": "/nowhere"}));
    assert_eq!(
        (nowhere.status, nowhere.body.as_str()),
        (400, "Invalid working directory: /nowhere")
    );
    assert_eq!(run(json!({"cmd": "kill -9 $$"})).json()["code"], 137);
    // More on one stream than a pipe holds, before anything on the other.
    let much = run(
        json!({"cmd": "head -c 300000 /dev/zero | tr '\\0' x >&2; head -c 300000 /dev/zero | tr '\\0' y"}),
    );
    let much = much.json();
    assert_eq!(much["stdout"].as_str().unwrap().len(), 300_000);
    assert_eq!(much["stderr"].as_str().unwrap().len(), 300_000);
}

#[test]
fn what_is_left_in_the_background_is_not_waited_for() {
    let executor = Executor::start(&[], &[]);
    let answer = executor
        .post("/run", &json!({"cmd": "sleep 1000 & echo $!"}))
        .json();
    let pid: i64 = answer["stdout"].as_str().unwrap().trim().parse().unwrap();
    assert!(runs(pid), "it goes on");
}

#[test]
fn a_stream_keeps_line_ends_and_ends_with_the_code() {
    let executor = Executor::start(&[], &[]);
    let answer = executor.post(
        "/run_streaming",
        &json!({"cmd": "echo a; echo; echo b >&2; printf c; exit 7"}),
    );
    let events = answer.events();
    let text = |stream: &str| -> String {
        let of_stream = events.iter().filter(|event| event["stream"] == stream);
        of_stream.map(|event| event["data"].as_str().unwrap()).collect()
    };
    assert_eq!(
        (text("stdout").as_str(), text("stderr").as_str()),
        ("a\n\nc", "b\n")
    );
    assert_eq!(events.last().unwrap(), &json!({"code": 7, "error": false}));
    assert!(
        answer.body.starts_with("event: output\ndata: {"),
        "{}",
        answer.body
    );
}

#[test]
fn a_client_that_leaves_takes_the_whole_tree_along() {
    let executor = Executor::start(&[], &[]);
    for path in ["/run", "/run_streaming"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        // One that left the group, the session and its parent, and one that did not.
        let cmd = format!(
            "(setsid sh -c 'echo $$ >> {0}; exec sleep 1000' &) ; echo $$ >> {0}; sleep 1000; true",
            file.display()
        );
        let stream = executor.send("POST", path, SECRET, &json!({"cmd": cmd}).to_string());
        let pids = || -> Vec<i64> {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            text.lines().filter_map(|line| line.parse().ok()).collect()
        };
        wait_for("both run", || pids().len() == 2);
        assert!(pids().into_iter().all(runs));
        drop(stream);
        wait_for("both are gone", || !pids().into_iter().any(runs));
    }
}

#[test]
fn processes_outlive_requests_and_can_be_looked_at_and_killed() {
    let executor = Executor::start(&[], &[]);
    let started = executor.post(
        "/start_process",
        &json!({"cmd": "echo hello; echo oh >&2; sleep 1000; true"}),
    );
    assert_eq!(started.status, 201);
    let started = started.json();
    let (id, pid) = (started["id"].as_str().unwrap(), started["pid"].as_i64().unwrap());
    assert_eq!(started["status"], "running");
    let logs = format!("/process_logs_streaming?id={id}");
    wait_for("it has spoken", || executor.get(&logs).events().len() == 3);
    let events = executor.get(&logs).events();
    assert_eq!(events.last().unwrap(), &json!({"message": "stream ended"}));
    assert!(
        events
            .iter()
            .any(|event| event["stream"] == "stdout" && event["data"] == "hello\n")
    );
    assert!(events[0]["timestamp"].as_str().unwrap().ends_with('Z'));

    let followed = executor.send("GET", &format!("{logs}&follow=true"), SECRET, "");
    let list = executor.get("/list_processes").json();
    let process = &list["processes"][0];
    assert_eq!(
        (process["id"].as_str(), process["status"].as_str()),
        (Some(id), Some("running"))
    );
    assert_eq!(process["command"], "echo hello; echo oh >&2; sleep 1000; true");
    assert!(process.get("exit_code").is_none(), "{process}");

    assert_eq!(
        executor.post("/kill_process", &json!({"id": id})).json()["success"],
        true
    );
    wait_for("it is dead", || !runs(pid));
    let last = BufReader::new(followed)
        .lines()
        .map(Result::unwrap)
        .filter(|line| line.starts_with("data"))
        .last();
    assert_eq!(last.unwrap(), r#"data: {"message":"stream ended"}"#);
    wait_for("its end is told", || {
        executor.get("/list_processes").json()["processes"][0]["exit_code"] == 137
    });
    let again = executor.post("/kill_process", &json!({"id": id}));
    assert_eq!(
        (again.status, again.json()["success"].as_bool()),
        (400, Some(false))
    );
    let unknown = executor.post("/kill_process", &json!({"id": "x"}));
    assert!(unknown.body.contains("not found"), "{}", unknown.body);
    assert_eq!(executor.get("/process_logs_streaming?id=x").status, 404);
}

#[test]
fn files_answer_with_an_error_and_not_with_a_status() {
    let executor = Executor::start(&[], &[]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").to_str().unwrap().to_owned();
    let large = "é".repeat(3 << 20);
    let written = executor.post("/write_file", &json!({"path": path, "content": large}));
    assert_eq!(written.json(), json!({"success": true}));
    assert_eq!(
        executor.post("/read_file", &json!({"path": path})).json()["content"],
        large
    );
    assert_eq!(
        executor.post("/stat_file", &json!({"path": path})).json()["size"],
        6 << 20
    );
    let missing = executor.post("/read_file", &json!({"path": "/nowhere/f"}));
    assert_eq!(missing.status, 200);
    assert_eq!(
        missing.json(),
        json!({"error": "/nowhere/f: No such file or directory"})
    );
    let entries = executor.post("/list_dir", &json!({"path": dir.path()}));
    assert_eq!(entries.json(), json!({"entries": ["f"]}));
    assert_eq!(
        executor.post("/delete_file", &json!({"path": path})).json(),
        json!({"success": true})
    );
}

/// One request with bytes, and its answer in bytes.
fn exchange(executor: &Executor, request: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(("127.0.0.1", executor.port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{request} HTTP/1.0\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    let mut sender = stream.try_clone().unwrap();
    let body = body.to_vec();
    // One that is refused is not read to its end.
    let sending = std::thread::spawn(move || drop(sender.write_all(&body)));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    sending.join().unwrap();
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

#[test]
fn files_and_directories_pass_as_they_are() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let executor = Executor::start(&[], &[]);
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    let bytes: Vec<u8> = (0..=255).cycle().take(3_000_001).collect();
    let put = format!("PUT /file?path={}&mode=750", at("a/b/raw%20file"));
    let (status, said) = exchange(&executor, &put, &bytes);
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&said));
    let kept = place.path().join("a/b/raw file");
    assert_eq!(std::fs::read(&kept).unwrap(), bytes);
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o7777, 0o750);
    let (status, back) = exchange(&executor, &format!("GET /file?path={}", at("a/b/raw+file")), b"");
    assert!(status == 200 && back == bytes, "{status}, {} bytes", back.len());
    symlink("b/raw file", place.path().join("a/link")).unwrap();
    let (status, tree) = exchange(&executor, &format!("GET /tree?path={}", at("a")), b"");
    assert_eq!(status, 200);
    let (status, said) = exchange(&executor, &format!("PUT /tree?path={}", at("copy")), &tree);
    let said: Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(
        (status, &said["files"], &said["left_out"]),
        (200, &json!(1), &json!(0))
    );
    assert_eq!(std::fs::read(place.path().join("copy/link")).unwrap(), bytes);
}

#[test]
fn a_transfer_that_cannot_be_says_why() {
    let executor = Executor::start(&[], &[]);
    let place = tempfile::tempdir().unwrap();
    let here = place.path().display();
    for (request, body, status, words) in [
        ("GET /file".to_owned(), &b""[..], 400, "`path`"),
        (format!("GET /file?path={here}/missing"), b"", 404, "No such file"),
        (format!("GET /file?path={here}"), b"", 400, "/tree"),
        (format!("PUT /file?path={here}"), b"x", 400, "directory"),
        (format!("PUT /file?path={here}/f&mode=9"), b"x", 400, "`mode`"),
        (
            format!("PUT /tree?path={here}"),
            b"not a stream of ours",
            400,
            "not a copy of files",
        ),
        (format!("POST /file?path={here}/f"), b"x", 405, "GET or PUT"),
    ] {
        let (seen, said) = exchange(&executor, &request, body);
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(seen == status && said.contains(words), "{request}: {seen} {said}");
    }
    assert_eq!(
        executor.ask("GET", "/file?path=/etc/passwd", "wrong", "").status,
        401
    );
    // A stream says itself that its reader met an error, and is one to the end.
    let (status, stream) = exchange(&executor, &format!("GET /tree?path={here}/missing"), b"");
    assert!(status == 200 && String::from_utf8_lossy(&stream).contains("No such file"));
    // Clients that do nothing hold the transfers there may be, and no more.
    let slow: Vec<TcpStream> = (0..4)
        .map(|number| {
            let mut stream = TcpStream::connect(("127.0.0.1", executor.port)).unwrap();
            write!(
                stream,
                "PUT /file?path={here}/{number} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 9\r\n\r\n"
            )
            .unwrap();
            stream
        })
        .collect();
    wait_for("all begin", || {
        (0..4).all(|number| place.path().join(number.to_string()).exists())
    });
    let (status, _) = exchange(&executor, &format!("GET /file?path={here}/0"), b"");
    assert_eq!(status, 503);
    assert_eq!(
        executor.post("/stat_file", &json!({"path": "/"})).status,
        200,
        "small things go on"
    );
    drop(slow);
    wait_for("the places are free again", || {
        exchange(&executor, &format!("GET /file?path={here}/0"), b"").0 == 200
    });
}

#[test]
fn the_bound_port_is_relayed() {
    let executor = Executor::start(&[], &[]);
    let through = |said: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", executor.proxy_port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(said).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).map(|_| heard)
    };
    assert!(
        through(b"").unwrap().is_empty(),
        "nothing is bound: accepted and closed"
    );
    let echo = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = echo.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in echo.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
        }
    });
    assert_eq!(executor.get("/port_status").json(), json!({"bound": false}));
    let bound = executor.post("/bind_port", &json!({"port": port.to_string()}));
    assert_eq!(bound.json()["port"], port.to_string());
    assert_eq!(through(b"bytes").unwrap(), b"bytes");
    let taken = executor.post("/bind_port", &json!({"port": "1"}));
    assert_eq!(
        (taken.status, taken.json()["current_port"].clone()),
        (409, json!(port.to_string()))
    );
    for _ in 0..2 {
        assert_eq!(
            executor.post("/unbind_port", &json!({"port": "1"})).json()["success"],
            true
        );
    }
    assert_eq!(executor.post("/bind_port", &json!({"port": "0"})).status, 400);
}

#[test]
fn the_sandboxs_own_program_decides_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("end");
    let program = format!("until test -e {}; do sleep 0.02; done; exit 5", file.display());
    let mut executor = Executor::start(&[], &["sh", "-c", &program]);
    std::fs::write(&file, "").unwrap();
    assert_eq!(executor.child.wait().unwrap().code(), Some(5));

    let mut executor = Executor::start(
        &[],
        &[
            "sh",
            "-c",
            "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done",
        ],
    );
    let mut line = String::new();
    BufReader::new(executor.child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "up\n");
    let pid = rustix::process::Pid::from_child(&executor.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(executor.child.wait().unwrap().code(), Some(9));
}

#[test]
fn without_a_program_it_ends_when_told_and_takes_everything_along() {
    let mut executor = Executor::start(&[], &[]);
    let started = executor
        .post("/start_process", &json!({"cmd": "exec sleep 1000"}))
        .json();
    let pid = rustix::process::Pid::from_child(&executor.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(executor.child.wait().unwrap().code(), Some(0));
    wait_for("the process is gone", || !runs(started["pid"].as_i64().unwrap()));
}

#[test]
fn without_a_shell_it_says_so() {
    let executor = Executor::start(&[("PATH", "/nowhere")], &[]);
    let answer = executor.post("/run", &json!({"cmd": "true"})).json();
    assert_eq!(answer["code"], 127);
    assert!(
        answer["stderr"].as_str().unwrap().contains("no shell"),
        "{answer}"
    );
    let events = executor.post("/run_streaming", &json!({"cmd": "true"})).events();
    assert_eq!(events.last().unwrap()["code"], 127);
    assert!(events[0]["data"].as_str().unwrap().contains("no shell"));
    assert_eq!(
        executor.post("/start_process", &json!({"cmd": "true"})).status,
        400
    );
}

#[test]
fn a_giant_body_is_refused_before_it_is_read() {
    let executor = Executor::start(&[], &[]);
    let mut stream = TcpStream::connect(("127.0.0.1", executor.port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(
        stream,
        "POST /write_file HTTP/1.0\r\nAuthorization: Bearer {SECRET}\r\nContent-Length: 300000000\r\n\r\n{{"
    )
    .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    assert!(line.contains(" 413 "), "{line}");
}

#[test]
fn a_sandbox_of_a_pool_belongs_to_who_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret").to_str().unwrap().to_owned();
    let executor = Executor::start(
        &[
            ("SANDBOX_AUTH_MODE", "pool"),
            ("SANDBOX_SECRET_PATH", &path),
            ("SANDBOX_SECRET", ""),
        ],
        &[],
    );
    let as_whom = |secret: &str| executor.ask("GET", "/list_processes", secret, "").status;
    assert_eq!(
        (as_whom("first"), as_whom("second"), as_whom("first")),
        (200, 401, 200)
    );
    let written = std::fs::read_to_string(path).unwrap();
    // Of `first`; the secret itself is nowhere.
    assert_eq!(
        written,
        "sha256:a7937b64b8caa58f03721bb6bacf5c78cb235febe0e70b1b84cd99541461a08e"
    );
}

#[test]
fn too_many_commands_are_refused_in_words() {
    /// As the executor has it.
    const RUNNING_MAX: usize = 512;
    let executor = Executor::start(&[], &[]);
    for _ in 0..RUNNING_MAX {
        assert_eq!(
            executor
                .post("/start_process", &json!({"cmd": "exec sleep 1000"}))
                .status,
            201
        );
    }
    let refused = executor.post("/run", &json!({"cmd": "true"}));
    assert!(
        refused.status == 503 && refused.body.contains("512"),
        "{}",
        refused.body
    );
    let first = executor.get("/list_processes").json()["processes"][0]["id"].clone();
    executor.post("/kill_process", &json!({"id": first}));
    wait_for("there is room again", || {
        executor.post("/run", &json!({"cmd": "true"})).status == 200
    });
}

#[test]
fn wrong_use_is_explained() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_tram-executor"))
            .args(arguments)
            .env_remove("SANDBOX_SECRET")
            .output()
            .unwrap()
    };
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("SANDBOX_SECRET"));
}
