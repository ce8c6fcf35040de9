//! Bounds on what the helper processes write to their logs.
//!
//! `up.rs` looks now and then. A helper writes to a file that was opened for it before it started and cannot change
//! files, so a full one is copied aside and emptied; lines written between the two are lost.

use std::{io, path::Path};

/// A log of this size is set aside, as `.1` in place of the one before: a year of a quiet machine.
const LOG_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Sets a full log aside.
pub async fn bound(log: &Path) {
    // One look at the file's size; the copy is rare, and not for this thread.
    if !std::fs::metadata(log).is_ok_and(|meta| meta.len() > LOG_MAX_BYTES) {
        return;
    }
    let path = log.to_owned();
    match tokio::task::spawn_blocking(move || set_aside(&path)).await {
        Ok(Ok(())) => tracing::info!(log = %log.display(), "a full log was set aside"),
        Ok(Err(error)) => tracing::warn!(%error, log = %log.display(), "a full log cannot be set aside"),
        Err(error) => tracing::warn!(%error, "the copy of a log was cut off"),
    }
}

fn set_aside(log: &Path) -> io::Result<()> {
    let mut aside = log.as_os_str().to_owned();
    aside.push(".1");
    std::fs::copy(log, aside)?;
    // The helper appends, so what it writes next is at the beginning.
    std::fs::OpenOptions::new().write(true).open(log)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_full_log_is_set_aside_under_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let (path, aside) = (
            directory.path().join("edge.log"),
            directory.path().join("edge.log.1"),
        );
        let mut writer = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        writer.write_all(b"old\n").unwrap();
        bound(&path).await;
        assert!(!aside.exists(), "there is room");
        writer.set_len(LOG_MAX_BYTES + 1).unwrap();
        bound(&path).await;
        writer.write_all(b"new\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new\n");
        assert_eq!(std::fs::metadata(&aside).unwrap().len(), LOG_MAX_BYTES + 1);
    }
}
