//! The description of an instance: everything the launcher needs and nothing it must look up.
//!
//! Built by `site-local`, recorded by the supervisor as `spec.json` before anything else happens.
//! The one design choice to know: [`LaunchSpec::validate`] refuses what could not be launched or
//! could reach outside the instance, so the later stages do not check again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{IdRange, User};

/// An instance id becomes a directory and a cgroup name, so it must be short and plain.
const ID_BYTES_MAX: usize = 64;
/// The kernel's limit on a hostname (`__NEW_UTS_LEN`).
const HOSTNAME_BYTES_MAX: usize = 64;
/// Stops an image with a silly number of layers; the overlay driver itself stops at 500.
const LOWER_DIRS_MAX: usize = 500;
/// Stops a spec from filling the supervisor's memory; the frame limit stops the bytes.
const LIST_LENGTH_MAX: usize = 4096;
/// The highest signal number of Linux.
const SIGNAL_MAX: i32 = 64;
/// The kernel gives a process of its own at least this much; below it nothing starts.
const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// A file system with less has hardly room for its own records.
pub const DISK_BYTES_MIN: u64 = 16 << 20;
/// A quota below one millisecond in each period of 100 is refused by the kernel.
const CPU_MILLIS_MIN: u32 = 10;

/// Names an instance: 1 to 64 characters of `a-z A-Z 0-9 - _`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

impl InstanceId {
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidSpec> {
        let id = id.into();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.chars().all(plain) {
            return Err(InvalidSpec(format!("{id:?} is not an instance id")));
        }
        Ok(Self(id))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.0
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidSpec;
    fn try_from(id: String) -> Result<Self, InvalidSpec> {
        Self::new(id)
    }
}

impl std::str::FromStr for InstanceId {
    type Err = InvalidSpec;
    fn from_str(id: &str) -> Result<Self, InvalidSpec> {
        Self::new(id)
    }
}

/// What is wrong with a spec, in words for whoever built it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSpec(pub(crate) String);

/// Everything about one instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchSpec {
    pub id: InstanceId,
    /// Guards the order: a launch with a lower generation than the recorded one is refused.
    pub generation: u64,
    /// The image's unpacked layers, absolute paths, **the topmost layer first** (as overlayfs takes
    /// them: an earlier directory hides a later one). At least one.
    pub lower_dirs: Vec<PathBuf>,
    /// Absent: the writable layer is on the disk of the state directory, without a limit of its own.
    /// Present: it is a tmpfs of this size, and what is written counts as the instance's memory.
    #[serde(default)]
    pub upper_bytes_max: Option<u64>,
    /// Present: the writable layer is on a disk of its own of this size, which ends with the instance. Where the
    /// machine cannot make one (it takes `mke2fs` and loop devices), it is as if this were absent.
    #[serde(default)]
    pub disk_bytes_max: Option<u64>,
    /// Present: the disk starts as this snapshot (see [`crate::snapshot::take`]) and is as large as it. An instance that
    /// cannot have it is not started.
    #[serde(default)]
    pub disk_from: Option<PathBuf>,
    /// Present: instead of a program of its own it goes on with these processes, which were kept by
    /// [`super::Request::Keep`] together with the disk of `disk_from`. An instance that cannot have them is not started.
    #[serde(default)]
    pub memory_from: Option<MemoryFrom>,
    /// The program and its arguments. A program without a slash is searched in the `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment, exactly as given.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Created (owned by the user) if missing.
    #[serde(default = "root_path")]
    pub cwd: String,
    #[serde(default = "root_user")]
    pub user: User,
    /// Present: a user namespace of its own, whose ids are these outside.
    #[serde(default)]
    pub ids: Option<IdRange>,
    /// Present: its system calls are answered by gVisor, whose program `runsc` this is (see [`crate::gvisor`]).
    #[serde(default)]
    pub gvisor: Option<PathBuf>,
    pub hostname: String,
    /// Written into the instance's file system before it starts, `/etc/hosts` and
    /// `/etc/resolv.conf` among them.
    #[serde(default)]
    pub files: Vec<ConfigFile>,
    #[serde(default)]
    pub binds: Vec<BindMount>,
    /// Devices of this machine that it may use, beside those that every instance has.
    #[serde(default)]
    pub devices: Vec<DeviceNode>,
    /// Symbolic links laid into its file system before it starts.
    #[serde(default)]
    pub links: Vec<Link>,
    /// Files with a file system in them, which this instance alone has while it lives; see [`crate::volume`].
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    #[serde(default)]
    pub network: Network,
    #[serde(default)]
    pub limits: Limits,
    /// For root: what it may do. For other users: what a process can reach at most, and none of it is
    /// held at the start (as Docker does).
    #[serde(default = "Capability::docker_default")]
    pub capabilities: Vec<Capability>,
    /// Make the root file system read-only once the config files are in. `/dev/shm`, `/dev` and
    /// volumes stay as they are.
    #[serde(default)]
    pub readonly_root: bool,
    #[serde(default)]
    pub logs: LogLimits,
    /// Sent by [`super::Request::Stop`]; default SIGTERM (15).
    #[serde(default = "default_stop_signal")]
    pub stop_signal: i32,
    /// Kept and given back by [`super::Request::List`]; the supervisor does not read them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn root_path() -> String {
    "/".to_owned()
}

