"""A sandbox for one program that does nothing, without the API: isolation, start, the program, its end, all of it gone.

Ours by the supervisor's socket beside bubblewrap, crun, runc, podman and gVisor's runsc by their commands, in one run by
turns, at equal isolation: process, mount, network, host name, IPC and cgroup namespaces, limits of memory, processor and
processes, a filter of system calls, the same root directory that is not written to, and a small writable /tmp in
memory. Where they do less, it is they who gain: their filter is a short list of refused calls where ours is a long one of
allowed calls, and bubblewrap, which sets no limits, is started from control groups that are made for it (without them
it is shown too). The network namespace of ours was made before, as the platform does; with one made meanwhile, and as
sandboxes have it (user ids of its own, a disk of its own), it is shown beside.

Once back to back, and once after some idleness before each. A peer that cannot run here is left out, and the figure says
so. SANDBOX_INNER_ROUNDS makes it shorter to try.
"""

import json
import os
import pathlib
import platform
import shutil
import statistics
import struct
import subprocess
import tempfile

ROUNDS = int(os.environ.get("SANDBOX_INNER_ROUNDS", "200"))
GAPS_MS = (0, 60)
# Of a peer's median.
GOALS = {"bubblewrap": 0.5, "crun": 0.25, "runc": 0.1}
# Peers that take a tenth of a second are run in every tenth round.
SLOW_EVERY = 10
PATIENCE_SECONDS = 1800
RUNSC = ("/usr/local/lib/tramontane/runsc/runsc", "runsc")
MEMORY_BYTES, CPU_PERIOD_US, PIDS_MAX, WRITABLE_BYTES = 256 << 20, 100_000, 1024, 64 << 20
CAPABILITIES = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
                "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
                "CAP_AUDIT_WRITE"]
# Some of what Docker's filter refuses, with the numbers of x86-64.
REFUSED = {
    "ptrace": 101, "syslog": 103, "personality": 135, "pivot_root": 155, "acct": 163, "settimeofday": 164, "mount": 165,
    "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175,
    "delete_module": 176, "quotactl": 179, "lookup_dcookie": 212, "mbind": 237, "kexec_load": 246, "add_key": 248,
    "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308,
    "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
}


def found(*names):
    return next((path for name in names if (path := shutil.which(name))), None)


def rooted(directory):
    """A root directory with one program, which does nothing."""
    root = directory / "root"
    for name in ("bin", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/true")
    directory.chmod(0o755)
    return root


def filter_file(directory):
    """The refused calls as the kernel reads them: struct sock_filter after struct sock_filter."""
    load, jump_equal, give = 0x20, 0x15, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    x86_64 = 0xC000003E
    numbers = sorted(REFUSED.values())
    program = [(load, 0, 0, 4), (jump_equal, 1, 0, x86_64), (give, 0, 0, kill), (load, 0, 0, 0)]
    # Each jumps over the rest of them and over what allows.
    program += [(jump_equal, len(numbers) - place, 0, number) for place, number in enumerate(numbers)]
    program += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    file = directory / "filter.bpf"
    file.write_bytes(b"".join(struct.pack("=HBBI", *one) for one in program))
    return file


def bundle(directory, root, name, cgroup):
    """A directory as OCI's runtimes take it."""
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False, "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/",
            "env": ["PATH=/usr/bin:/bin"], "noNewPrivileges": True,
            "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
        },
        "root": {"path": str(root), "readonly": True},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "size=64m"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", f"size={WRITABLE_BYTES}"]},
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "network", "uts", "ipc", "cgroup")],
            "cgroupsPath": cgroup,
            "resources": {
                "memory": {"limit": MEMORY_BYTES}, "cpu": {"quota": CPU_PERIOD_US, "period": CPU_PERIOD_US},
                "pids": {"limit": PIDS_MAX},
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": sorted(REFUSED), "action": "SCMP_ACT_ERRNO"}],
            },
        },
    }
    place = directory / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    return place


