"""Secrets that are bound to hosts: programs hold a placeholder, and the host alone gets the value.

The outside is a network namespace with an HTTPS server that plays `api.example.com` and others under an authority of the
test's own, and writes down what it was sent. The sandboxes are Debian with Python, pip's copy of requests, and curl."""

import base64
import contextlib
import datetime
import json
import os
import pathlib
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cloud import PROJECT, Cloud, wait_for
from test_egress import NameServer

SUBNET = f"198.18.{os.getpid() % 256}"
API, OTHER = f"{SUBNET}.10", f"{SUBNET}.11"
HOST, SECOND, ELSEWHERE = "api.example.com", "eu.example.com", "other.example.com"
VALUE = f"sk-live-{os.urandom(12).hex()}"
NEW_VALUE = f"sk-live-{os.urandom(12).hex()}"
SLIM = pathlib.Path.home() / ".cache" / "tram" / "sandbox" / "slim.tar"

SERVER = r"""
import base64, hashlib, json, socketserver, ssl, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

book, lock = open(sys.argv[1], "a"), threading.Lock()

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with lock:
            print(json.dumps({"at": self.connection.getsockname()[0], "line": self.requestline,
                              "headers": self.headers.items(), "bytes": len(body),
                              "digest": hashlib.sha256(body).hexdigest()}), file=book, flush=True)
        if self.headers.get("Upgrade", "").lower() == "websocket":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "websocket")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            while data := self.connection.recv(4096):
                self.connection.sendall(data)
            self.close_connection = True
            return
        if self.path.startswith("/moved") and self.headers["Host"] == "api.example.com":
            self.send_response(302)
            self.send_header("Location", "https://other.example.com" + self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        answer = b"x" * (1 << 20) if self.path == "/large" else b"welcome\n"
        self.send_response(200)
        self.send_header("X-Echo", self.headers.get("X-Key", "none"))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_TRACE = do_CONNECT = do

    def log_message(self, *_):
        pass

tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(sys.argv[2])
for port in (443, 8443):
    server = ThreadingHTTPServer(("", port), Handler)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever).start()
ThreadingHTTPServer(("", 80), Handler).serve_forever()
"""


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certificate(subject, key, issuer, signer, extension):
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name(issuer), name(subject), key.public_key(), x509.random_serial_number(),
                                      now - day, now + day)
    return builder.add_extension(extension, critical=True).sign(signer, hashes.SHA256())


def pem(*things):
    parts = []
    for thing in things:
        if hasattr(thing, "public_bytes"):
            parts.append(thing.public_bytes(serialization.Encoding.PEM))
        else:
            parts.append(thing.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                             serialization.NoEncryption()))
    return b"".join(parts)


class Outside:
    """The hosts outside, and what they were sent."""

    def __init__(self, directory):
        self.book = directory / "book"
        self.book.touch()
        self.roots = directory / "roots.pem"
        root_key, key, strange_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        root = certificate("root", root_key, "root", root_key, x509.BasicConstraints(True, 0))
        self.roots.write_bytes(pem(root))
        names = x509.SubjectAlternativeName([x509.DNSName(one) for one in (HOST, SECOND, ELSEWHERE)])
        leaf = certificate("leaf", key, "root", root_key, names)
        (directory / "leaf.pem").write_bytes(pem(key, leaf))
        self.namespace, self.link = f"trambs{os.getpid()}", f"trbs{os.getpid() % 100000}"
        for command in (
            f"ip netns add {self.namespace}",
            f"ip link add {self.link} type veth peer name eth0 netns {self.namespace}",
            f"ip addr add {SUBNET}.1/24 dev {self.link}",
            f"ip link set {self.link} up",
            f"sysctl -q -w net.ipv4.conf.{self.link}.forwarding=1",
            *(f"ip -n {self.namespace} addr add {one}/24 dev eth0" for one in (API, OTHER)),
            f"ip -n {self.namespace} link set eth0 up",
            f"ip -n {self.namespace} link set lo up",
        ):
            subprocess.run(command.split(), check=True)
        self.server = subprocess.Popen(["ip", "netns", "exec", self.namespace, sys.executable, "-c", SERVER,
                                        self.book, directory / "leaf.pem"])

    def close(self):
        self.server.kill()
        self.server.wait()
        subprocess.run(["ip", "netns", "delete", self.namespace], check=True)
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["ip", "link", "delete", self.link], check=True, capture_output=True)

    def requests(self):
        return [json.loads(line) for line in self.book.read_text().splitlines()]

    def last(self):
        return self.requests()[-1]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    outside = Outside(tmp_path_factory.mktemp("bound"))
    yield outside
    outside.close()


