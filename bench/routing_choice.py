"""One choice among a thousand replicas of a model."""

import json
import os
import statistics
import subprocess

RUNS = 3
GOAL_P99_US = 20.0


def once():
    program = os.path.join(os.environ["TRAM_TARGET"], "examples", "routing_choice")
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return json.loads(said.strip().splitlines()[-1])


def run():
    runs = [once() for _ in range(RUNS)]
    p50, p99 = ([one[key] for one in runs] for key in ("p50_us", "p99_us"))
    return {
        "figure": statistics.median(p99), "unit": f"us a choice among {runs[0]['replicas']:,} replicas, p99; p50 "
                                                  f"{statistics.median(p50):.1f}",
        "goal": f"p99 <= {GOAL_P99_US:.0f} us",
        "pass": statistics.median(p99) <= GOAL_P99_US,
        "peer": None, "ratio": None, "runs": RUNS,
        "spread": f"p50 {min(p50):.1f} to {max(p50):.1f} us, p99 {min(p99):.1f} to {max(p99):.1f} us",
    }
