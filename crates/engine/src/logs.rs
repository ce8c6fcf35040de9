//! The engine's own log, one line an event on standard error, and what llama.cpp says in it.

use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The last error that llama.cpp logged: its functions return no reason.
static LAST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// From here on, events go to standard error. Only once for each process; later calls change nothing.
pub(crate) fn start() {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .without_time();
    // llama.cpp logs its own course in hundreds of lines; its warnings are about what it was trained on.
    let filter = tracing_subscriber::filter::filter_fn(|metadata| {
        let most = if metadata.target() == LLAMA {
            LevelFilter::ERROR
        } else {
            LevelFilter::INFO
        };
        *metadata.level() <= most
    });
    let subscriber = tracing_subscriber::registry()
        .with(Keep)
        .with(lines.with_filter(filter));
    let _ = subscriber.try_init();
}

/// llama.cpp's log becomes part of this one.
pub(crate) fn forward_llama() {
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default());
}

/// The reason of llama.cpp's last failure, if it gave one.
pub(crate) fn last_error() -> Option<String> {
    LAST_ERROR.lock().ok().and_then(|mut last| last.take())
}

/// The target of events that come from llama.cpp.
const LLAMA: &str = "llama-cpp-2";

struct Keep;

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != LLAMA || *event.metadata().level() != Level::ERROR {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        if let Ok(mut last) = LAST_ERROR.lock() {
            // The first says what is wrong; those that follow, who gave up because of it.
            last.get_or_insert(text.0);
        }
    }
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0 = value.trim_end().to_owned();
        }
    }
}
