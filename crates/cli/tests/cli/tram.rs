//! Runs one command as the binary does, with an outside of the test's.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    sync::{Arc, Mutex, Once},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tram_cli::{Host, Interrupt, Outcome};
use tram_types::{Clock, Timestamp};

/// What the time is in every test.
pub(crate) const NOW: &str = "2026-03-01T12:00:00Z";

/// How long a command may take to say what a test waits for.
const SAID_DEADLINE: Duration = Duration::from_secs(30);

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    /// Its exit code; `None` when it was handed to the composition root.
    pub(crate) code: Option<u8>,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
    /// What was handed on.
    pub(crate) outcome: Outcome,
}

/// One user: a home, variables, input.
pub(crate) struct Tram {
    home: tempfile::TempDir,
    variables: BTreeMap<String, String>,
    stdin: Vec<u8>,
    /// Ctrl-C.
    pub(crate) interrupt: Arc<Notify>,
    /// Standard output as it is written.
    pub(crate) stdout: Buffer,
}

#[derive(Debug)]
struct Fixed(Timestamp);

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// Bytes that were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffer(pub(crate) Arc<Mutex<Vec<u8>>>);

impl Buffer {
    /// As text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }

    /// As they are.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Tram {
    /// A user without any context.
    pub(crate) fn new() -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            rustls::crypto::ring::default_provider()
                .install_default()
                .unwrap();
        });
        let home = tempfile::tempdir().unwrap();
        let variables = BTreeMap::from([("HOME".to_owned(), home.path().display().to_string())]);
        Self {
            home,
            variables,
            stdin: Vec::new(),
            interrupt: Arc::default(),
            stdout: Buffer::default(),
        }
    }

    /// A user of the server at `url`.
    pub(crate) fn of(url: &str) -> Self {
        Self::new().with("TRAM_URL", url).with("TRAM_TOKEN", "token")
    }

    /// With one more variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With this input.
    pub(crate) fn typing(mut self, bytes: &[u8]) -> Self {
        self.stdin = bytes.to_vec();
        self
    }

    /// Where this user's contexts are.
    pub(crate) fn contexts(&self) -> std::path::PathBuf {
        self.home.path().join(".config/tram/config.toml")
    }

    /// Runs `tram <line>`, its words divided by spaces.
    pub(crate) fn run(&self, line: &str) -> Ran {
        self.run_words(line.split(' ').filter(|word| !word.is_empty()))
    }

    /// Runs `tram <line>`, and calls `then` when standard error has `said`.
    pub(crate) fn run_until(&self, line: &str, said: &str, then: impl FnOnce() + Send + 'static) -> Ran {
        let stderr = Buffer::default();
        let seen = stderr.clone();
        let said = said.to_owned();
        let deadline = Instant::now() + SAID_DEADLINE;
        let watcher = std::thread::spawn(move || {
            while !seen.text().contains(&said) {
                assert!(Instant::now() < deadline, "`{said}` was not said");
                std::thread::yield_now();
            }
            then();
        });
        let ran = self.run_into(stderr, line.split(' '));
        watcher.join().unwrap();
        ran
    }

    /// Runs `tram` with these words.
    pub(crate) fn run_words<'w>(&self, words: impl IntoIterator<Item = &'w str>) -> Ran {
        self.run_into(Buffer::default(), words)
    }

    fn run_into<'w>(&self, stderr: Buffer, words: impl IntoIterator<Item = &'w str>) -> Ran {
        self.stdout.0.lock().unwrap().clear();
        let host = Host {
            variables: self.variables.clone(),
            stdin: Box::new(std::io::Cursor::new(self.stdin.clone())),
            stdout: Arc::new(Mutex::new(self.stdout.clone())),
            stderr: Arc::new(Mutex::new(stderr.clone())),
            stdin_is_terminal: false,
            stdout_is_terminal: false,
            stderr_is_terminal: false,
            clock: Arc::new(Fixed(NOW.parse().unwrap())),
            interrupt: Interrupt::Notify(self.interrupt.clone()),
        };
        let args = std::iter::once("tram").chain(words).map(OsString::from);
        let outcome = tram_cli::run_with(args, host);
        Ran {
            code: match &outcome {
                Outcome::Exit(code) => Some(*code),
                Outcome::Server { .. } => None,
            },
            out: self.stdout.text(),
            err: without_times(&stderr.text()),
            outcome,
        }
    }
}

/// How long something took is not the same twice: `healthy after 2s` becomes `healthy after TIME`.
fn without_times(text: &str) -> String {
    const BEFORE: &str = "healthy after ";
    text.split_inclusive('\n')
        .map(|line| match line.strip_prefix(BEFORE) {
            Some(_) => format!("{BEFORE}TIME\n"),
            None => line.to_owned(),
        })
        .collect()
}

impl Ran {
    /// Compares everything at once, so that a failure shows everything.
    #[track_caller]
    pub(crate) fn expect(&self, code: u8, out: &str, err: &str) {
        assert_eq!(
            (self.code, self.out.as_str(), self.err.as_str()),
            (Some(code), out, err),
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.out,
            self.err
        );
    }
}
