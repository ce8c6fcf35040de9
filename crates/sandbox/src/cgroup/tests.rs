//! The drivers against the kernel of this machine.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::*;

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: cgroups need root");
    }
    root
}

fn sleeper(driver: &dyn Driver, name: &str) -> std::process::Child {
    let child = Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let attach = driver.attach(name).unwrap();
    for mut file in attach.procs.into_iter().chain(attach.cpu) {
        std::io::Write::write_all(&mut file, child.id().to_string().as_bytes()).unwrap();
    }
    if attach.born_in.is_some() {
        let layout = Layout::detect().unwrap();
        let root = layout.unified.unwrap();
        let found = glob(&root.join(PARENT), name);
        fs::write(found.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
    child
}

fn glob(parent: &Path, name: &str) -> PathBuf {
    fs::read_dir(parent)
        .unwrap()
        .map(|entry| entry.unwrap().path().join(name))
        .find(|path| path.exists())
        .unwrap()
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        crate::sys::poll(&mut [], Some(Duration::from_millis(1))).unwrap();
    }
}

fn lifecycle(driver: &dyn Driver, name: &str) {
    driver
        .create(
            name,
            &Limits {
                pids_max: None,
                ..Limits::default()
            },
        )
        .unwrap();
    let mut child = sleeper(driver, name);
    assert!(!driver.is_empty(name).unwrap());
    driver.freeze(name).unwrap();
    assert!(driver.is_frozen(name).unwrap());
    driver.thaw(name).unwrap();
    wait_until(|| !driver.is_frozen(name).unwrap());
    driver.freeze(name).unwrap();
    driver.kill(name).unwrap();
    child.wait().unwrap();
    wait_until(|| driver.is_empty(name).unwrap());
    assert_eq!(driver.names().unwrap(), [name]);
    driver.remove(name).unwrap();
    driver.remove(name).unwrap();
    assert!(driver.names().unwrap().is_empty());
}

#[test]
fn this_machines_driver_freezes_kills_and_removes() {
    if root() {
        lifecycle(
            driver(Path::new("/tram-test/auto"), Freezer::Auto)
                .unwrap()
                .as_ref(),
            "unit-auto",
        );
    }
}

#[test]
fn the_v1_freezer_does_too() {
    if root() && Layout::detect().unwrap().controller("freezer").is_some() {
        lifecycle(
            driver(Path::new("/tram-test/v1"), Freezer::V1).unwrap().as_ref(),
            "unit-v1",
        );
    }
}

#[test]
fn so_does_the_core_of_v2() {
    // Here the unified tree may have no controllers, so only what needs none is tested.
    if root()
        && let Some(unified) = Layout::detect().unwrap().unified
    {
        let v2 = v2::V2::new(&unified, &format!("{PARENT}/unit-v2-core"), &[]).unwrap();
        lifecycle(&v2, "unit-v2");
    }
}

#[test]
fn limits_are_what_the_kernel_then_reports() {
    if !root() {
        return;
    }
    let driver = driver(Path::new("/tram-test/limits"), Freezer::Auto).unwrap();
    let limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_millis: Some(250),
        pids_max: Some(17),
        ..Limits::default()
    };
    driver.create("unit-limits", &limits).unwrap();
    let stats = driver.stats("unit-limits").unwrap();
    assert_eq!((stats.pids, stats.oom_kills, stats.swap_bytes), (0, 0, 0));
    if let Some(memory) = Layout::detect().unwrap().controller("memory") {
        let own = glob(&memory.join(PARENT), "unit-limits");
        assert_eq!(
            fs::read_to_string(own.join("memory.limit_in_bytes"))
                .unwrap()
                .trim(),
            "67108864"
        );
    }
    driver.remove("unit-limits").unwrap();
}

#[test]
fn what_is_in_swap_is_told_by_process_where_the_cgroup_does_not() {
    let stat = "cache 5\nswap 4096\ntotal_cache 5\ntotal_swap 8192\n";
    assert_eq!(keyed_if_there(stat, "total_swap"), Some(8192));
    assert_eq!(keyed_if_there("total_swapcached 7\n", "total_swap"), None);
    let status = "VmRSS:\t    2048 kB\nVmSwap:\t  262140 kB\nThreads:\t1\n";
    assert_eq!(swapped_of(status), 262_140 << 10);
    assert_eq!(swapped_of("Name:\tkthreadd\n"), 0);
}

#[test]
fn keyed_files_are_read_by_whole_keys() {
    let text = "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n";
    assert_eq!(keyed(text, "oom_kill"), 7);
    assert_eq!(keyed(text, "oom"), 0);
}
