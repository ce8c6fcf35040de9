"""A hundred requests arrive at once at a service that sleeps: how many are lost, and how long the slowest waits.

The service is nginx: it lets more than a hundred connections wait to be accepted, so a slow answer is the platform's.
"""

import threading

from cloud import Cloud, Registry, wait_for
from wake_deep import asleep, deploy_sleeper, first_byte_ms

CALLERS, ROUNDS = 100, 5
GOAL_SECONDS = 10


def run():
    registry, cloud = Registry(), Cloud().start()
    lost, slowest = [], []
    try:
        host, service = deploy_sleeper(cloud, registry.image("nginx"), "burst")
        for _ in range(ROUNDS):
            wait_for("the service sleeps", lambda: asleep(cloud, service))
            taken, gate = [], threading.Barrier(CALLERS)

            def call():
                gate.wait()
                try:
                    taken.append(first_byte_ms(cloud.http_port, host, b"nginx on Tramontane"))
                except (OSError, AssertionError) as error:
                    lost.append(error)

            callers = [threading.Thread(target=call) for _ in range(CALLERS)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            slowest.append(max(taken, default=float("inf")) / 1000)
            if len(cloud.instances(service["id"], "HEALTHY", "STARTING")) > 1:
                raise AssertionError("more than one wake")
    finally:
        cloud.remove()
        registry.stop()
    told = f", the first by {lost[0]!r}" if lost else ""
    return {
        "figure": max(slowest), "unit": f"s to the slowest answer; {len(lost)} of {CALLERS * ROUNDS} requests lost",
        "goal": f"none lost, <= {GOAL_SECONDS} s", "pass": not lost and max(slowest) <= GOAL_SECONDS,
        "peer": None, "ratio": None, "runs": ROUNDS,
        "spread": f"slowest of each burst {min(slowest):.2f} to {max(slowest):.2f} s{told}",
    }
