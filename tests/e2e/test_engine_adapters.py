"""Adapters (LoRA) of tram-engine, asked for by their names in a request's `model`."""

import concurrent.futures

import openai
import pytest

import lora
from cloud import DEADLINE_SECONDS
from engine import Engine

# A small model is sure of what follows, so that rounding does not matter.
COUNT = "Count on:" + "".join(f" {number}," for number in range(1, 25))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    words = []
    for name, strength, seed in (("nothing", 0, 1), ("strange", 4, 2), ("stranger", 4, 3)):
        path = directory / f"{name}.gguf"
        path.write_bytes(lora.adapter(strength, seed))
        words += ["--adapter", f"{name}={path}"]
    engine = Engine(*words).start()
    yield engine
    engine.kill()


@pytest.fixture(scope="module")
def client(engine):
    return openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


def ask(client, model, prompt=COUNT):
    return client.completions.create(model=model, prompt=prompt, max_tokens=12, temperature=0)


def test_an_adapter_is_asked_for_by_its_name(client):
    plain, nothing, strange, stranger = (
        ask(client, name) for name in ("smollm2", "nothing", "strange", "stranger")
    )
    assert plain.choices[0].text.startswith(" 25, 26, 27")
    assert nothing.choices[0].text == plain.choices[0].text
    assert len({one.choices[0].text for one in (plain, strange, stranger)}) == 3, "they change what is said"
    assert [one.model for one in (plain, strange)] == ["smollm2", "strange"]
    assert ask(client, "smollm2").choices[0].text == plain.choices[0].text, "nothing of it stays on"
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"smollm2", "nothing", "strange", "stranger"}
    assert client.models.retrieve("strange").parent == "smollm2"
    with pytest.raises(openai.NotFoundError):
        ask(client, "strangest")


def test_all_at_once_say_what_they_say_alone(client):
    names = ["smollm2", "strange", "nothing", "smollm2", "nothing", "smollm2"]
    alone = {name: ask(client, name).choices[0].text for name in set(names)}
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(lambda name: ask(client, name).choices[0].text, names))
    sure = [(name, text) for name, text in zip(names, together) if name != "strange"]
    assert all(text == alone[name] for name, text in sure)
    # What an adapter of random numbers says is on the edge everywhere: only that it is not the plain model's.
    assert together[1] != alone["smollm2"]


def test_what_one_adapter_has_read_is_nothing_for_another(client):
    prompt = "A prompt that nobody else has, long enough for whole blocks of the cache. " * 3
    cached = lambda model: ask(client, model, prompt).usage.prompt_tokens_details.cached_tokens
    assert [cached("smollm2"), cached("strange"), cached("nothing")] == [0, 0, 0]
    assert all(cached(model) > 16 for model in ("smollm2", "strange", "nothing"))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"no adapter", "is not a model"),
        (lora.adapter(1, architecture="qwen2"), "is no adapter of this model"),
        (lora.adapter(1)[:2000], "is no adapter of this model"),
    ],
    ids=["text", "of another model", "cut"],
)
def test_what_is_no_adapter_is_said(tmp_path, content, words):
    path = tmp_path / "adapter.gguf"
    path.write_bytes(content)
    engine = Engine("--adapter", f"x={path}")
    assert engine.ended() == 4, engine.said()
    assert words in engine.said().splitlines()[-1]
    engine.kill()
