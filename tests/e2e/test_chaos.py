"""kill -9 at random moments of everything that can be asked for, and what must still hold afterwards.

A round asks for one thing (create, roll out, scale, pause, resume, sleep, wake, delete), kills processes somewhere in
the middle, starts again what does not start by itself, and then holds the cloud to what it had answered:

- an intent that was answered with 200 comes true; one that was not answered is asked for again, as a client would,
- instances that nobody asked to change keep their id and their process,
- a service at the side answers all the time, unless the process that carries its traffic was the one killed,
- every few rounds, while everything runs: each file, cgroup, network namespace and interface is that of an instance
  that the API tells of.

`TRAM_CHAOS_ROUNDS` says how many rounds, `TRAM_CHAOS_SEED` repeats a run's choices (the moments differ).
"""

import collections
import contextlib
import json
import os
import pathlib
import random
import signal
import threading
import time

import pytest

from asker import NO_ANSWER, Asker
from cloud import wait_for
from leaks import Footprint

pytestmark = pytest.mark.alone

ROUNDS = int(os.environ.get("TRAM_CHAOS_ROUNDS", "200"))
SEED = int(os.environ.get("TRAM_CHAOS_SEED", str(random.SystemRandom().randrange(1 << 32))))
# Rounds between two looks for leaks while everything runs.
LOOK_EVERY = 10
# Longest time of a round in which nothing goes wrong, with room for a busy machine.
ROUND_SECONDS = 10
# Bytes of the control plane's log that a failure shows.
LOG_SHOWN = 8000
# Services that rounds work on. More would only make each look at them longer.
SUBJECTS_MAX = 4
# An intent comes true within this, also right after a restart and with a crash's back-off in between.
PATIENCE_SECONDS = 60
# Deep sleep after a second; or light sleep, and deep sleep not while the test lasts.
DELAYS = {"deeply": {"deep_sleep_value": 1}, "lightly": {"light_sleep_value": 1, "deep_sleep_value": 86_400}}
VERSIONS = {"1": b"Hello from version 1\n", "2": b"Hello from version 2\n"}


class Subject:
    """A service and what it was asked to be."""

    def __init__(self, name, image, version, instances=1, sleeps=None, app_goes=False):
        self.name, self.image, self.version, self.instances, self.sleeps = name, image, version, instances, sleeps
        # Its app goes with it.
        self.app_goes = app_goes
        self.id, self.host, self.paused = None, None, False
        # Counts rollouts, so that each definition differs from the one before.
        self.turn = 0

    def definition(self):
        scaling = {"min": self.instances, "max": self.instances}
        if self.sleeps:
            scaling = {"min": 0, "max": 1, "targets": [{"sleep_idle_delay": DELAYS[self.sleeps]}]}
        return {
            "name": self.name, "type": "WEB", "regions": ["fra"],
            "docker": {"image": self.image(self.version)},
            "env": [{"key": "TURN", "value": str(self.turn)}],
            "ports": [{"port": 8000, "protocol": "http"}], "routes": [{"port": 8000, "path": "/"}],
            "instance_types": [{"type": "nano"}], "scalings": [scaling],
        }


