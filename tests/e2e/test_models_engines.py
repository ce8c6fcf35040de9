"""Engines that are not the platform's: llama.cpp's own server, and an image that says what it knows and no more. Both are
started by the platform and asked by OpenAI's SDK."""

import json

import openai
import pytest

import peer
import standin
from cloud import wait_for
from engine import WEIGHTS

FOREIGN = "engines.test/strange"

# Speaks OpenAI's contract without a word about what an answer cost, unless it is asked to.
STRANGE = standin.SERVER + r'''
import os, sys


class Handler(Json):
    def do_GET(self):
        self.reply(200 if self.path == "/v1/models" else 404, {"object": "list", "data": []})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] != "its-own-name":
            return self.reply(404, {"error": {"message": "no such model"}})
        if asked["messages"][-1]["content"] == "never mind":
            # Reads and reads, until whoever asked is gone.
            return self.rfile.read(1)
        head = {"id": "x", "created": 1, "model": "its-own-name", "object": "chat.completion.chunk"}
        if not asked.get("stream"):
            seen = {"words": sys.argv[1:], "options": asked.get("stream_options")}
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": json.dumps(seen)}}
            return self.reply(200, head | {"object": "chat.completion", "choices": [choice]})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        dies = asked["messages"][-1]["content"] == "die"
        for word in ("one ", "two ", json.dumps(asked.get("stream_options"))):
            self.event(head | {"choices": [{"index": 0, "delta": {"content": word}}]})
            if dies:
                os._exit(1)
        self.event(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if asked.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
            self.event(head | {"choices": [], "usage": usage})
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, value):
        # Other line ends than ours, as some servers write them.
        data = f"data: {value if isinstance(value, str) else json.dumps(value)}\r\n\r\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
'''


@pytest.fixture(scope="module")
def client(cloud):
    return openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def llama_server(cloud, tmp_path_factory):
    archive = peer.archive(tmp_path_factory.mktemp("peer"))
    cloud.tram("images", "import", "--data-dir", cloud.data, archive, "--name", peer.IMAGE)
    cloud.tram("models", "import", "--data-dir", cloud.data, "smol-peer", WEIGHTS)
    cloud.tram(
        "models", "deploy", "smol-peer", "--name", "peer", "--engine", "llama-server", "--image", peer.IMAGE,
        "--context-length", "2048", "--parallel", "2", "--instance-type", "medium", timeout=300,
    )
    yield "peer"
    cloud.tram("services", "delete", "peer/peer")


@pytest.fixture(scope="module")
def strange(cloud, tmp_path_factory):
    directory = tmp_path_factory.mktemp("strange")
    archive = standin.archive(directory, STRANGE)
    cloud.tram("images", "import", "--data-dir", cloud.data, archive, "--name", FOREIGN)
    cloud.tram(
        "models", "deploy", "/models/none", "--name", "strange", "--engine", "openai", "--image", FOREIGN,
        "--served-name", "its-own-name", "--engine-arg", "--word", "--instance-type", "micro",
    )
    yield "strange"
    cloud.tram("services", "delete", "strange/strange")


def cost(cloud, name):
    """Tokens of prompts and of answers that a service's questions cost so far."""
    rows = json.loads(cloud.tram("usage", "--by", "service", "--output", "json").stdout)
    rows = [(row["prompt_tokens"], row["completion_tokens"]) for row in rows if row["name"] == f"{name}/{name}"]
    return rows[0] if rows else (0, 0)


