"""An instance in full isolation, from the order to its first instruction, as the supervisor does it."""

import os
import re
import subprocess

GOAL_MS = 5.2


def run():
    program = os.path.join(os.environ["TRAM_TARGET"], "examples", "launch_cost")
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    median = float(re.search(r"median[^0-9]*([0-9.]+)", said).group(1))
    p99 = float(re.search(r"p99[^0-9]*([0-9.]+)", said).group(1))
    return {
        "figure": median, "unit": "ms at the median", "goal": f"<= {GOAL_MS}", "pass": median <= GOAL_MS,
        "peer": None, "ratio": None, "runs": int(re.search(r"(\d+) (?:launches|runs)", said).group(1)),
        "spread": f"p99 {p99:.1f}",
    }
