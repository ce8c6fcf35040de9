//! Room for snapshots: who takes one holds what it will write before it writes it.
//!
//! Called by `instance_snapshots`. The one design choice to know: room is spoken for only where nothing was given back since
//! the disk was looked at, so that several that are taken at once, each of which would fit alone, do not fill it together.
//! One that fits once the others are done waits for them, which ends when they do; one that does not fit even alone is
//! refused at once. What is being written counts twice meanwhile, as spoken for and as gone from what is free, so some wait
//! that need not, and none is let in that must not.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tram_site::Error;
use tram_types::units::MIB;

use crate::config::SnapshotSpace;

/// Left free on the machine's disk beside snapshots, for logs, images and whatever else is on it.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What one snapshot takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Need {
    /// Of what is free on the disk, in bytes.
    pub(super) written: u64,
    /// Of what snapshots may take, in bytes: blocks that are shared with others too.
    pub(super) counted: u64,
}

/// What is spoken for.
#[derive(Debug, Default)]
pub(super) struct Room {
    held: Mutex<Held>,
    given_back: Notify,
}

#[derive(Debug, Default)]
struct Held {
    all: Need,
    /// How often any of it was given back.
    times: u64,
}

/// Room that is spoken for, until this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    need: Need,
}

/// What the disk looks like, in bytes.
#[derive(Debug, Clone, Copy)]
struct Disk {
    free: u64,
    /// What snapshots take already.
    used: u64,
    /// What they may take.
    max: Option<u64>,
}

/// Whether there is room.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Now,
    /// Once others are done.
    Later,
    /// The words are for the owner.
    Never(String),
}

