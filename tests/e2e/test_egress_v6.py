"""What an instance may reach outside by IPv6, where the setting `network_v6` gives it any: lists of addresses and names,
what is refused is told, and neither a restart, a changed list nor sleep opens or closes anything else.

What frames of a program's own making come to is tested in crates/site-local (network::v6), which can do without a kernel that
lets single interfaces forward."""

import json
import os
import pathlib
import re
import socket
import subprocess

import pytest

from cloud import BINARY, Cloud, wait_for
from outside import served
from test_checkpoint import images
from test_egress import FETCH, NameServer, change, deploy, log, running  # noqa: F401: deploy is a fixture

PREFIX = f"2001:db8:{os.getpid() % 65535 + 1:x}"
MACHINE, LISTED, NAMED, OTHER, DENIED = f"{PREFIX}::1", f"{PREFIX}::10", f"{PREFIX}::11", f"{PREFIX}::12", f"{PREFIX}:dead::1"
V4 = f"198.19.{os.getpid() % 256}.130"
# Somebody answers there too: the metadata of clouds, other private networks, ways round to IPv4.
CLOSED = ("fd00:ec2::254", "fd20:ce::254", "64:ff9b::c612:1", "2002:c612:1::1", "2001:0:c612::1")


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    if not pathlib.Path("/proc/sys/net/ipv6/conf/default/force_forwarding").exists():
        pytest.skip("this kernel cannot let a single interface forward IPv6 (Linux 6.17), and the machine is not made a router")
    page = tmp_path_factory.mktemp("outside6")
    (page / "index.html").write_text("the outside\n")
    name, link = f"trameg6{os.getpid()}", f"treg6{os.getpid() % 100000}"
    beyond = (DENIED, *CLOSED)
    here = [
        f"ip addr add {MACHINE}/64 dev {link} nodad",
        f"ip addr add {V4[:-3]}129/28 dev {link}",
        f"sysctl -q -w net.ipv6.conf.{link}.force_forwarding=1",
    ]
    there = [
        f"{V4}/28 dev eth0",
        *(f"{address}/64 dev eth0 nodad" for address in (LISTED, NAMED, OTHER)),
        *(f"{address}/128 dev lo" for address in beyond),
    ]
    with served(name, link, here, there, page, "[::]:80"):
        for address in beyond:
            subprocess.run(f"ip route replace {address}/128 via {LISTED} dev {link}".split(), check=True)
        yield


@pytest.fixture(scope="module")
def names():
    return NameServer({"listed.example.org": NAMED, "other.example.org": OTHER, "both.example.org": f"{OTHER} {V4}",
                       "metadata.example.org": CLOSED[0]})


@pytest.fixture(scope="module")
def cloud(names, outside):
    cloud = Cloud(name_servers=f"127.0.0.1:{names.port}", network_v6="on", denied_networks=f"{PREFIX}:dead::/64",
                  light_sleep_checkpoint_after="1s").start()
    yield cloud
    cloud.remove()


def fetch(cloud, name, host):
    host = f"[{host}]" if ":" in host else host
    return cloud.tram("exec", name, "--", "python3", "-c", FETCH, f"http://{host}/").stdout


def reaches(cloud, name, host):
    return fetch(cloud, name, host) == "the outside\n"


def refused(cloud, name, host):
    return "Connection refused" in fetch(cloud, name, host)


def test_without_a_policy_the_global_outside_is_reached_and_nothing_else(cloud, name, deploy):  # noqa: F811
    deploy(None)
    assert reaches(cloud, name, OTHER) and reaches(cloud, name, "other.example.org") and reaches(cloud, name, V4)
    for address in (*CLOSED, DENIED, "metadata.example.org"):
        assert refused(cloud, name, address), address
    wait_for("the owner is told", lambda: f"TCP [{CLOSED[0]}]:80" in log(cloud, name))
    # A name with addresses of both families is reached by IPv4, as before.
    show = "import socket; print(socket.getaddrinfo('both.example.org', 80)[0][4][0])"
    assert cloud.tram("exec", name, "--", "python3", "-c", show).stdout == f"{V4}\n"


def own_addresses(cloud, name):
    """The instance's own by IPv6, and the machine's in the same network."""
    shown = cloud.tram("exec", name, "--", "cat", "/proc/net/if_inet6").stdout
    own = re.search(r"^(\w{32}) \w+ 80 \w+ \w+ +eth0$", shown, re.MULTILINE).group(1)
    assert shown.count("eth0") == 1 and own.startswith("fd"), shown
    own = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(own))
    shown = subprocess.run(["ip", "-6", "addr", "show", "dev", "lo"], capture_output=True, text=True, check=True).stdout
    return own, re.search(rf"({own.rsplit('::', 1)[0]}::\S+)/128", shown).group(1)


