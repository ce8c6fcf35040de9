"""Light sleep on disk: a program's memory is given back, and it goes on from there when somebody comes."""

import json
import os
import pathlib
import signal
import subprocess
import threading
import urllib.request

import pytest

from cloud import BINARY, Cloud, wait_for
from test_light_sleep import COUNTER, Sleeper, definition

# Opens a connection to what its first argument names, and keeps it.
TALKER = COUNTER.replace("count, beats = 0, 0", """import socket, sys
count, beats = 0, 0
talk = socket.create_connection(("127.0.0.1", 8001)) if sys.argv[1:] == ["talk"] else None""")
LISTENER = "import socket; keep = socket.create_server(('127.0.0.1', 8001))\n"
# Some memory that is no page of a file, so that it can be seen to be gone and to be back.
HEAVY = COUNTER.replace("count, beats = 0, 0", "import os\nheap = os.urandom(96 << 20)\ncount, beats = 0, 0")
HEAVY_BYTES = 96 << 20
# They are counted once a minute.
METRICS_SECONDS = 90

# Three processes with heaps of their own, every page of which says what it is. Asked, each of them looks at its pages
# while the address space changes: it forks, maps and unmaps, moves a mapping, and gives up pages, which are zeroes then.
RESTLESS = """
import http.server, json, mmap, os, random, struct, threading
PAGE, PAGES = 4096, 6144
def words(seed, number):
    return struct.pack("QQ", seed, number) * (PAGE // 16)
class Heap:
    def __init__(self, seed, pages):
        self.seed, self.pages = seed, pages
        self.map = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.fill()
    def fill(self):
        for number in range(self.pages):
            self.map[number * PAGE:(number + 1) * PAGE] = words(self.seed, number)
    def wrong(self, numbers):
        return [n for n in numbers if self.map[n * PAGE:(n + 1) * PAGE] != words(self.seed, n)]
def look(heap, scrap, moving):
    wrong = []
    def reads():
        numbers = list(range(0, heap.pages, 2))
        random.shuffle(numbers)
        wrong.extend(["read", n] for n in heap.wrong(numbers))
    def forks():
        for start in range(3):
            child = os.fork()
            if not child:
                os._exit(1 if heap.wrong(range(start, heap.pages, 3)) else 0)
            if os.waitpid(child, 0)[1]:
                wrong.append(["forked", start])
    def maps():
        for _ in range(200):
            mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    def gives_up():
        for start in range(0, scrap.pages, 64):
            scrap.map.madvise(mmap.MADV_DONTNEED, start * PAGE, 32 * PAGE)
            numbers = range(start, start + 32)
            wrong.extend(["not zero", n] for n in numbers if any(scrap.map[n * PAGE:(n + 1) * PAGE]))
            wrong.extend(["beside", n] for n in scrap.wrong(range(start + 32, start + 64)))
        scrap.fill()
    def moves():
        moving.map.resize(4 * moving.pages * PAGE)
        wrong.extend(["moved", n] for n in moving.wrong(range(moving.pages)))
        moving.map.resize(moving.pages * PAGE)
    threads = [threading.Thread(target=one) for one in (reads, forks, maps, gives_up, moves)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
def own(seed):
    return Heap(seed, PAGES), Heap(seed + 100, 1024), Heap(seed + 200, 1024)
def worker(seed):
    ask, asked = os.pipe()
    told, tell = os.pipe()
    if not os.fork():
        heaps = own(seed)
        while True:
            os.read(ask, 1)
            os.write(tell, json.dumps(look(*heaps)[:50]).encode())
    return asked, told
workers = [worker(seed) for seed in (1, 2)]
heaps = own(3)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        for asked, _ in workers:
            os.write(asked, b"?")
        wrong = look(*heaps)
        for _, told in workers:
            wrong += json.loads(os.read(told, 65536))
        body = json.dumps({"wrong": wrong}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def cloud():
    cloud = Cloud(light_sleep_checkpoint_after="1s")
    doctor = subprocess.run(
        [BINARY, "doctor", "--output", "json"], capture_output=True, text=True, env=cloud.environment)
    found = next(check for check in json.loads(doctor.stdout) if check["name"] == "checkpoints")
    if found["status"] != "ok":
        pytest.skip(f"instances cannot be checkpointed here: {found['detail']}")
    cloud.start()
    yield cloud
    cloud.remove()


def memory_bytes(cloud, service):
    """What the kernel counts for the service's instances."""
    ids = [one["id"] for one in cloud.instances(service)]
    found = 0
    for path in pathlib.Path("/sys/fs/cgroup").glob("memory/tram/*/*/memory.usage_in_bytes"):
        if path.parent.name in ids:
            found += int(path.read_text())
    for path in pathlib.Path("/sys/fs/cgroup").glob("**/tram/*/*/memory.current"):
        if path.parent.name in ids:
            found += int(path.read_text())
    return found


def images(cloud, service):
    """Checkpoints on the disk."""
    ids = [one["id"] for one in cloud.instances(service)]
    return [path for path in cloud.data.glob("**/instances/*/checkpoint") if path.parent.name in ids]


def wait_on_disk(sleeper):
    def on_disk():
        return images(sleeper.cloud, sleeper.id) and not sleeper.pids()
    wait_for("it is on disk, and no process of it is left", on_disk)
    assert sleeper.cloud.instances(sleeper.id, "SLEEPING")
    assert sleeper.cloud.wait_deployment(sleeper.deployment, "SLEEPING")


def messages(cloud, deployment):
    _, reply = cloud.call("GET", f"/v1/deployments/{deployment}")
    return " ".join(reply["deployment"]["messages"])


def test_its_memory_is_given_back_and_it_goes_on_from_where_it_was(cloud, registry, name):
    wanted = definition(name, registry.image("fastapi"))
    wanted["docker"]["command"] = HEAVY
    wanted["instance_types"] = [{"type": "micro"}]
    sleeper = Sleeper(cloud, name, wanted)
    assert sleeper.ask()["count"] == 1
    assert memory_bytes(cloud, sleeper.id) > HEAVY_BYTES
    for count in (2, 4, 6):
        wait_on_disk(sleeper)
        wait_for("its memory is free", lambda: memory_bytes(cloud, sleeper.id) < HEAVY_BYTES / 20)
        assert cloud.service(name)["status"] == "HEALTHY"
        beats = sleeper.ask()
        assert beats["count"] == count, "its memory is what it was"
        cloud.wait_deployment(sleeper.deployment, "HEALTHY")
        # What is sent on a connection that was kept alive arrives, once.
        assert sleeper.ask(method="POST", body=b"x" * 200_000)["count"] == count + 1
        wait_for("all of it is back", lambda: memory_bytes(cloud, sleeper.id) > HEAVY_BYTES)
    assert "cannot" not in messages(cloud, sleeper.deployment)


def test_no_page_is_wrong_in_processes_that_change_their_memory_while_it_comes_back(cloud, registry, name):
    wanted = definition(name, registry.image("fastapi"))
    wanted["docker"]["command"] = RESTLESS
    wanted["instance_types"] = [{"type": "small"}]
    sleeper = Sleeper(cloud, name, wanted)
    assert sleeper.ask() == {"wrong": []}
    for _ in range(5):
        wait_on_disk(sleeper)
        assert sleeper.ask() == {"wrong": []}
        wait_for("its image is gone", lambda: not images(cloud, sleeper.id))
    # The way of several processes, too: not all of it was read before the first step.
    assert list(cloud.data.glob("**/instances/*/touched"))


