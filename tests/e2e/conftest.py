"""One registry and one cloud for the whole run; a test that breaks a cloud on purpose makes its own."""

import asyncio
import os
import re
import socket
import uuid

import pytest

from cloud import BASE_DOMAIN, Cloud, Registry


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        raise pytest.UsageError("instances need root: run the tests with `make test`, which uses sudo")


@pytest.fixture(scope="session")
def registry():
    registry = Registry()
    yield registry
    registry.stop()


@pytest.fixture(scope="session")
def cloud():
    cloud = Cloud().start()
    yield cloud
    cloud.remove()


@pytest.fixture
def own_cloud():
    """A cloud that the test may break."""
    cloud = Cloud().start()
    yield cloud
    cloud.remove()


@pytest.fixture(scope="module")
def sdk_environment(cloud):
    """For Koyeb's SDK, as a user sets it; and names below `localhost` are this machine, as browsers have it (RFC 6761)."""
    os.environ["KOYEB_API_HOST"] = cloud.api_url
    os.environ["KOYEB_API_TOKEN"] = cloud.token
    look_up = socket.getaddrinfo
    local = lambda host, *more, **named: look_up(
        "127.0.0.1" if str(host).endswith(BASE_DOMAIN) else host, *more, **named
    )
    socket.getaddrinfo = local
    yield
    socket.getaddrinfo = look_up
    del os.environ["KOYEB_API_HOST"], os.environ["KOYEB_API_TOKEN"]


@pytest.fixture(scope="session")
def run_async():
    """Runs a coroutine. One loop for all: the SDK keeps connections from test to test, and each belongs to its loop."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.close()


@pytest.fixture
def name(request):
    """A name for an app that no other test uses."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_"))
    return f"{words[:24].strip('-')}-{uuid.uuid4().hex[:6]}"
