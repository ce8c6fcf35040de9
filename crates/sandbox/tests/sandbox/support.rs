//! A supervisor on a state directory of its own, and an image with busybox in it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tram_sandbox::client::{Client, Error, Watch};
use tram_sandbox::logs::{self, Order, Range, Stream};
use tram_sandbox::protocol::{
    Event, ExitRecord, ExitStatus, InstanceId, InstanceInfo, InstanceState, LaunchSpec,
};

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) lower: PathBuf,
    supervisor: Child,
    v1_freezer: bool,
}

impl World {
    /// `None` when this machine cannot run the test and the tests may do without.
    pub(crate) fn new() -> Option<Self> {
        Self::with(false)
    }

    pub(crate) fn with(v1_freezer: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("instances need root: run `make test`");
            return None;
        }
        if !Path::new("/bin/busybox").exists() {
            skip("/bin/busybox is missing: run `apt-get install busybox-static`");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let lower = dir.path().join("lower");
        image(&lower);
        let supervisor = spawn(&dir.path().join("state"), v1_freezer);
        let world = Self {
            dir,
            lower,
            supervisor,
            v1_freezer,
        };
        world.wait_for_supervisor();
        Some(world)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.state())
    }

    pub(crate) fn supervisor_pid(&self) -> i32 {
        i32::try_from(self.supervisor.id()).unwrap()
    }

    fn wait_for_supervisor(&self) {
        until("the supervisor answers", || self.client().ping().is_ok());
    }

    /// As if the machine's administrator did.
    pub(crate) fn kill_supervisor(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
    }

    pub(crate) fn start_supervisor(&mut self) {
        self.supervisor = spawn(&self.state(), self.v1_freezer);
        self.wait_for_supervisor();
    }

    /// A spec that runs a shell script.
    pub(crate) fn shell(&self, script: &str) -> LaunchSpec {
        self.program(&["/bin/sh", "-c", script])
    }

    pub(crate) fn program(&self, argv: &[&str]) -> LaunchSpec {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = InstanceId::new(format!("test-{}-{number}", std::process::id())).unwrap();
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let mut spec = LaunchSpec::new(id, 1, vec![self.lower.clone()], argv);
        spec.env = vec![("PATH".into(), "/bin:/sbin".into())];
        spec
    }

    /// Launch, wait for the end, give the record and the logs.
    pub(crate) fn run(&self, spec: LaunchSpec) -> (ExitRecord, Vec<logs::Record>) {
        let id = spec.id.clone();
        self.client().launch(spec).unwrap();
        (self.wait_exit(&id), self.logs(&id))
    }

    /// What a script prints on stdout, when it ends well.
    pub(crate) fn output(&self, spec: LaunchSpec) -> Vec<String> {
        let (exit, records) = self.run(spec);
        assert_eq!(exit.status, Some(ExitStatus::Code(0)), "{records:#?}");
        records
            .into_iter()
            .filter(|record| record.stream == Stream::Stdout)
            .map(|record| record.text)
            .collect()
    }

    pub(crate) fn info(&self, id: &InstanceId) -> InstanceInfo {
        self.client()
            .list()
            .unwrap()
            .into_iter()
            .find(|info| info.id == *id)
            .unwrap()
    }

    pub(crate) fn wait_exit(&self, id: &InstanceId) -> ExitRecord {
        let mut exit = None;
        until("the instance ends", || match self.info(id).state {
            InstanceState::Exited { exit: record } => {
                exit = Some(record);
                true
            }
            _ => false,
        });
        exit.unwrap()
    }

    pub(crate) fn logs(&self, id: &InstanceId) -> Vec<logs::Record> {
        logs::read(
            self.info(id).log_dir,
            &Range::default(),
            100_000,
            Order::Ascending,
        )
        .unwrap()
    }

    pub(crate) fn wait_log(&self, id: &InstanceId, text: &str) {
        until("the line is logged", || {
            self.logs(id).iter().any(|record| record.text.contains(text))
        });
    }

    /// Every cgroup of this state directory, wherever it is.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let ids: Vec<String> = self
            .state()
            .join("instances")
            .read_dir()
            .map(|entries| {
                entries
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect()
            })
            .unwrap_or_default();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for parent in fs::read_dir(hierarchy.path().join("tram"))
                .into_iter()
                .flatten()
                .flatten()
            {
                for id in &ids {
                    let path = parent.path().join(id);
                    if path.exists() {
                        found.push(path);
                    }
                }
            }
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.client().ping().is_err() {
            let _ = self.supervisor.kill();
            let _ = self.supervisor.wait();
            self.supervisor = spawn(&self.state(), self.v1_freezer);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Ok(instances) = self.client().list() else {
                continue;
            };
            if instances.is_empty() {
                break;
            }
            for info in instances {
                let _ = self.client().kill(&info.id);
                let _ = self.client().remove(&info.id);
            }
        }
        let pid = rustix::process::Pid::from_raw(self.supervisor_pid()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.supervisor.wait();
    }
}

/// Says why a test cannot run here. That fails it, unless whoever runs the tests said that they may do without.
#[track_caller]
pub(crate) fn skip(why: &str) {
    assert!(
        std::env::var_os("TRAM_TESTS_MAY_SKIP").is_some(),
        "{why} (or set TRAM_TESTS_MAY_SKIP=1)"
    );
    eprintln!("skipped: {why}");
}

fn spawn(state: &Path, v1_freezer: bool) -> Child {
    // Built beside the tests, as every example is.
    let own = std::env::current_exe().unwrap();
    let program = own
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/supervisor");
    assert!(
        program.exists(),
        "{} is missing: run `cargo build -p tram-sandbox --examples`",
        program.display()
    );
    let mut command = Command::new(program);
    command.arg(state).stdin(Stdio::null());
    if v1_freezer {
        command.arg("v1-freezer");
    }
    command.spawn().unwrap()
}

fn image(lower: &Path) {
    for directory in ["bin", "sbin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(lower.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
    let applets = Command::new("/bin/busybox")
        .arg("--list")
        .output()
        .unwrap()
        .stdout;
    for applet in String::from_utf8(applets)
        .unwrap()
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        symlink("/bin/busybox", lower.join("bin").join(applet)).unwrap();
    }
}

/// Poll a condition until it is true; panic when it does not become so.
#[track_caller]
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        pause();
    }
}

/// A moment between two looks.
pub(crate) fn pause() {
    let moment = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 2_000_000,
    };
    rustix::event::poll(&mut [], Some(&moment)).unwrap();
}

/// The next event that a condition picks.
#[track_caller]
pub(crate) fn next_event(watch: &mut Watch, mut pick: impl FnMut(&Event) -> bool) -> Event {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match watch.next(left) {
            Ok(Some(event)) if pick(&event) => return event,
            Ok(Some(_)) => {}
            Ok(None) => panic!("the event did not come"),
            Err(error) => panic!("the watch broke: {error}"),
        }
    }
}

#[track_caller]
pub(crate) fn refusal(error: Error) -> tram_sandbox::protocol::Refusal {
    match error {
        Error::Refused(refusal) => refusal,
        other => panic!("not a refusal: {other:?}"),
    }
}
