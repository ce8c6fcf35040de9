"""A copy of a sandbox with 1 GiB on its disk, to its first command: snapshot, create from it, run; beside a fresh one.

The disk alone is copied, as `tram sandbox fork --disk-only` does, with the same calls of the API; `fork_processes` copies
what runs too. The data directory is on XFS, see `snapshot`."""

import time

import sharing
from cloud import Cloud, Registry
from sandbox_client import Api, Executor, figure
from snapshot import FILL, taken

ROUNDS = 7
GOAL_MS = 30


def run(rounds=ROUNDS):
    with sharing.blocks():
        return measured(rounds)


def measured(rounds):
    registry, cloud = Registry(), Cloud().start()
    try:
        api, image = Api(cloud), registry.image("fastapi")
        service, key = api.make("box", image, "small")
        Executor(cloud, key).run(FILL)
        disks, forks, fresh = [], [], []
        for number in range(rounds):
            begun = time.perf_counter()
            took, snapshot = taken(api, service, f"s{number}")
            copy, key = api.make(f"fork-{number}", image, "small", snapshot["id"])
            Executor(cloud, key).run("test -s /tmp/data/64")
            forks.append((time.perf_counter() - begun) * 1000)
            disks.append(took)
            begun = time.perf_counter()
            other, key = api.make(f"fresh-{number}", image, "small")
            Executor(cloud, key).run("true")
            fresh.append((time.perf_counter() - begun) * 1000)
            for one in (copy, other):
                api.delete(one)
            api.call("DELETE", f"/v1/instance_snapshots/{snapshot['id']}?when_unused=true")
    finally:
        cloud.remove()
        registry.stop()
    made = figure(forks, GOAL_MS, "a fresh sandbox to its first command", fresh)
    disks.sort()
    return {**made, "spread": f"{made['spread']}; the snapshot alone {disks[len(disks) // 2]:.1f}"}
