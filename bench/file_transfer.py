"""1 GiB out of a sandbox and into it, through the edge, beside nginx with the same file on the same loopback."""

import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

from cloud import Cloud, Registry, free_port, wait_for
from sandbox_client import Api, Executor

SIZE_MIB = 1024
ROUNDS = 5
GOAL = 0.7


class Nginx:
    """Serves one directory: what the loopback gives."""

    def __init__(self, root):
        self.port, self.directory = free_port(), pathlib.Path(tempfile.mkdtemp(prefix="tram-nginx-"))
        temporary = "".join(
            f"{kind}_temp_path {self.directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (self.directory / "nginx.conf").write_text(
            f"daemon off; master_process off; user root; pid {self.directory}/pid; error_log /dev/null;"
            "events {} http { access_log off; sendfile on; " + temporary
            + f" server {{ listen 127.0.0.1:{self.port}; root {root}; }} }}"
        )
        self.process = subprocess.Popen(["nginx", "-c", self.directory / "nginx.conf"])
        url = f"http://127.0.0.1:{self.port}/large"
        answers = lambda: subprocess.run(["curl", "-fsI", "-o", "/dev/null", url]).returncode == 0
        wait_for("nginx answers", answers)

    def stop(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def rate(*words):
    """MiB per second of one curl."""
    begun = time.perf_counter()
    subprocess.run(["curl", "-fsS", "-o", "/dev/null", *map(str, words)], check=True)
    return SIZE_MIB / (time.perf_counter() - begun)


def run(rounds=ROUNDS):
    registry, cloud = Registry(), Cloud().start()
    # In memory, and so is the sandbox's disk after the first read: the way is measured, not the machine's disk.
    place = pathlib.Path(tempfile.mkdtemp(prefix="tram-transfer-", dir="/dev/shm"))
    nginx = None
    try:
        with open(place / "large", "wb") as file:
            for _ in range(SIZE_MIB):
                file.write(b"\x5a" * (1024 * 1024))
        nginx = Nginx(place)
        # Two processors' worth: a share of one would be measured otherwise.
        _, key = Api(cloud).make("box", registry.image("hello", "1"), "medium")
        executor = Executor(cloud, key)
        send = ["-T", place / "large", *executor.curl("/file", path="/tmp/large")]
        receive = executor.curl("/file", path="/tmp/large")
        rate(*send)
        out, into, peer = [], [], []
        for _ in range(rounds):
            peer.append(rate(f"http://127.0.0.1:{nginx.port}/large"))
            out.append(rate(*receive))
            into.append(rate(*send))
            peer.append(rate(f"http://127.0.0.1:{nginx.port}/large"))
    finally:
        if nginx:
            nginx.stop()
        shutil.rmtree(place, ignore_errors=True)
        cloud.remove()
        registry.stop()
    ours, theirs = statistics.median(out), statistics.median(peer)
    return {
        "figure": ours, "unit": "MiB/s out of a sandbox", "goal": f">= {GOAL} of nginx's", "pass": ours >= GOAL * theirs,
        "peer": f"nginx ({theirs:.0f} MiB/s)", "ratio": ours / theirs, "runs": rounds,
        "spread": f"{min(out):.0f} to {max(out):.0f}; into it {statistics.median(into):.0f}",
    }
