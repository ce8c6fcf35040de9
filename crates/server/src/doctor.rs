//! `tram doctor`: what this machine can and cannot do, and how to mend it.
//!
//! What only root can see is said to be unknown to others, and not guessed: a mend for what is not broken costs more
//! than no answer.

mod gpus;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    path::Path,
};

use serde_json::{Value, json};
use tram_cli::{Printer, Settings, settings::UserNamespaces};
use tram_sandbox::checkpoint::Missing;
use tram_types::Isolation;

use crate::{paths::Paths, processes::DirectoryLock, roles, up};

/// Below this much free space, pulls of ordinary images begin to fail.
const FREE_SPACE_WANTED_BYTES: u64 = 5 * 1024 * 1024 * 1024;
/// Facts of the sandbox that are tried by doing what only root may: without root, a failure says nothing.
const TRIED_AS_ROOT: [&str; 7] = [
    "root",
    "capabilities",
    "cgroup.kill",
    "overlay",
    "new mount calls",
    "disk limits",
    "user namespaces",
];
/// What is to be done about the unknown.
const AS_ROOT: &str = "run `sudo tram doctor`";

/// How much a failed check matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// `tram up` does not work without it.
    Needed,
    /// Something is missing or slower without it.
    Wanted,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    Good(String),
    Bad {
        detail: String,
        mend: String,
    },
    /// It cannot be known without root.
    Unknown(String),
}

fn bad(detail: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding::Bad {
        detail: detail.into(),
        mend: mend.into(),
    }
}

/// One thing that was looked at.
#[derive(Debug)]
struct Check {
    name: String,
    weight: Weight,
    finding: Finding,
}

impl Check {
    fn new(name: impl Into<String>, weight: Weight, finding: Finding) -> Self {
        Self {
            name: name.into(),
            weight,
            finding,
        }
    }

    fn mark(&self) -> &'static str {
        match (&self.finding, self.weight) {
            (Finding::Good(_), _) => "ok",
            (Finding::Unknown(_), _) => "unknown",
            (Finding::Bad { .. }, Weight::Needed) => "missing",
            (Finding::Bad { .. }, Weight::Wanted) => "limited",
        }
    }

    fn detail(&self) -> &str {
        match &self.finding {
            Finding::Good(detail) | Finding::Unknown(detail) | Finding::Bad { detail, .. } => detail,
        }
    }

    fn mend(&self) -> Option<&str> {
        match &self.finding {
            Finding::Good(_) => None,
            Finding::Unknown(_) => Some(AS_ROOT),
            Finding::Bad { mend, .. } => Some(mend),
        }
    }
}

/// Looks at this machine and says what was found. True when everything that is needed is known to be there.
///
/// # Errors
/// When it cannot be said.
pub async fn run(settings: &Settings, unread: Option<&str>, printer: &Printer) -> anyhow::Result<bool> {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        printer.note(format_args!(
            "{AS_ROOT}; without root only what is not `unknown` was checked"
        ));
    }
    if let Some(unread) = unread {
        printer.note(format_args!("{unread}: the settings it would have are left out"));
    }
    let checks = look(settings, is_root).await;
    let items: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({
                "name": check.name, "status": check.mark(), "needed": check.weight == Weight::Needed,
                "detail": check.detail(), "mend": check.mend(),
            })
        })
        .collect();
    printer.list(&items, "checks", &["CHECK", "STATUS", "FOUND"], |item| {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        vec![text("name"), text("status"), text("detail")]
    })?;
    for check in &checks {
        if let Finding::Bad { mend, .. } = &check.finding {
            printer.note(format_args!("{}: {mend}", check.name));
        }
    }
    Ok(checks
        .iter()
        .all(|check| matches!(check.finding, Finding::Good(_)) || check.weight == Weight::Wanted))
}

async fn look(settings: &Settings, is_root: bool) -> Vec<Check> {
    let paths = Paths::new(&settings.data_dir);
    let mut checks = vec![
        program("nft", "nftables", Weight::Needed),
        program("update-ca-certificates", "ca-certificates", Weight::Wanted),
    ];
    let facts = tram_sandbox::probe::facts();
    checks.push(container_class(&facts, settings, is_root));
    checks.push(gvisor_class(settings, is_root));
    checks.extend(gpus::look(settings));
    checks.extend(facts.into_iter().map(|fact| sandbox(fact, is_root)));
    checks.push(checkpoints(settings, is_root));
    checks.push(names(&settings.base_domain).await);
    let control_plane = holder(paths.root(), up::LOCK_NAME, is_root);
    let edge = holder(&paths.edge(), roles::LOCK_NAME, is_root);
    checks.push(port(
        "API",
        &[settings.api_listen.ip()],
        settings.api_listen.port(),
        "`--api-listen`",
        control_plane,
        is_root,
    ));
    for (what, number, flag) in [
        ("HTTP", settings.http_port, "`--http-port`"),
        ("HTTPS", settings.https_port, "`--https-port`"),
    ] {
        checks.push(port(what, &settings.http_listen, number, flag, edge, is_root));
    }
    checks.push(space(&settings.data_dir));
    checks.push(trust(&paths));
    checks
}

