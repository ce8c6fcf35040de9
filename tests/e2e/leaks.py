"""What a cloud leaves in the kernel: the names follow from its data directory, so others' things are not counted."""

import collections
import contextlib
import json
import pathlib
import subprocess


# An instance in one of these may have anything; in any other, only what it said and how it ended.
LIVE = {"ALLOCATING", "STARTING", "HEALTHY", "UNHEALTHY", "STOPPING", "SLEEPING"}
# Network namespaces that the site keeps ready.
POOL = 8
PAGE = 100


def listed(cloud, what):
    """Everything of a list of the API, page by page."""
    found, offset = {}, 0
    while True:
        status, page = cloud.call("GET", f"/v1/{what}?limit={PAGE}&offset={offset}")
        assert status == 200, page
        found.update((one["id"], one) for one in page[what])
        offset += PAGE
        if offset >= page["count"]:
            return found


def fnv1a(text, basis, prime, bits):
    value = basis
    for byte in str(text).encode():
        value = ((value ^ byte) * prime) % (1 << bits)
    return value


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Footprint:
    """Everything of one cloud outside of its data directory, and the files of its instances inside."""

    def __init__(self, cloud):
        self.data = cloud.data.resolve()
        self.supervisor = self.data / "supervisor"
        self.site = self.data / "site" / "local"
        self.cgroup = f"{fnv1a(self.supervisor, 0xCBF29CE484222325, 0x100000001B3, 64):016x}"
        short = fnv1a(self.site, 0x811C9DC5, 0x01000193, 32)
        self.hash = f"{(short >> 24) ^ (short & 0xFFFFFF):06x}"
        network = (self.site / "network").read_text().strip()
        first = network.split("/")[0]
        self.gateway = f"{first.rsplit('.', 1)[0]}.{int(first.rsplit('.', 1)[1]) + 1}/32"

    def left(self):
        """One line for each thing that is there."""
        return [*self._processes(), *self._cgroups(), *self._mounts(), *self._network(), *self._files()]

    def unaccounted(self, cloud):
        """One line for each thing of an instance that the API does not tell of, or says is over, while all runs."""
        # Looked at before the lists are asked for: an instance is in the list before anything of it is made.
        things = [*self._instance_things()]
        slots = self._slots()
        instances = listed(cloud, "instances")
        live = {id for id, one in instances.items() if one["status"] in LIVE}
        known = {"instance": set(instances), "live instance": live}
        return [*(f"{path} of no {kind}" for kind, id, path in things if id not in known[kind]), *slots]

    def _instance_things(self):
        """(whose, id, path) for what belongs to somebody.

        Names of images that a crash kept from being let go are not here: the collector takes them, not often."""
        for path in (self.supervisor / "instances").iterdir():
            yield "instance", path.name, path
            if not (path / "exit.json").exists():
                yield "live instance", path.name, path
        for parent in self._cgroup_parents():
            for path in parent.iterdir():
                if path.is_dir():
                    yield "live instance", path.name, path
        for path in (self.site / "instances").iterdir():
            yield "instance", path.name.split(".")[0], path
        for path in (self.site / "kept").iterdir():
            yield "instance", path.name, path
        for path in (self.supervisor / "trash").iterdir():
            yield "instance", "", path

    def _slots(self):
        """Places in the network: each is one instance's or one of the few that are kept ready."""
        held = collections.Counter()
        for path in (self.site / "instances").glob("*.json"):
            # Gone or about to be written.
            with contextlib.suppress(OSError, json.JSONDecodeError):
                slot = json.loads(path.read_text())["slot"]
                held.update([f"{slot:x}"] if slot is not None else [])
        namespaces = {path.name for path in (self.site / "netns").iterdir()}
        yield from (f"place {slot} in the network is held {count} times" for slot, count in held.items() if count > 1)
        free = namespaces - set(held)
        if len(free) > POOL:
            yield f"{len(free)} network namespaces of nobody, {POOL} are kept ready: {sorted(free)}"
        for interface in self._interfaces():
            if interface.split("-", 1)[1] not in namespaces:
                yield f"interface {interface} without a network namespace"

    def _processes(self):
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                inside = self.cgroup in (entry / "cgroup").read_text()
                if inside or (str(self.data) in words and words.startswith("tram ")):
                    yield f"process {entry.name}: {words}"

    def _cgroup_parents(self):
        root = pathlib.Path("/sys/fs/cgroup")
        for pattern in (f"tram/{self.cgroup}", f"*/tram/{self.cgroup}"):
            yield from root.glob(pattern)

    def _cgroups(self):
        for path in self._cgroup_parents():
            yield f"cgroup {path}"
            yield from (f"cgroup {child}" for child in path.iterdir() if child.is_dir())

    def _mounts(self):
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
            if str(self.data) in line:
                yield f"mount {line}"

    def _network(self):
        yield from (f"interface {name}" for name in self._interfaces())
        for entry in (self.site / "netns").iterdir():
            yield f"network namespace {entry}"
        if f"tram_{self.hash}" in said("nft", "list", "tables"):
            yield f"nft table tram_{self.hash}"
        addresses = said("ip", "-j", "address", "show", "dev", "lo")
        for address in json.loads(addresses)[0]["addr_info"]:
            if f"{address['local']}/{address['prefixlen']}" == self.gateway:
                yield f"address {self.gateway}"

    def _interfaces(self):
        for link in json.loads(said("ip", "-j", "link")):
            if link["ifname"].startswith(f"tr{self.hash}-"):
                yield link["ifname"]

    def _files(self):
        """A finished instance keeps how it ended and what it said until it is forgotten: none may look unfinished."""
        for instance in (self.supervisor / "instances").iterdir():
            if not (instance / "exit.json").exists():
                yield f"instance without an end {instance}"
        for path in (self.supervisor / "root").iterdir():
            yield f"root directory {path}"
