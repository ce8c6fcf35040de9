"""Sleep on a day of 1,350 functions: slow wakes and memory against a time-out of ten minutes, in the simulator."""

from simulated import simulate, trace

GOAL_SLOW, GOAL_SHARE = 0.45, 0.10
PEER = "fixed-10"
# The whole curve: published baselines first, then ours by the depth that light sleep has, each at several prices.
BASELINES = ["fixed-5", PEER, "fixed-20", "fixed-60", "fixed-240", "never", "hybrid-60", "hybrid-240"]
OURS = ["prewake-10", "prewake-40", "prewake-100", "habits-5-5", "habits-5-20", "habits-5-100", "habits-10-10",
        "habits-10-40", "habits-20-20", "habits-20-100", "zram-40", "zram-300", "reclaimed-10", "reclaimed-20",
        "reclaimed-25", "reclaimed-40", "checkpointed-5"]
# Judged by frozen and reclaimed to a swap file, as measured. A checkpoint on disk does better; it is beside it.
JUDGED = "reclaimed"


def run():
    names = ",".join(BASELINES + OURS)
    path = trace("azure-functions-2019-sampled", "1350_inv.csv.gz")
    first, second = (simulate(path, "--policy", names)["Policies"] for _ in range(2))
    if first != second:
        raise AssertionError("the same simulation gave two results")
    peer = first[PEER]["memory_hours"]
    judged = [row for name, row in first.items() if name.startswith(JUDGED)]
    within = [row for row in judged if row["memory_hours"] <= GOAL_SHARE * peer]
    best = min(within or judged, key=lambda row: row["slow_percent"])
    share = best["memory_hours"] / peer
    curve = ", ".join(f"{name} {row['slow_percent']:.2f} % at {row['memory_hours']:.0f} h" for name, row in first.items())
    return {
        "figure": best["slow_percent"], "unit": f"% slow wakes ({best['name']}); {best['memory_hours']:.0f} "
        "memory-hours",
        "goal": f"<= {GOAL_SLOW} % at <= {GOAL_SHARE:.0%} of the peer's memory-hours",
        "pass": best["slow_percent"] <= GOAL_SLOW and share <= GOAL_SHARE,
        "peer": f"{PEER} (minutes): {first[PEER]['slow_percent']:.2f} % at {peer:.0f} h", "ratio": share, "runs": 2,
        "spread": f"simulated, the same twice; {curve}",
    }
