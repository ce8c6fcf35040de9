//! Waking a reconciler by what the store announces.

use std::sync::Arc;

use tokio::sync::{
    Notify,
    broadcast::{Receiver, error::RecvError},
};
use tokio_util::sync::CancellationToken;
use tram_store::Change;

/// Signals each change that `concerns` the reconciler, and each time that some were missed, until `cancel`.
pub(crate) async fn follow_store(
    mut changes: Receiver<Change>,
    signal: Arc<Notify>,
    cancel: CancellationToken,
    concerns: fn(&Change) -> bool,
) {
    loop {
        let change = tokio::select! {
            () = cancel.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            Ok(change) if !concerns(&change) => {}
            Ok(_) | Err(RecvError::Lagged(_)) => signal.notify_one(),
            Err(RecvError::Closed) => return,
        }
    }
}