fn root_user() -> User {
    User {
        uid: 0,
        gid: 0,
        groups: Vec::new(),
    }
}

fn default_stop_signal() -> i32 {
    libc::SIGTERM
}

/// A file that is put into the instance. Parents are created; symlinks in the image are resolved
/// inside the instance's root; whatever stands at the path itself is replaced, not followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFile {
    /// Absolute, inside the instance.
    pub path: PathBuf,
    #[serde(with = "base64_bytes")]
    pub content: Vec<u8>,
    /// Permission bits, say `0o644`.
    pub mode: u32,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
}

/// Processes that another instance had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFrom {
    /// CRIU (see [`crate::checkpoint::Criu::find`]).
    pub program: PathBuf,
    /// The directory they were kept in. Nothing is written to it, and it may be removed once the instance runs.
    pub image: PathBuf,
}

/// A directory or file of this machine shown inside the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Absolute, on this machine; must exist.
    pub source: PathBuf,
    /// Absolute, inside the instance; created if missing.
    pub target: PathBuf,
    #[serde(default)]
    pub readonly: bool,
}

/// A character device of this machine shown inside the instance.
///
/// This is the only way to a device there: every other mount of an instance forbids them, so a node that somebody inside
/// makes or brings along cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute, on this machine; must be a character device.
    pub source: PathBuf,
    /// Below `/dev`, and not where something is already.
    pub target: PathBuf,
    /// Present: its major and minor number; another device of the same name is refused.
    #[serde(default)]
    pub number: Option<(u32, u32)>,
}

/// A symbolic link inside the instance. What stands there is replaced, unless it is a directory or mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Absolute, inside the instance.
    pub path: PathBuf,
    /// What it says.
    pub target: PathBuf,
}

/// A volume shown inside the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Absolute, on this machine; must exist.
    pub file: PathBuf,
    /// Absolute, inside the instance; created if missing.
    pub target: PathBuf,
    #[serde(default)]
    pub readonly: bool,
}

/// Where the instance's packets go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Network {
    /// A fresh network namespace with only a loopback interface.
    #[default]
    Private,
    /// A namespace that somebody else made and wired: the path of its file (see [`crate::netns`]).
    Namespace { path: PathBuf },
}

/// What the instance may use. Absent means no limit but the machine's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory and swap together; reaching it gets a process killed.
    pub memory_bytes: Option<u64>,
    /// 1000 is one CPU.
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub pids_max: Option<u64>,
    /// Open files of each process; lowered to what this machine lets us give.
    pub nofile: Option<u64>,
    /// How long a file may get that it writes: bounds what it puts into a single file of the machine's that it is shown.
    #[serde(default)]
    pub file_bytes: Option<u64>,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // 64 MiB is what Docker gives `/dev/shm`; 4096 tasks is generous for a service and stops a
        // fork bomb long before the machine's pid table fills.
        Self {
            memory_bytes: None,
            cpu_millis: None,
            pids_max: Some(4096),
            nofile: None,
            file_bytes: None,
            shm_bytes: 64 << 20,
        }
    }
}

