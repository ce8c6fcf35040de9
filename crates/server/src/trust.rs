//! `tram trust`: puts the local authority into the system's store of trusted roots, and takes it out again.
//!
//! With it, programs on this machine that use the system's store open `https://…` URLs of the base domain without a
//! warning. The authority's key never leaves its directory, and its certificate says that it is good for the base domain,
//! `localhost` and the loopback addresses only. Custom domains need a certificate of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Where Debian and Ubuntu look for roots that the administrator adds.
const SYSTEM_ROOTS: &str = "/usr/local/share/ca-certificates";
/// What makes the system's bundle from them.
const UPDATE_COMMAND: &str = "update-ca-certificates";

/// Why the system's store was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no authority yet.
    #[error("there is no local authority in {}: start `tram up` once, which makes it", .0.display())]
    NoAuthority(PathBuf),
    /// A file could not be written or removed.
    #[error("cannot {doing} {}: are you root?", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The bundle could not be made.
    #[error("`{UPDATE_COMMAND}` could not be run: install the package ca-certificates")]
    NoUpdate(#[source] std::io::Error),
    /// The bundle could not be made.
    #[error("`{UPDATE_COMMAND}` failed: {0}")]
    UpdateFailed(String),
}

/// The root certificate of the edge's authority, in PEM.
///
/// # Errors
/// [`Error::NoAuthority`] when `tram up` has never run on this data directory; [`Error::File`] when it may not be
/// looked at.
pub fn certificate(edge_state: &Path) -> Result<String, Error> {
    let path = tram_edge::ca::certificate_path(edge_state);
    std::fs::read_to_string(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::NoAuthority(edge_state.to_owned()),
        _ => Error::File {
            doing: "read",
            path,
            source,
        },
    })
}

/// Adds the authority to the system's store. Adding it again changes nothing.
///
/// # Errors
/// When there is no authority or the store cannot be changed.
pub fn add(edge_state: &Path) -> Result<PathBuf, Error> {
    let certificate = certificate(edge_state)?;
    let path = system_path(edge_state);
    let at = |doing, source| Error::File {
        doing,
        path: path.clone(),
        source,
    };
    std::fs::create_dir_all(SYSTEM_ROOTS).map_err(|source| at("make the folder of", source))?;
    std::fs::write(&path, certificate).map_err(|source| at("write", source))?;
    update(&[])?;
    Ok(path)
}

/// Takes the authority out of the system's store. False when it was not there, and nothing changed.
///
/// # Errors
/// When the store cannot be changed.
pub fn remove(edge_state: &Path) -> Result<bool, Error> {
    let path = system_path(edge_state);
    match std::fs::remove_file(&path) {
        // Made from nothing, or a link to the root that is gone stays in the folder that programs read.
        Ok(()) => update(&["--fresh"]).map(|()| true),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File {
            doing: "remove",
            path,
            source,
        }),
    }
}

/// Whether the system trusts the authority.
///
/// # Errors
/// As [`certificate`].
pub fn is_trusted(edge_state: &Path) -> Result<bool, Error> {
    let ours = certificate(edge_state)?;
    Ok(std::fs::read_to_string(system_path(edge_state)).is_ok_and(|theirs| theirs == ours))
}

/// One file for each data directory, so that two installations do not take each other's away.
fn system_path(edge_state: &Path) -> PathBuf {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(edge_state.as_os_str().as_encoded_bytes());
    Path::new(SYSTEM_ROOTS).join(format!("tramontane-{}.crt", hex::encode(&digest[..4])))
}

fn update(arguments: &[&str]) -> Result<(), Error> {
    let done = Command::new(UPDATE_COMMAND)
        .args(arguments)
        .env("PATH", tram_site_local::programs::path())
        .output()
        .map_err(Error::NoUpdate)?;
    if done.status.success() {
        Ok(())
    } else {
        Err(Error::UpdateFailed(
            String::from_utf8_lossy(&done.stderr).trim().to_owned(),
        ))
    }
}

/// Carries out `tram trust`.
///
/// # Errors
/// With what is wrong, for the user.
pub fn run(
    settings: &tram_cli::Settings,
    action: tram_cli::TrustAction,
    printer: &tram_cli::Printer,
) -> anyhow::Result<()> {
    let edge_state = crate::paths::Paths::new(&settings.data_dir).edge();
    match action {
        tram_cli::TrustAction::Print => printer.bytes(certificate(&edge_state)?.as_bytes())?,
        tram_cli::TrustAction::Add => {
            let path = add(&edge_state)?;
            printer.note(format_args!(
                "this machine trusts the local authority now ({})",
                path.display()
            ));
            printer.note("programs with a store of their own, such as Firefox, must be told apart");
        }
        tram_cli::TrustAction::Remove => {
            printer.note(if remove(&edge_state)? {
                "this machine does not trust the local authority any more"
            } else {
                "this machine did not trust the local authority of this data directory; nothing was changed"
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_out_what_was_never_trusted_changes_nothing_and_says_so() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!remove(directory.path()).unwrap());
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_not_one_that_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            certificate(directory.path()),
            Err(Error::NoAuthority(_))
        ));
        // A folder in its place cannot be read, not even by root.
        std::fs::create_dir_all(tram_edge::ca::certificate_path(directory.path())).unwrap();
        let refused = certificate(directory.path()).unwrap_err();
        assert!(matches!(refused, Error::File { doing: "read", .. }), "{refused}");
        assert!(is_trusted(directory.path()).is_err());
    }
}
