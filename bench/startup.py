"""`tram up` on a data directory that exists: to the first answers of API and edge, and what it costs when idle."""

import statistics
import subprocess
import time

from cloud import BASE_DOMAIN, BINARY, Cloud

RUNS = 10
# What the start needed is given back by then.
IDLE_SECONDS = 30
GOAL_MS, GOAL_MIB = 300, 60


def memory_mib(pid):
    """Proportional set size: shared pages of the one binary count once."""
    for line in open(f"/proc/{pid}/smaps_rollup"):
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no Pss")


def once(cloud):
    """Milliseconds to the first answer of the API, and to that of the edge."""
    arguments = [BINARY, "up", "--data-dir", str(cloud.data), "--api-listen", f"127.0.0.1:{cloud.api_port}",
                 "--http-port", str(cloud.http_port), "--https-port", str(cloud.https_port),
                 "--base-domain", BASE_DOMAIN]
    started = time.perf_counter()
    cloud.process = subprocess.Popen(arguments, stdout=cloud.log, stderr=cloud.log, env=cloud.environment)
    answered = []
    for answers in (lambda: cloud.call("GET", "/v1/apps")[0] == 200, lambda: edge_answers(cloud)):
        while True:
            try:
                if answers():
                    break
            except OSError:
                if cloud.process.poll() is not None:
                    raise AssertionError(cloud.logs()) from None
        answered.append((time.perf_counter() - started) * 1000)
    return answered


def edge_answers(cloud):
    """Any answer is one: nothing is deployed."""
    return cloud.get(f"nobody.{BASE_DOMAIN}")[0] == 404


def run():
    cloud = Cloud().start()
    try:
        taken = []
        for _ in range(RUNS):
            cloud.stop()
            taken.append(once(cloud))
        time.sleep(IDLE_SECONDS)
        pids = [cloud.process.pid, cloud.helper_pid("edge"), cloud.helper_pid("supervise")]
        memory = sum(memory_mib(pid) for pid in pids)
    finally:
        cloud.remove()
    api, ready = ([one[place] for one in taken] for place in (0, 1))
    median = statistics.median(ready)
    return {
        "figure": median, "unit": f"ms to the first answers; {memory:.1f} MiB idle",
        "goal": f"<= {GOAL_MS} ms, <= {GOAL_MIB} MiB", "pass": median <= GOAL_MS and memory <= GOAL_MIB,
        "peer": None, "ratio": None, "runs": RUNS,
        "spread": f"{min(ready):.0f} to {max(ready):.0f} ms, the API's alone {statistics.median(api):.0f} ms; "
                  f"memory of all three processes after {IDLE_SECONDS} s",
    }
