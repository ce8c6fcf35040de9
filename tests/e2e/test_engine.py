"""tram-engine with OpenAI's own SDK, unmodified but for its base URL, and with what bad clients send."""

import asyncio
import json
import math
import re
import socket
import threading
import urllib.request

import openai
import pytest

from cloud import DEADLINE_SECONDS
from engine import WEIGHTS, Engine

ASK = [{"role": "user", "content": "Write one sentence about the sea."}]
GREEDY = {"model": "smollm2", "temperature": 0}


@pytest.fixture(scope="module")
def engine():
    engine = Engine().start()
    yield engine
    engine.kill()


@pytest.fixture(scope="module")
def client(engine):
    return openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


def test_a_chat_whole_and_streamed_is_the_same(client):
    whole = client.chat.completions.create(messages=ASK, max_tokens=24, **GREEDY)
    choice = whole.choices[0]
    assert choice.message.content.strip() and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.usage.completion_tokens <= 24
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(messages=ASK, max_tokens=24, stream=True, stream_options=options, **GREEDY)
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens > 0, "the prompt was there already"


def test_the_asynchronous_client_streams_many_at_once(engine):
    async def ask(client, number):
        stream = await client.completions.create(
            model="smollm2", prompt=f"Number {number} is", max_tokens=12, seed=number, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(24)))

    answers = asyncio.run(all_of_them())
    assert all(answers) and len(set(answers)) > 12


def test_a_seed_gives_the_same_again_alone_or_in_company(client):
    ask = lambda seed: client.completions.create(model="smollm2", prompt="My cat", max_tokens=12, seed=seed)
    first = ask(7).choices[0].text
    assert ask(7).choices[0].text == first
    assert any(ask(seed).choices[0].text != first for seed in (8, 9, 10))


def test_a_prediction_changes_no_answer(engine, client):
    text = "The quick brown fox jumps over the lazy dog and runs into the forest."
    ask = dict(messages=[{"role": "user", "content": f"Repeat this three times: {text}"}], max_tokens=40, **GREEDY)
    plain = client.chat.completions.create(**ask).choices[0].message.content
    prediction = {"type": "content", "content": plain}
    foretold = client.chat.completions.create(prediction=prediction, **ask).choices[0].message.content
    assert foretold == plain
    metrics = urllib.request.urlopen(engine.url + "/metrics").read().decode()
    count = lambda name: float(re.search(rf"^tram_engine:spec_decode_num_{name}_tokens_total{{.*}} (.*)$", metrics, re.M)[1])
    assert 0 < count("accepted") <= count("draft")
    status, body = engine.post("/v1/chat/completions", {"messages": ASK, "prediction": {"type": "wizardry"}})
    assert (status, body["error"]["param"]) == (400, "prediction")


def test_several_answers_of_one_prompt(client):
    answer = client.chat.completions.create(model="smollm2", messages=ASK, n=3, seed=5, max_tokens=10)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    stream = client.chat.completions.create(model="smollm2", messages=ASK, n=3, seed=5, max_tokens=10, stream=True)
    streamed = ["", "", ""]
    for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_sequences_end_an_answer_and_are_not_shown(client):
    prompt = "1, 2, 3, 4, 5, 6, 7,"
    plain = client.completions.create(prompt=prompt, max_tokens=20, **GREEDY).choices[0].text
    stop = plain[4:8]
    cut = client.completions.create(prompt=prompt, max_tokens=20, stop=[stop], **GREEDY).choices[0]
    assert cut.finish_reason == "stop"
    assert cut.text == plain[: plain.find(stop)]


