"""Programs that try to break out of an instance, each with the refusal that is right (tests/attacks).

They run as root in a sandbox, and again in a web service, which shares the machine's ids. Nothing may win but what is
named here with its reason. The control runs those that are harmless outside of any sandbox: there they win, so a
refusal inside is the sandbox's work and not a broken program's."""

import concurrent.futures
import contextlib
import os
import pathlib
import re
import socket
import subprocess

import pytest

from cloud import PROJECT, Cloud, wait_for
from leaks import Footprint

SOURCES = PROJECT / "tests" / "attacks"
REFUSED = "refused EPERM"
# Those whose right outcome is another than EPERM: as a pattern, since a kernel without a feature says so instead.
OUTCOMES = {
    "clone3-user": "refused ENOSYS",
    "calls-of-32-bit": "died SIGSYS|refused (EPERM|ENOSYS)",
    "calls-of-x32": "refused ENOSYS",
    "no-new-privs-off": "refused EINVAL",
    "priority": "refused (EACCES|EPERM)",
    "never-killed": "refused EACCES",
    "bluetooth": "refused (EAFNOSUPPORT|EPERM)",
    "locked-memory": "refused (ENOMEM|EPERM)",
    **dict.fromkeys((
        "core-pattern", "modprobe-path", "binfmt-misc", "ip-forward", "max-user-namespaces", "sysrq", "irq-affinity",
        "uevent-helper", "uevent", "huge-pages", "power-state", "debugfs", "tracefs", "firmware", "release-agent",
        "notify-on-release", "cgroup-limit", "cgroup-leave", "cgroup-make", "kmsg",
    ), "refused (EROFS|EACCES|EPERM|ENOENT)"),
    **dict.fromkeys(("kcore", "proc-keys"), "held|refused (EACCES|EPERM|ENOENT)"),
    **dict.fromkeys(("device-memory", "device-loop", "device-kvm", "device-fuse", "device-tun"), "refused ENOENT"),
    **dict.fromkeys((
        "cgroup-above", "kallsyms", "processes-of-all", "mounts-of-the-machine", "descriptors-left-open",
        "root-of-the-first", "chroot-out", "runtime-program", "files-open", "shared-memory", "device-folder",
        "terminals", "inotify", "message-queues", "threads", "pipes",
    ), "held"),
}
# With the machine's own ids: what a service keeps of Docker's capabilities, and what the kernel counts by user.
SHARED_IDS = {
    "raw-socket": "WON",
    "packet-socket": "WON",
    "inotify": "WON|held",
}
# In gVisor a refusal is one whatever its word: a kernel of its own says ENOSYS, EACCES or ENODEV where the machine's says
# EPERM. What wins there wins against that kernel, which the instance has alone, and gets no further:
IN_GVISOR = {
    # namespaces of users and cgroups that only that kernel knows of,
    **dict.fromkeys(("unshare-user", "unshare-cgroup", "clone-user", "clone3-user"), "WON"),
    # its own children, whose memory the machine's kernel never lets it touch,
    **dict.fromkeys(("ptrace-child", "ptrace-me", "process-vm-read", "process-vm-write"), "WON"),
    # settings, a log and devices of that kernel,
    **dict.fromkeys((
        "kernel-log", "ip-forward", "sysrq", "priority", "never-killed", "device-fuse", "device-tun",
    ), "WON"),
    # the empty directory that its root is mounted on,
    "chroot-out": "WON",
    # and more of its own memory, which ends where the instance's does.
    **dict.fromkeys(("device-folder", "terminals", "inotify", "message-queues"), "WON|held|died SIGALRM"),
}
# Harmless as root in namespaces of its own, and winning there.
CONTROL = (
    "mount-tmpfs", "mount-bind", "mount-proc", "mount-fsopen", "mount-open-tree", "mount-setattr", "remount-root",
    "unshare-user", "unshare-mounts", "unshare-network", "clone-user", "clone3-user", "setns-file", "setns-process",
    "hostname", "ptrace-child", "ptrace-me", "process-vm-read", "process-vm-write", "pidfd-getfd", "key-add",
    "raw-socket", "packet-socket", "link-change", "address-add", "promiscuous", "firewall", "kmsg", "kallsyms",
    "open-by-handle", "personality",
)
# Those that need an address, with what they are refused with.
# At once; or in silence, since the kernel says so to one destination only six times in a row and then once a second.
UNREACHED = ("refused EHOSTUNREACH", "refused ETIMEDOUT")
METADATA = ("169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192")


@pytest.fixture(scope="session")
def attacks(tmp_path_factory):
    """The program, static: it needs nothing of an image."""
    program = tmp_path_factory.mktemp("attacks") / "attacks"
    subprocess.run(
        ["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter",
         "-Wno-missing-field-initializers", "-o", program, *sorted(SOURCES.glob("*.c"))], check=True)
    return program


# The instance type that has the class gvisor; with as much memory as the other one.
GVISOR = "eco-small"


@pytest.fixture(scope="module")
def cloud():
    cloud = Cloud(isolation=f"{GVISOR}=gvisor").start()
    yield cloud
    cloud.remove()


class Place:
    """A service with the program in it."""

    def __init__(self, cloud, registry, program, kind, instance_type="small"):
        self.cloud, self.name = cloud, f"attacked-{kind.lower()}-{instance_type}"
        _, reply = cloud.call("POST", "/v1/apps", {"name": self.name})
        definition = {
            "name": self.name, "type": kind, "regions": ["local"], "instance_types": [{"type": instance_type}],
            "docker": {"image": registry.image("hello", "1"), "entrypoint": ["/bin/httpd", "-f", "-p", "8000"]},
            "env": [{"key": "SANDBOX_SECRET", "value": "of the attacked"}] if kind == "SANDBOX" else [],
            "ports": [{"port": 8000, "protocol": "http"}], "routes": [{"port": 8000, "path": "/"}],
            "scalings": [{"min": 1, "max": 1}],
        }
        status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
        assert status == 200, reply
        self.service = reply["service"]["id"]
        cloud.wait_status(self.service, "HEALTHY")
        put = ["exec", "-i", self.name, "--", "sh", "-c", "cat > /tmp/attacks && busybox chmod 755 /tmp/attacks"]
        subprocess.run([os.environ.get("TRAM_BINARY", PROJECT / "target/debug/tram"), *put],
                       stdin=program.open("rb"), env=cloud.environment, check=True)
        shown = cloud.tram("exec", self.name, "--", "busybox", "ip", "addr", "show", "eth0").stdout
        self.address = re.search(r"inet ([0-9.]+)", shown).group(1)

    def attack(self, *words):
        return outcomes(self.cloud.tram("exec", self.name, "--", "/tmp/attacks", *words, check=False).stdout)


def outcomes(said):
    """By attack: what became of it, with the detail."""
    return {name: (outcome, detail) for name, outcome, detail in (line.split("\t") for line in said.splitlines())}


@pytest.fixture(scope="module")
def sandbox(cloud, registry, attacks):
    return Place(cloud, registry, attacks, "SANDBOX")


@pytest.fixture(scope="module")
def web(cloud, registry, attacks):
    return Place(cloud, registry, attacks, "WEB")


@pytest.fixture(scope="module")
def gvisor(cloud, registry, attacks):
    return Place(cloud, registry, attacks, "SANDBOX", GVISOR)


def wrong(said, differently, refused=REFUSED):
    return {
        name: outcome for name, outcome in said.items()
        if not re.fullmatch(differently.get(name, OUTCOMES.get(name, refused)), outcome[0])
    }


def test_the_attacks_win_where_nothing_holds_them(attacks):
    lost = {}
    for name in CONTROL:
        alone = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--mount-proc", attacks, name]
        outcome, detail = outcomes(subprocess.run(alone, capture_output=True, text=True, timeout=60).stdout)[name]
        if outcome != "WON":
            lost[name] = (outcome, detail)
    # One kernel may lack a feature; a program that is broken would lack many.
    assert len(lost) <= 3, lost


def test_no_attack_wins_in_a_sandbox(sandbox):
    said = sandbox.attack("--all")
    assert len(said) >= 100, sorted(said)
    assert not wrong(said, {})


