//! What can go wrong in a command, and what the user can do about it.
//!
//! An error says what happened; its hint, kept apart as data, says what to do. The printer shows both, with the
//! chain of causes between.

use std::{io, time::Duration};

use crate::{EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, client, context, settings};

/// A command's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of the API failed.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// The file of contexts could not be used.
    #[error(transparent)]
    Context(#[from] context::Error),
    /// The settings could not be resolved.
    #[error(transparent)]
    Settings(#[from] settings::Error),
    /// Something was named that does not exist.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// What it was called.
        name: String,
        /// The nearest name that does exist.
        near: Option<String>,
        /// The command that lists what exists.
        list: &'static str,
    },
    /// Something was named by a name that several things have.
    #[error("`{name}` can mean {}", .candidates.join(", "))]
    Ambiguous {
        /// What it was called.
        name: String,
        /// What it can mean.
        candidates: Vec<String>,
    },
    /// The arguments do not fit together.
    #[error("{what}")]
    Input {
        /// What does not fit.
        what: String,
        /// What would.
        hint: Option<String>,
    },
    /// A file of the user could not be read.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// The terminal could not be prepared.
    #[error("cannot set up the terminal")]
    Terminal(#[source] io::Error),
    /// The async runtime could not be started.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// A deployment ended in a state that is not the one hoped for.
    #[error("deployment {short} of `{service}` ended as {status}{}{}", indented(.messages, ""), indented(.log_lines, "\n\nlast log lines"))]
    DeploymentFailed {
        /// `app/service`.
        service: String,
        /// The first characters of the deployment's id.
        short: String,
        /// Its last status.
        status: String,
        /// What the platform says about it.
        messages: Vec<String>,
        /// The end of what the program wrote.
        log_lines: Vec<String>,
        /// Whether an earlier deployment keeps serving.
        still_serving: bool,
    },
    /// A deployment was not ready in time.
    #[error("deployment {short} of `{service}` is still {status} after {}s{}", .after.as_secs(), indented(.messages, ""))]
    NotReady {
        /// `app/service`.
        service: String,
        /// The first characters of the deployment's id.
        short: String,
        /// Its status then.
        status: String,
        /// What the platform says it waits for.
        messages: Vec<String>,
        /// How long the command waited.
        after: Duration,
    },
    /// Ctrl-C, before anything was done.
    #[error("interrupted")]
    Interrupted,
    /// The remote program could not be run or the connection to it was lost.
    #[error("{0}")]
    Exec(String),
}

impl Error {
    /// Arguments that do not fit together, with what would.
    pub(crate) fn input(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Context(error) => error.hint(),
            Self::Settings(error) => error.hint(),
            Self::NotFound { near, list, .. } => Some(match near {
                Some(near) => format!("did you mean `{near}`? `{list}` shows all"),
                None => format!("`{list}` shows what there is"),
            }),
            Self::Ambiguous { .. } => Some("say which one by `app/service` or by its id".to_owned()),
            Self::Input { hint, .. } => hint.clone(),
            Self::DeploymentFailed {
                service,
                still_serving,
                ..
            } => Some(if *still_serving {
                format!("the deployment before keeps serving; see more with `tram logs {service}`")
            } else {
                format!("see more with `tram logs {service}`, remove it with `tram delete {service}`")
            }),
            Self::NotReady { service, .. } => Some(format!(
                "it goes on by itself; look with `tram services get {service}`, wait longer with `--timeout`"
            )),
            Self::Read { .. }
            | Self::Output(_)
            | Self::Terminal(_)
            | Self::Runtime(_)
            | Self::Interrupted
            | Self::Exec(_) => None,
        }
    }

    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input { .. } | Self::Settings(_) => EXIT_USAGE,
            Self::Interrupted => EXIT_INTERRUPTED,
            _ => EXIT_FAILURE,
        }
    }

    /// Whether nothing needs to be said: the reader of our output left, as `head` does, or the user stopped us.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        match self {
            Self::Interrupted => true,
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

/// Lines under a message, each indented, with a title when there is one; nothing for no lines.
fn indented(lines: &[String], title: &str) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let body: String = lines.iter().map(|line| format!("\n  {line}")).collect();
    if title.is_empty() {
        body
    } else {
        format!("{title}:{body}")
    }
}