@pytest.fixture(scope="module")
def names():
    return NameServer({HOST: API, SECOND: API, ELSEWHERE: OTHER})


@pytest.fixture(scope="module")
def cloud(names, outside):
    cloud = Cloud(name_servers=f"127.0.0.1:{names.port}", secret_roots=outside.roots, log_filter="debug").start()
    if not SLIM.exists():
        subprocess.run([PROJECT / "scripts" / "sandbox-images", "slim"], check=True)
    cloud.tram("images", "import", SLIM, "--name", "koyeb/sandbox:slim", "--data-dir", cloud.data)
    cloud.tram("secrets", "create", "key", "--value", VALUE, "--bind-host", HOST, "--bind-host", SECOND)
    yield cloud
    cloud.remove()


@pytest.fixture(scope="module")
def box(cloud, outside):
    cloud.tram("sandbox", "create", "box", "--image", "koyeb/sandbox:slim", "-e", "KEY={{ secret.key }}",
               "-e", "HEADER=Bearer {{ secret.key }}")
    yield "box"


def run(cloud, box, *command, check=True):
    return cloud.tram("sandbox", "exec", box, "--", *command, check=check)


def shell(cloud, box, line, check=True):
    return run(cloud, box, "sh", "-c", line, check=check)


def header(request, wanted):
    return [value for key, value in request["headers"] if key.lower() == wanted.lower()]


def placeholder(cloud, box):
    return shell(cloud, box, 'printf %s "$KEY"').stdout


REQUESTS = """
import os
from pip._vendor import requests
answer = requests.get("https://api.example.com/v1?key=" + os.environ["KEY"], headers={"X-Key": os.environ["KEY"]})
print(answer.status_code, answer.text.strip(), answer.headers["X-Echo"])
"""

URLLIB = """
import os, urllib.request
asked = urllib.request.Request("https://api.example.com/v1", headers={"Authorization": os.environ["HEADER"]})
print(urllib.request.urlopen(asked).read().decode().strip())
"""


def test_programs_hold_a_placeholder_and_the_host_gets_the_value(cloud, box, outside):
    shown = placeholder(cloud, box)
    assert shown.startswith("tram-secret-") and VALUE not in shown
    done = run(cloud, box, "python3", "-c", REQUESTS)
    assert done.stdout == f"200 welcome {shown}\n", "what the host repeats in a header is hidden again"
    request = outside.last()
    assert header(request, "X-Key") == [VALUE] and request["line"] == f"GET /v1?key={VALUE} HTTP/1.1"
    assert header(request, "Host") == [HOST]
    assert run(cloud, box, "python3", "-c", URLLIB).stdout == "welcome\n"
    assert header(outside.last(), "Authorization") == [f"Bearer {VALUE}"]
    assert shell(cloud, box, f'curl -sS -u "me:$KEY" https://{SECOND}/').stdout == "welcome\n"
    assert header(outside.last(), "Authorization") == ["Basic " + base64.b64encode(f"me:{VALUE}".encode()).decode()]
    # Another port of the host, and a body that streams both ways.
    assert shell(cloud, box, f'curl -sS -H "X-Key: $KEY" https://{HOST}:8443/').stdout == "welcome\n"
    assert header(outside.last(), "X-Key") == [VALUE] and header(outside.last(), "Host") == [f"{HOST}:8443"]
    sent = shell(cloud, box, "head -c 20000000 /dev/zero | tee /tmp/sent | sha256sum | cut -c-64").stdout.strip()
    done = shell(cloud, box, f"curl -sS -T /tmp/sent https://{HOST}/large | wc -c")
    assert done.stdout.strip() == str(1 << 20)
    assert (outside.last()["bytes"], outside.last()["digest"]) == (20_000_000, sent)
    done = shell(cloud, box, f"curl -sS -T - https://{HOST}/ < /tmp/sent")
    assert outside.last()["digest"] == sent, "chunked, too"


