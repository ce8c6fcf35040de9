//! `tram trust`: puts the local authority into the system's store of trusted roots, and takes it out again.
//!
//! With it, programs on this machine that use the system's store open `https://…` URLs of the base domain without a
//! warning. The authority's key never leaves its directory and signs names of this installation only.

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
/// [`Error::NoAuthority`] when `tram up` has never run on this data directory.
pub fn certificate(edge_state: &Path) -> Result<String, Error> {
    let path = tram_edge::ca::certificate_path(edge_state);
    std::fs::read_to_string(&path).map_err(|_| Error::NoAuthority(edge_state.to_owned()))
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
    update()?;
    Ok(path)
}

/// Takes the authority out of the system's store. Taking out one that is not there changes nothing.
///
/// # Errors
/// When the store cannot be changed.
pub fn remove(edge_state: &Path) -> Result<PathBuf, Error> {
    let path = system_path(edge_state);
    match std::fs::remove_file(&path) {
        Ok(()) => update()?,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => {
            return Err(Error::File {
                doing: "remove",
                path,
                source,
            });
        }
    }
    Ok(path)
}

/// Whether the system trusts the authority.
#[must_use]
pub fn is_trusted(edge_state: &Path) -> bool {
    match (
        certificate(edge_state),
        std::fs::read_to_string(system_path(edge_state)),
    ) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => false,
    }
}

/// One file for each data directory, so that two installations do not take each other's away.
fn system_path(edge_state: &Path) -> PathBuf {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(edge_state.as_os_str().as_encoded_bytes());
    Path::new(SYSTEM_ROOTS).join(format!("tramontane-{}.crt", hex::encode(&digest[..4])))
}

fn update() -> Result<(), Error> {
    let done = Command::new(UPDATE_COMMAND).output().map_err(Error::NoUpdate)?;
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
            remove(&edge_state)?;
            printer.note("this machine does not trust the local authority any more");
        }
    }
    Ok(())
}
