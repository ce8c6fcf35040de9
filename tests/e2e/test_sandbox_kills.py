"""Sandboxes under kill -9: what was acknowledged stays, whoever dies in the middle of it, and nothing is left over.

Each round does one thing to a sandbox and kills one process meanwhile. `TRAM_TEST_SANDBOX_KILLS` says how many rounds,
`TRAM_TEST_SEED` repeats them."""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import threading
import time

from koyeb import Sandbox

from cloud import wait_for
from leaks import Footprint

ROUNDS = int(os.environ.get("TRAM_TEST_SANDBOX_KILLS", "24"))
# Sandboxes at once: enough that one can be killed while others hold what was acknowledged.
BOXES = 2
FILE_BYTES = 200_000
# Times that one sandbox's executor is killed: a program that ends over and over is started later and later.
DEATHS_MAX = 3


class World:
    """What this test was told was done."""

    def __init__(self, cloud, registry, chance):
        self.cloud, self.chance = cloud, chance
        self.image = registry.image("fastapi")
        # By the sandbox's name: the sandbox, and the checksum of each file that was acknowledged.
        self.boxes = {}
        # By the snapshot's name: the checksums of the files that it was acknowledged with.
        self.snapshots = {}
        self.made = 0
        # How often the executor of each was killed.
        self.deaths = collections.Counter()

    def name(self, kind):
        self.made += 1
        return f"{kind}-{self.made}"

    def create(self):
        name = self.name("box")
        box = Sandbox.create(image=self.image, name=name, timeout=90)
        self.boxes[name] = (box, {})

    def pick(self):
        return self.chance.choice(sorted(self.boxes))

    def write(self):
        box, files = self.boxes[self.pick()]
        path, content = f"/tmp/{self.name('file')}", os.urandom(FILE_BYTES // 2).hex()
        box.filesystem.write_file(path, content)
        files[path] = hashlib.sha256(content.encode()).hexdigest()

    def exec(self):
        box, _ = self.boxes[self.pick()]
        done = box.exec("echo done; sleep 0.2")
        assert done.stdout == "done\n", done

    def snapshot(self, kind=()):
        name, (_, files) = (chosen := self.pick()), self.boxes[chosen]
        files = dict(files)
        kept = self.name("kept")
        self.cloud.tram("sandbox", "snapshot", name, "--name", kept, *kind)
        self.snapshots[kept] = files

    def snapshot_of_all(self):
        self.snapshot(("--memory",))

    def delete(self):
        name = self.pick()
        box, _ = self.boxes.pop(name)
        box.delete()

    def check(self, name):
        """Every acknowledged file of a sandbox is there, byte for byte."""
        box, files = self.boxes[name]
        for path, wanted in files.items():
            done = wait_for(f"{name} answers", lambda: answered(box, f"sha256sum {path}"))
            assert done.stdout.split()[:1] == [wanted], (name, path, done)


def answered(box, command):
    try:
        done = box.exec(command)
    except Exception:  # noqa: BLE001 - whatever the client makes of a server that is being killed
        return None
    return done


def executor_of(cloud, name):
    """The first process of a sandbox, as this machine numbers it."""
    services = cloud.call("GET", "/v1/services?limit=100")[1]["services"]
    service = next(one["id"] for one in services if one["name"] == name)

    def running():
        for instance in cloud.instances(service):
            directory = cloud.data / "supervisor" / "instances" / instance["id"]
            if (directory / "run.json").exists() and not (directory / "exit.json").exists():
                return json.loads((directory / "run.json").read_text())["init"]["pid"]
        return None

    return wait_for(f"{name} runs", running)


def test_rounds_of_kills(own_cloud, registry, monkeypatch):
    cloud = own_cloud
    monkeypatch.setenv("KOYEB_API_HOST", cloud.api_url)
    monkeypatch.setenv("KOYEB_API_TOKEN", cloud.token)
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **named: look_up(
        "127.0.0.1" if str(host).endswith("localhost") else host, *more, **named))
    seed = int(os.environ.get("TRAM_TEST_SEED", random.randrange(1 << 32)))
    print(f"TRAM_TEST_SEED={seed}")
    chance = random.Random(seed)
    footprint = Footprint(cloud)
    world = World(cloud, registry, chance)
    for _ in range(BOXES):
        world.create()
    for number in range(ROUNDS):
        what = chance.choice(["create", "exec", "write", "write", "snapshot", "snapshot_of_all", "delete"])
        whom = chance.choice(["up", "supervise", "executor"])
        delay = chance.uniform(0, 0.4)
        # Chosen before: whoever loses its executor loses its disk, as when its program ends.
        victim = world.pick() if whom == "executor" else None
        while world.deaths[victim] == DEATHS_MAX:
            world.boxes.pop(victim)[0].delete()
            world.create()
            victim = world.pick()
        pid = executor_of(cloud, victim) if victim else None
        world.deaths[victim] += bool(victim)
        failure = []

        def act():
            try:
                getattr(world, what)()
            except Exception as error:  # noqa: BLE001 - not acknowledged, which is allowed
                failure.append(error)

        thread = threading.Thread(target=act)
        thread.start()
        time.sleep(delay)
        if whom == "executor":
            # It may be gone: deleted by what is done meanwhile.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        elif whom == "supervise":
            # The one before may have been killed just now.
            os.kill(wait_for("a supervisor is there", lambda: cloud.helper_pid("supervise")), signal.SIGKILL)
        else:
            cloud.kill()
            cloud.start()
        thread.join()
        print(f"round {number}: {what}, kill {whom} after {delay:.2f} s: {'not ' if failure else ''}acknowledged")
        if victim in world.boxes:
            world.boxes[victim] = (world.boxes[victim][0], {})
        known = set(world.boxes)
        for service in cloud.call("GET", "/v1/services?limit=100")[1]["services"]:
            if service["name"] not in known:
                # Made or deleted without an answer.
                cloud.call("DELETE", f"/v1/services/{service['id']}")
        for name in sorted(world.boxes):
            world.check(name)
        while len(world.boxes) < BOXES:
            world.create()
    # Snapshots that were acknowledged are whole, and a sandbox starts with what they were acknowledged with.
    for kept, files in world.snapshots.items():
        assert "is whole" in cloud.tram("snapshots", "verify", kept).stderr
        name = world.name("again")
        cloud.tram("sandbox", "create", name, "--snapshot", kept)
        for path, wanted in files.items():
            shown = cloud.tram("sandbox", "exec", name, "--", "sha256sum", path).stdout
            assert shown.split()[:1] == [wanted], (kept, path)
        cloud.tram("sandbox", "delete", name)
    for name in sorted(world.boxes):
        world.boxes[name][0].delete()
    for snapshot in json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout):
        cloud.tram("snapshots", "delete", snapshot["id"], "--when-unused")
    wait_for("no sandbox is left", lambda: cloud.call("GET", "/v1/services?limit=100")[1]["services"] == [])
    wait_for("no snapshot is left", lambda: json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout) == [],
             seconds=120)
    kept = pathlib.Path(cloud.data) / "site" / "local" / "instance-snapshots"
    wait_for("nothing of a snapshot is left on the disk", lambda: not list(kept.iterdir()))
    last = []

    def clean():
        last[:] = footprint.unaccounted(cloud)
        return not last

    wait_for("nothing is there that nobody knows of", clean)
    assert last == []
