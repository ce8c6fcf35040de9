//! The executor of sandboxes, which this binary carries: laid out as a file, so that it can be shown in instances.
//!
//! The file is named after its content. An instance keeps the one it was started with, also when another version of `tram`
//! takes over. The one design choice to know: that file stays for as long as an instance names it, though the instance
//! would run on without. CRIU restores no mount of a file that is gone, so a sandbox that sleeps on the disk would not
//! wake after an upgrade, and one that runs could not be copied.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::paths::Paths;

/// As build.rs made it.
const EXECUTOR: &[u8] = include_bytes!(env!("TRAM_EXECUTOR"));
/// Whoever the sandbox's user is may run it, and nobody changes it.
const MODE: u32 = 0o555;

/// The path of the executor, which is there and whole.
///
/// # Errors
/// When it cannot be written.
pub fn ensure(paths: &Paths) -> io::Result<PathBuf> {
    let directory = paths.executor();
    let name = hex::encode(Sha256::digest(EXECUTOR));
    let path = directory.join(&name);
    // Compared, not trusted: a file that somebody damaged would break every sandbox.
    if !std::fs::read(&path).is_ok_and(|bytes| bytes == EXECUTOR) {
        let partial = directory.join("partial");
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(MODE)
            .open(&partial)?;
        file.write_all(EXECUTOR)?;
        file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
        file.sync_all()?;
        drop(file);
        std::fs::rename(&partial, &path)?;
    }
    let mut others = Vec::new();
    for entry in std::fs::read_dir(&directory)? {
        let other = entry?.path();
        if other != path {
            others.push(other);
        }
    }
    if !others.is_empty() {
        let specs = specs_of_instances(&paths.supervisor())?;
        let is_named = |other: &Path| {
            let name = other.as_os_str().as_bytes();
            specs
                .iter()
                .any(|spec| spec.windows(name.len()).any(|part| part == name))
        };
        for other in others.iter().filter(|other| !is_named(other)) {
            std::fs::remove_file(other)?;
        }
    }
    Ok(path)
}

/// What the supervisor has on record of each instance, whether that runs or sleeps.
fn specs_of_instances(supervisor: &Path) -> io::Result<Vec<Vec<u8>>> {
    let instances = match std::fs::read_dir(supervisor.join("instances")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        instances => instances?,
    };
    let mut specs = Vec::new();
    for instance in instances {
        match std::fs::read(instance?.path().join("spec.json")) {
            // Removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            spec => specs.push(spec?),
        }
    }
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_laid_out_once_whole_and_alone() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(root.path());
        std::fs::create_dir_all(paths.executor()).unwrap();
        std::fs::write(paths.executor().join("of-an-older-version"), "").unwrap();
        let path = ensure(&paths).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            MODE
        );
        assert_eq!(std::fs::read_dir(paths.executor()).unwrap().count(), 1);
        // One that an instance was started with stays.
        let older = paths.executor().join("of-a-sandbox");
        std::fs::write(&older, "").unwrap();
        let instance = paths.supervisor().join("instances/one");
        std::fs::create_dir_all(&instance).unwrap();
        let spec = serde_json::json!({"binds": [{"source": older}]});
        std::fs::write(instance.join("spec.json"), spec.to_string()).unwrap();
        ensure(&paths).unwrap();
        assert!(older.exists());
        std::fs::remove_dir_all(&instance).unwrap();
        ensure(&paths).unwrap();
        assert!(!older.exists());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "damaged").unwrap();
        assert_eq!(ensure(&paths).unwrap(), path);
        let output = std::process::Command::new(&path).env_clear().output().unwrap();
        assert_eq!(output.status.code(), Some(2), "it runs, and misses its secret");
    }
}
