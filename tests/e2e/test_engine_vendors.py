"""tram-engine with the SDKs of Anthropic, OpenAI (responses) and Mistral, unmodified but for their base URL."""

import asyncio
import json
import struct

import anthropic
import mistralai.client
import openai
import pytest

from cloud import DEADLINE_SECONDS
from engine import WEIGHTS, Engine

USER = [{"role": "user", "content": "Write one sentence about the sea."}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine():
    engine = Engine().start()
    yield engine
    engine.kill()


@pytest.fixture(scope="module")
def claude(engine):
    return anthropic.Anthropic(base_url=engine.url, api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def gpt(engine):
    return openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


def message(client, messages=USER, *, max_tokens=16, **more):
    """Greedy: so that the same question has the same answer."""
    body = {"temperature": 0} | more.pop("extra_body", {})
    return client.messages.create(model="smollm2", messages=messages, max_tokens=max_tokens, extra_body=body, **more)


# Anthropic


def test_a_message_is_what_a_chat_completion_is(claude, gpt):
    answer = message(claude, system="You are terse.", max_tokens=24)
    assert (answer.role, answer.type, answer.model) == ("assistant", "message", "smollm2")
    assert answer.stop_reason in ("end_turn", "max_tokens")
    told = [{"role": "system", "content": "You are terse."}, *USER]
    chat = gpt.chat.completions.create(model="smollm2", messages=told, max_tokens=24, temperature=0)
    assert answer.content[0].text == chat.choices[0].message.content
    usage = answer.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == chat.usage.prompt_tokens
    assert usage.output_tokens == chat.usage.completion_tokens
    assert message(claude, system="You are terse.").usage.cache_read_input_tokens > 0, "it was there already"


def test_the_events_of_a_message(claude):
    whole = message(claude)
    with claude.messages.stream(
        model="smollm2", messages=USER, max_tokens=16, extra_body={"temperature": 0}
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop" and "message_delta" in kinds
    assert kinds.index("content_block_start") < kinds.index("content_block_delta") < kinds.index("content_block_stop")
    raw = message(claude, stream=True)
    assert [event.type for event in raw].count("message_start") == 1


def test_anthropics_asynchronous_client(engine, claude):
    async def ask():
        async with anthropic.AsyncAnthropic(base_url=engine.url, api_key="none", max_retries=0) as client:
            create = lambda number: client.messages.create(
                model="smollm2", messages=[{"role": "user", "content": f"Say {number}."}], max_tokens=6
            )
            answers = await asyncio.gather(*(create(number) for number in range(8)))
            async with client.messages.stream(
                model="smollm2", messages=USER, max_tokens=16, extra_body={"temperature": 0}
            ) as stream:
                text = "".join([text async for text in stream.text_stream])
            return answers, text

    answers, text = asyncio.run(ask())
    assert all(answer.content[0].text for answer in answers)
    assert text == message(claude).content[0].text


def test_a_tool_is_used_and_its_result_read(claude):
    tools = [{"name": "weather", "description": "The weather of a city", "input_schema": CITY}]
    ask = [{"role": "user", "content": "How is the weather in Paris?"}]
    answer = message(claude, ask, tools=tools, tool_choice={"type": "any"}, max_tokens=60)
    use = answer.content[0]
    assert (answer.stop_reason, use.type, use.name) == ("tool_use", "tool_use", "weather")
    assert use.id.startswith("toolu_") and isinstance(use.input["city"], str)
    with claude.messages.stream(
        model="smollm2", messages=ask, tools=tools, tool_choice={"type": "tool", "name": "weather"}, max_tokens=60,
        extra_body={"temperature": 0},
    ) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == use.input and streamed.stop_reason == "tool_use"
    ask += [
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny, 21 degrees"}]},
    ]
    assert message(claude, ask, tools=tools, tool_choice={"type": "none"}).content[0].text
    few, many = (claude.messages.count_tokens(model="smollm2", messages=some, tools=tools).input_tokens for some in (ask[:1], ask))
    assert few < many, "the call and its result are told to the model"


def test_an_answer_goes_on_where_the_client_began_it(claude, gpt):
    begun = [*USER, {"role": "assistant", "content": "The sea is"}]
    answer = message(claude, begun)
    # Mistral's word for it, on the other contract, which says the beginning again.
    prefixed = gpt.chat.completions.create(
        model="smollm2", messages=[USER[0], begun[1] | {"prefix": True}], max_tokens=16, temperature=0
    )
    assert "The sea is" + answer.content[0].text == prefixed.choices[0].message.content
    assert not answer.content[0].text.startswith("The sea is")


def test_the_stop_sequence_that_was_met_is_named(claude):
    text = message(claude).content[0].text
    stop = text[8:12]
    answer = message(claude, stop_sequences=["never said", stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert answer.content[0].text == text[: text.find(stop)]


def test_anthropics_schema_of_an_answer(claude):
    config = {"format": {"type": "json_schema", "schema": CITY}}
    answer = message(claude, output_config=config, max_tokens=40)
    assert set(json.loads(answer.content[0].text)) == {"city"}


def test_tokens_are_counted_as_they_are_billed(claude):
    counted = claude.messages.count_tokens(model="smollm2", messages=USER, system="Be brief.").input_tokens
    usage = message(claude, system="Be brief.").usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


@pytest.mark.parametrize(
    "change, words",
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": []}, "'messages' has to have from 1"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 'first message must use the "user" role'),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages.0.content.0"),
        ({"messages": [*USER, {"role": "assistant", "content": "x "}]}, "trailing whitespace"),
        ({"temperature": 1.5}, "'temperature'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "'thinking.type'"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"container": "x"}, "container"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": "x", "input_schema": {}, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tool_choice": {"type": "any"}}, "'tool_choice'"),
        ({"wizardry": 1}, "wizardry"),
    ],
)
def test_anthropics_refusals_name_the_field(engine, change, words):
    status, body = engine.post("/v1/messages", {"messages": USER, "max_tokens": 1} | change)
    assert (status, body["type"], body["error"]["type"]) == (400, "error", "invalid_request_error"), body
    assert words in body["error"]["message"], body


def test_anthropics_sdk_knows_the_refusals(claude):
    with pytest.raises(anthropic.NotFoundError) as raised:
        claude.messages.create(model="other", messages=USER, max_tokens=1)
    assert raised.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError):
        message(claude, [{"role": "user", "content": "word " * 9000}])


# OpenAI's responses


def test_a_response_is_what_a_chat_completion_is(gpt):
    ask = dict(model="smollm2", input="Write one sentence about the sea.", instructions="You are terse.", temperature=0)
    answer = gpt.responses.create(max_output_tokens=24, metadata={"a": "b"}, **ask)
    told = [{"role": "system", "content": "You are terse."}, *USER]
    chat = gpt.chat.completions.create(model="smollm2", messages=told, max_tokens=24, temperature=0)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert (answer.store, answer.metadata, answer.instructions) == (False, {"a": "b"}, "You are terse.")
    short = gpt.responses.create(max_output_tokens=2, **ask)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_the_events_of_a_response(gpt):
    ask = dict(model="smollm2", input=USER, max_output_tokens=16, temperature=0)
    whole = gpt.responses.create(**ask)
    with gpt.responses.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_response() if whole.status == "completed" else events[-1].response
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[1].type) == ("response.created", "response.in_progress")
    assert events[-1].type == f"response.{whole.status}"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == final.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_the_asynchronous_client_of_responses(engine, gpt):
    async def ask():
        async with openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0) as client:
            stream = await client.responses.create(
                model="smollm2", input=USER, max_output_tokens=8, temperature=0, stream=True
            )
            return [event async for event in stream]

    events = asyncio.run(ask())
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == gpt.responses.create(model="smollm2", input=USER, max_output_tokens=8, temperature=0).output_text


def test_a_function_is_called_and_its_output_read(gpt):
    tools = [{"type": "function", "name": "weather", "description": "Weather", "parameters": CITY, "strict": True}]
    items = [{"role": "user", "content": "How is the weather in Paris?"}]
    ask = dict(model="smollm2", tools=tools, temperature=0, max_output_tokens=60)
    answer = gpt.responses.create(input=items, tool_choice="required", **ask)
    call = answer.output[0]
    assert (call.type, call.name) == ("function_call", "weather") and "city" in json.loads(call.arguments)
    named = {"type": "function", "name": "weather"}
    events = list(gpt.responses.create(input=items, tool_choice=named, stream=True, **ask))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]
    assert events[-1].response.output[0].arguments == call.arguments
    items += answer.output + [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}]
    assert gpt.responses.create(input=items, tool_choice="none", **ask).output_text


def test_a_response_of_a_schema(gpt):
    form = {"format": {"type": "json_schema", "name": "place", "schema": CITY, "strict": True}}
    answer = gpt.responses.create(model="smollm2", input=USER, text=form, max_output_tokens=40)
    assert set(json.loads(answer.output_text)) == {"city"}


@pytest.mark.parametrize(
    "change, field",
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": None}, "input"),
        ({"wizardry": 1}, "wizardry"),
    ],
)
def test_what_responses_cannot_do_is_refused_by_name(engine, change, field):
    status, body = engine.post("/v1/responses", {"input": "x", "max_output_tokens": 1} | change)
    assert (status, body["error"]["param"]) == (400, field), body


# Mistral


@pytest.fixture(scope="module")
def between(tmp_path_factory):
    """SmolLM2 with its file changed so that it names tokens for filling in: 4, 5 and 6, which its vocabulary has for other
    purposes. What it writes is no better for it; what it is asked can be told exactly."""
    path = tmp_path_factory.mktemp("fim") / "model.gguf"
    content = WEIGHTS.read_bytes()
    magic, version, tensors, entries = struct.unpack_from("<IIQQ", content)
    text = lambda value: struct.pack("<Q", len(value)) + value
    number = lambda name, value: text(b"tokenizer.ggml." + name) + struct.pack("<II", 4, value)
    added = number(b"fim_pre_token_id", 4) + number(b"fim_suf_token_id", 5) + number(b"fim_mid_token_id", 6)
    # What follows keeps its alignment.
    filler = text(b"filler") + struct.pack("<I", 8) + struct.pack("<Q", 0)
    pad = -(len(added) + len(filler)) % 32
    added += text(b"filler") + struct.pack("<I", 8) + text(b"x" * pad)
    path.write_bytes(struct.pack("<IIQQ", magic, version, tensors, entries + 4) + added + content[24:])
    engine = Engine(model=path).start()
    yield engine
    engine.kill()


