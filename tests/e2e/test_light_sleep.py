"""Light sleep: a program is frozen where it stands, and goes on from there when somebody comes."""

import json
import os
import pathlib
import signal
import socket
import threading
import time

import grpc
import pytest
from websockets.sync.client import connect

from cloud import Cloud, wait_for

# Counts requests in memory, says which process it is, and beats: a frozen heart does not.
COUNTER = """
import http.server, json, threading, time
count, beats = 0, 0
def beat():
    global beats
    while True:
        time.sleep(0.02)
        beats += 1
threading.Thread(target=beat, daemon=True).start()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global count
        count += 1
        length = int(self.headers.get("content-length") or 0)
        sent = self.rfile.read(length).decode()
        body = json.dumps({"count": count, "beats": beats, "sent": sent}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""
# Long enough for a test to look around before deep sleep.
LONG = 600


def definition(name, image, light=1, deep=LONG, **more):
    targets = [{"sleep_idle_delay": {"light_sleep_value": light, "deep_sleep_value": deep}}]
    return {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": "nano"}],
        "docker": {"image": image, "entrypoint": ["python3", "-c"], "command": COUNTER},
        "ports": [{"port": 8000, "protocol": "http"}], "routes": [{"port": 8000, "path": "/"}],
        "scalings": [{"min": 0, "max": 1, "targets": targets}], **more,
    }


class Sleeper:
    """A deployed service, seen from outside and from the machine."""

    def __init__(self, cloud, name, wanted, life_cycle=None):
        self.cloud = cloud
        status, reply = cloud.call("POST", "/v1/apps", {"name": name})
        assert status == 200, reply
        body = {"app_id": reply["app"]["id"], "definition": wanted}
        if life_cycle:
            body["life_cycle"] = life_cycle
        status, reply = cloud.call("POST", "/v1/services", body)
        assert status == 200, reply
        self.id = reply["service"]["id"]
        self.deployment = reply["service"]["latest_deployment_id"]
        self.host = cloud.host(name)
        cloud.wait_deployment(self.deployment, "HEALTHY")

    def pids(self):
        """The processes of its instances, as the machine counts them."""
        ids = [one["id"] for one in self.cloud.instances(self.id)]
        found = set()
        for path in pathlib.Path("/proc").glob("[0-9]*/cgroup"):
            try:
                text = path.read_text()
            except OSError:
                continue
            if any(one in text for one in ids):
                found.add(int(path.parent.name))
        return found

    def frozen(self):
        """Its instance is shown asleep, and its processes got no time between two looks."""
        if not self.cloud.instances(self.id, "SLEEPING"):
            return None
        pids = self.pids()
        before = [ticks(pid) for pid in pids]
        time.sleep(0.1)
        return pids if pids and before == [ticks(pid) for pid in pids] else None

    def wait_frozen(self):
        pids = wait_for("it is frozen", self.frozen)
        assert self.cloud.wait_deployment(self.deployment, "SLEEPING")
        return pids

    def ask(self, **more):
        status, _, body = self.cloud.get(self.host, **more)
        assert status == 200, body
        return json.loads(body)


def ticks(pid):
    """Times that a process was given the processor."""
    total = 0
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
        total += int(path.read_text().split()[2])
    return total


def test_it_is_frozen_where_it_stands_and_goes_on_from_there(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    pids = sleeper.wait_frozen()
    assert cloud.service(name)["status"] == "HEALTHY"
    for count in (2, 3):
        before = time.monotonic()
        assert sleeper.ask()["count"] == count, "its memory is what it was"
        assert time.monotonic() - before < 5
        assert sleeper.pids() == pids, "the same processes"
        cloud.wait_deployment(sleeper.deployment, "HEALTHY")
        sleeper.wait_frozen()
    # What is sent while it sleeps arrives whole, and once.
    sent = "x" * 200_000
    answer = sleeper.ask(method="POST", body=sent.encode())
    assert (answer["count"], answer["sent"]) == (4, sent)


def test_many_callers_wake_one_sleeper_and_all_are_answered(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    pids = sleeper.wait_frozen()
    answers = []
    callers = [threading.Thread(target=lambda: answers.append(sleeper.ask()["count"])) for _ in range(30)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(answers) == list(range(1, 31))
    assert sleeper.pids() == pids


def test_requests_that_come_while_it_falls_asleep_are_answered(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    slept, asked = 0, 0
    end = time.monotonic() + 25
    # Falling asleep takes about two seconds from the last request: ask around every moment of it.
    for step in range(1000):
        if time.monotonic() > end and slept:
            break
        time.sleep(1.6 + 0.07 * (step % 13))
        slept += bool(cloud.instances(sleeper.id, "SLEEPING"))
        before = time.monotonic()
        asked += 1
        assert sleeper.ask()["count"] == asked
        assert time.monotonic() - before < 5, "it waited for something else than the thaw"
    assert slept, "it never slept"


def test_a_tcp_connection_wakes_it(cloud, registry, name):
    wanted = definition(name, registry.image("redis"))
    wanted["docker"] = {"image": registry.image("redis")}
    wanted["ports"] = [{"port": 6379, "protocol": "tcp"}]
    wanted["routes"] = []
    wanted["proxy_ports"] = [{"port": 6379, "protocol": "tcp"}]
    sleeper = Sleeper(cloud, name, wanted)
    _, reply = cloud.call("GET", f"/v1/deployments/{sleeper.deployment}")
    port = reply["deployment"]["metadata"]["proxy_ports"][0]["public_port"]

    def increment():
        with socket.create_connection(("127.0.0.1", port), 30) as stream:
            stream.sendall(b"INCR visits\r\n")
            return stream.recv(64)

    assert increment() == b":1\r\n"
    pids = sleeper.wait_frozen()
    assert increment() == b":2\r\n"
    assert sleeper.pids() == pids


def test_a_websocket_wakes_it_and_keeps_it_awake(cloud, registry, name):
    wanted = definition(name, registry.image("node"))
    wanted["docker"] = {"image": registry.image("node")}
    sleeper = Sleeper(cloud, name, wanted)
    pids = sleeper.wait_frozen()
    with connect(f"ws://{sleeper.host}/ws", sock=cloud.connection()) as stream:
        for number in range(30):
            stream.send(f"still here {number}")
            assert stream.recv(timeout=30) == f"echo still here {number}"
            # Longer in all than the second of idleness after which it would sleep.
            time.sleep(0.1)
        assert not cloud.instances(sleeper.id, "SLEEPING"), "a session is open"
    assert sleeper.wait_frozen() == pids


# The unary method of a gRPC service that gives back what it is sent, on Node's own HTTP/2.
GRPC_ECHO = """
const server = require("http2").createServer();
server.on("stream", (stream, headers) => {
  stream.respond({ ":status": 200, "content-type": "application/grpc" }, { waitForTrailers: true });
  stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
  stream.pipe(stream);
});
server.listen(8000);
"""


def test_a_grpc_call_wakes_it(cloud, registry, name):
    wanted = definition(name, registry.image("node"))
    wanted["docker"] = {"image": registry.image("node"), "entrypoint": ["node", "-e"], "command": GRPC_ECHO}
    wanted["ports"] = [{"port": 8000, "protocol": "http2"}]
    sleeper = Sleeper(cloud, name, wanted)
    pids = sleeper.wait_frozen()
    options = [("grpc.default_authority", sleeper.host)]
    with grpc.insecure_channel(f"127.0.0.1:{cloud.http_port}", options) as channel:
        echo = channel.unary_unary("/test.Echo/Echo")
        assert echo(b"from its sleep", timeout=30) == b"from its sleep"
        assert sleeper.pids() == pids
        sleeper.wait_frozen()
        # The client's own connection is still open: a call on it wakes too.
        assert echo(b"and again", timeout=30) == b"and again"
        assert sleeper.pids() == pids


# 64 MiB of zeros and ones that are there again after it slept.
HOARDER = COUNTER.replace("count, beats = 0, 0", "hoard = bytearray(range(256)) * (1 << 18)\ncount, beats = 0, 0").replace(
    "length = int", "assert hoard[::4096] == bytes(len(hoard) // 4096) and hoard[255::4096][-1] == 255\n        length = int"
)


def resident_kib(pids):
    """Memory of processes that is theirs alone and in memory."""
    text = "".join(pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids)
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_Dirty"))


def test_reclaim_gives_back_what_the_machine_can_take(registry, name):
    cloud = Cloud(light_sleep_memory="reclaim").start()
    try:
        wanted = definition(name, registry.image("fastapi"))
        wanted["docker"]["command"] = HOARDER
        sleeper = Sleeper(cloud, name, wanted)
        assert sleeper.ask()["count"] == 1
        pids = sleeper.wait_frozen()
        if swap_is_there():
            wait_for("its memory is given back", lambda: resident_kib(pids) < 32 * 1024)
        assert sleeper.ask()["count"] == 2, "all of it is there again"
        assert sleeper.pids() == pids
    finally:
        cloud.remove()


def swap_is_there():
    """Without swap the kernel has nowhere to put what a program wrote."""
    return len(pathlib.Path("/proc/swaps").read_text().splitlines()) > 1


def test_deep_sleep_follows_and_the_service_goes_when_it_asks_for_it(cloud, registry, name):
    wanted = definition(name, registry.image("fastapi"), light=1, deep=6)
    sleeper = Sleeper(cloud, name, wanted, life_cycle={"delete_after_sleep": 40})
    assert sleeper.ask()["count"] == 1
    sleeper.wait_frozen()
    wait_for("nothing runs", lambda: not sleeper.pids() and not cloud.instances(sleeper.id, "SLEEPING"))
    cloud.wait_deployment(sleeper.deployment, "SLEEPING")
    assert sleeper.ask()["count"] == 1, "it was started anew"
    sleeper.wait_frozen()
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/services/{sleeper.id}")[0] == 404)


def test_it_is_woken_by_the_api(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    pids = sleeper.wait_frozen()
    status, reply = cloud.call("POST", f"/v1/services/{sleeper.id}/resume", {})
    assert status == 200, reply
    cloud.wait_deployment(sleeper.deployment, "HEALTHY")
    assert cloud.instances(sleeper.id, "HEALTHY")
    assert cloud.service(name)["latest_deployment_id"] == sleeper.deployment, "without a new deployment"
    assert sleeper.wait_frozen() == pids, "and it sleeps again"
    assert sleeper.ask()["count"] == 2


def test_a_new_version_takes_over_from_a_frozen_one(cloud, registry, name):
    image = registry.image("fastapi")
    sleeper = Sleeper(cloud, name, definition(name, image))
    assert sleeper.ask()["count"] == 1
    old = sleeper.wait_frozen()
    wanted = definition(name, image, env=[{"key": "VERSION", "value": "2"}])
    status, reply = cloud.call("PUT", f"/v1/services/{sleeper.id}", {"definition": wanted})
    assert status == 200, reply
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    assert sleeper.ask()["count"] == 1, "the new one answers"
    cloud.wait_deployment(sleeper.deployment, "STOPPED")
    wait_for("nothing of the old one is left", lambda: not old & sleeper.pids())


@pytest.mark.parametrize("victim", ["control plane", "supervise", "edge"])
def test_it_sleeps_on_when_a_process_of_the_platform_dies(own_cloud, registry, name, victim):
    cloud = own_cloud
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    pids = sleeper.wait_frozen()
    if victim == "control plane":
        cloud.kill()
        waiting = []
        caller = threading.Thread(target=lambda: waiting.append(sleeper.ask()))
        caller.start()
        cloud.start()
        caller.join()
        assert waiting[0]["count"] == 2, "who came meanwhile was held"
        sleeper.wait_frozen()
    else:
        old = cloud.helper_pid(victim)
        os.kill(old, signal.SIGKILL)
        wait_for("it was started again", lambda: cloud.helper_pid(victim) not in (None, old))
    assert sleeper.frozen() == pids
    before = sleeper.ask()["count"]
    assert before == (3 if victim == "control plane" else 2)
    assert sleeper.pids() == pids
    assert sleeper.wait_frozen() == pids
