"""A static service in deep sleep: from the connection to the first byte of the answer."""

import socket
import statistics
import time

from cloud import Cloud, Registry, wait_for

SERVICES, ROUNDS = 8, 25
GOAL_MS = 50


def first_byte_ms(port, host, text=b"Hello"):
    """Connect, ask, and wait for the first byte; the rest is read and checked."""
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        first = connection.recv(1)
        taken = (time.perf_counter() - started) * 1000
        answer = first
        while more := connection.recv(65536):
            answer += more
    if not answer.startswith(b"HTTP/1.1 200") or text not in answer:
        raise AssertionError(f"{host} answered {answer[:200]!r}")
    return taken


def deploy_sleeper(cloud, image, name, *options):
    cloud.tram("deploy", image, "--name", name, "--port", "8000",
               "--min", "0", "--max", "1", "--sleep-after", "1s", *options)
    return cloud.host(name), cloud.service(name)


def asleep(cloud, service):
    return not cloud.instances(service["id"], "HEALTHY", "STARTING", "STOPPING", "ALLOCATING")


def run():
    registry, cloud = Registry(), Cloud().start()
    try:
        image = registry.image("hello", "1")
        sleepers = [deploy_sleeper(cloud, image, f"sleeper-{number}") for number in range(SERVICES)]
        asleep_ms, awake_ms = [], []
        for _ in range(ROUNDS):
            for host, service in sleepers:
                wait_for("the service sleeps", lambda: asleep(cloud, service))
                asleep_ms.append(first_byte_ms(cloud.http_port, host))
                awake_ms.append(first_byte_ms(cloud.http_port, host))
    finally:
        cloud.remove()
        registry.stop()
    asleep_ms.sort()
    p99 = asleep_ms[int(len(asleep_ms) * 0.99) - 1]
    return {
        "figure": p99, "unit": "ms at p99", "goal": f"<= {GOAL_MS}", "pass": p99 <= GOAL_MS,
        "peer": "the same service awake (median)", "ratio": statistics.median(asleep_ms) / statistics.median(awake_ms),
        "runs": len(asleep_ms),
        "spread": f"{asleep_ms[0]:.1f} to {asleep_ms[-1]:.1f}, median {statistics.median(asleep_ms):.1f}",
    }
