//! Devices of this machine, as specifications of the Container Device Interface tell of them.
//!
//! The files are the operator's: `nvidia-ctk cdi generate` writes them, and others for other makers. Read by the site when
//! an instance is to have devices, by the composition root for the catalog, and by `tram doctor`. The one design choice to
//! know: the files are read whenever they are asked about, so that one that is written anew, as after an update of a
//! driver, holds from the next instance on; and one that is wrong takes nothing from the others.

mod edits;
mod file;
mod soname;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub(crate) use edits::Edits;

/// Largest file that is read: the specification of 16 GPUs of 7 slices each has some hundred KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Files of one folder: there is about one for each maker.
const FILES_MAX: usize = 256;
/// Others may write it: then it says what they want, and its devices are the machine's.
const WRITABLE_BY_OTHERS: u32 = 0o002;

/// A device that a specification tells of.
#[derive(Debug, Clone)]
pub struct Device {
    /// The file that tells of it.
    pub file: PathBuf,
    /// What an instance that has it is given, or why it cannot be given, in words that name the member of the file.
    edits: Result<Edits, String>,
    /// Its own nodes on this machine, without those that all devices of its file have.
    nodes: BTreeSet<PathBuf>,
    /// How the folder of its file ranks: the later one holds.
    rank: usize,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// With which file or folder.
    pub path: PathBuf,
    /// In words that name the member.
    pub what: String,
}

/// All that was found.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// By name, such as `nvidia.com/gpu=0`.
    pub devices: BTreeMap<String, Device>,
    /// Files that could not be read as they are, and devices that cannot be given.
    pub problems: Vec<Problem>,
}

impl Devices {
    /// Reads the specifications in these folders, the most important last. A folder that is not there has none. Blocks.
    #[must_use]
    pub fn read(folders: &[PathBuf]) -> Self {
        let mut found = Self::default();
        let mut twice: BTreeMap<String, (usize, PathBuf)> = BTreeMap::new();
        for (rank, folder) in folders.iter().enumerate() {
            let files = match files(folder) {
                Ok(files) => files,
                Err(error) => {
                    found.problem(folder, error.to_string());
                    continue;
                }
            };
            for path in files {
                match read(&path).and_then(|text| file::parse(&path, &text)) {
                    Ok(file) => found.take(&path, rank, &file, &mut twice),
                    Err(what) => found.problem(&path, what),
                }
            }
        }
        for (name, (rank, other)) in twice {
            // What a later folder says again is not in doubt.
            if found.devices.get(&name).is_some_and(|device| device.rank == rank)
                && let Some(device) = found.devices.remove(&name)
            {
                let what = format!(
                    "device `{name}` is in {} too: remove one of them",
                    other.display()
                );
                found.problem(&device.file, what);
            }
        }
        let unusable: Vec<Problem> = found
            .devices
            .values()
            .filter_map(|device| {
                Some(Problem {
                    path: device.file.clone(),
                    what: device.edits.as_ref().err()?.clone(),
                })
            })
            .collect();
        for problem in unusable {
            // What all devices of a file suffer from is said once.
            if !found.problems.contains(&problem) {
                found.problems.push(problem);
            }
        }
        found
    }

    fn problem(&mut self, path: &Path, what: String) {
        self.problems.push(Problem {
            path: path.to_owned(),
            what,
        });
    }

    fn take(
        &mut self,
        path: &Path,
        rank: usize,
        file: &file::File,
        twice: &mut BTreeMap<String, (usize, PathBuf)>,
    ) {
        let general = Edits::read("containerEdits", &file.container_edits);
        for (index, device) in file.devices.iter().enumerate() {
            let name = format!("{}={}", file.kind, device.name);
            let own = Edits::read(
                &format!("devices[{index}].containerEdits"),
                &device.container_edits,
            );
            let nodes = own
                .iter()
                .flat_map(|own| own.nodes.iter().map(|node| node.source.clone()))
                .collect();
            let edits = general.clone().and_then(|mut edits| {
                edits.add(&own?);
                Ok(edits)
            });
            let device = Device {
                file: path.to_owned(),
                edits,
                nodes,
                rank,
            };
            match self.devices.get(&name) {
                Some(known) if known.rank == rank => {
                    twice.insert(name, (rank, path.to_owned()));
                }
                // Folders come in their order, so this one is the more important.
                _ => {
                    self.devices.insert(name, device);
                }
            }
        }
    }

