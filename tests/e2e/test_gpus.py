"""Instance types with GPUs, from specifications of devices (CDI) that were made for this: no machine here has a GPU.

The devices are the machine's harmless ones under other names: reading the first gives zeros, writing to the second finds
no room. What is shown by them holds for any character device; what a driver does with its own is not shown here."""

import json

import openai
import pytest

from cloud import Cloud, wait_for
from engine import WEIGHTS

KIND = "acme.com/gpu"
LIBRARY = "libacme.so.5.1"


def specification(folder, library):
    """Two whole devices, the first by two names, and all of them: shaped as `nvidia-ctk cdi generate` writes them."""
    hook = lambda *words: {
        "hookName": "createContainer", "path": "/usr/bin/nvidia-cdi-hook", "args": ["nvidia-cdi-hook", *words],
    }
    node = lambda number, source: {"path": f"/dev/acme{number}", "hostPath": source}
    first, second = node(0, "/dev/zero"), node(1, "/dev/full")
    device = lambda name, *nodes: {"name": name, "containerEdits": {"deviceNodes": list(nodes)}}
    return {
        "cdiVersion": "0.5.0", "kind": KIND,
        "devices": [device("0", first), device("1", second), device("GPU-1f", first), device("all", first, second)],
        "containerEdits": {
            "env": ["ACME_VISIBLE_DEVICES=void"],
            "deviceNodes": [{"path": "/dev/acme-caps/ctl", "hostPath": "/dev/urandom", "type": "c", "major": 1, "minor": 9}],
            "mounts": [{
                "hostPath": str(library), "containerPath": f"/opt/acme/lib/{LIBRARY}",
                "options": ["ro", "nosuid", "nodev", "bind"],
            }],
            "hooks": [
                hook("create-symlinks", "--link", f"{LIBRARY}::/opt/acme/lib/libacme.so", "--link",
                     "../acme-caps/ctl::/dev/by-path/acme"),
                hook("update-ldcache", "--folder", "/opt/acme/lib"),
            ],
        },
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cdi")
    library = folder / LIBRARY
    library.write_text("a library\n")
    (folder / "acme.json").write_text(json.dumps(specification(folder, library)))
    (folder / "broken.yaml").write_text("cdiVersion: 0.5.0\nkind: other.com/gpu\ndevices:\n- name: x\n  colour: red\n")
    return folder


TYPES = ",".join([
    # The id of a GPU that the contract knows, made of the first device.
    f"gpu-nvidia-l4 kind={KIND} devices=0 size=micro",
    f"acme-half kind={KIND} devices=1 memory=8GiB share=4GiB size=nano",
    f"acme-many kind={KIND} count=3",
])


@pytest.fixture(scope="module")
def cloud(folders):
    cloud = Cloud(cdi_directories=folders, gpu_types=TYPES).start()
    yield cloud
    cloud.remove()


@pytest.fixture(autouse=True)
def leaves_no_service(cloud):
    """Devices that a failed test left taken are not there for the next one."""
    yield
    _, reply = cloud.call("GET", "/v1/services?limit=100")
    remove(cloud, *reply["services"])


def definition(registry, name, kind, **more):
    return {
        "name": name, "type": "WEB", "regions": ["local"], "instance_types": [{"type": kind}],
        "docker": {"image": registry.image("hello", "1")}, "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}], "scalings": [{"min": 1, "max": 1}], **more,
    }


def create(cloud, wanted):
    status, reply = cloud.call("POST", "/v1/apps", {"name": wanted["name"]})
    assert status == 200, reply
    return cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": wanted})


def deploy(cloud, wanted):
    status, reply = create(cloud, wanted)
    assert status == 200, reply
    return reply["service"]


def healthy(cloud, service):
    cloud.wait_deployment(service["latest_deployment_id"], "HEALTHY")
    return cloud.instances(service["id"], "HEALTHY")[0]["id"]


def inside(cloud, name, script):
    return cloud.tram("exec", name, "--", "sh", "-c", script).stdout


def waits(cloud, service):
    """What is said of a service that waits for a device; nothing when it does not."""
    _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
    said = " ".join(reply["deployment"]["messages"])
    return said if reply["deployment"]["status"] != "HEALTHY" and "is in use" in said else None


def remove(cloud, *services):
    for service in services:
        cloud.call("DELETE", f"/v1/services/{service['id']}")
    for service in services:
        wait_for("it is gone", lambda: cloud.call("GET", f"/v1/services/{service['id']}")[0] == 404)


def test_what_the_machine_has_is_in_the_catalog(cloud, registry, name):
    status, reply = cloud.call("GET", "/v1/catalog/instances/gpu-nvidia-l4")
    kind = reply["instance"]
    assert status == 200, reply
    assert kind["gpu"] == {"count": 1, "brand": "NVIDIA", "memory": "24GB", "name": "L4"}
    assert (kind["type"], kind["memory"], kind["light_sleep_enabled"]) == ("gpu", "512MB", False)
    assert cloud.call("GET", "/v1/catalog/instances/acme-half")[1]["instance"]["gpu"]["memory"] == "4GB"
    assert cloud.call("GET", "/v1/catalog/instances/micro")[1]["instance"]["gpu"] is None
    listed = cloud.tram("catalog").stdout
    assert "gpu-nvidia-l4" in listed and "L4, 24GB" in listed
    # Three are not there, so it is not offered; nor is what nobody declared.
    for missing in ("acme-many", "gpu-nvidia-h100"):
        assert cloud.call("GET", f"/v1/catalog/instances/{missing}")[0] == 404
        status, reply = create(cloud, definition(registry, f"{name}-{missing[-4:]}", missing))
        assert status == 400, reply
        said = json.dumps(reply)
        assert f"there is no instance type `{missing}` here" in said and "gpu-nvidia-l4" in said
    checks = json.loads(cloud.tram("doctor", "--data-dir", cloud.data, "--cdi-directories", cloud.extra["cdi_directories"],
                                   "--gpu-types", TYPES, "--output", "json", check=False).stdout)
    said = {check["name"]: check for check in checks}
    assert said["devices (CDI)"]["detail"] == f"{KIND}=0, {KIND}=1"
    assert "colour: unknown field" in said["device specification"]["detail"]
    assert said["instance type gpu-nvidia-l4"]["status"] == "ok"
    assert "it needs 3 devices" in said["instance type acme-many"]["detail"]


def test_an_instance_has_its_device_and_no_other(cloud, registry, name):
    service = deploy(cloud, definition(registry, name, "gpu-nvidia-l4"))
    healthy(cloud, service)
    assert cloud.get(cloud.host(name))[2] == b"Hello from version 1\n"
    assert inside(cloud, name, "head -c 2 /dev/acme0 | busybox od -An -tx1") == " 00 00\n"
    assert inside(cloud, name, "busybox stat -c %t:%T /dev/acme-caps/ctl; busybox readlink /dev/by-path/acme") == \
        "1:9\n../acme-caps/ctl\n"
    assert inside(cloud, name, "cat /opt/acme/lib/libacme.so; echo $ACME_VISIBLE_DEVICES $LD_LIBRARY_PATH") == \
        "a library\nvoid /opt/acme/lib\n"
    assert inside(cloud, name, f"(echo x >/opt/acme/lib/{LIBRARY}) 2>/dev/null || echo refused") == "refused\n"
    # Root there can make no node of another.
    tried = inside(cloud, name, "ls /dev; for at in /dev/x /tmp/x; do busybox mknod $at c 1 7 2>&1; done; true")
    assert "acme1" not in tried and "kmsg" not in tried
    assert tried.count("Operation not permitted") == 2, tried
    remove(cloud, service)


def test_a_sandbox_has_it_too(cloud, registry, name):
    wanted = definition(registry, name, "gpu-nvidia-l4", type="SANDBOX",
                        env=[{"key": "SANDBOX_SECRET", "value": "a secret of this test"}])
    del wanted["ports"], wanted["routes"]
    service = deploy(cloud, wanted)
    healthy(cloud, service)
    # In user ids of its own.
    assert inside(cloud, name, "busybox awk '{print $2 > 0}' /proc/self/uid_map") != "0\n"
    assert inside(cloud, name, "head -c 2 /dev/acme0 | busybox od -An -tx1; cat /opt/acme/lib/libacme.so") == \
        " 00 00\na library\n"
    body = {"instance_id": cloud.instances(service["id"], "HEALTHY")[0]["id"], "name": name, "type": "INSTANCE_SNAPSHOT_TYPE_FULL"}
    status, reply = cloud.call("POST", "/v1/instance_snapshots", body)
    assert status == 200, reply
    path = f"/v1/instance_snapshots/{reply['instance_snapshot']['id']}"
    said = wait_for("its memory is not kept", lambda: cloud.call("GET", path)[1]["instance_snapshot"]["messages"])
    assert "what the devices of the instance hold cannot be kept" in said[0], said
    remove(cloud, service)


def test_a_device_is_given_once_and_given_back(cloud, registry, name):
    """Also through kill -9 of the control plane."""
    first = deploy(cloud, definition(registry, f"{name}-a", "gpu-nvidia-l4"))
    instance = healthy(cloud, first)
    second = deploy(cloud, definition(registry, f"{name}-b", "gpu-nvidia-l4"))
    said = wait_for("the second waits and says why", lambda: waits(cloud, second))
    assert "every device of instance type `gpu-nvidia-l4` is in use (there are 1 on this machine)" in said
    cloud.kill()
    cloud.start()
    assert healthy(cloud, first) == instance, "it goes on"
    third = deploy(cloud, definition(registry, f"{name}-c", "gpu-nvidia-l4"))
    wait_for("both wait", lambda: waits(cloud, second) and waits(cloud, third))
    assert inside(cloud, f"{name}-a", "head -c 1 /dev/acme0 | busybox od -An -tx1") == " 00\n"
    remove(cloud, first)
    wait_for("one of them has it", lambda: [one for one in (second, third) if cloud.instances(one["id"], "HEALTHY")])
    [one] = [one for one in (second, third) if not cloud.instances(one["id"], "HEALTHY")]
    assert waits(cloud, one)
    remove(cloud, second, third)


def test_one_that_cannot_start_gives_it_back(cloud, registry, name):
    wanted = definition(registry, f"{name}-a", "gpu-nvidia-l4")
    wanted["docker"] = {**wanted["docker"], "entrypoint": ["/nowhere"]}
    failing = deploy(cloud, wanted)
    cloud.wait_deployment(failing["latest_deployment_id"], "ERROR")
    service = deploy(cloud, definition(registry, f"{name}-b", "gpu-nvidia-l4"))
    healthy(cloud, service)
    remove(cloud, failing, service)


def test_a_specification_holds_from_the_next_start_on(cloud, registry, name, folders):
    """As after an update of a driver: what is written anew is read, and what is missing is said."""
    file = folders / "acme.json"
    before = file.read_text()
    try:
        file.write_text(before.replace("ACME_VISIBLE_DEVICES=void", "ACME_VISIBLE_DEVICES=anew"))
        service = deploy(cloud, definition(registry, f"{name}-a", "gpu-nvidia-l4"))
        healthy(cloud, service)
        assert inside(cloud, f"{name}-a", "echo $ACME_VISIBLE_DEVICES") == "anew\n"
        remove(cloud, service)
        file.unlink()
        service = deploy(cloud, definition(registry, f"{name}-b", "gpu-nvidia-l4"))
        path = f"/v1/deployments/{service['latest_deployment_id']}"
        messages = lambda: " ".join(cloud.call("GET", path)[1]["deployment"]["messages"])
        missing = f"no specification tells of the device `{KIND}=0`"
        wait_for("it says what is missing", lambda: missing in messages())
    finally:
        file.write_text(before)
    healthy(cloud, service)
    remove(cloud, service)


def test_a_new_version_takes_the_device_of_the_old_one(cloud, registry, name):
    service = deploy(cloud, definition(registry, name, "gpu-nvidia-l4"))
    healthy(cloud, service)
    wanted = definition(registry, name, "gpu-nvidia-l4", docker={"image": registry.image("hello", "2", of="hello-v2")})
    status, reply = cloud.call("PUT", f"/v1/services/{service['id']}", {"definition": wanted})
    assert status == 200, reply
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")
    wait_for("the new one answers", lambda: cloud.get(cloud.host(name))[2] == b"Hello from version 2\n")
    remove(cloud, service)


def test_shares_of_a_device_are_filled(cloud, registry, name):
    two = [deploy(cloud, definition(registry, f"{name}-{one}", "acme-half")) for one in "ab"]
    for one, service in zip("ab", two):
        healthy(cloud, service)
        assert inside(cloud, f"{name}-{one}", "(echo x >/dev/acme1) 2>&1 | busybox grep -c 'No space'") == "1\n"
    third = deploy(cloud, definition(registry, f"{name}-c", "acme-half"))
    wait_for("there is no third half", lambda: waits(cloud, third))
    remove(cloud, two[0])
    healthy(cloud, third)
    remove(cloud, two[1], third)


def test_deep_sleep_gives_the_device_back(cloud, registry, name):
    """Light sleep is not to be had with a device: the service goes to deep sleep instead."""
    sleeping = [{"min": 0, "max": 1, "targets": [{"sleep_idle_delay": {"light_sleep_value": 2, "deep_sleep_value": 3}}]}]
    first = deploy(cloud, definition(registry, f"{name}-a", "gpu-nvidia-l4", scalings=sleeping))
    cloud.wait_deployment(first["latest_deployment_id"], "SLEEPING")
    wait_for("nothing of it runs", lambda: not cloud.instances(first["id"], "HEALTHY", "STARTING", "STOPPING", "SLEEPING"))
    second = deploy(cloud, definition(registry, f"{name}-b", "gpu-nvidia-l4"))
    healthy(cloud, second)
    status, _, body = cloud.get(cloud.host(f"{name}-a"))
    assert status == 503 and b"every device of instance type `gpu-nvidia-l4` is in use" in body, body
    remove(cloud, second)
    wait_for("it woke", lambda: cloud.get(cloud.host(f"{name}-a"))[2] == b"Hello from version 1\n")
    remove(cloud, first)


def test_the_engine_answers_beside_a_device(cloud, name):
    """On processors, as everywhere: the engine that `tram` carries does not use GPUs."""
    cloud.tram("models", "import", "--data-dir", cloud.data, name, WEIGHTS)
    cloud.tram("models", "deploy", name, "--instance-type", "gpu-nvidia-l4", "--context-length", "512")
    client = openai.OpenAI(base_url=f"{cloud.api_url}/v1", api_key=cloud.token, max_retries=0)
    question = [{"role": "user", "content": "Say hello."}]
    answer = client.chat.completions.create(model=name, messages=question, max_tokens=4)
    assert answer.choices[0].message.content
    service = cloud.service(name)
    shown = cloud.instances(service["id"], "HEALTHY")
    assert [one["type"] for one in shown] == ["gpu-nvidia-l4"], shown
    remove(cloud, service)
