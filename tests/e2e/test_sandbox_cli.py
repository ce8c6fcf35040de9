"""Sandboxes from a terminal."""

import json
import signal
import subprocess

import pytest

from cloud import BINARY, wait_for


@pytest.fixture(scope="module")
def python_image(registry):
    return registry.image("fastapi")


def sandboxes(cloud):
    return json.loads(cloud.tram("sandbox", "ls", "-o", "json").stdout)


def test_run_is_a_command_with_input_output_and_code(cloud, python_image):
    done = cloud.tram(
        "sandbox", "run", "--image", python_image, "-e", "WHO=me", "--", "python3", "-c",
        "import os, sys; print(sys.stdin.read().upper(), os.environ['WHO']); print('oh', file=sys.stderr); sys.exit(3)",
        stdin="some text", check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("SOME TEXT me\n", "oh\n", 3)
    assert not [one for one in sandboxes(cloud) if one["status"] not in ("DELETING", "DELETED")]


def test_run_that_is_ended_leaves_no_sandbox(cloud, python_image):
    for how in (signal.SIGTERM, signal.SIGINT):
        running = subprocess.Popen(
            [BINARY, "sandbox", "run", "--image", python_image, "--", "sh", "-c", "echo up; exec sleep 1000"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=cloud.environment,
        )
        assert running.stdout.readline() == "up\n"
        assert sandboxes(cloud)
        running.send_signal(how)
        assert running.wait(timeout=30) != 0
        wait_for("no sandbox is left", lambda: not sandboxes(cloud))


def test_run_says_why_it_cannot(cloud, registry, python_image):
    done = cloud.tram("sandbox", "run", "--image", python_image, "--", "/no/such/program", check=False)
    assert done.returncode != 0 and "/no/such/program" in done.stderr
    done = cloud.tram("sandbox", "run", "--image", python_image + "-nope", "--", "true", check=False)
    assert done.returncode != 0 and "does not start" in done.stderr, done.stderr
    wait_for("no sandbox is left", lambda: not sandboxes(cloud))


def test_the_life_of_one_with_a_single_static_program(cloud, registry):
    made = cloud.tram(
        "sandbox", "create", "mine", "--image", registry.image("hello"), "--sleep-after", "5m", "--delete-after", "1h",
    )
    assert made.stdout == "mine\n"
    assert [one["name"] for one in sandboxes(cloud)] == ["mine"]
    assert "mine" in cloud.tram("sandbox", "ls").stdout
    done = cloud.tram("sandbox", "exec", "mine", "--", "/bin/busybox", "sh", "-c", "echo inside; exit 5", check=False)
    assert (done.stdout, done.returncode) == ("inside\n", 5)
    cloud.tram("sandbox", "delete", "mine")
    wait_for("it is gone", lambda: not sandboxes(cloud))
