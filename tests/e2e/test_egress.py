"""What an instance may reach outside: lists of addresses and names, what is refused is told, and restarts and changes of
the list interrupt nothing that it allows.

The outside is a network namespace behind a pair of interfaces, with web servers on three addresses, and a name server
of the test's own that says where names lead."""

import contextlib
import os
import socket
import struct
import subprocess
import threading

import pytest
from koyeb import Sandbox

from cloud import BINARY, Cloud, wait_for
from outside import served

SUBNET = f"198.19.{os.getpid() % 256}"
LISTED, NAMED, OTHER = f"{SUBNET}.10", f"{SUBNET}.11", f"{SUBNET}.12"
# A program keeps what it was told for so long; the firewall lets it through for longer.
TTL_SECONDS = 5


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class NameServer:
    """Answers every question for an address from a table of names and their addresses, of either family, and remembers
    what it was asked."""

    def __init__(self, table):
        self.table = dict(table)
        self.asked = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            question, source = self.socket.recvfrom(4096)
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1:at + 1 + question[at]].decode())
                at += 1 + question[at]
            name, asked = ".".join(labels), question[12:at + 5]
            kind = struct.unpack("!H", question[at + 1:at + 3])[0]
            self.asked.append(name)
            family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
            found = [one for one in self.table.get(name, "").split() if family_of(one) == family]
            code = 0 if name in self.table else 3
            reply = question[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, len(found), 0, 0) + asked
            for address in found:
                packed = socket.inet_pton(family, address)
                reply += struct.pack("!HHHIH", 0xC00C, kind, 1, TTL_SECONDS, len(packed)) + packed
            self.socket.sendto(reply, source)


@pytest.fixture(scope="module")
def names():
    return NameServer({"listed.example.org": NAMED, "other.example.org": OTHER, "deep.below.example.net": OTHER,
                       "metadata.example.org": "169.254.169.254"})


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    page = tmp_path_factory.mktemp("outside")
    (page / "index.html").write_text("the outside\n")
    name, link = f"trameg{os.getpid()}", f"treg{os.getpid() % 100000}"
    here = [f"ip addr add {SUBNET}.1/24 dev {link}"]
    there = [f"{address}/24 dev eth0" for address in (LISTED, NAMED, OTHER)]
    with served(name, link, here, there, page, "80"):
        yield


@pytest.fixture(scope="module")
def cloud(names, outside):
    cloud = Cloud(name_servers=f"127.0.0.1:{names.port}").start()
    yield cloud
    cloud.remove()


@pytest.fixture
def deploy(cloud, registry, name):
    """Deploys a web server with an allow list; `None` is no policy."""

    def definition(allow):
        policy = None
        if allow is not None:
            policy = {"egress": {"mode": "EGRESS_POLICY_MODE_DENY_ALL", "allow_list": [{"cidr": one} for one in allow]}}
        return {
            "name": name, "type": "WEB", "regions": ["local"], "instance_types": [{"type": "nano"}],
            "docker": {"image": registry.image("fastapi"), "entrypoint": ["python3", "-m", "http.server", "8000"]},
            "ports": [{"port": 8000, "protocol": "http"}],
            "routes": [{"port": 8000, "path": "/"}], "scalings": [{"min": 1, "max": 1}], "network_policy": policy,
        }

    def deploy(allow):
        _, reply = cloud.call("POST", "/v1/apps", {"name": name})
        status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": deploy.definition(allow)})
        assert status == 200, reply
        service = reply["service"]["id"]
        cloud.wait_status(service, "HEALTHY")
        return service

    deploy.definition = definition
    yield deploy
    with contextlib.suppress(IndexError, KeyError):
        cloud.call("DELETE", f"/v1/apps/{cloud.call('GET', f'/v1/apps?name={name}')[1]['apps'][0]['id']}")


FETCH = """
import sys, urllib.request
try:
    sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
except OSError as error:
    print(error)
"""


def fetch(cloud, name, host):
    """What an instance gets from a web server, or what it is told instead."""
    return cloud.tram("exec", name, "--", "python3", "-c", FETCH, f"http://{host}/").stdout


def reaches(cloud, name, host):
    return fetch(cloud, name, host) == "the outside\n"


def log(cloud, name):
    return cloud.tram("logs", name).stdout


def test_without_a_policy_everything_but_metadata_is_reached(cloud, name, deploy):
    deploy(None)
    assert reaches(cloud, name, OTHER) and reaches(cloud, name, "other.example.org")
    for address in ("169.254.169.254", "168.63.129.16", "metadata.example.org"):
        assert "No route to host" in fetch(cloud, name, address), address
    wait_for("the owner is told", lambda: "TCP 169.254.169.254:80" in log(cloud, name))