def processes(cloud, box):
    """The process ids, on the machine, of everything in the sandbox."""
    instance = next(one for one in json.loads(cloud.tram("sandbox", "ls", "-o", "json").stdout) if one["name"] == box)
    (found,) = cloud.instances(instance["id"], "HEALTHY", "SLEEPING")
    return [int(pid.name) for pid in pathlib.Path("/proc").iterdir() if pid.name.isdigit() and found["id"] in cgroup(pid)]


def cgroup(pid):
    with contextlib.suppress(OSError):
        return (pid / "cgroup").read_text()
    return ""


def memory(pid):
    """All that a process can read and has written, as bytes."""
    held = bytearray()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as mem:
        for line in maps:
            span, mode = line.split()[:2]
            if "r" not in mode or "[v" in line:
                continue
            start, end = (int(one, 16) for one in span.split("-"))
            with contextlib.suppress(OSError, OverflowError):
                mem.seek(start)
                held += mem.read(end - start)
    return bytes(held)


HOLD = """
import http.client, os, time
link = http.client.HTTPSConnection("api.example.com")
for _ in range(3):
    link.request("GET", "/", headers={"X-Key": os.environ["KEY"]})
    print(link.getresponse().read(), flush=True)
open("/tmp/asked", "w").close()
time.sleep(600)
"""


def test_nothing_in_the_sandbox_and_no_log_holds_the_value(cloud, box, outside):
    shell(cloud, box, f"nohup python3 -c '{HOLD}' > /tmp/out 2>&1 &")
    wait_for("it has asked", lambda: shell(cloud, box, "cat /tmp/out").stdout.count("welcome") == 3)
    assert header(outside.last(), "X-Key") == [VALUE]
    searched = 0
    shown = placeholder(cloud, box).encode()
    held = False
    pids = processes(cloud, box)
    assert len(pids) >= 2
    for pid in pids:
        image = memory(pid)
        searched += len(image)
        held |= shown in image
        assert VALUE.encode() not in image, f"process {pid}"
        assert VALUE.encode() not in pathlib.Path(f"/proc/{pid}/environ").read_bytes()
    assert searched > 1 << 20 and held, "the search finds what is there"
    # Its files, and everything that the platform wrote down.
    found = shell(cloud, box, f"grep -rl --devices=skip {VALUE[3:]} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null",
                  check=False)
    assert found.stdout == ""
    # (The database holds it encrypted.)
    found = subprocess.run(["grep", "-rla", VALUE[3:], cloud.directory], capture_output=True, text=True)
    assert found.stdout == ""
    assert VALUE not in cloud.tram("logs", box).stdout


def test_no_other_host_gets_the_value(cloud, box, outside):
    shown = placeholder(cloud, box)
    key = '-H "X-Key: $KEY"'
    shell(cloud, box, f"curl -sSk {key} https://{ELSEWHERE}/?key=$KEY")
    request = outside.last()
    assert request["at"] == OTHER and header(request, "X-Key") == [shown] and VALUE not in str(request)
    # To the real address, past our name server: the guest trusts nothing there, and it gets the placeholder.
    shell(cloud, box, f"curl -sSk {key} --resolve {HOST}:443:{API} https://{HOST}/")
    assert header(outside.last(), "X-Key") == [shown]
    # A redirect is the client's affair: it goes where it is sent with what it holds.
    done = shell(cloud, box, f"curl -sSkLv {key} 'https://{HOST}/moved?key='$KEY 2>&1").stdout
    assert VALUE not in done and header(outside.last(), "X-Key") == [shown]
    assert outside.last()["at"] == OTHER and VALUE not in str(outside.last())


