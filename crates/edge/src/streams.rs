//! What one HTTP/2 connection has open: when it is idle, and when a client takes nothing of an answer.
//!
//! HTTP/1.1 needs neither: hyper bounds the wait for a head, and a client that does not read stops the whole
//! connection, which the kernel ends. An HTTP/2 client can answer pings for ever without a request, or leave one
//! stream's window closed. `accept.rs` uses both halves. The choice to know: hyper runs each stream as a task of its own
//! and asks the body for a frame only when the last one is on its way, so whether a stream waits for its client can be
//! seen from outside, by whether the body was asked.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::time::{Instant, Sleep};

/// How long a client may leave an answer untouched that waits for it. Between two looks at its body hyper passes on what
/// it had buffered, some hundred KiB: at 3 KiB/s that takes half of this. An answer whose instance is silent does not wait
/// for its client.
const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// The streams of one connection.
#[derive(Debug)]
pub(crate) struct Streams {
    opened: Instant,
    open: AtomicU32,
    any: AtomicBool,
    /// When the last one ended, in milliseconds after `opened`.
    idle_since_ms: AtomicU64,
}

impl Streams {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            opened: Instant::now(),
            open: AtomicU32::new(0),
            any: AtomicBool::new(false),
            idle_since_ms: AtomicU64::new(0),
        })
    }

    /// Counts a stream until the place is dropped.
    pub(crate) fn place(self: &Arc<Self>) -> Place {
        self.open.fetch_add(1, Relaxed);
        self.any.store(true, Relaxed);
        Place(Arc::clone(self))
    }

    /// Whether there was a request yet.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Relaxed)
    }

    /// Ends when nothing has been open for `limit`.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let until = if self.open.load(Relaxed) > 0 {
                Instant::now() + limit
            } else {
                self.opened + Duration::from_millis(self.idle_since_ms.load(Relaxed)) + limit
            };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct Place(Arc<Streams>);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Relaxed) == 1 {
            let ms = self.0.opened.elapsed().as_millis();
            self.0
                .idle_since_ms
                .store(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
        }
    }
}

/// What a stream's task did with its answer's body when it was run last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// There is none yet, or it does not stream.
    Absent,
    /// It was not asked: the client must take the last frame first.
    Untouched,
    /// It gave a frame, which the client must take now.
    Gave,
    /// It waits for its instance.
    Waits,
}

thread_local! {
    /// Of the task that runs now.
    static BODY: Cell<Body> = const { Cell::new(Body::Absent) };
}

/// An answer begins to stream.
pub(crate) fn body_begins() {
    BODY.set(Body::Gave);
}

/// A streaming body was asked for a frame.
pub(crate) fn body_asked(gave: bool) {
    BODY.set(if gave { Body::Gave } else { Body::Waits });
}

/// Runs each stream as a task that ends when its client takes nothing for [`STALL_TIMEOUT`], which resets the stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Impatient;

impl<F> Executor<F> for Impatient
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(async move {
            let mut stream = pin!(stream);
            let mut watch = Watch::default();
            poll_fn(|cx| watch.run(stream.as_mut(), cx)).await;
        });
    }
}

#[derive(Default)]
struct Watch {
    streams_body: bool,
    /// Set only while the stream waits for its client.
    give_up: Option<Pin<Box<Sleep>>>,
}

impl Watch {
    fn run<F: Future>(&mut self, stream: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<()> {
        BODY.set(if self.streams_body {
            Body::Untouched
        } else {
            Body::Absent
        });
        if stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let body = BODY.replace(Body::Absent);
        self.streams_body |= body != Body::Absent;
        match (body, &mut self.give_up) {
            (Body::Absent | Body::Waits, _) => self.give_up = None,
            (Body::Gave, Some(give_up)) => give_up.as_mut().reset(Instant::now() + STALL_TIMEOUT),
            (Body::Untouched, Some(_)) => {}
            (Body::Gave | Body::Untouched, None) => {
                self.give_up = Some(Box::pin(tokio::time::sleep(STALL_TIMEOUT)));
            }
        }
        match &mut self.give_up {
            Some(give_up) => give_up.as_mut().poll(cx).map(|()| {
                tracing::debug!("a client took nothing of an answer for too long; its stream is reset");
            }),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a stream's task goes on for long that does `step` whenever it runs.
    async fn lives(step: fn(u32)) -> bool {
        let (sender, ended) = tokio::sync::oneshot::channel::<()>();
        let mut runs = 0;
        Impatient.execute(async move {
            let _ended = sender;
            let mut tick = tokio::time::interval(STALL_TIMEOUT / 3);
            poll_fn(|cx| {
                runs += 1;
                step(runs);
                while tick.poll_tick(cx).is_ready() {}
                Poll::<()>::Pending
            })
            .await;
        });
        tokio::time::timeout(STALL_TIMEOUT * 20, ended).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_takes_nothing_ends_its_stream() {
        let begins = |run: u32| {
            if run == 1 {
                body_begins();
            }
        };
        assert!(!lives(begins).await, "the client takes nothing at all");
        assert!(lives(|_| {}).await, "no answer yet");
        assert!(lives(|_| body_asked(false)).await, "the instance is silent");
        assert!(
            lives(|_| body_asked(true)).await,
            "the client takes frame by frame"
        );
        let stops = |run: u32| {
            if run < 9 {
                body_asked(true);
            }
        };
        assert!(!lives(stops).await, "the client stops taking");
    }
}
