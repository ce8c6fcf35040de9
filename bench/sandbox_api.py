"""A sandbox for one command through the API, its image being there: create, run `true` by the executor, delete."""

import json
import statistics
import time
import urllib.error
import urllib.request

from cloud import BASE_DOMAIN, Cloud, Registry, wait_for

ROUNDS, WARM_UP = 200, 10
GOAL_MS, GOAL_P99_MS = 25, 60
SECRET = "the-secret_of-the-benchmark"
# A client that looks this often adds half of it on average, which belongs to what is measured.
POLL_SECONDS = 0.001


def definition(name, image):
    return {
        "name": name, "type": "SANDBOX", "docker": {"image": image}, "regions": ["na"],
        "env": [{"key": "SANDBOX_SECRET", "value": SECRET}], "instance_types": [{"type": "micro"}],
        "ports": [{"port": 3030, "protocol": "http"}, {"port": 3031, "protocol": "http"}],
        "routes": [{"port": 3030, "path": "/koyeb-sandbox/"}, {"port": 3031, "path": "/"}],
        "scalings": [{"min": 1, "max": 1}],
    }


def execute(cloud, key):
    """Run `true` by the executor, through the edge."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{cloud.http_port}/koyeb-sandbox/run", json.dumps({"cmd": "true"}).encode()
    )
    for name, value in (("host", BASE_DOMAIN), ("x-routing-key", key), ("authorization", f"Bearer {SECRET}"),
                        ("content-type", "application/json")):
        request.add_header(name, value)

    def answer():
        # A sandbox may be told healthy a moment before the edge knows its way there; clients ask again.
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read())
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return None

    result = wait_for("the executor answers", answer, every=POLL_SECONDS)
    if result["code"] != 0:
        raise AssertionError(f"`true` ended with {result}")


def once(cloud, image, name):
    """Milliseconds until the sandbox is there, has run a command, and is taken away; and the middle part alone."""
    begun = time.perf_counter()
    status, made = cloud.call("POST", "/v1/compose", {
        "app": {"name": name, "life_cycle": {"delete_when_empty": True}},
        "services": [{"definition": definition(name, image)}],
    })
    if status != 200:
        raise AssertionError(f"creating {name}: {made}")
    service = made["services"][0]

    def healthy():
        _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
        return reply["deployment"] if reply["deployment"]["status"] == "HEALTHY" else None

    key = wait_for(f"{name} is healthy", healthy, every=POLL_SECONDS)["metadata"]["sandbox"]["routing_key"]
    asked = time.perf_counter()
    execute(cloud, key)
    executed = time.perf_counter()
    cloud.call("DELETE", f"/v1/services/{service['id']}")
    ended = time.perf_counter()
    gone = lambda: cloud.call("GET", f"/v1/services/{service['id']}")[0] == 404
    # Not measured: the client is free, and the next round must not pay for this one.
    wait_for(f"{name} is gone", gone, every=0.01)
    return (ended - begun) * 1000, (executed - asked) * 1000


def run(rounds=ROUNDS):
    registry, cloud = Registry(), Cloud().start()
    try:
        image = registry.image("hello", "1")
        taken = [once(cloud, image, f"box-{number}") for number in range(WARM_UP + rounds)][WARM_UP:]
    finally:
        cloud.remove()
        registry.stop()
    whole = sorted(total for total, _ in taken)
    commands = [command for _, command in taken]
    p50, p99 = statistics.median(whole), whole[max(int(len(whole) * 0.99) - 1, 0)]
    return {
        "figure": p50, "unit": "ms at p50", "goal": f"<= {GOAL_MS}, p99 <= {GOAL_P99_MS}",
        "pass": p50 <= GOAL_MS and p99 <= GOAL_P99_MS,
        "peer": "the command alone (median)", "ratio": p50 / statistics.median(commands),
        "runs": len(whole), "spread": f"{whole[0]:.1f} to {whole[-1]:.1f}, p99 {p99:.1f}",
    }
