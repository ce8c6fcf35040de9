"""Snapshots of sandboxes by Koyeb's official SDK: taken, listed, started from, removed."""

import os

import pytest
from koyeb import Sandbox
from koyeb.sandbox.sandbox import SandboxError
from koyeb.sandbox.snapshot import Snapshot, SnapshotStatus, SnapshotType

from cloud import wait_for

# How often a sandbox is made from the snapshot of the one before, with checksums of everything.
GENERATIONS = int(os.environ.get("TRAM_TEST_SNAPSHOT_GENERATIONS", "3"))
CHECKSUM = "cd /tmp/data && find . -type f | sort | xargs sha256sum | sha256sum"


pytestmark = pytest.mark.usefixtures("sdk_environment")


@pytest.fixture(scope="module")
def box(registry):
    sandbox = Sandbox.create(image=registry.image("fastapi"), name="origin", timeout=60)
    done = sandbox.exec("mkdir /tmp/data && cd /tmp/data && for i in 1 2 3; do head -c 300000 /dev/urandom > $i; done")
    assert done.success, done
    yield sandbox
    sandbox.delete()


def test_generations_keep_every_byte(box):
    wanted = box.exec(CHECKSUM).stdout
    current = box
    for generation in range(GENERATIONS):
        # Not written down by the program: what the kernel still holds belongs to the snapshot.
        assert current.exec(f"echo {generation} > /tmp/data/last").success
        wanted = current.exec(CHECKSUM).stdout
        snapshot = current.snapshot(name=f"generation-{generation}")
        assert (snapshot.status, snapshot.snapshot_type) == (SnapshotStatus.AVAILABLE, SnapshotType.FILESYSTEM)
        current.exec("echo later > /tmp/data/later")
        # The image is the snapshot's, though the SDK names its default one.
        following = snapshot.spawn(name=f"spawned-{generation}", timeout=60)
        assert following.exec(CHECKSUM).stdout == wanted
        # The disk is its own: neither sees what the other writes.
        assert not following.filesystem.exists("/tmp/data/later")
        with pytest.raises(SandboxError):
            snapshot.delete()
        if current is not box:
            current.delete()
        current = following
    current.delete()
    for snapshot in Snapshot.list():
        wait_for("nothing starts from it", lambda: deleted(snapshot))
    wait_for("they are gone", lambda: Snapshot.list() == [])


def deleted(snapshot):
    try:
        return snapshot.delete()
    except SandboxError:
        return False


def test_by_name_and_by_id(box):
    snapshot = box.snapshot(name="named", wait_available=False)
    assert snapshot.wait_available(timeout=30, poll_interval=0.1)
    assert Snapshot.get(snapshot.id).name == "named"
    assert [one.id for one in Snapshot.list(snapshot_type=SnapshotType.FILESYSTEM)] == [snapshot.id]
    assert Snapshot.list(snapshot_type=SnapshotType.FULL) == []
    again = Sandbox.create_from_snapshot("named", name="by-name", timeout=60)
    assert again.exec("cat /tmp/data/1 | wc -c").stdout.strip() == "300000"
    again.delete()
    wait_for("nothing starts from it", lambda: deleted(snapshot))
    wait_for("it is gone", lambda: Snapshot.list() == [])
    with pytest.raises(SandboxError, match="no instance snapshot|Not Found|not found|DELETE|cannot be used"):
        Sandbox.create(snapshot=snapshot, name="too-late", timeout=30)
