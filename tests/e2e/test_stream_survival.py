"""Streams of models that outlive the replicas that write them, with real replicas that are killed."""

import concurrent.futures
import hashlib
import json
import random
import signal
import threading
import urllib.request
import uuid

import pytest

from alone import Edge
from cloud import wait_for
from engine import Engine

# What a small model is sure of: rounding differs between tokens that are written and tokens that are read.
COUNT = "Count on: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,"
TOKENS = 160
GREEDY = {"model": "smollm2", "temperature": 0, "stream": True}
KILLS = 4
SEED = 7


class Replica(Engine):
    """An engine that the edge knows as an instance."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.port = int(self.url.rsplit(":", 1)[1])
        self.instance_id, self.deployment_id = str(uuid.uuid4()), str(uuid.uuid4())

    def is_writing(self):
        return self.process.poll() is None and self.state()["batch"]["running"] > 0


@pytest.fixture
def edge():
    edge = Edge()
    yield edge
    edge.stop()


@pytest.fixture
def replicas():
    """Starts replicas; ends all at the end."""
    started = []

    def start(count=1, *arguments):
        new = [Replica(*arguments) for _ in range(count)]
        started.extend(new)
        for replica in new:
            replica.start()
        return new

    yield start
    for replica in started:
        replica.kill()


def events(answer):
    """The data of each event of a stream as it comes; fails on anything that is none."""
    for line in answer:
        line = line.decode().rstrip("\n")
        if line and not line.startswith(":"):
            assert line.startswith("data: "), line
            yield line.removeprefix("data: ")
        assert not line.startswith(": tram"), line


def completion(prompt=COUNT, tokens=TOKENS, **fields):
    return {**GREEDY, "prompt": prompt, "max_tokens": tokens, **fields}


def ask(edge, body, on_event=lambda number: None, path="/v1/completions"):
    """The chunks of a stream and its last words."""
    answer = edge.post(path, body)
    assert answer.status == 200, answer.read()
    said = []
    for number, data in enumerate(events(answer)):
        said.append(data)
        on_event(number)
    return [json.loads(data) for data in said if data != "[DONE]"], said[-1]


def text(chunks):
    return "".join(chunk["choices"][0].get("text") or chunk["choices"][0].get("delta", {}).get("content") or ""
                   for chunk in chunks if chunk.get("choices"))


def writing(replicas):
    """Who writes; after a death that may be nobody for a moment, though its last events are still read."""
    return wait_for("somebody writes", lambda: next((it for it in replicas if it.is_writing()), None))


def moments(tokens, kills):
    """Events at which to kill, the same in every run: in the first half, so that much is left to be written by then."""
    return random.Random(SEED).sample(range(5, tokens // 2), kills)


def killing(edge, replicas, alive, at):
    """Kills whoever writes at each of these events; another replica takes its place."""

    def kill(number):
        if number in at:
            victim = writing(alive)
            victim.kill_process()
            alive.remove(victim)
            alive.extend(replicas(1))
            edge.serve(alive)

    return kill


def test_an_answer_is_whole_however_often_its_replica_is_killed(edge, replicas):
    alive = replicas(2)
    edge.serve(alive)
    undisturbed, last = ask(edge, completion())
    assert last == "[DONE]"
    chunks, last = ask(edge, completion(), killing(edge, replicas, alive, moments(TOKENS, KILLS)))
    assert last == "[DONE]"
    assert text(chunks) == text(undisturbed)
    assert chunks[-1]["choices"][0]["finish_reason"] == undisturbed[-1]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in chunks}) == len({chunk["created"] for chunk in chunks}) == 1
    first, second = edge.records()
    assert first["completion_tokens"] == second["completion_tokens"] == TOKENS
    assert first["prompt_tokens"] == second["prompt_tokens"] > 0
    assert (second["outcome"], second["status"], second["endpoint"]) == ("complete", 200, "completions")


def test_a_seeded_chat_with_a_stop_and_usage_goes_on_as_it_would_have(edge, replicas):
    alive = replicas(2)
    edge.serve(alive)
    body = {**GREEDY, "messages": [{"role": "user", "content": "Count from 1 to 60, with commas."}], "max_tokens": 120,
            "temperature": 0.05, "seed": 3, "stop": ["39,"], "stream_options": {"include_usage": True}}
    undisturbed, last = ask(edge, body, path="/v1/chat/completions")
    assert last == "[DONE]"

    def kill(number):
        if number == 12:
            victim = writing(alive)
            victim.kill_process()
            alive.remove(victim)

    chunks, last = ask(edge, body, kill, path="/v1/chat/completions")
    assert last == "[DONE]" and len(alive) == 1
    assert text(chunks) == text(undisturbed)
    assert sum("role" in chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]) == 1
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert len(usages) == 1 and usages[0]["completion_tokens"] == undisturbed[-1]["usage"]["completion_tokens"]
    assert [record["completion_tokens"] for record in edge.records()] == 2 * [usages[0]["completion_tokens"]]


def test_what_the_client_reads_keeps_every_byte(edge, replicas):
    (replica,) = replicas(1)
    edge.serve([replica])
    body = completion(tokens=8, stream_options={"include_usage": True})
    shape = lambda data: [json.dumps({**json.loads(it), "id": "", "created": 0}) if it != "[DONE]" else it for it in data]
    through = list(events(edge.post("/v1/completions", body)))
    direct = list(events(Edge.post(replica, "/v1/completions", body)))
    # The second finds the prompt in the cache.
    without_cache = lambda data: [it.replace('"cached_tokens": 0', '"cached_tokens": N') for it in shape(data)][:-2]
    assert without_cache(through) == without_cache(direct)


def test_a_replica_that_is_stopped_in_order_hands_its_answers_over(edge, replicas):
    alive = replicas(2)
    edge.serve(alive)
    undisturbed, _ = ask(edge, completion())

    def stop(number):
        if number == 10:
            victim = writing(alive)
            alive.remove(victim)
            # Out of the table first, as the control plane does it; it has what it writes to its end.
            edge.serve(alive)
            victim.process.send_signal(signal.SIGTERM)

    chunks, last = ask(edge, completion(), stop)
    assert (text(chunks), last) == (text(undisturbed), "[DONE]")


def test_it_waits_for_a_replica_and_wakes_one_like_any_request(edge, replicas):
    alive = replicas(1)
    edge.serve(alive)
    undisturbed, _ = ask(edge, completion())

    def replace():
        # It sleeps, and wakes with a new instance.
        edge.serve([], state={"is": "sleeping"})
        edge.serve(replicas(1))

    def kill(number):
        if number == 10:
            alive[0].kill_process()
            threading.Thread(target=replace, daemon=True).start()

    chunks, last = ask(edge, completion(), kill)
    assert (text(chunks), last) == (text(undisturbed), "[DONE]")


def test_who_cannot_go_on_says_so(edge, replicas, tmp_path):
    alive = replicas(2)
    edge.serve(alive, hold_deadline_ms=2000)

    def kill(number):
        if number == 12:
            victim = writing(alive)
            victim.kill_process()
            alive.remove(victim)

    # Several answers to one question.
    chunks, _ = ask(edge, completion(n=2, tokens=60), kill)
    assert "of several answers" in chunks[-1]["error"]["message"] and chunks[-1]["error"]["code"] == "stream_broken"
    # Nobody is left.
    survivor = alive[0]

    def kill_the_last(number):
        if number == 12:
            survivor.kill_process()

    chunks, _ = ask(edge, completion(), kill_the_last)
    assert "no other came" in chunks[-1]["error"]["message"]
    outcomes = [(record["outcome"], record["completion_tokens"] >= 12) for record in edge.records()]
    assert outcomes == [("failed", True), ("failed", True)]
    # Another model has taken over.
    (first,) = replicas(1)
    other = tmp_path / "other.gguf"
    data = bytearray(open(first.process.args[3], "rb").read())
    data[-5000:] = bytes(5000)
    other.write_bytes(data)
    successor = Replica(model=other)
    try:
        successor.start()
        edge.serve([first])

        def replace(number):
            if number == 12:
                edge.serve([successor])
                first.kill_process()

        chunks, _ = ask(edge, completion(), replace)
        assert "serves another model" in chunks[-1]["error"]["message"]
    finally:
        successor.kill()


def test_a_question_that_was_not_answered_yet_is_asked_again(edge, replicas):
    alive = replicas(2)
    edge.serve(alive)
    answers = []
    body = {**completion(), "stream": False}

    def question():
        answers.append(json.load(edge.post("/v1/completions", body)))

    asking = threading.Thread(target=question)
    asking.start()
    victim = wait_for("somebody writes", lambda: next((it for it in alive if it.is_writing()), None))
    victim.kill_process()
    asking.join()
    assert answers[0]["usage"]["completion_tokens"] == TOKENS
    (record,) = edge.records()
    assert (record["completion_tokens"], record["outcome"]) == (TOKENS, "complete")
    # And one whose client leaves costs what was written for it.
    answer = edge.post("/v1/completions", completion(tokens=400))
    for number, _ in enumerate(events(answer)):
        if number == 20:
            break
    answer.close()
    left = wait_for("it is counted", lambda: next(iter(edge.records()[1:]), None))
    assert left["outcome"] == "client_left" and 20 <= left["completion_tokens"] < 400


MANY = {"max_tokens": 400, "temperature": 0, "stream": True}
SAID = [{"role": "user", "content": "Tell me a very long story about a river."}]


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/messages", {**MANY, "model": "smollm2", "messages": SAID}),
    ("/v1/chat/completions", {**MANY, "model": "smollm2", "messages": SAID, "n": 2}),
])
def test_who_leaves_pays_what_was_written_whatever_the_contract(edge, replicas, path, body):
    (replica,) = replicas(1)
    edge.serve([replica])
    answer = edge.post(path, body)
    assert answer.status == 200, answer.read()
    seen = 0
    for line in answer:
        seen += line.startswith(b"data:")
        if seen == 20:
            break
    answer.close()
    (left,) = wait_for("it is counted", edge.records)
    assert left["outcome"] == "client_left" and left["prompt_tokens"] > 0, left
    # Up to three events come before the first token's.
    assert left["completion_tokens"] >= 17, left


def test_nothing_said_twice_and_no_header_leads_past_the_accounts(edge, replicas):
    (replica,) = replicas(1)
    edge.serve([replica])
    body = json.dumps(completion(tokens=5))
    twice = body.replace('"stream": true', '"stream": false, "stream": true')
    assert twice != body
    answer = edge.post("/v1/completions", twice.encode())
    lines = answer.read().decode()
    assert lines.endswith("data: [DONE]\n\n") and ": tram" not in lines, lines
    answer = edge.post("/v1/completions", completion(tokens=5), {"content-encoding": "identity"})
    assert answer.read().decode().endswith("data: [DONE]\n\n")
    counted = [(record["outcome"], record["completion_tokens"]) for record in edge.records()]
    assert counted == 2 * [("complete", 5)]


def test_the_role_comes_with_what_another_needs_to_go_on(replicas):
    """Whoever has the one has the other, wherever the engine dies."""
    (replica,) = replicas(1)
    body = {**GREEDY, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    request = urllib.request.Request(
        f"{replica.url}/v1/chat/completions", json.dumps(body).encode(),
        {"content-type": "application/json", "x-tram-tell": "tokens"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        first = answer.read().decode().split("\n\n")[0].split("\n")
    assert first[0].startswith(': tram {"begin":') and first[1].startswith("data: "), first
    assert json.loads(first[1][6:])["choices"][0]["delta"]["role"] == "assistant"


def test_nobody_but_our_front_says_who_asks(edge, replicas):
    (replica,) = replicas(1)
    edge.serve([replica])
    tenant = str(uuid.uuid4())
    body = {**completion(tokens=1), "stream": False, "prompt": COUNT * 4}
    cached = lambda answer: json.load(answer)["usage"]["prompt_tokens_details"]["cached_tokens"]
    forged = {"x-tram-tenant": tenant, "x-tram-priority": "high"}
    assert cached(edge.post("/v1/completions", body)) == 0
    # The same address is the same tenant, whatever it says it is.
    assert cached(edge.post("/v1/completions", body, forged)) > 0
    unknown = edge.post("/v1/completions", body, {**forged, "x-tram-front": "guess"})
    assert (unknown.status, unknown.headers["x-tram-error"]) == (503, "unknown_front"), "a stranger is not believed"
    assert [record.get("tenant") for record in edge.records()] == 2 * [None]
    salt, secret = "00" * 16, "sesame"
    digest = hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()
    edge.link.close()
    edge.link = edge.connect()
    edge.ask({"hello": {"protocol": 1, "front": {"salt": salt, "sha256": digest}}}, "hello")
    proved = {**forged, "x-tram-front": secret}
    assert cached(edge.post("/v1/completions", body, proved)) == 0, "another tenant shares nothing"
    assert edge.records()[-1]["tenant"] == tenant


def test_a_front_that_is_not_introduced_yet_is_waited_for(edge, replicas):
    (replica,) = replicas(1)
    edge.serve([replica])
    tenant, salt, secret = str(uuid.uuid4()), "11" * 16, "late"
    headers = {"x-tram-tenant": tenant, "x-tram-front": secret}
    body = {**completion(tokens=1), "stream": False}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        early = pool.submit(edge.post, "/v1/completions", body, headers)
        # It has come and waits.
        wait_for("the edge has the question", lambda: edge.under_way() > 0)
        digest = hashlib.sha256(bytes.fromhex(salt) + secret.encode()).hexdigest()
        edge.link.close()
        edge.link = edge.connect()
        edge.ask({"hello": {"protocol": 1, "front": {"salt": salt, "sha256": digest}}}, "hello")
        assert early.result().status == 200
    assert edge.records()[-1]["tenant"] == tenant
