"""A thousand services created, healthy and deleted through the API on the fake site."""

import json
import os
import statistics
import subprocess

RUNS = 3
# The cost of a service must not grow with their number; this much is noise.
GOAL_RATIO = 1.2


def growth(few, many):
    """What a service costs among many over what it costs among few, from the costs of batches."""
    return statistics.median(many) / statistics.median(few)


def once():
    program = os.path.join(os.environ["TRAM_TARGET"], "examples", "thousand_services")
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return json.loads(said.strip().splitlines()[-1])


def run():
    runs = [once() for _ in range(RUNS)]
    healthy, deleted = ([one[f"{what}_per_second"] for one in runs] for what in ("healthy", "deleted"))
    # The first batch warms everything up. Services grow in number while they are made, and shrink while they go.
    made = [growth(one["milliseconds_each_healthy"][1:4], one["milliseconds_each_healthy"][-3:]) for one in runs]
    gone = [growth(one["milliseconds_each_deleted"][-3:], one["milliseconds_each_deleted"][1:4]) for one in runs]
    ratio = max(statistics.median(made), statistics.median(gone))
    return {
        "figure": statistics.median(healthy), "unit": "services created and healthy a second",
        "goal": f"cost among 1,000 <= {GOAL_RATIO}x of that among few", "pass": ratio <= GOAL_RATIO,
        "peer": "the second to fourth hundred beside the last three", "ratio": ratio, "runs": RUNS,
        "spread": f"{min(healthy):.0f} to {max(healthy):.0f}; deleted {min(deleted):.0f} to {max(deleted):.0f} a second; "
                  f"cost ratios: made {min(made):.2f} to {max(made):.2f}, deleted {min(gone):.2f} to {max(gone):.2f}",
    }
