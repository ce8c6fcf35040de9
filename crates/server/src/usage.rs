//! Counts what questions to models cost: from the journal of this machine's edge into the store.
//!
//! Where it reads on is what the store remembers, and the store remembers it together with the sums; see
//! [`tram_store::Store::add_usage`] and `tram_edge::usage`. So this process may be killed anywhere, and so may the edge.
//! What was counted is told to whoever listens ([`Counted`]) afterwards: budgets and metrics, which live in memory.
//!
//! Runs by clock alone. A look at a journal with nothing new is one directory that is listed.

use std::{fmt::Debug, io, path::Path, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tram_edge::usage::{Batch, Reader};
use tram_store::{Attributed, Store};
use tram_types::inference::JournalPosition;
use uuid::Uuid;

/// Between two looks: how late a budget hears what a question really cost.
const LOOK: Duration = Duration::from_millis(500);

/// Is told what was counted, once for each record that this process counted.
pub trait Counted: Send + Sync + Debug {
    /// These were counted.
    fn counted(&self, records: &[Attributed]);

    /// Held from before records are counted until this heard of them.
    fn counting(&self) -> Option<Arc<tokio::sync::Mutex<()>>> {
        None
    }

    /// So many lines of a journal cannot be read, and what they stood for is not counted.
    fn damaged(&self, _lines: u64) {}
}

impl Counted for tram_api::Budgets {
    fn counted(&self, records: &[Attributed]) {
        self.settle(records);
    }

    fn counting(&self) -> Option<Arc<tokio::sync::Mutex<()>>> {
        Some(Self::counting(self))
    }
}

/// Why nothing could be counted now.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read the journal of the edge")]
    Journal(#[from] io::Error),
    #[error("cannot keep what was counted")]
    Store(#[from] tram_store::Error),
    #[error("the reader of the journal was cut off")]
    CutOff(#[from] tokio::task::JoinError),
}

/// Counts until `stop`. `edge` is the edge's state directory.
pub async fn run(edge: &Path, store: Store, listeners: Vec<Arc<dyn Counted>>, stop: CancellationToken) {
    let counter = Counter {
        reader: Reader::new(edge),
        store,
        listeners,
    };
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reached = None;
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match counter.look(&mut reached).await {
            Ok(()) => failing = false,
            Err(error) => {
                // It may have been kept all the same: the store is asked where to go on.
                reached = None;
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %crate::chain(&error), "what questions cost is not counted now and will be later");
                }
            }
        }
    }
}

#[derive(Debug)]
struct Counter {
    reader: Reader,
    store: Store,
    listeners: Vec<Arc<dyn Counted>>,
}

impl Counter {
    /// Counts all that is there. `reached`: where the last look ended.
    async fn look(&self, reached: &mut Option<JournalPosition>) -> Result<(), Error> {
        let journals = self.blocking(Reader::journals).await?;
        for journal in journals {
            let mut from = match reached.filter(|reached| reached.journal == journal) {
                Some(reached) => reached,
                None => self.begin(journal).await?,
            };
            loop {
                let batch = self.blocking(move |reader| reader.read(from)).await?;
                let has_more = batch.has_more;
                let next = batch.next;
                if next != from {
                    self.count(batch, from).await?;
                    from = next;
                    self.blocking(move |reader| reader.forget(from)).await?;
                }
                *reached = Some(from);
                if !has_more {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Where to go on in a journal. What was counted before and is still there goes: who counted it may have been killed
    /// in between.
    async fn begin(&self, journal: Uuid) -> Result<JournalPosition, Error> {
        let position = self.store.usage_position(journal).await?;
        self.blocking(move |reader| reader.forget(position)).await?;
        Ok(position)
    }

    async fn count(&self, batch: Batch, from: JournalPosition) -> Result<(), Error> {
        let mut held = Vec::new();
        for counting in self.listeners.iter().filter_map(|listener| listener.counting()) {
            held.push(counting.lock_owned().await);
        }
        let attributed = self.store.add_usage(batch.records, from, batch.next).await?;
        if batch.damaged > 0 {
            tracing::error!(
                journal = %from.journal,
                segment = from.segment,
                lines = batch.damaged,
                "lines of the journal of what questions cost cannot be read: they are not counted"
            );
        }
        for listener in &self.listeners {
            listener.counted(&attributed);
            listener.damaged(batch.damaged);
        }
        drop(held);
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Reader) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let reader = self.reader.clone();
        Ok(tokio::task::spawn_blocking(move || act(&reader)).await??)
    }
}
