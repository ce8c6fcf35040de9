//! The real program from its start to its end: what it says once, what it leaves behind, what the operator can ask.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says why and fails"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "between two looks at a condition, with a deadline"
)]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tram_server::{paths::Paths, processes::DirectoryLock, roles};

/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// Characters of a token.
const TOKEN: usize = 64;

/// An installation of its own; what runs is ended with it.
struct House {
    directory: tempfile::TempDir,
    ports: [u16; 3],
    running: Option<Child>,
}

impl House {
    /// `None` for those who cannot start one.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        // All at a time, so that they differ.
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        Some(Self {
            directory: tempfile::tempdir().expect("a directory"),
            ports: listeners.map(|listener| listener.local_addr().expect("an address").port()),
            running: None,
        })
    }

    fn paths(&self) -> Paths {
        Paths::new(&self.directory.path().join("data"))
    }

    fn contexts(&self) -> PathBuf {
        self.directory.path().join("config/tram/config.toml")
    }

    /// Starts it without anything in the environment but a path, and perhaps a place for contexts.
    fn start(&mut self, place: Option<&str>, more: &[&str]) {
        let log = fs::File::create(self.directory.path().join("up.log")).expect("a log");
        let [api, http, https] = self.ports;
        let mut command = Command::new("env");
        command
            .args(["-i", "--default-signal=HUP", "PATH=/usr/bin:/bin"])
            .args(
                place.map(|place| format!("XDG_CONFIG_HOME={}", self.directory.path().join(place).display())),
            )
            .arg(env!("CARGO_BIN_EXE_tram"))
            .args([
                "up",
                "--quiet",
                "--http-listen",
                "127.0.0.1",
                "--data-dir",
                "data",
            ])
            .args(["--api-listen", &format!("127.0.0.1:{api}")])
            .args([
                "--http-port",
                &http.to_string(),
                "--https-port",
                &https.to_string(),
            ])
            .args(more)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.running = Some(command.spawn().expect("tram up"));
    }

    fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("up.log")).unwrap_or_default()
    }

    fn eventually(&self, what: &str, is_so: impl Fn() -> bool) {
        let since = Instant::now();
        while !is_so() {
            assert!(since.elapsed() < PATIENCE, "{what}: not in time\n{}", self.said());
            std::thread::sleep(LOOK);
        }
    }

    /// The token that it says, once it does.
    fn token(&self) -> String {
        let said = || {
            let said = self.said();
            let line = said.lines().find_map(|line| line.strip_prefix("  token     "));
            line.map(str::to_owned)
        };
        self.eventually("it says its token", || said().is_some());
        said().unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let child = self.running.as_ref().expect("it was started");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("a process id");
        kill_process(pid, signal).expect("a signal");
    }

    fn end(&mut self) -> ExitStatus {
        let mut child = self.running.take().expect("it was started");
        let since = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("its end") {
                return status;
            }
            if since.elapsed() > PATIENCE {
                child.kill().expect("an end by force");
                panic!("it did not end in time\n{}", self.said());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Whether one of the processes that outlive a kill -9 is there.
    fn has_helpers(&self) -> bool {
        let paths = self.paths();
        [paths.edge(), paths.supervisor()]
            .iter()
            .any(|directory| DirectoryLock::holder(directory, roles::LOCK_NAME).is_some())
    }

    fn tram(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_tram"))
            .args(words)
            .arg("--data-dir")
            .arg(self.paths().root())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("XDG_CONFIG_HOME", self.directory.path().join("config"))
            .current_dir(self.directory.path())
            .output()
            .expect("the command")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let paths = self.paths();
        for directory in [paths.edge(), paths.supervisor()] {
            let holder = DirectoryLock::holder(&directory, roles::LOCK_NAME);
            if let Some(pid) = holder.and_then(|holder| Pid::from_raw(holder.pid?)) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

#[test]
fn a_start_that_fails_leaves_the_token_to_the_next() {
    let Some(mut house) = House::new() else { return };
    house.start(Some("config"), &["--network", "nonsense"]);
    assert!(!house.end().success(), "{}", house.said());
    assert!(!house.contexts().exists(), "{}", house.said());
    assert!(!house.has_helpers());
    house.start(Some("config"), &[]);
    let token = house.token();
    assert_eq!(token.len(), TOKEN, "{}", house.said());
    let contexts = fs::read_to_string(house.contexts()).expect("contexts");
    assert!(contexts.contains(&token), "{contexts}");
    // The end of the terminal is a word to stop like others.
    house.signal(Signal::HUP);
    assert!(house.end().success(), "{}", house.said());
    assert!(!house.has_helpers(), "{}", house.said());
}

#[test]
fn a_word_to_stop_during_the_start_takes_back_what_was_started() {
    let Some(mut house) = House::new() else { return };
    house.start(Some("config"), &[]);
    house.eventually("a helper runs", || house.has_helpers());
    house.signal(Signal::INT);
    assert!(house.end().success(), "{}", house.said());
    assert!(!house.has_helpers(), "{}", house.said());
}

#[test]
fn the_operator_asks_the_running_control_plane() {
    let Some(mut house) = House::new() else { return };
    let early = house.tram(&["admin", "rotate-keys"]);
    assert!(!early.status.success());
    assert!(text(&early.stderr).contains("start `tram up` first"), "{early:?}");
    // A place for contexts that cannot be, below a file.
    house.start(
        Some("up.log"),
        &["--image-aliases", "koyeb/sandbox=registry.example.org/sandbox"],
    );
    // What comes after the token: once it is there, the token's line is whole.
    house.eventually("it says that the token was not kept", || {
        house.said().contains("could not be kept")
    });
    let token = house.token();
    assert_eq!(token.len(), TOKEN, "{}", house.said());

    let made = house.tram(&["admin", "new-token"]);
    let another = text(&made.stdout);
    assert_eq!(another.len(), TOKEN, "{made:?}");
    assert_ne!(another, token);
    let contexts = fs::read_to_string(house.contexts()).expect("contexts");
    assert!(contexts.contains(&another), "{contexts}");
    let listed = house.tram(&["admin", "rotate-keys"]);
    assert!(
        text(&listed.stdout).starts_with("0 secrets are now under the key "),
        "{listed:?}"
    );

    let backup = house.tram(&["admin", "backup", "copy.db"]);
    let copy = house.directory.path().join("copy.db");
    assert_eq!(text(&backup.stdout), copy.display().to_string(), "{backup:?}");
    assert_eq!(
        fs::metadata(&copy).expect("a copy").permissions().mode() & 0o777,
        0o600
    );
    let again = house.tram(&["admin", "backup", "copy.db"]);
    assert!(!again.status.success());
    assert!(text(&again.stderr).contains("already"), "{again:?}");

    house.signal(Signal::TERM);
    assert!(house.end().success(), "{}", house.said());
    assert!(!house.has_helpers(), "{}", house.said());
}
