"""Where no registry answers, an imported image of the house stands in for others, and the events say so."""

import os
import pathlib
import tarfile

import pytest

from cloud import Cloud, wait_for

# Port 1 of loopback: nobody is there.
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def cloud(registry, tmp_path_factory):
    registry.image("hello")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "tram" / "images"
    layout = pathlib.Path(os.environ.get("TRAM_IMAGE_CACHE", cache)) / "hello"
    archive = tmp_path_factory.mktemp("archive") / "hello.tar"
    with tarfile.open(archive, "w") as tar:
        for entry in sorted(layout.iterdir()):
            tar.add(entry, entry.name)
    cloud = Cloud(image_fallbacks=f"{NOBODY}/python=house/sandbox:1").start()
    cloud.tram("images", "import", "--data-dir", cloud.data, archive, "--name", "house/sandbox:1")
    yield cloud
    cloud.remove()


def events(cloud, service):
    _, reply = cloud.call("GET", f"/v1/services/{service}")
    _, reply = cloud.call("GET", f"/v1/deployment_events?deployment_id={reply['service']['latest_deployment_id']}")
    return "\n".join(one["message"] for one in reply["events"])


def test_an_imported_image_stands_in_and_the_events_say_so(cloud, name):
    cloud.tram("sandbox", "create", name, "--image", f"{NOBODY}/python:3.12-slim")
    service = next(one for one in cloud.call("GET", "/v1/services")[1]["services"] if one["name"] == name)
    told = events(cloud, service["id"])
    assert "house/sandbox:1 stands in" in told and NOBODY in told, told
    run = lambda: cloud.tram("sandbox", "exec", name, "--", "/bin/busybox", "echo", "here", check=False).stdout == "here\n"
    assert run()
    # It stays so through a restart, for whatever is started again.
    cloud.kill()
    cloud.start()
    before = cloud.instances(service["id"], "HEALTHY")[0]["id"]
    cloud.tram("sandbox", "exec", name, "--", "/bin/busybox", "kill", "-9", "1", check=False)
    cloud.tram("redeploy", name)
    wait_for("another instance runs", lambda: [one for one in cloud.instances(service["id"], "HEALTHY")
                                               if one["id"] != before])
    wait_for("it is of the same image", run)
    cloud.tram("sandbox", "delete", name)

