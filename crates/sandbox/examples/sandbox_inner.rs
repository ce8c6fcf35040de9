//! A sandbox for one program that does nothing, from the order until nothing of it is left: ours beside others', by turns.
//!
//! `sandbox_inner PLAN` reads a plan in JSON (see [`Plan`]), starts a supervisor of its own on a temporary directory, and in
//! each round does the same with every contestant that is due: ours by the supervisor's socket (launch, its end, removal),
//! the others by their command. Prints one JSON object: the milliseconds of each by name. Called by bench/sandbox_inner.py.
//!
//! The one design choice to know: a contestant that sets no limits itself is started from control groups with the same
//! limits, which are made for each time and count as its own, as others make theirs; that they go again does not.

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tram_sandbox::client::{Client, Watch};
use tram_sandbox::netns;
use tram_sandbox::protocol::{Event, ExitStatus, IdRange, InstanceId, LaunchSpec, Limits, Network};

use support::Supervisor;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// No contestant takes so long, even on a machine in trouble.
const PATIENCE: Duration = Duration::from_secs(30);
const MEMORY_BYTES: u64 = 256 << 20;
const CPU_MILLIS: u32 = 1000;
const PIDS_MAX: u64 = 1024;
/// What is written goes to memory, up to this much, at the others as here.
const WRITABLE_BYTES: u64 = 64 << 20;
const DISK_BYTES: u64 = 2560 << 20;
/// What is replaced by the number of the round, so that each sandbox has a name of its own.
const NUMBER: &str = "{n}";

/// What to do.
#[derive(Debug, Deserialize)]
struct Plan {
    /// The directory that every sandbox has as its root.
    root: PathBuf,
    /// The program that does nothing, in there.
    program: String,
    rounds: usize,
    /// Idleness before each.
    gap_ms: u64,
    others: Vec<Other>,
}

/// A contestant that is a command.
#[derive(Debug, Deserialize)]
struct Other {
    name: String,
    /// It is given a control group with limits.
    limits: bool,
    /// Its standard input; nothing without.
    input: Option<PathBuf>,
    argv: Vec<String>,
    /// Once in so many rounds.
    every: usize,
}

/// How ours is isolated.
#[derive(Debug, Clone, Copy)]
enum Ours {
    /// As the others: writes go to memory, and a network namespace is made for it meanwhile.
    Fresh,
    /// The same with one that was made before, as instances have it.
    Pooled,
    /// As a sandbox of the platform: also user ids of its own, and writes go to a disk of its own.
    Sandbox,
}

const OURS: [(&str, Ours); 3] = [
    ("ours", Ours::Pooled),
    ("ours-fresh", Ours::Fresh),
    ("ours-sandbox", Ours::Sandbox),
];

fn main() -> Result<()> {
    let path = std::env::args().nth(1).ok_or("usage: sandbox_inner PLAN")?;
    let plan: Plan = serde_json::from_slice(&fs::read(path)?)?;
    let dir = tempfile::tempdir()?;
    let state = dir.path().join("state");
    let supervisor = std::env::current_exe()?.with_file_name("supervisor");
    let _supervisor = Supervisor(Command::new(supervisor).arg(&state).spawn()?);
    let client = Client::new(&state);
    let deadline = Instant::now() + PATIENCE;
    while client.ping().is_err() {
        if Instant::now() > deadline {
            return Err("the supervisor does not come up".into());
        }
        rest(Duration::from_millis(1))?;
    }
    let mut watch = client.watch()?;
    std::thread::scope(|scope| {
        let (orders, asked) = mpsc::channel();
        let (answers, answered) = mpsc::channel();
        // A thread of its own, since it sees other mounts than ours.
        scope.spawn(|| run_others(&plan, asked, answers));
        let mut taken: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for round in 0..plan.rounds {
            for (name, kind) in OURS {
                let mut time = Time::after(plan.gap_ms);
                let launch = Launch {
                    plan: &plan,
                    client: &client,
                    directory: dir.path(),
                    name: format!("{name}-{round}"),
                    kind,
                    round,
                };
                ours(&launch, &mut watch, &mut time)?;
                note(&mut taken, name, time.taken);
            }
            for (number, other) in plan.others.iter().enumerate() {
                if round.is_multiple_of(other.every) {
                    orders.send((number, round))?;
                    note(&mut taken, &other.name, answered.recv()??);
                }
            }
        }
        drop(orders);
        tell(&taken)
    })
}

