"""What the benchmarks of sandboxes share: one is made and used over kept connections, as a client would."""

import http.client
import json
import statistics
import urllib.parse

from cloud import BASE_DOMAIN, wait_for

SECRET = "the-secret_of-the-benchmark"
# A client that looks this often adds half of it on average, which belongs to what is measured.
POLL_SECONDS = 0.001


def definition(name, image, instance_type="micro"):
    return {
        "name": name, "type": "SANDBOX", "docker": {"image": image}, "regions": ["na"],
        "env": [{"key": "SANDBOX_SECRET", "value": SECRET}], "instance_types": [{"type": instance_type}],
        "ports": [{"port": 3030, "protocol": "http"}, {"port": 3031, "protocol": "http"}],
        "routes": [{"port": 3030, "path": "/koyeb-sandbox/"}, {"port": 3031, "path": "/"}],
        "scalings": [{"min": 1, "max": 1}],
    }


class Api:
    """The API over one kept connection."""

    def __init__(self, cloud):
        self.connection = http.client.HTTPConnection("127.0.0.1", cloud.api_port, timeout=60)
        self.headers = {"authorization": f"Bearer {cloud.token}", "content-type": "application/json"}

    def call(self, method, path, body=None):
        self.connection.request(method, path, json.dumps(body) if body is not None else None, self.headers)
        reply = self.connection.getresponse()
        read = json.loads(reply.read() or b"null")
        if reply.status >= 300:
            raise AssertionError(f"{method} {path}: {reply.status} {read}")
        return read

    def healthy(self, service):
        """The newest deployment of a service, once it is healthy."""

        def look():
            deployment = self.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")["deployment"]
            return deployment if deployment["status"] == "HEALTHY" else None

        return wait_for("the sandbox is healthy", look, every=POLL_SECONDS)

    def make(self, name, image, instance_type="micro", snapshot=""):
        """A sandbox that can be used: its service and its routing key."""
        made = self.call("POST", "/v1/compose", {
            "app": {"name": name, "life_cycle": {"delete_when_empty": True}},
            "services": [{"definition": definition(name, image, instance_type), "instance_snapshot_id": snapshot}],
        })
        service = made["services"][0]
        return service, self.healthy(service)["metadata"]["sandbox"]["routing_key"]

    def delete(self, service):
        self.call("DELETE", f"/v1/services/{service['id']}")


class Executor:
    """The executor of a sandbox through the edge, over one kept connection."""

    def __init__(self, cloud, key, secret=SECRET):
        self.connection = http.client.HTTPConnection("127.0.0.1", cloud.http_port, timeout=600)
        self.headers = {"host": BASE_DOMAIN, "x-routing-key": key, "authorization": f"Bearer {secret}"}

    def ask(self, method, path, body=None):
        self.connection.request(method, f"/koyeb-sandbox{path}", body, self.headers)
        reply = self.connection.getresponse()
        return reply.status, reply.read()

    def run(self, command):
        """The output of a command. One that was told healthy a moment before the edge knows its way is asked again."""

        def answer():
            try:
                status, read = self.ask("POST", "/run", json.dumps({"cmd": command}))
            except (ConnectionError, http.client.RemoteDisconnected):
                # After an answer that came before the request was read, the connection goes.
                self.connection.close()
                return None
            return json.loads(read) if status != 503 else None

        result = wait_for("the executor answers", answer, every=POLL_SECONDS)
        if result["code"] != 0:
            raise AssertionError(f"`{command}` ended with {result}")
        return result["stdout"]

    def curl(self, endpoint, **query):
        """The arguments with which curl asks for something."""
        host, port = self.connection.host, self.connection.port
        words = [f"http://{host}:{port}/koyeb-sandbox{endpoint}?{urllib.parse.urlencode(query)}"]
        for name, value in self.headers.items():
            words += ["-H", f"{name}: {value}"]
        return words


def spread(taken):
    """Least, most and p99 of some times in milliseconds."""
    taken = sorted(taken)
    return f"{taken[0]:.2f} to {taken[-1]:.2f}, p99 {taken[max(int(len(taken) * 0.99) - 1, 0)]:.2f}"


def figure(taken, goal, peer, of_peer, **more):
    """The members of a benchmark's figure for times in milliseconds beside those of a peer."""
    median = statistics.median(taken)
    return {
        "figure": median, "unit": "ms at p50", "goal": f"<= {goal}", "pass": median <= goal,
        "peer": f"{peer} ({statistics.median(of_peer):.3g} ms)", "ratio": median / statistics.median(of_peer),
        "runs": len(taken), "spread": spread(taken), **more,
    }
