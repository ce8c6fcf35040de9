"""One tenant with hundreds of streams beside one who asks now and then: how long the second waits for its first token.

In each round it asks alone, then in the midst of the crowd; what the crowd asks ends with the round. What is promised is
twice its time alone and one step of the engine, which is under way when it comes; a step is the longest gap between two
tokens of the crowd at its 99th percentile.
"""

import json
import statistics
import threading
import time
import urllib.request

from engines import PATIENCE_SECONDS, Server

CROWD, QUESTIONS, ROUNDS = 200, 20, 5
# Enough that the crowd is still there when the last question of a round was asked.
CROWD_TOKENS = 4000
PAUSE_SECONDS = 0.2
TIMES = 2


def p99(values):
    return sorted(values)[max(int(len(values) * 0.99) - 1, 0)]


def ask(server, tenant, prompt, tokens):
    """A stream of a tenant."""
    body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json", "X-Tram-Tenant": tenant}
    request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=PATIENCE_SECONDS)


def first_token(server, prompt):
    began = time.monotonic()
    with ask(server, "person", prompt, 1) as answer:
        answer.readline()
        taken = time.monotonic() - began
        answer.read()
    return taken


def state(server):
    return json.load(urllib.request.urlopen(server.url + "/v1/engine/state", timeout=PATIENCE_SECONDS))


class Crowd:
    """Streams of one tenant, all at once, and the gaps between the tokens that those in the batch get."""

    def __init__(self, server):
        self.server, self.gaps, self.over = server, [], threading.Event()
        self.threads = [threading.Thread(target=self.one, args=(number,), daemon=True) for number in range(CROWD)]

    def one(self, number):
        try:
            with ask(self.server, "crowd", f"Story {number}: once upon a time", CROWD_TOKENS) as answer:
                last = None
                while not self.over.is_set() and answer.readline():
                    answer.readline()
                    now = time.monotonic()
                    if last is not None:
                        self.gaps.append(now - last)
                    last = now
        except OSError:
            # Its turn did not come before the round was over.
            pass

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        here = lambda now: now["batch"]["running"] >= now["batch"]["slots"] and now["queue"]["waiting"] >= CROWD - 2 * now["batch"]["slots"]
        while not here(state(self.server)):
            assert time.monotonic() < deadline, f"the crowd did not come: {state(self.server)}"
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.over.set()


def run():
    alone, beside, gaps = [], [], []
    for at in range(ROUNDS):
        server = Server(False)
        try:
            prompt = lambda: f"Question {at} {len(alone) + len(beside)}: what is the capital of France? It is"
            first_token(server, "warm")
            for _ in range(QUESTIONS):
                alone.append(first_token(server, prompt()))
            with Crowd(server) as crowd:
                for _ in range(QUESTIONS):
                    beside.append(first_token(server, prompt()))
                    time.sleep(PAUSE_SECONDS)
                # The promise is about a crowd that is there all the time.
                assert state(server)["queue"]["waiting"] > 0, "the crowd was done too soon"
                gaps += crowd.gaps
        finally:
            server.stop()
    step = p99(gaps)
    bound = TIMES * p99(alone) + step
    figure = p99(beside) / bound
    milliseconds = lambda seconds: f"{seconds * 1000:.0f} ms"
    return {
        "figure": figure, "goal": "<= 1", "pass": figure <= 1,
        "unit": f"p99 of the time to the first token beside {CROWD} streams of another tenant, to {TIMES} times its p99 alone and a step",
        "peer": "the same engine without the crowd (median)",
        "ratio": statistics.median(beside) / statistics.median(alone), "runs": len(beside),
        "spread": f"beside {milliseconds(min(beside))} to {milliseconds(max(beside))}, p99 {milliseconds(p99(beside))}; alone "
                  f"p99 {milliseconds(p99(alone))}; a step {milliseconds(step)}",
    }
