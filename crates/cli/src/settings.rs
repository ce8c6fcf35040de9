//! The settings of `tram up`: file, environment and arguments, resolved once into one complete value.
//!
//! Each setting is declared once, in the list below: its member of [`Settings`], its key in the file, its variable
//! `TRAM_<KEY>`, its flag `--<key>`, its default and its text in docs/reference/settings.md all come from there.
//! An argument goes before a variable, a variable before the file, the file before the default. Unknown keys and
//! unknown `TRAM_` variables are refused: a setting that silently does nothing is worse than a start that fails.

mod checkpoint;
mod gpus;
mod isolation;
mod memory;
mod network;
mod resolve;
mod scaling;
mod value;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

pub use self::{
    checkpoint::{CheckpointAfter, DiskSpace, KeptSpace, SnapshotSpace},
    gpus::{Folders, GpuType, GpuTypes},
    isolation::Isolations,
    memory::ModelsMemory,
    network::NetworkV6,
    resolve::{DEFAULT_FILE, Error},
    scaling::Scaling,
    value::{
        Aliases, Block, Blocks, Count, LogFormat, Minutes, OnStop, Origins, PortRange, Servers, SleepMemory,
        UserNamespaces,
    },
};

/// What is known of one setting, for the resolver and the reference.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its key in the file.
    pub name: &'static str,
    /// What it means.
    pub doc: &'static [&'static str],
    /// What its values look like.
    pub kind: &'static str,
    /// Its default, as it would be written in the file.
    pub default: fn() -> String,
}

impl Key {
    /// The environment variable, such as `TRAM_HTTP_PORT`.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("TRAM_{}", self.name.to_ascii_uppercase())
    }

    /// The flag, such as `--http-port`.
    #[must_use]
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }
}

