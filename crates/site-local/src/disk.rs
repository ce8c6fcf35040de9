//! How much instances write to the machine's disk.
//!
//! Used by the site's own task. What an instance writes goes to a directory of the machine's file system, on which
//! no quota can be put in general (it takes project quotas, which many kernels and file systems lack), so the limit
//! of the instance type is measured and reported, not enforced: whoever goes over it is told in the instance's log.
//! The memory an instance may use is a hard limit; its disk is not, and the documentation says so.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tram_types::InstanceId;
use tram_types::units::MIB;

use crate::logs;

/// Between two measurements: walking a tree costs disk accesses, and a disk fills in minutes, not seconds.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
/// Files looked at for one instance: bounds the time one with millions of files takes. What is counted by then is a
/// lower bound.
const FILES_MAX: usize = 200_000;
/// The unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Who was over the limit at the last measurement.
#[derive(Debug, Default)]
pub(crate) struct Over {
    told: HashSet<InstanceId>,
}

impl Over {
    /// Measures one instance after the other; gives a sentence for each that is over its limit since now.
    pub(crate) async fn measure(
        &mut self,
        supervisor_dir: &Path,
        running: Vec<(InstanceId, u64)>,
    ) -> Vec<(InstanceId, String)> {
        let known: HashSet<InstanceId> = running.iter().map(|(id, _)| *id).collect();
        self.told.retain(|id| known.contains(id));
        let mut sentences = Vec::new();
        for (id, limit) in running {
            let directory = logs::instance_directory(supervisor_dir, id).join("upper");
            let Ok(used) = tokio::task::spawn_blocking(move || used_bytes(&directory, FILES_MAX)).await
            else {
                continue;
            };
            if used <= limit {
                self.told.remove(&id);
            } else if self.told.insert(id) {
                let (used, limit) = (used / MIB, limit / MIB);
                sentences.push((
                    id,
                    format!(
                        "the instance has written {used} MiB to its disk, more than the {limit} MiB of its \
                         instance type: remove files, or choose a larger type"
                    ),
                ));
            }
        }
        sentences
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

    #[tokio::test]
    async fn who_goes_over_is_told_once_until_it_is_under_again() {
        let state = tempfile::tempdir().unwrap();
        let id = InstanceId::random();
        let upper = logs::instance_directory(state.path(), id).join("upper/var/data");
        fs::create_dir_all(&upper).unwrap();
        std::os::unix::fs::symlink("/", upper.join("root")).unwrap();
        let mut over = Over::default();
        let running = || vec![(id, MIB)];
        assert!(over.measure(state.path(), running()).await.is_empty());
        fs::write(upper.join("big"), vec![1_u8; 3 << 20]).unwrap();
        let told = over.measure(state.path(), running()).await;
        assert!(
            told[0].1.starts_with("the instance has written 3 MiB"),
            "{told:?}"
        );
        assert!(
            over.measure(state.path(), running()).await.is_empty(),
            "not again"
        );
        fs::remove_file(upper.join("big")).unwrap();
        assert!(over.measure(state.path(), running()).await.is_empty());
        fs::write(upper.join("big"), vec![1_u8; 3 << 20]).unwrap();
        assert_eq!(over.measure(state.path(), running()).await.len(), 1);
        assert!(used_bytes(state.path(), 2) < 3 << 20, "bounded");
    }
}
