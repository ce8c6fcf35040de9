"""The time to the first token of short requests while long prompts arrive, beside llama-server: the ratio of p99."""

import itertools
import statistics
import threading

from engines import Server, pairs

GOAL = 0.5
# Together longer than the batch of either: there always is a long prompt to be read.
LONG_PROMPTS, LONG_WORDS = 2, 1500
SHORT_REQUESTS = 40
PAIRS = 4


def run():
    numbers = itertools.count()

    def measure(peer):
        server = Server(peer, slots=8)
        done = threading.Event()

        def read_long():
            while not done.is_set():
                server.complete(f"Text {next(numbers)}: " + "the river runs down to the sea and " * (LONG_WORDS // 8), 1)

        readers = [threading.Thread(target=read_long) for _ in range(LONG_PROMPTS)]
        try:
            for reader in readers:
                reader.start()
            firsts = [server.first_token(f"Question {next(numbers)}: what is a") for _ in range(SHORT_REQUESTS)]
        finally:
            done.set()
            for reader in readers:
                reader.join()
            server.stop()
        return statistics.quantiles(firsts, n=100)[98]

    ratio, ours, theirs, ratios = pairs(measure, PAIRS)
    return {
        "figure": ratio, "unit": f"ratio of the p99, {ours * 1000:.0f} ms to {theirs * 1000:.0f} ms", "goal": f"<= {GOAL}",
        "pass": ratio <= GOAL, "peer": "llama-server", "ratio": ratio, "runs": PAIRS,
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }
