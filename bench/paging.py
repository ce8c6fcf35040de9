"""A frozen Python server of 256 MiB whose memory was moved to swap: until all of it is back, beside reading as many bytes
of the same data one after the other from the same device.

Once with swap in compressed memory (zram), once with a file. Half of every page is random, as heaps are compressible.
What the same call takes of the same program awake is taken off. The better of the two kinds counts: an operator chooses. Swap is switched on for the whole machine while this
runs, and off again: it is refused where there is swap already, or none can be had.
"""

import contextlib
import mmap
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

from cloud import Cloud, Registry, wait_for
from light_checkpointed import LIGHT_SECONDS, NEVER_SECONDS, deploy
from wake_deep import first_byte_ms

HEAP_MIB, ROUNDS = 256, 7
SWAP_MIB = 1024
# What a program keeps when the kernel was asked for everything.
LEFT_MIB = 16
GOAL = 1.3
SERVER = """
import http.server, os
heap = [b"".join(os.urandom(2048) + bytes(2048) for _ in range(256)) for _ in range(%d)]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        seen = sum(len(part[::4096]) for part in heap)
        self.send_response(200 if seen == 256 * len(heap) else 500)
        self.send_header("content-length", "5")
        self.end_headers()
        self.wfile.write(b"Hello")
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""


@contextlib.contextmanager
def zram():
    """Swap in compressed memory, and a second device of the same kind to read from."""
    control = pathlib.Path("/sys/class/zram-control")
    numbers = [int((control / "hot_add").read_text()) for _ in range(2)]
    try:
        for number in numbers:
            block = pathlib.Path(f"/sys/block/zram{number}")
            (block / "comp_algorithm").write_text("lz4")
            (block / "disksize").write_text(f"{SWAP_MIB}M")
        with swap(f"/dev/zram{numbers[0]}"):
            yield f"/dev/zram{numbers[1]}"
    finally:
        for number in numbers:
            (control / "hot_remove").write_text(str(number))


@contextlib.contextmanager
def file():
    """Swap in a file, and a second file beside it to read from."""
    with tempfile.TemporaryDirectory(prefix="tram-swap-", dir="/var/tmp") as directory:
        paths = [pathlib.Path(directory) / name for name in ("swap", "data")]
        for path, mebibytes in zip(paths, (SWAP_MIB, HEAP_MIB)):
            subprocess.run(["fallocate", "-l", f"{mebibytes}M", path], check=True)
            path.chmod(0o600)
        with swap(paths[0]):
            yield paths[1]


@contextlib.contextmanager
def swap(path):
    if len(pathlib.Path("/proc/swaps").read_text().splitlines()) > 1:
        raise AssertionError("this machine has swap already, and what that does would be measured too")
    subprocess.run(["mkswap", path], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)


def sequential_ms(path):
    """Milliseconds to read the same bytes from the device, past every cache."""
    piece = mmap.mmap(-1, 1 << 20)
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        for number in range(HEAP_MIB):
            piece[:] = b"".join(os.urandom(2048) + bytes(2048) for _ in range(256))
            os.pwritev(descriptor, [piece], number << 20)
        os.fsync(descriptor)
        began = time.perf_counter()
        for number in range(HEAP_MIB):
            if os.preadv(descriptor, [piece], number << 20) != 1 << 20:
                raise AssertionError("the device ended early")
        return (time.perf_counter() - began) * 1000
    finally:
        os.close(descriptor)


def in_memory(service):
    """Bytes that the kernel counts for the service's one instance."""
    [instance] = service
    for memory in ("memory.usage_in_bytes", "memory.current"):
        for path in pathlib.Path("/sys/fs/cgroup").glob(f"**/tram/*/{instance['id']}/{memory}"):
            return int(path.read_text())
    return 2**40


def away(cloud, service):
    asleep = cloud.instances(service["id"], "SLEEPING")
    return asleep and in_memory(asleep) < LEFT_MIB << 20


def one(registry, device):
    """Medians in milliseconds: back from swap, and the same bytes from the device."""
    with device() as beside:
        cloud = Cloud(light_sleep_memory="reclaim", light_sleep_checkpoint_after="never").start()
        try:
            delay = {"light_sleep_value": LIGHT_SECONDS, "deep_sleep_value": NEVER_SECONDS}
            host, service = deploy(cloud, registry.image("fastapi"), "paged", HEAP_MIB, delay, SERVER)
            back, read = [], []
            for _ in range(ROUNDS):
                wait_for("its memory is away", lambda: away(cloud, service), 120)
                asleep = first_byte_ms(cloud.http_port, host)
                back.append(asleep - first_byte_ms(cloud.http_port, host))
                read.append(sequential_ms(beside))
        finally:
            cloud.remove()
    return statistics.median(back), statistics.median(read)


def run():
    registry = Registry()
    try:
        found = {device.__name__: one(registry, device) for device in (file, zram)}
    finally:
        registry.stop()
    ratios = {name: back / read for name, (back, read) in found.items()}
    told = "; ".join(f"{name}: {back:.0f} ms, device {read:.0f} ms, ratio {ratios[name]:.2f}"
                     for name, (back, read) in found.items())
    best = min(ratios.values())
    return {
        "figure": best, "unit": f"of reading the same {HEAP_MIB} MiB from the device, the better of two", "goal": f"<= {GOAL}",
        "pass": best <= GOAL, "peer": "the device, read in a row", "ratio": best, "runs": ROUNDS, "spread": told,
    }
