"""A model that sleeps: from the question to the first token, in deep sleep beside llama-server's own start, and in light
sleep beside a model that is awake.

Deep: `tram` finds nothing running, starts an instance, loads the weights and answers; llama-server is started by hand with
the same weights, threads and context, and is asked as soon as it is ready, without the answer that it gives itself by default to warm up. Both have the weights in the page cache. The
order is ABBA. Light: the instance is frozen, and its twin never sleeps. The figure is the worse of both, each in shares of
its goal.
"""

import http.client
import json
import statistics
import time

from cloud import Cloud, wait_for
from engines import WEIGHTS, Server

DEEP_PAIRS, LIGHT_ROUNDS = 8, 40
DEEP_GOAL, LIGHT_GOAL_MS = 1.2, 20
# As many processors as the peer has threads, and no fewer than the machine has: a quota would measure itself.
INSTANCE, THREADS = "medium", 2
# Of the sleepers: one that only sleeps deeply, and one that is frozen first and stays so.
SECONDS, NEVER = 1, 3600
QUESTION = "The capital of France is"


def first_token_ms(cloud, host, name):
    """From the connection to the first token of a stream, which is read to its end."""
    body = {"model": name, "prompt": QUESTION, "max_tokens": 1, "temperature": 0, "stream": True}
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", cloud.http_port, timeout=120)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Host": host, "Content-Type": "application/json"})
        answer = connection.getresponse()
        line = answer.readline()
        taken = (time.perf_counter() - began) * 1000
        rest = answer.read()
    finally:
        connection.close()
    if answer.status != 200 or not line.startswith(b"data: ") or b"[DONE]" not in rest:
        raise AssertionError(f"{name} answered {answer.status} {line!r} {rest[:200]!r}")
    return taken


def deploy(cloud, name, scaling):
    """A service of the model, with its own domain and ready."""
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": INSTANCE}],
        "model": {"source": "smollm2"}, "scalings": [scaling],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    if status != 200:
        raise AssertionError(f"{name} was not accepted: {reply}")
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    return cloud.host(name), reply["service"]


def sleeping(**delay):
    return {"min": 0, "max": 1, "targets": [{"sleep_idle_delay": delay}]}


def peer_ms():
    """From llama-server's start to its first token."""
    began = time.perf_counter()
    server = Server(True, slots=1, threads=THREADS, more=["--no-warmup"])
    try:
        server.first_token(QUESTION)
        return (time.perf_counter() - began) * 1000
    finally:
        server.stop()


def deep_pairs(cloud):
    host, service = deploy(cloud, "deep", sleeping(deep_sleep_value=SECONDS))

    def ours():
        wait_for("nothing runs", lambda: not cloud.instances(service["id"], "HEALTHY", "STARTING", "STOPPING", "ALLOCATING"))
        return first_token_ms(cloud, host, "deep")

    mine, theirs = [], []
    for at in range(DEEP_PAIRS):
        for peer in (False, True) if at % 2 == 0 else (True, False):
            (theirs if peer else mine).append(peer_ms() if peer else ours())
    return mine, theirs


def light_pairs(cloud):
    host, service = deploy(cloud, "light", sleeping(light_sleep_value=SECONDS, deep_sleep_value=NEVER))
    twin, _ = deploy(cloud, "awake", {"min": 1, "max": 1})
    asleep, awake = [], []
    for _ in range(LIGHT_ROUNDS):
        wait_for("the service is frozen", lambda: cloud.instances(service["id"], "SLEEPING"))
        asleep.append(first_token_ms(cloud, host, "light"))
        awake.append(first_token_ms(cloud, twin, "awake"))
    return asleep, awake


def run():
    cloud = Cloud().start()
    try:
        cloud.tram("models", "import", "--data-dir", cloud.data, "smollm2", WEIGHTS)
        mine, theirs = deep_pairs(cloud)
        asleep, awake = light_pairs(cloud)
    finally:
        cloud.remove()
    median = statistics.median
    deep = median(one / other for one, other in zip(mine, theirs))
    light = median(asleep) - median(awake)
    figure = max(deep / DEEP_GOAL, light / LIGHT_GOAL_MS)
    return {
        "figure": figure, "goal": "<= 1", "pass": figure <= 1,
        "unit": f"the worse share of: {DEEP_GOAL} times llama-server's start to its first token, {LIGHT_GOAL_MS} ms above awake",
        "peer": "llama-server's own start", "ratio": deep, "runs": DEEP_PAIRS + LIGHT_ROUNDS,
        "spread": f"from deep sleep {min(mine):.0f} to {max(mine):.0f} ms, median {median(mine):.0f}, llama-server "
                  f"{median(theirs):.0f}; from light sleep {light:.1f} ms above awake, median {median(asleep):.1f}",
    }