RAW = r"""
import socket, ssl, sys
host, port, sent = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode().decode("unicode_escape").encode("latin1")
tls = ssl.create_default_context()
link = tls.wrap_socket(socket.create_connection((host, port), 10), server_hostname=host)
link.sendall(sent)
link.settimeout(3)
got = b""
try:
    while data := link.recv(65536):
        got += data
except OSError:
    pass
sys.stdout.write(got.decode("latin1"))
"""


@pytest.mark.parametrize(("request_text", "status"), [
    ("GET / HTTP/1.1\\r\\nHost: other.example.com\\r\\nX-Key: KEY\\r\\n\\r\\n", 421),
    ("GET / HTTP/1.1\\r\\nHost: api.example.com\\r\\nHost: other.example.com\\r\\nX-Key: KEY\\r\\n\\r\\n", 400),
    ("GET / HTTP/1.1\\r\\nX-Key: KEY\\r\\n\\r\\n", 400),
    ("GET https://other.example.com/ HTTP/1.1\\r\\nHost: api.example.com\\r\\nX-Key: KEY\\r\\n\\r\\n", 421),
    ("GET https://other.example.com/ HTTP/1.1\\r\\nHost: other.example.com\\r\\nX-Key: KEY\\r\\n\\r\\n", 421),
    ("CONNECT other.example.com:443 HTTP/1.1\\r\\nHost: api.example.com\\r\\nX-Key: KEY\\r\\n\\r\\n", 405),
    ("TRACE / HTTP/1.1\\r\\nHost: api.example.com\\r\\nX-Key: KEY\\r\\n\\r\\n", 405),
    ("GET / HTTP/1.1\\r\\nHost: api.example.com:80\\r\\nX-Key: KEY\\r\\n\\r\\n", 421),
    # Two ways to say how long a body is.
    ("POST / HTTP/1.1\\r\\nHost: api.example.com\\r\\nContent-Length: 5\\r\\nContent-Length: 6\\r\\nX-Key: KEY\\r\\n\\r\\n", 400),
    ("POST / HTTP/1.1\\r\\nHost: api.example.com\\r\\nTransfer-Encoding: gzip\\r\\nX-Key: KEY\\r\\n\\r\\nabc", 400),
    ("GET / HTTP/1.1\\r\\nHost: api.example.com\\r\\nX-Key: KEY\\n Folded: KEY\\r\\n\\r\\n", 400),
    ("PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n", None),
])
def test_a_request_that_is_not_for_the_host_carries_nothing(cloud, box, outside, request_text, status):
    before = len(outside.requests())
    sent = request_text.replace("KEY", placeholder(cloud, box))
    got = run(cloud, box, "python3", "-c", RAW, HOST, "443", sent).stdout
    if status:
        assert got.startswith(f"HTTP/1.1 {status} "), got
    assert VALUE not in got and len(outside.requests()) == before


def test_what_would_change_the_protocol_is_left_out(cloud, box, outside):
    shown = placeholder(cloud, box)
    sent = ("GET /one HTTP/1.1\\r\\nHost: api.example.com\\r\\nConnection: Upgrade, HTTP2-Settings\\r\\nUpgrade: h2c\\r\\n"
            f"HTTP2-Settings: AAMAAABkAAQAAP__\\r\\nX-Key: {shown}\\r\\n\\r\\n"
            f"GET https://{HOST}/two HTTP/1.1\\r\\nHost: api.example.com\\r\\nX-Key: {shown}\\r\\n"
            "Connection: X-Gone, close\\r\\nX-Gone: 1\\r\\n\\r\\n")
    got = run(cloud, box, "python3", "-c", RAW, HOST, "443", sent).stdout
    assert got.count("HTTP/1.1 200 OK") == 2 and VALUE not in got
    one, two = outside.requests()[-2:]
    assert one["line"] == "GET /one HTTP/1.1" and two["line"] == "GET /two HTTP/1.1"
    assert header(one, "Upgrade") == header(one, "HTTP2-Settings") == header(two, "X-Gone") == []
    assert header(one, "X-Key") == header(two, "X-Key") == [VALUE]


