"""Images whose maker wants the machine: what the unpacker refuses, `tram images import` refuses in words; what is harmless
runs, and nothing of the machine changes. The unpacker's own tests (crates/image) have its every rule; here is what only
the whole shows: a start from such an image, as root, before the instance has a root of its own."""

import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import threading

import pytest

import hostile
from cloud import Cloud, wait_for
from hostile import entry, folder, link
from leaks import Footprint
from test_attacks import GVISOR, attacks, outcomes, wrong  # noqa: F401 - a fixture

# The file system that a bomb bursts on.
SMALL_BYTES = 512 << 20
BOMB_BYTES = 1 << 30


@pytest.fixture(scope="module")
def cloud():
    cloud = Cloud(isolation=f"{GVISOR}=gvisor").start()
    yield cloud
    cloud.remove()


@pytest.fixture
def canary(tmp_path):
    """Where it must not get to; and that it did not, at the end."""
    place = hostile.canary(tmp_path)
    before = hostile.picture(place)
    yield place
    assert hostile.picture(place) == before


@pytest.fixture
def bystander(cloud, registry):
    """A service that has nothing to do with it; and that it goes on, at the end."""
    if not [app for app in cloud.call("GET", "/v1/apps?name=bystander")[1]["apps"]]:
        cloud.tram("deploy", registry.image("hello"), "--name", "bystander", "--port", "8000")
    running = [one["id"] for one in cloud.instances(cloud.service("bystander")["id"], "HEALTHY")]
    yield
    assert cloud.process.poll() is None, cloud.logs()
    assert [one["id"] for one in cloud.instances(cloud.service("bystander")["id"], "HEALTHY")] == running
    assert cloud.get(cloud.host("bystander"))[0] == 200


def kept(cloud):
    """What the store of images has, by its names."""
    images = cloud.data / "images"
    return sorted(str(path.relative_to(images)) for place in ("layers", "tmp", "partial", "blobs", "images")
                  for path in (images / place).glob("*" if place != "blobs" else "*/*"))


def sparse(size):
    """A file that is said to have so many bytes and has none."""
    return entry("huge", pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "huge",
                              "GNU.sparse.realsize": str(size)}, content=b"0\n".ljust(512, b"\0"))


