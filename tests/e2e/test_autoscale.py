"""Services follow their load: real requests that are held, through the real edge."""

import threading

import pytest
from websockets.sync.client import connect

from cloud import Cloud, wait_for

pytestmark = pytest.mark.alone

CLIENTS = 8
PER_INSTANCE = 2


@pytest.fixture(scope="module")
def quick_cloud():
    """A cloud whose services go down after seconds and not after half a minute."""
    cloud = Cloud(scaling="concurrency_window=4,usage_window=10,down_window=5,down_period=1").start()
    yield cloud
    cloud.remove()


class Load:
    """So many clients, each with one request after the other, until told to end."""

    def __init__(self, cloud, host, clients, path="/slow/0.5"):
        self.cloud, self.host, self.path = cloud, host, path
        self.over = threading.Event()
        self.statuses, self.failures = [], []
        self.threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self):
        while not self.over.is_set():
            try:
                status, _, body = self.cloud.get(self.host, self.path)
            except OSError as error:
                self.failures.append(repr(error))
                continue
            self.statuses.append(status)
            if status != 200:
                self.failures.append(f"{status} {body!r}")

    def end(self):
        self.over.set()
        for thread in self.threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "a request has no end"


def scaled(cloud, registry, name, maximum, per_instance=PER_INSTANCE):
    cloud.tram(
        "deploy", registry.image("fastapi"), "--name", name, "--port", "8000", "--check", "http:8000:/health",
        "--min", 1, "--max", maximum, "--scale-on", f"concurrent-requests={per_instance}", timeout=180,
    )
    service = cloud.service(name)
    return service["id"], service["active_deployment_id"], cloud.host(name)


def decision(cloud, deployment):
    _, reply = cloud.call("GET", f"/v1/deployment/{deployment}/scaling")
    return reply["decisions"][0]


def healthy(cloud, service, count):
    def look():
        instances = cloud.instances(service, "HEALTHY")
        return instances if len(instances) == count else None

    return wait_for(f"{count} instances are healthy", look, 90)


def test_instances_follow_concurrent_requests_without_a_failed_one(quick_cloud, registry, name):
    cloud = quick_cloud
    service, deployment, host = scaled(cloud, registry, name, CLIENTS // PER_INSTANCE)
    first = decision(cloud, deployment)
    assert (first["wanted"], first["ready"], first["min"], first["max"]) == (1, 1, 1, 4), first
    load = Load(cloud, host, CLIENTS)
    healthy(cloud, service, CLIENTS // PER_INSTANCE)
    wait_for("four are wanted and ready", lambda: decision(cloud, deployment)["ready"] == 4)
    told = decision(cloud, deployment)
    assert told["wanted"] == 4 and told["signal"] == "concurrent_requests" and told["target"] == PER_INSTANCE, told
    assert "requests in flight per instance, target 2" in told["last_change"], told
    assert "4 wanted, 4 ready" in cloud.tram("services", "get", name).stdout
    load.end()
    healthy(cloud, service, 1)
    assert not load.failures, load.failures[:5]
    assert len(load.statuses) > CLIENTS
    assert decision(cloud, deployment)["reason"] in ("at_minimum", "settling", "below_target")
    _, events = cloud.call("GET", f"/v1/deployment_events?deployment_id={deployment}&limit=100")
    scalings = [event["message"] for event in events["events"] if event["type"] == "DEPLOYMENT_SCALED"]
    assert any("scaled 1 to " in message for message in scalings), scalings
    assert any(message.startswith("Deployment scaled 4 to ") for message in scalings), scalings


def test_an_open_stream_outlives_that_its_instance_is_one_too_many(quick_cloud, registry, name):
    cloud = quick_cloud
    service, deployment, host = scaled(cloud, registry, name, 2, per_instance=4)
    load = Load(cloud, host, CLIENTS)
    healthy(cloud, service, 2)
    wait_for("both are ready", lambda: decision(cloud, deployment)["ready"] == 2)
    load.end()
    assert not load.failures, load.failures[:5]
    # Nothing else is in flight: the second goes where the first is not.
    sockets = [connect(f"ws://{host}/ws", sock=cloud.connection()) for _ in range(2)]
    wait_for("one is wanted", lambda: decision(cloud, deployment)["wanted"] == 1)
    wait_for("the other is on its way out", lambda: cloud.instances(service, "STOPPING"))
    # A number by hand makes the controller look again: it is still not stopped.
    cloud.tram("scale", name, 1)
    for number in range(20):
        for socket in sockets:
            socket.send(f"still here {number}")
            assert socket.recv(timeout=10) == f"echo still here {number}"
    assert len(cloud.instances(service, "STOPPING")) == 1
    for socket in sockets:
        socket.close()
    wait_for("it is gone", lambda: not cloud.instances(service, "STOPPING"))
    assert len(cloud.instances(service, "HEALTHY")) == 1
    assert decision(cloud, deployment)["reason"] == "manual"
    assert "set by hand" in cloud.tram("services", "get", name).stdout


# Each request burns processor time, holds memory while it lasts, or does neither.
BURNS_AND_HOLDS = """
import http.server, mmap, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/burn":
            until = time.thread_time() + 0.05
            while time.thread_time() < until:
                pass
        elif self.path == "/hold":
            held = mmap.mmap(-1, 24 << 20)
            for page in range(0, len(held), mmap.PAGESIZE):
                held[page] = 1
            time.sleep(1)
            held.close()
        elif self.path == "/wait":
            time.sleep(1)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

# With an instance of half a processor and 512 MiB: six holders of 24 MiB fill nearly a third of its memory, and six
# burners want more than it has.
CALLERS = 6


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("targets", "path", "decisive"),
    [
        (["cpu=40"], "/burn", "% CPU"),
        (["memory=15"], "/hold", "% memory"),
        # Together: the largest answer wins, whosever it is.
        (["concurrent-requests=100", "cpu=40", "memory=90"], "/burn", "% CPU"),
        (["concurrent-requests=2", "cpu=90", "memory=90"], "/wait", "requests in flight"),
    ],
    ids=["cpu", "memory", "cpu-among-others", "requests-among-others"],
)
def test_instances_follow_what_they_use(quick_cloud, registry, name, targets, path, decisive):
    cloud = quick_cloud
    arguments = [argument for target in targets for argument in ("--scale-on", target)]
    cloud.tram(
        "deploy", registry.image("fastapi"), "--name", name, "--port", "8000", "--entrypoint", "python3",
        "--entrypoint", "-c", "--command", BURNS_AND_HOLDS, "--min", 1, "--max", 3, *arguments, timeout=180,
    )
    service = cloud.service(name)
    deployment = service["active_deployment_id"]
    assert decision(cloud, deployment)["wanted"] == 1
    load = Load(cloud, cloud.host(name), CALLERS, path)
    told = wait_for("more are wanted", lambda: (it := decision(cloud, deployment))["wanted"] > 1 and it, 90)
    # The change stays to be read; the next decision, which may be milliseconds later, need not have its reason.
    assert decisive in told["last_change"], told
    wait_for("more are healthy", lambda: len(cloud.instances(service["id"], "HEALTHY")) > 1, 90)
    load.end()
    assert not load.failures, load.failures[:5]
    healthy(cloud, service["id"], 1)