def test_log_probabilities(client):
    answer = client.chat.completions.create(messages=ASK, max_tokens=6, logprobs=True, top_logprobs=3, **GREEDY)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens).startswith(answer.choices[0].message.content)
    for token in tokens:
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"
        assert len(token.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.001
    plain = client.completions.create(prompt="Hello", max_tokens=4, logprobs=2, **GREEDY).choices[0]
    assert "".join(plain.logprobs.tokens) == plain.text
    assert plain.logprobs.text_offset[0] == 0


def test_an_answer_of_a_schema(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model="smollm2", messages=ASK, seed=seed, max_tokens=80, response_format=form
        )
        person = json.loads(answer.choices[0].message.content)
        assert set(person) == {"name", "age"} and isinstance(person["age"], int)


def test_a_tool_is_called(client):
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    ask = dict(messages=[{"role": "user", "content": "How is the weather in Paris?"}], tools=[tool], max_tokens=60)
    answer = client.chat.completions.create(tool_choice="required", **ask, **GREEDY)
    call = answer.choices[0].message.tool_calls[0]
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather" and "city" in json.loads(call.function.arguments)
    chunks = client.chat.completions.create(tool_choice="required", stream=True, **ask, **GREEDY)
    calls = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices]
    streamed = [call for call in calls if call][0][0]
    assert streamed.function.arguments == call.function.arguments
    answered = ask["messages"] + [
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 degrees"},
    ]
    assert client.chat.completions.create(messages=answered, max_tokens=8, **GREEDY).choices[0].message.content


def test_the_model_s_list(client):
    assert [model.id for model in client.models.list()] == ["smollm2"]
    assert client.models.retrieve("smollm2").id == "smollm2"
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="other", messages=ASK)
    assert raised.value.code == "model_not_found"


@pytest.mark.parametrize(
    "change, field",
    [
        ({"n": 10**9}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"wizardry": 1}, "wizardry"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wizard"}}}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": f"f{at}"}} for at in range(10_000)]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_wrong_fields_are_named(engine, change, field):
    status, body = engine.post("/v1/chat/completions", {"messages": ASK, "max_tokens": 1} | change)
    assert (status, body["error"]["param"]) == (400, field), body
    assert body["error"]["type"] == "invalid_request_error"


def test_bodies_that_are_none(engine):
    assert engine.post("/v1/chat/completions", b'{"messages": ')[0] == 400
    assert engine.post("/v1/chat/completions", b'{"messages": "\xff\xfe"}')[0] == 400
    assert engine.post("/v1/chat/completions", b"[]")[0] == 400
    assert engine.post("/v1/nothing", {})[0] == 404
    assert engine.status("/v1/completions") == 405
    with socket.create_connection(("127.0.0.1", int(engine.url.rsplit(":", 1)[1]))) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n")
        connection.sendall(b'{"prompt": "')
        sent = 0
        try:
            while sent < 10 << 20:
                sent += connection.send(b"x" * 65536)
        except OSError:
            pass  # It stopped to listen, as it may.
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_prompt_longer_than_the_context_is_refused_in_openai_s_words(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="smollm2", prompt="word " * 9000, max_tokens=1)
    assert raised.value.code == "context_length_exceeded"
    assert "maximum context length is 8192 tokens," in raised.value.message


def test_answers_that_do_not_fit_together_take_turns():
    engine_with_little = Engine("--context-length", "128", "--parallel", "8").start()
    try:
        prompt = " one" * 120
        status, body = engine_with_little.post("/v1/completions", {"prompt": prompt, "n": 8, "ignore_eos": True})
        assert status == 200, body
        assert len(body["choices"]) == 8
        assert {choice["finish_reason"] for choice in body["choices"]} == {"length"}
        assert body["usage"]["completion_tokens"] == 8 * (128 - body["usage"]["prompt_tokens"])
    finally:
        engine_with_little.kill()


