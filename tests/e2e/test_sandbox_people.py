"""Sandboxes for people: snapshots, forks and copies from a terminal."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from cloud import BINARY, Cloud, wait_for


@pytest.fixture(scope="module")
def image(registry):
    return registry.image("hello")


@pytest.fixture
def box(cloud, image, name):
    cloud.tram("sandbox", "create", name, "--image", image, "-e", "WHO=first")
    yield name
    cloud.tram("sandbox", "delete", name, check=False)


def inside(cloud, box, script):
    return cloud.tram("sandbox", "exec", box, "--", "/bin/busybox", "sh", "-c", script).stdout


def snapshots(cloud):
    return json.loads(cloud.tram("snapshots", "ls", "-o", "json").stdout)


def sandboxes(cloud):
    return [one["name"] for one in json.loads(cloud.tram("sandbox", "ls", "-o", "json").stdout)]


def definition(cloud, box):
    service = next(
        one for one in cloud.call("GET", "/v1/services?limit=100")[1]["services"] if one["name"] == box
    )
    return cloud.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")[1]["deployment"]


def test_a_snapshot_is_taken_shown_started_from_and_deleted(cloud, box):
    inside(cloud, box, "echo kept > /tmp/data")
    assert cloud.tram("sandbox", "snapshot", box, "--name", "state").stdout == "state\n"
    inside(cloud, box, "echo later > /tmp/data")
    assert "AVAILABLE" in cloud.tram("snapshots", "ls").stdout
    assert box in cloud.tram("snapshots", "ls").stdout
    assert "status:" in cloud.tram("snapshots", "show", "state").stdout
    again = f"{box[:40]}-b"
    cloud.tram("sandbox", "create", again, "--snapshot", "state")
    assert inside(cloud, again, "/bin/busybox cat /tmp/data") == "kept\n"
    refused = cloud.tram("snapshots", "delete", "state", check=False)
    assert refused.returncode != 0 and "starts from it" in refused.stderr
    # Told to go when it can, it stays as long as it is needed, and nothing new starts from it.
    cloud.tram("snapshots", "delete", "state", "--when-unused")
    assert snapshots(cloud)[0]["status"].endswith("DELETING")
    refused = cloud.tram("sandbox", "create", "too-late", "--snapshot", "state", check=False)
    assert refused.returncode != 0 and "DELETING" in refused.stderr
    cloud.tram("sandbox", "delete", again)
    wait_for("the snapshot goes with the last that needs it", lambda: snapshots(cloud) == [], seconds=90)


def test_forks_begin_alike_and_go_their_own_ways(cloud, box):
    inside(cloud, box, "head -c 300000 /dev/urandom > /tmp/data; /bin/busybox sleep 98764 > /dev/null 2>&1 &")
    wanted = inside(cloud, box, "/bin/busybox sha256sum /tmp/data")
    done = cloud.tram("sandbox", "fork", box, "--count", "3", "--disk-only")
    names = done.stdout.split()
    assert len(set(names)) == 3 and "not copied" in done.stderr
    secrets = set()
    for number, fork in enumerate(names):
        assert inside(cloud, fork, "/bin/busybox sha256sum /tmp/data") == wanted
        assert "98764" not in inside(cloud, fork, "/bin/busybox ps")
        assert inside(cloud, fork, "echo $WHO").strip() == "first"
        inside(cloud, fork, f"echo {number} > /tmp/data")
        deployment = definition(cloud, fork)
        secrets.add(next(one["value"] for one in deployment["definition"]["env"] if one["key"] == "SANDBOX_SECRET"))
    assert len(secrets) == 3
    assert [inside(cloud, fork, "/bin/busybox cat /tmp/data") for fork in names] == ["0\n", "1\n", "2\n"]
    assert inside(cloud, box, "/bin/busybox sha256sum /tmp/data") == wanted
    for fork in names:
        cloud.tram("sandbox", "delete", fork)
    wait_for("the snapshot goes with the last fork", lambda: snapshots(cloud) == [], seconds=90)


def test_a_fork_that_cannot_be_leaves_nothing(cloud, box):
    before = sandboxes(cloud)
    done = cloud.tram("sandbox", "fork", box, "--count", "0", check=False)
    assert done.returncode == 2 and "--count" in done.stderr
    assert cloud.tram("sandbox", "fork", "nobody", check=False).returncode != 0
    assert (sandboxes(cloud), snapshots(cloud)) == (before, [])


def tree(root):
    """Everything below a directory: kind, permissions, content."""
    seen = {}
    for directory, names, files in os.walk(root):
        for one in names + files:
            path = os.path.join(directory, one)
            at = os.path.relpath(path, root)
            if os.path.islink(path):
                seen[at] = os.readlink(path)
            else:
                content = None if os.path.isdir(path) else open(path, "rb").read()
                seen[at] = (oct(os.stat(path).st_mode), content)
    return seen


def test_copies_keep_bytes_permissions_and_links(cloud, box, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "raw").write_bytes(bytes(range(256)) * 5000)
    (source / "run").write_text("#!/bin/busybox sh\necho ran\n")
    (source / "run").chmod(0o755)
    (source / "private").write_text("x")
    (source / "private").chmod(0o600)
    (source / "link").symlink_to("sub/raw")
    cloud.tram("sandbox", "cp", source, f"{box}:/tmp/copy")
    assert inside(cloud, box, "/tmp/copy/run") == "ran\n"
    cloud.tram("sandbox", "cp", f"{box}:/tmp/copy", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(source)
    # Into a directory that is there, a single file, and the streams.
    cloud.tram("sandbox", "cp", f"{box}:/tmp/copy/run", tmp_path)
    assert (tmp_path / "run").read_text() == (source / "run").read_text()
    cloud.tram("sandbox", "cp", "-", f"{box}:/tmp/typed", stdin="typed\n")
    assert cloud.tram("sandbox", "cp", f"{box}:/tmp/typed", "-").stdout == "typed\n"


def test_a_copy_goes_from_one_sandbox_to_another(cloud, box, image, tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "raw").write_bytes(bytes(range(256)) * 20_000)
    (source / "run").write_text("x")
    (source / "run").chmod(0o755)
    cloud.tram("sandbox", "cp", source, f"{box}:/tmp/across")
    inside(cloud, box, "/bin/busybox mkfifo /tmp/across/pipe")
    other = "other-box"
    cloud.tram("sandbox", "create", other, "--image", image)
    try:
        done = cloud.tram("sandbox", "cp", f"{box}:/tmp/across", f"{other}:/tmp/there")
        assert "left out: " in done.stderr and "pipe" in done.stderr
        cloud.tram("sandbox", "cp", f"{other}:/tmp/there", tmp_path / "back")
        assert tree(tmp_path / "back") == tree(source)
        for at, to, words in [
            (f"{box}:/no/such", f"{other}:/tmp/x", "/no/such: No such file"), (f"{box}:/tmp/across", f"{other}:/proc/x", "/proc"),
            (f"{box}:/tmp/across", "nobody:/x", "nobody"),
        ]:
            done = cloud.tram("sandbox", "cp", at, to, check=False)
            assert done.returncode != 0 and words in done.stderr, (at, to, done.stderr)
    finally:
        cloud.tram("sandbox", "delete", other)


def test_a_copy_that_cannot_be_says_why(cloud, box, tmp_path):
    for source, target, words in [
        (f"{box}:/no/such", tmp_path / "x", "/no/such: No such file"),
        (tmp_path / "missing", f"{box}:/tmp/x", "missing: No such file"),
        (tmp_path, f"{box}:/proc/x", "/proc"),
        (tmp_path, tmp_path, "neither side"),
        ("nobody:/x", tmp_path, "nobody"),
    ]:
        done = cloud.tram("sandbox", "cp", source, target, check=False)
        assert done.returncode != 0 and words in done.stderr, (source, done.stderr)


def test_a_hostile_sandbox_writes_nothing_outside(cloud, box, tmp_path):
    (tmp_path / "into").mkdir()
    (tmp_path / "precious").write_text("mine")
    inside(
        cloud, box,
        "mkdir -p /tmp/evil/d; cd /tmp/evil; /bin/busybox ln -s /etc a; /bin/busybox ln -s ../.. d/up; "
        "/bin/busybox mkfifo pipe; echo ok > fine",
    )
    done = cloud.tram("sandbox", "cp", f"{box}:/tmp/evil", tmp_path / "into")
    assert sorted(os.listdir(tmp_path / "into" / "evil")) == ["d", "fine"]
    assert os.listdir(tmp_path / "into" / "evil" / "d") == []
    assert done.stderr.count("left out:") == 3, done.stderr
    assert (tmp_path / "precious").read_text() == "mine"


# What a process used most counts from its fork on, so a small one has to start it.
MEASURE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:]).pid, 0)
print(usage.ru_maxrss)
sys.exit(status != 0)
"""


