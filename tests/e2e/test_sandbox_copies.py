"""Copies of sandboxes with what runs in them: memory, processes and disk go on, each with an identity of its own."""

import contextlib
import json
import os
import pathlib
import random
import signal
import threading
import time
import urllib.error
import urllib.request

import pytest
from koyeb import Sandbox
from koyeb.sandbox.sandbox import SandboxError
from koyeb.sandbox.snapshot import SnapshotStatus, SnapshotType

from cloud import wait_for
from leaks import Footprint

# How often a sandbox is kept and begun anew from that, with checksums of files and memory.
GENERATIONS = int(os.environ.get("TRAM_TEST_COPY_GENERATIONS", "4"))
# How often something is killed in the middle of a copy.
KILLS = int(os.environ.get("TRAM_TEST_COPY_KILLS", "4"))
BUFFER_MIB = 256

# Holds a buffer and a count in memory, and tells both, with the address of the buffer, to who asks.
PROGRAM = f"""
import hashlib, http.server, os, socket
buffer = bytearray(os.urandom(1 << 20)) * {BUFFER_MIB}
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        if self.path == '/sum':
            text = hashlib.sha256(buffer).hexdigest()
        elif self.path == '/change':
            buffer[count] ^= 1
            text = 'changed'
        else:
            count += 1
            text = f'{{count}} {{id(buffer)}} {{socket.gethostname()}}'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_):
        pass
http.server.HTTPServer(('127.0.0.1', 9000), Handler).serve_forever()
"""
ASK = "python3 -c 'import sys, urllib.request as u; print(u.urlopen(\"http://127.0.0.1:9000\" + sys.argv[1]).read().decode())'"

pytestmark = pytest.mark.usefixtures("sdk_environment")


def ask(box, path="/count"):
    done = box.exec(f"{ASK} {path}")
    assert done.success, done
    return done.stdout.strip()


def count(box):
    return int(ask(box).split()[0])


@pytest.fixture
def box(cloud, registry, name):
    sandbox = Sandbox.create(image=registry.image("fastapi"), name=name, instance_type="small", timeout=60)
    sandbox.filesystem.write_file("/tmp/program.py", PROGRAM)
    sandbox.launch_process("python3 /tmp/program.py")
    wait_for("the program answers", lambda: box_answers(sandbox))
    yield sandbox
    sandbox.delete()


def box_answers(sandbox):
    return sandbox.exec(f"{ASK} /count").success


def variables(cloud, service_id):
    service = cloud.call("GET", f"/v1/services/{service_id}")[1]["service"]
    deployment = service.get("active_deployment_id") or service["latest_deployment_id"]
    definition = cloud.call("GET", f"/v1/deployments/{deployment}")[1]["deployment"]["definition"]
    return {one["key"]: one.get("value") for one in definition["env"]}


def service_id(cloud, name):
    services = cloud.call("GET", "/v1/services?limit=100")[1]["services"]
    return next(one["id"] for one in services if one["name"] == name)


def forked(cloud, name, *more):
    begun = time.monotonic()
    done = cloud.tram("sandbox", "fork", name, *more, check=False)
    assert done.returncode == 0, done.stderr
    print(f"{' '.join(more)}: copies after {time.monotonic() - begun:.2f} s")
    return done.stdout.split()


