"""Koyeb's official SDK, unmodified, against the real thing: every public method of service pools and claims."""

import asyncio
import http.client
import json
import random
import threading
import time
import urllib.error
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from koyeb import AsyncSandbox, Sandbox
from koyeb.sandbox import pool as sdk
from koyeb.sandbox.errors import PoolClaimError, ServicePoolError
from koyeb.sandbox.pool import AsyncServicePool, ServicePool

from cloud import wait_for


pytestmark = pytest.mark.usefixtures("sdk_environment")


@pytest.fixture(scope="module")
def image(registry):
    return registry.image("fastapi")


def is_gone(pool_id):
    try:
        return sdk.ServicePool.get(pool_id) is None
    except ServicePoolError as error:
        return "404" in str(error)


def ready(pool):
    full = lambda: pool.refresh().status == "READY" and pool.ready_count == pool.size
    wait_for(f"pool {pool.name} is full", full)


def gone(pool):
    wait_for(f"pool {pool.name} is gone", lambda: is_gone(pool.id))


def test_a_pool_of_sandboxes(image, name):
    pool = ServicePool.create(name, image=image, size=2, env={"GREETING": "hello"})
    assert (pool.name, pool.size, pool.status) == (name, 2, "PROVISIONING")
    assert pool.id in [one.id for one in ServicePool.list()]
    assert [one.id for one in ServicePool.list(name=name, limit=5, offset=0)] == [pool.id]
    ready(pool)

    claimed = sdk.claim(pool.id, request_id="first")
    assert claimed.prewarmed
    assert sdk.claim(pool.id, request_id="first") == claimed
    assert sdk.wait_claim_ready(claimed, timeout=5)
    box = Sandbox.get_from_id(claimed.service_id)
    assert box.exec("echo $GREETING").stdout == "hello\n"
    assert "SANDBOX_SECRET" not in pool.definition.to_json()

    # It refills, with a secret of its own for each.
    ready(pool)
    other = Sandbox.get_from_id(sdk.claim(pool.id).service_id)
    assert other.sandbox_secret != box.sandbox_secret and len(box.sandbox_secret) == 43
    assert other.exec("true").exit_code == 0

    first = sdk.get_claim(claimed.claim_id)
    assert (first.status, first.service_id, first.request_id) == ("FULFILLED", claimed.service_id, "first")
    assert first.fulfilled_at and first.pool_generation == "1"
    assert len(pool.claims(status="FULFILLED")) == 2
    assert len(sdk.list_claims(pool.id, limit=1, offset=1)) == 1
    other.delete()
    wait_for("the claim is released", lambda: len(pool.claims(status="RELEASED", limit=10, offset=0)) == 1)

    assert pool.update(size=1).size == 1
    pool.delete()
    pool.delete()
    assert is_gone(pool.id) or pool.refresh().status == "DELETING"
    with pytest.raises(PoolClaimError, match="being deleted|404"):
        sdk.claim(pool.id)
    gone(pool)
    assert box.exec("echo still here").stdout == "still here\n"
    box.delete()


def test_claims_at_once(image, name):
    pool = ServicePool.create(name, image=image, size=2)
    ready(pool)
    requests = ["same"] * 6 + [str(uuid.uuid4()) for _ in range(4)]
    with ThreadPoolExecutor(len(requests)) as workers:
        claims = list(workers.map(lambda request: sdk.claim(pool.id, request_id=request), requests))
    assert len({claim.service_id for claim in claims[:6]}) == 1
    services = {claim.service_id for claim in claims}
    assert len(services) == 5
    assert sum(claim.prewarmed for claim in {claim.claim_id: claim for claim in claims}.values()) >= 2
    for claim in claims:
        assert sdk.wait_claim_ready(claim.service_id, timeout=60, poll_interval=0.2)
    pool.delete()
    gone(pool)
    for service in services:
        box = Sandbox.get_from_id(service)
        assert box.exec("true").exit_code == 0
        box.delete()


def test_the_same_without_blocking(image, name, run_async):
    async def life():
        pool = await AsyncServicePool.create(name, image=image, env={"SANDBOX_SECRET": "chosen-by-me"})
        assert [one.id for one in await AsyncServicePool.list(name=name)] == [pool.id]
        cold = await sdk.claim_async(pool.id, request_id="cold")
        assert await sdk.wait_claim_ready_async(cold, timeout=60, poll_interval=0.2)
        while (await pool.refresh()).status != "READY":
            await asyncio.sleep(0.2)
        warm = await sdk.claim_async(pool.id)
        assert warm.prewarmed
        assert (await sdk.get_claim_async(warm.claim_id)).status == "FULFILLED"
        assert len(await sdk.list_claims_async(pool.id)) == len(await pool.claims(limit=10)) == 2
        assert (await pool.update(size=2)).size == 2
        assert (await AsyncServicePool.get(pool.id)).size == 2
        await pool.delete()
        for claim in (cold, warm):
            box = await AsyncSandbox.get_from_id(claim.service_id)
            assert box.sandbox_secret == "chosen-by-me"
            assert (await box.exec("echo hi")).stdout == "hi\n"
            await box.delete()

    run_async(life())