REFUSED = {
    "a name that climbs": ([entry("../../../../../../../../tmp/tram-escaped", content=b"x")], "leads upwards"),
    "a whiteout that climbs": ([entry("etc/../../.wh.canary")], "leads upwards"),
    "a whiteout of its parent": ([entry("etc/.wh...")], "leads upwards"),
    "a file in a whiteout": ([entry(".wh.etc/passwd", content=b"x")], "holds no files"),
    "a hard link to the machine": ([entry("stolen", tarfile.LNKTYPE, link="{canary}/passwd")], "not in this layer"),
    "a hard link that climbs": ([entry("stolen", tarfile.LNKTYPE, link="../../../../etc/shadow")], "leads upwards"),
    "a hard link through a link": (
        [link("way", "{canary}"), entry("stolen", tarfile.LNKTYPE, link="way/passwd")], "not in this layer"),
    "a link, then a file in it": ([link("way", "{canary}"), entry("way/hosts", content=b"x")], ""),
    "larger than any disk": ([sparse(1 << 62)], ""),
    "a negative size": ([sparse(-1)], ""),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_layer_that_reaches_out_is_refused_and_nothing_is_kept(cloud, canary, bystander, tmp_path, case):
    entries, words = REFUSED[case]
    layers = [hostile.base(), hostile.layer(*hostile.placed(entries, canary))]
    file = hostile.archive(tmp_path / "image.tar", layers)
    before = kept(cloud)
    done = cloud.tram("images", "import", "--data-dir", cloud.data, file, "--name", "hostile/refused:1", check=False)
    assert done.returncode != 0 and words in done.stderr, done.stderr
    assert "hostile/refused" not in cloud.tram("images", "ls", "--data-dir", cloud.data).stdout
    # The layer below is a good one, and may stay for the next who has it; nothing of the other does.
    lower = hashlib.sha256(layers[0]).hexdigest()
    assert [path for path in kept(cloud) if path not in before and lower not in path] == []
    assert not pathlib.Path("/tmp/tram-escaped").exists()


def test_a_digest_that_lies_is_refused(cloud, bystander, tmp_path):
    layers = [hostile.base(), hostile.layer(entry("other", content=b"x"))]
    told = [f"sha256:{hashlib.sha256(layers[0]).hexdigest()}", f"sha256:{hashlib.sha256(b'promised').hexdigest()}"]
    file = hostile.archive(tmp_path / "image.tar", layers, diff_ids=told)
    done = cloud.tram("images", "import", "--data-dir", cloud.data, file, "--name", "hostile/lies:1", check=False)
    assert done.returncode != 0 and "promises" in done.stderr, done.stderr


def bomb():
    """A layer of one file that unpacks to far more than it has."""
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
        with tarfile.open(fileobj=packed, mode="w|") as tar:
            info, _ = entry("zeros", size=BOMB_BYTES)
            with open("/dev/zero", "rb") as zeros:
                tar.addfile(info, zeros)
    return out.getvalue()


def test_a_bomb_leaves_the_disk_as_it_was(tmp_path):
    """On a file system of its own, which it would fill."""
    cloud = Cloud()
    images = cloud.data / "images"
    images.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_BYTES}", "tmpfs", images], check=True)

    def free():
        about = os.statvfs(images)
        return about.f_bavail * about.f_frsize

    try:
        cloud.start()
        before = free()
        packed = bomb()
        assert len(packed) < BOMB_BYTES // 100
        file = hostile.archive(tmp_path / "bomb.tar", [b""], stored=[packed])
        done = cloud.tram("images", "import", "--data-dir", cloud.data, file, "--name", "hostile/bomb:1", check=False)
        assert done.returncode != 0 and re.search("full|room|free", done.stderr), done.stderr
        # But for the little that the store notes for itself.
        wait_for("the disk is as it was", lambda: free() > before - (1 << 20))
        assert cloud.call("GET", "/v1/apps")[0] == 200
    finally:
        cloud.stop()
        subprocess.run(["umount", "--lazy", images], check=False)
        cloud.remove()


def deploy(cloud, name, image, kind="WEB", instance_type="small", **docker):
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    definition = {
        "name": name, "type": kind, "regions": ["local"], "instance_types": [{"type": instance_type}],
        # A sandbox runs nothing of its own unless it is told to.
        "docker": {"image": image, "entrypoint": ["/bin/httpd", "-f", "-p", "8000", "-h", "/www"], **docker},
        "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": "/"}], "scalings": [{"min": 1, "max": 1}],
        "env": [{"key": "SANDBOX_SECRET", "value": "of the hostile"}] if kind == "SANDBOX" else [],
    }
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": definition})
    assert status == 200, reply
    return reply["service"]["id"]


def told(cloud, service):
    """All that its owner hears of it."""
    _, reply = cloud.call("GET", f"/v1/services/{service}")
    deployment = reply["service"]["latest_deployment_id"]
    events = cloud.call("GET", f"/v1/deployment_events?deployment_id={deployment}&limit=100")[1]["events"]
    instances = cloud.instances(service)
    return json.dumps([reply, events, instances])


def settled(cloud, service):
    return cloud.wait_status(service, "HEALTHY", "ERROR", "UNHEALTHY", "DEGRADED", seconds=120)


def imported(cloud, tmp_path, name, *entries, **config):
    file = hostile.archive(tmp_path / f"{name}.tar", [hostile.base(), hostile.layer(*entries)], **config)
    image = f"hostile/{name}:1"
    cloud.tram("images", "import", "--data-dir", cloud.data, file, "--name", image)
    return image


