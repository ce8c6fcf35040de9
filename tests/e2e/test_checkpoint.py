"""Light sleep on disk: a program's memory is given back, and it goes on from there when somebody comes."""

import json
import os
import pathlib
import signal
import subprocess
import threading

import pytest

from cloud import BINARY, Cloud, wait_for
from test_light_sleep import COUNTER, Sleeper, definition

# Opens a connection to what its first argument names, and keeps it.
TALKER = COUNTER.replace("count, beats = 0, 0", """import socket, sys
count, beats = 0, 0
talk = socket.create_connection(("127.0.0.1", 8001)) if sys.argv[1:] == ["talk"] else None""")
LISTENER = "import socket; keep = socket.create_server(('127.0.0.1', 8001))\n"
# Some memory that is no page of a file, so that it can be seen to be gone and to be back.
HEAVY = COUNTER.replace("count, beats = 0, 0", "import os\nheap = os.urandom(96 << 20)\ncount, beats = 0, 0")
HEAVY_BYTES = 96 << 20


@pytest.fixture(scope="module")
def cloud():
    cloud = Cloud(light_sleep_checkpoint_after="1s")
    doctor = subprocess.run(
        [BINARY, "doctor", "--output", "json"], capture_output=True, text=True, env=cloud.environment)
    found = next(check for check in json.loads(doctor.stdout) if check["name"] == "checkpoints")
    if found["status"] != "ok":
        pytest.skip(f"instances cannot be checkpointed here: {found['detail']}")
    cloud.start()
    yield cloud
    cloud.remove()


def memory_bytes(cloud, service):
    """What the kernel counts for the service's instances."""
    ids = [one["id"] for one in cloud.instances(service)]
    found = 0
    for path in pathlib.Path("/sys/fs/cgroup").glob("memory/tram/*/*/memory.usage_in_bytes"):
        if path.parent.name in ids:
            found += int(path.read_text())
    for path in pathlib.Path("/sys/fs/cgroup").glob("**/tram/*/*/memory.current"):
        if path.parent.name in ids:
            found += int(path.read_text())
    return found


def images(cloud, service):
    """Checkpoints on the disk."""
    ids = [one["id"] for one in cloud.instances(service)]
    return [path for path in cloud.data.glob("**/instances/*/checkpoint") if path.parent.name in ids]


def wait_on_disk(sleeper):
    def on_disk():
        return images(sleeper.cloud, sleeper.id) and not sleeper.pids()
    wait_for("it is on disk, and no process of it is left", on_disk)
    assert sleeper.cloud.instances(sleeper.id, "SLEEPING")
    assert sleeper.cloud.wait_deployment(sleeper.deployment, "SLEEPING")


def messages(cloud, deployment):
    _, reply = cloud.call("GET", f"/v1/deployments/{deployment}")
    return " ".join(reply["deployment"]["messages"])


def test_its_memory_is_given_back_and_it_goes_on_from_where_it_was(cloud, registry, name):
    wanted = definition(name, registry.image("fastapi"))
    wanted["docker"]["command"] = HEAVY
    wanted["instance_types"] = [{"type": "micro"}]
    sleeper = Sleeper(cloud, name, wanted)
    assert sleeper.ask()["count"] == 1
    assert memory_bytes(cloud, sleeper.id) > HEAVY_BYTES
    for count in (2, 4, 6):
        wait_on_disk(sleeper)
        wait_for("its memory is free", lambda: memory_bytes(cloud, sleeper.id) < HEAVY_BYTES / 20)
        assert cloud.service(name)["status"] == "HEALTHY"
        beats = sleeper.ask()
        assert beats["count"] == count, "its memory is what it was"
        cloud.wait_deployment(sleeper.deployment, "HEALTHY")
        # What is sent on a connection that was kept alive arrives, once.
        assert sleeper.ask(method="POST", body=b"x" * 200_000)["count"] == count + 1
        wait_for("all of it is back", lambda: memory_bytes(cloud, sleeper.id) > HEAVY_BYTES)
    assert "cannot" not in messages(cloud, sleeper.deployment)


def test_a_body_that_wakes_it_arrives_whole_and_many_callers_are_answered_once(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    sent = "x" * 200_000
    answer = sleeper.ask(method="POST", body=sent.encode())
    assert (answer["count"], answer["sent"]) == (2, sent)
    wait_on_disk(sleeper)
    answers = []
    callers = [threading.Thread(target=lambda: answers.append(sleeper.ask()["count"])) for _ in range(30)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(answers) == list(range(3, 33))


def test_what_cannot_go_to_disk_stays_frozen_and_says_why(cloud, registry, name):
    wanted = definition(name, registry.image("fastapi"))
    wanted["docker"]["command"] = LISTENER + TALKER
    wanted["docker"]["args"] = ["talk"]
    sleeper = Sleeper(cloud, name, wanted)
    assert sleeper.ask()["count"] == 1
    pids = sleeper.wait_frozen()
    said = wait_for("the deployment says why", lambda: messages(cloud, sleeper.deployment))
    assert "cannot be moved to disk" in said and "127.0.0.1:8001" in said, said
    assert sleeper.frozen() == pids and not images(cloud, sleeper.id)
    assert sleeper.ask()["count"] == 2
    assert sleeper.pids() == pids
    wait_for("nothing is said of an instance that runs", lambda: not messages(cloud, sleeper.deployment))


def test_stopping_one_on_disk_leaves_nothing(cloud, registry, name):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    on_disk = images(cloud, sleeper.id)
    assert cloud.call("DELETE", f"/v1/services/{sleeper.id}")[0] == 200
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/services/{sleeper.id}")[0] == 404)
    wait_for("its image is gone", lambda: not any(path.exists() for path in on_disk))


@pytest.mark.parametrize("victim", ["control plane", "supervise"])
def test_it_stays_on_disk_when_a_process_of_the_platform_dies(cloud, registry, name, victim):
    sleeper = Sleeper(cloud, name, definition(name, registry.image("fastapi")))
    assert sleeper.ask()["count"] == 1
    wait_on_disk(sleeper)
    if victim == "control plane":
        cloud.kill()
        cloud.start()
    else:
        old = cloud.helper_pid(victim)
        os.kill(old, signal.SIGKILL)
        wait_for("it was started again", lambda: cloud.helper_pid(victim) not in (None, old))
    assert images(cloud, sleeper.id) and not sleeper.pids()
    assert sleeper.ask()["count"] == 2, "its memory is what it was"
    wait_on_disk(sleeper)
    assert sleeper.ask()["count"] == 3
