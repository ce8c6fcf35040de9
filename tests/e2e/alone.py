"""`tram edge` without a control plane: tests say over its control link what is where, as the control plane would."""

import json
import os
import pathlib
import socket
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid

from cloud import BINARY, DEADLINE_SECONDS, free_port, wait_for

HOST = "models.test"
# The port that instances declare; where each really listens stands beside it.
PORT = 8000


class Edge:
    """One edge, and the one service that it knows."""

    def __init__(self, engine="tram-engine"):
        self.directory = tempfile.TemporaryDirectory(prefix="tram-edge-")
        self.state = pathlib.Path(self.directory.name)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.service, self.version, self.engine = str(uuid.uuid4()), 0, engine
        settings = {"base_domain": "test", "http": [f"127.0.0.1:{self.port}"], "https": [], "tcp": [],
                    "access_log": str(self.state / "access.log")}
        (self.state / "settings.json").write_text(json.dumps(settings))
        self.log = open(self.state / "edge.log", "wb")
        self.process = subprocess.Popen([BINARY, "edge", "--state", str(self.state)], stderr=self.log, stdout=self.log)
        self.link = wait_for("the edge listens", self.connect)
        self.ask({"hello": {"protocol": 1}}, "hello")

    def connect(self):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(DEADLINE_SECONDS)
        try:
            link.connect(str(self.state / "edge.sock"))
        except OSError:
            assert self.process.poll() is None, self.said()
            return None
        return link

    def said(self):
        return (self.state / "edge.log").read_text()

    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.link.recv(count - len(data))
            assert more, "the edge closed its link"
            data += more
        return data

    def ask(self, request, answer):
        """Sends a frame and reads until the answer to it: reports come in between."""
        data = json.dumps(request).encode()
        self.link.sendall(struct.pack(">I", len(data)) + data)
        while True:
            message = json.loads(self.read(struct.unpack(">I", self.read(4))[0]))
            assert "refused" not in message, message
            if answer in message:
                return message[answer]

    def under_way(self):
        """Requests that are there, as the edge reports next."""
        while True:
            message = json.loads(self.read(struct.unpack(">I", self.read(4))[0]))
            if "report" in message:
                return sum(service["in_flight"] for service in message["report"]["services"])

    def serve(self, replicas, state=None, **service):
        """Puts a table into force with these replicas, which have an `instance_id` and a `port`."""
        self.version += 1
        endpoints = [{"instance_id": it.instance_id, "addresses": {str(PORT): f"127.0.0.1:{it.port}"},
                      "deployment_id": it.deployment_id} for it in replicas]
        service = {"id": self.service, "name": "test/model", "state": state or {"is": "ready"}, "endpoints": endpoints,
                   "engine": self.engine, **service}
        route = {"prefix": "/", "service_id": self.service, "port": PORT}
        table = {"version": self.version, "base_domain": "test", "services": [service],
                 "hosts": [{"name": HOST, "routes": [route]}]}
        self.ask({"table": {"table": table}}, "accepted")

    def post(self, path, body, headers=None):
        """The open answer, whatever its status."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"host": HOST, "content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=DEADLINE_SECONDS)
        except urllib.error.HTTPError as error:
            return error

    def records(self):
        """What the journal says questions cost, the oldest first."""
        lines = []
        for segment in sorted((self.state / "usage").glob("*.log"), key=os.path.getmtime):
            lines += [json.loads(line.split(b" ", 1)[1]) for line in segment.read_bytes().splitlines()]
        return lines

    def stop(self):
        self.process.kill()
        self.process.wait()
        self.link.close()
        self.log.close()
        self.directory.cleanup()