/// How much of an instance's output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimits {
    /// Sustained rate that is kept; lines beyond are dropped and counted.
    pub bytes_per_second: u64,
    /// What may come at once before the rate applies.
    pub burst_bytes: u64,
    /// A segment file is closed when it reaches this size.
    pub segment_bytes: u64,
    /// The oldest segment is removed when there are more.
    pub segments_max: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        // 1 MiB/s is far above what a service writes on purpose; 8 segments of 4 MiB keep hours of it
        // and bound an instance to 32 MiB of disk.
        Self {
            bytes_per_second: 1 << 20,
            burst_bytes: 4 << 20,
            segment_bytes: 4 << 20,
            segments_max: 8,
        }
    }
}

macro_rules! capabilities {
    ($($variant:ident = $number:literal,)*) => {
        /// A Linux capability, by the kernel's number. In JSON as in OCI: `CAP_NET_RAW`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[expect(non_camel_case_types, reason = "the names are the kernel's own, and users write them")]
        pub enum Capability { $($variant = $number,)* }

        impl Capability {
            pub(crate) fn number(self) -> u32 {
                match self { $(Self::$variant => $number,)* }
            }
        }
    };
}

capabilities! {
    CAP_CHOWN = 0, CAP_DAC_OVERRIDE = 1, CAP_DAC_READ_SEARCH = 2, CAP_FOWNER = 3, CAP_FSETID = 4,
    CAP_KILL = 5, CAP_SETGID = 6, CAP_SETUID = 7, CAP_SETPCAP = 8, CAP_LINUX_IMMUTABLE = 9,
    CAP_NET_BIND_SERVICE = 10, CAP_NET_BROADCAST = 11, CAP_NET_ADMIN = 12, CAP_NET_RAW = 13,
    CAP_IPC_LOCK = 14, CAP_IPC_OWNER = 15, CAP_SYS_CHROOT = 18, CAP_SYS_PTRACE = 19,
    CAP_SYS_NICE = 23, CAP_MKNOD = 27, CAP_LEASE = 28, CAP_AUDIT_WRITE = 29, CAP_SETFCAP = 31,
}

impl Capability {
    /// Docker's default set.
    pub fn docker_default() -> Vec<Self> {
        vec![
            Self::CAP_CHOWN,
            Self::CAP_DAC_OVERRIDE,
            Self::CAP_FSETID,
            Self::CAP_FOWNER,
            Self::CAP_MKNOD,
            Self::CAP_NET_RAW,
            Self::CAP_SETGID,
            Self::CAP_SETUID,
            Self::CAP_SETFCAP,
            Self::CAP_SETPCAP,
            Self::CAP_NET_BIND_SERVICE,
            Self::CAP_SYS_CHROOT,
            Self::CAP_KILL,
            Self::CAP_AUDIT_WRITE,
        ]
    }
}

impl LaunchSpec {
    /// A spec with every default: root in `/`, no limits but the process limit, a private network.
    pub fn new(id: InstanceId, generation: u64, lower_dirs: Vec<PathBuf>, argv: Vec<String>) -> Self {
        Self {
            hostname: id.as_str().to_owned(),
            id,
            generation,
            lower_dirs,
            upper_bytes_max: None,
            disk_bytes_max: None,
            disk_from: None,
            memory_from: None,
            argv,
            env: Vec::new(),
            cwd: root_path(),
            user: root_user(),
            ids: None,
            gvisor: None,
            files: Vec::new(),
            binds: Vec::new(),
            devices: Vec::new(),
            links: Vec::new(),
            volumes: Vec::new(),
            network: Network::Private,
            limits: Limits::default(),
            capabilities: Capability::docker_default(),
            readonly_root: false,
            logs: LogLimits::default(),
            stop_signal: default_stop_signal(),
            labels: BTreeMap::new(),
        }
    }

