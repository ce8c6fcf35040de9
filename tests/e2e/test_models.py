"""A model is one more thing one deploys: taken in, deployed, asked by OpenAI's and Mistral's own SDKs, put to sleep,
woken, and kept while it is used."""

import asyncio
import hashlib
import http.client
import http.server
import json
import os
import re
import threading

import mistralai.client
import openai
import pytest

import gguf
import standin
from cloud import Cloud, wait_for
from engine import WEIGHTS


@pytest.fixture(scope="module")
def engine(cloud, tmp_path_factory):
    archive = standin.archive(tmp_path_factory.mktemp("engine"))
    cloud.tram("images", "import", "--data-dir", cloud.data, archive, "--name", standin.ENGINE_IMAGE)


@pytest.fixture
def take_in(cloud, tmp_path):
    """Takes a file in under a name."""

    def take(name, content, check=True):
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        return cloud.tram("models", "import", "--data-dir", cloud.data, name, file, check=check)

    return take


@pytest.fixture(scope="module")
def model(cloud, engine, tmp_path_factory):
    """A model that every test may ask, as a service of the same name."""
    file = tmp_path_factory.mktemp("model") / "tiny.gguf"
    file.write_bytes(gguf.tiny())
    cloud.tram("models", "import", "--data-dir", cloud.data, "tiny-chat", file)
    cloud.tram("models", "deploy", "tiny-chat", "--instance-type", "micro")
    return "tiny-chat"


@pytest.fixture
def front(cloud, model):
    """OpenAI's client on the platform's own address."""
    return openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0)


def ask(client, model, said, **more):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": said}], **more)


def seen(client, model, **more):
    """What the engine saw of a question."""
    return json.loads(ask(client, model, "what do you see?", **more).choices[0].message.content)


def test_a_model_answers_on_its_own_url(cloud, model):
    host = cloud.host(model)
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{cloud.http_port}/v1", api_key="none", max_retries=0, default_headers={"host": host}
    )
    assert ask(client, model, "hello").choices[0].message.content == "you said hello"
    assert seen(client, model)["digest"] == hashlib.sha256(gguf.tiny()).hexdigest()


def test_the_platforms_address_asks_by_name(cloud, model, front):
    assert ask(front, model, "hello").choices[0].message.content == "you said hello"
    assert ask(front, f"{model}/{model}", "hello").model == model
    assert front.completions.create(model=model, prompt="hello").choices[0].text == "you said hello"
    assert front.embeddings.create(model=model, input="hello", encoding_format="float").data[0].embedding == [0.5, -0.5]
    listed = {one.id: one for one in front.models.list()}
    assert listed[model].object == "model" and listed[model].created > 0
    assert front.models.retrieve(model).id == model
    headers = seen(front, model)["headers"]
    assert "authorization" not in headers, "a token of the platform is nothing for an engine"


def test_whose_question_it_was_is_written_down(cloud, model, front):
    def records():
        segments = sorted((cloud.data / "edge" / "usage").glob("*.log"))
        return [json.loads(line.split(b" ", 1)[1]) for path in segments for line in path.read_bytes().splitlines()]

    before = len(records())
    ask(front, model, "whose?")
    ask(front, model, "whose?")
    forged = {"host": cloud.host(model), "x-tram-tenant": "7d444840-9dc0-11d1-b245-5ffdce74fad2"}
    own = openai.OpenAI(
        base_url=f"http://127.0.0.1:{cloud.http_port}/v1", api_key="none", max_retries=0, default_headers=forged
    )
    ask(own, model, "whose?")
    # Written before the last byte of each answer.
    first, second, third = records()[before:]
    assert first["tenant"] == second["tenant"] != forged["x-tram-tenant"]
    assert third.get("tenant") is None and third["service_id"] == first["service_id"]
    assert first["deployment_id"] == third["deployment_id"] and first["endpoint"] == "chat_completions"


def test_a_stream_comes_as_it_is_written(cloud, model, front):
    said = "one two three four five six"
    chunks = []
    loop = asyncio.new_event_loop()
    for chunk in ask(front, model, said, stream=True):
        chunks.append((loop.time(), chunk.choices[0].delta.content))
    loop.close()
    assert "".join(text for _, text in chunks) == f"you said {said}"
    # The engine waits between words: had somebody kept them, they would have come together.
    assert chunks[-1][0] - chunks[0][0] > 0.3


