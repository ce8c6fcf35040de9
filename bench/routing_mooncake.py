"""Requests whose first token is in time, by which replica each is sent to, on Mooncake's conversations, simulated."""

from simulated import simulate, trace

GOAL = 1.4
TRACE = ("mooncake", "conversation_trace.jsonl.gz")
# The setup that counts, and those beside which it is told.
TITLE = "6500 tokens/s a worker, which holds 1000000"


def run():
    tables = simulate(trace(*TRACE), "--policy", "tram,sglang,dynamo,epp,round-robin")
    share = {name: row["in_time"] for name, row in tables[TITLE].items()}
    ratios = [rows["tram"]["in_time"] / rows["sglang"]["in_time"] for rows in tables.values()]
    ratio = share["tram"] / share["sglang"]
    return {
        "figure": share["tram"],
        "unit": "of the requests have their first token within 2 s; " +
                ", ".join(f"{name} {share[name]:.2f}" for name in ("sglang", "dynamo", "epp", "round-robin")),
        "goal": f">= {GOAL} of SGLang's policy", "pass": ratio >= GOAL,
        "peer": "SGLang's cache-aware policy, re-implemented", "ratio": ratio, "runs": 1,
        "spread": f"simulated; ratio at other speeds and sizes of workers {min(ratios):.2f} to {max(ratios):.2f}",
    }
