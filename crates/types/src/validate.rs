//! Whether a definition can be carried out: every violated rule with the field that violates it.
//!
//! All rules are checked, so that a user mends a definition in one go; after [`VIOLATIONS_MAX`] of them it is no
//! longer a user who reads them. What only the store knows (names and types of secrets) is asked through [`Context`].
//!
//! Definitions come from strangers and are as large as a request may be. So a size is checked before what it
//! bounds is looked at, and the time a definition takes grows with its length and not faster.

mod model;
mod network;
mod probes;
mod scaling;
#[cfg(test)]
mod tests;
mod volumes;

use std::collections::BTreeSet;

pub use self::model::{
    CONTEXT_LENGTH_MAX, CONTEXT_LENGTH_MIN, KnownAdapter, KnownDraft, KnownModel, PARALLEL_MAX,
};
pub use self::volumes::check_mount_path;
use crate::{
    catalog::Catalog,
    definition::{DeploymentDefinition, DeploymentEnv, REGION_SCOPE_PREFIX, scoped_to},
    interpolate::{Piece, pieces},
    message::FieldViolation,
    names::check_env_key,
    status::{DefinitionType, SecretType},
};

/// Highest number of instances of one service.
pub const SCALE_MAX: i64 = 20;
/// Most entries of any list of a definition: far above real use, low enough that a definition stays small.
pub const LIST_MAX: usize = 500;
/// Most violations that are told at once: more than anybody reads, few enough that an answer stays small.
pub const VIOLATIONS_MAX: usize = 100;
/// Longest value of a variable, in bytes: the kernel takes 128 KiB for one string of an environment.
pub const ENV_VALUE_MAX_BYTES: usize = 128 * 1024 - 1024;
/// Largest config file, in bytes.
pub const CONFIG_FILE_MAX_BYTES: usize = 1024 * 1024;
/// Longest delay or period, in seconds: seven days.
pub const DELAY_MAX_SECONDS: i64 = 7 * 24 * 3600;

/// What validation must know beside the definition.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Regions and instance types on offer.
    pub catalog: &'a Catalog,
    /// The type of the secret of this name that the project may use, if there is one.
    pub secret_type: &'a dyn Fn(&str) -> Option<SecretType>,
    /// Whether the secret of this name is bound to hosts; asked for secrets that would be used on the platform's side.
    pub is_bound: &'a dyn Fn(&str) -> bool,
    /// What is known of the volume with this id that the project may use, if there is one.
    pub volume: &'a dyn Fn(&str) -> Option<KnownVolume>,
    /// What is known of the model that this source means, if there is one.
    pub model: &'a dyn Fn(&crate::definition::ModelSource) -> Option<KnownModel>,
    /// Names of the variables the platform sets itself.
    pub is_system_variable: &'a dyn Fn(&str) -> bool,
}

/// What validation must know of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVolume {
    /// For messages.
    pub name: String,
    /// Where it is.
    pub region: String,
    /// Why the service in question cannot use it, such as `is used by another service`, if it cannot.
    pub obstacle: Option<String>,
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Context")
            .field("catalog", self.catalog)
            .finish_non_exhaustive()
    }
}

/// Whether the platform sets a variable of this name (digest, section 6.8).
#[must_use]
pub fn is_system_variable(name: &str) -> bool {
    name == "PORT" || name == "HOSTNAME" || name.starts_with("KOYEB_")
}

/// Every violated rule of `definition`, fields prefixed with `definition.`; empty when it can be carried out.
#[must_use]
pub fn definition(definition: &DeploymentDefinition, context: Context<'_>) -> Vec<FieldViolation> {
    let mut check = Check {
        found: Vec::new(),
        definition,
        variables: definition.env.iter().map(|entry| entry.key.as_str()).collect(),
        regions: definition.regions.iter().map(String::as_str).collect(),
        context,
    };
    for rules in [
        Check::kind_and_source,
        Check::model,
        Check::placement,
        Check::network,
        Check::scaling,
        Check::volumes,
        Check::health_checks,
        Check::environment,
        Check::files,
    ] {
        if check.is_full() {
            break;
        }
        rules(&mut check);
    }
    check.found
}

struct Check<'a> {
    found: Vec<FieldViolation>,
    definition: &'a DeploymentDefinition,
    /// Names of the definition's own variables.
    variables: BTreeSet<&'a str>,
    /// The definition's regions, as it writes them.
    regions: BTreeSet<&'a str>,
    context: Context<'a>,
}

