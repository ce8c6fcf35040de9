"""The isolation class gvisor: what holds for every other instance holds for one whose kernel is its own."""

import json
import os
import pathlib
import re
import signal

import pytest
from koyeb import Sandbox
from koyeb.sandbox.snapshot import SnapshotType

from cloud import Cloud, wait_for
from leaks import Footprint
from test_light_sleep import Sleeper
from test_light_sleep import definition as sleeping

pytestmark = pytest.mark.usefixtures("sdk_environment")
# The instance type that has the class here; small enough for every machine.
KIND = "micro"


@pytest.fixture(scope="module")
def cloud():
    cloud = Cloud(isolation=f"{KIND}=gvisor").start()
    yield cloud
    cloud.remove()


def definition(registry, name, **more):
    return {
        "name": name, "type": "WEB", "regions": ["local"], "instance_types": [{"type": KIND}],
        "docker": {"image": registry.image("hello", "1")}, "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}], "scalings": [{"min": 1, "max": 1}], **more,
    }


def deploy(cloud, wanted):
    status, reply = cloud.call("POST", "/v1/apps", {"name": wanted["name"]})
    assert status == 200, reply
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": wanted})
    assert status == 200, reply
    service = reply["service"]
    cloud.wait_deployment(service["latest_deployment_id"], "HEALTHY")
    return service["id"]


def inside(cloud, name, script):
    return cloud.tram("exec", name, "--", "sh", "-c", script).stdout


def kernels(cloud):
    """The sentries of this cloud, by process id."""
    group = Footprint(cloud).cgroup
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes()
            if words.startswith(b"runsc-sandbox") and group in (path / "cgroup").read_text():
                found.add(int(path.name))
        except OSError:
            continue
    return found


def test_a_service_answers_logs_and_is_its_own_kernels(cloud, registry, name):
    wanted = definition(registry, name, env=[{"key": "COLOUR", "value": "green"}],
                        config_files=[{"path": "/etc/app/setting", "content": "set\n", "permissions": "0600"}])
    service = deploy(cloud, wanted)
    assert cloud.get(cloud.host(name))[2] == b"Hello from version 1\n"
    assert "gVisor" in inside(cloud, name, "busybox dmesg")
    assert inside(cloud, name, "echo $COLOUR; cat /etc/app/setting") == "green\nset\n"
    total = int(re.search(r"MemTotal:\s+(\d+) kB", inside(cloud, name, "cat /proc/meminfo")).group(1))
    assert total == 512 * 1024, "it is told of its own memory"
    assert cloud.tram("exec", name, "--", "sh", "-c", "exit 7", check=False).returncode == 7
    status, kind = cloud.call("GET", f"/v1/catalog/instances/{KIND}")
    assert (status, kind["instance"]["isolation"]) == (200, "gvisor")
    assert cloud.call("GET", "/v1/catalog/instances/small")[1]["instance"]["isolation"] == "container"
    cloud.call("DELETE", f"/v1/services/{service}")
    wait_for("its kernel is gone", lambda: not kernels(cloud))


def test_what_it_may_reach_is_decided_outside(cloud, registry, name):
    shut = {"egress": {"mode": "EGRESS_POLICY_MODE_DENY_ALL", "allow_list": []}}
    service = deploy(cloud, definition(registry, name, network_policy=shut))
    machine = next(iter(re.findall(r"via ([0-9.]+)", inside(cloud, name, "busybox ip route"))))
    for address in ("169.254.169.254", "198.51.100.9", machine):
        said = inside(cloud, name, f"busybox nc -w 3 {address} {cloud.api_port} </dev/null && echo reached || echo no")
        assert said.endswith("no\n"), (address, said)
    wait_for("its owner is told", lambda: "198.51.100.9" in cloud.tram("logs", name).stdout)
    assert cloud.get(cloud.host(name))[0] == 200, "the way in stays"
    cloud.call("DELETE", f"/v1/services/{service}")


def test_it_sleeps_lightly_in_memory_and_goes_on_where_it_stood(cloud, registry, name):
    wanted = sleeping(name, registry.image("fastapi"))
    wanted["instance_types"] = [{"type": KIND}]
    sleeper = Sleeper(cloud, name, wanted)
    assert sleeper.ask()["count"] == 1
    kernel = sleeper.wait_frozen() & kernels(cloud)
    assert len(kernel) == 1, "its kernel stands still too"
    assert sleeper.ask()["count"] == 2
    assert kernel <= sleeper.wait_frozen()
    old = cloud.helper_pid("supervise")
    os.kill(old, signal.SIGKILL)
    cloud.kill()
    cloud.start()
    wait_for("it was started again", lambda: cloud.helper_pid("supervise") not in (None, old))
    assert sleeper.ask()["count"] == 3, "nobody's death costs it anything"
    assert kernel <= sleeper.pids()


