"""Snapshots whose maker wants the machine: disks that a sandbox has filled with all that it can, and files of snapshots that
somebody has exchanged. Each starts as it was kept, or is refused in words, and nothing of the machine changes."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess

import pytest
from koyeb import Sandbox
from koyeb.sandbox.snapshot import SnapshotType

import hostile
import inside
from cloud import wait_for

pytestmark = pytest.mark.usefixtures("sdk_environment")

# Of a checksum of a snapshot's file (crates/site-local, checksums.rs).
BLOCK_BYTES = 1 << 20
# Of ext4's superblock: where it begins, and where it says what.
SUPERBLOCK, MAGIC, BLOCKS, BLOCKS_HIGH, LOG_BLOCK, PER_GROUP, ERRORS, INODE_SIZE, INCOMPATIBLE, CHECKSUM = (
    1024, 0x38, 0x04, 0x150, 0x18, 0x20, 0x3C, 0x58, 0x60, 0x3FC)
ERRORS_PANIC = 3
# Disks that the platform has ready of each size, and one that is being made.
STOCK = 3 * 6 + 1

# What a program can make on its disk. Each that the kernel refuses is told.
ODDITIES = r"""
import ctypes, json, os, socket, stat
canary = %r
refused = {}
def attempt(what, *words):
    try:
        what(*words)
    except OSError as error:
        refused[' '.join(str(word) for word in words)] = error.errno
os.makedirs('/odd/names')
os.chdir('/odd/names')
for name in (b'\n', b'\xff\xfe', b'a' * 255, b'-rf', b' ', b'$(touch x)', b'.wh.hosts', b'.wh..wh..opq', 'é'.encode(), b'\x01\x1b[2J'):
    open(name, 'wb').write(name)
os.makedirs('/odd/deep')
os.chdir('/odd/deep')
for _ in range(1500):
    os.mkdir('d'); os.chdir('d')
open('bottom', 'w').write('here')
os.chdir('/odd')
for number, target in enumerate(('/', '/proc/1/root', '/proc/self/exe', '../' * 60, 'loop5', 'loop4', canary, 'x' * 4095)):
    os.symlink(target, f'loop{number}')
open('one', 'w').write('shared')
for number in range(1000):
    os.link('one', f'same-{number}')
open('sparse', 'wb').truncate(1 << 40)
shell = open('/bin/sh', 'rb').read()
open('as-root', 'wb').write(shell); os.chmod('as-root', 0o6755)
os.mkfifo('pipe')
socket.socket(socket.AF_UNIX).bind('socket')
os.utime('one', (1 << 33, 1 << 33))
os.mkdir('closed'); os.chmod('closed', 0)
for name in ('user.overlay.opaque', 'user.overlay.redirect', 'trusted.overlay.opaque', 'trusted.overlay.redirect', 'security.capability'):
    attempt(os.setxattr, 'closed', name, b'y')
attempt(os.mknod, 'whiteout', stat.S_IFCHR | 0o666, 0)
attempt(os.mknod, 'memory', stat.S_IFCHR | 0o666, os.makedev(1, 1))
attempt(os.chown, 'one', 100000, 100000)
# Where the next start writes.
for name in ('hosts', 'resolv.conf', 'hostname'):
    attempt(os.unlink, '/etc/' + name)
    attempt(os.symlink, canary + '/' + name, '/etc/' + name)
