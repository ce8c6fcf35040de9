//! Volumes of a definition: which, where in the instance, and that no two instances would need one.

use std::collections::BTreeSet;

use super::Check;

/// Volumes of one service: far above real use, and each is a loop device and a mount of its machine.
const VOLUMES_MAX: usize = 16;
/// Longest path a volume is mounted at; the kernel takes paths of 4096 bytes.
const PATH_MAX_BYTES: usize = 1024;
/// An instance without what the image has here cannot run.
const SYSTEM_PATHS: [&str; 17] = [
    "/bin",
    "/boot",
    "/etc",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/run",
    "/sbin",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/sbin",
    "/var",
];
/// The platform mounts here itself, or keeps its own below.
const PLATFORM_TREES: [&str; 4] = ["/dev", "/proc", "/sys", "/.tramontane"];

impl Check<'_> {
    pub(super) fn volumes(&mut self) {
        let definition = self.definition;
        if definition.volumes.is_empty() {
            return;
        }
        if definition.volumes.len() > VOLUMES_MAX {
            self.wrong("volumes", format!("may have at most {VOLUMES_MAX} entries"));
            return;
        }
        let places: BTreeSet<&str> = definition
            .regions
            .iter()
            .filter_map(|region| self.context.catalog.region(region))
            .map(|region| region.id.as_str())
            .collect();
        if places.len() > 1 {
            self.wrong(
                "regions",
                "a service with a volume runs in one region, the volume's: name only that one",
            );
        }
        for (index, scaling) in definition.scalings.iter().enumerate() {
            if scaling.max > 1 {
                self.wrong(
                    format!("scalings.{index}.max"),
                    "a service with a volume has at most one instance, since a volume is used by one instance at a \
                     time: set it to 1",
                );
            }
        }
        let (mut ids, mut paths) = (BTreeSet::new(), BTreeSet::new());
        for (index, volume) in definition.volumes.iter().enumerate() {
            let at = |member: &str| format!("volumes.{index}.{member}");
            if !ids.insert(volume.id.as_str()) {
                self.wrong(at("id"), "this volume is given twice");
            }
            match (self.context.volume)(&volume.id) {
                None => self.wrong(
                    at("id"),
                    format!(
                        "there is no volume `{}` that this service may use",
                        shown(&volume.id)
                    ),
                ),
                Some(known) => {
                    if let Some(obstacle) = known.obstacle {
                        self.wrong(at("id"), format!("volume `{}` {obstacle}", known.name));
                    }
                    if !places.is_empty() && !places.contains(known.region.as_str()) {
                        self.wrong(
                            at("id"),
                            format!(
                                "volume `{}` is in region `{}`, and this service is not: run it there",
                                known.name, known.region
                            ),
                        );
                    }
                }
            }
            if let Err(rule) = check_mount_path(&volume.path) {
                self.wrong(at("path"), rule);
            } else if !paths.insert(volume.path.trim_end_matches('/')) {
                self.wrong(at("path"), "another volume is mounted at this path");
            }
            if volume.replica_index != 0 {
                self.wrong(
                    at("replica_index"),
                    "must be 0: a service with a volume has one instance",
                );
            }
            self.scopes(&at("scopes"), &volume.scopes);
        }
    }
}

/// What is told of an id that came in.
fn shown(id: &str) -> String {
    id.chars().take(64).collect()
}

