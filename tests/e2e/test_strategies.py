"""How a new version takes over, as callers see it: which version answers, and that each call is answered."""

import threading

import pytest

from cloud import wait_for

INSTANCES = 2
CLIENTS = 4
# A canary takes a tenth. With some thousand calls chance stays far inside these bounds.
CANARY_SHARE = (0.05, 0.16)


class Calls:
    """Clients that each call one after the other until told to end. Of every answer: whose call, and which version."""

    def __init__(self, cloud, host):
        self.cloud, self.host = cloud, host
        self.over, self.lock = threading.Event(), threading.Lock()
        self.answers, self.failures = [], []
        self.threads = [threading.Thread(target=self._call, args=(client,), daemon=True) for client in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _call(self, client):
        while not self.over.is_set():
            try:
                status, _, body = self.cloud.get(self.host)
            except OSError as error:
                status, body = repr(error), b""
            with self.lock:
                if status == 200:
                    self.answers.append((client, b"version 2" in body))
                else:
                    self.failures.append(f"{status} {body!r}")

    def end(self):
        """Ends them once the new version alone answers; gives the answers."""
        wait_for("the new version alone answers", lambda: all(new for _, new in self.answers[-100:]))
        self.over.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a call has no end"
        assert not self.failures, self.failures[:3]
        return self.answers


def deploy(cloud, registry, name, version, strategy="rolling"):
    image = registry.image("hello", "1") if version == 1 else registry.image("hello", "2", of="hello-v2")
    cloud.tram(
        "deploy", image, "--name", name, "--port", "8000", "--strategy", strategy,
        "--min", INSTANCES, "--max", INSTANCES, timeout=240,
    )


def both_answered(answers):
    """The versions of the answers from the new one's first to the old one's last."""
    versions = [new for _, new in answers]
    first, last = versions.index(True), len(versions) - versions[::-1].index(False)
    return versions[first:last]


@pytest.mark.timeout(300)
def test_a_canary_takes_a_tenth_before_it_takes_everything(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    calls = Calls(cloud, cloud.host(name))
    deploy(cloud, registry, name, 2, "canary")
    both = both_answered(calls.end())
    share = sum(both) / len(both)
    assert CANARY_SHARE[0] < share < CANARY_SHARE[1], f"{share:.3f} of {len(both)} calls"


def test_blue_green_changes_over_once(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    calls = Calls(cloud, cloud.host(name))
    deploy(cloud, registry, name, 2, "blue-green")
    answers = calls.end()
    for client in range(CLIENTS):
        own = [new for whose, new in answers if whose == client]
        assert own == sorted(own), "the old version answered a call that came after one the new version had answered"


def test_a_rolling_deployment_is_answered_by_both(cloud, registry, name):
    deploy(cloud, registry, name, 1)
    calls = Calls(cloud, cloud.host(name))
    deploy(cloud, registry, name, 2)
    assert both_answered(calls.end()), "it changed over at once"
