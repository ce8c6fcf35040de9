"""Ten thousand services that sleep deeply on this machine: what each costs in memory, and all of them in processor time.

Each is an app and a service of its own on the real site: it was deployed, was healthy, idled, and sleeps. What the
control plane, the edge and the supervisor use beyond a start without services is divided by their number. The idle
processor time is of all three, over a time in which the sweeps for what no signal told come round too.

SLEEPERS=1000 makes it shorter to try.
"""

import concurrent.futures
import os
import pathlib
import time

from cloud import Cloud, Registry, wait_for
from startup import memory_mib

SLEEPERS = int(os.environ.get("SLEEPERS", "10000"))
# Calls at a time, enough to keep two cores busy.
CALLERS = 8
# Made before the next are: what is under way at once is no part of the figure.
BATCH = 1000
# The longest of all sweeps comes every ten minutes.
IDLE_SECONDS = int(os.environ.get("SLEEPERS_IDLE", "660"))
# What a burst of work needed is given back by then.
REST_SECONDS = 60
PATIENCE_SECONDS = 600
GOAL_KIB, GOAL_PERCENT = 20, 1.0


def processes(cloud):
    return [cloud.process.pid, cloud.helper_pid("edge"), cloud.helper_pid("supervise")]


def cpu_seconds(pids):
    ticks = 0
    for pid in pids:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def create(cloud, image, number, idle_seconds=1):
    """An app and a service that falls asleep when nobody has asked for so long."""
    status, reply = cloud.call("POST", "/v1/apps", {"name": f"sleeper-{number}"})
    if status != 200:
        raise AssertionError(f"app {number}: {status} {reply}")
    definition = {
        "name": "web", "type": "WEB", "docker": {"image": image}, "regions": [region(cloud)],
        "instance_types": [{"type": "nano"}], "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}],
        "scalings": [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": {"deep_sleep_value": idle_seconds}}]}],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    if status != 200:
        raise AssertionError(f"service {number}: {status} {reply}")
    return reply["service"]["id"]


def region(cloud, known={}):
    """The one region of this machine."""
    if "id" not in known:
        known["id"] = cloud.call("GET", "/v1/catalog/regions")[1]["regions"][0]["id"]
    return known["id"]


def asleep(cloud):
    return cloud.call("GET", "/v1/deployments?limit=1&statuses=SLEEPING")[1]["count"]


def awake(cloud):
    """How many instances are not over."""
    query = "&".join(f"statuses={status}" for status in ("ALLOCATING", "STARTING", "HEALTHY", "UNHEALTHY", "STOPPING"))
    return cloud.call("GET", f"/v1/instances?limit=1&{query}")[1]["count"]


def run():
    registry, cloud = Registry(), Cloud().start()
    try:
        image = registry.image("hello", "1")
        region(cloud)
        time.sleep(REST_SECONDS)
        before = sum(memory_mib(pid) for pid in processes(cloud))
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as callers:
            for first in range(0, SLEEPERS, BATCH):
                numbers = range(first, min(first + BATCH, SLEEPERS))
                list(callers.map(lambda number: create(cloud, image, number), numbers))
                wait_for("the batch sleeps", lambda: asleep(cloud) >= numbers[-1] + 1, PATIENCE_SECONDS, 0.2)
        took = time.monotonic() - began
        wait_for("no instance is left", lambda: awake(cloud) == 0, PATIENCE_SECONDS, 0.5)
        time.sleep(REST_SECONDS)
        pids = processes(cloud)
        after = sum(memory_mib(pid) for pid in pids)
        spent, since = cpu_seconds(pids), time.monotonic()
        time.sleep(IDLE_SECONDS)
        percent = 100 * (cpu_seconds(pids) - spent) / (time.monotonic() - since)
        # They are all there: some of them, from the first to the last, answer.
        for number in range(0, SLEEPERS, max(1, SLEEPERS // 20)):
            host = cloud.host(f"sleeper-{number}")
            status, _, body = cloud.get(host)
            if status != 200 or b"Hello" not in body:
                raise AssertionError(f"{host} answered {status} {body[:200]!r}")
    finally:
        cloud.remove()
        registry.stop()
    each = (after - before) * 1024 / SLEEPERS
    return {
        "figure": each, "unit": f"KiB for each sleeping service; {percent:.2f} % of a core idle",
        "goal": f"<= {GOAL_KIB} KiB, < {GOAL_PERCENT:.0f} % of a core", "pass": each <= GOAL_KIB and percent < GOAL_PERCENT,
        "peer": "the same processes without services", "ratio": None, "runs": 1,
        "spread": f"{SLEEPERS} services; {before:.1f} MiB before and {after:.1f} MiB with them; idle for {IDLE_SECONDS} s; "
                  f"deployed and asleep {SLEEPERS / took:.0f} a second",
    }
