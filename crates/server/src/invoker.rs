//! Who started us: under sudo, the person whose command line should find the new installation.

use std::{
    os::unix::fs::{MetadataExt, lchown},
    path::{Path, PathBuf},
};

use nix::unistd::{Uid, User, geteuid};

/// The user behind sudo, if there is one.
fn behind_sudo() -> Option<User> {
    let uid: u32 = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    User::from_uid(Uid::from_raw(uid)).ok().flatten()
}

/// The file of contexts of the person who started us: that of the user behind sudo, unless the environment names
/// another place. Without a word about a home in the environment, as under systemd, the user database knows it.
///
/// # Errors
/// When there is no home to keep it in.
pub fn context_file() -> Result<PathBuf, tram_cli::context::Error> {
    context_file_of(|name| std::env::var(name).ok(), behind_sudo())
}

fn context_file_of(
    variable: impl Fn(&str) -> Option<String>,
    behind_sudo: Option<User>,
) -> Result<PathBuf, tram_cli::context::Error> {
    let home_of = |user: User| user.dir.display().to_string();
    let explicit = variable("XDG_CONFIG_HOME");
    let home = behind_sudo
        .map(home_of)
        .or_else(|| variable("HOME").filter(|home| !home.is_empty()))
        .or_else(|| User::from_uid(geteuid()).ok().flatten().map(home_of));
    tram_cli::context::path(|name| match name {
        "XDG_CONFIG_HOME" => explicit.as_deref(),
        "HOME" => home.as_deref(),
        _ => None,
    })
}

/// Hands a file that we wrote as root, and the folders that we made for it, to the user behind sudo.
pub fn hand_over(file: &Path) {
    if let Some(user) = behind_sudo() {
        hand_over_to(file, &user);
    }
}

fn hand_over_to(file: &Path, user: &User) {
    let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    let is_roots = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.uid() == 0);
    let folder = file.parent().unwrap_or(file);
    // Below the home every folder is meant to be its owner's; elsewhere only the innermost is surely ours.
    let folders: Vec<&Path> = if folder.starts_with(&user.dir) {
        folder.ancestors().take_while(|path| *path != user.dir).collect()
    } else {
        vec![folder]
    };
    for path in folders.into_iter().filter(|path| is_roots(path)).chain([file]) {
        if let Err(error) = lchown(path, uid, gid) {
            tracing::warn!(path = %path.display(), %error, user = user.name, "cannot hand a file over to the user behind sudo");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(home: &Path) -> User {
        let mut user = User::from_uid(geteuid()).unwrap().unwrap();
        user.dir = home.to_owned();
        user.uid = Uid::from_raw(12_345);
        user
    }

    #[test]
    fn without_any_variable_the_home_is_that_of_the_user_database() {
        let home = User::from_uid(geteuid()).unwrap().unwrap().dir;
        assert_eq!(
            context_file_of(|_| None, None).unwrap(),
            home.join(".config/tram/config.toml")
        );
        assert_eq!(
            context_file_of(|name| (name == "HOME").then(|| "/home/a".to_owned()), None).unwrap(),
            Path::new("/home/a/.config/tram/config.toml")
        );
        assert_eq!(
            context_file_of(
                |name| (name == "HOME").then(|| "/root".to_owned()),
                Some(user(Path::new("/home/b")))
            )
            .unwrap(),
            Path::new("/home/b/.config/tram/config.toml")
        );
    }

    #[test]
    fn every_folder_below_the_home_that_is_roots_is_handed_over() {
        if !geteuid().is_root() {
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join(".config/tram/config.toml");
        tram_cli::context::write_context(&file, "local", "http://x", "t").unwrap();
        hand_over_to(&file, &user(home.path()));
        let owner = |path: &Path| path.symlink_metadata().unwrap().uid();
        for path in [
            &file,
            &home.path().join(".config/tram"),
            &home.path().join(".config"),
        ] {
            assert_eq!(owner(path), 12_345, "{}", path.display());
        }
        assert_eq!(owner(home.path()), 0, "the home itself is not ours to give");
    }

    #[test]
    fn outside_of_the_home_only_the_innermost_folder_is_handed_over() {
        if !geteuid().is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("config/tram/config.toml");
        tram_cli::context::write_context(&file, "local", "http://x", "t").unwrap();
        hand_over_to(&file, &user(Path::new("/home/nobody-here")));
        let owner = |path: &Path| path.symlink_metadata().unwrap().uid();
        assert_eq!(
            (owner(&file), owner(&place.path().join("config/tram"))),
            (12_345, 12_345)
        );
        assert_eq!(owner(&place.path().join("config")), 0);
    }
}