def test_large_files_pass_in_little_memory(cloud, box, tmp_path):
    size = 200 * 1024 * 1024
    large = tmp_path / "large"
    digest = hashlib.sha256()
    with open(large, "wb") as file:
        for _ in range(size // (1024 * 1024)):
            block = os.urandom(1024 * 1024)
            digest.update(block)
            file.write(block)
    for words in ((str(large), f"{box}:/tmp/large"), (f"{box}:/tmp/large", str(tmp_path / "back"))):
        command = [sys.executable, "-c", MEASURE, BINARY, "sandbox", "cp", *words]
        used_kib = int(subprocess.run(command, env=cloud.environment, check=True, stdout=subprocess.PIPE).stdout)
        assert used_kib < 100 * 1024, f"{used_kib} KiB"
    back = hashlib.sha256()
    with open(tmp_path / "back", "rb") as file:
        while block := file.read(1024 * 1024):
            back.update(block)
    assert back.digest() == digest.digest()


def listed(cloud, *words):
    return json.loads(cloud.tram(*words, "-o", "json").stdout)


def test_a_volume_is_made_shown_used_grown_kept_and_deleted(cloud, image, name):
    volume, box = f"{name[:20]}-data", f"{name[:20]}-box"
    cloud.tram("volumes", "create", volume, "--size", "1")
    assert volume in cloud.tram("volumes", "ls").stdout
    cloud.tram("sandbox", "create", box, "--image", image, "--volume", f"{volume}:/data")
    inside(cloud, box, "echo mine > /data/file")
    assert box in cloud.tram("volumes", "show", volume).stdout
    refused = cloud.tram("volumes", "delete", volume, check=False)
    assert refused.returncode != 0 and "attached" in refused.stderr
    assert cloud.tram("volumes", "snapshot", volume, "--name", f"{volume}-kept").stdout == f"{volume}-kept\n"
    assert f"{volume}-kept" in cloud.tram("volumes", "snapshots", "ls").stdout
    refused = cloud.tram("sandbox", "fork", box, check=False)
    assert refused.returncode == 2 and "volume" in refused.stderr
    cloud.tram("volumes", "grow", volume, "--size", "2")
    shrunk = cloud.tram("volumes", "grow", volume, "--size", "1", check=False)
    assert shrunk.returncode != 0 and "only grow" in shrunk.stderr
    cloud.tram("sandbox", "delete", box)
    # What the snapshot held, in another sandbox.
    cloud.tram("volumes", "restore", f"{volume}-kept", f"{volume}-again")
    cloud.tram("sandbox", "create", f"{box}-b", "--image", image, "--volume", f"{volume}-again:/data")
    assert inside(cloud, f"{box}-b", "/bin/busybox cat /data/file") == "mine\n"
    cloud.tram("sandbox", "delete", f"{box}-b")
    cloud.tram("volumes", "snapshots", "delete", f"{volume}-kept")
    for one in (volume, f"{volume}-again"):
        wait_for("it is let go", lambda: cloud.tram("volumes", "delete", one, check=False).returncode == 0)
    wait_for("all are gone", lambda: not listed(cloud, "volumes", "ls") + listed(cloud, "volumes", "snapshots", "ls"))


def test_a_pool_is_made_shown_claimed_from_and_deleted(cloud, image, name):
    pool = name[:30]
    cloud.tram("pools", "create", pool, "--size", "2", "--image", image, "-e", "WHO=pool", "--wait")
    assert "2 of 2" in cloud.tram("pools", "ls").stdout and "READY" in cloud.tram("pools", "show", pool).stdout
    first = cloud.tram("pools", "claim", pool, "--request-id", "one").stdout.strip()
    assert cloud.tram("pools", "claim", pool, "--request-id", "one").stdout.strip() == first
    assert inside(cloud, first, "echo $WHO") == "pool\n"
    second = cloud.tram("pools", "claim", pool).stdout.strip()
    assert first != second
    cloud.tram("pools", "resize", pool, "--size", "1")
    cloud.tram("pools", "delete", pool)
    wait_for("the pool is gone", lambda: not listed(cloud, "pools", "ls"))
    for one in (first, second):
        assert inside(cloud, one, "echo here") == "here\n", "what was taken stays"
        cloud.tram("sandbox", "delete", one)


def test_a_pool_is_made_like_a_service(cloud, image, name):
    cloud.tram("deploy", image, "--name", name, "--port", "8000", "--instance-type", "nano")
    pool = f"like-{name[:30]}"
    cloud.tram("pools", "create", pool, "--size", "1", "--like", name, "--wait")
    assert "web" in cloud.tram("pools", "ls").stdout
    taken = cloud.tram("pools", "claim", pool).stdout.strip()
    assert "HEALTHY" in cloud.tram("services", "get", taken).stdout
    cloud.tram("pools", "delete", pool)
    for one in (taken, name):
        cloud.tram("delete", one)


def test_snapshots_have_a_limit_of_room_and_of_number(image):
    cloud = Cloud(snapshot_space_max="24MiB", snapshots_max=3).start()
    try:
        cloud.tram("sandbox", "create", "limited", "--image", image)
        cloud.tram("sandbox", "snapshot", "limited", "--name", "small")
        inside(cloud, "limited", "head -c 20000000 /dev/urandom > /tmp/data")
        cloud.tram("sandbox", "snapshot", "limited", "--name", "large")
        shown = {one["name"]: int(one["stored_bytes"]) for one in snapshots(cloud)}
        assert 0 < shown["small"] < 4 << 20 and 20_000_000 <= shown["large"] < 24 << 20
        # It would be too much: refused when its size is known, and nothing of it is left.
        full = cloud.tram("sandbox", "snapshot", "limited", "--name", "more", check=False)
        assert full.returncode != 0 and "snapshot_space_max" in full.stderr and "`large` (" in full.stderr, full.stderr
        kept = cloud.data / "site" / "local" / "instance-snapshots"
        wait_for("two disks are there", lambda: len([one for one in kept.iterdir() if not one.suffix]) == 2)
        cloud.tram("snapshots", "delete", "large")
        wait_for("it is gone", lambda: len(snapshots(cloud)) == 1)
        # What was written to a disk and deleted again still takes room in it.
        cloud.tram("sandbox", "create", "other", "--image", image)
        for name in ["second", "third"]:
            cloud.tram("sandbox", "snapshot", "other", "--name", name)
        many = cloud.tram("sandbox", "snapshot", "other", "--name", "fourth", check=False)
        assert many.returncode != 0 and "snapshots_max" in many.stderr, many.stderr
        assert "is whole" in cloud.tram("snapshots", "verify", "third").stderr
    finally:
        cloud.remove()