class Chaos:
    def __init__(self, cloud, registry, choices):
        self.cloud, self.choices = cloud, choices
        self.image = lambda version: registry.image("hello", version, of={"1": "hello", "2": "hello-v2"}[version])
        for version in VERSIONS:
            self.image(version)
        self.count, self.subjects, self.history = 0, [], collections.Counter()
        self.reference = self.make("reference", instances=2)
        self.sleepers = [self.make("sleeper", sleeps="deeply"), self.make("dozer", sleeps="lightly")]
        # Whatever dies around it, it is frozen and thawed and never started anew.
        self.dozing = self.processes(self.sleepers[1])
        assert self.dozing, "the one that sleeps lightly runs"
        self.asker = Asker(cloud, self.reference.host, VERSIONS.values())

    def make(self, name, **more):
        subject = Subject(name, self.image, "1", **more)
        self.create(subject)
        self.settle(subject)
        return subject

    # What can be asked for. Each may be asked again when no answer came.

    def create(self, subject):
        app = self.find_app(subject.name)
        if app is None:
            body = {"name": subject.name, "life_cycle": {"delete_when_empty": subject.app_goes}}
            app = self.ask("POST", "/v1/apps", body)["app"]
        found = self.ask("GET", f"/v1/services?app_id={app['id']}")["services"]
        if found:
            subject.id = found[0]["id"]
            return
        body = {"app_id": app["id"], "definition": subject.definition()}
        subject.id = self.ask("POST", "/v1/services", body)["service"]["id"]

    def roll_out(self, subject):
        self.ask("PUT", f"/v1/services/{subject.id}", {"definition": subject.definition()})

    def scale(self, subject):
        body = {"scalings": [{"scopes": [], "instances": subject.instances}]}
        self.ask("PUT", f"/v1/services/{subject.id}/scale", body)

    def pause(self, subject):
        self.ask("POST", f"/v1/services/{subject.id}/pause", {}, allowed=(400, 409))

    def resume(self, subject):
        self.ask("POST", f"/v1/services/{subject.id}/resume", {}, allowed=(400, 409))

    def delete(self, subject):
        self.ask("DELETE", f"/v1/services/{subject.id}", allowed=(404,))

    def wake(self, subject):
        """A request to a service that sleeps or is about to: it must be answered, however long that takes."""
        status, _, body = self.cloud.get(subject.host, timeout=PATIENCE_SECONDS)
        assert status == 200, (status, body[:500])

    def ask(self, method, path, body=None, allowed=()):
        status, reply = self.cloud.call(method, path, body)
        assert status == 200 or status in allowed, f"{method} {path}: {status} {reply}"
        return reply

    def find_app(self, name):
        apps = self.ask("GET", f"/v1/apps?name={name}")["apps"]
        return next((app for app in apps if app["name"] == name), None)

    # What must come true.

    def settle(self, subject):
        if subject.paused:
            self.cloud.wait_status(subject.id, "PAUSED", seconds=PATIENCE_SECONDS)
            wait_for("nothing of a paused service runs",
                     lambda: not self.cloud.instances(subject.id, "HEALTHY", "STARTING", "STOPPING"))
            return
        self.cloud.wait_status(subject.id, "HEALTHY", seconds=PATIENCE_SECONDS)
        subject.host = subject.host or self.cloud.host(subject.name)
        wait_for(f"{subject.name} answers with version {subject.version}",
                 lambda: self.answer(subject) == VERSIONS[subject.version], PATIENCE_SECONDS)
        if not subject.sleeps:
            wait_for(f"{subject.name} has {subject.instances} instances, all of the latest deployment",
                     lambda: self.is_as_wanted(subject), PATIENCE_SECONDS)

    def answer(self, subject):
        with contextlib.suppress(*NO_ANSWER):
            return self.cloud.get(subject.host)[2]

    def is_as_wanted(self, subject):
        service = self.ask("GET", f"/v1/services/{subject.id}")["service"]
        present = self.cloud.instances(subject.id, "ALLOCATING", "STARTING", "HEALTHY", "UNHEALTHY", "STOPPING")
        return (
            service["status"] == "HEALTHY"
            and service["active_deployment_id"] == service["latest_deployment_id"]
            and [one["status"] for one in present] == ["HEALTHY"] * subject.instances
        )

    def processes(self, subject):
        """Instance to process of a service that nobody is changing."""
        found = {}
        for instance in self.cloud.instances(subject.id, "HEALTHY", "SLEEPING"):
            found[instance["id"]] = self.process(instance["id"])
        return found

    def process(self, instance_id):
        path = self.cloud.data / "supervisor" / "instances" / instance_id / "run.json"
        init = json.loads(path.read_text())["init"]
        stat = pathlib.Path(f"/proc/{init['pid']}/stat").read_text()
        assert int(stat.rsplit(")", 1)[1].split()[19]) == init["start_ticks"], f"{instance_id} runs no more"
        return init["pid"], init["start_ticks"]

    # A round.

    def intent(self):
        """One thing to ask for, as (name, subject, what to do)."""
        kinds = ["wake", "sleep"]
        if len(self.subjects) < SUBJECTS_MAX:
            kinds += ["create"] * 2
        awake = [subject for subject in self.subjects if not subject.paused]
        paused = [subject for subject in self.subjects if subject.paused]
        kinds += ["roll_out", "roll_out", "scale", "scale", "pause"] * bool(awake)
        kinds += ["resume"] * bool(paused) + ["delete"] * bool(self.subjects)
        kind = self.choices.choice(kinds)
        if kind in ("wake", "sleep"):
            subject = self.choices.choice(self.sleepers)
        elif kind == "create":
            self.count += 1
            subject = Subject(f"subject-{self.count}", self.image, self.choices.choice(list(VERSIONS)),
                              app_goes=self.choices.random() < 0.5)
            self.subjects.append(subject)
        else:
            subject = self.choices.choice(paused if kind == "resume" else self.subjects if kind == "delete" else awake)
        if kind == "roll_out":
            subject.turn += 1
            subject.version = self.choices.choice(list(VERSIONS))
        elif kind == "scale":
            subject.instances = self.choices.choice([count for count in (1, 2, 3) if count != subject.instances])
        elif kind in ("pause", "resume"):
            subject.paused = kind == "pause"
        elif kind == "delete":
            self.subjects.remove(subject)
        return kind, subject

    def round(self, number):
        kind, subject = self.intent()
        victims = self.choices.choices(
            [("up",), ("supervise",), ("up", "supervise"), ("edge",), ("up", "edge"), ("up", "supervise", "edge")],
            weights=[40, 20, 25, 5, 5, 5],
        )[0]
        # Most work is done within the first tenths of a second; some of it, later.
        delay = self.choices.choice([0.0, 0.03, 0.1, 0.3, 1.0, 2.0]) * self.choices.random()
        twice = "up" in victims and self.choices.random() < 0.2
        print(f"round {number}: {kind} {subject.name}, kill {' and '.join(victims)} after {delay:.3f} s"
              f"{', and once more' * twice}", flush=True)
        self.history[kind] += 1
        bystanders = [one for one in [self.reference, *self.subjects] if one is not subject and not one.paused]
        before = {one.name: self.processes(one) for one in bystanders}
        if "edge" in victims:
            self.asker.may_lose.set()
        answered, failures = threading.Event(), []

        def act():
            try:
                # Falling asleep is asked for by doing nothing.
                if kind == "sleep":
                    self.wake(subject)
                else:
                    getattr(self, kind)(subject)
                answered.set()
            except NO_ANSWER:
                pass
            except Exception as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        actor = threading.Thread(target=act)
        actor.start()
        if kind == "sleep":
            actor.join()
            delay += 0.9
        # The moment is the point: there is no condition to wait for.
        threading.Event().wait(delay)
        self.kill(victims)
        if twice:
            self.cloud.launch()
            threading.Event().wait(self.choices.random())
            self.kill(("up",))
        if "up" in victims:
            self.cloud.start()
        actor.join()
        if "edge" in victims:
            wait_for("the data plane is back", lambda: self.answer(self.reference) == VERSIONS["1"])
            self.asker.may_lose.clear()
        assert not failures, failures
        if not answered.is_set():
            assert kind not in ("wake", "sleep") or "edge" in victims, "a request that waited for a wake was lost"
            getattr(self, "wake" if kind == "sleep" else kind)(subject)
        self.hold(kind, subject, before, bystanders)

    def kill(self, victims):
        """All at once, as far as that goes: nobody may tidy up after the other."""
        pids = [self.cloud.process.pid if role == "up" else self.cloud.helper_pid(role) for role in victims]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
        if "up" in victims:
            self.cloud.process.wait()

    def hold(self, kind, subject, before, bystanders):
        if kind == "delete":
            wait_for(f"{subject.name} is gone",
                     lambda: self.cloud.call("GET", f"/v1/services/{subject.id}")[0] == 404, PATIENCE_SECONDS)
            if subject.app_goes:
                wait_for(f"the app of {subject.name} is gone", lambda: self.find_app(subject.name) is None,
                         PATIENCE_SECONDS)
            else:
                assert self.find_app(subject.name), f"the app of {subject.name} went without being asked to"
        else:
            self.settle(subject)
        after = self.processes(self.sleepers[1])
        assert after == self.dozing, f"the one that sleeps lightly was started anew: {self.dozing} to {after}"
        for one in bystanders:
            self.settle(one)
            after = self.processes(one)
            assert after == before[one.name], f"{one.name} was not asked to change: {before[one.name]} to {after}"
        assert not self.asker.bad, f"the service at the side failed: {self.asker.bad[:5]}"