impl Check<'_> {
    /// Whether nothing more will be told.
    fn is_full(&self) -> bool {
        self.found.len() >= VIOLATIONS_MAX
    }

    fn wrong(&mut self, field: impl AsRef<str>, description: impl Into<String>) {
        if self.is_full() {
            return;
        }
        self.found.push(FieldViolation::new(
            format!("definition.{}", field.as_ref()),
            description,
        ));
    }

    fn bounded(&mut self, field: &str, length: usize) -> bool {
        if length > LIST_MAX {
            self.wrong(
                field,
                format!("may have at most {LIST_MAX} entries, has {length}"),
            );
        }
        length <= LIST_MAX
    }

    fn kind_and_source(&mut self) {
        let definition = self.definition;
        if definition.r#type == DefinitionType::Invalid {
            self.wrong("type", "must be one of WEB, WORKER, DATABASE, SANDBOX");
        }
        let sources = [
            definition.docker.is_some(),
            definition.git.is_some(),
            definition.archive.is_some(),
            definition.database.is_some(),
            definition.model.is_some(),
        ];
        if sources.iter().filter(|given| **given).count() != 1 {
            self.wrong(
                "docker",
                "give exactly one source: `docker`, `git`, `archive`, `database` or `model`",
            );
        }
        if let Some(docker) = &definition.docker {
            if docker.image.trim().is_empty() {
                self.wrong("docker.image", "must name an image, such as `nginx:1.27`");
            }
            if docker.privileged {
                self.wrong(
                    "docker.privileged",
                    "privileged instances are not allowed on this installation",
                );
            }
            self.registry_secret("docker.image_registry_secret", &docker.image_registry_secret);
            self.bounded("docker.entrypoint", docker.entrypoint.len());
            self.bounded("docker.args", docker.args.len());
        }
    }

    /// The secret of an image's registry; empty: it asks for none.
    fn registry_secret(&mut self, field: &str, secret: &str) {
        if secret.is_empty() {
            return;
        }
        match (self.context.secret_type)(secret) {
            Some(SecretType::Registry) => {}
            Some(_) => self.wrong(field, format!("secret `{secret}` is not of type REGISTRY")),
            None => self.wrong(
                field,
                format!("there is no secret named `{secret}`: create one of type REGISTRY first"),
            ),
        }
    }

    fn placement(&mut self) {
        let definition = self.definition;
        if self.bounded("regions", definition.regions.len()) {
            for (index, region) in definition.regions.iter().enumerate() {
                if self.context.catalog.region(region).is_none() {
                    let known = self.context.catalog.region_ids();
                    self.wrong(
                        format!("regions.{index}"),
                        format!("there is no region `{region}` here: use one of {known}"),
                    );
                }
            }
        }
        if definition.regions.is_empty() {
            let known = self.context.catalog.region_ids();
            self.wrong("regions", format!("must name at least one region: {known}"));
        }
        if self.bounded("instance_types", definition.instance_types.len()) {
            for (index, kind) in definition.instance_types.iter().enumerate() {
                let id = &kind.r#type;
                let field = format!("instance_types.{index}.type");
                match self.context.catalog.instance_type(id) {
                    None if id.is_empty() => {}
                    None => {
                        let known = self.context.catalog.instance_type_ids();
                        self.wrong(
                            field,
                            format!("there is no instance type `{id}` here: use one of {known}"),
                        );
                    }
                    Some(kind) => {
                        if let Some(reason) = &kind.unusable {
                            self.wrong(field, format!("instance type `{id}` cannot be used: {reason}"));
                        }
                    }
                }
                self.scopes(&format!("instance_types.{index}.scopes"), &kind.scopes);
            }
        }
    }

    fn scopes(&mut self, field: &str, scopes: &[String]) {
        if !self.bounded(field, scopes.len()) {
            return;
        }
        for (index, scope) in scopes.iter().enumerate() {
            let region = scope.strip_prefix(REGION_SCOPE_PREFIX);
            if !region.is_some_and(|region| self.regions.contains(region)) {
                self.wrong(
                    format!("{field}.{index}"),
                    format!("`{scope}` must be `region:` and one of the definition's regions"),
                );
            }
        }
    }

    fn environment(&mut self) {
        let definition = self.definition;
        if !self.bounded("env", definition.env.len()) {
            return;
        }
        let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
        for (index, entry) in definition.env.iter().enumerate() {
            if let Err(rule) = check_env_key(&entry.key) {
                self.wrong(format!("env.{index}.key"), rule);
            }
            self.scopes(&format!("env.{index}.scopes"), &entry.scopes);
            let repeated = if entry.scopes.is_empty() {
                !seen.insert((entry.key.as_str(), ""))
            } else {
                entry
                    .scopes
                    .iter()
                    .any(|scope| !seen.insert((entry.key.as_str(), scope.as_str())))
            };
            if repeated {
                self.wrong(
                    format!("env.{index}.key"),
                    format!("variable `{}` is set twice", entry.key),
                );
            }
            let value = entry.value.as_deref().unwrap_or_default();
            if value.len() > ENV_VALUE_MAX_BYTES {
                self.wrong(
                    format!("env.{index}.value"),
                    format!("may have at most {ENV_VALUE_MAX_BYTES} bytes: use a config file instead"),
                );
                continue;
            }
            if value.contains('\0') {
                self.wrong(format!("env.{index}.value"), "must not contain a zero byte");
            }
            self.template(&format!("env.{index}.value"), value);
            if let Some(secret) = entry.secret.as_deref().filter(|secret| !secret.is_empty()) {
                self.simple_secret(&format!("env.{index}.secret"), secret);
            }
        }
    }

    /// What a template names must be there.
    fn template(&mut self, field: &str, template: &str) {
        for piece in pieces(template) {
            if self.is_full() {
                return;
            }
            match piece {
                Piece::Secret(name) => self.simple_secret(field, name),
                Piece::Variable(name)
                    if !self.variables.contains(name) && !(self.context.is_system_variable)(name) =>
                {
                    self.wrong(
                        field,
                        format!("there is no variable named `{name}`: define it, or correct the name"),
                    );
                }
                Piece::Variable(_) | Piece::Text(_) => {}
            }
        }
    }

    /// A secret that stands for text must be one of type SIMPLE.
    fn simple_secret(&mut self, field: &str, name: &str) {
        match (self.context.secret_type)(name) {
            Some(SecretType::Simple) => {}
            Some(other) => self.wrong(
                field,
                format!("secret `{name}` is of type {other}: name one of type SIMPLE"),
            ),
            None => self.wrong(
                field,
                format!("there is no secret named `{name}`: create it, or correct the name"),
            ),
        }
    }

    fn files(&mut self) {
        let definition = self.definition;
        if !self.bounded("config_files", definition.config_files.len()) {
            return;
        }
        let mut paths = BTreeSet::new();
        for (index, file) in definition.config_files.iter().enumerate() {
            if !file.path.starts_with('/') || file.path.ends_with('/') || file.path.contains('\0') {
                self.wrong(
                    format!("config_files.{index}.path"),
                    "must be the absolute path of a file",
                );
            } else if file.path.split('/').any(|part| part == "..") {
                self.wrong(format!("config_files.{index}.path"), "must not contain `..`");
            }
            if !paths.insert(file.path.as_str()) {
                self.wrong(
                    format!("config_files.{index}.path"),
                    format!("path `{}` is given twice", file.path),
                );
            }
            if !is_permissions(&file.permissions) {
                self.wrong(
                    format!("config_files.{index}.permissions"),
                    format!(
                        "`{}` must be four octal digits starting with 0, such as `0644`",
                        file.permissions
                    ),
                );
            }
            if file.content.len() > CONFIG_FILE_MAX_BYTES {
                self.wrong(
                    format!("config_files.{index}.content"),
                    format!("may have at most {CONFIG_FILE_MAX_BYTES} bytes"),
                );
                continue;
            }
            self.template(&format!("config_files.{index}.content"), &file.content);
        }
    }
}

fn is_permissions(text: &str) -> bool {
    text.is_empty()
        || (text.len() == 4
            && text.starts_with('0')
            && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)))
}

/// The variables of `definition` that hold in `region`; an entry of the region's own wins over a general one.
#[must_use]
pub fn scoped_env<'a>(definition: &'a DeploymentDefinition, region: &str) -> Vec<&'a DeploymentEnv> {
    let mut chosen: Vec<&DeploymentEnv> = Vec::new();
    for entry in definition
        .env
        .iter()
        .filter(|entry| scoped_to(&entry.scopes, region))
    {
        match chosen.iter_mut().find(|other| other.key == entry.key) {
            Some(other) if other.scopes.is_empty() => *other = entry,
            Some(_) => {}
            None => chosen.push(entry),
        }
    }
    chosen
}
