"""A service in light sleep, frozen and resident: what a caller waits more than at one that is awake.

Each call of a frozen service is followed by one of its twin that never sleeps. Beside them the floor: a stopped process
that is sent SIGCONT and echoes a byte.
"""

import os
import signal
import socket
import statistics
import time

from cloud import Cloud, Registry, wait_for
from wake_deep import first_byte_ms

SERVICES, ROUNDS = 8, 25
# Light sleep as soon as the contract allows; deep sleep not before the benchmark is over.
LIGHT_SECONDS, DEEP_SECONDS = 1, 3600
FLOOR_RUNS = 200
GOAL_MS = 2


def deploy(cloud, image, name, sleeps):
    scaling = {"min": 1, "max": 1}
    if sleeps:
        delay = {"light_sleep_value": LIGHT_SECONDS, "deep_sleep_value": DEEP_SECONDS}
        scaling = {"min": 0, "max": 1, "targets": [{"sleep_idle_delay": delay}]}
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": "nano"}],
        "docker": {"image": image}, "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}], "scalings": [scaling],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    if status != 200:
        raise AssertionError(f"{name} was not accepted: {reply}")
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    return cloud.host(name), reply["service"]


def sigcont_floor_ms():
    """From SIGCONT to a byte back from a process that was stopped."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while byte := theirs.recv(1):
            theirs.sendall(byte)
        os._exit(0)
    theirs.close()
    taken = []
    try:
        for _ in range(FLOOR_RUNS):
            os.kill(child, signal.SIGSTOP)
            os.waitpid(child, os.WUNTRACED)
            started = time.perf_counter()
            os.kill(child, signal.SIGCONT)
            ours.sendall(b"x")
            ours.recv(1)
            taken.append((time.perf_counter() - started) * 1000)
    finally:
        ours.close()
        os.waitpid(child, 0)
    return sorted(taken)


def p99(values):
    return sorted(values)[int(len(values) * 0.99) - 1]


def run():
    registry, cloud = Registry(), Cloud().start()
    try:
        image = registry.image("hello", "1")
        sleepers = [deploy(cloud, image, f"sleeper-{number}", True) for number in range(SERVICES)]
        awake = [deploy(cloud, image, f"awake-{number}", False)[0] for number in range(SERVICES)]
        asleep_ms, awake_ms = [], []
        for _ in range(ROUNDS):
            for (host, service), twin in zip(sleepers, awake):
                wait_for("the service is frozen", lambda: cloud.instances(service["id"], "SLEEPING"))
                asleep_ms.append(first_byte_ms(cloud.http_port, host))
                awake_ms.append(first_byte_ms(cloud.http_port, twin))
    finally:
        cloud.remove()
        registry.stop()
    floor = sigcont_floor_ms()
    above = p99(asleep_ms) - p99(awake_ms)
    median = statistics.median
    return {
        "figure": above, "unit": "ms above awake at p99", "goal": f"<= {GOAL_MS}", "pass": above <= GOAL_MS,
        "peer": "its twin awake (median)", "ratio": median(asleep_ms) / median(awake_ms), "runs": len(asleep_ms),
        "spread": f"frozen {min(asleep_ms):.1f} to {max(asleep_ms):.1f}, median {median(asleep_ms):.1f}, "
                  f"p99 {p99(asleep_ms):.1f}; awake median {median(awake_ms):.1f}, p99 {p99(awake_ms):.1f}; "
                  f"bare SIGCONT median {median(floor):.3f}, p99 {p99(floor):.3f}",
    }