def test_no_attack_wins_in_a_service_but_what_it_needs(web):
    said = web.attack("--all")
    assert len(said) >= 100, sorted(said)
    assert not wrong(said, SHARED_IDS)


def test_no_attack_wins_in_gvisor(gvisor):
    said = gvisor.attack("--all", "threads")
    assert len(said) >= 100, sorted(said)
    assert not wrong(said, {**dict.fromkeys(said, "held|(refused|died) .*"), **IN_GVISOR})
    # The machine was not told what its kernel was told.
    for sentry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if Footprint(gvisor.cloud).cgroup in (sentry / "cgroup").read_text():
                assert int((sentry / "oom_score_adj").read_text()) >= 0
                assert os.getpriority(os.PRIO_PROCESS, int(sentry.name)) >= 0


@pytest.mark.parametrize("address", METADATA)
def test_the_metadata_of_a_cloud_is_out_of_reach_in_gvisor(gvisor, address):
    assert gvisor.attack("tcp", address, "80")["tcp"][0] in UNREACHED


def test_machine_and_neighbours_are_out_of_reach_in_gvisor(cloud, gvisor, web):
    for address, port in ((gateway(gvisor), cloud.api_port), (web.address, 8000)):
        assert gvisor.attack("tcp", address, str(port))["tcp"][0] in UNREACHED, address
        assert gvisor.attack("scan", address)["scan"][0] == "held", address
    assert web.attack("tcp", gvisor.address, "8000")["tcp"][0] in UNREACHED
    assert gvisor.attack("forge", web.address, gateway(gvisor))["forge"][0].startswith("refused")


def test_a_command_on_its_way_into_gvisor_is_no_way_out(gvisor):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        attack = threads.submit(gvisor.attack, "catch-exec", "5")
        while not attack.done():
            gvisor.cloud.tram("exec", gvisor.name, "--", "true")
        outcome, detail = attack.result()["catch-exec"]
    assert outcome == "held", (outcome, detail)
    assert cloud_answers(gvisor)


def test_too_many_threads_end_the_instance_in_gvisor_and_no_other(cloud, gvisor, sandbox):
    """The limit on processes is the machine's, and gVisor's kernel does not go on without a thread that it asked for."""
    before = cloud.instances(gvisor.service, "HEALTHY")[0]["id"]
    said = gvisor.attack("threads")
    if said:
        assert said["threads"][0] == "held"
    else:
        wait_for("it ended", lambda: before not in [one["id"] for one in cloud.instances(gvisor.service, "HEALTHY")])
    assert cloud_answers(sandbox)


def cloud_answers(place):
    return place.cloud.tram("exec", place.name, "--", "echo", "still here").stdout == "still here\n"


def test_the_instance_outlives_the_attacks_and_leaves_nothing(cloud, sandbox):
    assert cloud.instances(sandbox.service, "HEALTHY"), "killed by its own attacks"
    assert not list(pathlib.Path("/sys/fs/cgroup").rglob("attack"))


@pytest.mark.parametrize("address", METADATA)
def test_the_metadata_of_a_cloud_is_out_of_reach(sandbox, address):
    assert sandbox.attack("tcp", address, "80")["tcp"][0] in UNREACHED


def test_the_metadata_of_a_cloud_is_out_of_reach_by_ipv6(sandbox):
    for address in ("fd00:ec2::254", "fe80::1", "::ffff:169.254.169.254"):
        outcome = sandbox.attack("tcp6", address)["tcp6"][0]
        assert re.fullmatch("refused (ENETUNREACH|EHOSTUNREACH|EINVAL|EADDRNOTAVAIL)", outcome), (address, outcome)


def gateway(place):
    shown = place.cloud.tram("exec", place.name, "--", "busybox", "ip", "route").stdout
    return re.search(r"via ([0-9.]+)", shown).group(1)


def own_addresses():
    """What this machine is reached by."""
    shown = subprocess.run(["ip", "-4", "-o", "addr", "show", "scope", "global"], capture_output=True, text=True).stdout
    return re.findall(r"inet ([0-9.]+)", shown)


