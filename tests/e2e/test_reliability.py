"""kill -9, and what it must not cost."""

import os
import signal

from cloud import wait_for


def test_the_control_plane_dies_and_traffic_flows(own_cloud, registry, name):
    cloud = own_cloud
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    host, service = cloud.host(name), cloud.service(name)
    before = cloud.instances(service["id"], "HEALTHY")
    cloud.kill()
    for _ in range(50):
        assert cloud.get(host)[2] == b"Hello from version 1\n"
    cloud.start()
    wait_for("healthy again", lambda: cloud.instances(service["id"], "HEALTHY"))
    after = cloud.instances(service["id"], "HEALTHY")
    assert [one["id"] for one in after] == [one["id"] for one in before]
    assert cloud.get(host)[0] == 200


def test_every_process_dies_and_instances_are_adopted(own_cloud, registry, name):
    cloud = own_cloud
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    host, service = cloud.host(name), cloud.service(name)
    before = [one["id"] for one in cloud.instances(service["id"], "HEALTHY")]
    supervisor, edge = cloud.helper_pid("supervise"), cloud.helper_pid("edge")
    cloud.kill()
    os.kill(supervisor, signal.SIGKILL)
    os.kill(edge, signal.SIGKILL)
    cloud.start()
    wait_for("the edge answers", lambda: _answers(cloud, host))
    assert [one["id"] for one in cloud.instances(service["id"], "HEALTHY")] == before


def _answers(cloud, host):
    try:
        return cloud.get(host)[0] == 200
    except OSError:
        return False


def test_an_accepted_intent_survives(own_cloud, registry, name):
    cloud = own_cloud
    image = registry.image("hello", "1")
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    status, created = cloud.call("POST", "/v1/services", {
        "app_id": reply["app"]["id"],
        "definition": {"name": name, "type": "WEB", "regions": ["fra"], "docker": {"image": image},
                       "ports": [{"port": 8000, "protocol": "http"}], "routes": [{"port": 8000, "path": "/"}],
                       "instance_types": [{"type": "nano"}], "scalings": [{"min": 1, "max": 1}]},
    })
    assert status == 200, created
    cloud.kill()
    cloud.start()
    cloud.wait_status(created["service"]["id"], "HEALTHY")


def test_sigterm_leaves_nothing_behind(own_cloud, registry, name):
    cloud = own_cloud
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    assert cloud.stop() == 0
    assert cloud.helper_pid("supervise") is None
    assert cloud.helper_pid("edge") is None
    mounts = open("/proc/self/mounts").read()
    assert str(cloud.data) not in mounts
