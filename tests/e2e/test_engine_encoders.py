"""tram-engine with an encoder: its vectors are those that the published weights give by the book, whoever asks and
however many ask at once."""

import asyncio
import base64
import http.client
import json
import struct
import threading

import mistralai.client
import numpy
import openai
import pytest

import minilm
from cloud import DEADLINE_SECONDS
from engine import Engine

CATS = ["The cat sleeps on the sofa.", "A cat is asleep on the couch."]
TEXTS = [
    *CATS,
    "Interest rates rose by 2.5 percent.",
    "Le café crème est à l'ombre, señor Müller.",
    "北风 blows [SEP] over the mountains, ##not a token",
    "x",
    "Tramontane: " + "the north wind that crosses the mountains, cold and dry. " * 30,
]
NAME = "minilm"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The model as a file, by how its weights are kept or what else was changed. Each is made when first asked for."""
    made, directory = {}, tmp_path_factory.mktemp("minilm")

    def file(**changed):
        key = json.dumps(changed, default=repr)
        if key not in made:
            made[key] = directory / f"{len(made)}.gguf"
            made[key].write_bytes(minilm.gguf(**changed))
        return made[key]

    return file


@pytest.fixture(scope="module")
def engine(files):
    engine = Engine(model=files(), name=NAME).start()
    yield engine
    engine.kill()


@pytest.fixture(scope="module")
def client(engine):
    return openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


def vectors(client, texts, **more):
    return [numpy.array(one.embedding) for one in client.embeddings.create(model=NAME, input=texts, **more).data]


def open_client(engine):
    return openai.OpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0, timeout=DEADLINE_SECONDS)


@pytest.mark.parametrize("kind, least", [("F16", 0.9995), ("Q8_0", 0.995)])
def test_vectors_are_those_of_the_weights(files, kind, least):
    engine = Engine(model=files(kind=getattr(minilm, kind)), name=NAME).start()
    try:
        for text, found in zip(TEXTS, vectors(open_client(engine), TEXTS), strict=True):
            assert found.shape == (384,) and abs(numpy.linalg.norm(found) - 1) < 1e-4
            assert found @ minilm.vector(text) > least, text
    finally:
        engine.kill()


def test_texts_that_mean_the_same_are_near(client):
    cat, other_cat, bank = vectors(client, TEXTS[:3])
    assert cat @ other_cat > 0.8 and cat @ bank < 0.2


def test_tokens_are_counted(client):
    answer = client.embeddings.create(model=NAME, input=TEXTS)
    tokens = sum(len(minilm.tokens(text)) for text in TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    assert answer.model == NAME and [one.index for one in answer.data] == list(range(len(TEXTS)))


@pytest.mark.parametrize("pooling, number", [("cls", 2), ("last", 3)])
def test_the_file_says_how_vectors_become_one(files, pooling, number):
    engine = Engine(model=files(pooling=number), name=NAME).start()
    try:
        for text, found in zip(CATS, vectors(open_client(engine), CATS), strict=True):
            assert found @ minilm.vector(text, pooling) > 0.9995
    finally:
        engine.kill()


@pytest.mark.parametrize("said", ["none", "nothing"])
def test_where_the_file_does_not_they_are_averaged(files, said):
    changed = {"pooling": 0} if said == "none" else {"bert__pooling_type": None}
    engine = Engine(model=files(**changed), name=NAME).start()
    try:
        assert vectors(open_client(engine), CATS[:1])[0] @ minilm.vector(CATS[0]) > 0.9995
    finally:
        engine.kill()


def test_a_reranker_is_refused_in_words(files):
    engine = Engine(model=files(pooling=4), name=NAME)
    assert engine.ended() == 4 and "it is a reranker" in engine.said()
    engine.kill()


def test_alone_or_in_company_as_numbers_or_as_bytes(client, engine):
    alone = [vectors(client, text)[0] for text in TEXTS]
    together = vectors(client, TEXTS, encoding_format="float")
    for one, other in zip(alone, together, strict=True):
        assert one @ other > 0.9999
    status, body = engine.post("/v1/embeddings", {"input": TEXTS[0], "encoding_format": "base64"})
    assert status == 200
    data = base64.b64decode(body["data"][0]["embedding"])
    assert numpy.allclose(struct.unpack(f"<{len(data) // 4}f", data), together[0], atol=1e-3)
    # By the numbers of its tokens, as some clients send texts.
    by_tokens = vectors(client, [minilm.tokens(text) for text in TEXTS])
    for one, other in zip(by_tokens, together, strict=True):
        assert one @ other > 0.9999


def test_what_is_too_long_or_not_to_be_had_is_said(client, engine):
    # 510 words, and what stands before and after each text.
    longest = "wind " * (minilm.POSITIONS - 2)
    assert client.embeddings.create(model=NAME, input=[longest, "x"]).usage.prompt_tokens == minilm.POSITIONS + 3
    # One token, however long: none of it is in the vocabulary.
    assert client.embeddings.create(model=NAME, input="𒀀" * 10_000).usage.prompt_tokens == 3
    assert len(vectors(client, "x", dimensions=384)) == 1
    for body, field, words in (
        ({"input": longest + "wind"}, "input", "at most 512 tokens. However, 'input' has 513"),
        ({"input": ["x", longest + "wind"]}, "input[1]", "'input[1]' has 513"),
        ({"input": [list(range(600))]}, "input", "has 600"),
        ({"input": ["x", ""]}, "input[1]", "may not be empty"),
        ({"input": [[101, 102], [999_999]]}, "input[1]", "'input[1]' has to be a string, or an array of tokens"),
        ({"input": "! " * 100_000}, "input", "'input' has far more than that"),
        ({"input": []}, "input", "from 1 to 2048"),
        ({"input": "x", "dimensions": 128}, "dimensions", "vectors of 384 dimensions"),
        ({"input": "x", "output_dtype": "ubinary"}, "output_dtype", "does not round"),
        ({"input": "x", "truncate": True}, "truncate", "truncate"),
    ):
        status, reply = engine.post("/v1/embeddings", body)
        assert status == 400 and reply["error"]["param"] == field and words in reply["error"]["message"], reply
    status, reply = engine.post("/v1/embeddings", {"input": longest + "wind"})
    assert reply["error"]["code"] == "context_length_exceeded"


def test_what_it_is_not_for_is_said(engine):
    ask = [{"role": "user", "content": "hello"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": ask}),
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/fim/completions", {"prompt": "hello"}),
        ("/v1/responses", {"input": "hello"}),
        ("/v1/messages", {"messages": ask, "max_tokens": 4}),
        ("/v1/messages/count_tokens", {"messages": ask}),
    ):
        status, reply = engine.post(path, body)
        assert status == 400 and "makes embeddings of texts and writes none" in reply["error"]["message"], reply


def test_mistrals_client_and_many_at_once(engine):
    with mistralai.client.Mistral(server_url=engine.url, api_key="none") as client:
        answer = client.embeddings.create(model=NAME, inputs=TEXTS)
        assert answer.usage.prompt_tokens == sum(len(minilm.tokens(text)) for text in TEXTS)
        for text, one in zip(TEXTS, answer.data, strict=True):
            assert numpy.array(one.embedding) @ minilm.vector(text) > 0.9995

    async def run():
        async with openai.AsyncOpenAI(base_url=engine.url + "/v1", api_key="none", max_retries=0) as client:
            asked = [[f"Number {number}", TEXTS[number % 7]] for number in range(40)]
            answers = await asyncio.gather(*(client.embeddings.create(model=NAME, input=texts) for texts in asked))
            return asked, answers

    asked, answers = asyncio.run(run())
    for texts, answer in zip(asked, answers, strict=True):
        assert numpy.array(answer.data[1].embedding) @ minilm.vector(texts[1]) > 0.9995


def test_more_texts_than_a_step_keep_their_order(client):
    texts = [f"Item {number} of the list" for number in range(300)]
    found = vectors(client, texts)
    assert len(found) == 300
    for number in (0, 63, 64, 299):
        assert found[number] @ minilm.vector(texts[number]) > 0.9995


def test_an_archive_holds_nobody_up_and_is_dropped_with_its_client(engine, client):
    """Thousands of pages from one caller: another's line is answered meanwhile, and when the first hangs up, the engine
    stops reading for them."""
    running = lambda state: state["batch"]["running"]
    body = json.dumps({"input": ["wind " * 400] * 600})
    connection = http.client.HTTPConnection(engine.url.removeprefix("http://"), timeout=DEADLINE_SECONDS)
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json", "x-tram-tenant": "archive"})
    engine.wait_for(lambda state: running(state) == 1, "the archive is being read")
    assert len(vectors(client, "Where is my parcel?")) == 1
    state = engine.state()
    assert running(state) == 1 and state["queue"]["prompt_tokens_ahead"] > 100_000, state
    connection.close()
    engine.wait_for(lambda state: running(state) == 0 and state["queue"]["prompt_tokens_ahead"] == 0, "it is dropped")
    assert len(vectors(client, "Where is my parcel?")) == 1


def test_what_runs_is_finished_when_it_is_told_to_stop(files):
    engine = Engine(model=files(), name=NAME).start()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(engine.post("/v1/embeddings", {"input": ["wind " * 400] * 12})))
    asking.start()
    engine.wait_for(lambda state: state["batch"]["running"] == 1, "texts are being read")
    assert engine.terminate() == 0
    asking.join()
    (status, body), = answers
    assert status == 200 and len(body["data"]) == 12
    engine.kill()
