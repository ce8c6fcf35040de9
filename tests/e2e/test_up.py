"""`tram up` and the commands around it, as the person at the machine meets them."""

import contextlib
import glob
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile

import pytest

from cloud import BASE_DOMAIN, BINARY, IMAGES, PROJECT, Cloud, free_port, wait_for

HELLO = b"Hello from version 1\n"
TOKEN = re.compile(r"(?<![0-9A-Za-z])[0-9A-Za-z]{64}(?![0-9A-Za-z])")


def test_the_first_start_tells_urls_and_the_token_once(own_cloud):
    cloud = own_cloud
    said = wait_for("all is told", lambda: "shown this once" in cloud.logs() and cloud.logs())
    assert cloud.api_url in said
    _, reply = cloud.call("GET", "/v1/account/organization")
    organization = reply["organization"]["name"]
    assert f"https://<app>-{organization}-<8 hex digits>.{BASE_DOMAIN}:{cloud.https_port}" in said
    assert TOKEN.findall(said) == [cloud.token]
    context = cloud.directory / "config" / "tram" / "config.toml"
    assert context.stat().st_mode & 0o777 == 0o600
    assert cloud.stop() == 0
    cloud.start()
    wait_for("it is up again", lambda: cloud.logs().count("Tramontane is up") == 2)
    assert TOKEN.findall(cloud.logs()) == [cloud.token], "the token is told again"


def test_a_second_one_names_the_holder(cloud):
    done = cloud.tram("up", "--data-dir", cloud.data, "--api-listen", f"127.0.0.1:{free_port()}",
                      "--http-port", free_port(), "--https-port", free_port(), check=False)
    assert done.returncode == 1
    assert f"process {cloud.process.pid} " in done.stderr and str(cloud.data) in done.stderr
    assert cloud.call("GET", "/v1/apps")[0] == 200


def test_sigterm_finishes_an_open_request(own_cloud, registry, name):
    cloud = own_cloud
    cloud.tram("deploy", registry.image("fastapi"), "--name", name, "--port", "8000")
    halves = b"a" * 65536, b"b" * 65536
    with cloud.connection() as connection:
        connection.sendall(
            f"POST /echo HTTP/1.1\r\nhost: {cloud.host(name)}\r\ncontent-length: {sum(map(len, halves))}\r\n"
            "expect: 100-continue\r\nconnection: close\r\n\r\n".encode())
        reply = connection.makefile("rb")
        # The program has the request now and waits for its body.
        assert reply.readline() == b"HTTP/1.1 100 Continue\r\n" and reply.readline() == b"\r\n"
        connection.sendall(halves[0])
        cloud.process.send_signal(signal.SIGTERM)

        def refuses():
            with contextlib.suppress(OSError), cloud.connection():
                return False
            return True

        wait_for("nobody is let in any more", refuses)
        connection.sendall(halves[1])
        answer = reply.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"a") >= 65536 and answer.count(b"b") >= 65536
    assert cloud.process.wait(60) == 0


@pytest.fixture
def postgres():
    """A PostgreSQL of its own on a free port; its URL."""
    programs = [*sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)]
    assert programs, "PostgreSQL is missing: run `apt-get install postgresql`"
    user = pwd.getpwnam("postgres")
    directory = tempfile.mkdtemp(prefix="tram-e2e-pg-")
    os.chown(directory, user.pw_uid, user.pw_gid)
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": directory}
    port = free_port()
    subprocess.run(
        [f"{programs[0]}/initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--no-locale",
         "--username=postgres", "--pgdata", f"{directory}/data"],
        check=True, capture_output=True, **identity)
    server = subprocess.Popen(
        [f"{programs[0]}/postgres", "-D", f"{directory}/data", "-k", directory, "-c", "fsync=off",
         "-c", "listen_addresses=127.0.0.1", "-c", f"port={port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity)
    try:
        def answers():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return (pathlib.Path(directory) / "data" / "postmaster.pid").read_text().splitlines()[-1:] == ["ready   "]
        wait_for("PostgreSQL is ready", answers)
        yield f"postgres://postgres@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(60)
        shutil.rmtree(directory, ignore_errors=True)


def test_on_postgresql(postgres, registry, name):
    cloud = Cloud(database_url=postgres)
    try:
        cloud.start()
        cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
        host = cloud.host(name)
        assert cloud.get(host)[2] == HELLO
        assert not list(cloud.data.rglob("*.db")), "there is an SQLite database"
        before = [one["id"] for one in cloud.instances(cloud.service(name)["id"], "HEALTHY")]
        cloud.kill()
        cloud.start()
        assert [one["id"] for one in cloud.instances(cloud.service(name)["id"], "HEALTHY")] == before
        cloud.tram("delete", name)
        wait_for("the service is gone", lambda: cloud.get(host)[0] == 404)
    finally:
        cloud.remove()


def test_an_imported_image_needs_no_registry(cloud, name):
    subprocess.run([IMAGES / "build", "hello"], check=True)
    cache = os.environ.get("TRAM_IMAGE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "tram", "images")
    archive = cloud.directory / "hello.tar"
    # Nobody listens on port 1 of loopback.
    image = f"127.0.0.1:1/{name}:1"
    subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", f"oci:{cache}/hello:latest",
                    f"docker-archive:{archive}:{image}"], check=True)
    assert image in cloud.tram("images", "import", archive, "--data-dir", cloud.data).stdout
    cloud.tram("deploy", image, "--name", name, "--port", "8000")
    assert cloud.get(cloud.host(name))[2] == HELLO
    assert image in cloud.tram("images", "ls", "--data-dir", cloud.data).stdout
    cloud.tram("delete", name)


def test_redis_through_its_public_port(cloud, registry, name):
    cloud.tram("deploy", registry.image("redis"), "--name", name, "--port", "6379:tcp", "--proxy-port", "6379")
    deployment = cloud.service(name)["active_deployment_id"]
    _, reply = cloud.call("GET", f"/v1/deployments/{deployment}")
    port = reply["deployment"]["metadata"]["proxy_ports"][0]["public_port"]

    def ask(words):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as connection:
            connection.sendall(f"{words}\r\n".encode())
            return connection.recv(100)

    wait_for("redis answers", lambda: ask("PING") == b"+PONG\r\n")
    assert ask(f"SET colour {name}") == b"+OK\r\n"
    assert ask("GET colour") == f"${len(name)}\r\n{name}\r\n".encode()
    cloud.tram("delete", name)
    wait_for("nobody answers", lambda: not ask("PING"))


def test_logs_are_followed(cloud, registry, name):
    cloud.tram("deploy", registry.image("fastapi"), "--name", name, "--port", "8000")
    host = cloud.host(name)
    cloud.get(host, "/say/before")
    with subprocess.Popen([BINARY, "logs", "-f", "--raw", "--stream", "stdout", name], env=cloud.environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            assert any("before" in line for line in follower.stdout)
            # It comes though nothing else is asked for.
            cloud.get(host, "/say/after")
            assert any("after" in line for line in follower.stdout)
            assert follower.poll() is None
            follower.send_signal(signal.SIGINT)
            follower.wait(30)
        finally:
            follower.kill()
    cloud.tram("delete", name)


def test_a_terminal_in_an_instance(cloud, registry, name):
    cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000")
    ours, theirs = os.openpty()
    with subprocess.Popen(["setsid", "--ctty", "--wait", BINARY, "exec", "-it", name, "--", "/bin/sh"],
                          env=cloud.environment, stdin=theirs, stdout=theirs, stderr=theirs) as shell:
        os.close(theirs)
        shown = b""
        try:
            # Only a shell on a terminal says this; the sum is not what was typed.
            os.write(ours, b"test -t 0 && test -t 1 && echo sum $((40 + 2)); exit 7\n")
            with contextlib.suppress(OSError):
                while b"sum 42" not in shown:
                    more = os.read(ours, 4096)
                    if not more:
                        break
                    shown += more
            assert shell.wait(60) == 7, shown
        finally:
            shell.kill()
            os.close(ours)
    assert b"sum 42" in shown
    cloud.tram("delete", name)


def test_doctor_finds_this_machine_able(cloud):
    done = cloud.tram("doctor", "--data-dir", cloud.data, "--http-port", cloud.http_port,
                      "--https-port", cloud.https_port, "--base-domain", BASE_DOMAIN, "--output", "json", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {one["name"]: one for one in json.loads(done.stdout)}
    assert {"program nft", "capabilities", "cgroups", "disk limits"} <= set(checks)
    for name, one in checks.items():
        assert one["detail"], one
        assert one["status"] == "ok" or not one["needed"], one
        assert (one["mend"] is None) == (one["status"] == "ok"), f"{name} is not said how to mend"


# The system's store of roots as the programs inside see it: ours to change, and gone with the last of them.
THROW_AWAY_ROOTS = """
set -e
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir "$copy/certs" "$copy/ours"
cp -a /etc/ssl/certs/. "$copy/certs"
cp -a /usr/local/share/ca-certificates/. "$copy/ours"
mount --bind "$copy/certs" /etc/ssl/certs
mount --bind "$copy/ours" /usr/local/share/ca-certificates
open() { curl --silent --show-error --max-time 30 "$URL"; }
open && { echo "trusted before" >&2; exit 1; }
"$TRAM" trust --data-dir "$DATA"
open
"$TRAM" trust --remove --data-dir "$DATA"
open && { echo "trusted after" >&2; exit 1; }
umount /etc/ssl/certs /usr/local/share/ca-certificates
"""


def test_the_printed_url_opens_once_the_machine_trusts_us(cloud, registry, name):
    said = cloud.tram("deploy", registry.image("hello", "1"), "--name", name, "--port", "8000").stdout
    url = said.strip().splitlines()[-1]
    assert url.startswith(f"https://{name}-") and f".{BASE_DOMAIN}:{cloud.https_port}" in url
    # What libnss-myhostname is for: programs that ask the system find the name on this machine.
    found = socket.getaddrinfo(cloud.host(name), cloud.https_port, proto=socket.IPPROTO_TCP)
    assert {address[4][0] for address in found} <= {"127.0.0.1", "::1"}, found
    environment = {"PATH": os.environ["PATH"], "URL": url, "TRAM": BINARY, "DATA": str(cloud.data)}
    done = subprocess.run(["unshare", "--mount", "sh", "-c", THROW_AWAY_ROOTS], capture_output=True, text=True,
                          env=environment, cwd=PROJECT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert HELLO.decode() in done.stdout
    assert done.stderr.count("curl: (60)") == 2, done.stderr
    cloud.tram("delete", name)
