"""What questions to models cost is counted once, whoever is killed, shown, and bounded before it is spent; with the
platform's own engine and OpenAI's own client."""

import concurrent.futures
import json
import os
import random
import re
import signal
import time
import urllib.request

import openai
import pytest

from cloud import Cloud, wait_for
from engine import WEIGHTS

MODEL = "smollm2"


@pytest.fixture(scope="module")
def cloud():
    """A cloud with the platform's own engine, which other tests put a stand-in in place of."""
    cloud = Cloud().start()
    yield cloud
    cloud.remove()


@pytest.fixture(scope="module")
def model(cloud):
    cloud.tram("models", "import", "--data-dir", cloud.data, MODEL, WEIGHTS)
    cloud.tram("models", "deploy", MODEL, timeout=400)
    return MODEL


@pytest.fixture
def token(cloud, name):
    """A token that may only ask models."""
    made = json.loads(cloud.tram("tokens", "create", name, "--output", "json").stdout)
    return made


def client(cloud, token, **more):
    return openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=token, max_retries=0, **more)


def ask(client, said="Count to five.", model=MODEL, tokens=8, **more):
    messages = [{"role": "user", "content": said}]
    return client.chat.completions.create(
        model=model, messages=messages, max_tokens=tokens, temperature=0, **more
    )


def usage(cloud, by="credential"):
    """Rows of `tram usage` by their id."""
    rows = json.loads(cloud.tram("usage", "--by", by, "--output", "json").stdout)
    return {row["id"]: row for row in rows}


def counted(cloud, token):
    row = usage(cloud).get(token["id"])
    return (row["requests"], row["prompt_tokens"], row["completion_tokens"]) if row else (0, 0, 0)


def test_what_answers_say_is_what_is_counted(cloud, model, token):
    asker = client(cloud, token["token"])
    asked = [ask(asker).usage, ask(asker, "What is a mistral?").usage]
    # Streams that say what they cost, and one that was not asked to.
    with ask(asker, stream=True, stream_options={"include_usage": True}) as stream:
        asked.append([chunk for chunk in stream][-1].usage)
    silent = list(ask(asker, stream=True))
    assert all(chunk.usage is None for chunk in silent), "nobody asked for it"
    asked.append(asked[-1])
    expected = (4, sum(one.prompt_tokens for one in asked), sum(one.completion_tokens for one in asked))
    wait_for("all is counted", lambda: counted(cloud, token) == expected, seconds=10)

    row = usage(cloud)[token["id"]]
    assert row["name"] == token["name"] and row["failed_requests"] == 0 and row["mean_first_token_ms"] > 0
    assert row["cached_tokens"] > 0, "the same was asked before"
    assert usage(cloud, "model")[MODEL]["requests"] >= 4
    service = cloud.service(model)
    assert usage(cloud, "service")[service["id"]]["name"] == f"{model}/{model}"
    table = cloud.tram("usage", "--by", "credential", "--since", "1h").stdout
    assert re.search(rf"{re.escape(token['name'])}\s+4\s", table), table

    status, reply = cloud.call("GET", "/v1/usages?by=credential,service")
    assert status == 200
    month = list(reply["usage"]["periods"].values())[-1]
    row = next(row for row in month["tokens"] if row["credential_id"] == token["id"])
    assert (row["requests"], row["service_id"], row["model"]) == (4, service["id"], "")
    seconds = month["apps"][0]["services"][0]["regions"]
    assert seconds, "what upstream's clients know is still there"

    status, text = scrape(cloud)
    labels = rf'{{model_name="{MODEL}",service="{MODEL}/{MODEL}",service_id="{service["id"]}"}}'
    tokens = re.search(rf"^vllm:generation_tokens_total{re.escape(labels)} (\d+)$", text, re.M)
    assert tokens and int(tokens[1]) >= expected[2], text
    assert re.search(rf"^vllm:time_to_first_token_seconds_count{re.escape(labels)} [1-9]", text, re.M)
    assert re.search(r"^tram_edge_usage_lost_total 0$", text, re.M)


