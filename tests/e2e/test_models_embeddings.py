"""An encoder deployed as any model: its vectors by OpenAI's and Mistral's own SDKs through the platform's address, also
after it has slept."""

import asyncio
import json

import mistralai.client
import numpy
import openai
import pytest

import minilm
from cloud import Cloud, wait_for

NAME = "minilm"
TEXTS = ["The cat sleeps on the sofa.", "A cat is asleep on the couch.", "Interest rates rose by 2.5 percent."]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A cloud of its own: the shared one has a stand-in in place of the engine."""
    file = tmp_path_factory.mktemp("minilm") / "minilm.gguf"
    file.write_bytes(minilm.gguf(kind=minilm.Q8_0))
    cloud = Cloud().start()
    cloud.tram("models", "import", "--data-dir", cloud.data, NAME, file)
    cloud.tram("models", "deploy", NAME)
    yield cloud
    cloud.remove()


@pytest.fixture(scope="module")
def client(models):
    return openai.OpenAI(base_url=f"{models.api_url}/v1", api_key=models.token, max_retries=0)


def check(answer, texts=TEXTS):
    for text, one in zip(texts, answer.data, strict=True):
        assert numpy.array(one.embedding) @ minilm.vector(text) > 0.99, text


def test_what_it_is_is_shown_and_it_fits_where_it_should(models):
    shown = json.loads(models.tram("models", "show", NAME, "--output", "json").stdout)
    assert (shown["architecture"], shown["is_embedding"], int(shown["context_length"])) == ("bert", True, 512)
    definition = models.service(NAME)["latest_deployment_id"]
    _, reply = models.call("GET", f"/v1/deployments/{definition}")
    # The smallest type that holds it. The whole of a step fits there too, which the next test asks for.
    assert reply["deployment"]["definition"]["instance_types"][0]["type"] == "nano"
    assert int(shown["needed_bytes"]) < 256 * 2**20


def test_openais_client_sync_and_async(models, client):
    check(client.embeddings.create(model=NAME, input=TEXTS))
    longest = ["wind " * (minilm.POSITIONS - 2)] * 8
    answer = client.embeddings.create(model=NAME, input=longest, encoding_format="float")
    assert answer.usage.prompt_tokens == 8 * minilm.POSITIONS

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{models.api_url}/v1", api_key=models.token, max_retries=0) as other:
            return await asyncio.gather(*(other.embeddings.create(model=NAME, input=text) for text in TEXTS * 4))

    for text, answer in zip(TEXTS * 4, asyncio.run(run()), strict=True):
        check(answer, [text])


def test_mistrals_client(models):
    with mistralai.client.Mistral(server_url=models.api_url, api_key=models.token) as client:
        check(client.embeddings.create(model=NAME, inputs=TEXTS))


def test_it_is_listed_as_what_it_is_and_refuses_the_rest(models, client):
    status, listed = models.call("GET", f"/v1/models/{NAME}")
    assert status == 200 and listed["max_context_length"] == 512 and listed["capabilities"]["completion_chat"] is False
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "hello"}])
    assert "makes embeddings of texts and writes none" in str(refused.value)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=NAME, input="wind " * 600)
    assert refused.value.code == "context_length_exceeded"


def test_what_it_cost_is_written_down(models, client):
    def records():
        segments = sorted((models.data / "edge" / "usage").glob("*.log"))
        return [json.loads(line.split(b" ", 1)[1]) for path in segments for line in path.read_bytes().splitlines()]

    before = len(records())
    tokens = client.embeddings.create(model=NAME, input=TEXTS).usage.prompt_tokens
    (record,) = records()[before:]
    assert record["endpoint"] == "embeddings" and record["prompt_tokens"] == tokens


@pytest.mark.parametrize("depth", ["light", "deep"])
def test_it_sleeps_and_wakes(models, client, depth):
    name = f"sleeper-{depth}"
    delay = {"light_sleep_value": 1, "deep_sleep_value": 3600} if depth == "light" else {"deep_sleep_value": 1}
    _, reply = models.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": "nano"}], "model": {"source": NAME},
        "scalings": [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": delay}]}],
    }
    status, reply = models.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    assert status == 200, reply
    service = reply["service"]["id"]
    models.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    live = ("HEALTHY", "STARTING", "STOPPING", "ALLOCATING")
    for _ in range(2):
        if depth == "light":
            wait_for("it is frozen", lambda: models.instances(service, "SLEEPING"))
        else:
            wait_for("nothing runs", lambda: not models.instances(service, *live))
        check(client.embeddings.create(model=name, input=TEXTS))
    models.tram("delete", name)
