//! The outside of the process as a command sees it: variables, streams, clock, Ctrl-C.
//!
//! [`Host::of_process`] is the real one; tests make their own.

use std::{
    collections::BTreeMap,
    fmt,
    io::{IsTerminal as _, Write},
    sync::Arc,
};

use tokio::{io::AsyncRead, sync::Notify};
use tram_types::{Clock, SystemClock};

/// A stream of input.
pub type Input = Box<dyn AsyncRead + Send + Unpin>;
/// A stream of output.
pub type Sink = Arc<std::sync::Mutex<dyn Write + Send>>;

/// What a command may see and touch of the outside.
pub struct Host {
    /// The environment.
    pub variables: BTreeMap<String, String>,
    /// Standard input.
    pub stdin: Input,
    /// Standard output: data.
    pub stdout: Sink,
    /// Standard error: talk.
    pub stderr: Sink,
    /// Whether a person types at standard input.
    pub stdin_is_terminal: bool,
    /// Whether a person reads standard output.
    pub stdout_is_terminal: bool,
    /// Whether a person reads standard error.
    pub stderr_is_terminal: bool,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// How Ctrl-C arrives.
    pub interrupt: Interrupt,
}

impl Host {
    /// The process's own. Variables that are not UTF-8 are left out.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            variables: std::env::vars_os()
                .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            stdin: Box::new(tokio::io::stdin()),
            stdout: Arc::new(std::sync::Mutex::new(std::io::stdout())),
            stderr: Arc::new(std::sync::Mutex::new(std::io::stderr())),
            stdin_is_terminal: std::io::stdin().is_terminal(),
            stdout_is_terminal: std::io::stdout().is_terminal(),
            stderr_is_terminal: std::io::stderr().is_terminal(),
            clock: Arc::new(SystemClock),
            interrupt: Interrupt::Signal,
        }
    }

    /// The value of a variable, if it is set.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }
}

impl fmt::Debug for Host {
    // Variables may hold tokens: they are not shown.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Host").finish_non_exhaustive()
    }
}

/// How a command learns of Ctrl-C.
#[derive(Debug, Clone)]
pub enum Interrupt {
    /// By SIGINT.
    Signal,
    /// By a call of the test.
    Notify(Arc<Notify>),
}

impl Interrupt {
    /// Resolves at Ctrl-C. Once this has been polled, SIGINT no longer ends the process by itself.
    pub async fn wait(&self) {
        match self {
            Self::Signal => {
                if tokio::signal::ctrl_c().await.is_err() {
                    // No handler could be installed: SIGINT ends the process as ever.
                    std::future::pending::<()>().await;
                }
            }
            Self::Notify(notify) => notify.notified().await,
        }
    }
}
