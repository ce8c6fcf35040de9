"""A command in a sandbox that runs: `true` by its executor through the edge, beside starting it on the machine."""

import subprocess
import time

from cloud import Cloud, Registry
from sandbox_client import Api, Executor, figure

ROUNDS, WARM_UP = 1000, 50
GOAL_MS = 2


def milliseconds(act):
    begun = time.perf_counter()
    act()
    return (time.perf_counter() - begun) * 1000


def run(rounds=ROUNDS):
    registry, cloud = Registry(), Cloud().start()
    try:
        _, key = Api(cloud).make("box", registry.image("fastapi"), "medium")
        executor = Executor(cloud, key)
        ours, theirs = [], []
        # By turns: what else the machine does hits both.
        for number in range(WARM_UP + rounds):
            one = milliseconds(lambda: executor.run("true"))
            other = milliseconds(lambda: subprocess.run(["sh", "-c", "true"], check=True, capture_output=True))
            if number >= WARM_UP:
                ours.append(one)
                theirs.append(other)
    finally:
        cloud.remove()
        registry.stop()
    return figure(ours, GOAL_MS, "the same by Python on the machine, without a sandbox", theirs)
