//! What a local site is told about its machine: directories, network, limits.
//!
//! Built by the composition root from the settings. Everything has a default that fits one machine, so that
//! [`Config::new`] needs the state directory alone.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tram_model::ModelStore;
use tram_sandbox::protocol::LogLimits;
use tram_site::secrets::SecretValues;

use crate::network::{Ipv4Network, Ipv6};

/// Where instances get their addresses when nothing else is said: room for 65 thousand, and rarely in use
/// elsewhere.
pub const DEFAULT_NETWORK: &str = "10.201.0.0/16";
/// Namespaces kept ready: hides their 4 to 11 ms from a start, also when a few instances start at once.
pub const DEFAULT_NETWORK_POOL: usize = 8;
/// Processes and threads of one instance: generous for a service, and stops a fork bomb.
pub const DEFAULT_PIDS_MAX: u64 = 4096;
/// Open files of each process; what Docker's packages and most init systems give.
pub const DEFAULT_OPEN_FILES_MAX: u64 = 1_048_576;
/// The supervisor is restarted within this time, or its questions are answered with "not now".
pub const DEFAULT_SUPERVISOR_PATIENCE: Duration = Duration::from_secs(3);

/// Of the disk, for the snapshots of all instances: what runs, images and volumes have the rest.
pub const DEFAULT_SNAPSHOT_PERCENT: u8 = 50;

/// How long the logs of an instance are kept after it was forgotten: the service they belong to may live on for years.
pub const DEFAULT_LOGS_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Which instances get a user namespace of their own, in which root inside is nobody outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespaces {
    /// None: root inside is the machine's root, held by everything else.
    Never,
    /// Those for whose code nobody vouches.
    Untrusted,
    /// All.
    Always,
}

/// How much room the snapshots of all instances may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotSpace {
    /// What the disk has.
    Disk,
    /// So many bytes.
    Bytes(u64),
    /// This share of the disk that they are on, in percent.
    Percent(u8),
}

impl SnapshotSpace {
    /// The same in bytes on a disk of `total` bytes; `None`: no limit but what is free.
    #[must_use]
    pub fn bytes(self, total: u64) -> Option<u64> {
        match self {
            Self::Disk => None,
            Self::Bytes(bytes) => Some(bytes),
            // Divided first: a disk may be large, and a percent of it is exact enough.
            Self::Percent(percent) => Some((total / 100).saturating_mul(percent.into())),
        }
    }
}

/// What a replica of a model keeps of prompts, in bytes: a whole context of a small model, and some conversations of a
/// large one.
pub const DEFAULT_KEPT_PROMPTS_BYTES: u64 = 512 << 20;

/// Everything [`crate::LocalSite::open`] needs beside the image store.
#[derive(Debug, Clone)]
pub struct Config {
    /// The site keeps its records in `local/` below this directory.
    pub state_dir: PathBuf,
    /// The directory the supervisor was started with; its socket is in there.
    pub supervisor_dir: PathBuf,
    /// The executor of sandboxes: a static program that any user may run. Absent: sandboxes cannot be started.
    pub executor: Option<PathBuf>,
    /// The models of this machine. Absent: none can be served.
    pub models: Option<ModelStore>,
    /// The private network of the instances.
    pub network: NetworkConfig,
    /// Where the values of bound secrets are read. Absent: requests that need one are refused.
    pub secrets: Option<Arc<dyn SecretValues>>,
    /// More certificate authorities, in PEM, by which hosts of bound secrets may be verified. Absent: the machine's alone.
    pub secret_roots: Option<PathBuf>,
    /// How much of an instance's output is kept.
    pub logs: LogLimits,
    /// How long the logs of a forgotten instance are kept.
    pub logs_retention: Duration,
    /// Processes and threads of one instance.
    pub pids_max: u64,
    /// Open files of each process of an instance.
    pub open_files_max: u64,
    /// Whether the memory of an instance is given back to the machine while it is frozen: it wakes more slowly then.
    pub reclaim_frozen: bool,
    /// Which instances get user and group ids of their own.
    pub user_namespaces: UserNamespaces,
    /// gVisor's `runsc`, for instances of the class `gvisor`; `None`: such ones are not started.
    pub gvisor: Option<PathBuf>,
    /// Folders with specifications of devices, the most important last.
    pub cdi_directories: Vec<PathBuf>,
    /// CRIU, with which frozen instances are moved to disk; `None`: they stay in memory.
    pub checkpoint: Option<PathBuf>,
    /// How much room all checkpoints may take together, in bytes; `None`: what the disk has.
    pub checkpoints_max_bytes: Option<u64>,
    /// How much room the snapshots of all instances may take together.
    pub snapshot_space: SnapshotSpace,
    /// How much a replica of a model keeps of what it computed of prompts, in bytes; `None`: nothing.
    pub kept_prompts_bytes: Option<u64>,
    /// Whether more may be promised to volumes than the disk has: they take their space as it is written.
    pub volumes_overcommit: bool,
    /// How long an order waits for a supervisor that is being restarted.
    pub supervisor_patience: Duration,
}

impl Config {
    /// The defaults, with everything below one directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Self {
            supervisor_dir: state_dir.clone(),
            state_dir,
            executor: None,
            models: None,
            network: NetworkConfig::default(),
            secrets: None,
            secret_roots: None,
            logs: LogLimits::default(),
            logs_retention: DEFAULT_LOGS_RETENTION,
            pids_max: DEFAULT_PIDS_MAX,
            open_files_max: DEFAULT_OPEN_FILES_MAX,
            reclaim_frozen: false,
            user_namespaces: UserNamespaces::Untrusted,
            gvisor: None,
            cdi_directories: Vec::new(),
            checkpoint: None,
            checkpoints_max_bytes: None,
            snapshot_space: SnapshotSpace::Percent(DEFAULT_SNAPSHOT_PERCENT),
            kept_prompts_bytes: Some(DEFAULT_KEPT_PROMPTS_BYTES),
            volumes_overcommit: false,
            supervisor_patience: DEFAULT_SUPERVISOR_PATIENCE,
        }
    }
}

/// The private network of the instances.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The addresses of the instances; the first one is the machine's own, where the name server listens.
    pub addresses: Ipv4Network,
    /// Name servers for everything that is not in the private network. Empty: those of `/etc/resolv.conf`.
    pub name_servers: Vec<SocketAddr>,
    /// Namespaces kept ready.
    pub pool: usize,
    /// Places outside that no instance may reach. Link-local addresses (and so the metadata service of clouds)
    /// and multicast are refused in any case.
    pub denied: Vec<Ipv4Network>,
    /// Whether instances have IPv6.
    pub v6: Ipv6,
    /// The same as `denied` by IPv6, where only global addresses are reached in any case.
    pub denied_v6: Vec<ipnet::Ipv6Net>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            addresses: Ipv4Network::DEFAULT,
            name_servers: Vec::new(),
            pool: DEFAULT_NETWORK_POOL,
            denied: Vec::new(),
            v6: Ipv6::Off,
            denied_v6: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_disk_is_some_of_its_bytes() {
        assert_eq!(
            SnapshotSpace::Percent(50).bytes(200 << 30),
            Some((200 << 30) / 100 * 50)
        );
        assert_eq!(
            SnapshotSpace::Percent(100).bytes(u64::MAX),
            Some(u64::MAX / 100 * 100)
        );
        assert_eq!(SnapshotSpace::Disk.bytes(7), None);
    }

    #[test]
    fn the_default_network_is_what_the_documentation_says() {
        assert_eq!(
            NetworkConfig::default().addresses,
            DEFAULT_NETWORK.parse().unwrap()
        );
    }
}
