//! What a launch costs: from the request on the socket to the exec'd program, and back.
//!
//! `launch_cost [COUNT] [GAP_MS] [memory|disk|instance|stranger]` starts a supervisor of its own on a temporary directory,
//! launches COUNT instances one after the other (each with its own namespaces, cgroups, overlay and filter),
//! and prints the median and the 99th percentile in milliseconds; the last line is one JSON object about the
//! launches. GAP_MS is idleness between them: without it, costs that only show after a pause stay hidden. With
//! `memory` the writable layers are tmpfs: then the disk's part is small. With `disk` each has a disk of its own.
//! With `instance` each has a disk and a network namespace that was ready before, as instances have; with `stranger`
//! also a user namespace, as sandboxes have.

mod support;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tram_sandbox::client::Client;
use tram_sandbox::netns;
use tram_sandbox::protocol::{IdRange, InstanceId, InstanceState, LaunchSpec, Limits, Network};

use support::Supervisor;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BUSYBOX: &str = "/bin/busybox";
const COUNT_DEFAULT: usize = 300;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments
        .next()
        .map_or(Ok(COUNT_DEFAULT), |count| count.parse())?;
    let gap = Duration::from_millis(arguments.next().map_or(Ok(0), |gap| gap.parse())?);
    let kind = arguments.next().unwrap_or_default();
    let upper_bytes_max = (kind == "memory").then_some(64 << 20);
    let disk_bytes_max = matches!(kind.as_str(), "disk" | "instance" | "stranger").then_some(2560 << 20);
    let dir = tempfile::tempdir()?;
    let lower = image(dir.path())?;
    let state = dir.path().join("state");
    let program = std::env::current_exe()?.with_file_name("supervisor");
    let _supervisor = Supervisor(Command::new(program).arg(&state).spawn()?);
    let client = Client::new(&state);
    wait(|| client.ping().is_ok())?;

    let (mut launches, mut kills) = (Vec::new(), Vec::new());
    for number in 0..count {
        let id = InstanceId::new(format!("cost-{number}"))?;
        let argv = vec!["/bin/busybox".into(), "sleep".into(), "1000".into()];
        let mut spec = LaunchSpec::new(id.clone(), 1, vec![lower.clone()], argv);
        spec.upper_bytes_max = upper_bytes_max;
        spec.disk_bytes_max = disk_bytes_max;
        spec.limits = Limits {
            memory_bytes: Some(256 << 20),
            cpu_millis: Some(1000),
            ..Limits::default()
        };
        let namespace = dir.path().join(format!("netns/{number}"));
        if kind == "stranger" {
            spec.ids = Some(IdRange::numbered(u32::try_from(number)?));
        }
        if matches!(kind.as_str(), "instance" | "stranger") {
            spec.limits.pids_max = Some(1024);
            spec.limits.nofile = Some(4096);
            netns::create(&namespace)?;
            spec.network = Network::Namespace {
                path: namespace.clone(),
            };
        }
        let begun = Instant::now();
        client.launch(spec)?;
        launches.push(begun.elapsed());
        let begun = Instant::now();
        client.kill(&id)?;
        wait(|| ended(&client, &id))?;
        kills.push(begun.elapsed());
        client.remove(&id)?;
        netns::delete(&namespace)?;
        rest(gap)?;
    }
    report("launch to exec'd", &mut launches);
    report("kill to recorded end", &mut kills);
    summary(&launches, isolation(&kind));
    Ok(())
}

/// What stands between such an instance and the machine: a time without it says nothing.
fn isolation(kind: &str) -> &'static str {
    match kind {
        "memory" => "pid, mount, net, uts, ipc and cgroup namespaces, limits, seccomp, overlay on a tmpfs",
        "disk" => {
            "pid, mount, net, uts, ipc and cgroup namespaces, limits, seccomp, overlay on a disk of its own"
        }
        "instance" => {
            "pid, mount, uts, ipc and cgroup namespaces, a network namespace from the pool, limits, seccomp, \
             overlay on a disk of its own"
        }
        "stranger" => {
            "user, pid, mount, uts, ipc and cgroup namespaces, a network namespace from the pool, limits, seccomp, \
             overlay on a disk of its own, shifted ids"
        }
        _ => "pid, mount, net, uts, ipc and cgroup namespaces, limits, seccomp, overlay",
    }
}

/// One JSON object for programs. The times are sorted.
#[expect(
    clippy::print_stdout,
    reason = "the result of a measurement is what it prints"
)]
fn summary(launches: &[Duration], isolation: &str) {
    println!(
        "{}",
        serde_json::json!({
            "launches": launches.len(),
            "best_ms": at(launches, 0),
            "median_ms": at(launches, 50),
            "p99_ms": at(launches, 99),
            "isolation": isolation,
        })
    );
}

/// Milliseconds at a percentile of sorted times.
fn at(times: &[Duration], share: usize) -> f64 {
    times
        .get((times.len() * share / 100).min(times.len().saturating_sub(1)))
        .map_or(0.0, |time| time.as_secs_f64() * 1e3)
}

fn ended(client: &Client, id: &InstanceId) -> bool {
    client.list().is_ok_and(|list| {
        list.iter()
            .any(|info| info.id == *id && matches!(info.state, InstanceState::Exited { .. }))
    })
}

fn image(dir: &Path) -> Result<PathBuf> {
    let lower = dir.join("lower");
    std::fs::create_dir_all(lower.join("bin"))?;
    std::fs::copy(BUSYBOX, lower.join("bin/busybox"))?;
    Ok(lower)
}

fn wait(mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return Err("timed out".into());
        }
        rest(Duration::from_micros(500))?;
    }
    Ok(())
}

fn rest(time: Duration) -> Result<()> {
    let time = rustix::event::Timespec {
        tv_sec: i64::try_from(time.as_secs())?,
        tv_nsec: time.subsec_nanos().into(),
    };
    rustix::event::poll(&mut [], Some(&time))?;
    Ok(())
}

#[expect(
    clippy::print_stdout,
    reason = "the result of a measurement is what it prints"
)]
fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    println!(
        "{what}: median {:.2} ms, p99 {:.2} ms, best {:.2} ms, n {}",
        at(times, 50),
        at(times, 99),
        at(times, 0),
        times.len()
    );
}