    /// Refuses what could not be launched. Does not look at the disk.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        let refuse = |reason: String| Err(InvalidSpec(reason));
        if self.lower_dirs.is_empty() || self.lower_dirs.len() > LOWER_DIRS_MAX {
            return refuse(format!("lower_dirs must name 1 to {LOWER_DIRS_MAX} directories"));
        }
        for directory in &self.lower_dirs {
            absolute("lower_dirs", directory)?;
        }
        program("argv", &self.argv, &self.env)?;
        absolute("cwd", Path::new(&self.cwd))?;
        no_nul("cwd", &self.cwd)?;
        if self.hostname.is_empty()
            || self.hostname.len() > HOSTNAME_BYTES_MAX
            || self.hostname.contains('\0')
        {
            return refuse(format!("hostname must have 1 to {HOSTNAME_BYTES_MAX} bytes"));
        }
        if !(1..=SIGNAL_MAX).contains(&self.stop_signal) {
            return refuse(format!("stop_signal must be 1 to {SIGNAL_MAX}"));
        }
        for (what, length) in [
            ("files", self.files.len()),
            ("binds", self.binds.len()),
            ("devices", self.devices.len()),
            ("links", self.links.len()),
            ("volumes", self.volumes.len()),
            ("labels", self.labels.len()),
            ("groups", self.user.groups.len()),
        ] {
            if length > LIST_LENGTH_MAX {
                return refuse(format!("{what} has more than {LIST_LENGTH_MAX} entries"));
            }
        }
        for file in &self.files {
            inside("files", &file.path)?;
            if file.mode & !0o777 != 0 {
                return refuse(format!(
                    "mode {:o} of {} is not permission bits",
                    file.mode,
                    file.path.display()
                ));
            }
        }
        if let Some(snapshot) = &self.disk_from {
            absolute("disk_from", snapshot)?;
        }
        if let Some(memory) = &self.memory_from {
            absolute("memory_from program", &memory.program)?;
            absolute("memory_from image", &memory.image)?;
            if self.disk_from.is_none() {
                return refuse("memory_from needs disk_from: they are of one moment".to_owned());
            }
        }
        for bind in &self.binds {
            absolute("binds source", &bind.source)?;
            inside("binds target", &bind.target)?;
        }
        for device in &self.devices {
            absolute("devices source", &device.source)?;
            inside("devices target", &device.target)?;
            free_in_dev("devices target", &device.target)?;
        }
        for link in &self.links {
            inside("links path", &link.path)?;
            no_nul("links target", &link.target.to_string_lossy())?;
            if link.target.as_os_str().is_empty() {
                return refuse(format!("the link {} leads nowhere", link.path.display()));
            }
            if link.path.starts_with("/dev") {
                free_in_dev("links path", &link.path)?;
            }
            if ["/proc", "/sys"].iter().any(|top| link.path.starts_with(top)) {
                return refuse(format!("links path: {} is the kernel's", link.path.display()));
            }
        }
        if !self.devices.is_empty() && (self.gvisor.is_some() || self.memory_from.is_some()) {
            return refuse("devices go with neither gvisor nor memory_from".to_owned());
        }
        for volume in &self.volumes {
            absolute("volumes file", &volume.file)?;
            inside("volumes target", &volume.target)?;
        }
        if let Network::Namespace { path } = &self.network {
            absolute("network path", path)?;
        }
        if self.upper_bytes_max.is_some() && self.disk_bytes_max.is_some() {
            return refuse("upper_bytes_max and disk_bytes_max exclude each other".to_owned());
        }
        if self.disk_bytes_max.is_some_and(|bytes| bytes < DISK_BYTES_MIN) {
            return refuse(format!("disk_bytes_max must be at least {DISK_BYTES_MIN}"));
        }
        if let Some(program) = &self.gvisor {
            absolute("gvisor", program)?;
            if self.ids.is_some() || self.memory_from.is_some() {
                return refuse("gvisor goes with neither ids nor memory_from".to_owned());
            }
        }
        if let Some(ids) = self.ids {
            ids.validate(self)?;
        }
        self.limits.validate()?;
        if self.logs.segments_max < 2 || self.logs.segment_bytes == 0 || self.logs.bytes_per_second == 0 {
            return refuse("logs must keep at least two segments, and some bytes".to_owned());
        }
        Ok(())
    }
}