def test_the_text_between_a_prompt_and_a_suffix(between):
    prompt, suffix = "def add(a, b):\n    return", "\n\nprint(add(1, 2))"
    with mistralai.client.Mistral(server_url=between.url, api_key="none") as client:
        ask = dict(model="smollm2", prompt=prompt, temperature=0, max_tokens=12)
        answer = client.fim.complete(suffix=suffix, random_seed=3, **ask)
        streamed = list(client.fim.stream(suffix=suffix, **ask))
        alone = client.fim.complete(**ask)
    text = answer.choices[0].message.content
    assert "".join(event.data.choices[0].delta.content for event in streamed) == text
    assert streamed[-1].data.usage.completion_tokens == answer.usage.completion_tokens == 12
    # The other contract's `suffix` asks for the same.
    _, same = between.post("/v1/completions", {"prompt": prompt, "suffix": suffix, "temperature": 0, "max_tokens": 12})
    assert same["choices"][0]["text"] == text and same["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    count = lambda text: between.post("/v1/completions", {"prompt": text, "max_tokens": 1})[1]["usage"]["prompt_tokens"]
    assert answer.usage.prompt_tokens == count(prompt) + count(suffix) + 3
    assert alone.usage.prompt_tokens == count(prompt)


def test_the_asynchronous_client_fills_in(between):
    async def ask():
        async with mistralai.client.Mistral(server_url=between.url, api_key="none") as client:
            answer = await client.fim.complete_async(model="smollm2", prompt="a", suffix="b", temperature=0, max_tokens=4)
            stream = await client.fim.stream_async(model="smollm2", prompt="a", suffix="b", temperature=0, max_tokens=4)
            return answer.choices[0].message.content, [event.data.choices[0].delta.content async for event in stream]

    whole, parts = asyncio.run(ask())
    assert "".join(parts) == whole


def test_a_model_that_cannot_fill_in_says_so(engine):
    status, body = engine.post("/v1/fim/completions", {"prompt": "a", "suffix": "b"})
    assert (status, body["error"]["param"]) == (400, "suffix")
    assert "its file names no tokens for it" in body["error"]["message"]
    for change, field in (({"prompt": None}, "prompt"), ({"min_tokens": 3}, "min_tokens"), ({"n": 2}, "n")):
        status, body = engine.post("/v1/fim/completions", {"prompt": "a"} | change)
        assert (status, body["error"]["param"]) == (400, field), body


def test_mistrals_client_chats_on_the_engine_s_own_url(engine, gpt):
    with mistralai.client.Mistral(server_url=engine.url, api_key="none") as client:
        ask = dict(model="smollm2", messages=USER, max_tokens=12)
        answer = client.chat.complete(random_seed=7, safe_prompt=False, **ask).choices[0].message.content
        assert answer == gpt.chat.completions.create(seed=7, **ask).choices[0].message.content
        begun = client.chat.complete(
            model="smollm2", messages=[*USER, {"role": "assistant", "content": "The sea", "prefix": True}], max_tokens=4
        )
        assert begun.choices[0].message.content.startswith("The sea")
        tool = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
        called = client.chat.complete(tools=[tool], tool_choice="any", **(ask | {"max_tokens": 60}))
        assert called.choices[0].message.tool_calls[0].function.name == "weather"
    for change, field in (
        ({"safe_prompt": True}, "safe_prompt"),
        ({"seed": 1, "random_seed": 1}, "random_seed"),
        ({"messages": [{"role": "assistant", "content": "x", "prefix": True}, *USER]}, "messages[0].prefix"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"prompt_mode": "reasoning"}, "prompt_mode"),
    ):
        status, body = engine.post("/v1/chat/completions", {"messages": USER, "max_tokens": 1} | change)
        assert (status, body["error"]["param"]) == (400, field), body


def test_mistrals_embeddings():
    engine = Engine("--embeddings").start()
    try:
        with mistralai.client.Mistral(server_url=engine.url, api_key="none") as client:
            answer = client.embeddings.create(model="smollm2", inputs=["a", "b"], output_dtype="float")
            assert [len(entry.embedding) for entry in answer.data] == [576, 576]
        for change, field in (({"output_dtype": "int8"}, "output_dtype"), ({"output_dimension": 7}, "dimensions")):
            status, body = engine.post("/v1/embeddings", {"input": "x"} | change)
            assert (status, body["error"]["param"]) == (400, field), body
    finally:
        engine.kill()