def test_a_websocket_goes_through(cloud, box, outside):
    shown = placeholder(cloud, box)
    sent = ("GET /socket HTTP/1.1\\r\\nHost: api.example.com\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n"
            "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n"
            f"Authorization: Bearer {shown}\\r\\n\\r\\n")
    program = RAW.replace("link.settimeout(3)", "import time; time.sleep(1); link.sendall(b'ping'); link.settimeout(3)")
    got = run(cloud, box, "python3", "-c", program, HOST, "443", sent).stdout
    assert got.startswith("HTTP/1.1 101 ") and "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in got and got.endswith("ping")
    assert header(outside.last(), "Authorization") == [f"Bearer {VALUE}"]


def test_without_tls_and_with_another_name_there_is_a_clear_refusal(cloud, box, outside):
    before = len(outside.requests())
    done = shell(cloud, box, f'curl -sS -i -H "X-Key: $KEY" http://{HOST}/')
    assert done.stdout.startswith("HTTP/1.1 403 ") and "HTTPS" in done.stdout
    # What is sent to the guard under another name, or none, is not carried on.
    address = shell(cloud, box, f"getent ahostsv4 {HOST} | head -1 | cut -d' ' -f1").stdout.strip()
    done = shell(cloud, box, f'curl -sSk -H "X-Key: $KEY" --resolve {ELSEWHERE}:443:{address} https://{ELSEWHERE}/', check=False)
    assert done.returncode != 0
    assert shell(cloud, box, f"curl -sSk https://{address}/", check=False).returncode != 0
    assert len(outside.requests()) == before
    wait_for("the owner is told", lambda: "hosts that secrets are bound to were refused" in cloud.tram("logs", box).stdout)


def test_a_name_that_leads_to_the_machine_or_to_metadata_is_not_followed(cloud, box, names, outside):
    before = len(outside.requests())
    try:
        for address in ("127.0.0.1", "169.254.169.254", f"{SUBNET}.1", "0.0.0.0"):
            names.table[HOST] = address
            done = shell(cloud, box, f'curl -sS -i -H "X-Key: $KEY" https://{HOST}/')
            assert done.stdout.startswith("HTTP/1.1 403 "), (address, done.stdout)
    finally:
        names.table[HOST] = API
    assert len(outside.requests()) == before
    assert shell(cloud, box, f"curl -sS https://{HOST}/").stdout == "welcome\n"


def test_a_host_without_a_certificate_of_its_name_gets_nothing(cloud, names, outside):
    """As whoever sits in the network between, or answers for the name, would have."""
    names.table["unknown.example.com"] = API
    before = len(outside.requests())
    cloud.tram("secrets", "create", "forged", "--value", "forged-value", "--bind-host", "unknown.example.com")
    cloud.tram("sandbox", "create", "forged", "--image", "koyeb/sandbox:slim", "-e", "KEY={{ secret.forged }}")
    # The server's certificate is good, and for other names.
    done = shell(cloud, "forged", 'curl -sS -i -H "X-Key: $KEY" https://unknown.example.com/')
    assert done.stdout.startswith("HTTP/1.1 502 "), done.stdout
    assert len(outside.requests()) == before
    cloud.tram("sandbox", "delete", "forged")


