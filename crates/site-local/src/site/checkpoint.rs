//! Light sleep on disk: having frozen instances checkpointed, one at a time, and knowing how it went.
//!
//! The one design choice to know: an order only begins it. What comes of it is an observation, and what stands in its way
//! is kept with the instance until it runs again, so that whoever plans need not remember anything.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use tram_sandbox::protocol::{CheckpointSpec, Refusal};
use tram_site::Error;
use tram_types::{InstanceId, units::MIB};

use super::Shared;
use super::entries::{Asleep, Entry, Live, Up};
use crate::supervisor;

/// A checkpoint that would be one too many, of at most so many bytes.
struct NoRoom {
    why: String,
    bytes: u64,
}

impl Shared {
    /// Begins it, unless that has been done or the instance is not frozen.
    pub(super) fn begin_checkpoint(self: &Arc<Self>, id: InstanceId) -> Result<(), Error> {
        let Some(program) = self.config.checkpoint.clone() else {
            return Err(Error::Refused {
                message: "this machine cannot checkpoint instances: `tram doctor` says why".to_owned(),
            });
        };
        {
            let mut entries = self.lock();
            let Some(Live::Up(up)) = entries.get_mut(&id).map(|entry| &mut entry.live) else {
                return Err(Error::NoSuchInstance(id));
            };
            if !*up.frozen.borrow() || up.asleep != Asleep::Frozen {
                return Ok(());
            }
            up.asleep = Asleep::OnItsWay;
        }
        let spec = CheckpointSpec {
            program,
            // Where the data plane's connections come from, as an instance sees it.
            peers: vec![IpAddr::V4(self.network.gateway())],
        };
        let (shared, end) = (Arc::clone(self), self.end.clone());
        tokio::spawn(end.run_until_cancelled_owned(async move { shared.checkpoint(id, spec).await }));
        Ok(())
    }

    async fn checkpoint(self: &Arc<Self>, id: InstanceId, spec: CheckpointSpec) {
        // Closed only with the site, whose end cancels this task.
        let _permit = self.checkpoints.acquire().await;
        let on_its_way = |entry: &Entry| matches!(&entry.live, Live::Up(up) if up.asleep == Asleep::OnItsWay);
        let Ok(name) = super::wire_id(id) else { return };
        if !self.lock().get(&id).is_some_and(on_its_way) {
            return;
        }
        match self.room_for(id).await {
            Ok(None) => {}
            Ok(Some(NoRoom { why, bytes })) => {
                tracing::info!(instance = %id, reason = why, "an instance cannot be checkpointed");
                return self.asleep(id, Asleep::NoRoom { why, bytes });
            }
            // The order comes again.
            Err(error) => {
                tracing::warn!(instance = %id, error = crate::chain(&error), "an instance was not checkpointed");
                return self.asleep(id, Asleep::Frozen);
            }
        }
        let done = self
            .supervisor
            .call(move |client| client.checkpoint(&name, spec.clone()))
            .await;
        let now = match done {
            // What is left is page cache of files that nobody has open any more.
            Ok(()) => {
                self.reclaim(id);
                Asleep::Checkpointed
            }
            Err(supervisor::Error::Refused(Refusal::CannotCheckpoint { reason })) => {
                tracing::info!(instance = %id, reason, "an instance cannot be checkpointed");
                Asleep::Stuck(reason)
            }
            // It was woken, or is over: the news say so.
            Err(supervisor::Error::Refused(
                Refusal::Waking { .. }
                | Refusal::NotFrozen { .. }
                | Refusal::NotRunning { .. }
                | Refusal::UnknownInstance { .. },
            )) => Asleep::Frozen,
            Err(error @ supervisor::Error::Refused(_)) => {
                tracing::warn!(instance = %id, error = crate::chain(&error), "an instance was not checkpointed");
                Asleep::Stuck(error.to_string())
            }
            // The supervisor is away; the order comes again.
            Err(error) => {
                tracing::warn!(instance = %id, error = crate::chain(&error), "an instance was not checkpointed");
                Asleep::Frozen
            }
        };
        self.asleep(id, now);
    }

