"""Programs and machines that misbehave: the user is told why, the limit holds, and the neighbour notices nothing."""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading

import pytest

from asker import Asker
from cloud import IMAGES, Cloud, free_port, wait_for
from leaks import Footprint

pytestmark = pytest.mark.alone

HELLO = b"Hello from version 1\n"
# Answers may be this much slower beside an abuser than alone: both share the machine's two or so processors with the
# test itself. Less than the floor is never a failure.
SLOWER_FACTOR, SLOW_SECONDS = 20, 0.5
# Answers to compare with, and answers to have while the abuse goes on.
SAMPLE = 300
SERVE = "exec /bin/httpd -f -p 8000 -h /www"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def cloud():
    cloud = Cloud().start()
    yield cloud
    cloud.remove()


@pytest.fixture(scope="module")
def alone(cloud, registry):
    """A neighbour, and how fast it answers when nobody disturbs."""
    cloud.tram("deploy", registry.image("hello", "1"), "--name", "neighbour", "--port", "8000")
    host = cloud.host("neighbour")
    asker = Asker(cloud, host, [HELLO])
    wait_for("a sample of answers", lambda: asker.good >= SAMPLE)
    asker.stop()
    assert not asker.bad, asker.bad
    return host, asker.p99()


@pytest.fixture
def neighbour(cloud, alone, request):
    """Asked all through a test; every answer is good and none takes much longer than alone."""
    host, calm = alone
    asker = Asker(cloud, host, [HELLO])
    yield asker
    wait_for("a sample of answers", lambda: asker.good >= SAMPLE)
    asker.stop()
    report(request.node.name, asker.p99(), calm, asker.good)
    assert not asker.bad, asker.bad[:5]
    assert asker.p99() <= max(SLOWER_FACTOR * calm, SLOW_SECONDS), (asker.p99(), calm)


def report(attack, p99, calm, answers):
    """Say how the neighbour fared; with TRAM_TEST_NEIGHBOUR_REPORT, a line of JSON for each attack in that file."""
    print(f"{attack}: the neighbour's p99 {p99 * 1000:.1f} ms, alone {calm * 1000:.1f} ms, {answers} answers")
    if path := os.environ.get("TRAM_TEST_NEIGHBOUR_REPORT"):
        line = {"attack": attack, "p99_ms": p99 * 1000, "alone_p99_ms": calm * 1000, "answers": answers}
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture
def abuser(cloud, registry, name):
    """Deploys a shell script as a service of the smallest size; gone after the test."""

    def deploy(script, *arguments, image=None, shell=("/bin/sh", "-c"), check=True):
        words = [f"--entrypoint={word}" for word in shell]
        return cloud.tram("deploy", image or registry.image("hello", "1"), "--name", name, "--port", "8000",
                          "--instance-type", "nano", *words, "--command", script, *arguments, check=check)

    yield deploy
    with contextlib.suppress(IndexError, KeyError):
        service = cloud.service(name)
        cloud.call("DELETE", f"/v1/services/{service['id']}")
        wait_for("the abuser is gone", lambda: cloud.call("GET", f"/v1/services/{service['id']}")[0] == 404)


def instance(cloud, name):
    return cloud.instances(cloud.service(name)["id"])[0]["id"]


def cgroup_file(cloud, instance_id, controller, v1, v2):
    """A counter of an instance, on either layout of cgroups."""
    group = f"tram/{Footprint(cloud).cgroup}/{instance_id}"
    for path in (f"/sys/fs/cgroup/{controller}/{group}/{v1}", f"/sys/fs/cgroup/{group}/{v2}"):
        with contextlib.suppress(FileNotFoundError):
            return pathlib.Path(path).read_text()
    return None


def messages(cloud, name):
    """What an owner is told about the latest deployment and its instances."""
    service = cloud.service(name)
    _, reply = cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")
    told = list(reply["deployment"]["messages"])
    for one in cloud.instances(service["id"]):
        told += one["messages"]
    return " / ".join(told)


def logged(cloud, name):
    return cloud.tram("logs", name).stdout


