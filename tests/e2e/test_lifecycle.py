"""What the README promises: an image becomes a service behind a URL, and stays one."""

import json
import threading
import time

from asker import Asker
from cloud import wait_for


def test_an_image_becomes_a_url(cloud, registry, name):
    done = cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000", timeout=120)
    url = done.stdout.strip().splitlines()[-1]
    host = cloud.host(name)
    assert url.startswith("https://") and host in url
    status, _, body = cloud.get(host)
    assert (status, body) == (200, b"Hello from version 1\n")
    service = cloud.service(name)
    assert service["status"] == "HEALTHY"
    assert service["active_deployment_id"] == service["latest_deployment_id"]
    table = cloud.tram("services", "list").stdout
    assert name in table and "HEALTHY" in table
    listed = json.loads(cloud.tram("services", "list", "--output", "json").stdout)
    assert any(one["id"] == service["id"] for one in listed)


def test_a_new_version_takes_over_without_a_failed_request(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    old, new = b"Hello from version 1\n", b"Hello from version 2\n"
    clients = [Asker(cloud, cloud.host(name), [old, new]) for _ in range(4)]
    try:
        wait_for("the old version answers", lambda: all(client.answers[old] for client in clients))
        cloud.tram("deploy", registry.image("hello", "2", of="hello-v2"), "--name", name, "--port", "8000")
        wait_for("the new version answers", lambda: all(client.answers[new] for client in clients))
        service = cloud.service(name)
        wait_for("the old instance is gone",
                 lambda: len(cloud.instances(service["id"], "HEALTHY", "STOPPING")) == 1)
        last, asked = [client.answers[old] for client in clients], [client.good for client in clients]
        wait_for("it is asked after that",
                 lambda: all(client.good > before + 10 for client, before in zip(clients, asked)))
    finally:
        for client in clients:
            client.stop()
    assert [client.bad for client in clients] == [[]] * len(clients)
    assert [client.answers[old] for client in clients] == last, "the old version answered after it was gone"


def test_sleeps_and_wakes_on_the_next_request(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000",
               "--min", "0", "--max", "1", "--sleep-after", "2s")
    host, service = cloud.host(name), cloud.service(name)

    def deployment_status():
        return cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")[1]["deployment"]["status"]

    wait_for("the deployment sleeps", lambda: deployment_status() == "SLEEPING")
    assert cloud.service(name)["status"] == "HEALTHY"
    wait_for("nothing runs", lambda: not cloud.instances(service["id"], "HEALTHY", "STARTING", "STOPPING"))
    answers = []
    callers = [threading.Thread(target=lambda: answers.append(cloud.get(host)[0])) for _ in range(20)]
    started = time.monotonic()
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert answers == [200] * 20
    assert time.monotonic() - started < 10
    assert len(cloud.instances(service["id"], "HEALTHY")) == 1
    assert deployment_status() == "HEALTHY"


def test_pause_resume_and_delete(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    host, service = cloud.host(name), cloud.service(name)
    cloud.tram("pause", name)
    cloud.wait_status(service["id"], "PAUSED")
    assert cloud.instances(service["id"], "HEALTHY", "STARTING") == []
    status, _, body = cloud.get(host)
    assert status == 503 and b"paused" in body.lower()
    cloud.tram("resume", name)
    cloud.wait_status(service["id"], "HEALTHY")
    wait_for("it answers again", lambda: cloud.get(host)[0] == 200)
    cloud.tram("delete", name)
    wait_for("the service is gone", lambda: cloud.call("GET", f"/v1/services/{service['id']}")[0] == 404)


def test_scale_by_hand(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    service = cloud.service(name)
    cloud.tram("scale", name, "3")
    wait_for("three run", lambda: len(cloud.instances(service["id"], "HEALTHY")) == 3)
    cloud.tram("scale", name, "1")
    wait_for("one runs", lambda: len(cloud.instances(service["id"], "HEALTHY", "STOPPING")) == 1)


def test_logs_and_exec(cloud, registry, name):
    cloud.tram("deploy", registry.image("fastapi"), "--name", name, "--port", "8000",
               "--env", "GREETING=bonjour", "--check", "http:8000:/health")
    host = cloud.host(name)
    assert json.loads(cloud.get(host, "/env/GREETING")[2]) == {"value": "bonjour"}
    assert json.loads(cloud.get(host, "/env/KOYEB_SERVICE_NAME")[2])["value"]
    cloud.get(host, "/say/hello-log")
    wait_for("the line is in the logs", lambda: "hello-log" in cloud.tram("logs", name).stdout)
    done = cloud.tram("exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 5", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    assert cloud.tram("exec", "-i", name, "--", "cat", stdin="through\n").stdout == "through\n"


def test_services_of_an_app_reach_each_other(cloud, registry, name):
    cloud.tram("apps", "create", name)
    cloud.tram("deploy", registry.image("redis"), "--app", name, "--name", "cache", "--port", "6379:tcp")
    cloud.tram("deploy", registry.image("fastapi"), "--app", name, "--name", "web", "--port", "8000")
    ping = ("import socket; s = socket.create_connection(('cache.%s.internal', 6379), 5); "
            "s.sendall(b'PING\\r\\n'); print(s.recv(64))" % name)
    done = cloud.tram("exec", f"{name}/web", "--", "python3", "-c", ping)
    assert "PONG" in done.stdout