/// Checks where in an instance a volume may be mounted.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_mount_path(path: &str) -> Result<(), String> {
    let plain = path.strip_suffix('/').unwrap_or(path);
    if !path.starts_with('/') {
        return Err("must be an absolute path, such as `/data`".to_owned());
    }
    if path.len() > PATH_MAX_BYTES || path.chars().any(char::is_control) {
        return Err(format!(
            "must have at most {PATH_MAX_BYTES} bytes and no control characters"
        ));
    }
    if plain.is_empty() {
        return Err(
            "must not be `/`: a volume is a part of the instance's files, such as `/data`".to_owned(),
        );
    }
    let mut parts = plain.split('/').skip(1);
    if parts.any(|part| part.is_empty() || part == "." || part == "..") {
        return Err("must not contain `.`, `..` or empty parts".to_owned());
    }
    let below = |tree: &&str| {
        plain == *tree
            || plain
                .strip_prefix(*tree)
                .is_some_and(|rest| rest.starts_with('/'))
    };
    if SYSTEM_PATHS.contains(&plain) || PLATFORM_TREES.iter().any(below) {
        return Err(format!(
            "must not be `{plain}`, which the system needs: choose a path of its own, such as `/data`"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Context, KnownVolume, definition, is_system_variable};
    use super::*;
    use crate::{catalog::unlimited, definition::DeploymentDefinition};

    fn violations(members: &str) -> Vec<String> {
        let json = format!(r#"{{"type":"WEB","docker":{{"image":"nginx"}},{members}}}"#);
        let given: DeploymentDefinition = serde_json::from_str(&json).unwrap();
        let catalog = unlimited();
        let context = Context {
            catalog: &catalog,
            secret_type: &|_| None,
            is_bound: &|_| false,
            volume: &|id| {
                let known = |region: &str, obstacle: Option<&str>| KnownVolume {
                    name: "data".to_owned(),
                    region: region.to_owned(),
                    obstacle: obstacle.map(str::to_owned),
                };
                match id {
                    "free" | "other" => Some(known("fra", None)),
                    "far" => Some(known("was", None)),
                    "taken" => Some(known("fra", Some("is used by service `db`"))),
                    _ => None,
                }
            },
            model: &|_| None,
            is_system_variable: &is_system_variable,
        };
        let found = definition(&given, context);
        found.into_iter().map(|violation| violation.field).collect()
    }

    #[test]
    fn a_volume_that_is_free_is_mounted_where_it_may_be() {
        let good = r#""regions":["na"],"volumes":[{"id":"free","path":"/data"},{"id":"other","path":"/var/lib/x/"}]"#;
        assert_eq!(violations(good), Vec::<String>::new());
    }

    #[test]
    fn each_violated_rule_names_its_field() {
        for (volumes, rest, field) in [
            (r#"{"id":"none","path":"/data"}"#, "", "volumes.0.id"),
            (r#"{"id":"far","path":"/data"}"#, "", "volumes.0.id"),
            (r#"{"id":"taken","path":"/data"}"#, "", "volumes.0.id"),
            (r#"{"id":"free","path":"data"}"#, "", "volumes.0.path"),
            (r#"{"id":"free","path":"/proc/x"}"#, "", "volumes.0.path"),
            (r#"{"id":"free","path":"/.tramontane"}"#, "", "volumes.0.path"),
            (
                r#"{"id":"free","path":"/d","replica_index":1}"#,
                "",
                "volumes.0.replica_index",
            ),
            (
                r#"{"id":"free","path":"/d","scopes":["region:x"]}"#,
                "",
                "volumes.0.scopes.0",
            ),
            (
                r#"{"id":"free","path":"/d"},{"id":"free","path":"/e"}"#,
                "",
                "volumes.1.id",
            ),
            (
                r#"{"id":"free","path":"/d"},{"id":"other","path":"/d/"}"#,
                "",
                "volumes.1.path",
            ),
            (
                r#"{"id":"free","path":"/d"}"#,
                r#","scalings":[{"min":1,"max":2,"targets":[{"average_cpu":{"value":50}}]}]"#,
                "scalings.0.max",
            ),
        ] {
            let found = violations(&format!(r#""regions":["fra"],"volumes":[{volumes}]{rest}"#));
            assert_eq!(found, [format!("definition.{field}")], "{volumes}");
        }
    }

    proptest! {
        /// What passes can be put on a mount without looking again.
        #[test]
        fn a_path_that_passes_is_plain_and_the_platforms_own_is_safe(path in "/[a-z./]{0,20}") {
            if check_mount_path(&path).is_ok() {
                let plain = path.trim_end_matches('/');
                prop_assert!(plain.len() > 1 && !plain.contains("//"));
                prop_assert!(plain.split('/').skip(1).all(|part| part != ".." && part != "." && !part.is_empty()));
                let below = |tree: &str| format!("{plain}/").starts_with(&format!("{tree}/"));
                prop_assert!(!PLATFORM_TREES.into_iter().any(below));
            }
        }
    }
}
