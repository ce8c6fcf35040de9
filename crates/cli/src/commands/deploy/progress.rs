//! Progress on standard error: a spinner for people, a line per phase for logs.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printer::Printer;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// How often a log gets a word about a deployment on its way: often enough to see that it goes on or why it does not,
/// rarely enough that a slow pull does not fill the log.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The image is being fetched.
    Pull,
    /// Instances are being made.
    Start,
    /// The program runs; its checks have to pass.
    Health,
}

impl Phase {
    /// The phase of a deployment's status, if it is on its way.
    pub(crate) fn of(status: &str) -> Option<Self> {
        match status {
            "PENDING" | "PROVISIONING" | "SCHEDULED" => Some(Self::Pull),
            "ALLOCATING" => Some(Self::Start),
            "STARTING" => Some(Self::Health),
            _ => None,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Pull => "pulling the image",
            Self::Start => "starting",
            Self::Health => "waiting for health",
        }
    }
}

/// Shows one phase after another.
pub(crate) struct Progress {
    printer: Printer,
    bar: Option<ProgressBar>,
    phase: Option<Phase>,
    /// The newest word of the platform about the deployment; empty when all goes as it should.
    told: String,
    /// When a log got its last word.
    noted_at: Instant,
}

impl Progress {
    pub(crate) fn new(printer: &Printer) -> Self {
        let bar = printer.is_live().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self {
            printer: printer.clone(),
            bar,
            phase: None,
            told: String::new(),
            noted_at: Instant::now(),
        }
    }

    /// Shows that `phase` has begun.
    pub(crate) fn enter(&mut self, phase: Phase) {
        if self.phase == Some(phase) {
            return;
        }
        self.phase = Some(phase);
        match &self.bar {
            Some(_) => self.show(),
            None => self.printer.note(phase.words()),
        }
    }

    /// Shows what the platform says about the deployment on its way.
    pub(crate) fn tell(&mut self, message: &str) {
        if self.told == message || (self.bar.is_none() && self.noted_at.elapsed() < NOTE_INTERVAL) {
            return;
        }
        message.clone_into(&mut self.told);
        self.noted_at = Instant::now();
        match &self.bar {
            Some(_) => self.show(),
            None if message.is_empty() => {}
            None => self.printer.note(message),
        }
    }

    fn show(&self) {
        let (Some(bar), Some(phase)) = (&self.bar, self.phase) else {
            return;
        };
        if self.told.is_empty() {
            bar.set_message(phase.words());
        } else {
            bar.set_message(format!("{}: {}", phase.words(), self.told));
        }
    }

    /// Says something beside the phases.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.printer.note(text)),
            None => self.printer.note(text),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