/// Whether instances can be isolated here, and how strongly.
fn container_class(facts: &[tram_sandbox::probe::Fact], settings: &Settings, is_root: bool) -> Check {
    let wanted = settings.user_namespaces;
    // Before the first start there is no data directory: what it will be made in says the same.
    let directory = settings.data_dir.ancestors().find(|path| path.is_dir());
    let shifts = directory.is_some_and(|directory| tram_sandbox::probe::shift_ids(directory).is_ok());
    let missing: Vec<&str> = facts
        .iter()
        .filter(|fact| fact.needed && !fact.ok)
        .map(|fact| fact.name)
        .collect();
    let finding = if !is_root {
        Finding::Unknown("what an instance would be held by is tried as root".to_owned())
    } else if !missing.is_empty() {
        bad(format!("needs {}", missing.join(", ")), "see the checks named")
    } else if shifts {
        Finding::Good(format!(
            "works: namespaces, system call filter, limits; {}",
            match wanted {
                UserNamespaces::All => "root inside is nobody outside",
                UserNamespaces::Sandboxes => "in sandboxes root inside is nobody outside",
                UserNamespaces::None =>
                    "root inside is the machine's root (`user_namespaces` is `none`): for code you trust",
            }
        ))
    } else if wanted == UserNamespaces::None {
        Finding::Good(
            "works: namespaces, system call filter, limits; root inside is the machine's root: for code you trust"
                .to_owned(),
        )
    } else {
        bad(
            format!(
                "works without ids of its own; with them instances do not start, because ids cannot be shifted in {}",
                settings.data_dir.display()
            ),
            "see `user namespaces`; or set `user_namespaces` to `none` and run only code you trust",
        )
    };
    Check::new("isolation class container", Weight::Wanted, finding)
}

/// Whether the class for code one trusts less works here, and what is of it.
fn gvisor_class(settings: &Settings, is_root: bool) -> Check {
    let finding = match crate::isolation::find(&settings.gvisor_program) {
        _ if !is_root => Finding::Unknown("it is tried as root".to_owned()),
        Ok(runsc) => {
            let of = settings.isolation.0.iter();
            let of: Vec<&str> = of
                .filter(|(_, class)| **class == Isolation::Gvisor)
                .map(|(id, _)| id.as_str())
                .collect();
            Finding::Good(format!(
                "works: a kernel of its own in user space, which to the machine is nobody with few system calls; runsc \
                 {}; {}",
                runsc.version,
                match of.as_slice() {
                    [] => "no instance type has it (`isolation`)".to_owned(),
                    of => format!("instance types {}", of.join(", ")),
                }
            ))
        }
        Err(error) => bad(
            error.to_string(),
            "run `scripts/runsc`, which puts gVisor beside the system; without it no instance type can have this class",
        ),
    };
    Check::new("isolation class gvisor", Weight::Wanted, finding)
}

fn sandbox(fact: tram_sandbox::probe::Fact, is_root: bool) -> Check {
    let weight = if fact.needed {
        Weight::Needed
    } else {
        Weight::Wanted
    };
    let finding = if fact.ok {
        Finding::Good(fact.detail)
    } else if !is_root && TRIED_AS_ROOT.contains(&fact.name) {
        Finding::Unknown(fact.detail)
    } else {
        bad(fact.detail, fact.mend)
    };
    Check::new(fact.name, weight, finding)
}

/// Without it light sleep stays in memory.
fn checkpoints(settings: &Settings, is_root: bool) -> Check {
    let finding = match crate::checkpoint::find(&settings.checkpoint_program) {
        Ok(criu) => Finding::Good(format!("CRIU {} at {}", criu.version, criu.program.display())),
        // It looks at what only root may see.
        Err(error @ Missing::Kernel { .. }) if !is_root => Finding::Unknown(error.to_string()),
        Err(error) => bad(
            error.to_string(),
            "run `scripts/criu`, which puts a CRIU that is new enough beside the system's; without it light sleep \
             stays in memory",
        ),
    };
    Check::new("checkpoints", Weight::Wanted, finding)
}

