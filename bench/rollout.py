"""wrk for 30 seconds with a rolling update in the middle: how many requests fail."""

import re
import subprocess

from cloud import Cloud, Registry, wait_for

SECONDS = 30


def run():
    registry, cloud = Registry(), Cloud().start()
    try:
        cloud.tram("deploy", registry.image("nginx"), "--name", "rolled", "--port", "8000", "--min", "2", "--max", "2")
        host, service = cloud.host("rolled"), cloud.service("rolled")
        load = subprocess.Popen(
            ["wrk", "-t1", "-c32", f"-d{SECONDS}s", "-H", f"Host: {host}", f"http://127.0.0.1:{cloud.http_port}/"],
            stdout=subprocess.PIPE, text=True)
        cloud.tram("deploy", registry.image("nginx"), "--name", "rolled", "--port", "8000", "--min", "2", "--max", "2",
                   "--env", "VERSION=2")
        wait_for("the old version is gone", lambda: len(
            cloud.instances(service["id"], "HEALTHY", "STOPPING")) == 2)
        said, _ = load.communicate(timeout=SECONDS * 4)
    finally:
        cloud.remove()
        registry.stop()
    total = int(re.search(r"(\d+) requests in", said).group(1))
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    failed += sum(map(int, sockets.groups())) if sockets else 0
    return {
        "figure": failed, "unit": f"failed of {total} requests", "goal": "0", "pass": failed == 0,
        "peer": None, "ratio": None, "runs": 1, "spread": f"{total // SECONDS} requests a second",
    }
