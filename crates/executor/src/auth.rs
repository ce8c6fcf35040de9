//! Who may use the executor: whoever shows its secret.
//!
//! Compared in constant time. A sandbox of a pool has no secret until it is claimed: the first one shown becomes it,
//! is written down (0600) before anything is answered, and holds across restarts of the executor. A copy of a running
//! sandbox has a secret of its own from its first request on (`identity`).

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use subtle::ConstantTimeEq;

use crate::identity::Identity;
use crate::settings::Access;

/// A secret that a stranger shows becomes a file: it is no longer than this. Clients make 43 characters.
const SECRET_BYTES_MAX: usize = 4096;

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
    Known(String),
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
                Ok(secret) if !secret.is_empty() => State::Known(secret),
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

    /// Whether this `Authorization` header opens the door.
    ///
    /// # Errors
    ///
    /// When the first secret could not be written down: the sandbox is then still nobody's. When a copy cannot find out
    /// who it is.
    pub(crate) fn opens(&self, header: Option<&str>) -> io::Result<bool> {
        let shown = header
            .and_then(|header| header.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, secret)| secret.trim());
        let Some(shown) = shown.filter(|secret| (1..=SECRET_BYTES_MAX).contains(&secret.len())) else {
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
            State::Known(secret) => Ok(secret.as_bytes().ct_eq(shown.as_bytes()).into()),
            State::Unclaimed(path) => {
                write_down(path, shown)?;
                *state = State::Known(shown.to_owned());
                Ok(true)
            }
        }
    }
}

fn write_down(path: &Path, secret: &str) -> io::Result<()> {
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
    file.write_all(secret.as_bytes())?;
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

    #[test]
    fn a_copy_has_a_secret_of_its_own_and_forgets_the_first_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity");
        let first = || Access::Static("of-the-first".to_owned());
        let door = Door::new(first(), Identity::at(&path)).unwrap();
        assert!(door.opens(Some("Bearer of-the-first")).unwrap());
        std::fs::write(&path, r#"{"environment":{"SANDBOX_SECRET":"of-the-copy"}}"#).unwrap();
        assert!(!door.opens(Some("Bearer of-the-first")).unwrap());
        assert!(door.opens(Some("Bearer of-the-copy")).unwrap());
        // Without one nobody gets in, and least of all the first one's owner.
        let door = Door::new(first(), Identity::at(dir.path().join("other"))).unwrap();
        std::fs::write(dir.path().join("other"), r#"{"environment":{}}"#).unwrap();
        assert!(!door.opens(Some("Bearer of-the-first")).unwrap());
    }

    #[test]
    fn only_the_secret_opens() {
        let door = Door::new(Access::Static("right-secret".to_owned()), nobody()).unwrap();
        for opens in ["Bearer right-secret", "bearer right-secret "] {
            assert!(door.opens(Some(opens)).unwrap(), "{opens}");
        }
        for shut in [
            "Bearer right-secreu",
            "Bearer right",
            "Bearer ",
            "Basic right-secret",
            "right-secret",
            "",
        ] {
            assert!(!door.opens(Some(shut)).unwrap(), "{shut}");
        }
        assert!(!door.opens(None).unwrap());
    }

    #[test]
    fn the_first_who_comes_owns_a_sandbox_of_a_pool() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/secret");
        let door = Door::new(Access::Pool(path.clone()), nobody()).unwrap();
        assert!(!door.opens(None).unwrap(), "nobody showed anything");
        assert!(door.opens(Some("Bearer first")).unwrap());
        assert!(!door.opens(Some("Bearer second")).unwrap());
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let again = Door::new(Access::Pool(path), nobody()).unwrap();
        assert!(!again.opens(Some("Bearer second")).unwrap());
        assert!(again.opens(Some("Bearer first")).unwrap());
    }
}