fn program(name: &str, package: &str, weight: Weight) -> Check {
    let found = tram_site_local::programs::folders()
        .into_iter()
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    let finding = match found {
        Some(file) => Finding::Good(file.display().to_string()),
        None => bad(
            format!("`{name}` was not found"),
            format!("run `apt-get install {package}`"),
        ),
    };
    Check::new(format!("program {name}"), weight, finding)
}

/// Names under the base domain must lead to this machine, or printed URLs cannot be opened here.
async fn names(base_domain: &str) -> Check {
    let name = format!("tram-doctor.{base_domain}");
    let finding = match tokio::net::lookup_host((name.as_str(), 0)).await {
        Ok(found) => {
            let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            led(base_domain, &found)
        }
        Err(error) => bad(format!("`{name}` does not resolve: {error}"), lead(base_domain)),
    };
    Check::new("name resolution", Weight::Wanted, finding)
}

fn lead(base_domain: &str) -> String {
    if base_domain.ends_with("localhost") {
        "run `apt-get install libnss-myhostname`, which makes every name under `localhost` lead to this machine"
            .to_owned()
    } else {
        format!("have your name server lead `*.{base_domain}` to this machine")
    }
}

fn led(base_domain: &str, found: &[IpAddr]) -> Finding {
    let list = |addresses: &[IpAddr]| {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        texts.join(", ")
    };
    let elsewhere: Vec<IpAddr> = found
        .iter()
        .copied()
        .filter(|address| !is_here(*address))
        .collect();
    if found.is_empty() {
        bad(format!("`*.{base_domain}` leads nowhere"), lead(base_domain))
    } else if elsewhere.is_empty() {
        Finding::Good(format!("`*.{base_domain}` leads to {}", list(found)))
    } else {
        bad(
            format!(
                "`*.{base_domain}` leads to {}, which this machine does not have",
                list(&elsewhere)
            ),
            format!(
                "{}, unless something there forwards its ports to it",
                lead(base_domain)
            ),
        )
    }
}

/// Whether an address is one of this machine: only such a one can be listened on.
fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Who may be behind a port that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    Runs,
    DoesNotRun,
    Hidden,
}

fn holder(directory: &Path, lock: &str, is_root: bool) -> Ours {
    let denied = |path: &Path| {
        path.symlink_metadata()
            .is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    };
    if DirectoryLock::holder(directory, lock).is_some() {
        Ours::Runs
    } else if !is_root && denied(&directory.join(lock)) {
        Ours::Hidden
    } else {
        Ours::DoesNotRun
    }
}

fn port(what: &str, addresses: &[IpAddr], number: u16, flag: &str, ours: Ours, is_root: bool) -> Check {
    let finding = if ours == Ours::Runs {
        Finding::Good("held by the running Tramontane".to_owned())
    } else {
        addresses
            .iter()
            .map(|address| SocketAddr::new(*address, number))
            .find_map(|address| {
                TcpListener::bind(address)
                    .err()
                    .map(|error| (address, error.kind()))
            })
            .map_or_else(
                || Finding::Good("free".to_owned()),
                |(address, kind)| taken(address, kind, flag, ours, is_root),
            )
    };
    Check::new(format!("port {number} ({what})"), Weight::Needed, finding)
}

fn taken(address: SocketAddr, kind: ErrorKind, flag: &str, ours: Ours, is_root: bool) -> Finding {
    let detail = format!("cannot listen on {address}: {kind}");
    match kind {
        ErrorKind::PermissionDenied if !is_root => Finding::Unknown("only root can try it".to_owned()),
        ErrorKind::PermissionDenied => bad(
            detail,
            format!("give tram the capability CAP_NET_BIND_SERVICE, or choose another port with {flag}"),
        ),
        ErrorKind::AddrInUse if ours == Ours::Hidden => {
            Finding::Unknown("taken; only root can see whether by the running Tramontane".to_owned())
        }
        ErrorKind::AddrNotAvailable => bad(
            format!("this machine does not have the address {}", address.ip()),
            "name addresses of this machine in `http_listen` and `api_listen`",
        ),
        _ => bad(
            detail,
            format!(
                "stop what listens there (`ss -ltnp 'sport = :{}'` shows it), or choose another port with {flag}",
                address.port()
            ),
        ),
    }
}

