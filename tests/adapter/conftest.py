"""A cluster of whole nodes over each broker."""

import gc
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.adapter.homes import Home
from tests.adapter.servers import Cluster, serving
from tests.services import SharedBrokers

SCHEMES = ("memory", "redis", "nats", "amqp")


OUTSIDE = ("redis", "nats", "amqp", "embedded")
"""Those that another process can reach."""


def broker_url(scheme: str, brokers: SharedBrokers) -> str:
    """A shared broker of the scheme; a memory broker of this test alone."""
    return f"memory://m{uuid4().hex[:12]}" if scheme == "memory" else brokers.url(scheme)


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    """Every broker in turn."""
    return str(request.param)


@pytest.fixture
async def cluster(scheme: str, shared_brokers: SharedBrokers, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster on each broker in turn."""
    url = f"embedded://group?dir={tmp_path}" if scheme == "embedded" else broker_url(scheme, shared_brokers)
    async with serving(url) as cluster:
        yield cluster
    gc.collect()  # what was not closed is told here, not in a later test


@pytest.fixture
async def alone() -> AsyncIterator[Cluster]:
    """A cluster on a memory broker, for what no broker can change."""
    async with serving(f"memory://m{uuid4().hex[:12]}") as cluster:
        yield cluster
    gc.collect()


@pytest.fixture
async def on_redis(redis_url: str) -> AsyncIterator[Cluster]:
    """A cluster that another process can reach, for what no broker can change."""
    async with serving(redis_url) as cluster:
        yield cluster
    gc.collect()


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    """A home on a log in memory."""
    async with serving(f"memory+log://m{uuid4().hex[:12]}") as cluster:
        home = Home(cluster)
        yield home
        await home.aclose()
    gc.collect()
