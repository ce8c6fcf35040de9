"""Streams of a model whose replica is killed in the midst: how many stay whole, and how long the reader waits.

Two replicas of SmolLM2 behind the edge. Answers are streamed at temperature 0, and the replica that writes one is killed at
a random token, by SIGKILL; another is started for the next. A pause is the longest time between two events of a stream that
was killed under. A stream is whole when its text is the one of an undisturbed stream and its tokens were counted once.
"""

import json
import os
import random
import statistics
import time
import urllib.request
import uuid

from alone import Edge
from engines import Server

KILLS = int(os.environ.get("TRAM_KILLS", 100))
TOKENS = 96
# Tokens between which the kill falls: some were written, and some are left.
FIRST, LAST = 4, TOKENS - 8
GOAL_WHOLE, GOAL_P99_MS = 1.0, 1000
SEED = 1


# What a small model is sure of: rounding differs between tokens that are written and tokens that are read.
ASK = {"prompt": "Count on: " + " ".join(f"{number}," for number in range(1, 17)), "max_tokens": TOKENS,
       "temperature": 0, "stream": True}


class Replica:
    """An engine that the edge knows as an instance."""

    def __init__(self):
        self.server = Server(False, threads=1)
        self.port = int(self.server.url.rsplit(":", 1)[1])
        self.instance_id, self.deployment_id = str(uuid.uuid4()), str(uuid.uuid4())

    def is_writing(self):
        return json.load(urllib.request.urlopen(self.server.url + "/v1/engine/state"))["batch"]["running"] > 0

    def kill(self):
        self.server.process.kill()
        self.server.process.wait()


def events(answer):
    """The data of each event as it comes."""
    for line in answer:
        if line.startswith(b"data: "):
            yield line.removeprefix(b"data: ").decode().strip()


def text(chunks):
    return "".join(choice["text"] for chunk in chunks for choice in chunk.get("choices", []))


def one(edge, at, alive):
    """The chunks of a stream whose replica dies after `at` events; none dies without. And the longest pause in ms."""
    answer = edge.post("/v1/completions", ASK)
    chunks, last, longest, killed = [], None, 0.0, False
    for number, data in enumerate(events(answer)):
        now = time.monotonic()
        # Only the pause after the kill counts: a busy machine makes others.
        if last is not None and killed:
            longest = max(longest, now - last)
        last = now
        chunks.append(data)
        if number == at:
            victim = next(replica for replica in alive if replica.is_writing())
            victim.kill()
            alive.remove(victim)
            killed, last = True, time.monotonic()
    return [json.loads(data) for data in chunks if data != "[DONE]"], chunks[-1] == "[DONE]", longest * 1000


def run():
    choose = random.Random(SEED)
    edge, alive = Edge(), [Replica() for _ in range(2)]
    try:
        edge.serve(alive)
        undisturbed = text(one(edge, None, alive)[0])
        whole, pauses = 0, []
        for _ in range(KILLS):
            chunks, done, pause = one(edge, choose.randint(FIRST, LAST), alive)
            counted = edge.records()[-1]["completion_tokens"] == TOKENS
            whole += done and counted and text(chunks) == undisturbed
            pauses.append(pause)
            alive.append(Replica())
            edge.serve(alive)
        counted = len(edge.records())
    finally:
        edge.stop()
        for replica in alive:
            replica.kill()
    pauses.sort()
    p99 = pauses[min(len(pauses) - 1, len(pauses) * 99 // 100)]
    return {
        "figure": whole / KILLS,
        "unit": f"of {KILLS} streams whose replica was killed are whole, with the text and the tokens of an undisturbed one; "
                f"pause p50 {statistics.median(pauses):.0f} ms, p99 {p99:.0f} ms",
        "goal": f"all whole, pause p99 <= {GOAL_P99_MS} ms",
        "pass": whole == KILLS and counted == KILLS + 1 and p99 <= GOAL_P99_MS,
        "peer": None, "ratio": None, "runs": KILLS,
        "spread": f"pauses {pauses[0]:.0f} to {pauses[-1]:.0f} ms",
    }
