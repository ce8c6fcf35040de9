//! How much instances write to the machine's disk.
//!
//! Used by the site's own task. An instance has a disk of its own, as large as its instance type says; when it is
//! full, the program is refused with "no space left on device", and the instance's log says why. On a machine that
//! cannot make such disks (`tram doctor` tells) what an instance writes goes to a directory of the machine's file
//! system; then the limit is measured and reported, not enforced.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tram_types::InstanceId;
use tram_types::units::MIB;

use crate::logs;

/// Between two looks: whoever finds a disk full looks into the log soon.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);
/// Where there is no disk to ask, a tree is walked; that costs disk accesses, so only at every so many looks.
const WALK_EVERY: u32 = 6;
/// Files looked at for one instance: bounds the time one with millions of files takes. What is counted by then is a
/// lower bound.
const FILES_MAX: usize = 200_000;
/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;
/// A disk with less free than this share of it is full: a program that writes in larger pieces fails already.
const FULL_SHARE: u64 = 100;
/// And with more free than this share it is not full any more.
const ROOM_SHARE: u64 = 20;

/// An instance to look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    pub(crate) id: InstanceId,
    pub(crate) pid: Option<i32>,
    pub(crate) limit_bytes: u64,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    /// A disk of its own.
    Disk { size_bytes: u64, free_bytes: u64 },
    /// A share of the machine's.
    Tree { used_bytes: u64 },
    /// Not looked at this time.
    Nothing,
}

/// Who was over the limit at the last look.
#[derive(Debug, Default)]
pub(crate) struct Over {
    told: HashSet<InstanceId>,
    looks: u32,
}

impl Over {
    /// Looks at one instance after the other; gives a sentence for each that is over its limit since now.
    pub(crate) async fn measure(
        &mut self,
        supervisor_dir: &Path,
        running: Vec<Running>,
    ) -> Vec<(InstanceId, String)> {
        let known: HashSet<InstanceId> = running.iter().map(|it| it.id).collect();
        self.told.retain(|id| known.contains(id));
        let walk = self.looks.is_multiple_of(WALK_EVERY);
        self.looks = self.looks.wrapping_add(1);
        let mut sentences = Vec::new();
        for instance in running {
            let directory = logs::instance_directory(supervisor_dir, instance.id).join("upper");
            let look = move || look(instance, &directory, walk);
            let Ok(seen) = tokio::task::spawn_blocking(look).await else {
                continue;
            };
            if let Some(sentence) = self.judge(instance, seen) {
                sentences.push((instance.id, sentence));
            }
        }
        sentences
    }

    fn judge(&mut self, instance: Running, seen: Seen) -> Option<String> {
        let limit = instance.limit_bytes / MIB;
        let (over, under) = match seen {
            Seen::Disk {
                size_bytes,
                free_bytes,
            } => (
                free_bytes < size_bytes / FULL_SHARE,
                free_bytes > size_bytes / ROOM_SHARE,
            ),
            Seen::Tree { used_bytes } => (
                used_bytes > instance.limit_bytes,
                used_bytes <= instance.limit_bytes,
            ),
            Seen::Nothing => return None,
        };
        if under {
            self.told.remove(&instance.id);
        }
        if !over || !self.told.insert(instance.id) {
            return None;
        }
        Some(match seen {
            Seen::Tree { used_bytes } => format!(
                "the instance has written {} MiB to its disk, more than the {limit} MiB of its instance type: remove \
                 files, or choose a larger type",
                used_bytes / MIB
            ),
            _ => format!(
                "the disk of the instance is full: its instance type has {limit} MiB, and writing more fails with \
                 \"no space left on device\"; remove files, or choose a larger type"
            ),
        })
    }
}

fn look(instance: Running, directory: &Path, walk: bool) -> Seen {
    // What the instance itself sees of its root.
    let root = instance.pid.map(|pid| format!("/proc/{pid}/root"));
    if let Some(Ok(disk)) = root.map(rustix::fs::statvfs) {
        let size_bytes = disk.f_blocks.saturating_mul(disk.f_frsize);
        // The machine's own file system is larger than what the instance was given.
        if size_bytes <= instance.limit_bytes {
            return Seen::Disk {
                size_bytes,
                free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            };
        }
    }
    if !walk {
        return Seen::Nothing;
    }
    Seen::Tree {
        used_bytes: used_bytes(directory, FILES_MAX),
    }
}

/// Bytes on disk below a directory. What vanishes meanwhile counts for nothing; links are not followed.
fn used_bytes(directory: &Path, files_max: usize) -> u64 {
    let mut waiting: Vec<PathBuf> = vec![directory.to_owned()];
    let (mut bytes, mut files) = (0_u64, 0_usize);
    while let Some(directory) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            files += 1;
            if files > files_max {
                return bytes;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(BLOCK_BYTES));
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Running {
        Running {
            id: InstanceId::random(),
            pid: None,
            limit_bytes: MIB,
        }
    }

    #[tokio::test]
    async fn who_goes_over_is_told_once_until_it_is_under_again() {
        let state = tempfile::tempdir().unwrap();
        let instance = running();
        let upper = logs::instance_directory(state.path(), instance.id).join("upper/var/data");
        fs::create_dir_all(&upper).unwrap();
        std::os::unix::fs::symlink("/", upper.join("root")).unwrap();
        let mut over = Over::default();
        let mut measured = async || {
            over.looks = 0;
            over.measure(state.path(), vec![instance]).await
        };
        assert!(measured().await.is_empty());
        fs::write(upper.join("big"), vec![1_u8; 3 << 20]).unwrap();
        let told = measured().await;
        assert!(
            told[0].1.starts_with("the instance has written 3 MiB"),
            "{told:?}"
        );
        assert!(measured().await.is_empty(), "not again");
        fs::remove_file(upper.join("big")).unwrap();
        assert!(measured().await.is_empty());
        fs::write(upper.join("big"), vec![1_u8; 3 << 20]).unwrap();
        assert_eq!(measured().await.len(), 1);
        assert!(used_bytes(state.path(), 2) < 3 << 20, "bounded");
    }

    #[test]
    fn a_full_disk_is_told_with_its_limit_and_again_after_there_was_room() {
        let instance = running();
        let mut over = Over::default();
        let disk = |free_bytes| Seen::Disk {
            size_bytes: 1000,
            free_bytes,
        };
        assert_eq!(over.judge(instance, disk(500)), None);
        let told = over.judge(instance, disk(0)).unwrap();
        assert!(told.contains("has 1 MiB"), "{told}");
        assert!(told.contains("no space left on device"), "{told}");
        assert_eq!(over.judge(instance, disk(0)), None, "not again");
        assert_eq!(over.judge(instance, disk(20)), None);
        assert_eq!(over.judge(instance, disk(0)), None, "hardly any room");
        assert_eq!(over.judge(instance, Seen::Nothing), None);
        assert_eq!(over.judge(instance, disk(100)), None);
        assert!(over.judge(instance, disk(9)).is_some());
    }
}