def test_the_async_client_asks_many_at_once(cloud, model):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0) as client:
            replies = await asyncio.gather(*(ask(client, model, f"hello {index}") for index in range(8)))
            stream = await ask(client, model, "and a stream", stream=True)
            text = "".join([chunk.choices[0].delta.content async for chunk in stream])
            return [reply.choices[0].message.content for reply in replies], text

    replies, text = asyncio.run(run())
    assert replies == [f"you said hello {index}" for index in range(8)]
    assert text == "you said and a stream"


def test_mistrals_client_asks_with_its_own_words(cloud, model):
    with mistralai.client.Mistral(server_url=cloud.api_url, api_key=cloud.token) as client:
        messages = [{"role": "user", "content": "what do you see?"}]
        reply = client.chat.complete(model=model, messages=messages, random_seed=7, tool_choice="any", safe_prompt=False)
        engine_saw = json.loads(reply.choices[0].message.content)
        assert (engine_saw["seed"], engine_saw["tool_choice"]) == (7, "required")
        assert "random_seed" not in engine_saw and "safe_prompt" not in engine_saw
        stream = client.chat.stream(model=model, messages=[{"role": "user", "content": "hello"}])
        assert "".join(event.data.choices[0].delta.content for event in stream) == "you said hello"
        assert model in [one.id for one in client.models.list().data]


def test_refusals_are_openais(cloud, model, front):
    with pytest.raises(openai.NotFoundError) as missing:
        ask(front, "no-such-model", "hello")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        ask(openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key="wrong", max_retries=0), model, "hello")
    for body in (b"", b"[1]", b'{"model":', b'{"messages": []}', b'{"model": "\xff"}', b"[" * 100_000):
        status, reply = cloud.call("POST", "/v1/chat/completions", body)
        assert status == 400 and reply["error"]["type"] == "invalid_request_error", (body[:20], reply)
    # What is too large is refused by its announcement alone.
    connection = http.client.HTTPConnection("127.0.0.1", cloud.api_port, timeout=30)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("authorization", f"Bearer {cloud.token}")
    connection.putheader("content-length", str(33 * 1024 * 1024))
    connection.endheaders()
    assert connection.getresponse().status == 413
    large = "x" * (10 * 1024 * 1024)
    assert ask(front, model, large).choices[0].message.content == f"you said {large}", "10 MB are a question too"


def test_a_sleeping_model_wakes_when_it_is_asked(cloud, engine, take_in, front, name):
    take_in(name, gguf.tiny(salt=1))
    cloud.tram("models", "deploy", name, "--instance-type", "micro", "--sleep-after", "1s")
    service = cloud.service(name)
    cloud.wait_deployment(service["latest_deployment_id"], "SLEEPING")
    wait_for("nothing runs", lambda: not cloud.instances(service["id"], "HEALTHY", "STOPPING"))
    assert ask(front, name, "wake").choices[0].message.content == "you said wake"
    cloud.tram("delete", name)


def test_a_redeployment_serves_another_model_and_rm_waits_for_it(cloud, engine, take_in, front, name):
    first, second = f"{name}-a", f"{name}-b"
    take_in(first, gguf.tiny(salt=2))
    take_in(second, gguf.tiny(salt=3))
    cloud.tram("models", "deploy", first, "--name", name, "--instance-type", "micro")
    before = seen(front, name)["digest"]
    refused = cloud.tram("models", "rm", "--data-dir", cloud.data, first, check=False)
    assert refused.returncode == 1 and "used by 1 deployment" in refused.stderr
    # By the model's own name too, while one service serves it.
    assert seen(front, first)["digest"] == before
    cloud.tram("models", "deploy", second, "--name", name)
    assert seen(front, name)["digest"] == hashlib.sha256(gguf.tiny(salt=3)).hexdigest() != before
    remove = lambda: cloud.tram("models", "rm", "--data-dir", cloud.data, first, check=False).returncode == 0
    wait_for("the first model is let go", remove, every=0.5)
    assert first not in cloud.tram("models", "list").stdout
    cloud.tram("delete", name)


def test_a_model_survives_a_restart_of_the_control_plane(cloud, model, front):
    service = cloud.service(model)["id"]
    before = [one["id"] for one in cloud.instances(service, "HEALTHY")]
    cloud.kill()
    cloud.start()
    assert ask(front, model, "again").choices[0].message.content == "you said again"
    assert [one["id"] for one in cloud.instances(service, "HEALTHY")] == before
    assert cloud.tram("models", "rm", "--data-dir", cloud.data, model, check=False).returncode == 1


