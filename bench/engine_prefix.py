"""Requests that begin alike, beside llama-server: the ratio of requests a second.

Eight assistants, each with a long instruction of its own, asked in turn by many: more conversations than slots, so that
what a slot happened to hold last does not suffice.
"""

import concurrent.futures
import itertools
import random
import time

from engines import Server, pairs

GOAL = 1.2
ASSISTANTS, INSTRUCTION_WORDS = 8, 400
REQUESTS, AT_ONCE, TOKENS = 64, 4, 8
SLOTS = 4
PAIRS = 4
SEED = 1


def run():
    numbers = itertools.count()

    def measure(peer):
        server = Server(peer, slots=SLOTS)
        choose = random.Random(SEED)
        instructions = [f"You are assistant {number}. " + f"Rule {number}: be kind and brief. " * (INSTRUCTION_WORDS // 7)
                        for number in range(ASSISTANTS)]
        prompts = [f"{choose.choice(instructions)}\nQuestion {next(numbers)}: what is" for _ in range(REQUESTS)]
        try:
            with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
                began = time.monotonic()
                list(pool.map(lambda prompt: server.complete(prompt, TOKENS), prompts))
                return REQUESTS / (time.monotonic() - began)
        finally:
            server.stop()

    ratio, ours, theirs, ratios = pairs(measure, PAIRS)
    return {
        "figure": ratio, "unit": f"ratio of requests a second, {ours:.1f} to {theirs:.1f}", "goal": f">= {GOAL}",
        "pass": ratio >= GOAL, "peer": "llama-server", "ratio": ratio, "runs": PAIRS,
        "spread": f"{min(ratios):.2f} to {max(ratios):.2f}",
    }
