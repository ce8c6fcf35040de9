//! Where log lines go: standard error, as text or JSON, filtered as the settings say.
//!
//! A line that cannot be written is lost in silence: the usual cause is a full disk, and the library's complaint
//! about it would go the same way, where failing to print ends the process.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};
use tram_cli::settings::LogFormat;

/// Starts logging for the control plane.
///
/// # Errors
/// When the filter cannot be understood; the text says how one looks.
pub fn control_plane(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        format!("the log filter `{filter}` makes no sense ({error}): write `info`, or `info,tram_edge=debug`")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
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
    };
    started.map_err(|error| format!("logging was started before: {error}"))
}

/// Starts logging for a helper process, whose standard error is a file that the control plane opened.
pub fn helper() {
    let _ = fmt()
        .with_env_filter(EnvFilter::new("info"))
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(std::io::stderr)
        .try_init();
}