def test_tram_chat_answers_and_remembers(cloud, model):
    done = cloud.tram("chat", model, "hello")
    assert done.stdout == "you said hello\n" and "tokens" in done.stderr
    told = json.loads(cloud.tram("chat", model, "hello", "--output", "json").stdout)
    assert told["answer"] == "you said hello" and told["first_token_ms"] <= told["total_ms"]
    assert cloud.tram("chat", model, stdin="one\ntwo\n").stdout == "you said one\nyou said two\n"
    refused = cloud.tram("chat", "no-such-model", "hello", check=False)
    assert refused.returncode == 1 and "there is no model `no-such-model`" in refused.stderr


class Files(http.server.BaseHTTPRequestHandler):
    """A server of files that cuts each transfer off after a while, and takes ranges."""

    protocol_version = "HTTP/1.1"
    content = b""
    tag = '"one"'
    cut_after = 2**40
    asked = []
    # What it must be shown, and what it was shown.
    wanted = None
    shown = []
    leads_to = None
    # Called with each part that is asked for by its end as well.
    on_part = staticmethod(lambda start, end: None)

    def log_message(self, *words):
        pass

    def do_GET(self):
        start, end = 0, len(self.content)
        if self.headers.get("range") and self.headers.get("if-range") == self.tag:
            start, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
            start, end = int(start), int(last or end - 1) + 1
            if last:
                self.on_part(start, end)
        type(self).asked.append((self.path, start))
        type(self).shown.append(self.headers.get("authorization"))
        if self.wanted and self.shown[-1] != f"Bearer {self.wanted}":
            self.send_response(401)
            self.send_header("content-length", "0")
            return self.end_headers()
        rest = self.content[start:end]
        if self.leads_to:
            self.send_response(302)
            self.send_header("location", self.leads_to)
            self.send_header("content-length", "0")
            return self.end_headers()
        if self.path.startswith("/missing"):
            self.send_response(404)
            self.send_header("content-length", "0")
            return self.end_headers()
        if start and not rest:
            self.send_response(416)
            self.send_header("content-range", f"bytes */{start}")
            self.send_header("content-length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("content-range", f"bytes {start}-{end - 1}/{len(self.content)}")
        self.send_header("accept-ranges", "bytes")
        self.send_header("content-length", str(len(rest)))
        self.send_header("etag", self.tag)
        self.end_headers()
        try:
            self.wfile.write(rest[: self.cut_after])
            self.wfile.flush()
        except OSError:
            # The rest comes by other connections.
            self.close_connection = True
            return
        if len(rest) > self.cut_after:
            self.close_connection = True
            self.connection.shutdown(2)


@pytest.fixture
def files():
    yield from served()


# Another host: the hub leads to it.
@pytest.fixture
def store_of_files():
    yield from served()


def served():
    handler = type("Served", (Files,), {"asked": [], "shown": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handler.url = f"http://127.0.0.1:{server.server_port}"
        yield handler
        server.shutdown()


def test_a_model_is_pulled_and_goes_on_where_it_was_cut_off(cloud, files):
    files.content, files.cut_after = gguf.tiny(salt=10), 400
    digest = hashlib.sha256(files.content).hexdigest()
    pull = lambda *words, check=True: cloud.tram("models", "pull", "--data-dir", cloud.data, *words, check=check)
    pull(f"{files.url}/Tiny.Q8_0.gguf", "--sha256", digest)
    assert [start for _, start in files.asked] == list(range(0, len(files.content), 400))
    shown = json.loads(cloud.tram("models", "show", "tiny.q8_0", "--output", "json").stdout)
    assert (shown["digest"], shown["origin"]) == (f"sha256:{digest}", f"{files.url}/Tiny.Q8_0.gguf")
    assert not list((cloud.data / "models" / "downloads").iterdir())
    files.asked.clear()
    files.cut_after = 2**40
    pull("hf://acme/tiny/folder/model.gguf@v1", "--hub", files.url, "--name", "of-the-hub")
    assert files.asked == [("/acme/tiny/resolve/v1/folder/model.gguf", 0)]
    # What only the name is wrong of is not fetched again.
    files.asked.clear()
    files.content = gguf.tiny(salt=12)
    refused = pull(f"{files.url}/other.gguf", "--name", "of-the-hub", check=False)
    assert refused.returncode == 1 and "is another one" in refused.stderr
    pull(f"{files.url}/other.gguf")
    assert [start for _, start in files.asked] == [0, len(files.content)]
    assert not list((cloud.data / "models" / "downloads").iterdir())
    files.content = gguf.tiny(salt=11)
    for words, said in (
        ((f"{files.url}/changed.gguf", "--sha256", digest), "it was changed on the way"),
        ((f"{files.url}/missing.gguf",), "there is no"),
        (("http://example.org/a.gguf",), "is no source of a model"),
        (("hf://acme/tiny",), "names no file"),
    ):
        refused = pull(*words, check=False)
        assert refused.returncode == 1 and said in refused.stderr, refused.stderr
    files.content = b"<html>not a model</html>" * 100
    refused = pull(f"{files.url}/page.gguf", check=False)
    assert refused.returncode == 1 and "does not start with `GGUF`" in refused.stderr


def test_a_large_file_comes_in_parts_side_by_side(cloud, files, store_of_files):
    # Five parts: the first by the first answer, the others together.
    part = 16 * 1024 * 1024
    store_of_files.content = gguf.tiny(weights=os.urandom(5 * part - 4096))
    store_of_files.tag = files.tag = '"large"'
    files.leads_to = f"{store_of_files.url}/a-blob"
    digest = hashlib.sha256(store_of_files.content).hexdigest()
    together = threading.Barrier(4, timeout=60)
    parts = []

    def part_asked(start, end):
        together.wait()
        parts.append((start, end))

    store_of_files.on_part = staticmethod(part_asked)
    pull = ("models", "pull", "--data-dir", cloud.data)
    cloud.tram(*pull, f"{files.url}/large.gguf", "--sha256", digest, "--name", "large", timeout=120)
    parts.sort()
    assert len(parts) == 4 and parts[-1][1] == len(store_of_files.content)
    assert all(before[1] == after[0] for before, after in zip(parts, parts[1:])) and parts[0][0] >= part
    assert len(files.asked) == 1, "where the first answer led, the others are asked for"
    # A part that breaks, another that is refused, and a file that changes meanwhile.
    troubles = ["cut", "changed"]

    def trouble(start, end):
        if start >= 3 * part and troubles:
            match troubles.pop(0):
                case "cut":
                    raise ConnectionAbortedError
                case "changed":
                    store_of_files.content = gguf.tiny(weights=os.urandom(5 * part - 4096))
                    store_of_files.tag = '"other"'

    store_of_files.on_part = staticmethod(trouble)
    cloud.tram(*pull, f"{files.url}/larger.gguf", "--name", "larger", timeout=120)
    assert not troubles
    shown = json.loads(cloud.tram("models", "show", "larger", "--output", "json").stdout)
    assert shown["digest"] == f"sha256:{hashlib.sha256(store_of_files.content).hexdigest()}"
    assert not list((cloud.data / "models" / "downloads").iterdir())


@pytest.fixture
def small_store():
    cloud = Cloud(models_space_max="3MiB").start()
    yield cloud
    cloud.remove()


def test_models_that_nobody_uses_make_room_for_new_ones(small_store, tmp_path):
    cloud = small_store
    take = lambda name, salt, check=True: cloud.tram(
        "models", "import", "--data-dir", cloud.data, name, write(salt), check=check)

    def write(salt):
        file = tmp_path / f"{salt}.gguf"
        file.write_bytes(gguf.tiny(salt=salt, weights=bytes(1 << 20)))
        return file

    take("one", 1), take("two", 2)
    assert "`one` was removed to make room" in take("three", 3).stderr
    listed = lambda: {model["name"] for model in json.loads(cloud.tram("models", "list", "--output", "json").stdout)}
    assert listed() == {"two", "three"}
    large = tmp_path / "large.gguf"
    large.write_bytes(gguf.tiny(weights=bytes(4 << 20)))
    refused = cloud.tram("models", "import", "--data-dir", cloud.data, "large", large, check=False)
    assert refused.returncode == 1 and "`models_space_max`" in refused.stderr
    assert listed() == {"two", "three"}


def test_a_token_of_the_hub_is_shown_to_the_hub_alone(cloud, files, store_of_files, monkeypatch):
    files.wanted, files.leads_to = "hf_secret", f"{store_of_files.url}/a-blob"
    store_of_files.content = gguf.tiny(salt=13)
    words = ("models", "pull", "--data-dir", cloud.data, "hf://acme/private/model.gguf", "--hub", files.url, "--name", "private")
    refused = cloud.tram(*words, check=False)
    assert refused.returncode == 1 and "set HF_TOKEN" in refused.stderr
    monkeypatch.setitem(cloud.environment, "HF_TOKEN", "hf_secret")
    cloud.tram(*words)
    assert (files.shown, store_of_files.shown) == ([None, "Bearer hf_secret"], [None])
    cloud.tram("models", "pull", "--data-dir", cloud.data, f"{store_of_files.url}/web.gguf")
    assert store_of_files.shown == [None, None], "a place on the web is not the hub"
    plain = cloud.tram(*words[:-3], "http://hub.example.org", "--name", "plain", check=False)
    assert plain.returncode == 1 and "asked without TLS" in plain.stderr


def test_a_token_of_the_hub_may_be_a_secret(cloud, files, store_of_files):
    files.wanted, files.leads_to = "hf_of_a_secret", f"{store_of_files.url}/a-blob"
    store_of_files.content = gguf.tiny(salt=14)
    login = {"url": files.url, "username": "acme", "password": "hf_of_a_secret"}
    status, reply = cloud.call("POST", "/v1/secrets", {"name": "hub", "type": "REGISTRY", "private_registry": login})
    assert status == 200, reply
    words = ("models", "pull", "--data-dir", cloud.data, "--name", "by-token", "--secret", "hub")
    cloud.tram(*words, "hf://acme/private/model.gguf", "--hub", files.url)
    assert (files.shown, store_of_files.shown) == (["Bearer hf_of_a_secret"], [None])
    other = cloud.tram(*words, "hf://acme/private/model.gguf", "--hub", store_of_files.url, check=False)
    assert other.returncode == 1 and "is a login of 127.0.0.1" in other.stderr
    web = cloud.tram(*words, f"{files.url}/model.gguf", check=False)
    assert web.returncode == 1 and "`--secret` is for `hf://` and `oci://`" in web.stderr


def test_a_name_of_the_catalog_is_pulled(cloud, files):
    listed = json.loads(cloud.tram("models", "catalog", "--output", "json").stdout)
    entry = next(one for one in listed if one["name"] == "smollm2-135m-instruct")
    assert (entry["licence"], entry["is_open"], entry["is_stored"]) == ("Apache-2.0", True, False)
    assert entry["source"].startswith("hf://") and int(entry["needed_bytes"]) > int(entry["size_bytes"])
    assert "mistral-7b-instruct" in cloud.tram("models", "catalog").stdout
    files.content = gguf.tiny(salt=12)
    cloud.tram("models", "pull", "--data-dir", cloud.data, entry["name"], "--hub", files.url)
    _, repository, file = entry["source"].removeprefix("hf://").split("/")
    assert files.asked == [(f"/bartowski/{repository}/resolve/main/{file}", 0)]
    listed = json.loads(cloud.tram("models", "catalog", "--output", "json").stdout)
    assert next(one for one in listed if one["name"] == entry["name"])["is_stored"]
    refused = cloud.tram("models", "pull", "--data-dir", cloud.data, "no-such-model", check=False)
    assert refused.returncode == 1 and "tram models catalog" in refused.stderr


def test_real_weights_on_the_platforms_own_engine(own_cloud):
    own_cloud.tram("models", "import", "--data-dir", own_cloud.data, "smollm2", WEIGHTS)
    own_cloud.tram("models", "deploy", "smollm2")
    client = openai.OpenAI(base_url=f"{own_cloud.api_url}/v1", api_key=own_cloud.token, max_retries=0)
    asked = {"temperature": 0, "max_tokens": 24, "seed": 1}
    whole = ask(client, "smollm2", "What is the capital of France?", **asked)
    assert whole.choices[0].message.content and 0 < whole.usage.completion_tokens <= 24
    chunks = ask(client, "smollm2", "What is the capital of France?", stream=True, **asked)
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert own_cloud.tram("chat", "smollm2", "Say hello.", "--max-tokens", "8").stdout.strip()


@pytest.mark.parametrize("kind", gguf.HOSTILE)
def test_what_is_no_model_is_not_taken_in(cloud, take_in, kind):
    content, words = gguf.HOSTILE[kind]
    refused = take_in(f"hostile-{kind}", content, check=False)
    assert refused.returncode == 1 and words in refused.stderr
    assert f"hostile-{kind}" not in cloud.tram("models", "list").stdout


def test_a_definition_must_name_a_model_that_is_here_and_fits(cloud, model, name):
    def refused(source, kind="micro"):
        definition = {
            "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": kind}], "model": source,
        }
        status, reply = cloud.call("POST", "/v1/compose", {"app": {"name": name}, "services": [{"definition": definition}]})
        assert status == 400, reply
        return {re.sub(r"^.*definition\.", "", field["field"]): field["description"] for field in reply["fields"]}

    assert "there is no model `gone`" in refused({"source": "gone"})["model.source"]
    assert "there is no engine `steam` here" in refused({"source": model, "engine": "steam"})["model.engine"]
    assert "trained for 4096 tokens" in refused({"source": model, "context_length": 5000})["model.context_length"]
    done = cloud.tram("models", "deploy", "no-such-model", check=False)
    assert done.returncode == 1 and "there is no model `no-such-model`" in done.stderr
