"""Three models share the memory of two: the platform's own engine with real weights, asked in turns and while others answer."""

import concurrent.futures
import contextlib
import http.client
import json
import threading
import urllib.request

import pytest

from cloud import Cloud, wait_for
from engine import WEIGHTS

MIB = 1024 * 1024
NAMES = ("one", "two", "three")
# Memory is held by all of these; what is over holds none.
HOLDING = ("ALLOCATING", "STARTING", "HEALTHY", "UNHEALTHY", "SLEEPING", "STOPPING")
# A caller may wait for a residence of ten seconds, then for a stop and a start.
PATIENCE_SECONDS = 60


class Stream:
    """An answer that goes on for as long as the test wants: ended by closing it."""

    def __init__(self, cloud, name):
        self.connection = http.client.HTTPConnection("127.0.0.1", cloud.api_port, timeout=PATIENCE_SECONDS)
        body = {
            "model": name, "messages": [{"role": "user", "content": "Count."}], "max_tokens": 7000, "ignore_eos": True,
            "stream": True, "temperature": 0,
        }
        headers = {"authorization": f"Bearer {cloud.token}", "content-type": "application/json"}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        self.reply = self.connection.getresponse()
        assert self.reply.status == 200, self.reply.read()
        self.chunks, self.ended, self.closing = 0, False, False
        assert self.reply.readline().startswith(b"data: ")
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        try:
            while line := self.reply.readline():
                self.chunks += line.startswith(b"data: ")
        except (OSError, ValueError, http.client.HTTPException):
            pass
        self.ended = not self.closing

    def goes_on(self):
        before = self.chunks
        return wait_for("the stream goes on", lambda: self.chunks > before or self.ended) and not self.ended

    def close(self):
        self.closing = True
        # The socket, so that whoever reads from it wakes.
        self.connection.sock.shutdown(2)
        self.reader.join()
        self.connection.close()


@pytest.fixture(scope="module")
def models():
    cloud = Cloud(models_memory="900MiB").start()
    cloud.tram("models", "import", "--data-dir", cloud.data, "smollm2", WEIGHTS)
    services = {name: deploy(cloud, name) for name in NAMES}
    yield cloud, services
    cloud.remove()


def deploy(cloud, name):
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": "micro"}],
        "model": {"source": "smollm2", "context_length": 8192},
        "scalings": [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": {"deep_sleep_value": 3600}}]}],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    assert status == 200, reply
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    return reply["service"]


def ask(cloud, name):
    body = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
    request = http.client.HTTPConnection("127.0.0.1", cloud.api_port, timeout=PATIENCE_SECONDS)
    headers = {"authorization": f"Bearer {cloud.token}", "content-type": "application/json"}
    request.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    reply = request.getresponse()
    answer = json.loads(reply.read())
    request.close()
    return reply.status, answer


def held(cloud):
    """Which models hold memory, as of one moment."""
    wanted = "&".join(f"statuses={status}" for status in HOLDING)
    _, reply = cloud.call("GET", f"/v1/instances?limit=100&{wanted}")
    return {one["service_id"] for one in reply["instances"]}


def awake(cloud, service):
    return cloud.instances(service["id"], "HEALTHY")


def events(cloud, service):
    _, reply = cloud.call("GET", f"/v1/deployment_events?deployment_id={service['latest_deployment_id']}&limit=100")
    return [event["message"] for event in reply["events"]]


@pytest.fixture
def watched(models):
    """Looks all the time how many hold memory; fails the test when that are more than two."""
    cloud, _ = models
    over, seen = threading.Event(), []

    def watch():
        while not over.is_set():
            # The control plane may be away.
            with contextlib.suppress(OSError, KeyError, TypeError):
                seen.append(len(held(cloud)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    over.set()
    watcher.join()
    assert seen and max(seen) <= 2, f"{max(seen)} held memory at once"


def test_each_of_three_answers_in_its_turn(models, watched):
    cloud, services = models
    _, stored = cloud.call("GET", "/v1/stored_models")
    [model] = stored["models"]
    needed = int(model["needed_bytes"])
    assert 2 * needed <= 900 * MIB < 3 * needed, "the budget is that of two"
    for name in NAMES * 2:
        status, answer = ask(cloud, name)
        assert status == 200 and answer["choices"][0]["message"]["content"], answer
    told = [message for name in NAMES for message in events(cloud, services[name])]
    whose = [message.rsplit(" ", 1)[1] for message in told if "put to sleep to make room for" in message]
    assert set(whose) <= {f"{name}/{name}" for name in NAMES} and len(whose) >= 4, told


def test_who_answers_stays_and_another_goes(models, watched):
    cloud, services = models
    stream = Stream(cloud, "one")
    [answering] = awake(cloud, services["one"])
    for name in ("two", "three", "two"):
        status, answer = ask(cloud, name)
        assert status == 200, answer
        assert stream.goes_on(), "a stream was cut"
    assert [one["id"] for one in awake(cloud, services["one"])] == [answering["id"]], "it answers from where it began"
    stream.close()


def test_a_caller_waits_for_the_end_of_a_stream(models, watched):
    cloud, services = models
    first, second = Stream(cloud, "one"), Stream(cloud, "two")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waits = pool.submit(ask, cloud, "three")

        def said():
            _, reply = cloud.call("GET", f"/v1/deployments/{services['three']['latest_deployment_id']}")
            return [it for it in reply["deployment"]["messages"] if "2 answer or are waited for" in it]

        [message] = wait_for("its owner can read what it waits for", said)
        assert message.startswith("waiting for memory: ") and "`models_memory`" in message
        assert first.goes_on() and second.goes_on() and not waits.done()
        second.close()
        status, answer = waits.result(timeout=PATIENCE_SECONDS)
        assert status == 200, answer
    assert first.goes_on(), "the other stream was cut"
    first.close()
    assert not awake(cloud, services["two"])


def test_who_waited_in_vain_is_told_why_and_when_to_come_back(models, watched):
    cloud, services = models
    first, second = Stream(cloud, "one"), Stream(cloud, "two")
    # A browser is held for ten seconds.
    status, headers, page = cloud.get(cloud.host("three"), "/v1/models", headers={"accept": "text/html"})
    assert (status, headers["x-tram-error"]) == (503, "no_memory"), page
    assert int(headers["retry-after"]) > 0 and b"needed the memory of this machine" in page
    first.close()
    second.close()
    # The caller left, and the next one is answered.
    assert ask(cloud, "three")[0] == 200


def test_the_figures_say_what_is_held(models):
    cloud, _ = models
    # One of them has to go for another, whatever was before.
    for name in NAMES:
        assert ask(cloud, name)[0] == 200

    def figure(name):
        with urllib.request.urlopen(f"{cloud.api_url}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        return int(next(line.split(" ")[1] for line in lines if line.startswith(name + " ")))

    assert figure("tram_models_memory_budget_bytes") == 900 * MIB
    wait_for("it is counted", lambda: 0 < figure("tram_models_memory_held_bytes") <= 900 * MIB)
    wait_for("it is counted", lambda: figure("tram_models_put_to_sleep_total") >= 1)


def test_a_control_plane_that_dies_forgets_nothing(models, watched):
    cloud, services = models
    for name in ("one", "two"):
        assert ask(cloud, name)[0] == 200
    before = {name: awake(cloud, services[name])[0]["id"] for name in ("one", "two")}
    cloud.kill()
    cloud.start()
    assert {name: awake(cloud, services[name])[0]["id"] for name in before} == before, "adopted, not started anew"
    assert ask(cloud, "three")[0] == 200
