"""What goes wrong is told with its cause, and the neighbours notice nothing."""

import pytest

from asker import Asker
from cloud import wait_for


@pytest.fixture(scope="module")
def next_door(cloud, registry):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", "good-neighbour", "--port", "8000")
    return cloud.host("good-neighbour")


@pytest.fixture
def neighbour(cloud, next_door):
    """Asked all through a test, and every answer is good."""
    asker = Asker(cloud, next_door, [b"Hello from version 1\n"])
    yield asker
    before = asker.good
    wait_for("it still answers", lambda: asker.good > before or asker.bad)
    asker.stop()
    assert not asker.bad, asker.bad[:5]


def failed(cloud, *arguments):
    done = cloud.tram("deploy", *arguments, "--timeout", "90s", check=False)
    assert done.returncode == 1, done
    return done.stderr


def test_an_image_that_does_not_exist(cloud, registry, name, neighbour):
    said = failed(cloud, f"127.0.0.1:{registry.port}/nothing:here", "--name", name, "--port", "8000")
    assert "nothing:here" in said and "not found" in said


def test_a_registry_that_is_not_there(cloud, name, neighbour):
    said = failed(cloud, "127.0.0.1:1/hello:1", "--name", name, "--port", "8000")
    assert "127.0.0.1:1" in said


def test_a_program_that_leaves_at_once(cloud, registry, name, neighbour):
    said = failed(cloud, registry.image("crash"), "--name", name, "--port", "8000")
    assert "exit code 7" in said
    assert "cannot reach the database" in said
    status, _, body = cloud.get(cloud.host(name))
    assert status in (502, 503) and b"exit code 7" in body


def test_a_port_nobody_listens_on(own_cloud, registry, name):
    cloud = own_cloud
    done = cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "9999",
                      "--check", "tcp:9999", "--timeout", "20s", check=False)
    assert done.returncode != 0
    instances = wait_for("an instance", lambda: cloud.instances(cloud.service(name)["id"]))
    assert instances
    said = done.stderr + str(cloud.call("GET", f"/v1/deployments/{cloud.service(name)['latest_deployment_id']}")[1])
    assert "9999" in said and "8000" in said, said


def test_a_failed_rollout_leaves_the_old_version_serving(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    before = cloud.service(name)
    said = failed(cloud, registry.image("crash"), "--name", name, "--port", "8000")
    assert "exit code 7" in said
    after = cloud.service(name)
    assert after["active_deployment_id"] == before["active_deployment_id"]
    assert after["status"] == "DEGRADED"
    assert cloud.get(cloud.host(name))[2] == b"Hello from version 1\n"


def test_memory_that_is_not_there(cloud, registry, name, neighbour):
    eat = "import time; x = []\nwhile True: x.append(bytearray(16 << 20)); print(len(x), flush=True)"
    said = failed(cloud, registry.image("fastapi"), "--name", name, "--port", "8000", "--instance-type", "nano",
                  "--command", eat, "--entrypoint", "python3", "--entrypoint=-c")
    assert "memory" in said and "256 MiB" in said


def test_bad_requests_name_their_field(cloud):
    status, reply = cloud.call("POST", "/v1/apps", {"name": "No Good"})
    assert status == 400 and reply["fields"][0]["field"] == "name"
    status, reply = cloud.call("POST", "/v1/apps", b"{not json")
    assert status == 400 and reply["status"] == 400
    status, reply = cloud.call("POST", "/v1/services", {"app_id": "x", "definition": {"ports": [{"port": "a"}]}})
    assert status == 400
    status, reply = cloud.call("GET", "/v1/apps", token="0" * 64)
    assert status == 401 and reply["code"] == "authentication_error"
