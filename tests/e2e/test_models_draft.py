"""A model with a draft through the platform: both files of the store, shown to the platform's own engine, weighed together."""

import re
import urllib.request

import openai
import pytest

import layers
import lora
from cloud import Cloud
from engine import WEIGHTS

# A small model is sure of what follows, so that rounding does not matter.
COUNT = "Count on:" + "".join(f" {number}," for number in range(1, 25))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A cloud with the platform's own engine and two models: one large, and one that knows all that it says."""
    cloud = Cloud().start()
    directory = tmp_path_factory.mktemp("models")
    large = layers.with_layers(WEIGHTS, directory / "large.gguf", 60)
    cloud.tram("models", "import", "--data-dir", cloud.data, "large", large)
    large.unlink()
    cloud.tram("models", "import", "--data-dir", cloud.data, "small", WEIGHTS)
    (directory / "tone.gguf").write_bytes(lora.adapter(0, 1))
    cloud.tram("models", "import", "--data-dir", cloud.data, "tone", directory / "tone.gguf")
    yield cloud
    cloud.remove()


def ask(cloud, name):
    client = openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0, timeout=60)
    return client.completions.create(model=name, prompt=COUNT, max_tokens=32, temperature=0).choices[0].text


def test_a_draft_guesses_and_changes_nothing(cloud):
    deploy = ("models", "deploy", "large", "--name", "chat", "--context-length", "2048")
    cloud.tram(*deploy, timeout=400)
    plain = ask(cloud, "chat")
    assert plain.startswith(" 25, 26, 27")
    cloud.tram(*deploy, "--draft", "small", timeout=400)
    definition = cloud.call("GET", f"/v1/deployments/{cloud.service('chat')['active_deployment_id']}")[1]["deployment"]["definition"]
    assert (definition["model"]["source"], definition["model"]["draft"]) == ("large", "small")
    assert ask(cloud, "chat") == plain
    request = urllib.request.Request(f"http://127.0.0.1:{cloud.http_port}/metrics", headers={"host": cloud.host("chat")})
    metrics = urllib.request.urlopen(request, timeout=30).read().decode()
    count = lambda name: int(re.search(rf'spec_decode_num_{name}_tokens_total{{.*kind="draft"}} (.*)$', metrics, re.M)[1])
    assert count("accepted") >= 0.9 * count("draft") > 0
    removed = cloud.tram("models", "rm", "--data-dir", cloud.data, "small", check=False)
    assert removed.returncode and "is used by 1 deployments" in removed.stderr


def test_wrong_ones_are_refused_before_anything_starts(cloud):
    def refused(*words):
        done = cloud.tram("models", "deploy", "large", "--name", "no", *words, check=False)
        assert done.returncode
        return done.stderr

    assert "there is no model `gone`" in refused("--draft", "gone")
    assert "`tone` is an adapter and no whole model" in refused("--draft", "tone", "--instance-type", "large")
    assert "`llama-server` takes no draft here" in refused("--engine", "llama-server", "--image", "x", "--draft", "small")
    # By itself it has room where both together have none.
    tight = ("--context-length", "4096", "--instance-type", "micro")
    message = refused("--draft", "small", *tight)
    assert re.search(r"the model needs \d+ MiB of memory, and instance type `micro` has 512 MiB", message), message
    cloud.tram("models", "deploy", "large", "--name", "alone", *tight, timeout=400)