def test_nothing_is_reached_with_an_empty_list_and_names_stay_inside(cloud, name, names, deploy):
    deploy([])
    assert "No route to host" in fetch(cloud, name, LISTED)
    assert not reaches(cloud, name, "secret.leaks.example.org")
    assert "secret.leaks.example.org" not in names.asked, "a question is a way out too"
    assert cloud.get(cloud.host(name))[0] == 200, "the way in stays"
    wait_for("packets are told", lambda: f"TCP {LISTED}:80" in log(cloud, name))
    wait_for("names are told", lambda: "secret.leaks.example.org" in log(cloud, name))


def test_a_rule_follows_its_name_and_a_restart_does_not_end_it(cloud, name, names, deploy):
    deploy([f"{LISTED}/32", "listed.example.org", "*.below.example.net", "metadata.example.org"])
    assert reaches(cloud, name, LISTED)
    # By address it is not to be had before its name was asked for.
    assert not reaches(cloud, name, NAMED)
    assert reaches(cloud, name, "listed.example.org")
    assert reaches(cloud, name, NAMED)
    assert not reaches(cloud, name, "other.example.org") and not reaches(cloud, name, OTHER)
    assert reaches(cloud, name, "deep.below.example.net")
    # A name that leads to where nobody may go opens nothing.
    assert "No route to host" in fetch(cloud, name, "metadata.example.org")
    cloud.kill()
    cloud.start()
    assert reaches(cloud, name, NAMED), "what was let through outlives the control plane"
    names.table["listed.example.org"] = OTHER
    wait_for("the rule follows the name", lambda: reaches(cloud, name, "listed.example.org"))


def change(cloud, service, deploy, allow):
    """Gives a service another policy and waits until that is deployed."""
    status, reply = cloud.call("PUT", f"/v1/services/{service}", {"definition": deploy.definition(allow)})
    assert status == 200, reply
    return cloud.wait_deployment(reply["service"]["latest_deployment_id"], "HEALTHY")


def running(cloud, service):
    """An instance is a single run: one that was started again has another id."""
    return [one["id"] for one in cloud.instances(service, "HEALTHY", "SLEEPING")]


def test_a_changed_policy_holds_in_what_runs_and_through_restarts(cloud, name, names, deploy):
    service = deploy([])
    before = running(cloud, service)
    assert not reaches(cloud, name, LISTED)
    deployment = change(cloud, service, deploy, [LISTED])
    assert reaches(cloud, name, LISTED) and not reaches(cloud, name, OTHER)
    assert running(cloud, service) == before, "nothing was started again"
    assert cloud.call("GET", f"/v1/services/{service}")[1]["service"]["active_deployment_id"] == deployment["id"]
    for restart in (cloud.kill, lambda: (cloud.kill(), os.kill(cloud.helper_pid("supervise"), 9))):
        restart()
        cloud.start()
        wait_for("the policy holds", lambda: reaches(cloud, name, LISTED) and not reaches(cloud, name, OTHER))
        assert running(cloud, service) == before
    # Names come and go with the list, and everything is open again in the end.
    change(cloud, service, deploy, ["other.example.org"])
    assert reaches(cloud, name, "other.example.org") and reaches(cloud, name, OTHER)
    assert not reaches(cloud, name, LISTED)
    change(cloud, service, deploy, [LISTED, "listed.example.org"])
    assert not reaches(cloud, name, "other.example.org") and not reaches(cloud, name, OTHER), "its addresses went too"
    change(cloud, service, deploy, None)
    assert reaches(cloud, name, OTHER) and reaches(cloud, name, LISTED)
    assert running(cloud, service) == before
    assert "network policy was changed" in log(cloud, name)


HOLD = """
import socket, sys, time
held = socket.create_connection((sys.argv[1], 9000), 5)
print("open", flush=True)
while True:
    time.sleep(0.2)
    try:
        held.sendall(b"x")
        held.recv(1)
    except OSError as error:
        print(error, flush=True)
        break
"""


@pytest.fixture
def echo(outside):
    """A server outside that sends back what it gets, on every address."""
    serve = (
        "import socketserver\n"
        "class Echo(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(1):\n"
        "            self.request.sendall(data)\n"
        "socketserver.ThreadingTCPServer.allow_reuse_address = True\n"
        "socketserver.ThreadingTCPServer(('', 9000), Echo).serve_forever()\n"
    )
    server = subprocess.Popen(["ip", "netns", "exec", f"trameg{os.getpid()}", "python3", "-c", serve])
    yield
    server.kill()
    server.wait()


