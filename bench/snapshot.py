"""A FILESYSTEM snapshot of a sandbox with 1 GiB on its disk, until it is durable, beside copying the files.

The data directory is on XFS, where a snapshot shares its blocks with the disk; a few on whatever file system this machine
has, where all is copied, stand beside it.
"""

import statistics
import time

import sharing
from cloud import Cloud, Registry, wait_for
from sandbox_client import POLL_SECONDS, Api, Executor, figure

ROUNDS, ROUNDS_ELSEWHERE = 7, 3
DATA_MIB = 1024
GOAL_MS = 50
FILL = f"mkdir /tmp/data && cd /tmp/data && for i in $(seq 64); do head -c {DATA_MIB // 64}M /dev/urandom > $i; done; sync"


def taken(api, service, name, kind="FILESYSTEM"):
    """Milliseconds until the snapshot can be used, and the snapshot."""
    instance = api.call("GET", f"/v1/instances?service_id={service['id']}&statuses=HEALTHY")["instances"][0]["id"]
    begun = time.perf_counter()
    body = {"instance_id": instance, "name": name, "type": f"INSTANCE_SNAPSHOT_TYPE_{kind}"}
    snapshot = api.call("POST", "/v1/instance_snapshots", body)["instance_snapshot"]

    def available():
        now = api.call("GET", f"/v1/instance_snapshots/{snapshot['id']}")["instance_snapshot"]
        if now["status"].endswith("ERROR"):
            raise AssertionError(f"the snapshot failed: {now['messages']}")
        return now["status"].endswith("AVAILABLE")

    wait_for("the snapshot is there", available, every=POLL_SECONDS)
    return (time.perf_counter() - begun) * 1000, snapshot


def measured(rounds):
    """Milliseconds of snapshots, and of copies inside."""
    registry, cloud = Registry(), Cloud().start()
    try:
        api = Api(cloud)
        service, key = api.make("box", registry.image("fastapi"), "small")
        executor = Executor(cloud, key)
        executor.run(FILL)
        ours, theirs = [], []
        for number in range(rounds):
            took, snapshot = taken(api, service, f"s{number}")
            ours.append(took)
            api.call("DELETE", f"/v1/instance_snapshots/{snapshot['id']}")
            begun = time.perf_counter()
            executor.run("cp -a /tmp/data /tmp/copy && sync")
            theirs.append((time.perf_counter() - begun) * 1000)
            executor.run("rm -rf /tmp/copy && sync")
    finally:
        cloud.remove()
        registry.stop()
    return ours, theirs


def run():
    elsewhere, _ = measured(ROUNDS_ELSEWHERE)
    with sharing.blocks():
        ours, theirs = measured(ROUNDS)
    made = figure(ours, GOAL_MS, "`cp -a` of the files in the sandbox, and `sync`", theirs)
    return {**made, "spread": f"{made['spread']}; without shared blocks {statistics.median(elsewhere):.0f}"}