macro_rules! settings {
    ($( $(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr; )+) => {
        /// The settings, complete. See docs/reference/settings.md.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Settings {
            $( $(#[doc = $doc])+ pub $name: $type, )+
        }

        /// Settings given as arguments.
        #[derive(Debug, Clone, Default, clap::Args)]
        pub struct Flags {
            /// Read settings from this file
            ///
            /// Without it, /etc/tram/tram.toml is read when it is there.
            #[arg(long, value_name = "FILE", help_heading = "Settings")]
            pub config: Option<PathBuf>,
            $(
                $(#[doc = $doc])+
                #[arg(long, value_name = <$type as value::Setting>::KIND, help_heading = "Settings")]
                pub $name: Option<String>,
            )+
        }

        /// Every setting, in the order of the reference.
        pub const KEYS: &[Key] = &[$(
            Key {
                name: stringify!($name),
                doc: &[$($doc),+],
                kind: <$type as value::Setting>::KIND,
                default: || {
                    let default: $type = $default;
                    value::Setting::show(&default)
                },
            },
        )+];

        impl Settings {
            fn build(given: &resolve::Given<'_>) -> Result<Self, Error> {
                Ok(Self { $(
                    $name: match given.find(stringify!($name), given.flags.$name.as_deref())? {
                        Some(found) => found,
                        None => $default,
                    },
                )+ })
            }
        }

        impl Default for Settings {
            fn default() -> Self {
                Self { $( $name: $default, )+ }
            }
        }
    };
}

settings! {
    /// Where everything is kept: database, keys, images, logs.
    data_dir: PathBuf = PathBuf::from("/var/lib/tram");
    /// Address and port of the REST API.
    api_listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7080));
    /// Origins of web pages that may call the REST API from a browser, such as `https://panel.example.org`; empty lets
    /// none.
    allowed_origins: Origins = Origins::default();
    /// Addresses on which services are reached from outside.
    http_listen: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    /// Port for HTTP.
    http_port: u16 = 80;
    /// Port for HTTPS.
    https_port: u16 = 443;
    /// Ports given to services that are reached by TCP.
    proxy_ports: PortRange = PortRange { first: 30_000, last: 30_999 };
    /// Addresses of instances, such as `10.201.0.0/16`; empty takes the first block that this machine does not use.
    network: String = String::new();
    /// Name servers that instances reach for names outside; none uses those of this machine.
    name_servers: Servers = Servers::default();
    /// Whether instances reach the outside by IPv6 too: `on`, or `auto` where this machine has a global address and a
    /// default route, and can forward (Linux 6.17, or `net.ipv6.conf.all.forwarding`). What it takes to keep them away
    /// from is then to be said for IPv6 too, see `denied_networks`.
    network_v6: NetworkV6 = NetworkV6::Off;
    /// Blocks of addresses outside that no instance may reach, such as `192.168.0.0/16` or `2001:db8::/32`.
    denied_networks: Blocks = Blocks::default();
    /// File with certificate authorities, in PEM, by which hosts of bound secrets may be verified beside this machine's own
    /// authorities; empty takes those alone.
    secret_roots: PathBuf = PathBuf::new();
    /// Domain under which apps get a name of their own.
    base_domain: String = "tram.localhost".to_owned();
    /// Id of the region that this machine is.
    region: String = "local".to_owned();
    /// Name of the organization that the first start creates.
    organization: String = "local".to_owned();
    /// PostgreSQL database to keep state in; empty keeps it in SQLite under the data directory.
    database_url: String = String::new();
    /// Folder with certificates for custom domains; empty uses this machine's own authority alone.
    certificates_dir: PathBuf = PathBuf::new();
    /// Folder with mirrors and credentials for each registry host; empty uses none.
    registries_dir: PathBuf = PathBuf::new();
    /// Image names that are taken from elsewhere, such as `koyeb/sandbox=registry.example.org/sandbox`; in the file
    /// also a table of names.
    image_aliases: Aliases = Aliases::default();
    /// Image names that an imported image stands in for while their registry does not answer and they are not here, such
    /// as `python=koyeb/sandbox:latest`; in the file also a table of names. The deployment's events say so.
    image_fallbacks: Aliases = Aliases::default();
    /// What becomes of instances when `tram up` is told to stop: `stop` ends them, `keep` leaves them and the edge
    /// running for the next start, as for an upgrade.
    on_stop: OnStop = OnStop::Stop;
    /// What becomes of the memory of instances in light sleep: `keep` leaves it, `reclaim` gives back what the kernel
    /// can take, and they wake more slowly.
    light_sleep_memory: SleepMemory = SleepMemory::Keep;
    /// How long an instance in light sleep keeps its memory before it goes to disk, such as `5m`; at once when memory is
    /// short. `memory` waits for that alone, `never` leaves it in memory.
    light_sleep_checkpoint_after: CheckpointAfter = CheckpointAfter::Span(Duration::from_secs(5 * 60));
    /// CRIU, which moves instances to disk; empty uses the one that `scripts/criu` installs, or the system's.
    checkpoint_program: PathBuf = PathBuf::new();
    /// How much room the checkpoints of all instances may take together, such as `512MiB` or `20GiB`; what has none stays
    /// in memory. `disk` takes what there is, up to the last GiB.
    checkpoints_max: DiskSpace = DiskSpace::Disk;
    /// How much room the snapshots of instances of one organization may take together, such as `50GiB`. `disk` takes what
    /// there is.
    snapshot_space_max: DiskSpace = DiskSpace::Disk;
    /// How much room the snapshots of instances of all organizations may take together, such as `200GiB`, or a share of the
    /// disk that they are on, such as `50%`. `disk` takes what there is, up to the last GiB.
    snapshot_space_total_max: SnapshotSpace = SnapshotSpace::Percent(50);
    /// How many snapshots of instances an organization may have: of those of a disk, and of those with memory too, each.
    snapshots_max: Count = Count(1000);
    /// How much memory the models of this machine have together, such as `12GiB`: those that rest are put to sleep for
    /// others to wake. `auto` is three quarters of the machine's memory; `unlimited` bounds nothing.
    models_memory: ModelsMemory = ModelsMemory::Auto;
    /// How much room the files of models may take together, such as `200GiB`: those that no deployment uses are removed for
    /// new ones, the longest unused first. `disk` removes none.
    models_space_max: DiskSpace = DiskSpace::Disk;
    /// How much an instance of a model keeps on disk, when it stops, of what it has computed of prompts, such as `2GiB`: the
    /// next one finds it. `none` keeps nothing.
    kept_prompts_max: KeptSpace = KeptSpace::MiB(512);
    /// How many services all pools of an organization may keep ready together: each of them runs all the time.
    pool_members_max: Count = Count(1000);
    /// How many minutes of an awake service may be spent, on average, so that one caller does not wait for a wake:
    /// services with habits are woken before they are called. 0, as long as nothing else is said, wakes none; 10 is a
    /// good start, 1000 the most.
    prewake_minutes: Minutes = Minutes(0);
    /// Which instances get user and group ids of their own, so that root inside is nobody on this machine: `sandboxes`,
    /// `all`, or `none`. A program whose user id is above 65535 does not start with them.
    user_namespaces: UserNamespaces = UserNamespaces::Sandboxes;
    /// What stands between instances and this machine, by instance type, such as `small=gvisor`; in the file also a table
    /// of names. Classes are `container`, which is meant where nothing is said, and `gvisor`, for code one trusts less.
    isolation: Isolations = Isolations::default();
    /// gVisor's program `runsc`; empty uses the one that `scripts/runsc` installs, or the system's.
    gvisor_program: PathBuf = PathBuf::new();
    /// Folders with specifications of devices (CDI), as `nvidia-ctk cdi generate` writes them; of two that tell of the same
    /// device, the one in the later folder holds.
    cdi_directories: Folders = Folders::of(&["/etc/cdi", "/var/run/cdi"]);
    /// Instance types with GPUs, such as `gpu-nvidia-l4 kind=nvidia.com/gpu`; in the file also a table of them, each with
    /// kind, devices, count, memory, share, size and name: see the page on GPUs.
    gpu_types: GpuTypes = GpuTypes::default();
    /// How quickly services follow their load, such as `down_window=60`; in the file also a table of names. What is
    /// left out is built in: see the page on autoscaling.
    scaling: Scaling = Scaling::default();
    /// Which log lines are written, such as `info` or `info,tram_edge=debug`.
    log_filter: String = "info".to_owned();
    /// How log lines are written.
    log_format: LogFormat = LogFormat::Text;
    /// Where traces are sent by OpenTelemetry (OTLP over HTTP); empty sends none.
    otlp_endpoint: String = String::new();
}

#[cfg(test)]
mod tests;