def test_open_connections_are_cut_where_they_are_forbidden_and_nowhere_else(cloud, name, echo, deploy):
    service = deploy(None)

    def hold(address):
        command = [BINARY, "exec", name, "--", "python3", "-c", HOLD, address]
        def opened():
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=cloud.environment)
            if process.stdout.readline() == "open\n":
                return process
            process.wait()
            return None
        return wait_for("a connection is open", opened)

    kept, cut = hold(LISTED), hold(OTHER)
    change(cloud, service, deploy, [LISTED, "other.example.org"])
    assert "reset" in cut.stdout.readline(), "at once, not after a time-out"
    assert cut.wait(timeout=30) == 0 and kept.poll() is None
    # The other one goes on through changes that allow it still, and ends with one that does not.
    for allow in ([f"{SUBNET}.0/28"], None, [LISTED]):
        change(cloud, service, deploy, allow)
    assert kept.poll() is None
    change(cloud, service, deploy, [])
    assert "reset" in kept.stdout.readline()
    assert kept.wait(timeout=30) == 0


def test_an_instance_that_sleeps_lightly_wakes_under_the_new_policy(cloud, registry, name, deploy):
    usual = deploy.definition
    deploy.definition = lambda allow: {
        **usual(allow), "scalings": [{"min": 0, "max": 1, "targets": [
            {"sleep_idle_delay": {"light_sleep_value": 1, "deep_sleep_value": 3600}}]}],
    }
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    status, reply = cloud.call(
        "POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": deploy.definition([LISTED])})
    assert status == 200, reply
    service = reply["service"]["id"]
    asleep = lambda: cloud.instances(service, "SLEEPING")
    before = wait_for("it sleeps", asleep)[0]["id"]
    status, reply = cloud.call("PUT", f"/v1/services/{service}", {"definition": deploy.definition([])})
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "SLEEPING", "HEALTHY")
    assert cloud.get(cloud.host(name))[0] == 200
    assert [one["id"] for one in cloud.instances(service, "HEALTHY", "SLEEPING")] == [before]
    assert not reaches(cloud, name, LISTED)


V6 = """
import socket
print([one[4][0] for one in socket.getaddrinfo("other.example.org", 80)])
for address in ("2001:db8::1", "fe80::1", "::ffff:%s", "ff02::1"):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            with socket.socket(socket.AF_INET6, kind) as one:
                one.settimeout(3)
                one.connect((address, 80, 0, 2))
                one.send(b"x")
                one.recv(1)
                print("open", address, kind)
        except OSError as error:
            print(error)
print(open("/proc/net/if_inet6").read().count("eth0"), "addresses")
"""


def test_ipv6_is_closed_altogether_and_entries_of_a_list_say_so(cloud, name, names, deploy):
    service = deploy(["2001:db8::/32", "2001:db8::1", "::/0", "other.example.org"])
    done = cloud.tram("exec", name, "--", "python3", "-c", V6 % NAMED).stdout
    assert "open" not in done and done.endswith("0 addresses\n"), done
    assert done.startswith(f"['{OTHER}'"), "a listed name is found by IPv4"
    assert reaches(cloud, name, "other.example.org") and not reaches(cloud, name, NAMED), "::/0 is not everything"
    said = "open nothing: 2001:db8::/32, 2001:db8::1, ::/0"
    wait_for("the owner is told", lambda: said in log(cloud, name))
    change(cloud, service, deploy, ["2001:db8::2"])
    wait_for("and told again", lambda: "open nothing: 2001:db8::2" in log(cloud, name))


def test_an_entry_that_is_none_is_named(cloud, name, deploy):
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    wrong = deploy.definition(["10.0.0.0/8", "10.0.0.300"])
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": wrong})
    assert status == 400 and "network_policy.egress.allow_list.1.cidr" in str(reply), reply


def test_the_sdk_changes_the_policy_of_a_sandbox_that_works_on(cloud, registry, sdk_environment):
    """Its own words warn that files and processes are lost: here they are not."""
    with Sandbox.create(image=registry.image("fastapi"), name="policy", timeout=60) as box:
        box.filesystem.write_file("/tmp/before", "kept")
        process = box.launch_process("exec sleep 1000")
        before = running(cloud, box.service_id)
        fetched = lambda host: box.exec(f"python3 -c '{FETCH}' http://{host}/").stdout == "the outside\n"
        assert fetched(LISTED) and fetched(OTHER)
        for change, listed, other in (
            ({"outbound_allowlist": [LISTED]}, True, False), ({"block_network": True}, False, False), ({}, True, True),
        ):
            box.update_network_policy(**change)
            assert box.wait_ready(timeout=60)
            assert (fetched(LISTED), fetched(OTHER)) == (listed, other), change
            assert box.filesystem.read_file("/tmp/before").content == "kept"
            assert process in [one.id for one in box.list_processes()]
            assert running(cloud, box.service_id) == before