def test_a_log_that_never_ends(cloud, name, neighbour, abuser):
    abuser(f"busybox yes all work and no play & {SERVE}")
    wait_for("the log says what it leaves out", lambda: "lines were dropped" in logged(cloud, name))
    since = neighbour.good
    wait_for("many more lines", lambda: neighbour.good > since + 2 * SAMPLE)
    logs = cloud.data / "supervisor" / "instances" / instance(cloud, name) / "logs"
    kept = sum(path.stat().st_size for path in logs.iterdir())
    assert kept < 128 * MEBIBYTE, kept
    assert cloud.get(cloud.host(name))[0] == 200


def test_forks_without_end(cloud, name, neighbour, abuser):
    abuser(f"bomb() {{ bomb & bomb & wait; }}; (sleep 1; bomb) & {SERVE}", check=False)
    one = instance(cloud, name)
    most = 0

    def told():
        nonlocal most
        most = max(most, int(cgroup_file(cloud, one, "pids", "pids.current", "pids.current") or 0))
        said = logged(cloud, name) + messages(cloud, name)
        # Which of the two limits it meets first depends on what the kernel charges for a process.
        return "fork" in said or "memory limit" in said or "256 MiB" in said

    # A bomb within a quarter of a processor, on a machine that may be busy: it takes its time to fill up.
    wait_for("the cause is told", told, seconds=240)
    assert most <= 4096


def test_memory_without_end(cloud, name, neighbour, abuser):
    done = abuser("x=0123456789abcdef; while true; do x=$x$x; done", check=False)
    assert done.returncode == 1
    assert "256 MiB" in done.stderr and "memory" in done.stderr, done.stderr


def test_processor_without_end(cloud, name, neighbour, abuser):
    abuser(f"for i in 1 2 3 4; do (while true; do :; done) & done; {SERVE}")
    one = instance(cloud, name)
    quota = cgroup_file(cloud, one, "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0]

    def throttled():
        counts = dict(line.split() for line in cgroup_file(cloud, one, "cpu", "cpu.stat", "cpu.stat").splitlines())
        return int(counts["nr_throttled"]) > 20

    wait_for("it is held back", throttled)
    assert 0 < int(quota) <= 100_000
    since = neighbour.good
    wait_for("the neighbour answers on", lambda: neighbour.good > since + SAMPLE)


def test_files_opened_without_end(cloud, registry, name, neighbour, abuser):
    eat = "import os\nwhile True: os.open('/dev/null', 0)"
    done = abuser(eat, image=registry.image("fastapi"), shell=("python3", "-c"), check=False)
    assert done.returncode == 1
    assert "Too many open files" in done.stderr or "256 MiB" in done.stderr, done.stderr


def test_a_program_that_never_becomes_healthy(cloud, registry, name, neighbour):
    done = cloud.tram("deploy", registry.image("silent"), "--name", name, "--port", "8000", "--timeout", "15s",
                      check=False)
    assert done.returncode != 0
    said = wait_for("its owner is told", lambda: messages(cloud, name))
    assert "8000" in said, said
    status, _, body = cloud.get(cloud.host(name), headers={"accept": "text/html"}, timeout=5)
    assert status in (502, 503, 504), body
    cloud.tram("delete", name)


def test_an_image_for_another_machine(cloud, registry, name, neighbour, tmp_path):
    registry.image("hello", "1")
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    cache = pathlib.Path(os.environ.get("TRAM_IMAGE_CACHE") or caches / "tram" / "images")
    other = "arm64" if os.uname().machine == "x86_64" else "amd64"
    layout = tmp_path / "other"
    shutil.copytree(cache / "hello", layout)
    subprocess.run(["umoci", "config", "--image", f"{layout}:latest", "--architecture", other], check=True)
    reference = f"127.0.0.1:{registry.port}/other:1"
    subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false",
                    f"oci:{layout}:latest", f"docker://{reference}"], check=True)
    done = cloud.tram("deploy", reference, "--name", name, "--port", "8000", check=False)
    assert done.returncode == 1
    assert other in done.stderr and {"arm64": "amd64", "amd64": "arm64"}[other] in done.stderr, done.stderr


def test_a_registry_that_takes_the_call_and_says_nothing(cloud, name, neighbour):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        held, stop = [], threading.Event()

        def hold():
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    held.append(listener.accept()[0])

        holder = threading.Thread(target=hold)
        holder.start()
        done = cloud.tram("deploy", f"{where}/hello:1", "--name", name, "--port", "8000", "--timeout", "20s",
                          check=False)
        assert done.returncode != 0
        said = wait_for("its owner is told", lambda: messages(cloud, name))
        assert "asking the registry" in said, said
        cloud.tram("delete", name)
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        holder.join()
        for connection in held:
            connection.close()


