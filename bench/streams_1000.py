"""A thousand streams of a model at once through the platform and through nginx: processor time, gaps, memory.

Each stream gets an event every 50 ms. What is added to a gap is how much later an event comes than it was written, at the
99th percentile, less the same without anybody in between. Memory is what the processes have more in the midst of the
streams than before the first of them, so that what they keep afterwards for the next ones counts once.
"""

import json
import statistics
import subprocess
import time

import gateways

STREAMS, TOKENS, ROUNDS = 1000, 100, 4
GOAL_CPU, GOAL_P99_MS, GOAL_KIB = 1.3, 1.0, 16
PATIENCE_SECONDS = 120


def streamed(bench, way, idle_kib):
    """What the streams say of themselves, with the processor time a million events took and the memory of a stream."""
    question = {**gateways.QUESTION, "stream": True, "max_tokens": TOKENS}
    file = bench.directory / "request"
    file.write_text(way.request(question))
    before = gateways.cpu_seconds(way.pids)
    client = subprocess.Popen(["taskset", "-c", "1", bench.streams, way.address, str(way.port), str(STREAMS),
                               str(TOKENS), file],
                              stdout=subprocess.PIPE, text=True)
    assert client.stdout.readline() == "begun\n", way.name
    # In the midst: half of the events are still to come.
    time.sleep(1)
    memory = gateways.resident_kib(way.pids) - idle_kib
    said = json.loads(client.communicate(timeout=PATIENCE_SECONDS)[0])
    assert said["whole"] == STREAMS, f"{way.name}: {said}"
    return {**said, "cpu": (gateways.cpu_seconds(way.pids) - before) / said["events"] * 1e6, "kib": memory / STREAMS}


def run():
    bench = gateways.Bench()
    try:
        direct = bench.direct()
        idle = {way.name: gateways.resident_kib(way.pids) for way in bench.ways}
        seen = {way.name: [] for way in [direct, *bench.ways]}
        for number in range(ROUNDS):
            ways = [direct, *bench.ways]
            for way in ways if number % 2 == 0 else reversed(ways):
                seen[way.name].append(streamed(bench, way, idle.get(way.name, 0)))
    finally:
        bench.stop()

    def median(name, what):
        return statistics.median(one[what] for one in seen[name])

    own = median("own URL", "cpu") / median("nginx", "cpu")
    ratios = [ours["cpu"] / peer["cpu"] for ours, peer in zip(seen["platform"], seen["nginx"], strict=True)]
    ratio = statistics.median(ratios)
    added = {name: (median(name, "p99_us") - median("direct", "p99_us")) / 1e3 for name in ("own URL", "platform", "nginx")}
    memory = {name: seen[name][0]["kib"] for name in ("own URL", "platform", "nginx")}
    return {
        "figure": ratio,
        "unit": f"of nginx's processor time for a million events, by the platform's address; by the model's own URL "
                f"{own:.2f}; added to a gap at p99 {added['platform']:.2f} and {added['own URL']:.2f} ms; "
                f"{memory['platform']:.1f} and {memory['own URL']:.1f} KiB a stream",
        "goal": f"<= {GOAL_CPU}, {GOAL_P99_MS:.0f} ms, {GOAL_KIB} KiB",
        "pass": ratio <= GOAL_CPU and added["platform"] <= GOAL_P99_MS and memory["platform"] <= GOAL_KIB,
        "peer": "nginx: " + f"{median('nginx', 'cpu'):.1f} s, {added['nginx']:.2f} ms, {memory['nginx']:.1f} KiB",
        "ratio": ratio, "runs": ROUNDS, "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }
