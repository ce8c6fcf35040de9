"""Sandboxes from a terminal."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios

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


def terminal(cloud, rows, columns, *words):
    """A `tram` on a terminal of this size: the process and the other end of its terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [BINARY, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=cloud.environment, start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def until(end, terminal):
    """What the terminal shows, up to `end`."""
    seen = b""
    while end not in seen:
        seen += os.read(terminal, 4096)
    return seen


@pytest.fixture
def box(cloud, registry, name):
    cloud.tram("sandbox", "create", name, "--image", registry.image("hello"))
    yield name
    cloud.tram("sandbox", "delete", name)


def test_ssh_is_a_terminal_with_a_size_and_a_code(cloud, box):
    busybox = ["--", "/bin/busybox", "sh", "-i"]
    process, ours = terminal(cloud, 33, 111, "sandbox", "ssh", box, *busybox)
    os.write(ours, b"/bin/busybox stty size; /bin/busybox tty\n")
    assert b"33 111" in until(b"/dev/pts/", ours)
    os.write(ours, b"exit 7\n")
    assert process.wait(timeout=30) == 7
    os.close(ours)


def test_ssh_that_is_hung_up_leaves_no_process(cloud, box):
    loop = "echo up; /bin/busybox sleep 98765; echo never"
    process, ours = terminal(cloud, 24, 80, "sandbox", "ssh", box, "--", "/bin/busybox", "sh", "-c", loop)
    until(b"up", ours)
    process.kill()
    process.wait(timeout=30)
    os.close(ours)

    def gone():
        listed = cloud.tram("sandbox", "exec", box, "--", "/bin/busybox", "ps").stdout
        return "PID" in listed and "98765" not in listed

    wait_for("nothing is left of it", gone)
