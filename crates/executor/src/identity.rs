//! Who this sandbox is, when that is not who it was at its start: a copy of a running sandbox goes on with the processes
//! of another one, this program among them, and has another secret and other variables.
//!
//! Whoever makes the copy lays [`PATH`] into its files before any process of it runs, so the first request of all finds
//! it. The one design choice to know: it is looked for with every request, which takes a microsecond, and believed when it
//! is another file than before. Nothing has to be told to a process that was asleep, and nothing can come too late.
//!
//! What runs in the sandbox as its root could write such a file too, and lock the owner out; it could as well end this
//! program.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use zeroize::Zeroize;

use crate::secret::Digest;
use crate::settings::SECRET_VARIABLE;

/// Where a copy finds who it is.
pub(crate) const PATH: &str = "/.tramontane/identity";
/// An environment: the kernel passes no larger one to a program, but for a few variables of the platform.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What the file says.
#[derive(Debug, Deserialize)]
struct Content {
    /// The whole environment of a program of this sandbox, and among it its secret, or the digest of that.
    environment: BTreeMap<String, String>,
}

/// Who this sandbox is.
#[derive(Debug, Clone)]
pub(crate) struct Identity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    seen: Option<Stamp>,
    environment: Option<Arc<BTreeMap<String, String>>>,
}

/// One file, as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
}

impl Identity {
    /// What is at `path` now is of an earlier life of this disk, and means nothing: this process was started with all it
    /// is to know.
    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let seen = stamp(&path).unwrap_or_default();
        Self(Arc::new(Mutex::new(State {
            path,
            seen,
            environment: None,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this process has become part of another sandbox since the last look; then the digest of its secret, if it
    /// has one.
    ///
    /// # Errors
    ///
    /// When that cannot be found out. Nobody is let in then.
    pub(crate) fn renewed(&self) -> io::Result<Option<Option<Digest>>> {
        let mut state = self.lock();
        let now = stamp(&state.path)?;
        if now == state.seen {
            return Ok(None);
        }
        if now.is_none() {
            // Taken away: this is still who it was.
            state.seen = None;
            return Ok(None);
        }
        let mut text = String::new();
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&state.path)?
            .take(FILE_BYTES_MAX)
            .read_to_string(&mut text)?;
        let mut content: Content = serde_json::from_str(&text)?;
        let secret = content
            .environment
            .remove(SECRET_VARIABLE)
            .filter(|secret| !secret.is_empty())
            .map(Digest::written);
        text.zeroize();
        state.seen = now;
        state.environment = Some(Arc::new(content.environment));
        Ok(Some(secret))
    }

    /// The environment of what is started from now on; `None`: this process's own.
    pub(crate) fn environment(&self) -> Option<Arc<BTreeMap<String, String>>> {
        self.lock().environment.clone()
    }
}

fn stamp(path: &std::path::Path) -> io::Result<Option<Stamp>> {
    match std::fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(Stamp {
            inode: found.ino(),
            changed: (found.ctime(), found.ctime_nsec()),
        })),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_new_file_makes_it_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let write = |secret: &str| {
            let text = format!(r#"{{"environment":{{"SANDBOX_SECRET":"{secret}","NAME":"of {secret}"}}}}"#);
            std::fs::write(&path, text).unwrap();
        };
        write("earlier");
        let identity = Identity::at(&path);
        assert!(identity.renewed().unwrap().is_none(), "it is of an earlier life");
        assert_eq!(identity.environment(), None);
        std::fs::remove_file(&path).unwrap();
        write("second");
        let renewed = identity.renewed().unwrap().unwrap().unwrap();
        assert!(renewed.is(&Digest::of(b"second")));
        assert!(identity.renewed().unwrap().is_none(), "told once");
        let environment = identity.environment().unwrap();
        assert_eq!(environment["NAME"], "of second");
        assert!(!environment.contains_key("SANDBOX_SECRET"));
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let identity = Identity::at(&path);
        std::fs::write(&path, "nonsense").unwrap();
        identity.renewed().unwrap_err();
        identity.renewed().unwrap_err();
        assert_eq!(identity.environment(), None);
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        identity.renewed().unwrap_err();
    }
}
