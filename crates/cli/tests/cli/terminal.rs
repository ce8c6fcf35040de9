//! A real terminal: the command runs as a process of its own on a pseudo-terminal.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command},
    sync::mpsc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize},
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tram_cli::Outcome;

use crate::server::{Server, Socket, deployment};

/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether the child has ended.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// Divides arguments in the variable that hands them to the child.
pub(crate) const DIVIDER: char = '\u{1f}';
/// How long the command may take to hide what is typed.
const HIDDEN_DEADLINE: Duration = Duration::from_secs(30);
/// The variable.
pub(crate) const ARGUMENTS: &str = "TRAM_TEST_CHILD_ARGUMENTS";

/// What the child does: one command on its own streams.
#[test]
#[ignore = "started by the other tests here, as a process of its own"]
#[expect(clippy::exit, reason = "the exit code is what is tested")]
fn child() {
    let arguments = std::env::var(ARGUMENTS).unwrap();
    rustls::crypto::ring::default_provider()
        .install_default()
        .unwrap();
    let words = std::iter::once("tram").chain(arguments.split(DIVIDER));
    match tram_cli::run(words.map(std::ffi::OsString::from)) {
        Outcome::Exit(code) => std::process::exit(code.into()),
        Outcome::Server { .. } => std::process::exit(99),
    }
}

struct Terminal {
    controller: File,
    device: OwnedFd,
    child: Child,
    _home: tempfile::TempDir,
}

impl Terminal {
    fn run(server: &Server, words: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let name = ptsname(&controller, Vec::new()).unwrap();
        let device = rustix::fs::open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        resize(&controller, 40, 100);
        let home = tempfile::tempdir().unwrap();
        // Its own session, so that the terminal is its own too and tells it of new sizes.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "terminal::child", "--ignored", "--nocapture"])
            .env(ARGUMENTS, words.join(&DIVIDER.to_string()))
            .env("TRAM_URL", &server.url)
            .env("TRAM_TOKEN", "token")
            .env("HOME", home.path())
            .env_remove("NO_COLOR")
            .env("TERM", "xterm")
            .stdin(device.try_clone().unwrap())
            .stdout(device.try_clone().unwrap())
            .stderr(device.try_clone().unwrap())
            .spawn()
            .unwrap();
        Self {
            controller: File::from(controller),
            device,
            child,
            _home: home,
        }
    }

    /// Reads what is shown until `text` has been; fails after [`PATIENCE`].
    fn until(&mut self, text: &str) -> String {
        let mut shown = String::new();
        let mut chunk = [0; 4096];
        let deadline = Instant::now() + PATIENCE;
        while !shown.contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap();
            let mut terminal = [PollFd::new(&self.controller, PollFlags::IN)];
            let ready = poll(&mut terminal, Some(&left)).unwrap();
            assert_ne!(ready, 0, "{text:?} is never shown; shown: {shown:?}");
            let count = self.controller.read(&mut chunk).unwrap();
            shown.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        shown
    }

    /// Whether what is typed is shown and edited by the terminal itself.
    fn is_cooked(&self) -> bool {
        let modes = tcgetattr(&self.device).unwrap().local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    fn end(mut self) -> (i32, bool) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the command does not end");
            poll(&mut [], Some(&LOOK)).unwrap();
        };
        (status.code().unwrap(), self.is_cooked())
    }
}

impl Drop for Terminal {
    /// Nothing is left of a test that failed.
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn resize(terminal: &impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

fn hear(socket: &mut Socket) -> Value {
    loop {
        if let Message::Text(text) = socket.read().unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

fn say(socket: &mut Socket, result: Value) {
    socket
        .send(Message::text(json!({ "result": result }).to_string()))
        .unwrap();
}

#[test]
fn exec_gives_the_command_a_terminal_and_puts_ours_back() {
    let server = Server::start().with_shop();
    let (heard, messages) = mpsc::channel();
    server.socket("/v1/streams/instances/exec", move |mut socket| {
        for _ in 0..2 {
            heard.send(hear(&mut socket)).unwrap(); // the command, and the size
        }
        say(
            &mut socket,
            json!({ "stdout": { "data": BASE64.encode("remote$ ") }, "exited": false, "exit_code": 0 }),
        );
        for _ in 0..2 {
            heard.send(hear(&mut socket)).unwrap(); // what is typed, and the new size
        }
        say(
            &mut socket,
            json!({ "stdout": null, "stderr": null, "exited": true, "exit_code": 7 }),
        );
        while socket.read().is_ok() {}
    });
    let mut terminal = Terminal::run(&server, &["exec", "-it", "web", "--", "bash"]);
    terminal.until("remote$ ");
    assert!(!terminal.is_cooked(), "the terminal is not raw");
    let command = messages.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        command["body"],
        json!({ "command": ["bash"], "disableTty": false })
    );
    assert_eq!(
        messages.recv_timeout(PATIENCE).unwrap(),
        json!({ "body": { "tty_size": { "height": 40, "width": 100 } } })
    );
    // Ctrl-C is for the remote program.
    terminal.controller.write_all(b"\x03").unwrap();
    assert_eq!(
        messages.recv_timeout(PATIENCE).unwrap(),
        json!({ "body": { "stdin": { "data": BASE64.encode([3]) } } })
    );
    resize(&terminal.controller, 50, 120);
    assert_eq!(
        messages.recv_timeout(PATIENCE).unwrap(),
        json!({ "body": { "tty_size": { "height": 50, "width": 120 } } })
    );
    assert_eq!(terminal.end(), (7, true));
}

#[test]
fn ctrl_c_at_the_token_leaves_a_terminal_that_shows_what_is_typed() {
    let server = Server::start();
    let mut terminal = Terminal::run(&server, &["login"]);
    terminal.until("token: ");
    // What is typed is hidden a moment after it was asked for.
    let deadline = Instant::now() + HIDDEN_DEADLINE;
    while terminal.is_cooked() {
        assert!(Instant::now() < deadline, "the token would be shown");
        std::thread::yield_now();
    }
    terminal.controller.write_all(b"\x03").unwrap();
    assert_eq!(terminal.end(), (130, true));
}

#[test]
fn deploy_draws_its_progress_and_wipes_it() {
    let server = Server::start().with_shop();
    server.answers(
        "GET /v1/deployments/d0000000-0000-4000-8000-000000000001",
        ["HEALTHY", "PENDING", "STARTING", "HEALTHY"]
            .map(|status| (200, deployment(status, &[])))
            .to_vec(),
    );
    server.answer(
        "PUT /v1/services/50000000-0000-4000-8000-000000000001",
        json!({ "service": crate::server::service() }),
    );
    let mut terminal = Terminal::run(&server, &["deploy", "shop:2", "-n", "web", "--app", "shop"]);
    let shown = terminal.until(".tram.localhost");
    for part in [
        "pulling the image",
        "waiting for health",
        "healthy after ",
        "https://shop-acme-01020304",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown:?}");
    }
    assert_eq!(terminal.end(), (0, true));
}
