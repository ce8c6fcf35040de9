"""A sandbox for one command out of a pool: claim, look up where it is, run `true`; beside making one for it."""

import time

from cloud import Cloud, Registry, wait_for
from sandbox_client import Api, Executor, definition, figure

SIZE, BATCHES, COLD = 20, 5, 20
GOAL_MS = 5


def claimed(cloud, api, pool, request):
    """Milliseconds from the claim to the end of the command, and the service."""
    begun = time.perf_counter()
    claim = api.call("POST", "/v1/claim", {"pool_id": pool, "request_id": request})
    service = api.call("GET", f"/v1/services/{claim['service_id']}")["service"]
    deployment = api.call("GET", f"/v1/deployments/{service['latest_deployment_id']}")["deployment"]
    Executor(cloud, deployment["metadata"]["sandbox"]["routing_key"]).run("true")
    took = (time.perf_counter() - begun) * 1000
    if not claim["prewarmed"]:
        raise AssertionError("the pool had none ready")
    return took, service


def made(cloud, api, image, name):
    begun = time.perf_counter()
    service, key = api.make(name, image)
    Executor(cloud, key).run("true")
    return (time.perf_counter() - begun) * 1000, service


def run(batches=BATCHES):
    registry, cloud = Registry(), Cloud().start()
    try:
        api, image = Api(cloud), registry.image("hello", "1")
        asked = {"name": "pool", "size": SIZE, "definition": definition("pool", image)}
        pool = api.call("POST", "/v1/service_pools", asked)["service_pool"]["id"]
        full = lambda: api.call("GET", f"/v1/service_pools/{pool}")["service_pool"]["ready_count"] == SIZE
        warm, cold = [], []
        for batch in range(batches):
            # What refills the pool is not to be in the way of what is measured.
            wait_for("the pool is full", full, seconds=300)
            taken = [claimed(cloud, api, pool, f"{batch}-{number}") for number in range(SIZE // 2)]
            warm += [took for took, _ in taken]
            for _, service in taken:
                api.delete(service)
        api.call("DELETE", f"/v1/service_pools/{pool}")
        for number in range(COLD):
            took, service = made(cloud, api, image, f"cold-{number}")
            cold.append(took)
            api.delete(service)
    finally:
        cloud.remove()
        registry.stop()
    return figure(warm, GOAL_MS, "create -> exec without a pool", cold)