def contestants(directory, root):
    """Those that are installed, each as the program in crates/sandbox/examples/sandbox_inner.rs wants it; and the others."""
    wanted, absent = [], {}

    def add(name, program, words, limits=False, given=None, every=1):
        if program is None:
            absent[name] = "not installed"
            return
        wanted.append({"name": name, "argv": [str(word) for word in (program, *words)], "limits": limits,
                       "input": str(given) if given else None, "every": every})

    bwrap = ["--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-ipc", "--unshare-cgroup", "--hostname", "box",
             "--die-with-parent", "--clearenv", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev",
             "--tmpfs", "/tmp", "--chdir", "/", "--cap-drop", "ALL", "--seccomp", "0", "/bin/true"]
    rules = filter_file(directory)
    add("bubblewrap", found("bwrap"), bwrap, limits=True, given=rules)
    add("bubblewrap without limits", found("bwrap"), bwrap, given=rules)
    for name, program, more, every in (
        ("crun", found("crun"), ["--cgroup-manager=cgroupfs"], 1), ("runc", found("runc"), [], 2),
        ("runsc", found(*RUNSC), ["--network=none", "--platform=systrap"], SLOW_EVERY),
    ):
        place = bundle(directory, root, name, f"/tram-bench-{name}")
        state = directory / f"{name}.state"
        add(name, program, ["--root", state, *more, "run", "--bundle", place, f"{name}-{{n}}"], every=every)
    podman = ["--root", directory / "podman", "--runroot", directory / "podman.run", "--storage-driver", "vfs",
              "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", found("runc") or "runc", "run", "--rm",
              "--network", "none", "--cgroups", "enabled", "--memory", MEMORY_BYTES, "--cpus", "1",
              "--pids-limit", PIDS_MAX, "--read-only", "--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096",
              "--security-opt", "no-new-privileges", "--name", "{n}", "--rootfs", root, "/bin/true"]
    add("podman", found("podman"), podman, every=SLOW_EVERY)
    return wanted, absent


def measure(directory, root, others, rounds, gap_ms):
    """The milliseconds of each contestant; an error's text when one of them fails."""
    plan = directory / "plan.json"
    plan.write_text(json.dumps({"root": str(root), "program": "/bin/true", "rounds": rounds, "gap_ms": gap_ms,
                                "others": others}))
    program = os.path.join(os.environ["TRAM_TARGET"], "examples", "sandbox_inner")
    done = subprocess.run([program, plan], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip() or f"{program} left with {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def able(directory, root, others):
    """Those that can run here, and why the others cannot."""
    runs, unable = [], {}
    for other in others:
        try:
            # Warms it up, too.
            measure(directory, root, [{**other, "every": 1}], 2, 0)
            runs.append(other)
        except RuntimeError as error:
            unable[other["name"]] = "cannot run here: " + " ".join(str(error).split())[-160:]
    return runs, unable


def p99(taken):
    return sorted(taken)[max(int(len(taken) * 0.99) - 1, 0)]


def shown(found_ms):
    return ", ".join(f"{name} {statistics.median(taken):.3g} (p99 {p99(taken):.3g}, {len(taken)} runs)"
                     for name, taken in found_ms.items())


def run(rounds=ROUNDS):
    if platform.machine() != "x86_64":
        raise SystemExit("sandbox-inner: the filter of the peers is written for x86-64 alone")
    with tempfile.TemporaryDirectory(prefix="tram-inner-") as made:
        directory = pathlib.Path(made)
        root = rooted(directory)
        others, left_out = contestants(directory, root)
        others, unable = able(directory, root, others)
        left_out.update(unable)
        by_gap = {gap: measure(directory, root, others, rounds, gap) for gap in GAPS_MS}
    medians = {gap: {name: statistics.median(taken) for name, taken in found_ms.items()}
               for gap, found_ms in by_gap.items()}
    of_peers = {(gap, name): one["ours"] / one[name] for gap, one in medians.items() for name in GOALS if name in one}
    to_goal = {place: ratio / GOALS[place[1]] for place, ratio in of_peers.items()}
    worst = max(to_goal.values(), default=float("inf"))
    ratios = "; ".join(f"after {gap} ms of idleness: "
                       + ", ".join(f"{name} {of_peers[gap, name]:.2f}" for name in GOALS if (gap, name) in of_peers)
                       for gap in GAPS_MS)
    without = "".join(f"; without {name}: {why}" for name, why in left_out.items())
    return {
        "figure": worst, "unit": f"worst ratio of medians to its goal; {ratios}",
        "goal": ", ".join(f"<= {goal} of {name}" for name, goal in GOALS.items()),
        "pass": worst <= 1 and all(name in medians[0] for name in GOALS),
        "peer": "bubblewrap, crun and runc at equal isolation", "ratio": of_peers.get((0, "bubblewrap")),
        "runs": rounds,
        "spread": "ms at the median: " + "; ".join(f"after {gap} ms: {shown(found_ms)}"
                                                   for gap, found_ms in by_gap.items()) + without,
    }
