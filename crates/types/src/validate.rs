//! Whether a definition can be carried out: every violated rule with the field that violates it.
//!
//! All rules are checked, so that a user mends a definition in one go. What only the store knows (names of secrets,
//! paths that another service claims) is asked through [`Context`].

use std::collections::BTreeSet;

use crate::{
    catalog::Catalog,
    definition::{DeploymentDefinition, DeploymentEnv, REGION_SCOPE_PREFIX, scoped_to},
    effective::PortProtocol,
    interpolate::{Piece, pieces},
    message::FieldViolation,
    names::check_env_key,
    status::DefinitionType,
};

/// Highest number of instances of one service.
pub const SCALE_MAX: i64 = 20;
/// Most entries of any list of a definition: far above real use, low enough that a definition stays small.
pub const LIST_MAX: usize = 500;
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
    /// Whether the project has a secret of this name.
    pub has_secret: &'a dyn Fn(&str) -> bool,
    /// Names of the variables the platform sets itself.
    pub is_system_variable: &'a dyn Fn(&str) -> bool,
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
        context,
    };
    check.kind_and_source();
    check.placement();
    check.network();
    check.scaling();
    check.health_checks();
    check.environment();
    check.files();
    check.found
}

struct Check<'a> {
    found: Vec<FieldViolation>,
    definition: &'a DeploymentDefinition,
    context: Context<'a>,
}

