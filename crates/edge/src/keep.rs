//! The last routing table on disk, so that an edge that starts alone serves what it served before.
//!
//! Read once by `edge.rs`, written by `control.rs`. The choice to know: where instances are is believed only within
//! one boot of the machine, and not after [`forget_instances`]: an address whose instance has ended may have been
//! given to another's since.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tram_types::routing::RoutingTable;

use crate::error::Error;

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const FILE: &str = "edge-table.json";
const UNFINISHED: &str = "edge-table.json.new";

/// What is in the file.
#[derive(Deserialize)]
struct Kept {
    /// The boot in which it was written; empty: its instances are gone.
    boot_id: String,
    table: RoutingTable,
}

/// [`Kept`] without a copy.
#[derive(Serialize)]
struct Keep<'t> {
    boot_id: &'t str,
    table: &'t RoutingTable,
}

/// This boot; empty when the kernel does not say.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// Reads the table kept by [`save`]; `None` when there is none or it is not readable as one: the controller will
/// push a new one, and an edge that serves nothing yet is better than one that does not start. A table of another boot
/// comes without its instances.
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
    // Up to 0.1 the file was the table alone.
    let kept = serde_json::from_slice::<Kept>(&bytes).or_else(|error| {
        serde_json::from_slice::<RoutingTable>(&bytes)
            .map(|table| Kept {
                boot_id: String::new(),
                table,
            })
            .map_err(|_| error)
    });
    match kept {
        Ok(Kept { boot_id: of, table }) if !of.is_empty() && of == boot_id() => Ok(Some(table)),
        Ok(Kept { table, .. }) => Ok(Some(without_instances(table))),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, path = %path.display(), "the kept routing table is damaged and was passed over");
            Ok(None)
        }
    }
}

fn without_instances(mut table: RoutingTable) -> RoutingTable {
    for service in &mut table.services {
        Arc::make_mut(service).endpoints.clear();
    }
    table
}

/// Takes the instances out of the kept table, when all of them were stopped. The edge must not run.
///
/// # Errors
/// When the table is there and cannot be written anew.
pub fn forget_instances(state_dir: &Path) -> Result<(), Error> {
    match load(state_dir)? {
        Some(table) => write(state_dir, "", &without_instances(table)),
        None => Ok(()),
    }
}

/// Replaces the kept table. The old one stays whole until the new one is on the disk.
pub(crate) fn save(state_dir: &Path, table: &RoutingTable) -> Result<(), Error> {
    write(state_dir, &boot_id(), table)
}

fn write(state_dir: &Path, boot_id: &str, table: &RoutingTable) -> Result<(), Error> {
    let unfinished: PathBuf = state_dir.join(UNFINISHED);
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { doing, path, source }
    };
    let bytes = serde_json::to_vec(&Keep { boot_id, table })
        .map_err(|error| failed("write", &unfinished)(error.into()))?;
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
    use tram_types::routing::{Endpoint, Service, State};

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
    /// A table with one instance.
    fn populated() -> RoutingTable {
        let mut service = Service::new(uuid::Uuid::new_v4(), "shop/web", State::Ready);
        service.endpoints.push(Endpoint {
            instance_id: uuid::Uuid::new_v4(),
            addresses: [(8000, ([10, 201, 0, 2], 8000).into())].into(),
            weight: 1,
            canary: false,
            deployment_id: None,
        });
        RoutingTable {
            version: 3,
            services: vec![service.into()],
            ..RoutingTable::default()
        }
    }

    #[test]
    fn instances_of_another_boot_are_not_believed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (table, path) = (populated(), dir.path().join(FILE));
        let loaded = || load(dir.path()).expect("readable").expect("kept");
        save(dir.path(), &table).expect("writable");
        assert_eq!(loaded(), table, "the same boot");
        write(dir.path(), "another", &table).expect("writable");
        assert_eq!(loaded(), without_instances(table.clone()));
        fs::write(&path, serde_json::to_vec(&table).expect("plain data")).expect("writable");
        assert_eq!(loaded(), without_instances(table), "as older versions wrote it");
    }

    #[test]
    fn stopped_instances_are_forgotten_and_their_services_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        forget_instances(dir.path()).expect("nothing to forget");
        save(dir.path(), &populated()).expect("writable");
        forget_instances(dir.path()).expect("writable");
        let table = load(dir.path()).expect("readable").expect("kept");
        assert!(table.services.len() == 1 && table.services[0].endpoints.is_empty());
    }
}
