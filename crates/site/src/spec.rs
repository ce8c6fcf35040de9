//! What a site is told to run: everything resolved, nothing left to decide.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tram_types::{
    AppId, DeploymentId, InstanceId, InstanceSnapshotId, Isolation, OrganizationId, RegionalDeploymentId,
    ServiceId,
    effective::{HealthCheck, Port},
};

/// An image to have ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// As the user wrote it; the site applies the standard reference rules and its aliases.
    pub reference: String,
    /// How to be let in.
    #[serde(default)]
    pub credentials: Option<RegistryCredentials>,
    /// The model that it serves, by any of its names. The site finds the file once for each deployment, and shows it to
    /// the instances read-only at [`MODEL_PATH`].
    #[serde(default)]
    pub model: Option<String>,
    /// Changes of its weights, each shown to the instances at [`adapter_path`].
    #[serde(default)]
    pub adapters: Vec<AdapterSpec>,
    /// A smaller model that guesses for it, by any of its names; shown to the instances at [`DRAFT_PATH`].
    #[serde(default)]
    pub draft: Option<String>,
    /// Whether its program heeds [`KEPT_VARIABLE`], a file that keeps what it has computed from one start to the next. A
    /// site may give it one, which the same replica of this deployment finds again.
    #[serde(default)]
    pub keeps: bool,
    /// Which deployment wants it: a moved tag is looked up once for each deployment, and then pinned to a digest.
    pub deployment: DeploymentId,
}

/// A change of a model's weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// How requests ask for it; can be a file's name.
    pub name: String,
    /// The file, by any of its names.
    pub source: String,
}

/// How to be let into a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryCredentials {
    /// The registry's host these are meant for, as people write it; empty means none.
    pub host: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl RegistryCredentials {
    /// Whether `registry`, the host that an image's reference names, may be shown them. Whoever logs in anywhere
    /// must ask: the name of an image is chosen by others than the owner of the login.
    #[must_use]
    pub fn is_for(&self, registry: &str) -> bool {
        let host = self
            .host
            .trim()
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let host = host.split('/').next().unwrap_or_default();
        let hub = |name: &str| matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io");
        !host.is_empty() && (host.eq_ignore_ascii_case(registry) || (hub(host) && hub(registry)))
    }
}

impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RegistryCredentials")
            .field("host", &self.host)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// An instance to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstanceSpec {
    /// Which.
    pub id: InstanceId,
    /// Whose.
    pub organization_id: OrganizationId,
    /// Of which app.
    pub app_id: AppId,
    /// The app's name, for names in the private network.
    pub app_name: String,
    /// Of which service.
    pub service_id: ServiceId,
    /// The service's name, for names in the private network.
    pub service_name: String,
    /// Of which deployment.
    pub deployment_id: DeploymentId,
    /// Of which regional deployment.
    pub regional_deployment_id: RegionalDeploymentId,
    /// Which of the replicas, from 0.
    pub replica_index: u32,
    /// What to run.
    pub image: ImageSpec,
    /// Replaces the image's entrypoint when not empty.
    pub entrypoint: Vec<String>,
    /// One more argument after the entrypoint, when not empty; never split into words.
    pub command: String,
    /// Arguments after the command.
    pub args: Vec<String>,
    /// The whole environment but for what the image sets; expanded.
    pub env: BTreeMap<String, String>,
    /// Files laid into the root file system; expanded.
    pub files: Vec<FileSpec>,
    /// What it listens on.
    pub ports: Vec<Port>,
    /// How its health is told. Empty: healthy while the process runs.
    pub health_checks: Vec<HealthCheck>,
    /// What it may use.
    pub limits: Limits,
    /// What stands between it and the machine. A site that does not have this class fails the start and says so; it never
    /// takes a weaker one.
    #[serde(default)]
    pub isolation: Isolation,
    /// Devices of the machine that it is given. A site where too few are free answers that it cannot start it now.
    #[serde(default)]
    pub devices: Option<DeviceSpec>,
    /// Volumes it is shown. A site that has one of them in use elsewhere waits a while and then fails the start.
    #[serde(default)]
    pub volumes: Vec<crate::volumes::MountSpec>,
    /// Whether it takes part in the private network of its organization.
    pub mesh: bool,
    /// What it may reach outside: addresses, networks and names (see [`tram_types::egress`]). `None`: everything.
    pub egress_allow: Option<Vec<String>>,
    /// The secrets whose placeholders its environment and files hold. The site puts their values into requests to
    /// their hosts, and nowhere else.
    #[serde(default)]
    pub bound_secrets: Vec<crate::secrets::BoundSecret>,
    /// Whether nobody vouches for its code, as in a sandbox: the site isolates it as well as it can.
    #[serde(default)]
    pub untrusted: bool,
    /// What its disk starts as. `None`: empty. A site that does not have it, or has it of another image, does not start
    /// the instance. The disk is as large as the snapshot, whatever `limits` say.
    #[serde(default)]
    pub snapshot: Option<InstanceSnapshotId>,
    /// A sandbox: the executor is its first process. `None`: the program is.
    #[serde(default)]
    pub executor: Option<ExecutorSpec>,
}

