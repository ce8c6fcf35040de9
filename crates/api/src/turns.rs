//! One change at a time for the services of an app.
//!
//! A change is checked against the app's other services and laid over the newest definition before it is recorded.
//! Between reading and recording nobody else may record, or of two changes the second would take the first one back,
//! or two services would claim one path. Whoever changes services takes the app's turn first and reads afterwards.
//!
//! The one design choice to know: a queue lives as long as somebody holds or waits for its turn. So there are never
//! more queues than calls under way, whatever apps those name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;
use tram_types::AppId;

type Queue = tokio::sync::Mutex<()>;

/// The queues of all apps.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<AppId, Weak<Queue>>>);

impl Turns {
    /// Waits for the app's turn, which lasts until what is given here is dropped. Take one at a time.
    pub(crate) async fn of(&self, app: AppId) -> OwnedMutexGuard<()> {
        self.queue(app).lock_owned().await
    }

    fn queue(&self, app: AppId) -> Arc<Queue> {
        let mut queues = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| queue.strong_count() > 0);
        if let Some(queue) = queues.get(&app).and_then(Weak::upgrade) {
            return queue;
        }
        let queue = Arc::<Queue>::default();
        queues.insert(app, Arc::downgrade(&queue));
        queue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_app_waits_for_itself_alone_and_leaves_nothing_behind() {
        let turns = Turns::default();
        let (one, other) = (AppId::random(), AppId::random());
        let first = turns.of(one).await;
        let mut second = std::pin::pin!(turns.of(one));
        tokio::select! {
            biased;
            _turn = &mut second => panic!("two had the turn"),
            () = std::future::ready(()) => {}
        }
        let beside = turns.of(other).await;
        drop(first);
        drop(second.await);
        let again = turns.of(one).await;
        assert_eq!(turns.0.lock().unwrap().len(), 2);
        drop((beside, again));
        drop(turns.of(AppId::random()).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