attempt(os.rmdir, '/.tramontane')
attempt(os.unlink, '/.tramontane/executor')
print(json.dumps(refused))
"""


# Of errors: what a root without CAP_SYS_ADMIN and CAP_MKNOD is told, or what the file system does not have.
ALLOWED_REFUSALS = {1, 2, 13, 16, 18, 22, 30, 39, 95}


def canary_of(tmp_path):
    place = hostile.canary(tmp_path)
    return place, hostile.picture(place)


def loops():
    """Loop devices that show a file of nobody."""
    shown = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME"], capture_output=True, text=True)
    return set(shown.stdout.split())


@pytest.fixture(scope="module")
def image(cloud, tmp_path_factory):
    return hostile.rooted(cloud, tmp_path_factory.mktemp("rooted"))


@pytest.fixture
def box(image, name):
    sandbox = Sandbox.create(image=image, name=name, instance_type="small", timeout=60)
    yield sandbox
    sandbox.delete()


@pytest.mark.parametrize("kind", [SnapshotType.FILESYSTEM, SnapshotType.FULL], ids=["filesystem", "full"])
def test_a_disk_full_of_oddities_is_kept_as_it_is_and_leads_nowhere(cloud, box, name, tmp_path, kind):
    canary, before = canary_of(tmp_path)
    box.filesystem.write_file("/tmp/oddities.py", ODDITIES % str(canary))
    done = box.exec("python3 -B /tmp/oddities.py")
    assert done.success, done
    refused = json.loads(done.stdout)
    assert set(refused.values()) <= ALLOWED_REFUSALS, refused
    # What overlayfs would take for its own, and what is a device of the machine.
    for must in ("trusted.overlay.opaque", "trusted.overlay.redirect", "whiteout", "memory"):
        assert [words for words in refused if must in words], (must, refused)
    assert [words for words in refused if words.startswith("/.tramontane/executor")], refused
    inside.install(box)
    seen = inside.everything(box)
    assert "/odd/same-999" in seen and "/odd/sparse" in seen
    snapshot = box.snapshot(name=f"{name}-odd", snapshot_type=kind)
    assert "is whole" in cloud.tram("snapshots", "verify", snapshot.id).stderr
    copy = snapshot.spawn(name=f"{name}-copy", instance_type="small", timeout=60)
    assert inside.difference(seen, inside.everything(copy)) == {}
    # Written by the platform, in place of the links, and not through them.
    assert "localhost" in copy.exec("cat /etc/hosts").stdout
    assert copy.exec("cat /odd/loop6/passwd").stdout == ""
    copy.exec("echo through > /odd/loop6/hosts; /odd/as-root -c 'mount -t tmpfs none /mnt' && echo mounted")
    assert hostile.picture(canary) == before
    copy.delete()
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")
    assert hostile.picture(canary) == before


def test_a_start_from_a_disk_whose_etc_leads_out_touches_nothing(cloud, box, name, tmp_path):
    canary, before = canary_of(tmp_path)
    done = box.exec(f"cp -a /etc /kept && rm -rf /etc && ln -s {canary} /etc && echo moved")
    assert "moved" in done.stdout, done
    snapshot = box.snapshot(name=f"{name}-etc")
    made = cloud.tram("sandbox", "create", f"{name}-copy", "--snapshot", snapshot.id, "--instance-type", "small",
                      "--timeout", "60s", check=False)
    print(made.returncode, made.stderr)
    assert hostile.picture(canary) == before
    if made.returncode == 0:
        assert "machine's own" not in cloud.tram("sandbox", "exec", f"{name}-copy", "--", "cat", "/etc/passwd", check=False).stdout
    removed(cloud, f"{name}-copy")
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")


def removed(cloud, name):
    for service in cloud.call("GET", "/v1/services?limit=100")[1]["services"]:
        if service["name"] == name:
            cloud.call("DELETE", f"/v1/services/{service['id']}")


def file_of(cloud, snapshot, kind=""):
    directory = next(cloud.data.rglob(f"{snapshot.id}.json")).parent
    return directory / f"{snapshot.id}{kind}"


def checksum(path):
    """As the platform takes it: of the blocks that are not all zeroes, each after its number, after the length."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    digest.update(struct.pack("<Q", size))
    with open(path, "rb") as file:
        at = 0
        while True:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            number = at // BLOCK_BYTES
            block = os.pread(file.fileno(), BLOCK_BYTES, number * BLOCK_BYTES)
            if block.strip(b"\0"):
                digest.update(struct.pack("<Q", number) + block)
            at = (number + 1) * BLOCK_BYTES
    return digest.hexdigest()


def believed(cloud, snapshot):
    """Makes the checksums those of the files as they are now: whoever can exchange the one can exchange the other."""
    sums = file_of(cloud, snapshot, ".sums")
    noted = json.loads(sums.read_text())
    disk = file_of(cloud, snapshot)
    noted["files"]["disk"]["sha256"] = checksum(disk)
    noted["files"]["disk"]["stamp"]["bytes"] = disk.stat().st_size
    sums.write_text(json.dumps(noted))


def superblock(disk, at, form, value):
    """Writes into an ext4 superblock, and sets its own checksum right again, so that it is believed."""
    with open(disk, "r+b") as file:
        file.seek(SUPERBLOCK)
        block = bytearray(file.read(1024))
        struct.pack_into(form, block, at, value)
        struct.pack_into("<I", block, CHECKSUM, crc32c(bytes(block[:CHECKSUM])))
        file.seek(SUPERBLOCK)
        file.write(block)


