"""tram-engine beside llama-server: tokens a second at 1, 4, 8 and 16 streams, time to ready, memory.

The figure is the worst of the ratios, each divided by its goal: 1 or more when all are met.
"""

import itertools

from engines import Server, pairs

# Streams and the least ratio of tokens a second.
GOALS = {1: 1.0, 4: 1.1, 8: 1.1, 16: 1.2}
START_GOAL, MEMORY_GOAL = 1.0, 1.1
TOKENS = 96
PAIRS = 6
STARTS = 6


def run():
    numbers = itertools.count()
    prompt = lambda: f"Report number {next(numbers)}: the weather in the mountains was"
    servers = {peer: Server(peer) for peer in (False, True)}
    try:
        for server in servers.values():
            server.rate([prompt()], TOKENS)  # What is read from the disk is read.
        shares, said = [], []
        for streams, goal in GOALS.items():
            rate = lambda peer: servers[peer].rate([prompt() for _ in range(streams)], TOKENS)
            ratio, ours, theirs, _ = pairs(rate, PAIRS)
            shares.append(ratio / goal)
            said.append(f"{streams}: {ours:.0f} / {theirs:.0f} = {ratio:.2f}")
        memory = servers[False].resident_mib() / servers[True].resident_mib()
        said.append(f"memory {servers[False].resident_mib():.0f} MiB, ratio {memory:.2f}")
    finally:
        for server in servers.values():
            server.stop()

    def start(peer):
        server = Server(peer)
        server.stop()
        return server.seconds_to_ready

    started, ours, _, _ = pairs(start, STARTS)
    said.append(f"ready after {ours * 1000:.0f} ms, ratio {started:.2f}")
    shares += [MEMORY_GOAL / memory, START_GOAL / started]
    return {
        "figure": min(shares), "unit": "worst ratio to its goal; tokens/s at streams, " + "; ".join(said),
        "goal": ">= 1", "pass": min(shares) >= 1, "peer": "llama-server", "ratio": min(shares), "runs": PAIRS,
        "spread": ", ".join(f"{share:.2f}" for share in shares),
    }