fn space(data_dir: &Path) -> Check {
    let existing = data_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let finding = match rustix::fs::statvfs(existing) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let shown = format!("{:.1} GiB free at {}", gib(free), existing.display());
            if free >= FREE_SPACE_WANTED_BYTES {
                Finding::Good(shown)
            } else {
                bad(
                    shown,
                    "make room, or choose another place with `--data-dir`: images take space",
                )
            }
        }
        Err(error) => bad(
            format!("cannot look at {}: {error}", existing.display()),
            "check the path",
        ),
    };
    Check::new("disk space", Weight::Wanted, finding)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / tram_types::units::GIB as f64
}

fn trust(paths: &Paths) -> Check {
    use crate::trust::Error;

    let finding = match crate::trust::is_trusted(&paths.edge()) {
        Ok(true) => Finding::Good("programs here trust the local authority".to_owned()),
        Ok(false) | Err(Error::NoAuthority(_)) => bad(
            "programs here do not trust the local authority",
            "run `sudo tram trust` after the first start, so that `https://` URLs open without a warning",
        ),
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            Finding::Unknown("only root can look at the local authority".to_owned())
        }
        Err(error) => bad(
            crate::chain(&error),
            "mend the file, or move it away and start `tram up`",
        ),
    };
    Check::new("certificates", Weight::Wanted, finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_only_root_can_try_is_unknown_to_others() {
        let at = address("127.0.0.1:80");
        let denied = ErrorKind::PermissionDenied;
        assert!(matches!(
            taken(at, denied, "`--http-port`", Ours::Hidden, false),
            Finding::Unknown(_)
        ));
        let Finding::Bad { mend, .. } = taken(at, denied, "`--http-port`", Ours::DoesNotRun, true) else {
            panic!("root was refused");
        };
        assert!(mend.contains("CAP_NET_BIND_SERVICE"), "{mend}");
        let fact = |name| tram_sandbox::probe::Fact {
            name,
            ok: false,
            needed: true,
            detail: "Operation not permitted".to_owned(),
            mend: "Load the kernel module overlay.",
        };
        assert_eq!(sandbox(fact("overlay"), false).mark(), "unknown");
        assert_eq!(sandbox(fact("overlay"), true).mark(), "missing");
        assert_eq!(sandbox(fact("pidfd"), false).mark(), "missing");
        assert_eq!(sandbox(fact("overlay"), false).mend(), Some(AS_ROOT));
    }

    #[test]
    fn the_probes_that_need_root_are_known_by_their_names() {
        let names: Vec<&str> = tram_sandbox::probe::facts()
            .iter()
            .map(|fact| fact.name)
            .collect();
        for name in TRIED_AS_ROOT {
            assert!(names.contains(&name), "{name}");
        }
    }

    #[test]
    fn a_taken_port_is_told_apart_from_a_wrong_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let look = |ours| port("API", &[at.ip()], at.port(), "`--api-listen`", ours, true);
        assert_eq!(look(Ours::Runs).mark(), "ok");
        assert_eq!(look(Ours::Hidden).mark(), "unknown");
        let check = look(Ours::DoesNotRun);
        assert_eq!(check.mark(), "missing");
        assert!(
            check.mend().unwrap().contains("stop what listens there"),
            "{check:?}"
        );
        let elsewhere = port(
            "HTTP",
            &[address("192.0.2.1:0").ip()],
            8080,
            "`--http-port`",
            Ours::DoesNotRun,
            true,
        );
        assert!(elsewhere.detail().contains("192.0.2.1"), "{elsewhere:?}");
        assert!(elsewhere.mend().unwrap().contains("http_listen"), "{elsewhere:?}");
    }

    #[test]
    fn names_must_lead_to_this_machine() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(matches!(
            led("tram.localhost", &[ip("127.0.0.1")]),
            Finding::Good(_)
        ));
        let Finding::Bad { detail, .. } = led("apps.example.org", &[ip("127.0.0.1"), ip("192.0.2.1")]) else {
            panic!("192.0.2.1 is for documentation");
        };
        assert_eq!(
            detail,
            "`*.apps.example.org` leads to 192.0.2.1, which this machine does not have"
        );
        assert!(matches!(led("apps.example.org", &[]), Finding::Bad { .. }));
    }

    #[test]
    fn a_holder_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(holder(directory.path(), "lock", true), Ours::DoesNotRun);
        let _lock = DirectoryLock::take(directory.path(), "lock").unwrap().unwrap();
        assert_eq!(holder(directory.path(), "lock", false), Ours::Runs);
    }
}
