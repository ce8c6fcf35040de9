"""A whole Tramontane on this machine for the length of a test run: a registry, `tram up`, and ways to reach both."""

import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

PROJECT = pathlib.Path(__file__).resolve().parents[2]
IMAGES = PROJECT / "tests" / "images"
BINARY = os.environ.get("TRAM_BINARY", str(PROJECT / "target" / "debug" / "tram"))
BASE_DOMAIN = "tram.localhost"

# A slow machine under load still answers within this; a condition that takes longer is a failure.
DEADLINE_SECONDS = 60


# Below those that the platform gives to services reached by TCP, and those that the kernel gives to whoever connects:
# nobody takes one of these between its being found free and its being used. Each of the runs side by side has its own.
_RUN = os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")
PORTS = range(20_000, 25_000) if int(_RUN) % 2 == 0 else range(25_000, 30_000)
_next_port = itertools.count(random.randrange(len(PORTS)))


def free_port():
    """A port that nobody listens on. Never the same twice, however soon."""
    while True:
        port = PORTS[next(_next_port) % len(PORTS)]
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def wait_for(what, condition, seconds=DEADLINE_SECONDS, every=0.05):
    """The first true value of `condition()`; fails with `what` and the last value otherwise."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s; last seen: {value!r}")
        time.sleep(every)


class Registry:
    """Debian's docker-registry on loopback, holding the project's images."""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix="tram-registry-")
        self.port = free_port()
        self._pushed = set()
        subprocess.run([IMAGES / "registry", "start", self.directory, str(self.port)], check=True)

    def image(self, name, tag="latest", of=None):
        """The reference of an image, pushed when first asked for."""
        entry = f"{of or name}={name}:{tag}"
        if entry not in self._pushed:
            subprocess.run([IMAGES / "registry", "push", str(self.port), entry], check=True)
            self._pushed.add(entry)
        return f"127.0.0.1:{self.port}/{name}:{tag}"

    def move(self, name, tag, of):
        """Point an existing tag at another image."""
        subprocess.run([IMAGES / "registry", "push", str(self.port), f"{of}={name}:{tag}"], check=True)

    def stop(self):
        subprocess.run([IMAGES / "registry", "stop", self.directory], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


class Cloud:
    """`tram up` with a data directory and ports of its own."""

    def __init__(self, **extra):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="tram-e2e-"))
        self.data = self.directory / "data"
        self.api_port, self.http_port, self.https_port = free_port(), free_port(), free_port()
        self.api_url = f"http://127.0.0.1:{self.api_port}"
        self.extra = extra
        self.process = None
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("TRAM_", "KOYEB_"))},
            "XDG_CONFIG_HOME": str(self.directory / "config"),
        }
        self.log = open(self.directory / "up.log", "ab")

    def start(self):
        self.launch()
        wait_for("tram up answers", self.answers)
        return self

    def launch(self):
        """Start it and do not wait."""
        arguments = [
            BINARY, "up", "--data-dir", self.data, "--api-listen", f"127.0.0.1:{self.api_port}",
            "--http-port", str(self.http_port), "--https-port", str(self.https_port),
            "--base-domain", BASE_DOMAIN,
        ]
        for key, value in self.extra.items():
            arguments += [f"--{key.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(
            [str(argument) for argument in arguments],
            stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, env=self.environment,
        )

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"tram up left with {self.process.returncode}:\n{self.logs()}")
        try:
            self.token = self._context()["token"]
            return self.call("GET", "/v1/apps")[0] == 200
        except (OSError, KeyError, urllib.error.URLError):
            return False

    def _context(self):
        """The current context. Read by hand, for Python has no TOML before 3.11: the file is tables of plain values."""
        path = self.directory / "config" / "tram" / "config.toml"
        table = {}
        tables = {"": table}
        for line in path.read_text().splitlines():
            if line.startswith("["):
                table = tables.setdefault(line.strip('[]"'), {})
            elif " = " in line:
                key, value = line.split(" = ", 1)
                table[key] = json.loads(value)
        return tables[f"contexts.{tables['']['current']}"]

    def logs(self):
        return (self.directory / "up.log").read_text(errors="replace")

    def kill(self):
        """kill -9 of the control plane alone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """SIGTERM, and the exit code."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            return self.process.wait(timeout=DEADLINE_SECONDS)
        return None

    def remove(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop()
        if self.helper_pid("supervise") or self.helper_pid("edge"):
            # The control plane died in a test that failed: the next start adopts what runs, and takes it along.
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.start().stop()
        self.log.close()
        if not os.environ.get("TRAM_KEEP"):
            shutil.rmtree(self.directory, ignore_errors=True)

    def helper_pid(self, role):
        """The process id of `tram supervise` or `tram edge` of this data directory, which its lock tells.

        Shims are forked by the supervisor and look like it in a list of processes."""
        directory = {"supervise": "supervisor"}.get(role, role)
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.data / directory / "process.lock").read_text())
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if words[1:2] == [role.encode()] and os.fsencode(self.data) in b" ".join(words):
                return pid
        return None

    def call(self, method, path, body=None, token=None, headers=None):
        """Status and decoded body of one API call."""
        request = urllib.request.Request(self.api_url + path, method=method)
        request.add_header("authorization", f"Bearer {token or self.token}")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, data, timeout=30) as reply:
                return reply.status, json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def tram(self, *arguments, check=True, timeout=120, stdin=None):
        """Run a command of the binary as a user would."""
        done = subprocess.run(
            [BINARY, *map(str, arguments)], env=self.environment, capture_output=True, text=True,
            timeout=timeout, input=stdin,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"tram {' '.join(map(str, arguments))} left with {done.returncode}\n"
                f"stdout: {done.stdout}\nstderr: {done.stderr}\nlog: {self.logs()[-4000:]}"
            )
        return done

    def get(self, host, path="/", method="GET", body=None, headers=None, timeout=30):
        """Status, headers and body of a request through the edge."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", data=body, method=method)
        request.add_header("host", host)
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def connection(self):
        """A connection to the edge, for a client that looks hosts up by itself."""
        return socket.create_connection(("127.0.0.1", self.http_port), DEADLINE_SECONDS)

    def host(self, app):
        """The automatic domain of an app."""
        _, reply = self.call("GET", f"/v1/apps?name={app}")
        return reply["apps"][0]["domains"][0]["name"]

    def service(self, app, name=None):
        """The service of an app, by its name or the only one."""
        _, apps = self.call("GET", f"/v1/apps?name={app}")
        _, reply = self.call("GET", f"/v1/services?app_id={apps['apps'][0]['id']}")
        services = [service for service in reply["services"] if name in (None, service["name"])]
        return services[0]

    def instances(self, service_id, *statuses):
        _, reply = self.call("GET", f"/v1/instances?service_id={service_id}&limit=100")
        return [one for one in reply["instances"] if not statuses or one["status"] in statuses]

    def wait_status(self, service_id, *statuses, seconds=DEADLINE_SECONDS):
        def look():
            _, reply = self.call("GET", f"/v1/services/{service_id}")
            status = reply["service"]["status"]
            return status if status in statuses else None

        return wait_for(f"service is {' or '.join(statuses)}", look, seconds)

    def wait_deployment(self, deployment_id, *statuses, seconds=DEADLINE_SECONDS):
        def look():
            _, reply = self.call("GET", f"/v1/deployments/{deployment_id}")
            deployment = reply["deployment"]
            return deployment if deployment["status"] in statuses else None

        return wait_for(f"deployment is {' or '.join(statuses)}", look, seconds)
