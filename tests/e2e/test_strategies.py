"""How a new version takes over, as callers see it: which version answers, and that each call is answered."""

import threading

import pytest

from cloud import wait_for

# Healthy by its port, and every other request fails.
HALF_BROKEN = """
import http.server, itertools
turns = itertools.count()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"version 2"
        self.send_response(500 if next(turns) % 2 else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

INSTANCES = 2
CLIENTS = 4
# A canary takes a tenth. With some thousand calls chance stays far inside these bounds.
CANARY_SHARE = (0.05, 0.16)


class Calls:
    """Clients that each call one after the other until told to end. Of every answer: whose call, and which version."""

    def __init__(self, cloud, host, clients=CLIENTS):
        self.cloud, self.host = cloud, host
        self.over, self.lock = threading.Event(), threading.Lock()
        self.answers, self.failures = [], []
        self.threads = [threading.Thread(target=self._call, args=(client,), daemon=True) for client in range(clients)]
        for thread in self.threads:
            thread.start()

    def _call(self, client):
        while not self.over.is_set():
            try:
                status, _, body = self.cloud.get(self.host)
            except OSError as error:
                status, body = repr(error), b""
            with self.lock:
                if status == 200:
                    self.answers.append((client, b"version 2" in body))
                else:
                    self.failures.append(f"{status} {body!r}")

    def end(self):
        """Ends them once the new version alone answers; gives the answers."""
        wait_for("the new version alone answers", lambda: all(new for _, new in self.answers[-100:]))
        self.over.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a call has no end"
        assert not self.failures, self.failures[:3]
        return self.answers


def deploy(cloud, registry, name, version, strategy="rolling"):
    image = registry.image("hello", "1") if version == 1 else registry.image("hello", "2", of="hello-v2")
    cloud.tram(
        "deploy", image, "--name", name, "--port", "8000", "--strategy", strategy,
        "--min", INSTANCES, "--max", INSTANCES, timeout=240,
    )


def both_answered(answers):
    """The versions of the answers from the new one's first to the old one's last."""
    versions = [new for _, new in answers]
    first, last = versions.index(True), len(versions) - versions[::-1].index(False)
    return versions[first:last]


@pytest.mark.timeout(300)
def test_a_canary_takes_a_tenth_before_it_takes_everything(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    calls = Calls(cloud, cloud.host(name))
    deploy(cloud, registry, name, 2, "canary")
    both = both_answered(calls.end())
    share = sum(both) / len(both)
    assert CANARY_SHARE[0] < share < CANARY_SHARE[1], f"{share:.3f} of {len(both)} calls"


def test_blue_green_changes_over_once(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    calls = Calls(cloud, cloud.host(name))
    deploy(cloud, registry, name, 2, "blue-green")
    answers = calls.end()
    for client in range(CLIENTS):
        own = [new for whose, new in answers if whose == client]
        assert own == sorted(own), "the old version answered a call that came after one the new version had answered"


def test_a_rolling_deployment_is_answered_by_both(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    calls = Calls(cloud, cloud.host(name))
    deploy(cloud, registry, name, 2)
    assert both_answered(calls.end()), "it changed over at once"


@pytest.mark.timeout(300)
def test_a_canary_that_fails_requests_is_given_up_and_can_be_chosen_until_then(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    host, service = cloud.host(name), cloud.service(name)
    _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
    wanted = reply["deployment"]["definition"]
    wanted["docker"] = {"image": registry.image("fastapi"), "entrypoint": ["python3", "-c"], "command": HALF_BROKEN}
    wanted["strategy"] = {"type": "DEPLOYMENT_STRATEGY_TYPE_CANARY"}
    status, reply = cloud.call("PUT", f"/v1/services/{service['id']}", {"definition": wanted})
    assert status == 200, reply
    latest = reply["service"]["latest_deployment_id"]

    def group(value):
        return b"version 2" in cloud.get(host, headers={"x-deployment-group": value})[2]

    # The first that chooses the canary and finds it. Few: what it fails is counted.
    wait_for("the canary takes requests", lambda: group("canary"))
    _, reply = cloud.call("GET", f"/v1/deployments/{latest}")
    assert reply["deployment"]["deployment_group"] == "canary", reply
    assert not any(group("prod") for _ in range(50)), "who asks for the version before it gets that"
    calls = Calls(cloud, host)
    failed = cloud.wait_deployment(latest, "ERROR", "HEALTHY")
    assert failed["status"] == "ERROR", failed
    told = "; ".join(failed["messages"])
    assert "requests failed, and 0 of " in told, told
    calls.over.set()
    for thread in calls.threads:
        thread.join(30)
    # One in twenty failed while it was tried; the version before goes on as if nothing had been.
    assert all("500" in failure for failure in calls.failures), calls.failures[:3]
    assert len(calls.failures) < 0.2 * len(calls.answers), (len(calls.failures), len(calls.answers))
    assert cloud.service(name)["active_deployment_id"] == service["active_deployment_id"]
    assert not any(group("canary") for _ in range(20)), "nothing is left of it"


# Healthy by its port, and no request is ever answered.
HANGS = """
import socket, time
listener = socket.create_server(("0.0.0.0", 8000), backlog=500)
held = []
while True:
    held.append(listener.accept())