# Where a start writes or mounts, each in the hands of the image. `{canary}` is a directory of the machine.
STARTS = {
    "etc-leads-out": [link("etc", "{canary}")],
    "files-lead-out": [link("etc/hosts", "{canary}/hosts"), link("etc/resolv.conf", "../../../../../..{canary}/resolv.conf"),
                       link("etc/hostname", "/proc/1/root{canary}/hostname")],
    "files-are-others": [folder("etc/hosts"), entry("etc/resolv.conf", tarfile.FIFOTYPE),
                         entry("etc/passwd", tarfile.FIFOTYPE)],
    "users-lead-out": [link("etc/passwd", "/dev/zero"), link("etc/group", "{canary}/passwd")],
    "mounts-lead-out": [link("proc", "{canary}"), link("sys", "../../..{canary}"), link("dev", "{canary}/inside")],
    "mounts-are-files": [entry("proc", content=b""), entry("sys", content=b""), entry("dev", content=b"")],
    "mounts-on-each-other": [folder("place"), link("proc", "dev/shm"), link("sys", "proc"), link("dev", "place")],
    "mounts-in-a-circle": [link("proc", "sys"), link("sys", "proc")],
    "executor-leads-out": [link(".tramontane", "{canary}")],
    "executor-is-a-link": [folder(".tramontane"), link(".tramontane/executor", "{canary}/executor"),
                           link(".tramontane/identity", "{canary}/identity")],
    "executor-is-a-device": [folder(".tramontane"), entry(".tramontane/executor", tarfile.FIFOTYPE)],
    "directory-leads-out": [link("work", "{canary}"), folder("elsewhere")],
}


@pytest.mark.parametrize("instance_type", ["small", GVISOR])
@pytest.mark.parametrize("case", sorted(STARTS))
def test_a_start_from_it_touches_nothing_of_the_machine(cloud, canary, bystander, tmp_path, case, instance_type):
    entries = hostile.placed(STARTS[case], canary)
    image = imported(cloud, tmp_path, f"{case}-{instance_type}", *entries, WorkingDir="/work/deep")
    service = deploy(cloud, f"{case}-{instance_type}"[:40], image, "SANDBOX", instance_type)
    status = settled(cloud, service)
    if status == "HEALTHY":
        name = cloud.call("GET", f"/v1/services/{service}")[1]["service"]["name"]
        seen = cloud.tram("exec", name, "--", "/bin/busybox", "cat", str(canary / "passwd"), check=False).stdout
        assert "the machine's own" not in seen
    else:
        # In words, and about the image's own path.
        assert re.search(r"/(etc|proc|sys|dev|work|\.tramontane)", told(cloud, service)), told(cloud, service)
    print(case, instance_type, status)
    cloud.call("DELETE", f"/v1/services/{service}")
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/services/{service}")[0] == 404)


def test_no_attack_wins_where_the_image_moved_proc_and_sys(cloud, canary, bystander, tmp_path, attacks):  # noqa: F811
    moved = [folder("a"), folder("a/p"), folder("a/s"), folder("a/d"), link("proc", "a/p"), link("sys", "../a/s"),
             link("dev", "/a/d"), entry("tmp/attacks", content=attacks.read_bytes(), mode=0o755)]
    image = imported(cloud, tmp_path, "moved", *moved)
    service = deploy(cloud, "moved", image, "SANDBOX")
    cloud.wait_status(service, "HEALTHY")
    said = outcomes(cloud.tram("exec", "moved", "--", "/tmp/attacks", "--all", check=False).stdout)
    assert len(said) >= 100, sorted(said)
    assert not wrong(said, {})
    cloud.call("DELETE", f"/v1/services/{service}")


