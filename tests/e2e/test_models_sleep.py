"""What a model has read stays in light sleep, with its memory, and in deep sleep, in a file of its replica."""

import pathlib

import pytest

from cloud import Cloud, wait_for
from engine import WEIGHTS

RULES = "You are the clerk of a small town. Rule %d: be kind, be brief, name your source. "
CONVERSATION = [
    {"role": "system", "content": "".join(RULES % number for number in range(12))},
    {"role": "user", "content": "When is the library open?"},
]


@pytest.fixture(scope="module")
def models():
    """A cloud of its own: the shared one has a stand-in in place of the engine."""
    cloud = Cloud().start()
    cloud.tram("models", "import", "--data-dir", cloud.data, "smollm2", WEIGHTS)
    yield cloud
    cloud.remove()


def deploy(cloud, name, **delay):
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": "WEB", "regions": ["fra"], "instance_types": [{"type": "micro"}],
        "model": {"source": "smollm2"}, "scalings": [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": delay}]}],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    assert status == 200, reply
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    return reply["service"]["id"]


def usage(cloud, name):
    body = {"model": name, "messages": CONVERSATION, "max_tokens": 4, "temperature": 0}
    status, answer = cloud.call("POST", "/v1/chat/completions", body)
    assert status == 200, answer
    found = answer["usage"]
    return found["prompt_tokens_details"]["cached_tokens"], found["prompt_tokens"]


def test_light_sleep_keeps_what_was_read(models):
    service = deploy(models, "lightly", light_sleep_value=1, deep_sleep_value=3600)
    cached, prompt = usage(models, "lightly")
    assert cached == 0 and prompt > 200
    for _ in range(2):
        wait_for("the model is frozen", lambda: models.instances(service, "SLEEPING"))
        cached, prompt = usage(models, "lightly")
        # Whole blocks of 16, and the last token is always computed.
        assert cached >= prompt - 17


def fall_asleep(cloud, service):
    live = ("HEALTHY", "STARTING", "STOPPING", "ALLOCATING")
    wait_for("nothing runs", lambda: not cloud.instances(service, *live))


def kept_files(cloud):
    """Every file in which a deployment keeps what it has computed."""
    return [path for path in (pathlib.Path(cloud.data) / "site/local/prompts").glob("*/*")]


def test_deep_sleep_keeps_what_was_read(models):
    service = deploy(models, "deeply", deep_sleep_value=1)
    cached, prompt = usage(models, "deeply")
    assert cached == 0
    for _ in range(2):
        fall_asleep(models, service)
        cached, prompt = usage(models, "deeply")
        assert cached >= prompt - 17
    (kept,) = [path for path in kept_files(models) if path.stat().st_size > 0]
    assert kept.stat().st_mode & 0o077 == 0, "nobody else reads it"
    # Damage costs the time to compute it, and no more.
    fall_asleep(models, service)
    damaged = bytearray(kept.read_bytes())
    damaged[1000] ^= 1
    kept.write_bytes(damaged)
    assert usage(models, "deeply")[0] == 0
    fall_asleep(models, service)
    assert usage(models, "deeply")[0] >= prompt - 17
    # It goes with the deployment.
    models.call("DELETE", f"/v1/services/{service}")
    wait_for("it is gone", lambda: not kept.exists())


def test_nothing_is_kept_where_the_operator_says_so():
    cloud = Cloud(kept_prompts_max="none").start()
    try:
        cloud.tram("models", "import", "--data-dir", cloud.data, "smollm2", WEIGHTS)
        service = deploy(cloud, "deeply", deep_sleep_value=1)
        usage(cloud, "deeply")
        fall_asleep(cloud, service)
        assert kept_files(cloud) == []
        assert usage(cloud, "deeply")[0] == 0
    finally:
        cloud.remove()
