"""wrk for 30 seconds with a rolling update in the middle: how many requests fail."""

import re
import subprocess
import time

from cloud import Cloud, Registry, wait_for

SECONDS, RUNS = 30, 3
# The update begins here, so that load comes before, during and after.
UPDATE_AT_SECONDS = 10


def once(cloud, registry, version):
    """Requests and failed ones of one load, and the seconds the update took."""
    host, service = cloud.host("rolled"), cloud.service("rolled")
    load = subprocess.Popen(
        ["wrk", "-t1", "-c32", f"-d{SECONDS}s", "-H", f"Host: {host}", f"http://127.0.0.1:{cloud.http_port}/"],
        stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(UPDATE_AT_SECONDS)
        started = time.monotonic()
        deploy(cloud, registry, version)
        wait_for("the old version is gone", lambda: len(
            cloud.instances(service["id"], "HEALTHY", "STOPPING")) == 2)
        took = time.monotonic() - started
        if load.poll() is not None:
            raise AssertionError(f"the load was over before the update, which took {took:.1f} s")
        said, _ = load.communicate(timeout=SECONDS * 4)
    finally:
        load.kill()
    total = int(re.search(r"(\d+) requests in", said).group(1))
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    failed += sum(map(int, sockets.groups())) if sockets else 0
    return total, failed, took


def deploy(cloud, registry, version):
    cloud.tram("deploy", registry.image("nginx"), "--name", "rolled", "--port", "8000", "--min", "2", "--max", "2",
               "--env", f"VERSION={version}")


def run():
    registry, cloud = Registry(), Cloud().start()
    try:
        deploy(cloud, registry, 0)
        runs = [once(cloud, registry, version) for version in range(1, RUNS + 1)]
    finally:
        cloud.remove()
        registry.stop()
    totals, failures, took = zip(*runs)
    return {
        "figure": sum(failures), "unit": f"failed of {sum(totals)} requests", "goal": "0", "pass": sum(failures) == 0,
        "peer": None, "ratio": None, "runs": RUNS,
        "spread": f"{min(totals) // SECONDS} to {max(totals) // SECONDS} requests a second; "
                  f"updates took {min(took):.1f} to {max(took):.1f} s",
    }
