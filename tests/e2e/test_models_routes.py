"""Routes: a name of one's own that leads to several models, by weight, with fallbacks, and never further than its caller
may go. The models are engines of the type `openai` that answer, refuse or fail as they are asked to."""

import collections
import json
import urllib.error
import urllib.request

import openai
import pytest

import standin
from cloud import wait_for

IMAGE = "routes.test/engine"

PROGRAM = standin.SERVER + r'''
import os

NAME = os.environ["KOYEB_SERVICE_NAME"]


class Handler(Json):
    def do_GET(self):
        self.reply(200, {"object": "list", "data": []})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        words = asked["messages"][-1]["content"].split()
        # Such as `red 429`: that one refuses.
        if NAME in words:
            status = int(words[words.index(NAME) + 1])
            return self.reply(status, {"error": {"message": f"{NAME} says {status}"}})
        message = {"role": "assistant", "content": NAME}
        usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        self.reply(200, {"id": "x", "object": "chat.completion", "created": 1, "model": asked["model"],
                         "choices": [choice], "usage": usage})


Server(("0.0.0.0", int(os.environ["PORT"])), Handler).serve_forever()
'''


@pytest.fixture(scope="module")
def models(cloud, tmp_path_factory):
    archive = standin.archive(tmp_path_factory.mktemp("routes"), PROGRAM)
    cloud.tram("images", "import", "--data-dir", cloud.data, archive, "--name", IMAGE)
    names = ("red", "blue", "green")
    for name in names:
        cloud.tram(
            "models", "deploy", "/in/the/image", "--name", name, "--engine", "openai",
            "--image", IMAGE, "--instance-type", "micro",
        )
    yield names
    for name in names:
        cloud.tram("services", "delete", f"{name}/{name}")


@pytest.fixture
def client(cloud, models):
    return openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0, timeout=60)


@pytest.fixture
def route(cloud, models, name):
    """Sets a route under a name that no other test has."""

    def set(*words, check=True):
        return cloud.tram("models", "route", "set", name, *words, check=check)

    set.name = name
    yield set
    cloud.tram("models", "route", "remove", name, check=False)


def ask(client, model, said="hello"):
    return client.chat.completions.create(model=model, messages=[{"role": "user", "content": said}])


def who(client, model, said="hello"):
    return ask(client, model, said).choices[0].message.content


def test_weights_divide_the_questions(client, route):
    route("--to", "red=9", "--to", "blue/blue=1")
    answered = collections.Counter(who(client, route.name) for _ in range(100))
    assert set(answered) == {"red", "blue"} and answered["red"] > 70, answered
    route("--to", "green")
    assert who(client, route.name) == "green", "set anew is in place of what it was"


@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_fallback_stands_in_for_who_refuses(client, route, status):
    route("--to", "red", "--fallback", "blue", "--fallback", "green")
    assert who(client, route.name) == "red"
    assert who(client, route.name, f"red {status}") == "blue"
    assert who(client, route.name, f"red {status} blue 500") == "green"
    with pytest.raises(openai.APIStatusError, match="green says 502"):
        ask(client, route.name, f"red {status} blue 500 green 502")


def test_who_asks_wrongly_is_told_so_by_the_first(client, route):
    route("--to", "red", "--fallback", "blue")
    with pytest.raises(openai.BadRequestError, match="red says 400"):
        ask(client, route.name, "red 400")


def test_a_fallback_stands_in_for_who_is_not_there(cloud, client, route):
    cloud.tram(
        "models", "deploy", "/in/the/image", "--name", "gone", "--engine", "openai",
        "--image", IMAGE, "--instance-type", "micro",
    )
    route("--to", "gone", "--fallback", "blue")
    assert who(client, route.name) == "gone"
    cloud.tram("services", "pause", "gone/gone")
    cloud.wait_status(cloud.service("gone")["id"], "PAUSED")
    wait_for("the fallback answers", lambda: who(client, route.name) == "blue")
    cloud.tram("services", "delete", "gone/gone")
    wait_for("it is gone", lambda: "gone" not in {one.id for one in client.models.list()})
    assert who(client, route.name) == "blue", "what is gone altogether is passed over"


def test_it_says_who_answered_and_counts_what_was_asked(cloud, client, route):
    route("--to", "red")
    assert ask(client, route.name).model == "red"
    listed = {one.id: one for one in client.models.list()}
    assert route.name in listed and client.models.retrieve(route.name).id == route.name

    def counted():
        periods = cloud.call("GET", "/v1/usages?by=model,service")[1]["usage"]["periods"]
        rows = [row for period in periods.values() for row in period["tokens"] if row["model"] == route.name]
        return [(row["service_id"], row["prompt_tokens"], row["completion_tokens"]) for row in rows]

    wait_for(
        "it is counted",
        lambda: counted() == [(cloud.service("red")["id"], 2, 1)],
        seconds=10,
    )


def test_it_leads_no_further_than_its_caller_may_go(cloud, client, route):
    made = cloud.call("POST", "/v1/projects", {"name": f"other-{route.name[-6:]}"})[1]["project"]["id"]
    route("--to", "red")
    request = urllib.request.Request(
        f"{cloud.api_url}/v1/chat/completions",
        json.dumps({"model": route.name, "messages": [{"role": "user", "content": "hello"}]}).encode(),
        {"authorization": f"Bearer {cloud.token}", "content-type": "application/json", "x-koyeb-project-id": made},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 503
    assert json.load(refused.value)["error"]["code"] == "route_leads_nowhere"
    region = cloud.call("GET", "/v1/catalog/regions")[1]["regions"][0]["id"]
    route("--to", "red", "--region", region)
    assert who(client, route.name) == "red"


def test_it_stands_in_front_of_a_service_and_wrong_ones_are_refused(cloud, client, models):
    cloud.tram("models", "route", "set", "red", "--to", "blue")
    assert who(client, "red") == "blue"
    assert who(client, "red/red") == "red"
    cloud.tram("models", "route", "rm", "red")
    assert who(client, "red") == "red"

    def refused(*words):
        done = cloud.tram("models", "route", "set", *words, check=False)
        assert done.returncode
        return done.stderr

    assert "targets.0.model: there is no model `nobody`" in refused("wrong", "--to", "nobody")
    assert "fallbacks.0: there is no model `nobody`" in refused("wrong", "--to", "red", "--fallback", "nobody")
    assert "regions.0: there is no region `mars` here" in refused("wrong", "--to", "red", "--region", "mars")
    assert "targets.0.weight: must be from 1 to 1000" in refused("wrong", "--to", "red=2000")
    assert "there is no model route" in cloud.tram("models", "route", "rm", "wrong", check=False).stderr