def nothing_leaks(footprint, cloud):
    """What is being removed while we look is gone at the next look."""
    last = []

    def clean():
        last[:] = footprint.unaccounted(cloud)
        return not last

    try:
        wait_for("nothing is left of instances that are over", clean, PATIENCE_SECONDS, every=0.2)
    except AssertionError as error:
        raise AssertionError("\n".join(["leaked:", *last])) from error


@pytest.mark.timeout(300 + ROUNDS * ROUND_SECONDS)
def test_whatever_is_killed_no_promise_is_broken(own_cloud, registry, capsys):
    with capsys.disabled():
        print(f"\nTRAM_CHAOS_SEED={SEED} TRAM_CHAOS_ROUNDS={ROUNDS}", flush=True)
    chaos = Chaos(own_cloud, registry, random.Random(SEED))
    footprint = Footprint(own_cloud)
    planted = footprint.site / "kept" / "planted"
    planted.mkdir()
    assert [str(planted) in line for line in footprint.unaccounted(own_cloud)] == [True], "a planted leak is not found"
    planted.rmdir()
    started = time.monotonic()
    try:
        for number in range(1, ROUNDS + 1):
            try:
                chaos.round(number)
                if number % LOOK_EVERY == 0:
                    nothing_leaks(footprint, own_cloud)
            except BaseException:
                print(f"in round {number}; TRAM_CHAOS_SEED={SEED}\n{own_cloud.logs()[-LOG_SHOWN:]}", flush=True)
                raise
        nothing_leaks(footprint, own_cloud)
    finally:
        chaos.asker.stop()
    with capsys.disabled():
        print(f"{dict(chaos.history)} in {time.monotonic() - started:.0f} s; "
              f"{chaos.asker.good} good answers at the side", flush=True)
    assert chaos.asker.good > 10 * ROUNDS
    assert footprint.left(), "the look for leaks finds nothing while everything runs"
    assert own_cloud.stop() == 0
    assert footprint.left() == []
