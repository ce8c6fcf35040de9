//! What a user asks for: the definition of a deployment, member by member (digest, section 3).
//!
//! These structs are the wire contract itself. What came in goes out again unchanged, templates included, since
//! clients read a definition, change one member and send it back; defaults are applied by [`crate::effective`]
//! when a deployment is carried out, never here.

use crate::status::{
    DefinitionType, DeploymentMesh, DeploymentStrategyType, EgressPolicyMode, MeshScope, ProxyPortProtocol,
};

crate::message! {
    /// One immutable description of a service: where its code comes from, how it is reached, scaled and checked.
    pub struct DeploymentDefinition {
        /// Deprecated upstream in favour of the service's own name, still filled by every client.
        pub name: String,
        /// Web, worker, database or sandbox.
        pub r#type: DefinitionType,
        /// How the new deployment takes over.
        pub strategy: Option<DeploymentStrategy>,
        /// Which paths lead to which port.
        pub routes: Vec<DeploymentRoute>,
        /// What the program listens on.
        pub ports: Vec<DeploymentPort>,
        /// Ports reached by TCP from outside.
        pub proxy_ports: Vec<DeploymentProxyPort>,
        /// The program's environment.
        pub env: Vec<DeploymentEnv>,
        /// Where it runs.
        pub regions: Vec<String>,
        /// How many instances.
        pub scalings: Vec<DeploymentScaling>,
        /// How large an instance.
        pub instance_types: Vec<DeploymentInstanceType>,
        /// How health is told.
        pub health_checks: Vec<DeploymentHealthCheck>,
        /// What is attached.
        pub volumes: Vec<DeploymentVolume>,
        /// Files laid into the instance.
        pub config_files: Vec<ConfigFile>,
        /// Whether a build starts from nothing.
        pub skip_cache: bool,
        /// Whether it joins the private network.
        pub mesh: DeploymentMesh,
        /// What it may reach.
        pub network_policy: Option<NetworkPolicy>,
        /// The source: an image.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub docker: Option<DockerSource>,
        /// The source: a git repository.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub git: Option<GitSource>,
        /// The source: a managed database.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub database: Option<DatabaseSource>,
        /// The source: an uploaded tree.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub archive: Option<ArchiveSource>,
        /// The source: a model. Ours: upstream has none.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub model: Option<ModelSource>,
    }

    /// How a new deployment takes over from the old one.
    pub struct DeploymentStrategy {
        /// Which of the strategies.
        pub r#type: DeploymentStrategyType,
    }

    /// A path that leads to a port.
    pub struct DeploymentRoute {
        /// One of the definition's ports, of protocol `http` or `http2`.
        pub port: i64,
        /// Prefix of the path, starting with `/`; it is removed before the request is handed on.
        pub path: String,
        /// Who may come in.
        pub security_policies: Option<SecurityPolicies>,
    }

    /// Who may come in by a route: any of these.
    pub struct SecurityPolicies {
        /// Users with passwords.
        pub basic_auths: Vec<BasicAuthPolicy>,
        /// Keys in a header.
        pub api_keys: Vec<String>,
    }

    /// One user of a route.
    pub struct BasicAuthPolicy {
        /// Name.
        pub username: String,
        /// Password; may hold `{{ secret.NAME }}`.
        pub password: String,
    }

    /// A port the program listens on.
    pub struct DeploymentPort {
        /// 1 to 65535.
        pub port: i64,
        /// `http`, `http2` or `tcp`.
        pub protocol: String,
    }

    /// A port reached by TCP from outside.
    pub struct DeploymentProxyPort {
        /// The port inside.
        pub port: i64,
        /// Always `tcp`.
        pub protocol: ProxyPortProtocol,
    }

    /// One variable of the program's environment.
    pub struct DeploymentEnv {
        /// `region:<id>` entries that limit the variable to these regions.
        pub scopes: Vec<String>,
        /// Name.
        pub key: String,
        /// Value; may hold `{{ … }}`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub value: Option<String>,
        /// Legacy: the name of a secret whose value this variable takes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub secret: Option<String>,
    }

    /// How many instances, per region.
    pub struct DeploymentScaling {
        /// `region:<id>` entries that limit it to these regions.
        pub scopes: Vec<String>,
        /// Fewest instances; 0 lets the service sleep.
        pub min: i64,
        /// Most instances.
        pub max: i64,
        /// What to scale on.
        pub targets: Vec<DeploymentScalingTarget>,
    }

    /// One thing to scale on: exactly one member is set.
    pub struct DeploymentScalingTarget {
        /// Percent of CPU over all instances.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub average_cpu: Option<ScalingTargetValue>,
        /// Percent of memory over all instances.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub average_mem: Option<ScalingTargetValue>,
        /// Requests a second, per instance.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub requests_per_second: Option<ScalingTargetValue>,
        /// Requests in flight, per instance.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub concurrent_requests: Option<ScalingTargetValue>,
        /// Milliseconds at a quantile.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub requests_response_time: Option<ScalingTargetResponseTime>,
        /// How long without traffic before sleep.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub sleep_idle_delay: Option<ScalingTargetSleepIdleDelay>,
    }

    /// A target with one value.
    pub struct ScalingTargetValue {
        /// In the target's unit.
        pub value: i64,
    }

    /// A target on response time.
    pub struct ScalingTargetResponseTime {
        /// Milliseconds.
        pub value: i64,
        /// 0 to 100; 0 means 95.
        pub quantile: i64,
    }

    /// When an idle service goes to sleep, in seconds; 0 is unset.
    pub struct ScalingTargetSleepIdleDelay {
        /// Deprecated alias of `deep_sleep_value`.
        pub value: i64,
        /// Idle time before the instance stops.
        pub deep_sleep_value: i64,
        /// Idle time before the instance is frozen.
        pub light_sleep_value: i64,
    }

    /// How large an instance is.
    pub struct DeploymentInstanceType {
        /// `region:<id>` entries that limit it to these regions.
        pub scopes: Vec<String>,
        /// An id of the catalog, such as `micro`.
        pub r#type: String,
    }

    /// How an instance's health is told; exactly one of `tcp` and `http` is set. Zeros mean the default.
    pub struct DeploymentHealthCheck {
        /// Seconds before a failing probe counts.
        pub grace_period: i64,
        /// Seconds between probes.
        pub interval: i64,
        /// Failures in a row before the instance is replaced.
        pub restart_limit: i64,
        /// Seconds a probe may take.
        pub timeout: i64,
        /// Connects.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tcp: Option<TcpHealthCheck>,
        /// Asks and expects a 2xx or 3xx answer.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub http: Option<HttpHealthCheck>,
    }

    /// A probe that connects.
    #[schema(as = TCPHealthCheck)]
    pub struct TcpHealthCheck {
        /// Where to.
        pub port: i64,
    }

    /// A probe that asks.
    #[schema(as = HTTPHealthCheck)]
    pub struct HttpHealthCheck {
        /// Where to.
        pub port: i64,
        /// What for; empty means `/`.
        pub path: String,
        /// How; empty means `GET`.
        pub method: String,
        /// With what headers.
        pub headers: Vec<HttpHeader>,
    }

    /// One header of a probe.
    #[schema(as = HTTPHeader)]
    pub struct HttpHeader {
        /// Name.
        pub key: String,
        /// Value.
        pub value: String,
    }

    /// A volume attached to an instance.
    pub struct DeploymentVolume {
        /// The volume.
        pub id: String,
        /// Where, absolute.
        pub path: String,
        /// For which replica.
        pub replica_index: i64,
        /// `region:<id>` entries that limit it to these regions.
        pub scopes: Vec<String>,
    }

    /// A file laid into the instance.
    pub struct ConfigFile {
        /// Where, absolute.
        pub path: String,
        /// Octal, such as `0644`; empty means that.
        pub permissions: String,
        /// What; may hold `{{ … }}`.
        pub content: String,
    }

    /// What an instance may reach, and who may reach it.
    pub struct NetworkPolicy {
        /// Towards the outside.
        pub egress: Option<EgressPolicy>,
        /// Between services.
        pub mesh: Option<MeshPolicy>,
    }

    /// What an instance may reach outside.
    pub struct EgressPolicy {
        /// Everything, or only the list.
        pub mode: EgressPolicyMode,
        /// Addresses and networks that may be reached under `DENY_ALL`.
        pub allow_list: Vec<EgressRule>,
    }

    /// One thing that may be reached.
    pub struct EgressRule {
        /// An address or a network, v4 or v6; or a name, `*.` before it for all names below.
        pub cidr: String,
    }

    /// Which services may reach each other.
    pub struct MeshPolicy {
        /// How wide.
        pub scope: MeshScope,
        /// Only with scope CUSTOM: the group's name.
        pub name: String,
    }

    /// An image.
    pub struct DockerSource {
        /// A reference, short forms included.
        pub image: String,
        /// One more argument after the entrypoint; never split into words.
        pub command: String,
        /// Arguments after the command.
        pub args: Vec<String>,
        /// Name of a secret of type REGISTRY.
        pub image_registry_secret: String,
        /// Replaces the image's entrypoint.
        pub entrypoint: Vec<String>,
        /// Asks for full rights over the host.
        pub privileged: bool,
    }

    /// A git repository.
    pub struct GitSource {
        /// `github.com/<organization>/<name>`.
        pub repository: String,
        /// Branch.
        pub branch: String,
        /// Tag.
        pub tag: String,
        /// Commit.
        pub sha: String,
        /// Legacy: see `buildpack`.
        pub build_command: String,
        /// Legacy: see `buildpack`.
        pub run_command: String,
        /// Whether a push deploys.
        pub no_deploy_on_push: bool,
        /// Folder of the sources.
        pub workdir: String,
        /// Build with buildpacks.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub buildpack: Option<BuildpackBuilder>,
        /// Build with a Dockerfile.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub docker: Option<DockerBuilder>,
    }

    /// A build with buildpacks.
    pub struct BuildpackBuilder {
        /// Replaces the build command.
        pub build_command: String,
        /// Replaces the run command.
        pub run_command: String,
        /// Asks for full rights over the builder.
        pub privileged: bool,
    }

    /// A build with a Dockerfile.
    pub struct DockerBuilder {
        /// Path of the Dockerfile.
        pub dockerfile: String,
        /// Replaces the entrypoint.
        pub entrypoint: Vec<String>,
        /// Replaces the command.
        pub command: String,
        /// Arguments after the command.
        pub args: Vec<String>,
        /// Stage to stop at.
        pub target: String,
        /// Asks for full rights over the builder.
        pub privileged: bool,
    }

    /// A managed database.
    pub struct DatabaseSource {
        /// PostgreSQL.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub neon_postgres: Option<NeonPostgresDatabase>,
    }

    /// A managed PostgreSQL.
    pub struct NeonPostgresDatabase {
        /// Major version.
        pub pg_version: i64,
        /// Where.
        pub region: String,
        /// How large.
        pub instance_type: String,
        /// Roles to make.
        pub roles: Vec<NeonRole>,
        /// Databases to make.
        pub databases: Vec<NeonDatabase>,
    }

    /// A role of a managed database.
    #[schema(as = NeonPostgresDatabase::NeonRole)]
    pub struct NeonRole {
        /// Name.
        pub name: String,
        /// Name of the secret with the password.
        pub secret: String,
    }

    /// A database of a managed database.
    #[schema(as = NeonPostgresDatabase::NeonDatabase)]
    pub struct NeonDatabase {
        /// Name.
        pub name: String,
        /// Its owner's role.
        pub owner: String,
    }

    /// An uploaded tree.
    pub struct ArchiveSource {
        /// The archive.
        pub id: String,
        /// Build with buildpacks.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub buildpack: Option<BuildpackBuilder>,
        /// Build with a Dockerfile.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub docker: Option<DockerBuilder>,
    }

    /// A change of a model's weights (LoRA, in a GGUF file).
    pub struct ModelAdapter {
        /// How requests ask for it: `SERVICE:NAME` as `model`.
        pub name: String,
        /// A file of this installation, named as models are.
        pub source: String,
    }

    /// A model, served by an engine. Zeros mean the default.
    pub struct ModelSource {
        /// A model of this installation: its name, `sha256:` and its digest, or the place it was fetched from. With an
        /// image of one's own also an absolute path in it, or on a volume.
        pub source: String,
        /// What serves it: `tram-engine`, the platform's own, which is meant when it is empty; `llama-server`, `vllm`,
        /// `sglang`, or `openai` for whatever else speaks OpenAI's contract.
        pub engine: String,
        /// The image with the engine; empty for the platform's own.
        pub image: String,
        /// Name of a secret of type REGISTRY, for that image.
        pub image_registry_secret: String,
        /// What else the engine is told, after what it is told anyway.
        pub args: Vec<String>,
        /// What an engine of type `openai` calls its model; empty means the service's name.
        pub served_name: String,
        /// Changes of the model's weights that a request may ask for.
        pub adapters: Vec<ModelAdapter>,
        /// A smaller model of the same vocabulary, named as models are, that guesses what this one says next: answers are the
        /// same and may come sooner. Empty: none.
        pub draft: String,
        /// Tokens that a prompt and its answer have together, at most; all that one instance works on share as many.
        pub context_length: i64,
        /// Answers that one instance writes at once; more wait.
        pub parallel: i64,
    }
}