/// Devices that an instance is given for as long as it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpec {
    /// The instance type that has them, for messages.
    pub instance_type: String,
    /// Which may be given, by their names in the Container Device Interface, such as `nvidia.com/gpu=0`.
    pub among: Vec<String>,
    /// How many of them.
    pub count: u32,
    /// The device may be shared. `None`: it is this instance's alone.
    #[serde(default)]
    pub share: Option<DeviceShare>,
}

/// A part of a device. What an instance takes of it is not held to that by the platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceShare {
    /// What it is meant to take of the device's memory, in bytes.
    pub bytes: u64,
    /// The device's memory, in bytes: the shares of a device are no more together.
    pub of_bytes: u64,
}

/// As one of which deployment an instance goes on: one that differs from its own in what may be reached outside, and in
/// nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Which deployment.
    pub deployment_id: DeploymentId,
    /// Which of its regional deployments.
    pub regional_deployment_id: RegionalDeploymentId,
    /// What it may reach outside, as in [`InstanceSpec::egress_allow`].
    pub egress_allow: Option<Vec<String>>,
}

/// The executor of a sandbox (crates/executor). The site has it ready, lays it into the instance read-only outside
/// the image's paths, and starts it with these settings; the sandbox's own program, where the definition names one,
/// follows after `--`. Its secret is in the instance's environment. A site of machines that are not ours does the same
/// with a container that copies the executor into a shared volume first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutorSpec {
    /// Where it takes requests.
    pub port: u16,
    /// Where it relays the bytes of the sandbox's bound port.
    pub proxy_port: u16,
    /// Who may use it.
    pub access: ExecutorAccess,
}

/// Who may use an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecutorAccess {
    /// Whoever shows the secret in the environment.
    Static,
    /// The first who comes, with the secret shown then: a sandbox that waits in a pool.
    Pool,
}

impl ExecutorAccess {
    /// As the executor's `--auth` has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::Pool => "pool",
        }
    }
}

/// The port on which clients look for an executor.
pub const EXECUTOR_PORT: u16 = 3030;
/// The port behind which clients look for a sandbox's bound port.
pub const EXECUTOR_PROXY_PORT: u16 = 3031;

/// Where an instance finds the model it serves.
pub const MODEL_PATH: &str = "/.tramontane/model.gguf";

/// Where an instance finds the smaller model that guesses for it.
pub const DRAFT_PATH: &str = "/.tramontane/draft.gguf";
/// Where an instance finds the file that keeps what it computes.
pub const KEPT_PATH: &str = "/.tramontane/kept";
/// The variable that tells the program so.
pub const KEPT_VARIABLE: &str = "TRAM_ENGINE_KEEP";
/// The variable with what it may have, in bytes.
pub const KEPT_BYTES_VARIABLE: &str = "TRAM_ENGINE_KEEP_BYTES";

/// Where an instance finds an adapter of it.
#[must_use]
pub fn adapter_path(name: &str) -> String {
    format!("/.tramontane/adapters/{name}.gguf")
}

/// A file laid into the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute.
    pub path: String,
    /// What is in it.
    pub content: String,
    /// Permission bits.
    pub mode: u32,
}

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Disk the instance may write, in bytes.
    pub disk_bytes: u64,
}

/// Time between the stop signal and the end by force, unless the order says otherwise.
pub const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_for_their_registry_alone() {
        let is_for = |host: &str, registry: &str| {
            let login = RegistryCredentials {
                host: host.to_owned(),
                username: String::new(),
                password: String::new(),
            };
            login.is_for(registry)
        };
        for host in ["docker.io", "https://index.docker.io/v1/", "index.docker.io"] {
            assert!(is_for(host, "docker.io"), "{host}");
        }
        assert!(is_for("https://GHCR.io/acme", "ghcr.io"));
        for (host, registry) in [
            ("", "docker.io"),
            (" / ", "docker.io"),
            ("ghcr.io", "docker.io"),
            ("docker.io", "ghcr.io"),
            ("ghcr.io.evil.org", "ghcr.io"),
        ] {
            assert!(!is_for(host, registry), "{host} {registry}");
        }
    }
}
