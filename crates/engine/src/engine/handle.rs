//! How the rest of the program reaches the engine's thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::figures::{Figures, Shared};
use super::{Command, Embed, Keep, Setup};
use crate::model::{Draft, Model, Problem};
use crate::request::Request;

/// Why a request is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full; there may be room after this time.
    Busy { retry_after: Duration },
    /// The engine ends.
    Stopping,
}

/// The shortest time after which to come again: less would be a loop.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// The longest, for the estimate may be wrong.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// A way to the engine's thread.
#[derive(Debug)]
pub(crate) struct Engine {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    queue_max: usize,
    thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread; returns when it is ready. A `draft` guesses for the model. Requests beyond `queue_max` waiting ones
    /// are refused.
    pub(crate) fn start(
        model: Arc<Model>,
        draft: Option<Arc<Draft>>,
        setup: Setup,
        keep: Option<Keep>,
        queue_max: usize,
    ) -> Result<Self, Problem> {
        let (commands, receiver) = std::sync::mpsc::channel();
        let (ready, outcome) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared::new());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let ready = move |outcome| {
                    let _ = ready.send(outcome);
                };
                if let Some(embedding) = model.embedding {
                    super::embed::run(&model, embedding, setup.threads, receiver, theirs, ready);
                } else {
                    super::run(&model, draft.as_deref(), setup, keep, receiver, theirs, ready);
                }
            });
        let context = |why: String| Problem::Context {
            tokens: setup.cells,
            why,
        };
        let thread = thread.map_err(|error| context(error.to_string()))?;
        outcome.recv().map_err(|error| context(error.to_string()))??;
        Ok(Self {
            commands,
            shared,
            queue_max,
            thread: std::sync::Mutex::new(Some(thread)),
        })
    }

    /// Hands a request over. What becomes of it comes by its events.
    pub(crate) fn submit(&self, request: Request) -> Result<(), Refusal> {
        let tenant = request.tenant.clone();
        self.send(&tenant, Command::Generate(Box::new(request)))
    }

    /// Hands texts over to a model that makes embeddings.
    pub(crate) fn embed(&self, request: Embed) -> Result<(), Refusal> {
        let tenant = request.tenant.clone();
        self.send(&tenant, Command::Embed(Box::new(request)))
    }

    fn send(&self, tenant: &Arc<str>, command: Command) -> Result<(), Refusal> {
        if !self.shared.enter_queue(tenant, self.queue_max) {
            return Err(Refusal::Busy {
                retry_after: self.retry_after(),
            });
        }
        self.commands.send(command).map_err(|_| Refusal::Stopping)
    }

    /// When the queue will have moved on by one, as far as one can say.
    fn retry_after(&self) -> Duration {
        let figures = self.figures();
        let queue = u32::try_from(figures.waiting.max(1)).unwrap_or(u32::MAX);
        let estimate = figures.first_token_estimate(0).unwrap_or(RETRY_AFTER_MIN) / queue;
        estimate.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX)
    }

    /// How full it is, and what it counted.
    pub(crate) fn figures(&self) -> Figures {
        self.shared.figures(|figures| figures.clone())
    }

    /// What waits fails, what runs is finished. Returns at once.
    pub(crate) fn stop(&self) {
        let _ = self.commands.send(Command::Stop);
    }

    /// Whether the thread has ended, as it does after a stop, or because of a fault.
    pub(crate) fn ended(&self) -> bool {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }
}