def test_it_works_after_every_process_of_the_platform_was_killed_and_a_new_value_holds_at_once(cloud, box, outside):
    def asks(expected):
        shell(cloud, box, f'curl -sS -H "X-Key: $KEY" https://{HOST}/')
        assert header(outside.last(), "X-Key") == [expected]

    for restart in (cloud.kill, lambda: (cloud.kill(), os.kill(cloud.helper_pid("supervise"), 9))):
        restart()
        cloud.start()
        wait_for("it is here", lambda: shell(cloud, box, "true", check=False).returncode == 0)
        asks(VALUE)
    cloud.tram("secrets", "update", "key", "--value", NEW_VALUE)
    asks(NEW_VALUE)
    # Bound to less, the host that was left out gets nothing any more.
    cloud.tram("secrets", "update", "key", "--value", VALUE, "--bind-host", SECOND)
    before = len(outside.requests())
    done = shell(cloud, box, f'curl -sS -i -H "X-Key: $KEY" https://{HOST}/')
    assert done.stdout.startswith("HTTP/1.1 403 ") and len(outside.requests()) == before
    cloud.tram("secrets", "update", "key", "--value", VALUE, "--bind-host", SECOND, "--bind-host", HOST)
    asks(VALUE)


@contextlib.contextmanager
def policed(cloud, app, allow):
    """A service with the secret and a network policy."""
    _, reply = cloud.call("POST", "/v1/apps", {"name": app})
    definition = {
        "name": app, "type": "WORKER", "regions": ["local"], "instance_types": [{"type": "nano"}],
        "docker": {"image": "koyeb/sandbox:slim", "entrypoint": ["sleep", "infinity"]},
        "env": [{"key": "KEY", "secret": "key"}], "scalings": [{"min": 1, "max": 1}],
        "config_files": [{"path": "/etc/key.conf", "content": "key={{ secret.key }}", "permissions": "0644"}],
        "network_policy": {"egress": {"mode": "EGRESS_POLICY_MODE_DENY_ALL", "allow_list": [{"cidr": one} for one in allow]}},
    }
    app_id = reply["app"]["id"]
    status, reply = cloud.call("POST", "/v1/services", {"app_id": app_id, "definition": definition})
    assert status == 200, reply
    cloud.wait_status(reply["service"]["id"], "HEALTHY")

    def inside(line, check=True):
        return cloud.tram("exec", app, "--", "sh", "-c", line, check=check)

    yield inside
    cloud.call("DELETE", f"/v1/apps/{app_id}")


@pytest.mark.parametrize("allow", [[], [ELSEWHERE]])
def test_a_network_policy_holds_for_bound_hosts(cloud, outside, allow):
    with policed(cloud, f"shut{len(allow)}", allow) as inside:
        before = len(outside.requests())
        assert inside(f"curl -sS -m 5 https://{HOST}/", check=False).returncode != 0
        # Nor by the guard's address.
        gateway = inside("sed -n 's/^nameserver //p' /etc/resolv.conf").stdout.strip()
        done = inside(f'curl -sS -i -m 5 -H "X-Key: $KEY" --resolve {HOST}:443:{gateway} https://{HOST}/', check=False)
        assert done.stdout.startswith("HTTP/1.1 403 "), done
        assert len(outside.requests()) == before


@pytest.mark.parametrize("allow", [HOST, f"{API}/32"], ids=["by-name", "by-address"])
def test_a_list_that_holds_the_host_or_its_address_lets_it_through(cloud, outside, allow):
    app = "byname" if allow == HOST else "byaddress"
    with policed(cloud, app, [allow]) as inside:
        assert inside("cat /etc/key.conf").stdout == "key=" + inside('printf %s "$KEY"').stdout
        gateway = inside("sed -n 's/^nameserver //p' /etc/resolv.conf").stdout.strip()
        inside(f'curl -sS -H "X-Key: $KEY" --resolve {HOST}:443:{gateway} https://{HOST}/{app}')
        assert header(outside.last(), "X-Key") == [VALUE] and outside.last()["line"].startswith(f"GET /{app}")