def test_a_registry_that_comes_back(cloud, name, neighbour, tmp_path):
    # It has the image before it is there: one that does not have it is a final answer.
    directory, elsewhere, port = tmp_path / "registry", free_port(), free_port()
    subprocess.run([IMAGES / "registry", "start", directory, str(elsewhere)], check=True)
    subprocess.run([IMAGES / "registry", "push", str(elsewhere), "hello=hello:1"], check=True)
    subprocess.run([IMAGES / "registry", "stop", directory], check=True)
    cloud.tram("deploy", f"127.0.0.1:{port}/hello:1", "--name", name, "--port", "8000", "--no-wait")
    wait_for("its owner is told", lambda: f"127.0.0.1:{port}" in messages(cloud, name))
    assert "trying again" in messages(cloud, name)
    subprocess.run([IMAGES / "registry", "start", directory, str(port)], check=True)
    try:
        cloud.wait_status(cloud.service(name)["id"], "HEALTHY")
        assert cloud.get(cloud.host(name))[2] == HELLO
    finally:
        subprocess.run([IMAGES / "registry", "stop", directory], check=False)


@pytest.fixture
def small_disk(tmp_path):
    """A cloud whose data directory is a file system of its own, with little room."""
    cloud = Cloud()
    cloud.data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m,mode=0711", "tram-small", cloud.data], check=True)
    try:
        yield cloud.start()
    finally:
        cloud.stop()
        subprocess.run(["umount", "-l", cloud.data], check=True)
        cloud.remove()


def fill(path):
    """Take what room is left, to the last byte."""
    with open(path, "ab", buffering=0) as file:
        for size in (MEBIBYTE, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    with pytest.raises(OSError) as refused:
        (path.parent / "one-more").write_bytes(b"\0" * 4096)
    assert refused.value.errno == errno.ENOSPC
    (path.parent / "one-more").unlink(missing_ok=True)


def test_a_disk_that_is_full(small_disk, registry, name):
    cloud, image = small_disk, registry.image("hello", "1")
    cloud.tram("deploy", image, "--name", name, "--port", "8000")
    host, service = cloud.host(name), cloud.service(name)
    asker = Asker(cloud, host, [HELLO])
    filler = cloud.data / "filler"
    fill(filler)
    accepted, refused = [], []
    for number in range(20):
        status, reply = cloud.call("POST", "/v1/apps", {"name": f"{name[:15]}-{number}"})
        (accepted if status == 200 else refused).append((status, reply))
    # The owner is told that it is the platform's fault; whoever runs the platform, that the disk is full.
    assert refused
    assert {status for status, _ in refused} == {503}, refused[0]
    assert "disk is full" in cloud.logs(), cloud.logs()[-2000:]
    # Reading works, and what runs goes on.
    assert cloud.call("GET", f"/v1/services/{service['id']}")[0] == 200
    done = cloud.tram("deploy", registry.image("hello", "2", of="hello-v2"), "--name", name, "--port", "8000",
                      "--timeout", "10s", check=False)
    assert done.returncode != 0, done.stderr
    # So does a start without a byte of room, or it says what is wrong.
    cloud.kill()
    cloud.launch()
    wait_for("it is up or has left", lambda: cloud.process.poll() is not None or cloud.answers())
    if cloud.process.poll() is not None:
        assert "No space left on device" in cloud.logs() or "disk is full" in cloud.logs(), cloud.logs()[-2000:]
        filler.unlink()
        cloud.start()
    else:
        filler.unlink()
    for _, reply in accepted:
        assert cloud.call("GET", f"/v1/apps/{reply['app']['id']}")[0] == 200
    cloud.tram("deploy", image, "--name", name, "--port", "8000", "--env", "AFTER=1")
    asker.stop()
    assert not asker.bad, asker.bad[:5]
    # A stop needs no room.
    fill(filler)
    footprint = Footprint(cloud)
    assert cloud.stop() == 0
    assert [line for line in footprint.left() if not line.startswith(("instance without an end", "mount"))] == []
