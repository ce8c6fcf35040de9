//! Who started us: under sudo, the person whose command line should find the new installation.

use std::{
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User};

/// The user behind sudo, if there is one.
fn behind_sudo() -> Option<User> {
    let uid: u32 = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    User::from_uid(Uid::from_raw(uid)).ok().flatten()
}

/// The file of contexts of the person who started us: that of the user behind sudo, unless the environment names
/// another place.
///
/// # Errors
/// When there is no home to keep it in.
pub fn context_file() -> Result<PathBuf, tram_cli::context::Error> {
    let explicit = std::env::var("XDG_CONFIG_HOME").ok();
    let home = match behind_sudo() {
        Some(user) => Some(user.dir.display().to_string()),
        None => std::env::var("HOME").ok(),
    };
    tram_cli::context::path(|name| match name {
        "XDG_CONFIG_HOME" => explicit.as_deref(),
        "HOME" => home.as_deref(),
        _ => None,
    })
}

/// Hands a file that we wrote as root, and its folder, to the user behind sudo.
pub fn hand_over(file: &Path) {
    let Some(user) = behind_sudo() else { return };
    let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    for path in [Some(file), file.parent()].into_iter().flatten() {
        if let Err(error) = chown(path, uid, gid) {
            tracing::warn!(path = %path.display(), %error, user = user.name, "cannot hand a file over to the user behind sudo");
        }
    }
}
