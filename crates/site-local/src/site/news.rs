//! What the supervisor tells, and what follows from it.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio::time::Instant;
use tram_sandbox::protocol::{self as wire, Event, InstanceInfo, InstanceState};
use tram_site::{EndCause, Error};
use tram_types::{Clock, InstanceId, SystemClock};

use super::Shared;
use super::entries::{Asleep, Live};
use crate::end;
use crate::launch::{SITE_LABEL, SITE_NAME};
use crate::record::End;
use crate::supervisor::News;

/// Listens until the site or the line is gone.
pub(super) async fn listen(shared: Weak<Shared>, mut news: mpsc::Receiver<News>) {
    while let Some(news) = news.recv().await {
        let Some(shared) = shared.upgrade() else { return };
        match news {
            News::Present { instances, asked_at } => reconcile(&shared, &instances, asked_at),
            News::Event(event) => apply(&shared, event),
        }
    }
}

/// When the line is there, at first or again: everything that may have happened meanwhile.
pub(super) fn reconcile(shared: &Arc<Shared>, instances: &[InstanceInfo], asked_at: Instant) {
    let present: HashSet<InstanceId> = instances
        .iter()
        .filter_map(|info| instance_id(&info.id))
        .collect();
    let lost: Vec<InstanceId> = shared
        .lock()
        .iter()
        .filter(|(id, entry)| {
            matches!(&entry.live, Live::Up(up) if up.known_since < asked_at) && !present.contains(id)
        })
        .map(|(id, _)| *id)
        .collect();
    for id in lost {
        let stop_ordered = shared
            .lock()
            .get(&id)
            .is_some_and(|entry| entry.record.stop_ordered);
        let cause = if stop_ordered {
            EndCause::Stopped
        } else {
            EndCause::Interrupted
        };
        shared.finish(
            id,
            End {
                cause,
                at: SystemClock.now(),
            },
        );
    }
    for info in instances {
        let Some(id) = instance_id(&info.id) else { continue };
        match &info.state {
            InstanceState::Exited { exit } => shared.exited(id, exit),
            // It was launched by a start that this site had given up.
            InstanceState::Running { .. } | InstanceState::Frozen { .. } | InstanceState::Checkpointed
                if is_over(shared, id) =>
            {
                remove(shared, info.id.clone());
            }
            InstanceState::Running { pid } => {
                go_on(shared, id, false);
                shared.runs_as(id, Some(*pid));
            }
            InstanceState::Frozen { .. } => {
                go_on(shared, id, true);
                shared.is_frozen(id);
            }
            InstanceState::Checkpointed => {
                go_on(shared, id, true);
                shared.asleep(id, Asleep::Checkpointed);
            }
            InstanceState::Starting => {}
        }
    }
    remove_unknown(shared, instances);
}

/// It runs. A stop that is on record was lost with the line, or it would not.
fn go_on(shared: &Arc<Shared>, id: InstanceId, frozen: bool) {
    shared.frozen(id, frozen);
    let stop_ordered = shared
        .lock()
        .get(&id)
        .is_some_and(|entry| entry.record.stop_ordered && matches!(entry.live, Live::Up(_)));
    if stop_ordered {
        shared.resend_stop(id);
    }
}

fn apply(shared: &Arc<Shared>, event: Event) {
    match event {
        // The start that asked for it is told by its answer; one that nobody waits for any more is not wanted.
        Event::Started { id, .. } => {
            if let Some(known) = instance_id(&id)
                && is_over(shared, known)
            {
                remove(shared, id);
            }
        }
        Event::Exited { id, exit, .. } => {
            let Some(known) = instance_id(&id) else { return };
            if shared.lock().contains_key(&known) {
                shared.exited(known, &exit);
            } else {
                remove(shared, id);
            }
        }
        Event::Oom { id, kills } => {
            tracing::info!(instance = %id, kills, "the memory limit of an instance ended a process");
            let Some(id) = instance_id(&id) else { return };
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let line = "a process was ended because the instance reached its memory limit";
                shared.write_lines(id, vec![line.to_owned()]).await;
            });
        }
        Event::Frozen { id } => {
            if let Some(id) = instance_id(&id) {
                shared.frozen(id, true);
            }
        }
        Event::Thawed { id, pid } => {
            if let Some(id) = instance_id(&id) {
                shared.runs_as(id, pid);
                shared.frozen(id, false);
            }
        }
        Event::Checkpointed { id } => {
            if let Some(id) = instance_id(&id) {
                shared.frozen(id, true);
                shared.runs_as(id, None);
                shared.asleep(id, Asleep::Checkpointed);
            }
        }
    }
}