impl Room {
    /// Speaks for what a snapshot needs in this directory, which waits for others where all do not fit together.
    ///
    /// # Errors
    /// [`Error::Refused`] when it does not fit even alone, [`Error::Unavailable`] when the disk cannot be looked at.
    pub(super) async fn hold(
        self: &Arc<Self>,
        directory: &Path,
        space: SnapshotSpace,
        need: Need,
    ) -> Result<Place, Error> {
        loop {
            let given_back = self.given_back.notified();
            let mut given_back = std::pin::pin!(given_back);
            // Before the look: what is given back after it is not missed.
            given_back.as_mut().enable();
            let (room, directory) = (Arc::clone(self), directory.to_owned());
            let tried = tokio::task::spawn_blocking(move || room.try_hold(&directory, space, need));
            let tried = tried.await.map_err(io::Error::other).and_then(|tried| tried);
            match tried.map_err(|error| Error::unavailable("cannot see what room there is", error))? {
                Answer::Now => {
                    let room = Arc::clone(self);
                    return Ok(Place { room, need });
                }
                Answer::Later => given_back.await,
                Answer::Never(message) => return Err(Error::Refused { message }),
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Speaks for it if there is room now.
    fn try_hold(&self, directory: &Path, space: SnapshotSpace, need: Need) -> io::Result<Answer> {
        loop {
            let times = self.held().times;
            let disk = rustix::fs::statvfs(directory)?;
            let max = space.bytes(disk.f_blocks.saturating_mul(disk.f_frsize));
            let disk = Disk {
                free: disk.f_bavail.saturating_mul(disk.f_frsize),
                // Nobody asks how much that is where there is no bound. Not under the lock: it looks at each file.
                used: max.map_or(Ok(0), |_| used(directory))?,
                max,
            };
            let mut held = self.held();
            if held.times != times {
                // What was written by whoever gave it back may be missing in both.
                continue;
            }
            let answer = answer(need, held.all, disk);
            if answer == Answer::Now {
                held.all.written = held.all.written.saturating_add(need.written);
                held.all.counted = held.all.counted.saturating_add(need.counted);
            }
            return Ok(answer);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.room.held();
        held.all.written = held.all.written.saturating_sub(self.need.written);
        held.all.counted = held.all.counted.saturating_sub(self.need.counted);
        held.times = held.times.wrapping_add(1);
        drop(held);
        self.room.given_back.notify_waiters();
    }
}

fn answer(need: Need, held: Need, disk: Disk) -> Answer {
    let free_after = |held: Need| disk.free.checked_sub(held.written.saturating_add(need.written));
    let is_free = |held: Need| free_after(held).is_some_and(|left| left >= FREE_BYTES_MIN);
    let may = |held: Need| {
        let all = disk
            .used
            .saturating_add(held.counted)
            .saturating_add(need.counted);
        disk.max.is_none_or(|max| all <= max)
    };
    let mib = |bytes: u64| bytes.div_ceil(MIB);
    if is_free(held) && may(held) {
        return Answer::Now;
    }
    let alone = Need::default();
    match disk.max {
        Some(max) if !may(alone) => Answer::Never(format!(
            "it takes some {} MiB, and the snapshots of this machine take {} of the {} MiB that all of them may \
             (`snapshot_space_total_max`): remove some, or ask who runs this machine for more room",
            mib(need.counted),
            mib(disk.used),
            max / MIB
        )),
        _ if !is_free(alone) => Answer::Never(format!(
            "the machine has no room for the snapshot: it takes some {} MiB, and {} MiB are free, of which {} MiB stay \
             so: remove others, or free space on its disk",
            mib(need.written),
            disk.free / MIB,
            FREE_BYTES_MIN / MIB
        )),
        _ => Answer::Later,
    }
}

/// What all snapshots take, in bytes: each is a few files and at most one directory of files.
fn used(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += match entry.file_type() {
            Ok(kind) if kind.is_dir() => used(&entry.path()),
            // In blocks of 512 bytes, whatever the file system's own are. Neither way a link is followed.
            _ => entry.metadata().map(|file| file.blocks() * 512),
        }
        .or_else(|error| match error.kind() {
            // Removed meanwhile.
            io::ErrorKind::NotFound => Ok(0),
            _ => Err(error),
        })?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn need(bytes: u64) -> Need {
        Need {
            written: bytes,
            counted: bytes,
        }
    }

    fn disk(free: u64, used: u64, max: Option<u64>) -> Disk {
        Disk { free, used, max }
    }

    #[test]
    fn two_that_fit_alone_and_not_together_are_taken_one_after_the_other() {
        let roomy = disk(5 * GIB, 0, None);
        assert_eq!(answer(need(2 * GIB), need(0), roomy), Answer::Now);
        assert_eq!(answer(need(2 * GIB), need(2 * GIB), roomy), Answer::Now);
        assert_eq!(answer(need(2 * GIB), need(3 * GIB), roomy), Answer::Later);
        let bounded = disk(100 * GIB, 4 * GIB, Some(8 * GIB));
        assert_eq!(answer(need(2 * GIB), need(2 * GIB), bounded), Answer::Now);
        assert_eq!(answer(need(2 * GIB), need(3 * GIB), bounded), Answer::Later);
    }

    #[test]
    fn what_does_not_fit_even_alone_is_refused_with_what_to_do() {
        let says = |answer: Answer, words: &[&str]| match answer {
            Answer::Never(message) => {
                for word in words {
                    assert!(message.contains(word), "{message}");
                }
            }
            other => panic!("{other:?}"),
        };
        says(
            answer(need(2 * GIB), need(0), disk(2 * GIB, 0, None)),
            &[
                "some 2048 MiB",
                "2048 MiB are free",
                "1024 MiB stay so",
                "free space",
            ],
        );
        says(
            answer(need(GIB), need(GIB), disk(100 * GIB, 8 * GIB, Some(8 * GIB))),
            &[
                "8192 of the 8192 MiB",
                "`snapshot_space_total_max`",
                "remove some",
            ],
        );
    }

    #[test]
    fn shared_blocks_count_for_the_bound_and_not_for_the_disk() {
        let shared = Need {
            written: 0,
            counted: 4 * GIB,
        };
        assert_eq!(answer(shared, need(0), disk(2 * GIB, 0, None)), Answer::Now);
        let bounded = disk(2 * GIB, 0, Some(GIB));
        assert!(matches!(answer(shared, need(0), bounded), Answer::Never(_)));
    }

    #[test]
    fn all_that_lies_there_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(used(directory.path()).unwrap(), 0);
        fs::write(directory.path().join("disk"), vec![7; 1 << 20]).unwrap();
        fs::create_dir(directory.path().join("one.memory.new")).unwrap();
        fs::write(directory.path().join("one.memory.new/pages"), vec![7; 2 << 20]).unwrap();
        let found = used(directory.path()).unwrap();
        assert!((3 << 20..4 << 20).contains(&found), "{found}");
    }

    /// Eight at once, of which two fit at a time: never more than two hold room, and all get it in the end.
    #[tokio::test(flavor = "multi_thread")]
    async fn those_that_wait_get_room_when_others_give_theirs_back() {
        let directory = tempfile::tempdir().unwrap();
        let room = Arc::new(Room::default());
        let (holding, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (room, path) = (Arc::clone(&room), directory.path().to_owned());
            let (holding, most) = (Arc::clone(&holding), Arc::clone(&most));
            all.spawn(async move {
                let counted = Need {
                    written: 0,
                    counted: 2 * MIB,
                };
                let place = room
                    .hold(&path, SnapshotSpace::Bytes(5 * MIB), counted)
                    .await
                    .unwrap();
                most.fetch_max(holding.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                holding.fetch_sub(1, Ordering::SeqCst);
                drop(place);
            });
        }
        let all = tokio::time::timeout(std::time::Duration::from_secs(20), all.join_all());
        all.await.expect("everyone gets room");
        assert!((1..=2).contains(&most.load(Ordering::SeqCst)));
        assert_eq!(room.held().all, Need::default());
    }
}
