//! Where everything is kept below the data directory.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The data directory and its rooms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

macro_rules! rooms {
    ($($(#[doc = $doc:literal])+ $name:ident = $relative:literal;)+) => {
        impl Paths {
            $(
                $(#[doc = $doc])+
                #[must_use]
                pub fn $name(&self) -> PathBuf {
                    self.root.join($relative)
                }
            )+
        }
    };
}

rooms! {
    /// The database's own directory: a copy of it holds no key.
    database = "database";
    /// Keys of the secrets.
    keys = "keys";
    /// Images, by digest.
    images = "images";
    /// Models, by digest.
    models = "models";
    /// State of `tram supervise`: instances and their logs.
    supervisor = "supervisor";
    /// State of `tram edge`: its control socket, its last routing table, the local authority.
    edge = "edge";
    /// What this machine, as a site, remembers of its instances.
    site = "site";
    /// The executor of sandboxes, as this version has it.
    executor = "executor";
    /// Output of the helper processes, and the access log.
    logs = "logs";
}

impl Paths {
    /// The rooms of a data directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The data directory itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The SQLite database.
    #[must_use]
    pub fn sqlite(&self) -> PathBuf {
        self.database().join("tram.db")
    }

    /// The keys of the secrets.
    #[must_use]
    pub fn keyring(&self) -> PathBuf {
        self.keys().join("keyring")
    }

    /// One line of JSON for each finished request.
    #[must_use]
    pub fn access_log(&self) -> PathBuf {
        self.logs().join("access.log")
    }

    /// Makes the rooms that are missing, for the owner alone.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn ensure(&self) -> Result<(), (PathBuf, std::io::Error)> {
        /// Instances of other users must be able to walk through to their root file systems.
        const WALKABLE: u32 = 0o711;
        const PRIVATE: u32 = 0o700;
        let rooms = [
            (self.root.clone(), WALKABLE),
            (self.database(), PRIVATE),
            (self.keys(), PRIVATE),
            (self.images(), WALKABLE),
            (self.models(), PRIVATE),
            (self.supervisor(), WALKABLE),
            (self.edge(), PRIVATE),
            (self.site(), PRIVATE),
            (self.executor(), PRIVATE),
            (self.logs(), PRIVATE),
        ];
        for (room, mode) in rooms {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(&room)
                .map_err(|source| (room, source))?;
        }
        Ok(())
    }
}

/// Replaces a file: a process that is killed meanwhile leaves the old text or the new one, never a half.
///
/// # Errors
/// When the file cannot be written or put in place.
pub fn write_whole(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, bytes)?;
    std::fs::rename(beside, file)
}
