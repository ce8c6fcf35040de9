//! `tram doctor`: what this machine can and cannot do, and how to mend it.

use std::{
    net::{IpAddr, TcpListener},
    path::Path,
};

use serde_json::{Value, json};
use tram_cli::{Printer, Settings};

use crate::paths::Paths;

/// Below this much free space, pulls of ordinary images begin to fail.
const FREE_SPACE_WANTED_BYTES: u64 = 5 * 1024 * 1024 * 1024;

/// How much a failed check matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// `tram up` does not work without it.
    Needed,
    /// Something is missing or slower without it.
    Wanted,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Check {
    name: String,
    ok: bool,
    weight: Weight,
    detail: String,
    mend: Option<String>,
}

impl Check {
    fn new(name: &str, weight: Weight, outcome: Result<String, (String, String)>) -> Self {
        let (ok, detail, mend) = match outcome {
            Ok(detail) => (true, detail, None),
            Err((detail, mend)) => (false, detail, Some(mend)),
        };
        Self {
            name: name.to_owned(),
            ok,
            weight,
            detail,
            mend,
        }
    }

    fn mark(&self) -> &'static str {
        match (self.ok, self.weight) {
            (true, _) => "ok",
            (false, Weight::Needed) => "missing",
            (false, Weight::Wanted) => "limited",
        }
    }
}

/// Looks at this machine and says what was found. True when nothing that is needed is missing.
///
/// # Errors
/// When it cannot be said.
pub async fn run(settings: &Settings, printer: &Printer) -> anyhow::Result<bool> {
    let mut checks = vec![program("nft", "nftables"), program("ip", "iproute2")];
    checks.extend(tram_sandbox::probe::facts().into_iter().map(|fact| Check {
        name: fact.name.to_owned(),
        ok: fact.ok,
        weight: if fact.needed {
            Weight::Needed
        } else {
            Weight::Wanted
        },
        detail: fact.detail,
        mend: (!fact.ok).then(|| fact.mend.to_owned()),
    }));
    checks.push(names(&settings.base_domain).await);
    for (what, number) in [("HTTP", settings.http_port), ("HTTPS", settings.https_port)] {
        checks.push(port(what, &settings.http_listen, number, &settings.data_dir));
    }
    checks.push(space(&settings.data_dir));
    checks.push(trust(&Paths::new(&settings.data_dir)));
    let items: Vec<Value> = checks
        .iter()
        .map(|check| {
            json!({
                "name": check.name, "status": check.mark(), "needed": check.weight == Weight::Needed,
                "detail": check.detail, "mend": check.mend,
            })
        })
        .collect();
    printer.list(&items, "checks", &["CHECK", "STATUS", "FOUND"], |item| {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        vec![text("name"), text("status"), text("detail")]
    })?;
    for check in checks.iter().filter(|check| !check.ok) {
        if let Some(mend) = &check.mend {
            printer.note(format_args!("{}: {mend}", check.name));
        }
    }
    Ok(checks
        .iter()
        .all(|check| check.ok || check.weight == Weight::Wanted))
}

fn program(name: &str, package: &str) -> Check {
    let found = std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .unwrap_or_default()
        .into_iter()
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    let outcome = match found {
        Some(file) => Ok(file.display().to_string()),
        None => Err((
            format!("`{name}` was not found"),
            format!("run `apt-get install {package}`"),
        )),
    };
    Check::new(&format!("program {name}"), Weight::Needed, outcome)
}

/// Names under the base domain must lead to this machine, or printed URLs cannot be opened here.
async fn names(base_domain: &str) -> Check {
    let name = format!("tram-doctor.{base_domain}");
    let mend = if base_domain.ends_with("localhost") {
        "run `apt-get install libnss-myhostname`, which makes every name under `localhost` lead to this machine"
            .to_owned()
    } else {
        format!("have your name server lead `*.{base_domain}` to this machine")
    };
    let outcome = match tokio::net::lookup_host((name.as_str(), 0)).await {
        Ok(found) => {
            let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            if found.is_empty() {
                Err((format!("`{name}` leads nowhere"), mend))
            } else {
                let list = found
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ");
                Ok(format!("`*.{base_domain}` leads to {list}"))
            }
        }
        Err(error) => Err((format!("`{name}` does not resolve: {error}"), mend)),
    };
    Check::new("name resolution", Weight::Wanted, outcome)
}

fn port(what: &str, addresses: &[IpAddr], number: u16, data_dir: &Path) -> Check {
    let name = format!("port {number} ({what})");
    let paths = Paths::new(data_dir);
    if crate::processes::DirectoryLock::holder(&paths.edge(), crate::roles::LOCK_NAME).is_some() {
        return Check::new(&name, Weight::Needed, Ok("held by the running edge".to_owned()));
    }
    let taken = addresses
        .iter()
        .find_map(|address| TcpListener::bind((*address, number)).err().map(|e| (address, e)));
    let outcome = match taken {
        None => Ok("free".to_owned()),
        Some((address, error)) => Err((
            format!("cannot listen on {address} port {number}: {error}"),
            format!(
                "stop what listens there (`ss -ltnp 'sport = :{number}'` shows it), or choose another port with `--{}-port`",
                what.to_lowercase()
            ),
        )),
    };
    Check::new(&name, Weight::Needed, outcome)
}

fn space(data_dir: &Path) -> Check {
    let existing = data_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let outcome = match rustix::fs::statvfs(existing) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let shown = format!("{:.1} GiB free at {}", gib(free), existing.display());
            if free >= FREE_SPACE_WANTED_BYTES {
                Ok(shown)
            } else {
                Err((
                    shown,
                    "make room, or choose another place with `--data-dir`: images take space".to_owned(),
                ))
            }
        }
        Err(error) => Err((
            format!("cannot look at {}: {error}", existing.display()),
            "check the path".to_owned(),
        )),
    };
    Check::new("disk space", Weight::Wanted, outcome)
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / tram_types::units::GIB as f64
}

fn trust(paths: &Paths) -> Check {
    let outcome = if crate::trust::is_trusted(&paths.edge()) {
        Ok("programs here trust the local authority".to_owned())
    } else {
        Err((
            "programs here do not trust the local authority".to_owned(),
            "run `sudo tram trust` after the first start, so that `https://` URLs open without a warning"
                .to_owned(),
        ))
    };
    Check::new("certificates", Weight::Wanted, outcome)
}