@pytest.mark.parametrize("instance_type", ["small", GVISOR])
def test_set_user_id_capabilities_and_devices_of_a_layer_give_nothing(cloud, canary, bystander, tmp_path, instance_type):
    busybox = pathlib.Path(shutil.which("busybox")).read_bytes()
    # CAP_SYS_ADMIN and all others, effective, in the kernel's revision 2.
    all_capabilities = b"\x01\x00\x00\x02" + (b"\xff" * 4 + b"\x00" * 4) * 2
    root = entry("bin/busybox-as-root", content=busybox, mode=0o6755)
    capable = entry("bin/busybox-capable", content=busybox, mode=0o755, pax={
        "SCHILY.xattr.security.capability": all_capabilities.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.trusted.overlay.redirect": "/../../../.." + str(canary),
        "SCHILY.xattr.user.overlay.redirect": str(canary),
    })
    devices = [entry("dev-memory", tarfile.CHRTYPE, device=(1, 1), mode=0o666),
               entry("dev-disk", tarfile.BLKTYPE, device=(254, 0), mode=0o666),
               entry("etc/hidden", tarfile.CHRTYPE, device=(0, 0), mode=0o666)]
    image = imported(cloud, tmp_path, f"powers-{instance_type}", root, capable, *devices, User="app")
    name = f"powers-{instance_type}"
    service = deploy(cloud, name, image, instance_type=instance_type)
    cloud.wait_status(service, "HEALTHY")
    run = lambda *words: cloud.tram("exec", name, "--", *words, check=False)
    # Set, and of no use.
    assert run("/bin/stat", "-c", "%a", "/bin/busybox-as-root").stdout.strip() == "6755"
    assert run("/bin/busybox-as-root", "id", "-u").stdout.strip() == "1000"
    for program in ("/bin/busybox-as-root", "/bin/busybox-capable"):
        done = run(program, "mount", "-t", "tmpfs", "none", "/tmp")
        assert done.returncode != 0, done.stdout
        assert run(program, "cat", "/etc/shadow", str(canary / "passwd")).stdout == ""
        # Where gVisor's kernel does not run a program with capabilities at all, that will do.
        done = run(program, "cat", "/proc/self/status")
        assert done.returncode != 0 or re.search(r"^CapEff:\s+0+$", done.stdout, re.M), done
    for path in ("/dev-memory", "/dev-disk", "/etc/hidden"):
        assert run("/bin/ls", path).returncode != 0, path
    cloud.call("DELETE", f"/v1/services/{service}")


class Liar(http.server.ThreadingHTTPServer):
    """A registry that hands out one image, and other bytes for one of its digests while it lies."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), LiarHandler)
        raw = hostile.base()
        layer = gzip.compress(raw, 1)
        config = hostile.configuration([raw])
        digest = lambda one: f"sha256:{hashlib.sha256(one).hexdigest()}"
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config),
                       "size": len(config)},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(layer),
                        "size": len(layer)}],
        }).encode()
        self.blobs = {digest(one): one for one in (layer, config, manifest)}
        self.parts = {"layer": digest(layer), "configuration": digest(config), "manifest": digest(manifest)}
        self.lie = None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, name):
        digest = name if name in self.blobs else self.parts["manifest"]
        content = self.blobs[digest]
        if self.lie and self.parts[self.lie] == digest:
            return content[:-1] + bytes([content[-1] ^ 1])
        return content


class LiarHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.rsplit("/", 1)[-1]
        content = self.server.answer(name) if name else b"{}"
        kind = "application/vnd.oci.image.manifest.v1+json" if "/manifests/" in self.path else "application/octet-stream"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("part", ["layer", "configuration", "manifest"])
def test_a_registry_that_lies_is_told_and_its_lie_not_kept(cloud, bystander, part):
    liar = Liar()
    liar.lie = part
    port = liar.server_address[1]
    # By its digest, so that the manifest is held to something, too.
    image = f"127.0.0.1:{port}/liar@{liar.parts['manifest']}"
    name = f"lies-{part}"
    service = deploy(cloud, name, image)
    wait_for("its owner is told of the lie", lambda: liar.parts[part][7:19] in told(cloud, service) or None)
    liar.lie = None
    cloud.tram("redeploy", name)
    cloud.wait_status(service, "HEALTHY")
    assert cloud.get(cloud.host(name))[2] == b"hello\n"
    cloud.call("DELETE", f"/v1/services/{service}")
    liar.shutdown()


def test_nothing_of_all_that_is_left(cloud):
    footprint = Footprint(cloud)
    wait_for("nothing is there that nobody knows of", lambda: not footprint.unaccounted(cloud))