impl Limits {
    fn validate(&self) -> Result<(), InvalidSpec> {
        if self.memory_bytes.is_some_and(|bytes| bytes < MEMORY_BYTES_MIN) {
            return Err(InvalidSpec(format!(
                "memory_bytes must be at least {MEMORY_BYTES_MIN}"
            )));
        }
        if self.cpu_millis.is_some_and(|millis| millis < CPU_MILLIS_MIN) {
            return Err(InvalidSpec(format!(
                "cpu_millis must be at least {CPU_MILLIS_MIN}"
            )));
        }
        if self.pids_max == Some(0) || self.nofile == Some(0) || self.shm_bytes == 0 {
            return Err(InvalidSpec("a limit of zero lets nothing start".to_owned()));
        }
        Ok(())
    }
}

/// Shared by launch and exec: something to run, in words the kernel can take.
pub(super) fn program(what: &str, argv: &[String], env: &[(String, String)]) -> Result<(), InvalidSpec> {
    if argv.first().is_none_or(String::is_empty) {
        return Err(InvalidSpec(format!("{what} must name a program")));
    }
    for word in argv {
        no_nul(what, word)?;
    }
    for (name, value) in env {
        no_nul("env", name)?;
        no_nul("env", value)?;
        if name.is_empty() || name.contains('=') {
            return Err(InvalidSpec(format!(
                "{name:?} is not a name of an environment variable"
            )));
        }
    }
    Ok(())
}

fn no_nul(what: &str, text: &str) -> Result<(), InvalidSpec> {
    if text.contains('\0') {
        return Err(InvalidSpec(format!("{what} contains a zero byte")));
    }
    Ok(())
}

fn absolute(what: &str, path: &Path) -> Result<(), InvalidSpec> {
    if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(InvalidSpec(format!(
            "{what}: {} is not an absolute path",
            path.display()
        )));
    }
    Ok(())
}

/// A path inside the instance: absolute, below the root, and without `..`.
fn inside(what: &str, path: &Path) -> Result<(), InvalidSpec> {
    absolute(what, path)?;
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !plain || path.file_name().is_none() {
        return Err(InvalidSpec(format!(
            "{what}: {} is not a plain path below /",
            path.display()
        )));
    }
    Ok(())
}

/// What every instance has in its `/dev`, and what only the machine has.
const RESERVED_IN_DEV: [&str; 19] = [
    "null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "ptmx", "pts",
    "shm", "mqueue", "console", "mem", "kmem", "port", "kmsg",
];

/// A place below `/dev` that is not taken.
fn free_in_dev(what: &str, path: &Path) -> Result<(), InvalidSpec> {
    let below = path.strip_prefix("/dev").ok();
    match below.and_then(|below| below.components().next()) {
        Some(Component::Normal(first)) if !RESERVED_IN_DEV.iter().any(|taken| first == *taken) => Ok(()),
        _ => Err(InvalidSpec(format!(
            "{what}: {} is not a free place below /dev",
            path.display()
        ))),
    }
}

/// File contents are bytes; JSON carries text.
mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

impl super::ExecSpec {
    /// Refuses what could not be executed.
    pub fn validate(&self) -> Result<(), InvalidSpec> {
        program("argv", &self.argv, &self.env)?;
        match &self.cwd {
            Some(cwd) => no_nul("cwd", cwd).and_then(|()| absolute("cwd", Path::new(cwd))),
            None => Ok(()),
        }
    }
}