def test_a_neighbour_without_the_secret_finds_no_guard(cloud, box, outside):
    shown = placeholder(cloud, box)
    cloud.tram("sandbox", "create", "neighbour", "--image", "koyeb/sandbox:slim")
    gateway = shell(cloud, "neighbour", "sed -n 's/^nameserver //p' /etc/resolv.conf").stdout.strip()
    before = len(outside.requests())
    for port in (443, 8443, 80):
        done = shell(cloud, "neighbour", f"curl -sSk -m 5 -H 'X-Key: {shown}' --resolve {HOST}:{port}:{gateway} https://{HOST}:{port}/",
                     check=False)
        assert done.returncode == 7, done
    assert len(outside.requests()) == before
    # To the host itself it goes as anybody does.
    shell(cloud, "neighbour", f"curl -sSk -H 'X-Key: {shown}' https://{HOST}/")
    assert header(outside.last(), "X-Key") == [shown]
    cloud.tram("sandbox", "delete", "neighbour")


LOOP = """
import os, time, urllib.request
held = os.environ["HEADER"]
open("/tmp/ready", "w").close()
while True:
    time.sleep(0.3)
    who = open("/tmp/who").read().strip()
    if not who:
        continue
    asked = urllib.request.Request("https://api.example.com/of-" + who, headers={"Authorization": held, "Connection": "close"})
    try:
        urllib.request.urlopen(asked).read()
    except OSError as error:
        print(error, flush=True)
"""


def test_a_copy_with_its_memory_goes_on_with_what_it_holds(cloud, box, outside):
    # An open connection is not taken along; what the program holds is.
    shell(cloud, box, "pkill -f http.client", check=False)
    shell(cloud, box, f"touch /tmp/who; nohup python3 -c '{LOOP}' > /tmp/loop 2>&1 &")
    wait_for("it has a program", lambda: shell(cloud, box, "test -e /tmp/ready", check=False).returncode == 0)
    was = {one["name"] for one in json.loads(cloud.tram("sandbox", "ls", "-o", "json").stdout)}
    cloud.tram("sandbox", "fork", box)
    (copy,) = {one["name"] for one in json.loads(cloud.tram("sandbox", "ls", "-o", "json").stdout)} - was
    assert placeholder(cloud, copy) == placeholder(cloud, box)
    shell(cloud, copy, "echo copy > /tmp/who")
    shell(cloud, box, "echo origin > /tmp/who")

    def asked(who):
        made = [one for one in outside.requests() if f"/of-{who} " in one["line"]]
        return made and all(header(one, "Authorization") == [f"Bearer {VALUE}"] for one in made)

    wait_for("the copy's process asks with what it held in memory", lambda: asked("copy"))
    wait_for("and so does the first one's", lambda: asked("origin"))
    shell(cloud, box, "pkill -f urllib.request", check=False)
    cloud.tram("sandbox", "delete", copy)


def test_what_cannot_be_bound_is_said(cloud):
    def refused(body, field):
        status, reply = cloud.call("POST", "/v1/secrets", {"name": "wrong", "type": "SIMPLE", "value": "v", **body})
        assert status == 400 and field in str(reply), reply

    for host in ("*.example.com", "10.0.0.1", "https://api.example.com", "localhost", "db.shop.internal"):
        refused({"hosts": [host]}, "hosts")
    refused({"hosts": [HOST], "value": "two\nlines"}, "value")
    login = {"username": "u", "password": "p", "url": "https://registry.example"}
    refused({"hosts": [HOST], "type": "REGISTRY", "value": None, "private_registry": login}, "hosts")
    # An older client's update, which knows of no hosts, does not set a secret free.
    secret = next(one for one in cloud.call("GET", "/v1/secrets")[1]["secrets"] if one["name"] == "key")
    assert set(secret["hosts"]) == {SECOND, HOST}
    status, _ = cloud.call("PUT", f"/v1/secrets/{secret['id']}", {"name": "key", "type": "SIMPLE", "value": VALUE})
    assert status == 200 and cloud.call("GET", f"/v1/secrets/{secret['id']}")[1]["secret"]["hosts"] == secret["hosts"]
    assert cloud.tram("secrets", "reveal", "key").stdout == f"{VALUE}\n"
