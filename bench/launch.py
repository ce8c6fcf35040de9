"""An instance in full isolation, from the order to its first instruction, as the supervisor does it."""

import json
import os
import subprocess

# The bare sandbox takes 2.6 ms on the machine this was designed on; all that an instance has besides must not double it.
GOAL_MS = 5.2
LAUNCHES = 300
# Idleness between two launches: without it, costs that only show after a pause stay hidden.
GAP_MS = 20


def run():
    program = os.path.join(os.environ["TRAM_TARGET"], "examples", "launch_cost")
    said = subprocess.run([program, str(LAUNCHES), str(GAP_MS), "instance"], check=True, capture_output=True, text=True)
    found = json.loads(said.stdout.strip().splitlines()[-1])
    median = found["median_ms"]
    return {
        "figure": median, "unit": f"ms at the median; {found['isolation']}", "goal": f"<= {GOAL_MS}",
        "pass": median <= GOAL_MS, "peer": None, "ratio": None, "runs": found["launches"],
        "spread": f"best {found['best_ms']:.1f}, p99 {found['p99_ms']:.1f}",
    }
