"""Adapters of a model through the platform: files of the store like the model, shown to the platform's own engine, asked
for by name."""

import openai
import pytest

import lora
from cloud import Cloud, wait_for
from engine import WEIGHTS

# A small model is sure of what follows, so that rounding does not matter.
COUNT = "Count on:" + "".join(f" {number}," for number in range(1, 25))


@pytest.fixture(scope="module")
def cloud():
    """A cloud with the platform's own engine, which other tests put a stand-in in place of."""
    cloud = Cloud().start()
    yield cloud
    cloud.remove()


@pytest.fixture(scope="module")
def take_in(cloud, tmp_path_factory):
    def take(name, content):
        file = tmp_path_factory.mktemp("adapter") / f"{name}.gguf"
        file.write_bytes(content)
        cloud.tram("models", "import", "--data-dir", cloud.data, name, file)

    return take


@pytest.fixture(scope="module")
def model(cloud, take_in):
    cloud.tram("models", "import", "--data-dir", cloud.data, "smollm2", WEIGHTS)
    take_in("no-change", lora.adapter(0, 1))
    take_in("strange-change", lora.adapter(4, 2))
    cloud.tram(
        "models", "deploy", "smollm2", "--name", "chat", "--adapter", "nothing=no-change",
        "--adapter", "strange=strange-change", timeout=400,
    )
    return "chat"


@pytest.fixture(scope="module")
def client(cloud):
    return openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0, timeout=60)


def ask(client, model):
    return client.completions.create(model=model, prompt=COUNT, max_tokens=12, temperature=0).choices[0].text


def test_an_adapter_is_asked_for_behind_the_service(cloud, client, model):
    plain, nothing, strange = (ask(client, name) for name in (model, f"{model}:nothing", f"chat/{model}:strange"))
    assert plain.startswith(" 25, 26, 27") and nothing == plain
    assert strange != plain, "it changes what is said"
    with pytest.raises(openai.NotFoundError):
        ask(client, f"{model}:stranger")
    own = openai.OpenAI(
        base_url=f"http://127.0.0.1:{cloud.http_port}/v1", api_key="none", max_retries=0,
        default_headers={"host": cloud.host("chat")},
    )
    # Noise leaves the model unsure, so rounding may have it say something else the second time.
    assert ask(own, "strange") != plain, "on its own URL the name alone"


def test_adapters_are_listed_with_what_they_change(client, model):
    listed = {one.id: one for one in client.models.list()}
    assert set(listed) == {"chat", "chat:nothing", "chat:strange"}
    assert (listed["chat:strange"].parent, listed["chat:strange"].root) == ("chat", "smollm2")
    assert client.models.retrieve("chat:nothing").id == "chat:nothing"


def test_usage_counts_under_the_name_that_was_asked(cloud, client, model):
    ask(client, f"{model}:nothing")

    def counted():
        rows = cloud.call("GET", "/v1/usages?by=model,service")[1]["usage"]["periods"]
        rows = [row for period in rows.values() for row in period["tokens"] if row["model"] == "chat:nothing"]
        return rows and rows[0]["service_id"] == cloud.service("chat")["id"] and rows[0]["completion_tokens"] > 0

    wait_for("the adapter's tokens are counted", counted, seconds=10)


def test_its_file_is_kept_while_it_is_used(cloud, model):
    removed = cloud.tram("models", "rm", "--data-dir", cloud.data, "strange-change", check=False)
    assert removed.returncode and "is used by 1 deployments" in removed.stderr


def test_wrong_ones_are_refused_before_anything_starts(cloud, take_in, model):
    take_in("of-qwen", lora.adapter(1, architecture="qwen2"))

    def refused(*words, model="smollm2"):
        done = cloud.tram("models", "deploy", model, "--name", "no", *words, check=False)
        assert done.returncode
        return done.stderr

    assert "`smollm2` is a whole model and no adapter" in refused("--adapter", "aa=smollm2")
    assert "is an adapter of models of the kind `qwen2`" in refused("--adapter", "aa=of-qwen")
    assert "there is no model `gone`" in refused("--adapter", "aa=gone")
    assert "definition.model.adapters.1.name: is given twice" in refused("--adapter", "aa=no-change", "--adapter", "aa=no-change")
    assert "is an adapter and no whole model" in refused(model="no-change")
    assert "`llama-server` takes no adapters here" in refused(
        "--engine", "llama-server", "--image", "x", "--adapter", "aa=no-change"
    )
