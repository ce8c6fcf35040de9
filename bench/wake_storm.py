"""A thousand services in deep sleep, each called once, all in the same second: nobody is lost, and how long they wait.

Two processors start a thousand programs, so the last caller waits for all of them; what is promised is that every call
is answered, within the hold of a service. A start costs the machine what it costs: the figure is what each of them takes
of it, beside the cost of one that is woken alone. SLEEPERS=100 makes it shorter to try.
"""

import asyncio
import concurrent.futures
import os
import statistics
import time

from cloud import Cloud, Registry, wait_for
from sleepers_10000 import CALLERS, PATIENCE_SECONDS, asleep, awake, create, region
from wake_deep import first_byte_ms

SLEEPERS = int(os.environ.get("SLEEPERS", "1000"))
# Long enough that nobody falls asleep again while others still wake, short enough to wait for.
IDLE_SECONDS = 60
ALONE = 20
# The hold of a service without a setting of its own.
HOLD_SECONDS = 55


async def call(port, host):
    """Milliseconds until the whole answer, and its status line."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), 2 * HOLD_SECONDS)
    finally:
        writer.close()
    return (time.perf_counter() - began) * 1000, answer


async def storm(port, hosts):
    return await asyncio.gather(*(call(port, host) for host in hosts))


def run():
    registry, cloud = Registry(), Cloud().start()
    try:
        image = registry.image("hello", "1")
        region(cloud)
        with concurrent.futures.ThreadPoolExecutor(CALLERS) as callers:
            list(callers.map(lambda number: create(cloud, image, number, IDLE_SECONDS), range(SLEEPERS)))
        wait_for("all sleep", lambda: asleep(cloud) == SLEEPERS and awake(cloud) == 0, PATIENCE_SECONDS, 0.5)
        hosts = [cloud.host(f"sleeper-{number}") for number in range(SLEEPERS)]
        alone = [first_byte_ms(cloud.http_port, host) for host in hosts[:ALONE]]
        wait_for("all sleep again", lambda: asleep(cloud) == SLEEPERS and awake(cloud) == 0, PATIENCE_SECONDS, 0.5)
        began = time.perf_counter()
        answers = asyncio.run(storm(cloud.http_port, hosts))
        took = time.perf_counter() - began
        lost = [answer[:300] for _, answer in answers if not answer.startswith(b"HTTP/1.1 200") or b"Hello" not in answer]
        if lost:
            raise AssertionError(f"{len(lost)} of {SLEEPERS} calls were not answered, the first with {lost[0]!r}")
    finally:
        cloud.remove()
        registry.stop()
    waits = sorted(wait for wait, _ in answers)
    each = took * 1000 / SLEEPERS
    return {
        "figure": took, "unit": f"s until the last of {SLEEPERS} is answered, 0 lost",
        "goal": f"0 lost, <= {HOLD_SECONDS} s", "pass": took <= HOLD_SECONDS,
        "peer": "a wake alone (median)", "ratio": each / statistics.median(alone), "runs": SLEEPERS,
        "spread": f"{each:.1f} ms each; a caller waits {statistics.median(waits) / 1000:.1f} s at the median; alone "
                  f"{statistics.median(alone):.1f} ms",
    }
