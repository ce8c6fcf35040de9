"""Persistent volumes: what a service writes there outlives it, whoever is killed; one service has it, and its size holds."""

import os
import pathlib
import signal
import uuid

import pytest

from cloud import wait_for

GB = 1 << 30


@pytest.fixture(scope="module")
def image(registry):
    return registry.image("fastapi")


class Kept:
    """A worker that does nothing, with a volume at /data."""

    def __init__(self, cloud, image, name, size=1, **volume):
        self.cloud, self.name = cloud, name
        self.volume = make(cloud, f"{name}-data", max_size=size, **volume)
        self.definition = {
            "name": name, "type": "WORKER", "regions": ["local"],
            "docker": {"image": image, "entrypoint": ["sleep", "infinity"]},
            "instance_types": [{"type": "nano"}], "scalings": [{"min": 1, "max": 1}],
            "volumes": [{"id": self.volume, "path": "/data"}],
        }

    def start(self):
        status, reply = self.cloud.call("POST", "/v1/apps", {"name": self.name})
        assert status == 200, reply
        self.app = reply["app"]["id"]
        status, reply = self.cloud.call("POST", "/v1/services", {"app_id": self.app, "definition": self.definition})
        assert status == 200, reply
        self.id = reply["service"]["id"]
        self.cloud.wait_status(self.id, "HEALTHY")
        return self

    def redeploy(self, **changes):
        self.definition |= changes
        status, reply = self.cloud.call("PUT", f"/v1/services/{self.id}", {"definition": self.definition})
        assert status == 200, reply
        return self.cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")

    def sh(self, script, check=True):
        return self.cloud.tram("exec", self.name, "--", "sh", "-c", script, check=check).stdout.strip()

    def attached(self):
        return get(self.cloud, self.volume)["status"] == "PERSISTENT_VOLUME_STATUS_ATTACHED"


def make(cloud, name, **fields):
    body = {"volume_type": "PERSISTENT_VOLUME_BACKING_STORE_LOCAL_BLK", "name": name, "region": "local", **fields}
    status, reply = cloud.call("POST", "/v1/volumes", body)
    assert status == 200, reply
    return reply["volume"]["id"]


def get(cloud, volume):
    status, reply = cloud.call("GET", f"/v1/volumes/{volume}")
    assert status == 200, reply
    return reply["volume"]


def devices(cloud):
    """Loop devices that show a volume of this cloud."""
    found = []
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = path.read_text().strip()
        except OSError:
            continue
        if file.startswith(str(cloud.data.resolve() / "site" / "local" / "volumes")):
            found.append(file)
    return found


def delete(cloud, volume):
    """As Terraform does: as long as the answer says `still attached`."""
    def gone():
        status, reply = cloud.call("DELETE", f"/v1/volumes/{volume}")
        assert status in (200, 404) or (status == 400 and "still attached" in reply["message"]), reply
        return status != 400
    wait_for("it can be deleted", gone)
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/volumes/{volume}")[0] == 404)


def test_what_is_written_outlives_the_instance(cloud, image, name):
    kept = Kept(cloud, image, name).start()
    wait_for("it is attached", kept.attached)
    assert get(cloud, kept.volume)["service_id"] == kept.id
    assert kept.sh("ls -A /data; echo one > /data/file; sync; df --output=target /data | tail -1") == "/data"
    # Another version, which never runs beside the first.
    kept.redeploy(env=[{"key": "VERSION", "value": "2"}])
    assert kept.sh("cat /data/file; echo $VERSION") == "one\n2"
    assert len(devices(cloud)) == 1
    # Paused and resumed.
    assert cloud.call("POST", f"/v1/services/{kept.id}/pause")[0] == 200
    cloud.wait_status(kept.id, "PAUSED")
    wait_for("it is detached", lambda: not kept.attached())
    status, reply = cloud.call("DELETE", f"/v1/volumes/{kept.volume}")
    assert status == 400 and "still attached" in reply["message"], "its service will want it again"
    assert cloud.call("POST", f"/v1/services/{kept.id}/resume")[0] == 200
    cloud.wait_status(kept.id, "HEALTHY")
    assert kept.sh("cat /data/file") == "one"
    _, reply = cloud.call("GET", f"/v1/volume_events?persistent_volume_id={kept.volume}&order=asc")
    kinds = [event["type"] for event in reply["events"]]
    assert kinds[:2] == ["CREATED", "ATTACHED"] and "DETACHED" in kinds
    # Deleted with the service gone, and not before.
    assert cloud.call("DELETE", f"/v1/services/{kept.id}")[0] == 200
    delete(cloud, kept.volume)
    wait_for("nothing is left of it", lambda: not devices(cloud))
    assert not list(cloud.data.glob(f"**/{kept.volume}"))


