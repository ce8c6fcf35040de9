//! Which instance has which device.
//!
//! The one design choice to know: there is no table of devices. What is taken is what the records of instances that are
//! not over say, which is read again after a restart; the choice is made under the lock of the table of instances and
//! written down with the order, so that no two instances are ever given the same.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tram_sandbox::protocol::{BindMount, DeviceNode, LaunchSpec, Link};
use tram_site::{DeviceSpec, Error};

use crate::cdi::{Devices, Edits};

/// Where programs look for libraries beside the usual folders.
const LIBRARIES: &str = "LD_LIBRARY_PATH";
/// Whoever is in no group of a node may read and write it.
const OPEN_TO_ALL: u32 = 0o006;
/// Programs that drive several devices talk through shared memory: they are given this part of what the instance has.
const SHARED_MEMORY_PART: u64 = 2;

/// The devices of an instance, and what they change about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    pub(crate) devices: Vec<Held>,
    pub(crate) edits: Edits,
}

/// A device that an instance has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) name: String,
    /// Its own nodes: a specification may tell of one device by several names.
    nodes: BTreeSet<PathBuf>,
    /// What the instance is meant to take of its memory; `None`: the device is its alone.
    share_bytes: Option<u64>,
}

impl Held {
    /// Whether the two are the same device, or one is among those that the other stands for. Slices of a device have a node
    /// in common, and one of their own each.
    fn overlaps(&self, name: &str, nodes: &BTreeSet<PathBuf>) -> bool {
        let both_have_some = !self.nodes.is_empty() && !nodes.is_empty();
        self.name == name
            || (both_have_some && (self.nodes.is_subset(nodes) || self.nodes.is_superset(nodes)))
    }
}

/// Chooses devices for an instance, as `held` leaves them.
///
/// # Errors
/// [`Error::Unavailable`] when too few are free now, or none can be given for now.
pub(crate) fn choose<'a>(
    want: &DeviceSpec,
    devices: &Devices,
    held: impl Iterator<Item = &'a Held>,
) -> Result<Given, Error> {
    let unavailable = |message: String| Error::Unavailable {
        message,
        source: None,
    };
    let held: Vec<&Held> = held.collect();
    let mut free: Vec<(u64, Held)> = Vec::new();
    let mut obstacle = None;
    for name in &want.among {
        let Some(nodes) = devices.nodes(name).filter(|_| devices.obstacle(name).is_none()) else {
            obstacle = obstacle.or_else(|| devices.obstacle(name));
            continue;
        };
        let on_it: Vec<&Held> = held
            .iter()
            .copied()
            .filter(|other| other.overlaps(name, nodes))
            .collect();
        let taken = on_it
            .iter()
            .try_fold(0_u64, |sum, other| sum.checked_add(other.share_bytes?));
        let left = match (&want.share, taken) {
            (None, _) => on_it.is_empty().then_some(0),
            (Some(share), Some(taken)) => share
                .of_bytes
                .checked_sub(taken)
                .filter(|left| *left >= share.bytes),
            (Some(_), None) => None,
        };
        if let Some(left) = left {
            free.push((
                left,
                Held {
                    name: name.clone(),
                    nodes: nodes.clone(),
                    share_bytes: want.share.map(|share| share.bytes),
                },
            ));
        }
    }
    // The fullest that has room, so that whole devices stay free.
    free.sort_by_key(|(left, _)| *left);
    let wanted = usize::try_from(want.count).unwrap_or(usize::MAX);
    let mut chosen: Vec<Held> = Vec::new();
    for (_, device) in free {
        if chosen.len() < wanted
            && !chosen
                .iter()
                .any(|other| other.overlaps(&device.name, &device.nodes))
        {
            chosen.push(device);
        }
    }
    let id = &want.instance_type;
    if chosen.len() < wanted {
        let known = want.among.len();
        let message = match (obstacle, chosen.len()) {
            (Some(obstacle), _) => format!("instance type `{id}` has no device to give: {obstacle}"),
            (None, 0) => format!(
                "every device of instance type `{id}` is in use (there are {known} on this machine): it starts when one \
                 is free"
            ),
            (None, some) => format!(
                "instance type `{id}` needs {wanted} devices, and {some} of the {known} on this machine are free: it \
                 starts when more are"
            ),
        };
        return Err(unavailable(message));
    }
    let names: Vec<String> = chosen.iter().map(|device| device.name.clone()).collect();
    let edits = devices.edits(&names).map_err(unavailable)?;
    Ok(Given {
        devices: chosen,
        edits,
    })
}

impl Given {
    /// Names of the devices, for messages.
    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.devices.iter().map(|device| device.name.as_str()).collect();
        names.join(", ")
    }

    /// Puts into an environment what the devices want there.
    pub(crate) fn extend(&self, env: &mut BTreeMap<String, String>) {
        env.extend(self.edits.env.iter().cloned());
        if self.edits.folders.is_empty() {
            return;
        }
        // The image's own folders go first, as they would before what `ldconfig` knows.
        let own = env.get(LIBRARIES).filter(|own| !own.is_empty()).cloned();
        let folders = self
            .edits
            .folders
            .iter()
            .map(|folder| folder.to_string_lossy().into_owned());
        let all: Vec<String> = own.into_iter().chain(folders).collect();
        env.insert(LIBRARIES.to_owned(), all.join(":"));
    }

    /// Puts the devices into what is launched. Looks at their nodes.
    ///
    /// # Errors
    /// Why the program could not use them, in words for whoever looks after the machine.
    pub(crate) fn put_into(&self, launch: &mut LaunchSpec) -> Result<(), String> {
        if launch.gvisor.is_some() {
            return Err("devices are not given to instances of the class `gvisor`".to_owned());
        }
        let edits = &self.edits;
        if launch.ids.is_some() {
            // In a user namespace the groups of the machine mean nothing, and its root is nobody.
            for node in &edits.nodes {
                let mode = std::fs::metadata(&node.source).map(|found| found.mode());
                if mode.is_ok_and(|mode| mode & OPEN_TO_ALL != OPEN_TO_ALL) {
                    return Err(format!(
                        "the device {} is not open to everybody, and this instance has user ids of its own: give it mode \
                         0666, or set `user_namespaces` so that this instance has none",
                        node.source.display()
                    ));
                }
            }
        } else {
            launch.user.groups.extend(&edits.groups);
            launch.user.groups.sort_unstable();
            launch.user.groups.dedup();
        }
        let mut env: BTreeMap<String, String> = std::mem::take(&mut launch.env).into_iter().collect();
        self.extend(&mut env);
        launch.env = env.into_iter().collect();
        launch.devices.extend(edits.nodes.iter().map(|node| DeviceNode {
            source: node.source.clone(),
            target: node.target.clone(),
            number: node.number,
        }));
        launch.binds.extend(edits.mounts.iter().map(|mount| BindMount {
            source: mount.source.clone(),
            target: mount.target.clone(),
            readonly: true,
        }));
        launch.links.extend(edits.links.iter().map(|link| Link {
            path: link.path.clone(),
            target: link.target.clone(),
        }));
        if let Some(memory) = launch.limits.memory_bytes {
            launch.limits.shm_bytes = launch.limits.shm_bytes.max(memory / SHARED_MEMORY_PART);
        }
        launch
            .validate()
            .map_err(|error| format!("a specification of devices asks for what cannot be: {error}"))
    }
}

#[cfg(test)]
mod tests;
