"""A hundred requests arrive at once at a service that sleeps: how many are lost."""

import threading
import time

from cloud import Cloud, Registry, wait_for
from wake_deep import asleep, deploy_sleeper, first_byte_ms

CALLERS, ROUNDS = 100, 5


def run():
    registry, cloud = Registry(), Cloud().start()
    lost, slowest = 0, []
    try:
        host, service = deploy_sleeper(cloud, registry, "burst")
        for _ in range(ROUNDS):
            wait_for("the service sleeps", lambda: asleep(cloud, service))
            taken, failures, gate = [], [], threading.Barrier(CALLERS)

            def call():
                gate.wait()
                try:
                    taken.append(first_byte_ms(cloud.http_port, host))
                except (OSError, AssertionError) as error:
                    failures.append(error)

            callers = [threading.Thread(target=call) for _ in range(CALLERS)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            lost += CALLERS - len(taken)
            slowest.append(max(taken, default=float("nan")))
            if len(cloud.instances(service["id"], "HEALTHY", "STARTING")) > 1:
                raise AssertionError("more than one wake")
    finally:
        cloud.remove()
        registry.stop()
    return {
        "figure": lost, "unit": f"requests lost of {CALLERS * ROUNDS}", "goal": "0", "pass": lost == 0,
        "peer": None, "ratio": None, "runs": ROUNDS,
        "spread": f"slowest of each burst {min(slowest):.0f} to {max(slowest):.0f} ms",
    }
