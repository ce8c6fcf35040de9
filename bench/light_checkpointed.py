"""A Python server in light sleep on disk: from the connection to the first byte, with 20 MiB, 256 MiB and 1 GiB of heap.

Beside each its twin in deep sleep, which fills its heap anew at every start: the cold start. A service counts as
asleep once it has no process, and what is left of its memory is measured then.
"""

import pathlib
import statistics

from cloud import Cloud, Registry, wait_for
from wake_deep import first_byte_ms

HEAPS_MIB = (20, 256, 1024)
ROUNDS, COLD_ROUNDS = 40, 5
# Light sleep as soon as the contract allows, and to disk as soon as it may; deep sleep not before the benchmark is over.
LIGHT_SECONDS, DEEP_SECONDS, NEVER_SECONDS = 1, 1, 3600
GOAL_MEDIAN_MS, GOAL_P99_MS = 50, 80
# What a program may leave behind: its share of what is not its memory, such as what the kernel keeps of its files.
LEFT_MIB = 5
SERVER = """
import http.server, os
heap = [os.urandom(1 << 20) for _ in range(%d)]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"Hello")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


def deploy(cloud, image, name, heap_mib, delay, server=SERVER):
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": "medium"}],
        "docker": {"image": image, "entrypoint": ["python3", "-c"], "command": server % heap_mib},
        "ports": [{"port": 8000, "protocol": "http"}], "routes": [{"port": 8000, "path": "/"}],
        "scalings": [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": delay}]}],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    if status != 200:
        raise AssertionError(f"{name} was not accepted: {reply}")
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    return cloud.host(name), reply["service"]


def left_bytes(cloud, service):
    """What the kernel still counts for the service's one instance, or nothing while it has processes."""
    [instance] = cloud.instances(service["id"], "SLEEPING") or [None]
    if instance is None:
        return None
    for memory in ("memory.usage_in_bytes", "memory.current"):
        for path in pathlib.Path("/sys/fs/cgroup").glob(f"**/tram/*/{instance['id']}/{memory}"):
            if not (path.parent / "cgroup.procs").read_text():
                return int(path.read_text())
    return None


def gone(cloud, service):
    return not cloud.instances(service["id"], "HEALTHY", "STARTING", "STOPPING", "ALLOCATING", "SLEEPING")


def p99(values):
    return sorted(values)[int(len(values) * 0.99) - 1]


def one(cloud, image, heap_mib):
    """Wakes from disk and cold starts in milliseconds, and the most that was left in memory in MiB."""
    light = {"light_sleep_value": LIGHT_SECONDS, "deep_sleep_value": NEVER_SECONDS}
    host, service = deploy(cloud, image, f"on-disk-{heap_mib}", heap_mib, light)
    cold_host, cold = deploy(cloud, image, f"cold-{heap_mib}", heap_mib, {"deep_sleep_value": DEEP_SECONDS})
    taken, cold_taken, left = [], [], []
    for number in range(ROUNDS):
        wait_for("it is on disk", lambda: left_bytes(cloud, service) is not None)
        wait_for("its memory is free", lambda: (left_bytes(cloud, service) or 2**40) < LEFT_MIB << 20)
        left.append((left_bytes(cloud, service) or 0) / 2**20)
        taken.append(first_byte_ms(cloud.http_port, host))
        if number < COLD_ROUNDS:
            wait_for("its twin sleeps", lambda: gone(cloud, cold))
            cold_taken.append(first_byte_ms(cloud.http_port, cold_host))
    cloud.call("DELETE", f"/v1/services/{cold['id']}")
    cloud.call("DELETE", f"/v1/services/{service['id']}")
    return taken, cold_taken, max(left)


def run():
    registry, cloud = Registry(), Cloud(light_sleep_checkpoint_after="0s").start()
    try:
        image = registry.image("fastapi")
        found = {heap: one(cloud, image, heap) for heap in HEAPS_MIB}
    finally:
        cloud.remove()
        registry.stop()
    medians = {heap: statistics.median(taken) for heap, (taken, _, _) in found.items()}
    worst = {heap: p99(taken) for heap, (taken, _, _) in found.items()}
    cold = {heap: statistics.median(taken) for heap, (_, taken, _) in found.items()}
    parts = [f"{heap} MiB: median {medians[heap]:.0f}, p99 {worst[heap]:.0f}, cold {cold[heap]:.0f}, "
             f"left {found[heap][2]:.1f} MiB" for heap in HEAPS_MIB]
    slowest = max(medians, key=medians.get)
    return {
        "figure": medians[slowest], "unit": "ms at the median of the slowest heap",
        "goal": f"<= {GOAL_MEDIAN_MS}, p99 <= {GOAL_P99_MS}",
        "pass": medians[slowest] <= GOAL_MEDIAN_MS and max(worst.values()) <= GOAL_P99_MS,
        "peer": "its cold start", "ratio": medians[slowest] / cold[slowest],
        "runs": ROUNDS * len(HEAPS_MIB), "spread": "; ".join(parts),
    }
