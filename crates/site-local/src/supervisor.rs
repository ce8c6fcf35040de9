//! The line to the supervisor: its blocking client for tokio, and its news.
//!
//! Used by everything here that touches a process. Owns the thread that watches and the bound on calls under way.
//!
//! The one design choice to know: losing the supervisor says nothing about the instances, which have parents of
//! their own. Orders wait a bounded time for it to come back and then answer "not now"; after every reconnection
//! the whole list is news, so nothing that happened meanwhile is missed.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tram_sandbox::client::{self, Client};
use tram_sandbox::protocol::{Event, InstanceInfo, Refusal};

/// Calls under way: each holds a thread, and the supervisor does one thing at a time anyway.
const CALLS_MAX: usize = 16;
/// News that wait for the site: it reads fast, and the watcher waits when it does not.
const NEWS_MAX: usize = 1024;
/// How soon the watching thread notices that the site is gone.
const WATCH_STEP: Duration = Duration::from_millis(250);
/// Between attempts to reach a supervisor that is being restarted.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// What the supervisor has to say.
#[derive(Debug)]
pub(crate) enum News {
    /// Everything it has; asked for at `asked_at`, so what was launched later may be missing.
    Present {
        instances: Vec<InstanceInfo>,
        asked_at: Instant,
    },
    /// One thing changed.
    Event(Event),
}

/// Why the supervisor did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the supervisor of instances cannot be reached; it is being restarted")]
    Unreachable(#[source] client::Error),
    #[error("the supervisor of instances did not carry an order out")]
    Call(#[source] client::Error),
    #[error("the supervisor of instances refused: {0}")]
    Refused(Refusal),
    #[error("the site is being closed")]
    Closed,
}

/// The line. Dropping it ends the watching thread.
#[derive(Debug)]
pub(crate) struct Supervisor {
    client: Client,
    permits: Arc<Semaphore>,
    connected: watch::Receiver<bool>,
    patience: Duration,
    /// Dropped last: the thread ends when it notices.
    _stop: blocking::Sender<()>,
}

impl Supervisor {
    /// Begins to watch. The first news is everything there is.
    pub(crate) fn start(
        directory: &Path,
        patience: Duration,
    ) -> std::io::Result<(Self, mpsc::Receiver<News>)> {
        let client = Client::new(directory);
        let (news, received) = mpsc::channel(NEWS_MAX);
        let (connected, see_connected) = watch::channel(false);
        let (stop, stopped) = blocking::channel();
        let watching = client.clone();
        std::thread::Builder::new()
            .name("supervisor-watch".to_owned())
            .spawn(move || run(&watching, &news, &connected, &stopped))?;
        let supervisor = Self {
            client,
            permits: Arc::new(Semaphore::new(CALLS_MAX)),
            connected: see_connected,
            patience,
            _stop: stop,
        };
        Ok((supervisor, received))
    }

    /// Whether the news are current; waits a while for a supervisor that is being restarted.
    pub(crate) async fn connected(&self) -> bool {
        let mut connected = self.connected.clone();
        let wait = connected.wait_for(|connected| *connected);
        matches!(tokio::time::timeout(self.patience, wait).await, Ok(Ok(_)))
    }

    /// Asks. Tried again while nobody listens, for as long as patience lasts; an order that may have arrived is not
    /// repeated.
    pub(crate) async fn call<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Fn(&Client) -> Result<T, client::Error> + Send + Sync + 'static,
    {
        let _permit = self.permits.acquire().await.map_err(|_| Error::Closed)?;
        let deadline = Instant::now() + self.patience;
        let work = Arc::new(work);
        loop {
            let (client, attempt) = (self.client.clone(), Arc::clone(&work));
            let result = tokio::task::spawn_blocking(move || attempt(&client))
                .await
                .map_err(|_| Error::Closed)?;
            return match result {
                Ok(value) => Ok(value),
                Err(client::Error::Refused(refusal)) => Err(Error::Refused(refusal)),
                Err(error @ client::Error::Connect { .. }) => {
                    if Instant::now() < deadline {
                        tokio::time::sleep(RECONNECT_PAUSE).await;
                        continue;
                    }
                    Err(Error::Unreachable(error))
                }
                Err(error) => Err(Error::Call(error)),
            };
        }
    }
}

/// The watching thread: connect, tell everything, tell what changes; again when the connection breaks.
fn run(
    client: &Client,
    news: &mpsc::Sender<News>,
    connected: &watch::Sender<bool>,
    stopped: &blocking::Receiver<()>,
) {
    let mut reported = false;
    loop {
        match follow(client, news, connected, stopped) {
            Ok(()) => return,
            Err(error) => {
                if connected.send_replace(false) || !reported {
                    tracing::warn!(
                        error = crate::chain(&error),
                        "no line to the supervisor of instances"
                    );
                    reported = true;
                }
            }
        }
        match stopped.recv_timeout(RECONNECT_PAUSE) {
            Err(blocking::RecvTimeoutError::Timeout) => {}
            _ => return,
        }
    }
}

/// Returns `Ok` when the site is gone.
fn follow(
    client: &Client,
    news: &mpsc::Sender<News>,
    connected: &watch::Sender<bool>,
    stopped: &blocking::Receiver<()>,
) -> Result<(), client::Error> {
    let mut watch = client.watch()?;
    let asked_at = Instant::now();
    let instances = client.list()?;
    if news.blocking_send(News::Present { instances, asked_at }).is_err() {
        return Ok(());
    }
    connected.send_replace(true);
    loop {
        if let Some(event) = watch.next(WATCH_STEP)?
            && news.blocking_send(News::Event(event)).is_err()
        {
            return Ok(());
        }
        if !matches!(stopped.try_recv(), Err(blocking::TryRecvError::Empty)) {
            return Ok(());
        }
    }
}
