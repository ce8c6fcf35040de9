"""`tram up` on a data directory that exists: to its first answer, and what it costs when idle."""

import statistics
import subprocess
import time
import urllib.request

from cloud import BASE_DOMAIN, BINARY, Cloud

RUNS = 10
GOAL_MS, GOAL_MIB = 300, 60


def memory_mib(pid):
    """Proportional set size: shared pages of the one binary count once."""
    for line in open(f"/proc/{pid}/smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss")


def once(cloud):
    arguments = [BINARY, "up", "--data-dir", str(cloud.data), "--api-listen", f"127.0.0.1:{cloud.api_port}",
                 "--http-port", str(cloud.http_port), "--https-port", str(cloud.https_port),
                 "--base-domain", BASE_DOMAIN]
    started = time.perf_counter()
    cloud.process = subprocess.Popen(arguments, stdout=cloud.log, stderr=cloud.log, env=cloud.environment)
    while True:
        request = urllib.request.Request(f"{cloud.api_url}/v1/apps")
        request.add_header("authorization", f"Bearer {cloud.token}")
        try:
            with urllib.request.urlopen(request, timeout=5) as reply:
                if reply.status == 200:
                    return (time.perf_counter() - started) * 1000
        except OSError:
            if cloud.process.poll() is not None:
                raise AssertionError(cloud.logs()) from None


def run():
    cloud = Cloud().start()
    try:
        taken = []
        for _ in range(RUNS):
            cloud.stop()
            taken.append(once(cloud))
        pids = [cloud.process.pid, cloud.helper_pid("edge"), cloud.helper_pid("supervise")]
        memory = sum(memory_mib(pid) for pid in pids)
    finally:
        cloud.remove()
    median = statistics.median(taken)
    return {
        "figure": median, "unit": "ms to the first answer", "goal": f"<= {GOAL_MS} ms, <= {GOAL_MIB} MiB idle",
        "pass": median <= GOAL_MS and memory <= GOAL_MIB, "peer": None, "ratio": None, "runs": RUNS,
        "spread": f"{min(taken):.0f} to {max(taken):.0f} ms; idle memory of all three processes {memory:.1f} MiB",
    }
