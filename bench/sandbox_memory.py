"""A thousand sandboxes that sleep lightly: what each takes of the machine's memory beside its own processes.

Each was made through the API, ran a command, idles, and is frozen; nothing of it goes to disk. What counts is what they
add to the platform's own processes (proportional set sizes: control plane, edge, supervisor, and a shim for each) and to
what the kernel keeps for itself (slabs that it cannot take back, stacks, page tables, and what it has for each processor).
What the processes in the sandboxes have, the executor above all, is shown beside. The kernel's part is the machine's,
so nothing else should run. How many were created a second, from the first order to the last that ran a command, is of
as many callers as keep two processors busy.

SANDBOXES=50 makes it shorter to try.
"""

import concurrent.futures
import os
import pathlib
import statistics
import threading
import time

from cloud import Cloud, Registry, wait_for
from leaks import Footprint
from sandbox_client import Api, Executor, definition
from sleepers_10000 import processes
from startup import memory_mib

SANDBOXES = int(os.environ.get("SANDBOXES", "1000"))
# Orders under way at a time, enough to keep two cores busy.
CALLERS = 8
# Light sleep as soon as it may be; deep sleep not before the benchmark is over.
LIGHT_SECONDS, DEEP_SECONDS = 1, 24 * 3600
# What a burst of work needed is given back by then.
REST_SECONDS = 60
PATIENCE_SECONDS = 900
# Some of them, from the first to the last, are woken at the end.
WOKEN = 20
GOAL_MIB = 0.6
KERNEL = ("SUnreclaim", "KernelStack", "PageTables", "SecPageTables", "Percpu")


def kernel_mib():
    """What the kernel keeps for itself, by its kind."""
    found = {}
    for line in open("/proc/meminfo"):
        name, value = line.split(":")
        if name in KERNEL:
            found[name] = int(value.split()[0]) / 1024
    return found


def inside(cloud):
    """The processes in the sandboxes: those in the control groups of this supervisor's instances."""
    group = f"/tram/{Footprint(cloud).cgroup}/"
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if group in place.read_text():
                found.append(int(place.parent.name))
        except OSError:
            pass  # It has ended.
    return found


def shims(cloud):
    """The processes that look after one instance each: children of the supervisor, by their name."""
    supervisor, found = cloud.helper_pid("supervise"), []
    for place in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = place.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:
            continue
        if name == "tram-shim" and int(fields.split()[1]) == supervisor:
            found.append(int(place.parent.name))
    return found


def of_processes(pids):
    """MiB of these processes together; one that has ended has none."""
    taken = 0
    for pid in pids:
        try:
            taken += memory_mib(pid)
        except (OSError, AssertionError):
            pass
    return taken


def sleeping(name, image):
    wanted = definition(name, image, "nano")
    delay = {"light_sleep_value": LIGHT_SECONDS, "deep_sleep_value": DEEP_SECONDS}
    wanted["scalings"] = [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": delay}]}]
    return wanted


def create(cloud, own, image, number):
    """A sandbox that ran a command: its routing key, and how many milliseconds that took."""
    if not hasattr(own, "api"):
        own.api = Api(cloud)
    begun = time.perf_counter()
    made = own.api.call("POST", "/v1/compose", {
        "app": {"name": f"box-{number}", "life_cycle": {"delete_when_empty": True}},
        "services": [{"definition": sleeping(f"box-{number}", image)}],
    })
    # It may fall asleep before anybody has looked: its key is there as soon as it is.
    at = f"/v1/deployments/{made['services'][0]['latest_deployment_id']}"

    def is_up():
        deployment = own.api.call("GET", at)["deployment"]
        if deployment["status"] in ("ERROR", "STOPPED", "CANCELED"):
            raise AssertionError(f"box-{number}: {deployment['status']} {deployment['messages']}")
        return deployment if deployment["status"] in ("HEALTHY", "SLEEPING") else None

    key = wait_for(f"box-{number} is there", is_up, PATIENCE_SECONDS, 0.005)["metadata"]["sandbox"]["routing_key"]
    Executor(cloud, key).run("true")
    return key, (time.perf_counter() - begun) * 1000


def frozen(cloud):
    return cloud.call("GET", "/v1/instances?limit=1&statuses=SLEEPING")[1]["count"]


def run():
    registry, cloud = Registry(), Cloud(light_sleep_checkpoint_after="never").start()
    own = threading.local()
    try:
        image = registry.image("hello", "1")
        # The image is there, and what the first of all costs is no part of the figure.
        create(cloud, own, image, "first")
        wait_for("the first one sleeps", lambda: frozen(cloud) == 1, PATIENCE_SECONDS, 0.2)
        time.sleep(REST_SECONDS)
        before, kernel_before = of_processes(processes(cloud) + shims(cloud)), kernel_mib()
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as callers:
            made = list(callers.map(lambda number: create(cloud, own, image, number), range(SANDBOXES)))
        took = time.monotonic() - began
        wait_for("all of them sleep", lambda: frozen(cloud) == SANDBOXES + 1, PATIENCE_SECONDS, 0.5)
        time.sleep(REST_SECONDS)
        platform, looking = of_processes(processes(cloud)), of_processes(shims(cloud))
        kernel = {name: (mib - kernel_before[name]) / SANDBOXES for name, mib in kernel_mib().items()}
        theirs = of_processes(inside(cloud)) / (SANDBOXES + 1)
        # They are all there: some of them answer, from where they stood.
        for number in range(0, SANDBOXES, max(1, SANDBOXES // WOKEN)):
            Executor(cloud, made[number][0]).run("true")
    finally:
        cloud.remove()
        registry.stop()
    ours = (platform + looking - before) / SANDBOXES
    each = ours + sum(kernel.values())
    times = sorted(milliseconds for _, milliseconds in made)
    parts = ", ".join(f"{name} {1024 * mib:.0f} KiB" for name, mib in kernel.items())
    return {
        "figure": each, "unit": f"MiB for each idle sandbox beside its own processes; {SANDBOXES / took:.1f} created a second",
        "goal": f"<= {GOAL_MIB} MiB", "pass": 0 < each <= GOAL_MIB,
        "peer": "its own processes (MiB)", "ratio": each / theirs if theirs else None, "runs": 1,
        "spread": f"{SANDBOXES} sandboxes; processes of the platform {1024 * ours:.0f} KiB, of which a shim "
                  f"{1024 * looking / (SANDBOXES + 1):.0f} KiB; kernel: {parts}; own processes {theirs:.2f} MiB; "
                  f"from order to the end of a command by {CALLERS} callers {statistics.median(times):.0f} ms at the median, "
                  f"p99 {times[max(int(len(times) * 0.99) - 1, 0)]:.0f} ms",
    }
