//! What runsc is told of an instance: the part of OCI's runtime configuration that it reads.
//!
//! The one design choice to know: nothing here names a path of the machine. The root and `/tmp` are paths of the
//! room; binds and volumes are in the root already.

use std::path::Path;

use serde_json::{Value, json};

use super::ROOT;
use crate::protocol::{Capability, LaunchSpec, User};

/// The version of the configuration's format; only the names below are used.
const FORMAT: &str = "1.0.0";
/// What a program gets that asks for nothing: what every other instance gets.
const NOFILE_DEFAULT: u64 = 1 << 20;

/// All of it. `tmp`: the image has a directory `/tmp`.
pub(super) fn of(spec: &LaunchSpec, tmp: bool) -> Value {
    let shm = format!("size={}", spec.limits.shm_bytes);
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", shm]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
    ];
    if tmp {
        // Named, because an empty one would be put into the instance's memory, where no snapshot of its disk sees it.
        let options = if spec.readonly_root { "ro" } else { "rw" };
        mounts.push(json!({
            "destination": "/tmp", "type": "bind", "source": format!("{ROOT}/tmp"), "options": ["rbind", options],
        }));
    }
    json!({
        "ociVersion": FORMAT,
        "process": process(spec, &Asked::of(spec)),
        "root": {"path": ROOT, "readonly": spec.readonly_root},
        "hostname": spec.hostname,
        "mounts": mounts,
        "linux": {"namespaces": [
            {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
            // The one that its first process is in.
            {"type": "network", "path": "/proc/1/ns/net"},
        ]},
    })
}

/// A program that is to run in the instance.
pub(super) struct Asked<'a> {
    pub(super) argv: &'a [String],
    pub(super) env: &'a [(String, String)],
    pub(super) cwd: &'a str,
    pub(super) user: &'a User,
    pub(super) terminal: bool,
}

impl<'a> Asked<'a> {
    fn of(spec: &'a LaunchSpec) -> Self {
        Self {
            argv: &spec.argv,
            env: &spec.env,
            cwd: &spec.cwd,
            user: &spec.user,
            terminal: false,
        }
    }
}

/// The part about one program.
pub(super) fn process(spec: &LaunchSpec, asked: &Asked<'_>) -> Value {
    let env: Vec<String> = asked
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    // For root: what it may do. For other users: what a process can reach at most (as without gVisor).
    let bounding: &[Capability] = &spec.capabilities;
    let held: &[Capability] = if asked.user.uid == 0 { bounding } else { &[] };
    // As many as every other instance on this machine may be given: each is the machine's memory, if not its kernel's.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let files = spec
        .limits
        .nofile
        .unwrap_or(NOFILE_DEFAULT)
        .min(most.unwrap_or(u64::MAX));
    let mut limits = vec![
        json!({"type": "RLIMIT_NOFILE", "hard": files, "soft": files}),
        json!({"type": "RLIMIT_CORE", "hard": 0, "soft": 0}),
    ];
    if let Some(bytes) = spec.limits.file_bytes {
        limits.push(json!({"type": "RLIMIT_FSIZE", "hard": bytes, "soft": bytes}));
    }
    json!({
        "terminal": asked.terminal,
        "user": {"uid": asked.user.uid, "gid": asked.user.gid, "additionalGids": asked.user.groups},
        "args": asked.argv,
        "env": env,
        "cwd": asked.cwd,
        "capabilities": {
            "bounding": bounding, "effective": held, "permitted": held, "inheritable": [], "ambient": [],
        },
        "noNewPrivileges": true,
        "rlimits": limits,
    })
}

/// A program that needs nothing but its root, to see whether anything runs.
pub(super) fn trial(root: &Path, argv: &[&str]) -> Value {
    json!({
        "ociVersion": FORMAT,
        "process": {"user": {"uid": 0, "gid": 0}, "args": argv, "env": ["PATH=/"], "cwd": "/"},
        "root": {"path": root, "readonly": true},
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::InstanceId;

    fn spec() -> LaunchSpec {
        let id = InstanceId::new("one").unwrap();
        LaunchSpec::new(id, 1, vec!["/layer".into()], vec!["/bin/true".to_owned()])
    }

    #[test]
    fn root_holds_its_capabilities_and_others_none() {
        let mut spec = spec();
        spec.capabilities = vec![Capability::CAP_CHOWN];
        let held = |spec: &LaunchSpec| of(spec, false)["process"]["capabilities"]["effective"].clone();
        assert_eq!(held(&spec), json!(["CAP_CHOWN"]));
        spec.user.uid = 1000;
        assert_eq!(held(&spec), json!([]));
        let bounding = of(&spec, false)["process"]["capabilities"]["bounding"].clone();
        assert_eq!(bounding, json!(["CAP_CHOWN"]));
    }

    #[test]
    fn a_directory_for_temporary_files_stays_on_the_disk() {
        let has = |tmp| {
            let config = of(&spec(), tmp);
            let mounts = config["mounts"].as_array().unwrap().clone();
            mounts.iter().any(|mount| mount["destination"] == "/tmp")
        };
        assert!(has(true) && !has(false));
    }
}
