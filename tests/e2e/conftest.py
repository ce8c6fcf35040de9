"""One registry and one cloud for the whole run; a test that breaks a cloud on purpose makes its own."""

import asyncio
import os
import re
import uuid

import pytest

from cloud import Cloud, Registry


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