    /// The names of all devices of a kind that can be given out side by side: of several names for one device the
    /// shortest, and none that stands for several devices.
    #[must_use]
    pub fn of_kind(&self, kind: &str) -> Vec<String> {
        let mut named: Vec<(&str, &Device)> = self
            .devices
            .iter()
            .filter(|(name, device)| {
                device.edits.is_ok() && name.split_once('=').is_some_and(|(its, _)| its == kind)
            })
            .map(|(name, device)| (name.as_str(), device))
            .collect();
        named.sort_by_key(|(name, _)| (name.len(), *name));
        let covers = |this: &BTreeSet<PathBuf>, other: &BTreeSet<PathBuf>| {
            !other.is_empty() && this.is_superset(other)
        };
        let alone = named.iter().enumerate().filter(|(index, (_, device))| {
            !named.iter().enumerate().any(|(other_index, (_, other))| {
                covers(&device.nodes, &other.nodes) && (device.nodes != other.nodes || other_index < *index)
            })
        });
        alone.map(|(_, (name, _))| (*name).to_owned()).collect()
    }

    /// Why a device cannot be given; `None`: it can.
    #[must_use]
    pub fn obstacle(&self, name: &str) -> Option<String> {
        match self.devices.get(name) {
            None => Some(format!("no specification tells of the device `{name}`")),
            Some(device) => device.edits.as_ref().err().map(|why| {
                format!(
                    "the device `{name}` cannot be given: {}: {why}",
                    device.file.display()
                )
            }),
        }
    }

    /// What is asked for by specifications and is left out, such as a hook, each once.
    #[must_use]
    pub fn left_out(&self) -> Vec<String> {
        let all = self
            .devices
            .values()
            .filter_map(|device| device.edits.as_ref().ok());
        let all: BTreeSet<String> = all.flat_map(|edits| edits.left_out.iter().cloned()).collect();
        all.into_iter().collect()
    }

    /// The nodes that are a device's own.
    pub(crate) fn nodes(&self, name: &str) -> Option<&BTreeSet<PathBuf>> {
        self.devices.get(name).map(|device| &device.nodes)
    }

    /// What an instance that has these devices is given. Reads the libraries among it.
    ///
    /// # Errors
    /// Which of them cannot be given, and why.
    pub(crate) fn edits(&self, names: &[String]) -> Result<Edits, String> {
        let mut all = Edits::default();
        for name in names {
            if let Some(obstacle) = self.obstacle(name) {
                return Err(obstacle);
            }
            if let Some(Ok(edits)) = self.devices.get(name).map(|device| &device.edits) {
                all.add(edits);
            }
        }
        all.link_libraries();
        Ok(all)
    }
}

/// The specifications of a folder, by name. What is in folders below is none, as the specification has it.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let is_one = path
            .extension()
            .is_some_and(|extension| extension == "json" || extension == "yaml");
        if !is_one {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(io::Error::other(format!(
                "has more than {FILES_MAX} specifications: remove those that nobody needs"
            )));
        }
        files.push(path);
    }
    files.sort_unstable();
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let file = fs::OpenOptions::new()
        .read(true)
        // A pipe would have us wait for whoever writes to it.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(cannot)?;
    let found = file.metadata().map_err(cannot)?;
    if !found.is_file() {
        return Err("is not a file".to_owned());
    }
    if found.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err("may be written by everybody: take that right away (`chmod o-w`)".to_owned());
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {} MiB", FILE_BYTES_MAX >> 20));
    }
    Ok(text)
}