/// Ends and removes instances of ours that no record speaks of.
fn remove_unknown(shared: &Arc<Shared>, instances: &[InstanceInfo]) {
    for info in instances {
        let ours = info.labels.get(SITE_LABEL).is_some_and(|site| site == SITE_NAME);
        let known = instance_id(&info.id).is_some_and(|id| shared.lock().contains_key(&id));
        if !ours || known {
            continue;
        }
        tracing::warn!(instance = %info.id, "removing an instance that no record speaks of");
        remove(shared, info.id.clone());
    }
}

/// Kills what a start that was given up may have launched all the same. What it wrote stays until it is forgotten.
pub(super) async fn end_given_up(shared: &Shared, id: InstanceId) {
    match shared.call(id, |client, name| client.kill(name)).await {
        // Not running is what is wanted.
        Ok(()) | Err(Error::NoSuchInstance(_)) => {}
        // The list that comes with the next connection shows it.
        Err(error) => {
            tracing::warn!(instance = %id, error = crate::chain(&error), "cannot end an instance that was given up");
        }
    }
}

/// Kills it if it runs (its end brings us here again) and removes it if it ended.
fn remove(shared: &Arc<Shared>, id: wire::InstanceId) {
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let name = id.clone();
        let removed = shared
            .supervisor
            .call(move |client| {
                // Not running is what is wanted.
                let _killed_or_ended = client.kill(&name);
                match client.remove(&name) {
                    Err(tram_sandbox::client::Error::Refused(wire::Refusal::NotEnded { .. })) => Ok(()),
                    other => other,
                }
            })
            .await;
        if let Err(error) = removed {
            tracing::warn!(instance = %id, error = crate::chain(&error), "cannot remove a leftover instance");
        }
    });
}

fn is_over(shared: &Shared, id: InstanceId) -> bool {
    shared
        .lock()
        .get(&id)
        .is_some_and(|entry| matches!(entry.live, Live::Over))
}

fn instance_id(id: &wire::InstanceId) -> Option<InstanceId> {
    id.as_str().parse().ok()
}

impl Shared {
    /// The supervisor saw it end.
    pub(super) fn exited(self: &Arc<Self>, id: InstanceId, exit: &wire::ExitRecord) {
        let end = {
            let entries = self.lock();
            let Some(entry) = entries.get(&id) else { return };
            end::end(&entry.record, exit)
        };
        self.finish(id, end);
    }

    /// Its first process is this one now: a restore makes new ones.
    fn runs_as(&self, id: InstanceId, pid: Option<i32>) {
        if let Some(Live::Up(up)) = self.lock().get(&id).map(|entry| &entry.live) {
            up.pid
                .send_if_modified(|known| std::mem::replace(known, pid) != pid);
        }
    }

    /// It has its memory, and what was begun with an earlier supervisor has come to nothing.
    fn is_frozen(&self, id: InstanceId) {
        let entries = self.lock();
        let known = entries.get(&id).map(|entry| &entry.live);
        let believed = matches!(known, Some(Live::Up(up)) if up.asleep == Asleep::Checkpointed);
        drop(entries);
        if believed {
            self.asleep(id, Asleep::Frozen);
        }
    }

    /// It was frozen or thawed, by us or before we knew it.
    pub(super) fn frozen(self: &Arc<Self>, id: InstanceId, frozen: bool) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&id) else { return };
        let Live::Up(up) = &mut entry.live else { return };
        let mut left_disk = false;
        if !frozen {
            // The next sleep begins anew, and what stood in the way of the last one may be gone.
            left_disk = std::mem::take(&mut up.asleep) == Asleep::Checkpointed;
        }
        if up.frozen.send_replace(frozen) == frozen {
            return;
        }
        self.refresh_name(entry);
        drop(entries);
        if left_disk {
            self.room_came();
        }
        self.announce(id);
    }
}