def test_copies_go_on_each_by_itself(cloud, box, name):
    before = count(box)
    sum_before = ask(box, "/sum")
    assert box.exec("echo first > /tmp/who").success
    names = forked(cloud, name, "--count", "3")
    assert len(set(names)) == 3
    copies = [Sandbox.get_from_id(service_id(cloud, one)) for one in names]
    secrets, hosts, addresses = set(), set(), set()
    for number, copy in enumerate(copies):
        begun = time.monotonic()
        said = ask(copy).split()
        print(f"copy {number}: an answer of the program after {time.monotonic() - begun:.3f} s more")
        assert int(said[0]) == before + 1, "it goes on from the moment of the copy"
        addresses.add(said[1])
        hosts.add(copy.exec("hostname; echo $HOSTNAME").stdout)
        assert ask(copy, "/sum") == sum_before
        # Memory and disk are its own.
        for _ in range(number):
            ask(copy)
        ask(copy, "/change")
        copy.exec(f"echo {number} > /tmp/who")
        secrets.add(variables(cloud, copy.service_id)["SANDBOX_SECRET"])
    secrets.add(variables(cloud, box.service_id)["SANDBOX_SECRET"])
    assert (len(secrets), len(hosts), len(addresses)) == (4, 3, 1)
    for host in hosts:
        shown, variable = host.split()
        assert shown == variable, "commands know the copy's own name"
    assert [count(copy) for copy in copies] == [before + 2 + number for number in range(3)]
    assert [copy.exec("cat /tmp/who").stdout.strip() for copy in copies] == ["0", "1", "2"]
    assert ask(box, "/sum") == sum_before and count(box) == before + 1
    assert box.exec("cat /tmp/who").stdout.strip() == "first"
    # Nobody opens another one's door.
    for one in [box, *copies]:
        for other in [box, *copies]:
            assert opens(one, variables(cloud, other.service_id)["SANDBOX_SECRET"]) == (one is other)
    for copy in copies:
        copy.delete()


def opens(sandbox, secret):
    url, key = sandbox._get_sandbox_url()
    headers = {"Authorization": f"Bearer {secret}", "X-Routing-Key": key}
    request = urllib.request.Request(f"{url}/list_processes", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status == 200
    except urllib.error.HTTPError as error:
        assert error.code == 401, error
        return False


def processes(service_id, cloud):
    """Of a sandbox, as this machine numbers them."""
    instances = cloud.call("GET", f"/v1/instances?service_id={service_id}")[1]["instances"]
    found = set()
    for one in instances:
        for layout in ("tram", "*/tram"):
            for path in pathlib.Path("/sys/fs/cgroup").glob(f"{layout}/*/{one['id']}/cgroup.procs"):
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in path.read_text().split())
    return found