"""

# More callers than failures it takes, each of which hangs sooner or later.
CALLERS_OF_A_CANARY = 12


@pytest.mark.timeout(300)
def test_a_canary_that_hangs_is_given_up(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    host, service = cloud.host(name), cloud.service(name)
    _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
    wanted = reply["deployment"]["definition"]
    wanted["docker"] = {"image": registry.image("fastapi"), "entrypoint": ["python3", "-c"], "command": HANGS}
    wanted["strategy"] = {"type": "DEPLOYMENT_STRATEGY_TYPE_CANARY"}
    calls = Calls(cloud, host, CALLERS_OF_A_CANARY)
    status, reply = cloud.call("PUT", f"/v1/services/{service['id']}", {"definition": wanted})
    assert status == 200, reply
    failed = cloud.wait_deployment(reply["service"]["latest_deployment_id"], "ERROR", "HEALTHY", seconds=120)
    assert failed["status"] == "ERROR", failed
    told = "; ".join(failed["messages"])
    assert "requests failed" in told, told
    before = len(calls.answers)
    wait_for("the version before answers as it did", lambda: len(calls.answers) > before + 200)
    calls.over.set()
    assert cloud.service(name)["active_deployment_id"] == service["active_deployment_id"]
    assert not any(new for _, new in calls.answers)


# One of its instances serves, and every other ends at once.
FAILS_LATER = """
import http.server, os, sys
if os.environ["KOYEB_REPLICA_INDEX"] != "0":
    sys.exit("this one does not start")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = b"version 2"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@pytest.mark.timeout(300)
def test_a_rolling_deployment_that_fails_half_way_costs_no_request(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    host, service = cloud.host(name), cloud.service(name)
    _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
    wanted = reply["deployment"]["definition"]
    wanted["docker"] = {"image": registry.image("fastapi"), "entrypoint": ["python3", "-c"], "command": FAILS_LATER}
    calls = Calls(cloud, host)
    status, reply = cloud.call("PUT", f"/v1/services/{service['id']}", {"definition": wanted})
    assert status == 200, reply
    latest = reply["service"]["latest_deployment_id"]
    failed = cloud.wait_deployment(latest, "ERROR", "HEALTHY", seconds=120)
    assert failed["status"] == "ERROR", failed
    assert any(new for _, new in calls.answers), "it took requests before it failed"
    wait_for("the old version alone answers", lambda: not any(new for _, new in calls.answers[-100:]))
    wait_for("all of the old version is back", lambda: len(cloud.instances(service["id"], "HEALTHY")) == INSTANCES)
    calls.over.set()
    for thread in calls.threads:
        thread.join(30)
    assert not calls.failures, calls.failures[:3]


@pytest.mark.timeout(300)
def test_a_rolling_deployment_that_is_superseded_half_way_costs_no_request(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    host, service = cloud.host(name), cloud.service(name)
    _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
    first = reply["deployment"]["definition"]
    wanted = dict(first)
    wanted["docker"] = {"image": registry.image("fastapi"), "entrypoint": ["python3", "-c"], "command": FAILS_LATER}
    calls = Calls(cloud, host)
    status, reply = cloud.call("PUT", f"/v1/services/{service['id']}", {"definition": wanted})
    assert status == 200, reply
    half = reply["service"]["latest_deployment_id"]
    wait_for("half of it takes requests", lambda: any(new for _, new in calls.answers))
    status, reply = cloud.call("PUT", f"/v1/services/{service['id']}", {"definition": first})
    assert status == 200, reply
    latest = reply["service"]["latest_deployment_id"]
    assert cloud.wait_deployment(latest, "HEALTHY", "ERROR", seconds=120)["status"] == "HEALTHY"
    assert cloud.wait_deployment(half, "STOPPED", "ERROR", seconds=120)["status"] == "STOPPED"
    wait_for("the newest alone answers", lambda: not any(new for _, new in calls.answers[-100:]))
    calls.over.set()
    for thread in calls.threads:
        thread.join(30)
    assert not calls.failures, calls.failures[:3]