# Where its answer ends is up to the model, and differs with rounding: from a prompt that is cached it may be another.
EXACTLY_EIGHT = {"max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}}


def ask(client, model, said="Say hello.", **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": said}], **more)


def test_llama_server_answers_by_the_platforms_address(client, llama_server):
    # From here on the prompt is cached, and what is computed of it the same each time.
    ask(client, llama_server, max_tokens=1)
    whole = ask(client, llama_server, max_tokens=8, temperature=0)
    assert whole.choices[0].message.content
    assert whole.model == llama_server and whole.usage.completion_tokens > 0
    chunks = list(ask(client, llama_server, max_tokens=8, temperature=0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert all(chunk.choices for chunk in chunks), "nobody asked for the usage"
    told = list(ask(client, llama_server, stream=True, stream_options={"include_usage": True}, **EXACTLY_EIGHT))
    assert told[-1].choices == [] and told[-1].usage.completion_tokens == 8
    listed = {model.id: model for model in client.models.list()}
    assert listed[llama_server].root == "smol-peer"


def test_llama_server_is_what_the_definition_says(cloud, client, llama_server):
    properties = json.loads(cloud.get(cloud.host("peer"), "/props")[2])
    assert properties["total_slots"] == 2 and properties["default_generation_settings"]["n_ctx"] == 2048
    assert b"llamacpp:prompt_tokens_total" in cloud.get(cloud.host("peer"), "/metrics")[2]
    with pytest.raises(openai.BadRequestError, match="served by `llama-server`, which does not have /v1/fim"):
        client.post("/fim/completions", body={"model": llama_server, "prompt": "a"}, cast_to=object)


def test_what_a_stream_cost_is_counted_though_nobody_asked(cloud, client, llama_server):
    # A token of its own: what others asked may be counted meanwhile.
    token = json.loads(cloud.tram("tokens", "create", "counted", "--output", "json").stdout)
    asker = client.with_options(api_key=token["token"])

    def counted():
        rows = json.loads(cloud.tram("usage", "--by", "credential", "--output", "json").stdout)
        return [
            (row["requests"], row["prompt_tokens"], row["completion_tokens"]) for row in rows if row["id"] == token["id"]
        ]

    said = ask(asker, llama_server, "Count.", **EXACTLY_EIGHT).usage
    assert said.completion_tokens == 8
    assert list(ask(asker, llama_server, "Count.", stream=True, **EXACTLY_EIGHT))
    expected = [(2, 2 * said.prompt_tokens, 2 * 8)]
    wait_for("the stream is counted to the token", lambda: counted() == expected)


def test_a_caller_who_leaves_takes_the_question_along(cloud, client, llama_server):
    stream = ask(client, llama_server, "Tell a very long story.", max_tokens=2000, stream=True)
    next(iter(stream))
    busy = lambda: [slot for slot in json.loads(cloud.get(cloud.host("peer"), "/slots")[2]) if slot["is_processing"]]
    assert busy()
    stream.close()
    wait_for("the slot is free", lambda: not busy())


def test_a_strange_engine_is_asked_in_its_own_words(cloud, client, strange):
    whole = ask(client, strange)
    seen = json.loads(whole.choices[0].message.content)
    assert seen == {"words": ["--word"], "options": None}
    chunks = list(ask(client, strange, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks][:2] == ["one ", "two "]
    assert json.loads(chunks[2].choices[0].delta.content) == {"include_usage": True}, "the edge asks for it"
    assert all(chunk.choices for chunk in chunks), "and takes it out again"
    wait_for("what it said is counted, and the answer that said nothing by its length", lambda: (
        cost(cloud, "strange")[0] > 7 and cost(cloud, "strange")[1] > 5
    ))


def test_a_caller_who_leaves_before_the_answer_has_spent_the_prompt(cloud, client, strange):
    seen = cost(cloud, "strange")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=1).chat.completions.create(
            model=strange, messages=[{"role": "user", "content": "x" * 4000}, {"role": "user", "content": "never mind"}]
        )
    wait_for("the prompt is counted by its length", lambda: cost(cloud, "strange")[0] >= seen[0] + 1000)


def test_a_stream_that_cannot_go_on_says_so(client, strange):
    with pytest.raises(openai.APIError, match="its engine cannot have another go on"):
        list(ask(client, strange, "die", stream=True))


def test_engines_are_listed_and_a_wrong_one_is_refused(cloud, llama_server):
    listed = {one["name"]: one for one in cloud.call("GET", "/v1/model_engines")[1]["engines"]}
    assert set(listed) == {"tram-engine", "llama-server", "vllm", "sglang", "openai"}
    assert [name for name, one in listed.items() if one["streams_survive"]] == ["tram-engine"]
    assert "carried by the server" in cloud.tram("models", "engines").stdout
    refused = cloud.tram("models", "deploy", "smol-peer", "--name", "no", "--engine", "vllm", check=False)
    assert refused.returncode and "such as `vllm/vllm-openai:latest`" in refused.stderr
    refused = cloud.tram("models", "deploy", "smol-peer", "--name", "no", "--engine", "ollama", check=False)
    assert refused.returncode and "there is no engine `ollama` here" in refused.stderr
