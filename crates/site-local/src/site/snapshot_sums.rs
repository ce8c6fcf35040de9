//! The checksums of snapshots, taken when the snapshots can be used already.
//!
//! Owns what was not read yet. One task for as long as the site is open, one snapshot at a time: reading takes all that the
//! disk gives, and nobody waits for it. What a crash leaves unread is found when the site opens.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, Weak};
use std::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tram_types::units::time_to_move;

use super::Shared;
use super::instance_snapshots::{
    VERIFY_BASE, blocking, files, ignore_missing, read_note, read_sums, write_whole,
};
use crate::checksums::{Bounds, Checksums, Files};
use crate::record::INSTANCE_SNAPSHOTS;

/// Snapshots that were not read yet, by the paths of their disks.
#[derive(Debug, Default)]
pub(super) struct Unread {
    paths: Mutex<BTreeSet<PathBuf>>,
    more: Notify,
}

impl Unread {
    /// One more.
    pub(super) fn add(&self, path: PathBuf) {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.insert(path);
        drop(paths);
        self.more.notify_one();
    }

    fn take(&self) -> Option<PathBuf> {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        paths.pop_first()
    }
}

/// Reads what there is to read, for as long as the site is open.
pub(super) async fn read_all(shared: Weak<Shared>) {
    {
        let Some(shared) = shared.upgrade() else { return };
        let directory = shared.store.root().join(INSTANCE_SNAPSHOTS);
        match blocking(move || left_unread(&directory)).await {
            Ok(Ok(left)) => left.into_iter().for_each(|path| shared.unread.add(path)),
            Ok(Err(error)) => tracing::warn!(%error, "cannot see which snapshots have no checksums yet"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot look for snapshots"
                );
            }
        }
    }
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let Some(path) = shared.unread.take() else {
            let unread = std::sync::Arc::clone(&shared.unread);
            // The site may close meanwhile.
            drop(shared);
            unread.more.notified().await;
            continue;
        };
        // What reads ends with the site, as whoever waits for it does.
        let gone = shared.end.child_token();
        let _ends_with_this = gone.clone().drop_guard();
        let reading = path.clone();
        let outcome = blocking(move || complete(&reading, gone)).await;
        match outcome.map_err(io::Error::other).and_then(|outcome| outcome) {
            Ok(None) => {}
            Ok(Some(wrong)) => tracing::warn!(
                path = %path.display(), wrong,
                "a snapshot is not what it was before it was read: it will not be used"
            ),
            Err(error) => tracing::warn!(
                path = %path.display(), %error,
                "cannot read a snapshot for its checksums; it is done when the snapshot is verified, or after a restart"
            ),
        }
    }
}

/// Snapshots whose checksums were not taken.
fn left_unread(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut left = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "sums") {
            continue;
        }
        let path = path.with_extension("");
        if let Ok(Some(Ok(note))) = read_note(&path)
            && let Ok(Ok(Some(sums))) = read_sums(&path, &note)
            && !sums.is_complete()
        {
            left.push(path);
        }
    }
    Ok(left)
}

/// Reads one and keeps its checksums; what is wrong with it, if anything.
fn complete(path: &Path, gone: CancellationToken) -> io::Result<Option<String>> {
    // It may have been removed meanwhile, or be damaged, which is told to whoever wants to use it.
    let Some(Ok(note)) = read_note(path)? else {
        return Ok(None);
    };
    let Ok(Some(sums)) = read_sums(path, &note)? else {
        return Ok(None);
    };
    if sums.is_complete() {
        return Ok(None);
    }
    let files = files(path, &note);
    let bounds = Bounds {
        until: Instant::now() + VERIFY_BASE + time_to_move(files.bytes()?),
        gone,
    };
    match sums.complete(&files, Some(&bounds))? {
        Ok(sums) => keep(path, &sums).map(|()| None),
        Err(wrong) => Ok((path.try_exists()?).then_some(wrong)),
    }
}

/// One writes at a time: two would share the file that does not count yet, and one would keep what the other had only begun.
static WRITING: Mutex<()> = Mutex::new(());

/// Keeps the checksums of a snapshot that is there.
pub(super) fn keep(path: &Path, sums: &Checksums) -> io::Result<()> {
    let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
    let at = path.with_extension("sums");
    write_whole(&at, sums)?;
    // Whoever removes a snapshot begins with its disk.
    if !path.try_exists()? {
        ignore_missing(fs::remove_file(at))?;
    }
    Ok(())
}

/// Notes a snapshot that was just taken, unread; whether it is to be read.
pub(super) fn note(path: &Path, files: &Files) -> io::Result<bool> {
    if path.with_extension("sums").try_exists()? {
        return Ok(false);
    }
    keep(path, &Checksums::note(files)?)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::instance_snapshots::Note;

    fn complete_now(path: &Path) -> Option<String> {
        complete(path, CancellationToken::new()).unwrap()
    }

    #[test]
    fn what_was_left_unread_is_found_and_read_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(left_unread(&dir.path().join("none")).unwrap().is_empty());
        let path = dir.path().join("one");
        fs::write(&path, "disk").unwrap();
        let written = serde_json::json!({ "image": "sha256:1", "checked": true });
        write_whole(&path.with_extension("json"), &written).unwrap();
        let noted: Note = serde_json::from_value(written).unwrap();
        let files = files(&path, &noted);
        assert!(note(&path, &files).unwrap());
        assert!(!note(&path, &files).unwrap(), "it is noted once");
        assert_eq!(left_unread(dir.path()).unwrap(), [path.as_path()]);
        assert_eq!(complete_now(&path), None);
        assert!(left_unread(dir.path()).unwrap().is_empty());
        let sums = read_sums(&path, &noted).unwrap().unwrap().unwrap();
        assert!(sums.is_complete());
        assert_eq!(sums.hold_as_noted(&files).unwrap(), None);
    }

    #[test]
    fn several_that_read_one_at_once_leave_its_checksums_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        fs::write(&path, vec![7; 1 << 16]).unwrap();
        let written = serde_json::json!({ "image": "sha256:1", "checked": true });
        write_whole(&path.with_extension("json"), &written).unwrap();
        let noted: Note = serde_json::from_value(written).unwrap();
        let files = files(&path, &noted);
        assert!(note(&path, &files).unwrap());
        let sums = read_sums(&path, &noted).unwrap().unwrap().unwrap();
        let sums = sums.complete(&files, None).unwrap().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        keep(&path, &sums).unwrap();
                        let read = read_sums(&path, &noted).unwrap();
                        assert_eq!(read.unwrap().as_ref(), Some(&sums));
                    }
                });
            }
        });
    }

    #[test]
    fn what_changed_before_it_was_read_is_told_and_what_was_removed_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        fs::write(&path, "disk").unwrap();
        let written = serde_json::json!({ "image": "sha256:1", "checked": true });
        write_whole(&path.with_extension("json"), &written).unwrap();
        let files = files(&path, &serde_json::from_value(written).unwrap());
        assert!(note(&path, &files).unwrap());
        fs::write(&path, "longer than before").unwrap();
        assert!(complete_now(&path).unwrap().contains("bytes, and had"));
        let sums = Checksums::note(&files).unwrap();
        fs::remove_file(&path).unwrap();
        keep(&path, &sums).unwrap();
        assert!(!path.with_extension("sums").exists());
        assert_eq!(complete_now(&path), None);
    }
}
