//! Raw bytes on a client's connection to a whole executor: it answers or hangs up, and nothing that needs the secret
//! happens without it.
//!
//! Whoever shows the secret may run commands and write anywhere. So the executor is in a thread of its own whose root is an
//! empty file system in memory that runs no program; needs root.

#![no_main]

use std::fs;
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tram_executor::fuzzing::Executor;

/// What opens this executor; the seeds and the dictionary have it.
const SECRET: &str = "fuzz";
/// Enough for what a run can write, and little enough for the machine.
const DISK: &str = "size=16m,nr_inodes=4096,mode=0755";

/// Longer than anything is written for.
const CLEAR_TIME_MAX: Duration = Duration::from_secs(20);

/// What came of the bytes: the answer, and what is in the executor's file system.
type Outcome = (Vec<u8>, Vec<String>);

struct World {
    bytes: SyncSender<Vec<u8>>,
    outcomes: Receiver<Outcome>,
}

// Only the fuzzer's one thread uses it.
static WORLD: OnceLock<std::sync::Mutex<World>> = OnceLock::new();

fn start() -> World {
    let (bytes, received) = sync_channel::<Vec<u8>>(0);
    let (sender, outcomes) = sync_channel(0);
    std::thread::spawn(move || {
        shut_in();
        // Threads that this one starts have the same root.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let _guard = runtime.enter();
        let executor = Executor::new(SECRET).expect("an executor");
        while let Ok(bytes) = received.recv() {
            let answer = runtime.block_on(executor.answer(&bytes));
            let outcome = (answer, clear());
            if sender.send(outcome).is_err() {
                return;
            }
        }
    });
    World { bytes, outcomes }
}

/// Gives this thread a root of its own, from which nothing leads out.
fn shut_in() {
    let top = tempfile::tempdir().expect("a temporary directory").keep();
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("root, to have a root of its own");
    let nothing: Option<&str> = None;
    mount(
        nothing,
        "/",
        nothing,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        nothing,
    )
    .expect("private mounts");
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), &top, Some("tmpfs"), flags, Some(DISK)).expect("a file system");
    std::os::unix::fs::chroot(&top).expect("a root");
    std::env::set_current_dir("/").expect("a directory");
}

/// Empties the file system; what was there. An operation whose client broke off may still be at it.
fn clear() -> Vec<String> {
    let end = Instant::now() + CLEAR_TIME_MAX;
    let mut found = Vec::new();
    loop {
        let paths: Vec<_> = fs::read_dir("/")
            .expect("the root")
            .flatten()
            .map(|entry| entry.path())
            .collect();
        if paths.is_empty() {
            return found;
        }
        assert!(Instant::now() < end, "these do not go: {paths:?}");
        for path in paths {
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir());
            // What it meets there may be gone or new: it is looked at again.
            let _gone = if is_directory {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            found.push(path.display().to_string());
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let world = WORLD.get_or_init(|| start().into()).lock().expect("one thread");
    world.bytes.send(data.to_vec()).expect("the executor is there");
    let (answer, written) = world.outcomes.recv().expect("the executor is there");
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1."),
        "no answer of a server"
    );
    if data
        .windows(SECRET.len())
        .any(|window| window == SECRET.as_bytes())
    {
        return;
    }
    assert!(
        written.is_empty(),
        "somebody without the secret wrote {written:?}"
    );
    let answer = String::from_utf8_lossy(&answer);
    for one in answer
        .split("HTTP/1.")
        .filter(|one| one.get(1..5) == Some(" 200"))
    {
        assert!(one.contains(r#"{"status":"ok"}"#), "let in: {one}");
    }
});