impl Check<'_> {
    fn wrong(&mut self, field: impl AsRef<str>, description: impl Into<String>) {
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
        ];
        if sources.iter().filter(|given| **given).count() != 1 {
            self.wrong(
                "docker",
                "give exactly one source: `docker`, `git`, `archive` or `database`",
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
            let secret = &docker.image_registry_secret;
            if !secret.is_empty() && !(self.context.has_secret)(secret) {
                self.wrong(
                    "docker.image_registry_secret",
                    format!("there is no secret named `{secret}`: create one of type REGISTRY first"),
                );
            }
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
        for (index, kind) in definition.instance_types.iter().enumerate().take(LIST_MAX) {
            let id = &kind.r#type;
            if !id.is_empty() && self.context.catalog.instance_type(id).is_none() {
                let known = self.context.catalog.instance_type_ids();
                self.wrong(
                    format!("instance_types.{index}.type"),
                    format!("there is no instance type `{id}` here: use one of {known}"),
                );
            }
            self.scopes(&format!("instance_types.{index}.scopes"), &kind.scopes);
        }
        if !definition.volumes.is_empty() {
            self.wrong(
                "volumes",
                "persistent volumes are not available on this installation yet",
            );
        }
    }

    fn scopes(&mut self, field: &str, scopes: &[String]) {
        for (index, scope) in scopes.iter().enumerate().take(LIST_MAX) {
            let region = scope.strip_prefix(REGION_SCOPE_PREFIX);
            if !region.is_some_and(|region| self.definition.regions.iter().any(|known| known == region)) {
                self.wrong(
                    format!("{field}.{index}"),
                    format!("`{scope}` must be `region:` and one of the definition's regions"),
                );
            }
        }
    }

    fn network(&mut self) {
        let definition = self.definition;
        let mut seen = BTreeSet::new();
        if self.bounded("ports", definition.ports.len()) {
            for (index, port) in definition.ports.iter().enumerate() {
                if !(1..=65_535).contains(&port.port) {
                    self.wrong(format!("ports.{index}.port"), "must be between 1 and 65535");
                } else if !seen.insert(port.port) {
                    self.wrong(
                        format!("ports.{index}.port"),
                        format!("port {} is declared twice", port.port),
                    );
                }
                if PortProtocol::parse(&port.protocol).is_none() {
                    self.wrong(
                        format!("ports.{index}.protocol"),
                        format!("`{}` is not one of http, http2, tcp", port.protocol),
                    );
                }
            }
        }
        self.routes();
        for (index, proxy) in definition.proxy_ports.iter().enumerate().take(LIST_MAX) {
            if !seen.contains(&proxy.port) {
                self.wrong(
                    format!("proxy_ports.{index}.port"),
                    format!("port {} is not one of the definition's ports", proxy.port),
                );
            }
        }
    }

    fn routes(&mut self) {
        let definition = self.definition;
        if definition.r#type == DefinitionType::Worker && !definition.routes.is_empty() {
            self.wrong(
                "routes",
                "a worker has no routes: use type WEB to receive requests",
            );
        }
        if !self.bounded("routes", definition.routes.len()) {
            return;
        }
        let ports = definition.effective_ports();
        let mut paths = BTreeSet::new();
        for (index, route) in definition.routes.iter().enumerate() {
            let declared = ports.iter().find(|port| i64::from(port.port) == route.port);
            match declared {
                None => self.wrong(
                    format!("routes.{index}.port"),
                    format!("port {} is not one of the definition's ports", route.port),
                ),
                Some(port) if port.protocol == PortProtocol::Tcp => self.wrong(
                    format!("routes.{index}.port"),
                    format!("port {} speaks tcp: a route needs http or http2", route.port),
                ),
                Some(_) => {}
            }
            if !route.path.starts_with('/') && !route.path.is_empty() {
                self.wrong(format!("routes.{index}.path"), "must start with `/`");
            }
            if !paths.insert(route.path.trim_end_matches('/')) {
                self.wrong(
                    format!("routes.{index}.path"),
                    format!("path `{}` is declared twice", route.path),
                );
            }
            for (user, basic) in route
                .security_policies
                .iter()
                .flat_map(|policy| &policy.basic_auths)
                .enumerate()
            {
                if basic.username.is_empty() || basic.username.contains(':') {
                    self.wrong(
                        format!("routes.{index}.security_policies.basic_auths.{user}.username"),
                        "must not be empty or contain `:`",
                    );
                }
            }
        }
    }

    fn scaling(&mut self) {
        let definition = self.definition;
        if !self.bounded("scalings", definition.scalings.len()) {
            return;
        }
        for (index, scaling) in definition.scalings.iter().enumerate() {
            let at = |member: &str| format!("scalings.{index}.{member}");
            if !(0..=SCALE_MAX).contains(&scaling.min) {
                self.wrong(at("min"), format!("must be between 0 and {SCALE_MAX}"));
            }
            if !(0..=SCALE_MAX).contains(&scaling.max) {
                self.wrong(at("max"), format!("must be between 0 and {SCALE_MAX}"));
            }
            if scaling.min > scaling.max {
                self.wrong(at("max"), format!("must not be below `min` ({})", scaling.min));
            }
            let worker = definition.r#type == DefinitionType::Worker;
            if worker && scaling.min == 0 {
                self.wrong(
                    at("min"),
                    "a worker receives no requests that could wake it: use 1 or more",
                );
            }
            let mut scales_on_load = false;
            for (number, target) in scaling.targets.iter().enumerate().take(LIST_MAX) {
                let at = |member: &str| format!("scalings.{index}.targets.{number}.{member}");
                let set = [
                    target.average_cpu.is_some(),
                    target.average_mem.is_some(),
                    target.requests_per_second.is_some(),
                    target.concurrent_requests.is_some(),
                    target.requests_response_time.is_some(),
                    target.sleep_idle_delay.is_some(),
                ];
                if set.iter().filter(|given| **given).count() != 1 {
                    self.wrong(
                        format!("scalings.{index}.targets.{number}"),
                        "must set exactly one kind of target",
                    );
                }
                for (name, value, most) in [
                    ("average_cpu", &target.average_cpu, 100),
                    ("average_mem", &target.average_mem, 100),
                    ("requests_per_second", &target.requests_per_second, i64::MAX),
                    ("concurrent_requests", &target.concurrent_requests, i64::MAX),
                ] {
                    if let Some(value) = value {
                        scales_on_load = true;
                        if !(1..=most).contains(&value.value) {
                            let bound = if most == 100 {
                                "between 1 and 100"
                            } else {
                                "1 or more"
                            };
                            self.wrong(at(&format!("{name}.value")), format!("must be {bound}"));
                        }
                    }
                }
                if let Some(time) = &target.requests_response_time {
                    scales_on_load = true;
                    if time.value < 1 {
                        self.wrong(
                            at("requests_response_time.value"),
                            "must be 1 millisecond or more",
                        );
                    }
                    if !(0..=100).contains(&time.quantile) {
                        self.wrong(at("requests_response_time.quantile"), "must be between 0 and 100");
                    }
                }
                if let Some(delay) = &target.sleep_idle_delay {
                    for (name, seconds) in [
                        ("value", delay.value),
                        ("deep_sleep_value", delay.deep_sleep_value),
                        ("light_sleep_value", delay.light_sleep_value),
                    ] {
                        if !(0..=DELAY_MAX_SECONDS).contains(&seconds) {
                            self.wrong(
                                at(&format!("sleep_idle_delay.{name}")),
                                format!("must be between 0 and {DELAY_MAX_SECONDS} seconds"),
                            );
                        }
                    }
                    let deep = if delay.deep_sleep_value > 0 {
                        delay.deep_sleep_value
                    } else {
                        delay.value
                    };
                    if deep > 0 && delay.light_sleep_value > deep {
                        self.wrong(
                            at("sleep_idle_delay.light_sleep_value"),
                            "must not be longer than the delay of deep sleep",
                        );
                    }
                }
            }
            if scaling.max > 1 && scaling.min != scaling.max && !scales_on_load {
                self.wrong(
                    at("targets"),
                    "needs a target to scale on (for example `concurrent_requests`) when `min` and `max` differ",
                );
            }
            self.scopes(&format!("scalings.{index}.scopes"), &scaling.scopes);
        }
    }

    fn health_checks(&mut self) {
        let definition = self.definition;
        if !self.bounded("health_checks", definition.health_checks.len()) {
            return;
        }
        let ports = definition.effective_ports();
        for (index, check) in definition.health_checks.iter().enumerate() {
            let at = |member: &str| format!("health_checks.{index}.{member}");
            for (name, value, most) in [
                ("grace_period", check.grace_period, 3600),
                ("interval", check.interval, 3600),
                ("restart_limit", check.restart_limit, 100),
                ("timeout", check.timeout, 600),
            ] {
                if !(0..=most).contains(&value) {
                    self.wrong(
                        at(name),
                        format!("must be between 0 and {most}; 0 means the default"),
                    );
                }
            }
            let (kind, port) = match (&check.http, &check.tcp) {
                (Some(http), None) => ("http", http.port),
                (None, Some(tcp)) => ("tcp", tcp.port),
                _ => {
                    self.wrong(
                        format!("health_checks.{index}"),
                        "must set exactly one of `http` and `tcp`",
                    );
                    continue;
                }
            };
            if !ports.iter().any(|declared| i64::from(declared.port) == port) {
                self.wrong(
                    at(&format!("{kind}.port")),
                    format!("port {port} is not one of the definition's ports"),
                );
            }
            if let Some(http) = &check.http
                && !http.path.is_empty()
                && !http.path.starts_with('/')
            {
                self.wrong(at("http.path"), "must start with `/`");
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
            }
            if value.contains('\0') {
                self.wrong(format!("env.{index}.value"), "must not contain a zero byte");
            }
            self.template(&format!("env.{index}.value"), value);
            if let Some(secret) = entry.secret.as_deref().filter(|secret| !secret.is_empty())
                && !(self.context.has_secret)(secret)
            {
                self.wrong(
                    format!("env.{index}.secret"),
                    format!("there is no secret named `{secret}`"),
                );
            }
        }
        for (index, route) in definition.routes.iter().enumerate().take(LIST_MAX) {
            let Some(policy) = &route.security_policies else {
                continue;
            };
            for (user, basic) in policy.basic_auths.iter().enumerate() {
                let field = format!("routes.{index}.security_policies.basic_auths.{user}.password");
                self.template(&field, &basic.password);
            }
            for (key, value) in policy.api_keys.iter().enumerate() {
                self.template(&format!("routes.{index}.security_policies.api_keys.{key}"), value);
            }
        }
    }

    fn template(&mut self, field: &str, template: &str) {
        for piece in pieces(template) {
            match piece {
                Piece::Secret(name) if !(self.context.has_secret)(name) => {
                    self.wrong(
                        field,
                        format!("there is no secret named `{name}`: create it, or correct the name"),
                    );
                }
                Piece::Variable(name)
                    if !self.definition.env.iter().any(|entry| entry.key == name)
                        && !(self.context.is_system_variable)(name) =>
                {
                    self.wrong(
                        field,
                        format!("there is no variable named `{name}`: define it, or correct the name"),
                    );
                }
                _ => {}
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::unlimited;

    fn violations(json: &str) -> Vec<String> {
        let given: DeploymentDefinition = serde_json::from_str(json).unwrap();
        let catalog = unlimited();
        let context = Context {
            catalog: &catalog,
            has_secret: &|name| name == "known",
            is_system_variable: &is_system_variable,
        };
        definition(&given, context)
            .into_iter()
            .map(|violation| violation.field)
            .collect()
    }

    const GOOD: &str = r#""type":"WEB","regions":["fra"],"docker":{"image":"nginx"}"#;

    #[test]
    fn the_least_definition_is_good() {
        assert_eq!(violations(&format!("{{{GOOD}}}")), Vec::<String>::new());
    }

    #[test]
    fn each_violated_rule_names_its_field() {
        for (members, field) in [
            (r#""env":[{"key":"1"}]"#, "definition.env.0.key"),
            (
                r#""env":[{"key":"A","value":"{{ secret.no }}"}]"#,
                "definition.env.0.value",
            ),
            (
                r#""env":[{"key":"A","value":"{{ B }}"}]"#,
                "definition.env.0.value",
            ),
            (r#""env":[{"key":"A"},{"key":"A"}]"#, "definition.env.1.key"),
            (
                r#""ports":[{"port":0,"protocol":"http"}]"#,
                "definition.ports.0.port",
            ),
            (
                r#""ports":[{"port":80,"protocol":"udp"}]"#,
                "definition.ports.0.protocol",
            ),
            (r#""routes":[{"port":99,"path":"/"}]"#, "definition.routes.0.port"),
            (
                r#""ports":[{"port":80}],"routes":[{"port":80,"path":"x"}]"#,
                "definition.routes.0.path",
            ),
            (r#""scalings":[{"min":3,"max":1}]"#, "definition.scalings.0.max"),
            (r#""scalings":[{"min":-1,"max":1}]"#, "definition.scalings.0.min"),
            (
                r#""scalings":[{"min":1,"max":3}]"#,
                "definition.scalings.0.targets",
            ),
            (
                r#""instance_types":[{"type":"enormous"}]"#,
                "definition.instance_types.0.type",
            ),
            (
                r#""config_files":[{"path":"etc/x"}]"#,
                "definition.config_files.0.path",
            ),
            (
                r#""config_files":[{"path":"/x","permissions":"777"}]"#,
                "definition.config_files.0.permissions",
            ),
            (
                r#""health_checks":[{"tcp":{"port":99}}]"#,
                "definition.health_checks.0.tcp.port",
            ),
            (r#""health_checks":[{}]"#, "definition.health_checks.0"),
        ] {
            assert_eq!(violations(&format!("{{{GOOD},{members}}}")), [field], "{members}");
        }
    }

    #[test]
    fn all_violations_come_at_once() {
        let found = violations(r#"{"type":"WEB"}"#);
        assert_eq!(found, ["definition.docker", "definition.regions"]);
    }

    #[test]
    fn a_known_secret_and_system_variables_are_fine() {
        let found = violations(&format!(
            r#"{{{GOOD},"env":[{{"key":"A","value":"{{{{ secret.known }}}} {{{{ KOYEB_APP_NAME }}}} {{{{PORT}}}}"}}]}}"#
        ));
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn the_entry_of_a_region_wins() {
        let given: DeploymentDefinition = serde_json::from_str(
            r#"{"env":[{"key":"A","value":"all"},{"key":"A","value":"fra","scopes":["region:fra"]}]}"#,
        )
        .unwrap();
        assert_eq!(scoped_env(&given, "fra")[0].value.as_deref(), Some("fra"));
        assert_eq!(scoped_env(&given, "was")[0].value.as_deref(), Some("all"));
    }
}