def test_the_size_holds_and_grows(cloud, image, name):
    kept = Kept(cloud, image, name).start()
    try:
        full = "dd if=/dev/zero of=/data/big bs=1M count=4000 2>&1 | grep -c 'No space left'; stat -c %s /data/big"
        said, size = kept.sh(full).split()
        assert said == "1" and 0.85 * GB < int(size) < GB
        status, reply = cloud.call("POST", f"/v1/volumes/{kept.volume}", {"max_size": 2})
        assert status == 200 and reply["volume"]["max_size"] == 2, reply
        wait_for("it was grown", lambda: "GROWN" in [
            event["type"] for event in
            cloud.call("GET", f"/v1/volume_events?persistent_volume_id={kept.volume}")[1]["events"]])
        kept.redeploy(env=[{"key": "VERSION", "value": "2"}])
        said, size = kept.sh(full).split()
        assert said == "1" and 1.85 * GB < int(size) < 2 * GB
        status, reply = cloud.call("POST", f"/v1/volumes/{kept.volume}", {"max_size": 1})
        assert status == 400 and reply["fields"][0]["field"] == "max_size", reply
        status, reply = cloud.call("POST", "/v1/volumes", {"name": "huge", "region": "local", "max_size": 16000})
        assert status == 400 and "there is not enough room: 16000 GB are asked for" in reply["message"], reply
    finally:
        cloud.call("DELETE", f"/v1/services/{kept.id}")
        delete(cloud, kept.volume)


def test_a_snapshot_is_restored(cloud, image, name):
    kept = Kept(cloud, image, name).start()
    kept.sh("mkdir /data/d; for i in $(seq 200); do head -c 100000 /dev/urandom > /data/d/$i; done; "
            "cd /data && sha256sum d/* > sums && sync")
    status, reply = cloud.call("POST", "/v1/snapshots", {"parent_volume_id": kept.volume, "name": f"{name}-one"})
    assert status == 200 and reply["snapshot"]["status"] == "SNAPSHOT_STATUS_CREATING", reply
    snapshot = reply["snapshot"]["id"]

    def look():
        return cloud.call("GET", f"/v1/snapshots/{snapshot}")[1]["snapshot"]
    wait_for("it is available", lambda: look()["status"] == "SNAPSHOT_STATUS_AVAILABLE")
    assert look()["type"] == "SNAPSHOT_TYPE_LOCAL" and look()["size"] == 1
    kept.sh("rm -r /data/d; sync")
    again = Kept(cloud, image, f"{name}-b", size=2, snapshot_id=snapshot).start()
    assert again.sh("cd /data && sha256sum --quiet -c sums && echo whole") == "whole"
    assert int(again.sh("df -B1 --output=size /data | tail -1")) > 1.5 * GB
    assert cloud.call("DELETE", f"/v1/snapshots/{snapshot}")[1]["snapshot"]["status"] == "SNAPSHOT_STATUS_DELETING"
    wait_for("it is gone", lambda: cloud.call("GET", f"/v1/snapshots/{snapshot}")[0] == 404)
    for one in (kept, again):
        cloud.call("DELETE", f"/v1/services/{one.id}")
        delete(cloud, one.volume)


def test_two_services_cannot_have_one(cloud, image, name):
    kept = Kept(cloud, image, name).start()
    for change, field in [
        ({}, "definition.volumes.0.id"),
        ({"volumes": [{"id": str(uuid.uuid4()), "path": "/data"}]}, "definition.volumes.0.id"),
        ({"volumes": [{"id": kept.volume, "path": "/proc/x"}]}, "definition.volumes.0.path"),
    ]:
        body = {"app_id": kept.app, "definition": kept.definition | {"name": "other"} | change}
        status, reply = cloud.call("POST", "/v1/services", body)
        assert status == 400 and field in [one["field"] for one in reply["fields"]], reply
    status, reply = cloud.call("PUT", f"/v1/services/{kept.id}/scale", {"scalings": [{"instances": 2}]})
    assert status == 400, reply
    cloud.call("DELETE", f"/v1/services/{kept.id}")
    delete(cloud, kept.volume)


def test_it_survives_the_death_of_everybody(own_cloud, image, name):
    cloud = own_cloud
    kept = Kept(cloud, image, name).start()
    kept.sh("echo kept > /data/file; sync")
    for victim in ["instance", "supervise", "control plane", "all"]:
        if victim in ("instance", "all"):
            for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
                with_words = path.read_bytes() if path.exists() else b""
                root = path.parent / "root" / "data" / "file"
                if with_words.startswith(b"sleep\0infinity") and root.exists():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        if victim in ("supervise", "all"):
            os.kill(cloud.helper_pid("supervise"), signal.SIGKILL)
        if victim in ("control plane", "all"):
            cloud.kill()
            cloud.start()

        def readable():
            done = cloud.tram("exec", kept.name, "--", "cat", "/data/file", check=False)
            return done.stdout.strip() == "kept"
        wait_for(f"what was written is there after the death of {victim}", readable)
    assert len(devices(cloud)) == 1
    cloud.call("DELETE", f"/v1/services/{kept.id}")
    delete(cloud, kept.volume)
    wait_for("nothing is left of it", lambda: not devices(cloud))
