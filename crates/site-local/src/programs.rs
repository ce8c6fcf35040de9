//! Where the machine's own programs are looked for.

use std::{ffi::OsString, path::PathBuf};

/// Where distributions keep programs for administrators. They are not in the path of every service or person.
const ADMINISTRATORS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The folders of the path, then those of administrators.
#[must_use]
pub fn folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(ADMINISTRATORS.map(PathBuf::from))
        .collect()
}

/// The same, as the variable `PATH` of a program that is started.
#[must_use]
pub fn path() -> OsString {
    std::env::join_paths(folders()).unwrap_or_else(|_| ADMINISTRATORS.join(":").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_administrators_are_found_whatever_the_path() {
        let path = path();
        let found: Vec<PathBuf> = std::env::split_paths(&path).collect();
        for folder in ADMINISTRATORS {
            assert!(found.contains(&PathBuf::from(folder)), "{folder}");
        }
    }
}