def test_a_body_that_wakes_it_arrives_whole_and_many_callers_are_answered_once(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    sent = "x" * 200_000
    answer = sleeper.ask(method="POST", body=sent.encode())
    assert (answer["count"], answer["sent"]) == (2, sent)
    wait_on_disk(sleeper)
    answers = []
    callers = [threading.Thread(target=lambda: answers.append(sleeper.ask()["count"])) for _ in range(30)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(answers) == list(range(3, 33))


def test_what_cannot_go_to_disk_stays_frozen_and_says_why(cloud, registry, name):
    wanted = definition(name, registry.image("fastapi"))
    wanted["docker"]["command"] = LISTENER + TALKER
    wanted["docker"]["args"] = ["talk"]
    sleeper = Sleeper(cloud, name, wanted)
    assert sleeper.ask()["count"] == 1
    pids = sleeper.wait_frozen()
    said = wait_for("the deployment says why", lambda: messages(cloud, sleeper.deployment))
    assert "cannot be moved to disk" in said and "127.0.0.1:8001" in said, said
    assert sleeper.frozen() == pids and not images(cloud, sleeper.id)
    assert sleeper.ask()["count"] == 2
    assert sleeper.pids() == pids
    wait_for("nothing is said of an instance that runs", lambda: not messages(cloud, sleeper.deployment))


def test_stopping_one_on_disk_leaves_nothing(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    on_disk = images(cloud, sleeper.id)
    assert cloud.call("DELETE", f"/v1/services/{sleeper.id}")[0] == 200
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/services/{sleeper.id}")[0] == 404)
    wait_for("its image is gone", lambda: not any(path.exists() for path in on_disk))


def test_what_its_checkpoint_takes_is_in_the_metrics(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    def told():
        with urllib.request.urlopen(f"{cloud.api_url}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        series = f'tram_checkpoint_bytes{{service_id="{sleeper.id}"}} '
        return [int(line.removeprefix(series)) for line in lines if line.startswith(series)]
    taken, = wait_for("its size is told", told, METRICS_SECONDS, every=1)
    files = [path for image in images(cloud, sleeper.id) for path in image.rglob("*") if path.is_file()]
    written = sum(path.stat().st_blocks * 512 for path in files)
    assert abs(taken - written) < written / 10, (taken, written)


def test_what_does_not_fit_beside_other_checkpoints_stays_frozen_and_says_why(cloud, registry, name):
    small = Cloud(light_sleep_checkpoint_after="1s", checkpoints_max="1MiB").start()
    try:
        sleeper = Sleeper(small, name, definition(name, registry.image("fastapi")))
        assert sleeper.ask()["count"] == 1
        pids = sleeper.wait_frozen()
        said = wait_for("the deployment says why", lambda: messages(small, sleeper.deployment))
        assert "cannot be moved to disk" in said and "checkpoints_max" in said, said
        assert sleeper.frozen() == pids and not images(small, sleeper.id)
        assert sleeper.ask()["count"] == 2
    finally:
        small.remove()


def test_what_did_not_fit_goes_to_disk_when_another_checkpoint_leaves_room(registry, name):
    # One of the two fits: each takes its heap and about 30 MiB of Python.
    small = Cloud(light_sleep_checkpoint_after="1s", checkpoints_max=f"{(HEAVY_BYTES >> 20) + 90}MiB").start()
    try:
        wanted = [definition(f"{name}-{at}", registry.image("fastapi")) for at in range(2)]
        for it in wanted:
            it["docker"]["command"] = HEAVY
        first, second = (Sleeper(small, it["name"], it) for it in wanted)
        assert first.ask()["count"] == 1
        wait_on_disk(first)
        assert second.ask()["count"] == 1
        second.wait_frozen()
        said = wait_for("the deployment says why", lambda: messages(small, second.deployment))
        assert "checkpoints_max" in said, said
        assert small.call("DELETE", f"/v1/services/{first.id}")[0] == 200
        wait_on_disk(second)
        assert second.ask()["count"] == 2
    finally:
        small.remove()


@pytest.mark.parametrize("victim", ["control plane", "supervise"])
def test_it_stays_on_disk_when_a_process_of_the_platform_dies(cloud, registry, name, victim):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    if victim == "control plane":
        cloud.kill()
        cloud.start()
    else:
        old = cloud.helper_pid(victim)
        os.kill(old, signal.SIGKILL)
        wait_for("it was started again", lambda: cloud.helper_pid(victim) not in (None, old))
    assert images(cloud, sleeper.id) and not sleeper.pids()
    assert sleeper.ask()["count"] == 2, "its memory is what it was"
    wait_on_disk(sleeper)
    assert sleeper.ask()["count"] == 3
