//! Who may use the executor: whoever shows its secret.
//!
//! Digests of secrets are kept and compared (`secret`). A sandbox of a pool has no secret until it is claimed: the first
//! one shown becomes it, its digest is written down (0600) before anything is answered, and holds across restarts of the executor. A copy of a running
//! sandbox has a secret of its own from its first request on (`identity`).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::identity::Identity;
use crate::secret::Digest;
use crate::settings::Access;

/// The executor's door.
#[derive(Debug)]
pub(crate) struct Door {
    state: Mutex<State>,
    identity: Identity,
    /// Where the first secret of a sandbox of a pool is written down.
    claims: Option<PathBuf>,
}

#[derive(Debug)]
enum State {
    Known(Digest),
    Unclaimed(PathBuf),
    /// A copy for which nobody has a secret.
    Shut,
}

impl Door {
    /// # Errors
    ///
    /// When the secret of an earlier life is there and cannot be read.
    pub(crate) fn new(access: Access, identity: Identity) -> io::Result<Self> {
        let claims = match &access {
            Access::Pool(path) => Some(path.clone()),
            Access::Static(_) => None,
        };
        let state = match access {
            Access::Static(secret) => State::Known(secret),
            Access::Pool(path) => match std::fs::read_to_string(&path) {
                Ok(secret) if !secret.is_empty() => State::Known(Digest::written(secret)),
                Ok(_) => State::Unclaimed(path),
                Err(error) if error.kind() == ErrorKind::NotFound => State::Unclaimed(path),
                Err(error) => return Err(error),
            },
        };
        Ok(Self {
            state: Mutex::new(state),
            identity,
            claims,
        })
    }

    /// Whether the secret that this is of opens the door.
    ///
    /// # Errors
    ///
    /// When the first secret could not be written down: the sandbox is then still nobody's. When a copy cannot find out
    /// who it is.
    pub(crate) fn opens(&self, shown: Option<&Digest>) -> io::Result<bool> {
        let Some(shown) = shown else {
            return Ok(false);
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(secret) = self.identity.renewed()? {
            *state = match (secret, &self.claims) {
                (Some(secret), _) => State::Known(secret),
                (None, Some(path)) => State::Unclaimed(path.clone()),
                (None, None) => State::Shut,
            };
        }
        match &*state {
            State::Shut => Ok(false),
            State::Known(secret) => Ok(secret.is(shown)),
            State::Unclaimed(path) => {
                write_down(path, shown)?;
                *state = State::Known(*shown);
                Ok(true)
            }
        }
    }
}

fn write_down(path: &Path, secret: &Digest) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Written beside and renamed: a half-written secret would lock the owner out.
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(secret.to_string().as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn nobody() -> Identity {
        Identity::at("/nowhere/identity")
    }

    fn opens(door: &Door, secret: &str) -> bool {
        door.opens(Some(&Digest::of(secret.as_bytes()))).unwrap()
    }

    #[test]
    fn a_copy_has_a_secret_of_its_own_and_forgets_the_first_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let first = || Access::Static(Digest::of(b"of-the-first"));
        let door = Door::new(first(), Identity::at(&path)).unwrap();
        assert!(opens(&door, "of-the-first"));
        // As an earlier version wrote it, and as this one does.
        let digest = Digest::of(b"of-the-next").to_string();
        for (written, secret) in [("of-the-copy", "of-the-copy"), (&digest, "of-the-next")] {
            let text = format!(r#"{{"environment":{{"SANDBOX_SECRET":"{written}"}}}}"#);
            std::fs::remove_file(&path).ok();
            std::fs::write(&path, text).unwrap();
            assert!(!opens(&door, "of-the-first"));
            assert!(opens(&door, secret));
        }
        assert!(!opens(&door, &digest), "a digest is no secret");
        // Without one nobody gets in, and least of all the first one's owner.
        let door = Door::new(first(), Identity::at(dir.path().join("other"))).unwrap();
        std::fs::write(dir.path().join("other"), r#"{"environment":{}}"#).unwrap();
        assert!(!opens(&door, "of-the-first"));
    }

    #[test]
    fn only_the_secret_opens() {
        let door = Door::new(Access::Static(Digest::of(b"right-secret")), nobody()).unwrap();
        assert!(opens(&door, "right-secret"));
        for shut in ["right-secreu", "right", ""] {
            assert!(!opens(&door, shut), "{shut}");
        }
        assert!(!door.opens(None).unwrap());
    }

    #[test]
    fn the_first_who_comes_owns_a_sandbox_of_a_pool() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/secret");
        let door = Door::new(Access::Pool(path.clone()), nobody()).unwrap();
        assert!(!door.opens(None).unwrap(), "nobody showed anything");
        assert!(opens(&door, "first"));
        assert!(!opens(&door, "second"));
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written, Digest::of(b"first").to_string());
        let again = Door::new(Access::Pool(path.clone()), nobody()).unwrap();
        assert!(!opens(&again, "second"));
        assert!(opens(&again, "first"));
        // An earlier version wrote the secret itself.
        std::fs::write(&path, "third").unwrap();
        let earlier = Door::new(Access::Pool(path), nobody()).unwrap();
        assert!(opens(&earlier, "third") && !opens(&earlier, "first"));
    }
}