def test_a_sandbox_serves_koyebs_sdk(cloud, registry, name):
    with Sandbox.create(image=registry.image("fastapi"), name=name, instance_type=KIND, timeout=60) as box:
        result = box.exec("echo one; echo two >&2; exit 3")
        assert (result.stdout, result.stderr, result.exit_code) == ("one\n", "two\n", 3)
        chunks = []
        box.exec("for i in 1 2 3; do echo $i; done", on_stdout=chunks.append)
        assert "".join(chunks) == "1\n2\n3\n"
        large = "0123456789abcdef" * (1 << 16)
        box.filesystem.write_file("/tmp/large", large)
        assert box.filesystem.read_file("/tmp/large").content == large
        assert box.exec("python3 -c 'print(2 + 2)'").stdout == "4\n"
        process = box.launch_process("sleep 1000")
        assert [one.id for one in box.list_processes() if one.status == "running"] == [process]
        box.kill_process(process)


def messages(cloud, snapshot):
    return cloud.call("GET", f"/v1/instance_snapshots/{snapshot.id}")[1]["instance_snapshot"]["messages"]


def test_a_snapshot_has_its_disk_and_not_its_processes(cloud, registry, name):
    image = registry.image("fastapi")
    with Sandbox.create(image=image, name=name, instance_type=KIND, timeout=60) as box:
        box.exec("echo kept > /tmp/file; mkdir /tmp/deep; echo too > /tmp/deep/file")
        full = box.snapshot(name=f"{name}-full", snapshot_type=SnapshotType.FULL, wait_available=False)
        refused = wait_for("it is refused", lambda: messages(cloud, full))
        assert "isolation class gvisor" in refused[0], refused
        taken = box.snapshot(name=f"{name}-disk")
    with taken.spawn(name=f"{name}-2", timeout=60) as again:
        assert again.exec("cat /tmp/file /tmp/deep/file").stdout.startswith("kept\ntoo\n")


def test_a_class_that_is_not_here_is_refused_in_words(registry, name):
    cloud = Cloud(isolation=f"{KIND}=gvisor", gvisor_program="/nowhere/runsc").start()
    try:
        _, kind = cloud.call("GET", f"/v1/catalog/instances/{KIND}")
        assert (kind["instance"]["isolation"], kind["instance"]["status"]) == ("gvisor", "UNAVAILABLE")
        _, reply = cloud.call("POST", "/v1/apps", {"name": name})
        body = {"app_id": reply["app"]["id"], "definition": definition(registry, name)}
        status, reply = cloud.call("POST", "/v1/services", body)
        assert status == 400, reply
        assert "isolation class `gvisor` does not work on this machine: /nowhere/runsc" in str(reply), reply
        body["definition"]["instance_types"] = [{"type": "nano"}]
        status, reply = cloud.call("POST", "/v1/services", body)
        assert status == 200, "the others are served"
        cloud.wait_status(reply["service"]["id"], "HEALTHY")
    finally:
        cloud.remove()


def test_doctor_says_what_the_classes_are_worth(cloud):
    said = cloud.tram("doctor", "--isolation", f"{KIND}=gvisor", "--output", "json", check=False).stdout
    classes = {one["name"]: one for one in json.loads(said) if one["name"].startswith("isolation class")}
    assert classes["isolation class container"]["status"] == "ok"
    assert classes["isolation class gvisor"]["status"] == "ok"
    assert f"instance types {KIND}" in classes["isolation class gvisor"]["detail"]


def test_the_end_of_a_cloud_leaves_nothing(registry, name):
    cloud = Cloud(isolation=f"{KIND}=gvisor").start()
    try:
        deploy(cloud, definition(registry, name))
        assert cloud.get(cloud.host(name))[0] == 200
        mark = Footprint(cloud)
        assert kernels(cloud)
        assert cloud.stop() == 0
        wait_for("nothing is left", lambda: not mark.left())
    finally:
        cloud.remove()