/// The prefix of a scope that names a region.
pub const REGION_SCOPE_PREFIX: &str = "region:";

/// Whether an entry with these scopes holds in `region`: no scope at all, or one that names it.
#[must_use]
pub fn scoped_to(scopes: &[String], region: &str) -> bool {
    scopes.is_empty()
        || scopes
            .iter()
            .any(|scope| scope.strip_prefix(REGION_SCOPE_PREFIX) == Some(region))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_missing_members_read_as_the_default() {
        let definition: DeploymentDefinition = serde_json::from_str(
            r#"{"name":"a","type":"WEB","env":null,"docker":{"image":"nginx","args":null}}"#,
        )
        .unwrap();
        assert_eq!(definition.r#type, DefinitionType::Web);
        assert!(definition.env.is_empty());
        assert_eq!(
            definition.docker.as_ref().map(|docker| docker.image.as_str()),
            Some("nginx")
        );
    }

    #[test]
    fn unset_sources_are_left_out_and_all_else_is_there() {
        let written = serde_json::to_value(DeploymentDefinition::default()).unwrap();
        let members = written.as_object().unwrap();
        for absent in ["docker", "git", "archive", "database", "model"] {
            assert!(!members.contains_key(absent), "{absent}");
        }
        for present in [
            "env",
            "regions",
            "strategy",
            "network_policy",
            "skip_cache",
            "mesh",
        ] {
            assert!(members.contains_key(present), "{present}");
        }
    }

    #[test]
    fn scopes_limit_to_their_regions() {
        assert!(scoped_to(&[], "fra"));
        assert!(scoped_to(&["region:fra".to_owned()], "fra"));
        assert!(!scoped_to(&["region:was".to_owned()], "fra"));
    }
}
