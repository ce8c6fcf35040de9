"""tram-engine by itself, with real weights: what the platform starts as an instance of a model."""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from cloud import DEADLINE_SECONDS, PROJECT, free_port

BINARY = os.environ.get("TRAM_ENGINE_BINARY", "")
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
WEIGHTS = CACHE / "tram" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


def binary():
    """The program, as the build of `tram` made it."""
    if BINARY:
        return BINARY
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))
    found = sorted(target.glob("engine/*/release/tram-engine"))
    assert found, f"there is no tram-engine below {target}/engine: build `tram` first, or set TRAM_ENGINE_BINARY"
    return str(found[0])


class Engine:
    """One engine with SmolLM2. One thread of kernels: with more, each waits for the others in every layer, which takes
    long on a machine that runs other tests as well."""

    def __init__(self, *arguments, model=WEIGHTS, name="smollm2"):
        assert WEIGHTS.exists(), f"{WEIGHTS} is missing: run `scripts/setup test`"
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = tempfile.TemporaryFile()
        command = [binary(), "serve", "--model", str(model), "--listen", f"127.0.0.1:{port}", "--name", name]
        self.process = subprocess.Popen([*command, "--threads", "1", *arguments], stderr=self.log)

    def start(self):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.status("/health") != 200:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return self

    def status(self, path):
        try:
            return urllib.request.urlopen(self.url + path, timeout=DEADLINE_SECONDS).status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def get(self, path):
        return json.load(urllib.request.urlopen(self.url + path, timeout=DEADLINE_SECONDS))

    def state(self):
        return self.get("/v1/engine/state")

    def post(self, path, body, headers=None):
        """The status and the body, whatever the status."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers or {})
        try:
            answer = urllib.request.urlopen(request, timeout=DEADLINE_SECONDS)
            return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def said(self):
        self.log.seek(0)
        return self.log.read().decode()

    def wait_for(self, condition, what):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition(self.state()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s: {what}; {self.state()}"
            time.sleep(0.01)

    def ended(self):
        """Its exit code."""
        return self.process.wait(DEADLINE_SECONDS)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def kill_process(self):
        """At once, as by the kernel."""
        self.process.kill()
        self.process.wait()

    def kill(self):
        self.kill_process()
        self.log.close()