/// Runs the other contestants as they are asked for, until nobody asks.
fn run_others(plan: &Plan, asked: mpsc::Receiver<(usize, usize)>, answers: mpsc::Sender<Result<Duration>>) {
    let groups = see_first_version_alone().and_then(|()| Groups::find());
    for (number, round) in asked {
        let mut time = Time::after(plan.gap_ms);
        let ran = match (&groups, plan.others.get(number)) {
            (Ok(groups), Some(other)) => theirs(other, groups, round, &mut time),
            (Err(error), _) => Err(error.to_string().into()),
            (_, None) => Err("there is no such contestant".into()),
        };
        if answers.send(ran.map(|()| time.taken)).is_err() {
            return;
        }
    }
}

fn note(taken: &mut BTreeMap<String, Vec<f64>>, name: &str, time: Duration) {
    taken
        .entry(name.to_owned())
        .or_default()
        .push(time.as_secs_f64() * 1e3);
}

#[expect(
    clippy::print_stdout,
    reason = "the result of a measurement is what it prints"
)]
fn tell(taken: &BTreeMap<String, Vec<f64>>) -> Result<()> {
    println!("{}", serde_json::to_string(taken)?);
    Ok(())
}

/// What one run takes, after a time of idleness.
struct Time {
    gap: Duration,
    taken: Duration,
}

impl Time {
    fn after(gap_ms: u64) -> Self {
        Self {
            gap: Duration::from_millis(gap_ms),
            taken: Duration::ZERO,
        }
    }

    fn count<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        rest(self.gap)?;
        let begun = Instant::now();
        let done = work()?;
        self.taken = begun.elapsed();
        Ok(done)
    }
}

/// One sandbox of ours.
struct Launch<'a> {
    plan: &'a Plan,
    client: &'a Client,
    directory: &'a Path,
    name: String,
    kind: Ours,
    round: usize,
}

fn ours(launch: &Launch<'_>, watch: &mut Watch, time: &mut Time) -> Result<()> {
    let Launch {
        plan,
        client,
        directory,
        name,
        kind,
        round,
    } = launch;
    let id = InstanceId::new(name)?;
    let mut spec = LaunchSpec::new(id.clone(), 1, vec![plan.root.clone()], vec![plan.program.clone()]);
    spec.limits = Limits {
        memory_bytes: Some(MEMORY_BYTES),
        cpu_millis: Some(CPU_MILLIS),
        pids_max: Some(PIDS_MAX),
        ..Limits::default()
    };
    match kind {
        Ours::Sandbox => {
            spec.disk_bytes_max = Some(DISK_BYTES);
            spec.ids = Some(IdRange::numbered(u32::try_from(*round)?));
        }
        Ours::Fresh | Ours::Pooled => spec.upper_bytes_max = Some(WRITABLE_BYTES),
    }
    let namespace = directory.join("netns").join(name);
    if !matches!(kind, Ours::Fresh) {
        netns::create(&namespace)?;
        spec.network = Network::Namespace {
            path: namespace.clone(),
        };
    }
    time.count(|| {
        client.launch(spec)?;
        await_end(watch, &id)?;
        Ok(client.remove(&id)?)
    })?;
    if !matches!(kind, Ours::Fresh) {
        netns::delete(&namespace)?;
    }
    Ok(())
}

fn await_end(watch: &mut Watch, wanted: &InstanceId) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match watch.next(deadline.saturating_duration_since(Instant::now()))? {
            Some(Event::Exited { id, exit, .. }) if id == *wanted => {
                return match exit.status {
                    Some(ExitStatus::Code(0)) => Ok(()),
                    other => Err(format!("{id} ended with {other:?}").into()),
                };
            }
            Some(_) => {}
            None => return Err(format!("{wanted} does not end").into()),
        }
    }
}

fn theirs(other: &Other, groups: &Groups, round: usize, time: &mut Time) -> Result<()> {
    let name = format!("inner-{round}");
    let words: Vec<String> = other
        .argv
        .iter()
        .map(|word| word.replace(NUMBER, &name))
        .collect();
    let (program, arguments) = words.split_first().ok_or("a contestant without a command")?;
    let input = match &other.input {
        Some(path) => File::open(path)?.into(),
        None => Stdio::null(),
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut group = None;
    let ended = time.count(|| {
        if other.limits {
            group = Some(groups.enter(&name)?);
        }
        Ok(command.output())
    });
    if let Some(group) = group {
        group.leave()?;
    }
    let ended = ended??;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        return Err(format!("{}: {}: {said}", other.name, ended.status).into());
    }
    Ok(())
}

