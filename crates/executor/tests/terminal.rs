//! Terminals from the outside: the executor's binary, and a WebSocket as clients open it.
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

use std::net::TcpStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use ports::free_port;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket, client};

const SECRET: &str = "a-secret_of-the-tests";
/// A slow machine under load still answers within this.
const DEADLINE: Duration = Duration::from_secs(30);

struct Executor {
    child: Child,
    port: u16,
}

impl Executor {
    fn start() -> Self {
        let (port, proxy_port) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_tram-executor"))
            .args([
                "--port",
                &port.to_string(),
                "--proxy-port",
                &proxy_port.to_string(),
            ])
            .env("SANDBOX_SECRET", SECRET)
            .spawn()
            .unwrap();
        let executor = Self { child, port };
        until("the executor listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        executor
    }

    fn try_open(&self, query: &str, secret: &str) -> Result<Terminal, u16> {
        let mut request = format!("ws://127.0.0.1:{}/terminal?{query}", self.port)
            .into_client_request()
            .unwrap();
        let bearer = format!("Bearer {secret}").parse().unwrap();
        request.headers_mut().insert("authorization", bearer);
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        match client(request, stream) {
            Ok((socket, _)) => Ok(Terminal {
                socket,
                seen: String::new(),
            }),
            Err(tokio_tungstenite::tungstenite::HandshakeError::Failure(Error::Http(answer))) => {
                Err(answer.status().as_u16())
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn open(&self, query: &str) -> Terminal {
        self.try_open(query, SECRET).unwrap()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Terminal {
    socket: WebSocket<TcpStream>,
    seen: String,
}

impl Terminal {
    fn types(&mut self, text: &str) {
        self.socket
            .send(Message::binary(text.as_bytes().to_vec()))
            .unwrap();
    }

    fn says(&mut self, order: &str) {
        self.socket.send(Message::text(order)).unwrap();
    }

    /// Reads until this was shown.
    fn shows(&mut self, wanted: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.seen.contains(wanted) {
            assert!(Instant::now() < end, "no {wanted:?} after {:?}", self.seen);
            match self.socket.read().unwrap() {
                Message::Binary(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Message::Ping(_) => {}
                other => panic!("{other:?} instead of {wanted:?} after {:?}", self.seen),
            }
        }
    }

    /// Reads to the end: the exit code.
    fn ends(&mut self) -> i64 {
        let end = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < end, "no end after {:?}", self.seen);
            match self.socket.read().unwrap() {
                Message::Binary(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Message::Text(text) => {
                    let end: serde_json::Value = serde_json::from_str(text.as_str()).unwrap();
                    return end["exit"].as_i64().unwrap();
                }
                Message::Ping(_) => {}
                other => panic!("{other:?} after {:?}", self.seen),
            }
        }
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn only_who_has_the_secret_gets_one_and_what_is_wrong_is_said() {
    let executor = Executor::start();
    assert_eq!(executor.try_open("", "wrong").err(), Some(401));
    assert_eq!(executor.try_open("rows=0", SECRET).err(), Some(400));
    assert_eq!(executor.try_open("cwd=/no/such/place", SECRET).err(), Some(400));
}

#[test]
fn a_program_has_a_terminal_of_the_size_that_was_asked_for_and_its_code_comes_last() {
    let executor = Executor::start();
    let mut terminal = executor
        .open("command=stty+size;+tty;+echo+$TERM$SANDBOX_SECRET;+exit+7&rows=33&columns=77&term=vt100");
    assert_eq!(terminal.ends(), 7);
    assert!(
        terminal.seen.starts_with("33 77\r\n/dev/pts/"),
        "{:?}",
        terminal.seen
    );
    assert!(terminal.seen.ends_with("vt100\r\n"), "{:?}", terminal.seen);
}

#[test]
fn a_shell_takes_what_is_typed_and_hears_of_another_size_and_of_signals() {
    let executor = Executor::start();
    let mut terminal = executor.open("cwd=/tmp");
    terminal.types("echo $((6*7)) in $PWD\r");
    terminal.shows("42 in /tmp");
    terminal.says(r#"{"resize":{"rows":50,"columns":132}}"#);
    terminal.types("stty size\r");
    terminal.shows("50 132");
    // ^C ends the command in the foreground, and not the shell.
    // It has the foreground once it speaks: before, the shell itself may hear it, or nobody.
    terminal.types("sh -c 'echo runs-$((3+3)); exec sleep 1000'; echo after-$((1+1))\r");
    terminal.shows("runs-6");
    terminal.types("\x03");
    terminal.types("echo still-$((2+2))\r");
    terminal.shows("still-4");
    terminal.says(r#"{"signal":"KILL"}"#);
    assert_eq!(terminal.ends(), 128 + 9);
}

#[test]
fn more_than_any_buffer_holds_arrives_whole() {
    let executor = Executor::start();
    let mut terminal = executor.open("command=seq+1+200000;+exit+3");
    assert_eq!(terminal.ends(), 3);
    let lines: Vec<&str> = terminal.seen.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[199_999]), (200_000, "1", "200000"));
}

#[test]
fn with_the_client_goes_everything_that_came_of_it() {
    let executor = Executor::start();
    let mut terminal = executor.open("command=setsid+sleep+8642+%26+echo+pid-$!-;+sleep+8643");
    terminal.shows("-\r\n");
    let pid: i32 = terminal.seen.split('-').nth(1).unwrap().parse().unwrap();
    let runs = || {
        std::path::Path::new(&format!("/proc/{pid}/environ")).exists()
            && std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
    };
    assert!(runs());
    drop(terminal);
    until("what was left in the background is gone", || !runs());
}

#[test]
fn nonsense_from_a_client_ends_its_own_terminal_alone() {
    let executor = Executor::start();
    let mut other = executor.open("");
    for nonsense in ["{", r#"{"resize":{}}"#, r#"{"signal":"NOPE"}"#] {
        let mut terminal = executor.open("command=sleep+1000");
        terminal.says(nonsense);
        until("it is closed", || terminal.socket.read().is_err());
    }
    let mut large = executor.open("command=sleep+1000");
    // The connection may be closed in the middle of this.
    let _ = large.socket.send(Message::binary(vec![b'x'; 1 << 20]));
    until("it is closed", || large.socket.read().is_err());
    other.types("echo $((40+2))\r");
    other.shows("42");
}
