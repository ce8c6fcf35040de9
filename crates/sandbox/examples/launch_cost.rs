//! What a launch costs: from the request on the socket to the exec'd program, and back.
//!
//! `launch_cost [COUNT] [GAP_MS] [memory|disk]` starts a supervisor of its own on a temporary directory, launches
//! COUNT instances one after the other (each with its own namespaces, cgroups, overlay and filter),
//! and prints the median and the 99th percentile in milliseconds. GAP_MS is idleness between them:
//! without it, costs that only show after a pause stay hidden. With `memory` the writable layers are
//! tmpfs: then the disk's part is small. With `disk` each has a disk of its own, as instances have.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tram_sandbox::client::Client;
use tram_sandbox::protocol::{InstanceId, InstanceState, LaunchSpec, Limits};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const BUSYBOX: &str = "/bin/busybox";
const COUNT_DEFAULT: usize = 300;
const PATIENCE: Duration = Duration::from_secs(10);

/// Ends with the measurement.
struct Supervisor(Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Asked, not killed, so that it takes its cgroups along.
        if let Some(pid) = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments
        .next()
        .map_or(Ok(COUNT_DEFAULT), |count| count.parse())?;
    let gap = Duration::from_millis(arguments.next().map_or(Ok(0), |gap| gap.parse())?);
    let kind = arguments.next();
    let upper_bytes_max = kind.as_deref().filter(|kind| *kind == "memory").map(|_| 64 << 20);
    let disk_bytes_max = kind.as_deref().filter(|kind| *kind == "disk").map(|_| 2560 << 20);
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
        let begun = Instant::now();
        client.launch(spec)?;
        launches.push(begun.elapsed());
        let begun = Instant::now();
        client.kill(&id)?;
        wait(|| ended(&client, &id))?;
        kills.push(begun.elapsed());
        client.remove(&id)?;
        rest(gap)?;
    }
    report("launch to exec'd", &mut launches);
    report("kill to recorded end", &mut kills);
    Ok(())
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
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!(
        "{what}: median {:.2} ms, p99 {:.2} ms, best {:.2} ms, n {}",
        ms(at(50)),
        ms(at(99)),
        ms(at(0)),
        times.len()
    );
}
