"""A model on the platform's own engine, asked on the platform's own address and on its own URL by the SDKs of Anthropic,
OpenAI and Mistral, unmodified."""

import anthropic
import mistralai.client
import openai
import pytest

from cloud import DEADLINE_SECONDS, Cloud
from engine import WEIGHTS

ASK = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def smollm2():
    """A cloud of its own: the shared one has a stand-in in place of the engine."""
    cloud = Cloud().start()
    cloud.tram("models", "import", "--data-dir", cloud.data, "smollm2", WEIGHTS)
    cloud.tram("models", "deploy", "smollm2")
    yield cloud
    cloud.remove()


def claude(cloud, **more):
    given = {"base_url": cloud.api_url, "api_key": cloud.token, "max_retries": 0, "timeout": DEADLINE_SECONDS}
    return anthropic.Anthropic(**(given | more))


def test_anthropics_client_with_a_key_or_a_token(smollm2):
    ask = dict(model="smollm2", messages=ASK, max_tokens=12, extra_body={"temperature": 0})
    client = claude(smollm2)
    whole = client.messages.create(**ask)
    assert whole.content[0].text
    with client.messages.stream(**ask) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
    assert client.messages.count_tokens(model="smollm2", messages=ASK).input_tokens > 5
    bearer = claude(smollm2, api_key=None, auth_token=smollm2.token)
    assert bearer.messages.create(**ask).content == whole.content
    listed = client.models.list()
    assert [(one.id, one.display_name) for one in listed] == [("smollm2", "smollm2")]
    assert client.models.retrieve("smollm2").created_at.year >= 2024
    # By the model's own URL, which the edge finds by its host.
    own = claude(
        smollm2, base_url=f"http://127.0.0.1:{smollm2.http_port}", api_key="none",
        default_headers={"host": smollm2.host("smollm2")},
    )
    assert own.messages.create(**ask).content == whole.content


def test_anthropics_client_knows_the_platforms_refusals(smollm2):
    ask = dict(model="smollm2", messages=ASK, max_tokens=4)
    with pytest.raises(anthropic.AuthenticationError) as raised:
        claude(smollm2, api_key="wrong").messages.create(**ask)
    assert raised.value.body["error"]["type"] == "authentication_error"
    with pytest.raises(anthropic.NotFoundError) as raised:
        claude(smollm2).messages.create(**(ask | {"model": "gone"}))
    assert raised.value.body == {
        "type": "error",
        "error": {
            "type": "not_found_error", "message": "there is no model `gone`: GET /v1/models lists those you can ask",
        },
    }
    with pytest.raises(anthropic.BadRequestError):
        claude(smollm2).messages.create(**ask, thinking={"type": "enabled", "budget_tokens": 1024})


def test_responses_on_the_platforms_address(smollm2):
    client = openai.OpenAI(base_url=f"{smollm2.api_url}/v1", api_key=smollm2.token, max_retries=0)
    ask = dict(model="smollm2", input="What is the capital of France?", max_output_tokens=12, temperature=0)
    whole = client.responses.create(**ask)
    events = list(client.responses.create(stream=True, **ask))
    assert events[-1].response.output_text == whole.output_text != ""
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(previous_response_id=whole.id, **ask)
    assert raised.value.param == "previous_response_id"


def test_mistrals_client_fills_in_where_the_model_can(smollm2):
    with mistralai.client.Mistral(server_url=smollm2.api_url, api_key=smollm2.token) as client:
        ask = dict(model="smollm2", prompt="The capital of France is", max_tokens=4, temperature=0, random_seed=1)
        assert client.fim.complete(**ask).choices[0].message.content
        with pytest.raises(mistralai.client.errors.SDKError) as raised:
            client.fim.complete(suffix=".", **ask)
        assert "its file names no tokens for it" in str(raised.value)