def scrape(cloud):
    with urllib.request.urlopen(f"{cloud.api_url}/metrics", timeout=30) as reply:
        return reply.status, reply.read().decode()


def test_a_direct_question_is_nobodys_and_cannot_pass_for_somebody(cloud, model, token):
    headers = {"x-tram-tenant": token["id"], "x-tram-priority": "high", "content-type": "application/json"}
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}).encode()
    before = usage(cloud).get("", {"requests": 0})["requests"]
    status, _, reply = cloud.get(cloud.host(model), "/v1/chat/completions", "POST", body, headers, timeout=120)
    assert status == 200, reply
    wait_for("it is counted", lambda: usage(cloud).get("", {"requests": 0})["requests"] > before, seconds=10)
    assert counted(cloud, token) == (0, 0, 0)


def test_questions_a_minute(cloud, model, token):
    cloud.tram("limits", "set", "--token", token["name"], "--requests-per-minute", "20", "--priority", "high")
    asker = client(cloud, token["token"])
    left = []
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(60):
            reply = asker.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
            )
            assert reply.headers["x-ratelimit-limit-requests"] == "20"
            left.append(int(reply.headers["x-ratelimit-remaining-requests"]))
    took = time.monotonic() - began
    # What came back meanwhile, a question in three seconds, is all that there is beyond twenty.
    assert 20 <= len(left) <= 20 + took / 3 + 1 and left[0] == 19
    error = refused.value
    assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
    after = int(error.response.headers["retry-after"])
    assert 1 <= after <= 3 and error.response.headers["x-ratelimit-remaining-requests"] == "0"
    # The client waits as it was told, and then it is let in.
    patient = openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=token["token"], max_retries=1)
    assert ask(patient, tokens=1).usage.completion_tokens == 1
    listed = json.loads(cloud.tram("limits", "list", "--output", "json").stdout)
    own = next(limit for limit in listed if limit["id"] == token["id"])
    assert (own["requests_per_minute"], own["tokens_per_minute"], own["priority"]) == (20, 0, "high")
    cloud.tram("limits", "remove", "--token", token["name"])
    for _ in range(5):
        ask(asker, tokens=1)


def test_tokens_are_set_aside_and_settled(cloud, model, token):
    cloud.tram("limits", "set", "--token", token["name"], "--tokens-per-minute", "2000")
    asker = client(cloud, token["token"])
    raw = asker.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1500
    )
    left = int(raw.headers["x-ratelimit-remaining-tokens"])
    assert left <= 500 and raw.headers["x-ratelimit-limit-tokens"] == "2000"
    cost = raw.parse().usage.total_tokens

    def settled():
        """What is left once the record was counted: all but what it cost."""
        try:
            reply = asker.chat.completions.with_raw_response.create(
                model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=1
            )
        except openai.RateLimitError:
            return False
        return int(reply.headers["x-ratelimit-remaining-tokens"]) > 500

    if cost < 1400:
        wait_for("the record settles it", settled, seconds=10, every=0.2)
    # As much as one likes cannot be asked for at once: a minute's worth is set aside and the next one waits.
    ask(asker, "Hi", tokens=1)
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(3):
            ask(asker, "Hi", tokens=1900, stream=True).close()
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "tokens")
    assert "tokens a minute" in refused.value.message


