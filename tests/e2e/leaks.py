"""What a cloud leaves in the kernel: the names follow from its data directory, so others' things are not counted."""

import contextlib
import json
import pathlib
import subprocess


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

    def kept_logs(self):
        """Ids of the forgotten instances whose logs are kept."""
        return {path.name for path in (self.site / "kept").iterdir()}

    def _processes(self):
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                inside = self.cgroup in (entry / "cgroup").read_text()
                if inside or (str(self.data) in words and words.startswith("tram ")):
                    yield f"process {entry.name}: {words}"

    def _cgroups(self):
        root = pathlib.Path("/sys/fs/cgroup")
        for pattern in (f"tram/{self.cgroup}", f"*/tram/{self.cgroup}"):
            for path in root.glob(pattern):
                yield f"cgroup {path}"
                yield from (f"cgroup {child}" for child in path.iterdir() if child.is_dir())

    def _mounts(self):
        for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
            if str(self.data) in line:
                yield f"mount {line}"

    def _network(self):
        for link in json.loads(said("ip", "-j", "link")):
            if link["ifname"].startswith(f"tr{self.hash}-"):
                yield f"interface {link['ifname']}"
        for entry in (self.site / "netns").iterdir():
            yield f"network namespace {entry}"
        if f"tram_{self.hash}" in said("nft", "list", "tables"):
            yield f"nft table tram_{self.hash}"
        addresses = said("ip", "-j", "address", "show", "dev", "lo")
        for address in json.loads(addresses)[0]["addr_info"]:
            if f"{address['local']}/{address['prefixlen']}" == self.gateway:
                yield f"address {self.gateway}"

    def _files(self):
        """A finished instance keeps how it ended and what it said until it is forgotten: none may look unfinished."""
        for instance in (self.supervisor / "instances").iterdir():
            if not (instance / "exit.json").exists():
                yield f"instance without an end {instance}"
        for path in (self.supervisor / "root").iterdir():
            yield f"root directory {path}"
