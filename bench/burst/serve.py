"""serve.py CLIENT COUNT ROUNDS: the same burst at a Ray Serve application that is scaled to zero; a line of JSON a round.

Runs in an environment of its own, which bench/burst_100.py makes.
"""

import json
import subprocess
import sys
import time

import ray
from ray import serve

PORT = 18000
# Ray starts its own processes on a loaded machine; to zero it goes after a second without a request.
PATIENCE_SECONDS = 180


@serve.deployment(
    max_ongoing_requests=1000,
    ray_actor_options={"num_cpus": 0.5},
    autoscaling_config={
        "min_replicas": 0, "max_replicas": 1, "upscale_delay_s": 0, "downscale_delay_s": 1,
        "downscale_to_zero_delay_s": 1, "look_back_period_s": 1, "metrics_interval_s": 0.1,
    },
)
class Hello:
    async def __call__(self, request):
        return "Hello\n"


def replicas():
    deployments = serve.status().applications["default"].deployments
    return sum(sum(states.replica_states.values()) for states in deployments.values())


def main():
    client, count, rounds = sys.argv[1:]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT}, logging_config={"log_level": "ERROR"})
    serve.run(Hello.bind(), blocking=False)
    for _ in range(int(rounds)):
        end = time.monotonic() + PATIENCE_SECONDS
        while replicas() > 0:
            if time.monotonic() > end:
                raise SystemExit("Ray Serve did not scale to zero")
            time.sleep(0.1)
        done = subprocess.run([client, str(PORT), "localhost", count], capture_output=True, text=True, check=True)
        print(json.dumps(done.stdout.splitlines()), flush=True)
    serve.shutdown()
    ray.shutdown()


main()
