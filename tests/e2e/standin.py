"""A stand-in for the engine, for tests of everything around it: the same words, the same paths, and answers that a test
can foretell. It runs on the Python of the `fastapi` image, under the name that the platform's own engine has."""

import json
import os
import pathlib
import shutil
import subprocess

from cloud import IMAGES

ENGINE_IMAGE = "tramontane.internal/engine"

# What every program here begins with: a server whose answers are JSON.
SERVER = r'''
import http.server, json, socketserver


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


class Json(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def reply(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


'''

PROGRAM = SERVER + r'''
import argparse, hashlib, os, sys, time

arguments = argparse.ArgumentParser()
arguments.add_argument("command", choices=["serve"])
for flag in ("--model", "--listen", "--name", "--context-length", "--parallel", "--threads"):
    arguments.add_argument(flag)
given = arguments.parse_args()
with open(given.model, "rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
try:
    open(given.model, "ab")
    sys.exit("the model can be written")
except OSError:
    pass
print("serving", digest, flush=True)
ready_at = time.monotonic() + 0.3


class Handler(Json):
    def do_GET(self):
        if self.path == "/health":
            return self.reply(200 if time.monotonic() > ready_at else 503, {})
        self.reply(404, {"error": {"message": "no such path"}})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] != given.name:
            return self.reply(404, {"error": {"message": "no such model", "code": "model_not_found"}})
        if self.path == "/v1/embeddings":
            data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            return self.reply(200, {"object": "list", "data": data, "model": given.name, "usage": usage})
        seen = {key: value for key, value in asked.items() if key not in ("messages", "prompt", "stream")}
        seen["headers"] = sorted(name.lower() for name in self.headers)
        seen["digest"] = digest
        chat = self.path == "/v1/chat/completions"
        said = asked["messages"][-1]["content"] if chat else asked["prompt"]
        words = (f"you said {said}" if said != "what do you see?" else json.dumps(seen)).split(" ")
        head = {"id": "x-1", "created": 1, "model": given.name}
        if not asked.get("stream"):
            text = " ".join(words)
            head["object"] = "chat.completion" if chat else "text_completion"
            choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice |= {"index": 0, "finish_reason": "stop"}
            usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": 1 + len(words)}
            return self.reply(200, head | {"choices": [choice], "usage": usage})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        head["object"] = "chat.completion.chunk" if chat else "text_completion"
        for index, word in enumerate(words):
            text = word if index == 0 else " " + word
            choice = {"delta": {"role": "assistant", "content": text}} if chat else {"text": text}
            last = index == len(words) - 1
            choice |= {"index": 0, "finish_reason": "stop" if last else None}
            self.event(head | {"choices": [choice]})
            time.sleep(0.1)
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, value):
        text = value if isinstance(value, str) else json.dumps(value)
        data = f"data: {text}\n\n".encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


host, port = given.listen.rsplit(":", 1)
Server((host, int(port)), Handler).serve_forever()
'''


def archive(directory, source=PROGRAM):
    """The stand-in's image, or that of another program, as an archive that `tram images import` takes."""
    cache = pathlib.Path(os.environ.get("TRAM_IMAGE_CACHE", pathlib.Path.home() / ".cache/tram/images"))
    subprocess.run([IMAGES / "build", "fastapi"], check=True)
    layout = directory / "layout"
    shutil.copytree(cache / "fastapi", layout)
    program = directory / "engine.py"
    program.write_text(source)
    program.chmod(0o755)
    image = f"{layout}:latest"
    subprocess.run(["umoci", "insert", "--image", image, program, "/engine.py"], check=True, capture_output=True)
    subprocess.run(
        ["umoci", "config", "--image", image, "--clear=config.cmd", "--clear=config.entrypoint",
         "--config.entrypoint", "python3", "--config.entrypoint", "/engine.py"],
        check=True, capture_output=True,
    )
    out = directory / "engine.tar"
    subprocess.run(["tar", "-C", layout, "-cf", out, "."], check=True)
    return out