def test_neither_the_machine_nor_a_neighbour_is_reached(cloud, registry, name, deploy):  # noqa: F811
    usual = deploy.definition

    def on_both(allow):
        """A server that IPv6 would reach."""
        definition = usual(allow)
        definition["docker"]["entrypoint"] += ["--bind", "::"]
        return definition

    deploy.definition = on_both
    service = deploy(None)
    own, machine = own_addresses(cloud, name)
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        for address in (machine, MACHINE):
            assert refused(cloud, name, f"{address}]:{port}/#["), address
    with socket.create_connection((own, 8000), timeout=5):
        pass  # The machine itself reaches it, so it listens.
    other = f"{name}-other"
    _, reply = cloud.call("POST", "/v1/services", {
        "app_id": cloud.call("GET", f"/v1/services/{service}")[1]["service"]["app_id"],
        "definition": {**deploy.definition(None), "name": other, "routes": [{"port": 8000, "path": "/other"}]},
    })
    cloud.wait_status(reply["service"]["id"], "HEALTHY")
    assert refused(cloud, f"{name}/{other}", f"{own}]:8000/#["), "of the same organization, by IPv6"


def test_a_list_holds_by_address_and_by_name_through_restarts_and_changes(cloud, name, names, deploy):  # noqa: F811
    service = deploy([f"{LISTED}/128", "listed.example.org", "metadata.example.org", "fd00::/8"])
    before = running(cloud, service)
    said = "open nothing: fd00::/8"
    wait_for("the owner is told", lambda: said in log(cloud, name))
    assert reaches(cloud, name, LISTED) and refused(cloud, name, NAMED) and refused(cloud, name, OTHER)
    assert reaches(cloud, name, "listed.example.org") and reaches(cloud, name, NAMED)
    assert not reaches(cloud, name, "other.example.org") and refused(cloud, name, OTHER)
    assert not reaches(cloud, name, V4), "a list of IPv6 says nothing of IPv4"
    for address in (CLOSED[0], "metadata.example.org"):
        assert refused(cloud, name, address), address
    wait_for("packets are told", lambda: f"TCP [{OTHER}]:80" in log(cloud, name))
    cloud.kill()
    cloud.start()
    assert reaches(cloud, name, NAMED) and reaches(cloud, name, LISTED) and refused(cloud, name, OTHER)
    change(cloud, service, deploy, ["other.example.org"])
    assert reaches(cloud, name, "other.example.org") and refused(cloud, name, LISTED) and refused(cloud, name, NAMED)
    change(cloud, service, deploy, ["::/0"])
    assert reaches(cloud, name, NAMED) and not reaches(cloud, name, V4) and refused(cloud, name, CLOSED[0])
    change(cloud, service, deploy, ["0.0.0.0/0"])
    assert reaches(cloud, name, V4) and refused(cloud, name, NAMED), "each family for itself"
    change(cloud, service, deploy, [])
    assert refused(cloud, name, LISTED) and not reaches(cloud, name, "listed.example.org")
    change(cloud, service, deploy, None)
    assert reaches(cloud, name, NAMED) and running(cloud, service) == before


def goes_to_disk(cloud):
    """Whether instances that sleep can be moved to disk here."""
    doctor = subprocess.run(
        [BINARY, "doctor", "--output", "json"], capture_output=True, text=True, env=cloud.environment)
    return any(check["name"] == "checkpoints" and check["status"] == "ok" for check in json.loads(doctor.stdout))


# Fetches what it is asked for, so that the program that slept is the one that is let out or kept in.
FETCHER = """
import http.server, urllib.request
class Fetcher(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            body = b"up" if self.path == "/" else urllib.request.urlopen(f"http://[{self.path[1:]}]/", timeout=5).read()
        except OSError as error:
            body = str(error).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8000), Fetcher).serve_forever()
"""


def test_an_instance_in_light_sleep_keeps_its_list_and_wakes_with_it(cloud, name, deploy):  # noqa: F811
    usual = deploy.definition

    def sleeper(allow):
        definition = {**usual(allow), "scalings": [{"min": 0, "max": 1, "targets": [
            {"sleep_idle_delay": {"light_sleep_value": 1, "deep_sleep_value": 3600}}]}]}
        definition["docker"]["entrypoint"] = ["python3", "-c", FETCHER]
        return definition

    deploy.definition = sleeper
    _, reply = cloud.call("POST", "/v1/apps", {"name": name})
    status, reply = cloud.call("POST", "/v1/services", {"app_id": reply["app"]["id"], "definition": sleeper([LISTED])})
    assert status == 200, reply
    service, to_disk = reply["service"]["id"], goes_to_disk(cloud)
    fetched = lambda address: cloud.get(cloud.host(name), f"/{address}")[2]

    def sleeps():
        asleep = cloud.instances(service, "SLEEPING")
        return (images(cloud, service) if to_disk else True) and asleep

    before = wait_for("it sleeps", sleeps)[0]["id"]
    assert fetched(LISTED) == b"the outside\n" and b"Connection refused" in fetched(OTHER)
    wait_for("it sleeps again", sleeps)
    _, reply = cloud.call("PUT", f"/v1/services/{service}", {"definition": sleeper([OTHER])})
    cloud.wait_deployment(reply["service"]["latest_deployment_id"], "SLEEPING", "HEALTHY")
    assert fetched(OTHER) == b"the outside\n" and b"Connection refused" in fetched(LISTED)
    assert running(cloud, service) == [before]
