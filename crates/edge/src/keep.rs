//! The last routing table on disk, so that an edge that starts alone serves what it served before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tram_types::routing::RoutingTable;

use crate::error::Error;

const FILE: &str = "edge-table.json";
const UNFINISHED: &str = "edge-table.json.new";

/// Reads the table kept by [`save`]; `None` when there is none or it is not readable as one: the controller will
/// push a new one, and an edge that serves nothing yet is better than one that does not start.
pub(crate) fn load(state_dir: &Path) -> Result<Option<RoutingTable>, Error> {
    let path = state_dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(Error::File {
                doing: "read",
                path,
                source,
            });
        }
    };
    match serde_json::from_slice(&bytes) {
        Ok(table) => Ok(Some(table)),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, path = %path.display(), "the kept routing table is damaged and was passed over");
            Ok(None)
        }
    }
}

/// Replaces the kept table. The old one stays whole until the new one is on the disk.
pub(crate) fn save(state_dir: &Path, table: &RoutingTable) -> Result<(), Error> {
    let unfinished: PathBuf = state_dir.join(UNFINISHED);
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { doing, path, source }
    };
    let bytes = serde_json::to_vec(table).map_err(|error| failed("write", &unfinished)(error.into()))?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&unfinished)
        .map_err(failed("create", &unfinished))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed("write", &unfinished))?;
    fs::rename(&unfinished, state_dir.join(FILE)).map_err(failed("rename", &unfinished))?;
    File::open(state_dir)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("sync", state_dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_table_comes_back_and_a_damaged_one_does_not_stop_us() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert!(load(dir.path()).expect("readable").is_none());
        let table = RoutingTable {
            version: 3,
            base_domain: "localhost".into(),
            ..RoutingTable::default()
        };
        save(dir.path(), &table).expect("writable");
        assert_eq!(load(dir.path()).expect("readable"), Some(table));
        fs::write(dir.path().join(FILE), b"{\"version\":").expect("writable");
        assert!(load(dir.path()).expect("readable").is_none());
    }
}