def test_a_client_that_leaves_costs_nothing_more(engine):
    body = json.dumps({"prompt": "Once", "max_tokens": 4000, "stream": True, "ignore_eos": True}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    port = int(engine.url.rsplit(":", 1)[1])
    for half in (False, True):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.settimeout(DEADLINE_SECONDS)
            connection.sendall(request)
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
            engine.wait_for(lambda state: state["batch"]["running"] == 1, "it is answered")
            if half:
                connection.shutdown(socket.SHUT_WR)
                engine.wait_for(lambda state: state["batch"]["running"] == 0, "who hangs up is not answered")
        engine.wait_for(lambda state: state["batch"]["running"] == 0, "nobody is answered")


def test_a_person_is_answered_beside_a_tenant_with_many():
    engine = Engine("--parallel", "4", "--queue", "40").start()
    try:
        crowd = {"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True}
        refused = []

        def ask():
            try:
                status, body = engine.post("/v1/completions", crowd, {"X-Tram-Tenant": "crowd"})
                if status != 200:
                    refused.append((status, body["error"]["code"]))
            except OSError:
                pass  # The engine was killed before it was this one's turn.

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(60)]
        for thread in threads:
            thread.start()
        engine.wait_for(lambda state: state["queue"]["waiting"] >= 36, "the queue fills")
        person = {"X-Tram-Tenant": "person"}
        answer = {"prompt": "The sky is", "max_tokens": 2}
        engine.wait_for(lambda _: len(refused) >= 10, "the queue is bounded")
        assert set(refused) == {(429, "rate_limit_exceeded")}
        # The crowd has filled the queue and the batch, and neither keeps another tenant waiting.
        status, body = engine.post("/v1/completions", answer, person)
        assert status == 200 and body["choices"][0]["text"], body
        assert engine.state()["queue"]["waiting"] >= 36, "the crowd still waits"
    finally:
        engine.kill()


def test_what_runs_is_finished_at_the_end():
    engine = Engine().start()
    client = openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0)
    stream = client.completions.create(
        model="smollm2", prompt="Once", max_tokens=30, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    threading.Timer(0, engine.process.terminate).start()
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "length"
    assert engine.ended() == 0
    engine.kill()


def test_embeddings_are_near_when_texts_are(client):
    """SmolLM2 was not made for it, but what its vectors say of texts that are alike is enough to see that they are its."""
    engine = Engine("--embeddings").start()
    try:
        embeddings = openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0).embeddings
        texts = ["The cat sleeps on the sofa.", "A cat is asleep on the couch.", "Interest rates rose by 2.5 percent."]
        answer = embeddings.create(model="smollm2", input=texts)
        vectors = [entry.embedding for entry in answer.data]
        near = lambda a, b: sum(x * y for x, y in zip(a, b))
        assert [entry.index for entry in answer.data] == [0, 1, 2]
        assert all(math.isclose(near(vector, vector), 1, abs_tol=1e-3) for vector in vectors)
        assert near(vectors[0], vectors[1]) > near(vectors[0], vectors[2])
        assert answer.usage.prompt_tokens > 20
        floats = embeddings.create(model="smollm2", input=texts[1], encoding_format="float").data[0].embedding
        assert near(floats, vectors[1]) > 0.999, "alone or in company, as floats or as bytes"
        many = embeddings.create(model="smollm2", input=[f"Text {number}" for number in range(70)])
        assert len(many.data) == 70
        for wrong in ({"input": []}, {"input": ""}, {"input": "word " * 5000}, {"input": "x", "dimensions": 7}):
            assert engine.post("/v1/embeddings", wrong)[0] == 400, wrong
        assert engine.post("/v1/chat/completions", {"messages": ASK})[0] == 400
    finally:
        engine.kill()
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model="smollm2", input="x")


@pytest.mark.parametrize(
    "content, code, words",
    [
        (None, 3, "cannot read the model file"),
        (b"<html>not found</html>", 4, "it does not begin with `GGUF`"),
        (b"GGUF" + b"\xff" * 64, 4, "damaged"),
        (WEIGHTS, 4, "damaged"),
    ],
)
def test_what_is_wrong_with_a_model_file_is_said(tmp_path, content, code, words):
    path = tmp_path / "model.gguf"
    if content is WEIGHTS:
        path.write_bytes(WEIGHTS.read_bytes()[: 50 << 20])
    elif content is not None:
        path.write_bytes(content)
    engine = Engine(model=path)
    assert engine.ended() == code, engine.said()
    assert words in engine.said().splitlines()[-1]
    engine.kill()
