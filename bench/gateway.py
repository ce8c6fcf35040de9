"""Questions to a model through the platform, through nginx, vllm-router and LiteLLM: how many a second of one core.

By the model's own URL a question passes through the edge; by the platform's address through the API, which knows the token,
finds the model and rewrites the question, and then through the edge. What every answer cost is counted in both. The figure
is the platform's address, which is what vllm-router and LiteLLM do.
"""

import statistics

import gateways

CONNECTIONS, SECONDS, WARM_UP_SECONDS, ROUNDS = 32, 3, 2, 8
# LiteLLM and vllm-router are far away from any goal: a few blocks tell that.
ROUNDS_OF_OTHERS = 2
GOAL_NGINX, GOAL_ROUTER, GOAL_LITELLM = 0.8, 10, 300


def run():
    bench = gateways.Bench(others=True)
    try:
        script = bench.directory / "ask.lua"
        seen = {way.name: [] for way in bench.ways}
        for way in bench.ways:
            gateways.rate(way, script, WARM_UP_SECONDS, CONNECTIONS)
        for number in range(ROUNDS):
            ways = [way for way in bench.ways if number < ROUNDS_OF_OTHERS or way.name in ("own URL", "platform", "nginx")]
            # There and back: a machine that slows down slows all.
            for way in ways if number % 2 == 0 else reversed(ways):
                seen[way.name].append(gateways.rate(way, script, SECONDS, CONNECTIONS))
    finally:
        bench.stop()
    core = {name: statistics.median(rate for rate, _ in rates) for name, rates in seen.items()}
    clock = {name: statistics.median(rate for _, rate in rates) for name, rates in seen.items()}
    ratios = [ours / peer for (ours, _), (peer, _) in zip(seen["platform"], seen["nginx"], strict=True)]
    ratio, own = statistics.median(ratios), core["own URL"] / core["nginx"]
    of_router, of_litellm = core["platform"] / core["vllm-router"], core["platform"] / core["litellm"]
    told = ", ".join(f"{name} {core[name]:.0f} ({clock[name]:.0f} by the clock)" for name in seen)
    return {
        "figure": ratio,
        "unit": f"of nginx's questions a second of one core, by the platform's address; by the model's own URL {own:.2f}; "
                f"{of_router:.1f} times vllm-router's, {of_litellm:.0f} times LiteLLM's",
        "goal": f">= {GOAL_NGINX}, {GOAL_ROUTER} times vllm-router's, {GOAL_LITELLM} times LiteLLM's",
        "pass": ratio >= GOAL_NGINX and of_router >= GOAL_ROUTER and of_litellm >= GOAL_LITELLM,
        "peer": told, "ratio": ratio, "runs": ROUNDS, "spread": f"{min(ratios):.3f} to {max(ratios):.3f}",
    }
