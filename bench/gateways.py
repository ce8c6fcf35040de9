"""What stands between a client and an engine, on core 0 before one mock engine: this platform, nginx and others.

The engine (gateway/engine.c) is a service of the platform as one of type `openai`; everybody leads to that very instance. It
runs on core 1, as do the clients. The platform is all three of its processes, wherever a question passes through; its
cost is their processor time.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

from burst_100 import pushed
from cloud import Cloud, Registry, free_port, wait_for
from sleepers_10000 import cpu_seconds

HERE = pathlib.Path(__file__).resolve().parent / "gateway"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "tram" / "bench" / "gateways"
SERVICE = "mock"
# The others, as PyPI has them.
PACKAGES = ["vllm-router==0.1.17", "litellm[proxy]==1.100.0"]
QUESTION = {"model": SERVICE, "messages": [{"role": "user", "content": "What is a mistral, and where does it blow?"}]}
START_SECONDS = 120


def pin(pid, core):
    """All threads of a process, and those it begins, to one core."""
    subprocess.run(["taskset", "-a", "-p", "-c", str(core), str(pid)], check=True, capture_output=True)


def resident_kib(pids):
    found = [re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(one.group(1)) for one in found)


def tree(pid):
    """A process and all below it."""
    below = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in below for one in tree(int(child)))]


class Way:
    """One way to the engine: where, how one asks there, and whose time it takes."""

    def __init__(self, name, port, pids, host="localhost", token=None):
        self.name, self.address, self.port, self.pids = name, "127.0.0.1", port, pids
        self.headers = {"Host": host, "Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    def request(self, question):
        """The bytes of a question."""
        body = json.dumps(question, separators=(",", ":"))
        lines = [f"{name}: {value}" for name, value in {**self.headers, "content-length": len(body)}.items()]
        return "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, "", body])


class Bench:
    """The engine and the ways to it."""

    def __init__(self, others=False):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tram-gateway-"))
        self.processes, self.registry, self.cloud = [], Registry(), Cloud()
        try:
            self.start(others)
        except BaseException:
            self.stop()
            raise

    def start(self, others):
        engine, self.streams = self.compiled("engine", "-static"), self.compiled("streams")
        image, _ = pushed(self.directory, engine, self.registry)
        self.cloud.start()
        self.cloud.tram("models", "deploy", "/models/none", "--name", SERVICE, "--engine", "openai", "--image", image,
                        "--instance-type", "small", timeout=START_SECONDS)
        [mock] = subprocess.run(["pgrep", "--exact", "--full", "/server"], check=True, capture_output=True,
                                text=True).stdout.split()
        address = subprocess.run(["nsenter", "--target", mock, "--net", "hostname", "--all-ip-addresses"], check=True,
                                 capture_output=True, text=True).stdout.split()[0]
        environment = pathlib.Path(f"/proc/{mock}/environ").read_text().split("\0")
        self.port = int(dict(one.split("=", 1) for one in environment if "=" in one)["PORT"])
        self.engine = f"{address}:{self.port}"
        pin(mock, 1)
        ours = [self.cloud.process.pid, self.cloud.helper_pid("edge"), self.cloud.helper_pid("supervise")]
        for pid in ours:
            pin(pid, 0)
        self.ways = [
            Way("own URL", self.cloud.http_port, ours, host=self.cloud.host(SERVICE)),
            Way("platform", self.cloud.api_port, ours, token=self.cloud.token),
            self.nginx(),
        ]
        if others:
            self.install()
            self.ways += [self.vllm_router(), self.litellm()]

    def compiled(self, name, *flags):
        program = self.directory / name
        subprocess.run(["cc", "-O2", *flags, "-o", program, HERE / f"{name}.c"], check=True)
        return program

    def direct(self):
        """Nobody in between."""
        way = Way("direct", self.port, [])
        way.address = self.engine.split(":")[0]
        return way

    def begin(self, name, command, port, **more):
        """A peer on core 0, once it answers."""
        log = open(self.directory / f"{name}.log", "wb")
        process = subprocess.Popen(["taskset", "-c", "0", *map(str, command)], stdout=log, stderr=log,
                                   stdin=subprocess.DEVNULL, **more)
        self.processes.append(process)
        way = Way(name, port, [])

        def answers():
            assert process.poll() is None, (self.directory / f"{name}.log").read_text(errors="replace")[-4000:]
            body = json.dumps(QUESTION)
            done = subprocess.run(["curl", "--silent", "--fail", "--data", body, "--header",
                                   "content-type: application/json", f"http://127.0.0.1:{port}/v1/chat/completions"],
                                  capture_output=True, check=False)
            return b"mistral" in done.stdout

        wait_for(f"{name} answers", answers, seconds=START_SECONDS)
        way.pids = tree(process.pid)
        return way

    def nginx(self):
        port, path = free_port(), self.directory
        temporary = "".join(f"{kind}_temp_path {path}/{kind};\n"
                            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (path / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {path}/nginx.pid; error_log /dev/null;\nworker_rlimit_nofile 65536;\n"
            "events { worker_connections 20000; }\n"
            f"http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 600s;\n{temporary}"
            f"upstream engine {{ server {self.engine}; keepalive 2048; keepalive_requests 100000000; }}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://engine; proxy_buffering off; "
            "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host; "
            "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Request-Id $request_id; } } }\n")
        return self.begin("nginx", ["nginx", "-p", path, "-c", path / "nginx.conf"], port)

    def install(self):
        """The others, once."""
        mark = CACHE / ".installed"
        if mark.exists() and mark.read_text() == repr(PACKAGES):
            return
        shutil.rmtree(CACHE, ignore_errors=True)
        subprocess.run(["python3", "-m", "venv", CACHE], check=True)
        subprocess.run([CACHE / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
        mark.write_text(repr(PACKAGES))

    def vllm_router(self):
        port = free_port()
        return self.begin("vllm-router", [CACHE / "bin" / "vllm-router", "--host", "127.0.0.1", "--port", port,
                                          "--worker-urls", f"http://{self.engine}", "--policy", "round_robin",
                                          "--prometheus-port", free_port(), "--log-level", "error"], port)

    def litellm(self):
        port, config = free_port(), self.directory / "litellm.yaml"
        config.write_text(json.dumps({"model_list": [{"model_name": SERVICE, "litellm_params": {
            "model": f"openai/{SERVICE}", "api_base": f"http://{self.engine}/v1", "api_key": "none"}}]}))
        return self.begin("litellm", [CACHE / "bin" / "litellm", "--config", config, "--host", "127.0.0.1", "--port", port,
                                      "--num_workers", "1"], port, env={**os.environ, "LITELLM_LOG": "ERROR"})

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()
        self.cloud.remove()
        self.registry.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


def rate(way, script, seconds, connections):
    """Questions a second of a core, and by the clock."""
    body = way.request(QUESTION).split("\r\n\r\n", 1)[1]
    lines = ['wrk.method = "POST"', f"wrk.body = {json.dumps(body)}"]
    lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in way.headers.items()]
    script.write_text("\n".join(lines))
    before, began = cpu_seconds(way.pids), time.monotonic()
    said = subprocess.run(["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", script,
                           f"http://127.0.0.1:{way.port}/v1/chat/completions"],
                          check=True, capture_output=True, text=True, timeout=seconds + START_SECONDS).stdout
    spent, taken = cpu_seconds(way.pids) - before, time.monotonic() - began
    assert "Non-2xx" not in said and "Socket errors" not in said, f"{way.name}:\n{said}"
    requests = int(re.search(r"(\d+) requests in", said).group(1))
    return requests / spent, requests / taken