def crc32c(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def cut(disk):
    os.truncate(disk, 64 << 10)


def other(disk):
    """Not a file system at all."""
    os.truncate(disk, 0)
    os.truncate(disk, 64 << 20)


LIES = {
    "its magic": lambda disk: superblock(disk, MAGIC, "<H", 0x1234),
    "more blocks than there are": lambda disk: superblock(disk, BLOCKS, "<I", 0xFFFFFFF0),
    "blocks without end": lambda disk: superblock(disk, BLOCKS_HIGH, "<I", 0xFFFFFFFF),
    "blocks of no size": lambda disk: superblock(disk, LOG_BLOCK, "<I", 60),
    "groups of nothing": lambda disk: superblock(disk, PER_GROUP, "<I", 0),
    "inodes of three bytes": lambda disk: superblock(disk, INODE_SIZE, "<H", 3),
    "a feature of another time": lambda disk: superblock(disk, INCOMPATIBLE, "<I", 0xFFFFFFFF),
    "cut off": cut,
    "nothing on it": other,
}
# By orders of debugfs, which keeps all other checksums right. `{canary}` is a directory of the machine.
FORGERIES = {
    "its layer is a link to the machine": ("unlink upper", "symlink upper {canary}"),
    "its layer is a file": ("unlink upper", "write /etc/hostname upper"),
    "its layer is gone": ("unlink upper",),
    "its root is a file": ("sif <2> mode 0100644",),
}


def forged(cloud, box, name, change):
    """A snapshot whose disk was changed, and is believed."""
    snapshot = box.snapshot(name=f"{name}-kept")
    change(file_of(cloud, snapshot))
    believed(cloud, snapshot)
    return snapshot


def refused(cloud, name, snapshot):
    """Why no instance starts from it."""
    made = cloud.tram("sandbox", "create", name, "--snapshot", snapshot.id, "--instance-type", "small",
                      "--timeout", "60s", check=False)
    assert made.returncode != 0, made.stdout
    said = made.stderr
    removed(cloud, name)
    return said


@pytest.mark.parametrize("lie", sorted([*LIES, *FORGERIES]))
def test_a_disk_that_lies_is_refused_and_the_machine_goes_on(cloud, box, name, tmp_path, lie):
    canary, before = canary_of(tmp_path)
    devices = loops()

    def change(disk):
        if lie in LIES:
            LIES[lie](disk)
        for order in FORGERIES.get(lie, ()):
            words = ["debugfs", "-w", "-R", order.replace("{canary}", str(canary)), disk]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            assert "not found" not in done.stderr and "No such" not in done.stderr, done.stderr

    snapshot = forged(cloud, box, name, change)
    said = refused(cloud, f"{name}-copy", snapshot)
    print(lie, said)
    assert re.search("disk|snapshot|upper", said), said
    assert hostile.picture(canary) == before
    assert box.exec("echo goes on").stdout == "goes on\n"
    assert cloud.process.poll() is None
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")
    wait_for("no device is left", lambda: len(loops() - devices) <= STOCK)


def test_a_disk_whose_work_is_a_link_starts_without_following_it(cloud, box, name, tmp_path):
    canary, before = canary_of(tmp_path)

    def change(disk):
        for order in ("unlink work", f"symlink work {canary}"):
            subprocess.run(["debugfs", "-w", "-R", order, disk], check=True, capture_output=True)

    snapshot = forged(cloud, box, name, change)
    copy = snapshot.spawn(name=f"{name}-copy", instance_type="small", timeout=60)
    assert copy.exec("echo written > /tmp/it; cat /tmp/it").stdout == "written\n"
    assert hostile.picture(canary) == before
    copy.delete()
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")


def test_no_disk_can_have_the_machine_stop_at_an_error(cloud, box, name):
    """The superblock says what the kernel does when it finds something wrong; one choice is to stop the machine."""
    snapshot = forged(cloud, box, name, lambda disk: superblock(disk, ERRORS, "<H", ERRORS_PANIC))
    copy = snapshot.spawn(name=f"{name}-copy", instance_type="small", timeout=60)
    instance = cloud.instances(copy.service_id, "HEALTHY")[0]["id"]
    run = json.loads((cloud.data / "supervisor" / "instances" / instance / "run.json").read_text())
    device = os.stat(f"/proc/{run['shim']['pid']}/fd/{run['disk']['directory']}").st_dev
    options = pathlib.Path(f"/proc/fs/ext4/loop{os.minor(device)}/options").read_text()
    assert "errors=continue" in options.split(), options
    copy.delete()
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")


@pytest.mark.parametrize("kind", ["", ".json", ".sums"], ids=["disk", "note", "checksums"])
def test_a_link_in_the_place_of_a_file_of_a_snapshot_is_not_followed(cloud, box, name, tmp_path, kind):
    snapshot = box.snapshot(name=f"{name}-kept")
    path = file_of(cloud, snapshot, kind)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)
    # The same bytes: only that it is a link is wrong with it.
    assert "no plain file" in refused(cloud, f"{name}-copy", snapshot)
    verified = cloud.tram("snapshots", "verify", snapshot.id, check=False)
    assert verified.returncode != 0 and "no plain file" in verified.stderr, verified.stderr
    # Neither does a removal reach it.
    cloud.tram("snapshots", "delete", snapshot.id, "--when-unused")
    wait_for("it is gone", lambda: not path.is_symlink())
    assert elsewhere.exists()