def test_pools_of_web_services_and_workers(image, name, cloud):
    web = ServicePool.create(
        f"{name}-web",
        image=image,
        type="WEB",
        ports=[{"port": 8000, "protocol": "http"}],
        routes=[{"port": 8000, "path": "/"}],
    )
    worker = ServicePool.create(
        f"{name}-worker", image=image, type="WORKER", entrypoint=["sleep"], args=["1000"]
    )
    for pool in (web, worker):
        ready(pool)
        claim = sdk.claim(pool.id)
        assert claim.prewarmed
        service = cloud.call("GET", f"/v1/services/{claim.service_id}")[1]["service"]
        assert (service["type"], service["status"]) == (pool.definition.type, "HEALTHY")
        cloud.call("DELETE", f"/v1/apps/{service['app_id']}")
        pool.delete()


def test_what_is_refused(image, name):
    for size in (0, -1, 100_000):
        with pytest.raises(ServicePoolError, match="size"):
            ServicePool.create(name, image=image, size=size)
    with pytest.raises(ServicePoolError, match="instance_type"):
        ServicePool.create(name, image=image, instance_type="no-such-type")
    with pytest.raises(PoolClaimError, match="pool_id"):
        sdk.claim("no-id")
    with pytest.raises(PoolClaimError, match="404"):
        sdk.claim(str(uuid.uuid4()))


def test_a_pool_whose_members_never_start(image, name):
    broken = ServicePool.create(
        name, image=image, type="WORKER", entrypoint=["/no/such/program"]
    )
    wait_for("the pool shows its trouble", lambda: broken.refresh().status == "ERROR", 90)
    broken.delete()
    gone(broken)


# No answer is fine while the control plane is down: the same request is asked again.
NO_ANSWER = (OSError, http.client.HTTPException, urllib.error.URLError, json.JSONDecodeError)
CRASHES = 6


def test_a_pool_survives_crashes(image, own_cloud):
    """The control plane is killed while the pool fills and while claims are under way: nothing leaks, and nothing is
    given away twice."""
    definition = {
        "type": "WORKER", "name": "w", "regions": ["local"], "instance_types": [{"type": "micro"}],
        "scalings": [{"min": 1, "max": 1}],
        "docker": {"image": image, "entrypoint": ["sleep"], "args": ["1000"]},
    }
    definition["regions"] = [own_cloud.call("GET", "/v1/catalog/regions")[1]["regions"][0]["id"]]
    status, made = own_cloud.call(
        "POST", "/v1/service_pools", {"name": "crash", "size": 3, "definition": definition}
    )
    assert status == 200, made
    pool = made["service_pool"]["id"]
    seed = random.randrange(2**32)
    print("seed", seed)
    pauses = random.Random(seed)
    claims = {}

    def ask(request):
        def once():
            try:
                status, reply = own_cloud.call("POST", "/v1/claim", {"pool_id": pool, "request_id": request})
            except NO_ANSWER:
                return None
            return reply if status == 200 else None

        claims[request] = wait_for(f"claim {request} is answered", once)

    for crash in range(CRASHES):
        asking = threading.Thread(target=ask, args=[f"request-{crash}"])
        asking.start()
        killed = threading.Event()
        killed.wait(pauses.uniform(0, 0.3))
        own_cloud.kill()
        own_cloud.launch()
        wait_for("tram up answers", own_cloud.answers)
        asking.join()
    for request, claim in list(claims.items()):
        ask(request)
        assert claims[request] == claim

    def settled():
        known = own_cloud.call("GET", f"/v1/service_pools/{pool}")[1]["service_pool"]
        services = own_cloud.call("GET", "/v1/services?limit=100")[1]["services"]
        return known["ready_count"] == 3 and len(services) == 3 + CRASHES and services

    services = wait_for("the pool is full and holds no more", settled)
    taken = {claim["service_id"] for claim in claims.values()}
    assert len(taken) == CRASHES and taken < {service["id"] for service in services}
    apps = lambda: own_cloud.call("GET", "/v1/apps?limit=100")[1]["apps"]
    assert len(apps()) == 3 + CRASHES

    assert own_cloud.call("DELETE", f"/v1/service_pools/{pool}") == (200, {})
    own_cloud.kill()
    own_cloud.start()
    wait_for("the pool is gone", lambda: own_cloud.call("GET", f"/v1/service_pools/{pool}")[0] == 404)
    left = {one["id"] for one in own_cloud.call("GET", "/v1/services?limit=100")[1]["services"]}
    assert left == taken
    wait_for("the apps are gone", lambda: len(apps()) == CRASHES)


def test_what_waits_does_not_sleep_and_what_was_taken_does(image, name, cloud):
    pool = ServicePool.create(name, image=image, idle_timeout=1)
    ready(pool)
    since = time.monotonic()
    wait_for("three times the idle time", lambda: time.monotonic() > since + 3)
    assert pool.refresh().ready_count == 1
    claim = sdk.claim(pool.id)
    service = cloud.call("GET", f"/v1/services/{claim.service_id}")[1]["service"]
    assert len(cloud.instances(claim.service_id)) == 1
    cloud.wait_deployment(service["latest_deployment_id"], "SLEEPING")
    assert Sandbox.get_from_id(claim.service_id).exec("echo awake").stdout == "awake\n"
    pool.delete()
    cloud.call("DELETE", f"/v1/apps/{service['app_id']}")