def test_the_machine_is_out_of_reach_on_every_address(cloud, sandbox):
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        for address in {gateway(sandbox), *own_addresses()}:
            for reached in (port, cloud.api_port, cloud.http_port, cloud.https_port):
                outcome = sandbox.attack("tcp", address, str(reached))["tcp"][0]
                # One that is no longer the machine's, as when another cloud on it ended, is nobody's.
                assert outcome in UNREACHED or address not in own_addresses(), (address, reached, outcome)
    # Its own loopback is not the machine's.
    assert sandbox.attack("tcp", "127.0.0.1", str(cloud.api_port))["tcp"][0] == "refused ECONNREFUSED"


def test_a_scan_of_the_machine_finds_nothing_and_is_told(cloud, sandbox):
    assert sandbox.attack("scan", "127.0.0.1")["scan"][0] == "WON", "it sees closed ports where it is let through"
    assert sandbox.attack("scan", gateway(sandbox))["scan"] == ("held", "no port answers, open or closed")
    wait_for("its owner is told", lambda: "refused on the way out" in cloud.tram("logs", sandbox.name).stdout)


def test_neighbours_are_out_of_reach(sandbox, web):
    for one, other in ((sandbox, web), (web, sandbox)):
        assert one.attack("tcp", other.address, "8000")["tcp"][0] in UNREACHED
        assert one.attack("scan", other.address)["scan"][0] == "held"


def test_an_address_cannot_be_taken(sandbox, web):
    assert sandbox.attack("take-address", web.address)["take-address"][0] == "refused EADDRNOTAVAIL"
    assert sandbox.attack("take-address-unseen", web.address)["take-address-unseen"][0] == REFUSED
    assert sandbox.attack("forge", web.address, gateway(sandbox))["forge"][0] == REFUSED


def test_a_forged_packet_does_not_leave_its_link(cloud, sandbox, web):
    """A service may send raw packets: one with another's address is dropped where it enters the machine."""
    table = f"tram_{Footprint(cloud).hash}"
    subprocess.run(["nft", "add", "chain", "inet", table, "witness",
                    "{ type filter hook prerouting priority -200; }"], check=True)
    try:
        subprocess.run(["nft", "add", "rule", "inet", table, "witness", "udp", "dport", "9000", "counter"], check=True)
        for source in (sandbox.address, "127.0.0.1", gateway(web), "8.8.8.8"):
            assert web.attack("forge", source, "198.51.100.9")["forge"][0] == "held"
        assert web.attack("forge", web.address, "198.51.100.9")["forge"][0] == "held"
        seen = subprocess.run(["nft", "list", "chain", "inet", table, "witness"], capture_output=True, text=True).stdout
        assert "packets 1 " in seen, seen
    finally:
        subprocess.run(["nft", "delete", "chain", "inet", table, "witness"], check=True)


def test_a_socket_of_the_machine_without_a_file_is_out_of_reach(sandbox, attacks):
    name = f"tram-attack-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + name)
        listener.listen()
        control = subprocess.run([attacks, "abstract-socket", name], capture_output=True, text=True).stdout
        assert outcomes(control)["abstract-socket"][0] == "WON"
        assert sandbox.attack("abstract-socket", name)["abstract-socket"][0] == "refused ECONNREFUSED"


@pytest.mark.parametrize("kind", ["sandbox", "web"])
def test_a_command_on_its_way_in_is_no_way_out(request, kind):
    place = request.getfixturevalue(kind)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        attack = threads.submit(place.attack, "catch-exec", "18")
        while not attack.done():
            place.cloud.tram("exec", place.name, "--", "true")
        outcome, detail = attack.result()["catch-exec"]
    assert outcome == "held" and not detail.endswith(" 0 caught"), (outcome, detail)
    assert place.cloud.tram("exec", place.name, "--", "echo", "still here").stdout == "still here\n"


def test_root_in_a_sandbox_is_nobody_here(cloud, sandbox):
    uids = set()
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            text = status.read_text()
            if re.search(r"^NSpid:\t\d+\t\d+$", text, re.M) and "httpd" in (status.parent / "cmdline").read_text():
                uids |= set(re.findall(r"^Uid:\t(\d+)", text, re.M))
    assert any(0x70000000 <= int(uid) < 0x80000000 for uid in uids), uids