def test_tokens_a_month(cloud, model, token):
    asker = client(cloud, token["token"])
    spent = ask(asker).usage.total_tokens
    wait_for("it is counted", lambda: counted(cloud, token)[0] == 1, seconds=10)
    cloud.tram("limits", "set", "--token", token["name"], "--tokens-per-month", str(spent + 40))
    with pytest.raises(openai.RateLimitError) as refused:
        ask(asker, tokens=50)
    error = refused.value
    assert (error.code, error.type) == ("insufficient_quota", "insufficient_quota")
    assert error.response.headers["x-should-retry"] == "false"
    assert error.response.headers["x-ratelimit-remaining-tokens-month"] == "40"
    assert int(error.response.headers["retry-after"]) > 0
    with pytest.raises(openai.RateLimitError, match="fits into no month") as refused:
        ask(asker, tokens=100)
    assert "retry-after" not in refused.value.response.headers, "waiting is of no use"
    # The client does not hammer: it gives up at once.
    hasty = openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=token["token"], max_retries=5)
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError):
        ask(hasty, tokens=100)
    assert time.monotonic() - began < 5
    # The organization's own bound holds for all of its tokens.
    cloud.tram("limits", "set", "--organization", "--tokens-per-month", "1")
    try:
        with pytest.raises(openai.RateLimitError) as refused:
            ask(client(cloud, cloud.token), tokens=1)
        assert "this organization" in refused.value.message
    finally:
        cloud.tram("limits", "remove", "--organization")


def test_a_token_for_models_may_do_nothing_else(cloud, model, token):
    assert MODEL in [one.id for one in client(cloud, token["token"]).models.list()]
    for method, path in (("GET", "/v1/apps"), ("GET", "/v1/model_limits"), ("PUT", f"/v1/model_limits/{token['id']}")):
        status, reply = cloud.call(method, path, {} if method == "PUT" else None, token=token["token"])
        assert status == 403 and "only ask models" in reply["message"], (path, reply)


def test_each_answer_counts_once_whoever_is_killed(own_cloud):
    """kill -9 of the control plane and of the edge, at random moments, while several clients ask."""
    seed = int(os.environ.get("TRAM_TEST_SEED", random.randrange(1 << 32)))
    dice = random.Random(seed)
    cloud = own_cloud
    cloud.tram("models", "import", "--data-dir", cloud.data, MODEL, WEIGHTS)
    cloud.tram("models", "deploy", MODEL, timeout=400)
    host = cloud.host(MODEL)
    body = json.dumps(
        {"model": MODEL, "messages": [{"role": "user", "content": "Count to ten."}], "max_tokens": 6, "temperature": 0}
    ).encode()
    headers = {"content-type": "application/json"}
    until = time.monotonic() + 25

    def keep_asking():
        """What came back whole, by the service's own URL: the edge alone stands between; and how much broke off."""
        whole, broken = [], 0
        while time.monotonic() < until:
            try:
                status, _, reply = cloud.get(host, "/v1/chat/completions", "POST", body, headers, timeout=120)
                if status == 200:
                    whole.append(json.loads(reply)["usage"])
                else:
                    broken += 1
                    time.sleep(0.1)
            except (OSError, ValueError):
                broken += 1
                time.sleep(0.1)
        return whole, broken

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(keep_asking) for _ in range(3)]
        while time.monotonic() < until - 4:
            time.sleep(dice.uniform(0.2, 2.0))
            if dice.random() < 0.5:
                edge = cloud.helper_pid("edge")
                if edge:
                    os.kill(edge, signal.SIGKILL)
            else:
                cloud.kill()
                time.sleep(dice.uniform(0, 0.5))
                cloud.start()
        results = [one.result() for one in asking]
    whole = [usage for result in results for usage in result[0]]
    broken = sum(result[1] for result in results)
    assert len(whole) > 10, f"seed {seed}: too few answers to say anything"
    wait_for("tram up answers", cloud.answers)

    def seen():
        return usage(cloud).get("", {"requests": 0, "completion_tokens": 0})

    # Nothing that came back whole is missing.
    wait_for(f"seed {seed}: all is counted", lambda: seen()["completion_tokens"] >= sum(one["completion_tokens"] for one in whole))
    time.sleep(1)
    row = seen()
    # Nothing is there twice: what broke off may have been written, and may not.
    most = sum(one["completion_tokens"] for one in whole) + 6 * broken
    assert len(whole) <= row["requests"] <= len(whole) + broken, (seed, row, len(whole), broken)
    assert row["completion_tokens"] <= most, (seed, row, most)
