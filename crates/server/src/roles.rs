//! The mains of the helper processes, and what the control plane tells them.
//!
//! Both sides of these arguments are ours: the control plane writes them when it starts a helper, the helper reads
//! them here.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

use crate::{
    logging::{self, LogSettings},
    processes::DirectoryLock,
    traces::Traces,
};

/// Name of the lock that a helper holds on its state directory.
pub const LOCK_NAME: &str = "process.lock";
/// Name of the edge's settings in its state directory.
const EDGE_SETTINGS: &str = "settings.json";

/// What the control plane tells the edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeSettings {
    /// Under which the local authority may sign.
    #[serde(default)]
    pub base_domain: String,
    /// Where to accept cleartext HTTP.
    pub http: Vec<SocketAddr>,
    /// Where to accept TLS.
    pub https: Vec<SocketAddr>,
    /// On which addresses the TCP ports of services are opened.
    pub tcp: Vec<IpAddr>,
    /// Where finished requests are written.
    pub access_log: PathBuf,
    /// Where traces are sent; empty: nowhere.
    #[serde(default)]
    pub otlp_endpoint: String,
    /// What it logs. One that was told nothing logs as the settings do by default.
    #[serde(default)]
    pub log: LogSettings,
}

impl EdgeSettings {
    /// What the running edge was told, if it can be read.
    #[must_use]
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(EDGE_SETTINGS)).ok()?).ok()
    }

    /// Tells the next edge that starts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, state_dir: &Path) -> std::io::Result<()> {
        crate::paths::write_whole(&state_dir.join(EDGE_SETTINGS), &serde_json::to_vec_pretty(self)?)
    }
}

/// The arguments of a helper: its state directory, and what it logs when no file there says so.
#[must_use]
pub fn arguments(state_dir: &Path, log: Option<&LogSettings>) -> Vec<String> {
    let mut words = vec!["--state".to_owned(), state_dir.display().to_string()];
    if let Some(log) = log {
        words.extend(["--log-filter".to_owned(), log.filter.clone()]);
        words.extend(["--log-format".to_owned(), log.format.to_string()]);
    }
    words
}

/// What [`arguments`] made.
fn read_arguments(arguments: &[OsString]) -> Option<(PathBuf, LogSettings)> {
    let (mut directory, mut log) = (None, LogSettings::default());
    let mut words = arguments.iter();
    while let Some(flag) = words.next() {
        let value = words.next()?;
        match flag.to_str()? {
            "--state" => directory = Some(PathBuf::from(value)),
            "--log-filter" => value.to_str()?.clone_into(&mut log.filter),
            "--log-format" => log.format = value.to_str()?.parse().ok()?,
            _ => return None,
        }
    }
    Some((directory?, log))
}

/// The main of `tram supervise`. Must be called before the process has a second thread.
#[must_use]
pub fn supervise(arguments: &[OsString]) -> ExitCode {
    let sealed = tram_sandbox::ensure_sealed();
    let Some((directory, log)) = read_arguments(arguments) else {
        return usage("supervise");
    };
    logging::helper(&log);
    if let Err(error) = sealed {
        tracing::warn!(%error, "cannot run from a read-only mount; the program's file is less protected from instances");
    }
    with_lock(&directory, "supervise", || {
        let config = tram_sandbox::supervisor::Config {
            state_dir: directory.clone(),
            freezer: Default::default(),
        };
        tram_sandbox::supervisor::run(&config).map_err(|error| crate::chain(&error))
    })
}

/// The main of `tram edge`.
#[must_use]
pub fn edge(arguments: &[OsString]) -> ExitCode {
    let Some((directory, log)) = read_arguments(arguments) else {
        return usage("edge");
    };
    let settings = EdgeSettings::read(&directory);
    logging::helper(settings.as_ref().map_or(&log, |settings| &settings.log));
    let Some(settings) = settings else {
        tracing::error!(directory = %directory.display(), "the edge has no settings; `tram up` writes them");
        return ExitCode::FAILURE;
    };
    with_lock(&directory, "edge", || {
        let traces =
            Traces::start(&settings.otlp_endpoint, "tram-edge").map_err(|error| crate::chain(&error))?;
        let config = tram_edge::Config {
            state_dir: directory.clone(),
            base_domain: settings.base_domain,
            http: settings.http,
            https: settings.https,
            tcp: settings.tcp,
            metrics: None,
            workers: 0,
            access_log: tram_edge::AccessLog::File(settings.access_log),
            traces: traces.is_some(),
            drain: tram_edge::config::DEFAULT_DRAIN,
        };
        // The workers have runtimes of their own; this one carries the control link.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| crate::chain(&error))?;
        let outcome = runtime
            .block_on(tram_edge::run(config))
            .map_err(|error| crate::chain(&error));
        if let Some(traces) = traces {
            traces.finish();
        }
        outcome
    })
}

fn with_lock(directory: &Path, role: &'static str, main: impl FnOnce() -> Result<(), String>) -> ExitCode {
    let _lock = match DirectoryLock::take(directory, LOCK_NAME) {
        Ok(Ok(lock)) => lock,
        Ok(Err(holder)) => {
            tracing::error!(role, holder = ?holder.pid, "another process has this role already");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            tracing::error!(role, error = %crate::chain(&error), "cannot lock the state directory");
            return ExitCode::FAILURE;
        }
    };
    match main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(role, error, "stopped");
            ExitCode::FAILURE
        }
    }
}

fn usage(role: &'static str) -> ExitCode {
    logging::helper(&LogSettings::default());
    tracing::error!(role, "started by `tram up`, with `--state DIRECTORY`");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use tram_cli::settings::LogFormat;

    use super::*;

    #[test]
    fn what_a_helper_is_told_is_what_it_reads() {
        let log = LogSettings {
            filter: "warn,tram_edge=debug".to_owned(),
            format: LogFormat::Json,
        };
        let read = |words: Vec<String>| {
            let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
            read_arguments(&words)
        };
        let place = Path::new("/var/lib/tram/supervisor");
        assert_eq!(
            read(arguments(place, Some(&log))),
            Some((place.to_owned(), log.clone()))
        );
        // As an older control plane started it.
        assert_eq!(
            read(arguments(place, None)),
            Some((place.to_owned(), LogSettings::default()))
        );
        assert_eq!(read(vec!["--state".to_owned()]), None);
        let directory = tempfile::tempdir().unwrap();
        let settings = EdgeSettings {
            http: Vec::new(),
            https: Vec::new(),
            tcp: Vec::new(),
            access_log: PathBuf::new(),
            otlp_endpoint: String::new(),
            base_domain: "localhost".to_owned(),
            log,
        };
        settings.write(directory.path()).unwrap();
        assert_eq!(EdgeSettings::read(directory.path()), Some(settings));
        let older = r#"{"http": [], "https": [], "tcp": [], "access_log": ""}"#;
        std::fs::write(directory.path().join(EDGE_SETTINGS), older).unwrap();
        assert_eq!(
            EdgeSettings::read(directory.path()).unwrap().log,
            LogSettings::default()
        );
    }
}