/// Where this machine's control groups of memory, processor and processes are, and where this process is in them.
struct Groups {
    trees: Vec<Tree>,
}

struct Tree {
    /// Where ours are made.
    parent: PathBuf,
    /// Where this process is otherwise.
    home: PathBuf,
    limits: Vec<(&'static str, String)>,
}

/// A group of this process, until it leaves.
struct Entered<'a> {
    groups: &'a Groups,
    name: String,
}

impl Groups {
    fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let quota = u64::from(CPU_MILLIS) * 100;
        let mut trees = Vec::new();
        let first: [(&str, Vec<(&'static str, String)>); 3] = [
            (
                "memory",
                vec![("memory.limit_in_bytes", MEMORY_BYTES.to_string())],
            ),
            ("cpu", vec![("cpu.cfs_quota_us", quota.to_string())]),
            ("pids", vec![("pids.max", PIDS_MAX.to_string())]),
        ];
        for (controller, limits) in first {
            let mount = mounts.lines().find_map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let is_it = fields.get(2) == Some(&"cgroup")
                    && fields.get(3)?.split(',').any(|one| one == controller);
                is_it.then(|| fields.get(1).map(PathBuf::from)).flatten()
            });
            let Some(mount) = mount else { continue };
            let path = own.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                fields
                    .next()?
                    .split(',')
                    .any(|one| one == controller)
                    .then(|| fields.next())?
            });
            trees.push(Tree::under(mount, path.unwrap_or("/"), limits));
        }
        if trees.is_empty() {
            let path = own
                .lines()
                .find_map(|line| line.strip_prefix("0::"))
                .unwrap_or("/");
            let limits = vec![
                ("memory.max", MEMORY_BYTES.to_string()),
                ("cpu.max", format!("{quota} 100000")),
                ("pids.max", PIDS_MAX.to_string()),
            ];
            let root = PathBuf::from("/sys/fs/cgroup");
            let tree = Tree::under(root.clone(), path, limits);
            for directory in [&root, &tree.parent] {
                fs::create_dir_all(directory)?;
                fs::write(directory.join("cgroup.subtree_control"), "+memory +cpu +pids")?;
            }
            trees.push(tree);
        }
        for tree in &trees {
            fs::create_dir_all(&tree.parent)?;
        }
        Ok(Self { trees })
    }

    /// Makes a group with limits and moves this process into it: who it starts is in it from the first.
    fn enter(&self, name: &str) -> Result<Entered<'_>> {
        for tree in &self.trees {
            let group = tree.parent.join(name);
            fs::create_dir(&group)?;
            for (file, value) in &tree.limits {
                fs::write(group.join(file), value)?;
            }
            fs::write(group.join("cgroup.procs"), "0")?;
        }
        Ok(Entered {
            groups: self,
            name: name.to_owned(),
        })
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for tree in &self.trees {
            let _ = fs::remove_dir(&tree.parent);
        }
    }
}

impl Tree {
    fn under(mount: PathBuf, own: &str, limits: Vec<(&'static str, String)>) -> Self {
        Self {
            home: mount.join(own.trim_start_matches('/')).join("cgroup.procs"),
            parent: mount.join("tram-bench"),
            limits,
        }
    }
}

impl Entered<'_> {
    fn leave(self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for tree in &self.groups.trees {
            fs::write(&tree.home, "0")?;
            // Its last processes may still be on their way out.
            while let Err(error) = fs::remove_dir(tree.parent.join(&self.name)) {
                if error.kind() != std::io::ErrorKind::ResourceBusy || Instant::now() > deadline {
                    return Err(error.into());
                }
                rest(Duration::from_micros(200))?;
            }
        }
        Ok(())
    }
}

/// Hides the second version of control groups from the others where both are mounted: crun refuses such a machine.
fn see_first_version_alone() -> Result<()> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !unified.join("cgroup.procs").exists() {
        return Ok(());
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    Ok(rustix::mount::unmount(
        unified,
        rustix::mount::UnmountFlags::DETACH,
    )?)
}

fn rest(time: Duration) -> Result<()> {
    let time = rustix::event::Timespec {
        tv_sec: i64::try_from(time.as_secs())?,
        tv_nsec: time.subsec_nanos().into(),
    };
    rustix::event::poll(&mut [], Some(&time))?;
    Ok(())
}
