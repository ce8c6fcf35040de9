"""A draft of tram-engine: a smaller model that guesses what the large one says, and changes none of it."""

import concurrent.futures
import json
import re
import urllib.request

import openai
import pytest

import layers
import lora
from cloud import DEADLINE_SECONDS
from engine import WEIGHTS, Engine

# A small model is sure of what follows, so that rounding does not matter.
COUNTS = ["Count on:" + "".join(f" {number}," for number in range(first, first + 24)) for first in (1, 2, 3)]
GREEDY = dict(model="smollm2", temperature=0)
COLOURS = {
    "type": "object", "properties": {"colour": {"enum": ["red", "green", "blue"]}, "sure": {"type": "boolean"}},
    "required": ["colour", "sure"], "additionalProperties": False,
}


def client_of(engine):
    return openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


def guessed(engine):
    """Tokens that the draft guessed, and how many of them were right."""
    metrics = urllib.request.urlopen(engine.url + "/metrics").read().decode()
    count = lambda name: int(re.search(rf'^tram_engine:spec_decode_num_{name}_tokens_total{{.*kind="draft"}} (.*)$', metrics, re.M)[1])
    return count("draft"), count("accepted")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """One that changes nothing, so that what follows is as sure as without it."""
    path = tmp_path_factory.mktemp("adapter") / "nothing.gguf"
    path.write_bytes(lora.adapter(0, 1))
    return path


@pytest.fixture(scope="module")
def plain(adapter):
    engine = Engine("--adapter", f"nothing={adapter}").start()
    yield engine
    engine.kill()


@pytest.fixture(scope="module", params=["itself", "nonsense"])
def drafted(request, adapter, tmp_path_factory):
    """One whose draft is right always, and one whose draft is wrong nearly always."""
    few = tmp_path_factory.mktemp("draft") / "few.gguf"
    draft = WEIGHTS if request.param == "itself" else layers.with_layers(WEIGHTS, few, 8)
    engine = Engine("--adapter", f"nothing={adapter}", "--draft", str(draft)).start()
    yield engine
    engine.kill()
    few.unlink(missing_ok=True)


def test_it_says_what_it_says_without(plain, drafted):
    def ask(client, prompt):
        return client.completions.create(prompt=prompt, max_tokens=24, **GREEDY).choices[0].text

    def streamed(client, prompt):
        parts = client.completions.create(prompt=prompt, max_tokens=24, stream=True, **GREEDY)
        return "".join(part.choices[0].text for part in parts if part.choices)

    alone = {prompt: ask(client_of(plain), prompt) for prompt in COUNTS}
    client = client_of(drafted)
    assert {prompt: ask(client, prompt) for prompt in COUNTS} == alone
    all_guessed, right = guessed(drafted)
    assert 0 < all_guessed
    assert {prompt: streamed(client, prompt) for prompt in COUNTS} == alone
    # All at once, and each of them again while the others run.
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda prompt: ask(client, prompt), COUNTS * 2))
    assert together == [alone[prompt] for prompt in COUNTS * 2]


def test_grammars_seeds_and_adapters_stay_what_they_are(plain, drafted):
    schema = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": COLOURS}}

    def answers(client):
        chat = client.chat.completions.create(
            messages=[{"role": "user", "content": "What colour is the sky?"}], response_format=schema, max_tokens=40, **GREEDY
        )
        seeded = client.completions.create(model="smollm2", prompt=COUNTS[0], max_tokens=16, seed=5, temperature=0.2)
        worn = client.completions.create(model="nothing", prompt=COUNTS[1], max_tokens=4, temperature=0)
        return chat.choices[0].message.content, seeded.choices[0].text, worn.choices[0].text

    expected, got = answers(client_of(plain)), answers(client_of(drafted))
    assert got == expected
    assert json.loads(got[0])["colour"] in ("red", "green", "blue")


def test_who_leaves_costs_nothing_more(drafted):
    client = client_of(drafted)
    stream = client.completions.create(prompt=COUNTS[0], max_tokens=4000, stream=True, extra_body={"ignore_eos": True}, **GREEDY)
    next(iter(stream))
    stream.close()
    drafted.wait_for(lambda state: state["batch"]["running"] == 0, "the answer is dropped")
    again = client.completions.create(prompt=COUNTS[0], max_tokens=12, **GREEDY)
    assert again.choices[0].text.startswith(" 25, 26, 27")


def test_a_draft_that_is_right_is_right(tmp_path):
    """The large model is the small one with layers that add nothing, so the small one knows all that it says."""
    large = layers.with_layers(WEIGHTS, tmp_path / "large.gguf", 60)
    engine = Engine("--draft", str(WEIGHTS), model=large).start()
    try:
        text = client_of(engine).completions.create(prompt=COUNTS[0], max_tokens=40, **GREEDY).choices[0].text
        assert text.startswith(" 25, 26, 27")
        all_guessed, right = guessed(engine)
        assert right >= 0.9 * all_guessed > 0
        assert engine.terminate() == 0
    finally:
        engine.kill()
        large.unlink()


def test_what_cannot_be_a_draft_is_refused(tmp_path):
    other = bytearray(WEIGHTS.read_bytes())
    at = other.find("Ġthe".encode()) + len("Ġthe".encode()) - 1
    other[at : at + 1] = b"~"
    (tmp_path / "other.gguf").write_bytes(other)
    (tmp_path / "text.gguf").write_bytes(b"no model")
    for name, code, words in (
        ("other", 4, "cannot be the draft of this model: its vocabulary is another: token"),
        ("text", 4, "is not a model"),
        ("gone", 3, "cannot read the model file"),
    ):
        engine = Engine("--draft", str(tmp_path / f"{name}.gguf"))
        try:
            assert engine.ended() == code, engine.said()
            assert words in engine.said().splitlines()[-1]
        finally:
            engine.kill()
            (tmp_path / f"{name}.gguf").unlink(missing_ok=True)