    /// Why the checkpoint of an instance would be one too many, if it would. Its size is not known before: it is not
    /// larger than the memory in use.
    async fn room_for(&self, id: InstanceId) -> Result<Option<NoRoom>, Error> {
        let Some(max) = self.config.checkpoints_max_bytes else {
            return Ok(None);
        };
        let taken: u64 = self.checkpoint_bytes().await?.values().sum();
        let wanted = self.call(id, |client, id| client.stats(id)).await?.memory_bytes;
        Ok((taken.saturating_add(wanted) > max).then(|| NoRoom {
            why: format!(
                "its {} MiB do not fit beside the {} MiB of other checkpoints: this installation keeps {} MiB for them \
                 (`checkpoints_max`)",
                wanted.div_ceil(MIB),
                taken.div_ceil(MIB),
                max / MIB
            ),
            bytes: wanted,
        }))
    }

    /// A checkpoint is no more: those that had no room beside it are tried again, as far as they fit now.
    pub(super) fn room_came(self: &Arc<Self>) {
        let Some(max) = self.config.checkpoints_max_bytes else {
            return;
        };
        let (shared, end) = (Arc::clone(self), self.end.clone());
        let look = async move {
            // Whoever cannot be asked now is asked when the next one goes.
            let Ok(sizes) = shared.checkpoint_bytes().await else {
                return;
            };
            let mut left = max.saturating_sub(sizes.values().sum());
            let fit: Vec<InstanceId> = {
                let entries = shared.lock();
                let waiting = entries.iter().filter_map(|(id, entry)| match &entry.live {
                    Live::Up(Up {
                        asleep: Asleep::NoRoom { bytes, .. },
                        ..
                    }) => Some((*id, *bytes)),
                    _ => None,
                });
                let fits = waiting.filter_map(|(id, bytes)| {
                    left = left.checked_sub(bytes)?;
                    Some(id)
                });
                fits.collect()
            };
            for id in fit {
                shared.asleep(id, Asleep::Frozen);
            }
        };
        self.tasks.spawn(end.run_until_cancelled_owned(look));
    }

    /// What the checkpoint of each instance on disk takes. Asked of the supervisor once for each: it stays as it is.
    pub(super) async fn checkpoint_bytes(&self) -> Result<HashMap<InstanceId, u64>, Error> {
        let on_disk = |entry: &Entry| match &entry.live {
            Live::Up(up) if *up.frozen.borrow() && up.asleep == Asleep::Checkpointed => {
                Some(up.checkpoint_bytes)
            }
            _ => None,
        };
        let known: Vec<(InstanceId, Option<u64>)> = {
            let entries = self.lock();
            let found = entries
                .iter()
                .filter_map(|(id, entry)| Some((*id, on_disk(entry)?)));
            found.collect()
        };
        let mut sizes = HashMap::with_capacity(known.len());
        for (id, bytes) in known {
            let bytes = match bytes {
                Some(bytes) => bytes,
                None => match self.call(id, |client, id| client.stats(id)).await {
                    Ok(stats) => stats.checkpoint_bytes,
                    // Over or awake by now.
                    Err(Error::NoSuchInstance(_) | Error::Refused { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            sizes.insert(id, bytes);
            if let Some(Live::Up(up)) = self.lock().get_mut(&id).map(|entry| &mut entry.live)
                && up.asleep == Asleep::Checkpointed
            {
                up.checkpoint_bytes = Some(bytes);
            }
        }
        Ok(sizes)
    }

    /// Takes in how deep an instance sleeps. One that runs meanwhile does not sleep at all.
    pub(super) fn asleep(&self, id: InstanceId, asleep: Asleep) {
        let mut entries = self.lock();
        let Some(Live::Up(up)) = entries.get_mut(&id).map(|entry| &mut entry.live) else {
            return;
        };
        if !*up.frozen.borrow() || up.asleep == asleep {
            return;
        }
        up.asleep = asleep;
        up.checkpoint_bytes = None;
        drop(entries);
        self.announce(id);
    }

    /// Has whoever plans look at everything that is frozen and could be on disk.
    pub(super) fn announce_frozen(&self) {
        let frozen: Vec<InstanceId> = {
            let entries = self.lock();
            let could = |entry: &Entry| matches!(&entry.live, Live::Up(up) if *up.frozen.borrow() && up.asleep == Asleep::Frozen);
            let frozen = entries.iter().filter(|(_, entry)| could(entry));
            frozen.map(|(id, _)| *id).collect()
        };
        for id in frozen {
            self.announce(id);
        }
    }
}
