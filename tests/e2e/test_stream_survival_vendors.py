"""Streams in the words of Anthropic, Mistral and OpenAI's newer contract, whose replicas are killed: what the client reads is
what it would have read, event by event."""

import json

import pytest

from test_stream_survival import COUNT, edge, killing, moments, replicas, writing  # noqa: F401 - fixtures among them

KILLS = 3
# Fewer than the answers would have.
TOKENS = 100
# What a small model is sure of, as a question.
QUESTION = "Count from 1 to 60, with commas."
ASKED = {"model": "smollm2", "temperature": 0, "stream": True}
CONTRACTS = {
    "messages": ("/v1/messages", {**ASKED, "max_tokens": TOKENS, "messages": [{"role": "user", "content": QUESTION}]}),
    "responses": ("/v1/responses", {**ASKED, "max_output_tokens": TOKENS, "input": QUESTION, "store": False}),
    "fim_completions": ("/v1/fim/completions", {**ASKED, "max_tokens": TOKENS, "prompt": COUNT}),
}
# Those differ between two answers to the same question.
OWN = ("id", "item_id", "call_id", "created", "created_at")
# A call of a tool is not told before it is whole. The sentence can be no other, and takes its time.
SENTENCE = "The sum of two numbers is what is there when both are put together, and the order does not matter. " * 3
TOOL = {"name": "add", "description": "Adds two numbers.", "parameters": {
    "type": "object", "required": ["why", "a", "b"],
    "properties": {"why": {"type": "string", "enum": [SENTENCE]}, "a": {"type": "integer"}, "b": {"type": "integer"}},
}}


def ask(edge, path, body, on_event=lambda number: None):
    """The events of a stream: the name and the data of each."""
    answer = edge.post(path, body)
    assert answer.status == 200, answer.read()
    said, name, number = [], None, 0
    for line in answer:
        line = line.decode().rstrip("\n")
        assert not line.startswith(": tram"), line
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            said.append((name, None if data == "[DONE]" else json.loads(data)))
            name = None
            on_event(number)
            number += 1
        else:
            assert not line or line.startswith(":"), line
    return said


def alike(value, ids):
    """A copy without what two answers differ in, which is collected in `ids`."""
    if isinstance(value, dict):
        ids.update((name, it) for name, it in value.items() if name in OWN and it is not None)
        # How much of the prompt was in a cache is up to the replica.
        cached = ("cached_tokens", "input_tokens", "cache_read_input_tokens")
        return {name: alike(it, ids) for name, it in value.items() if name not in (*OWN, *cached)}
    if isinstance(value, (list, tuple)):
        return [alike(it, ids) for it in value]
    return value


@pytest.mark.parametrize("kind", CONTRACTS)
def test_every_event_comes_once_however_often_the_replica_is_killed(edge, replicas, kind):
    path, body = CONTRACTS[kind]
    alive = replicas(2)
    edge.serve(alive)
    undisturbed = ask(edge, path, body)
    disturbed = ask(edge, path, body, killing(edge, replicas, alive, moments(TOKENS, KILLS)))
    before, after = set(), set()
    assert alike(disturbed, after) == alike(undisturbed, before)
    assert len(after) == len(before), "one answer has one of each id"
    first, second = edge.records()
    assert (second["outcome"], second["status"], second["endpoint"]) == ("complete", 200, kind)
    assert second["completion_tokens"] == first["completion_tokens"] == TOKENS
    assert second["prompt_tokens"] == first["prompt_tokens"] > 0


def test_a_call_of_a_tool_goes_on_and_is_told_once(edge, replicas):
    alive = replicas(2)
    edge.serve(alive)
    body = {**ASKED, "max_output_tokens": 300, "input": "What is 2 and 3?", "store": False,
            "tools": [{"type": "function", **TOOL}], "tool_choice": "required"}
    undisturbed = ask(edge, "/v1/responses", body)

    def kill(number):
        # The second event comes before the first token.
        if number == 1:
            victim = writing(alive)
            victim.kill_process()
            alive.remove(victim)

    disturbed = ask(edge, "/v1/responses", body, kill)
    assert len(alive) == 1
    called = [data for name, data in disturbed if name == "response.function_call_arguments.done"]
    assert len(called) == 1 and set(json.loads(called[0]["arguments"])) == {"why", "a", "b"}
    assert [data["sequence_number"] for _, data in disturbed] == list(range(len(disturbed)))
    assert alike(disturbed, set()) == alike(undisturbed, set())


@pytest.mark.parametrize("kind", CONTRACTS)
def test_one_that_cannot_go_on_says_so_as_the_vendors_clients_read_it(edge, replicas, kind):
    path, body = CONTRACTS[kind]
    (only,) = replicas(1)
    edge.serve([only], hold_deadline_ms=1000)

    def kill(number):
        if number == 12:
            only.kill_process()

    *said, (name, last) = ask(edge, path, body, kill)
    error = last if kind == "responses" else last["error"]
    assert "The answer broke off" in error["message"] and "no other came" in error["message"]
    if kind == "messages":
        assert (name, last["type"], error["type"]) == ("error", "error", "api_error")
    elif kind == "responses":
        assert (name, last["type"], last["code"]) == ("error", "error", "stream_broken")
        assert last["sequence_number"] == said[-1][1]["sequence_number"] + 1
    else:
        assert (name, error["code"]) == (None, "stream_broken")
    (record,) = edge.records()
    assert record["outcome"] == "failed" and record["completion_tokens"] >= 8
