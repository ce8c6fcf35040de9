//! Where log lines go: standard error, as text or JSON, filtered as the settings say.
//!
//! The helper processes are told the same by the control plane; their standard error is a file that it opened. A line
//! that cannot be written is lost in silence: the usual cause is a full disk, and the library's complaint about it
//! would go the same way, where failing to print ends the process.

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};
use tram_cli::settings::LogFormat;

/// Which log lines are written, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// Such as `info,tram_edge=debug`.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::default(),
        }
    }
}

/// Starts logging for the control plane.
///
/// # Errors
/// When the filter cannot be understood; the text says how one looks.
pub fn control_plane(settings: &LogSettings) -> Result<(), String> {
    let filter = &settings.filter;
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("the log filter `{filter}` makes no sense ({error}): write `info`, or `info,tram_edge=debug`")
    })?;
    start(filter, settings.format).map_err(|error| format!("logging was started before: {error}"))
}

/// Starts logging for a helper process. The control plane would not have started with a filter that makes no sense.
pub fn helper(settings: &LogSettings) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // A helper that cannot log can still do its work.
    let _ = start(filter, settings.format);
}

fn start(filter: EnvFilter, format: LogFormat) -> Result<(), tracing_subscriber::util::TryInitError> {
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .log_internal_errors(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_ansi(false)
                    .log_internal_errors(false)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    }
}