def places_in_memory(pid, wanted):
    """Where a process has these bytes, by the name of the mapping."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, mode, *_rest = line.split()
            begin, end = (int(part, 16) for part in span.split("-"))
            if "r" not in mode or "[v" in line:
                continue
            with contextlib.suppress(OSError, ValueError, OverflowError):
                memory.seek(begin)
                left, tail = end - begin, b""
                while left > 0:
                    piece = memory.read(min(left, 1 << 24))
                    if not piece:
                        break
                    left -= len(piece)
                    if wanted in tail + piece:
                        found.append(line.strip())
                        break
                    tail = piece[-len(wanted):]
    return found


def assert_in_no_memory(cloud, sandbox, secrets):
    pids = processes(sandbox.service_id, cloud)
    assert len(pids) >= 2, pids
    # Something that is there is found.
    assert any(places_in_memory(pid, b"of-the-program-itself") for pid in pids)
    for pid in pids:
        for secret in secrets:
            assert not places_in_memory(pid, secret.encode()), pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        assert not any(secret.encode() in environment for secret in secrets)


def test_no_memory_holds_the_secret_of_a_sandbox(cloud, box, name):
    secret = variables(cloud, box.service_id)["SANDBOX_SECRET"]
    box.launch_process("env MARK=of-the-program-itself sleep 1000")
    for number in range(20):
        assert box.exec(f"echo {number}").success
        assert opens(box, secret)
        box.filesystem.write_file(f"/tmp/file-{number}", "x" * (number * 5000))
    # Long requests, one of which is still being answered.
    busy = threading.Thread(target=lambda: box.exec("sleep 5"))
    busy.start()
    cloud.tram("sandbox", "exec", name, "--", "true")
    assert_in_no_memory(cloud, box, [secret])
    copy = Sandbox.get_from_id(service_id(cloud, forked(cloud, name)[0]))
    own = variables(cloud, copy.service_id)["SANDBOX_SECRET"]
    for _ in range(20):
        assert opens(copy, own) and not opens(copy, secret)
    assert_in_no_memory(cloud, copy, [secret, own])
    # Nor does its disk, which a snapshot would take along.
    for path in ("/.tramontane/identity", "/proc/1/environ"):
        said = copy.exec(f"cat {path} | tr '\\0' '\\n'").stdout
        assert "SANDBOX_SECRET" in said and "sha256:" in said, said
        assert secret not in said and own not in said
    # What runs by the platform's own hand is not told either.
    assert "SANDBOX_SECRET" not in cloud.tram("sandbox", "exec", name, "--", "env").stdout
    busy.join()
    copy.delete()


def test_a_sandbox_from_before_an_upgrade_is_copied_with_its_own_executor(own_cloud, registry, monkeypatch):
    cloud = own_cloud
    monkeypatch.setenv("KOYEB_API_HOST", cloud.api_url)
    monkeypatch.setenv("KOYEB_API_TOKEN", cloud.token)
    # One that an older version would have brought along.
    [executor] = (cloud.data / "executor").iterdir()
    older = executor.with_name("older")
    older.write_bytes(executor.read_bytes() + b"another version")
    older.chmod(0o555)
    older.rename(executor)
    box = Sandbox.create(image=registry.image("fastapi"), name="older", instance_type="small", timeout=60)
    box.filesystem.write_file("/tmp/program.py", PROGRAM)
    box.launch_process("python3 /tmp/program.py")
    wait_for("the program answers", lambda: box_answers(box))
    # An upgrade: each version's file has a name of its own.
    cloud.kill()
    executor.rename(older)
    for spec in (cloud.data / "supervisor" / "instances").glob("*/spec.json"):
        spec.write_text(spec.read_text().replace(executor.name, older.name))
    cloud.start()
    assert executor.read_bytes() != older.read_bytes()
    wait_for("the program answers", lambda: box_answers(box))
    counted = count(box)
    [first] = forked(cloud, "older", "--keep")
    copy = Sandbox.get_from_id(service_id(cloud, first))
    assert count(copy) == counted + 1
    # A copy goes on with it, too, and so does what is copied of that.
    second = Sandbox.get_from_id(service_id(cloud, forked(cloud, first)[0]))
    assert count(second) == counted + 2
    snapshots = json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout)
    [kept] = [one for one in snapshots if one["status"].endswith("AVAILABLE")]
    assert "is whole" in cloud.tram("snapshots", "verify", kept["id"]).stderr
    path = next(cloud.data.rglob(f"{kept['id']}.executor"))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    # Not in place: the copies run from it.
    damaged = path.with_name("damaged")
    damaged.write_bytes(content)
    damaged.rename(path)
    verified = cloud.tram("snapshots", "verify", kept["id"], check=False)
    assert "executor has other bytes" in verified.stderr, verified.stderr


def test_generations_keep_every_byte_of_memory_and_disk(cloud, box, name):
    box.exec("head -c 3000000 /dev/urandom > /tmp/data")
    disk, memory, counted = box.exec("sha256sum /tmp/data").stdout, ask(box, "/sum"), count(box)
    current = box
    for generation in range(GENERATIONS):
        snapshot = current.snapshot(name=f"{name}-{generation}", snapshot_type=SnapshotType.FULL)
        assert (snapshot.status, snapshot.snapshot_type) == (SnapshotStatus.AVAILABLE, SnapshotType.FULL)
        assert "is whole" in cloud.tram("snapshots", "verify", snapshot.id).stderr
        following = snapshot.spawn(name=f"{name}-s{generation}", instance_type="small", timeout=60)
        counted += 1
        assert (following.exec("sha256sum /tmp/data").stdout, ask(following, "/sum")) == (disk, memory)
        assert count(following) == counted
        if current is not box:
            current.delete()
        current = following
        cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")
    current.delete()


def test_what_cannot_be_copied_says_why_and_offers_the_disk(cloud, box, name):
    box.launch_process("python3 -c 'import socket, time; a = socket.create_server((\"127.0.0.1\", 9100)); "
                       "b = socket.create_connection((\"127.0.0.1\", 9100)); open(\"/tmp/connected\", \"w\"); time.sleep(1000)'")
    wait_for("it is connected", lambda: box.exec("ls /tmp/connected").success)
    done = cloud.tram("sandbox", "fork", name, check=False)
    assert done.returncode != 0 and "9100" in done.stderr and "--disk-only" in done.stderr, done.stderr
    assert count(box) > 0, "the first one goes on"
    fork = forked(cloud, name, "--disk-only")[0]
    copy = Sandbox.get_from_id(service_id(cloud, fork))
    assert copy.exec("ls /tmp/connected").success
    assert not copy.exec(f"{ASK} /count").success
    copy.delete()


def test_a_damaged_snapshot_is_found_and_not_used(cloud, box, name):
    snapshot = box.snapshot(name=f"{name}-kept")
    path = cloud.data / "site" / "instance-snapshots" / snapshot.id
    if not path.exists():
        path = next(cloud.data.rglob(snapshot.id))
    with open(path, "r+b") as file:
        file.seek(1 << 20)
        byte = file.read(1)
        file.seek(1 << 20)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(SandboxError):
        snapshot.spawn(name=f"{name}-b", instance_type="small", timeout=30)
    verified = cloud.tram("snapshots", "verify", snapshot.id, check=False)
    assert verified.returncode != 0 and "damaged" in verified.stderr, verified.stderr
    assert "ERROR" in cloud.tram("snapshots", "ls").stdout
    for service in cloud.call("GET", "/v1/services?limit=100")[1]["services"]:
        if service["name"] == f"{name}-b":
            cloud.call("DELETE", f"/v1/services/{service['id']}")
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")


def test_whoever_is_killed_meanwhile_nothing_is_lost_or_left(own_cloud, registry, monkeypatch):
    cloud = own_cloud
    seed = int(os.environ.get("TRAM_TEST_SEED", random.randrange(1 << 32)))
    print(f"TRAM_TEST_SEED={seed}")
    chance = random.Random(seed)
    monkeypatch.setenv("KOYEB_API_HOST", cloud.api_url)
    monkeypatch.setenv("KOYEB_API_TOKEN", cloud.token)
    footprint = Footprint(cloud)
    box = Sandbox.create(image=registry.image("fastapi"), name="victim", instance_type="small", timeout=60)
    box.filesystem.write_file("/tmp/program.py", PROGRAM)
    box.launch_process("python3 /tmp/program.py")
    wait_for("the program answers", lambda: box_answers(box))
    memory = ask(box, "/sum")
    for round_ in range(KILLS):
        done = {}
        def fork():
            done["fork"] = cloud.tram("sandbox", "fork", "victim", "--count", "2", check=False, timeout=180)

        thread = threading.Thread(target=fork)
        thread.start()
        time.sleep(chance.uniform(0.05, 1.5))
        who = chance.choice(["supervise", "up"])
        print(f"round {round_}: kill {who}")
        if who == "up":
            cloud.kill()
            cloud.start()
        else:
            os.kill(cloud.helper_pid("supervise"), signal.SIGKILL)
        thread.join()
        result = done["fork"]
        print(f"round {round_}: {result.returncode} {result.stderr.strip()[-200:]}")
        wait_for("the first one goes on", lambda: box_answers(box))
        assert ask(box, "/sum") == memory
        for service in cloud.call("GET", "/v1/services?limit=100")[1]["services"]:
            if service["name"] == "victim":
                continue
            if result.returncode == 0:
                copy = Sandbox.get_from_id(service["id"])
                wait_for("the copy answers", lambda: box_answers(copy))
                assert ask(copy, "/sum") == memory
            cloud.call("DELETE", f"/v1/services/{service['id']}")
        for snapshot in json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout):
            cloud.tram("snapshots", "delete", snapshot["id"], "--when-unused", check=False)
        wait_for(
            "no copy and no snapshot is left",
            lambda: json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout) == []
            and len(cloud.call("GET", "/v1/services?limit=100")[1]["services"]) == 1,
            seconds=120,
        )
    box.delete()
    wait_for("nothing is there that nobody knows of", lambda: not footprint.unaccounted(cloud))
