"""The rules of `roomcast.core.broker`, put to every broker.

The checks themselves, each quoting its rule, are in `checks_delivery.py` and `checks_link.py`; what a check
is worth is shown in `test_conformance_teeth.py`.
"""

import gc
import importlib.metadata
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from roomcast.core.broker import Broker, BrokerConfig
from tests.brokers import checks_delivery, checks_link
from tests.brokers.cluster import Check, Cluster, MakeBroker, closing
from tests.proxy import TcpProxy
from tests.services import SharedBrokers, unavailable

LINKED = ("redis", "nats", "amqp")
SCHEMES = ("memory", *LINKED, "embedded")


def broker_class(scheme: str) -> MakeBroker:
    """The broker class of a scheme, as an application finds it: by its entry point."""
    points = importlib.metadata.entry_points(group="roomcast.brokers", name=scheme)
    try:
        return cast("MakeBroker", points[scheme].load())
    except ImportError as exc:
        unavailable(f"The broker of {scheme}://", repr(exc))


def connect(url: str) -> Broker:
    """Another broker, from the URL of a server that `embedded` found or started."""
    return broker_class("nats")(BrokerConfig(url=url))


def check_name(check: Check) -> str:
    return check.__name__


@pytest.fixture
async def cluster(scheme: str, shared_brokers: SharedBrokers, tmp_path: Path) -> AsyncIterator[Cluster]:
    """A cluster of the broker under test, with nothing between it and its nodes."""
    make = broker_class(scheme)
    name = f"t{uuid4().hex[:12]}"
    match scheme:
        case "memory":
            made = Cluster(make, f"memory://{name}")
        case "embedded":
            made = Cluster(make, f"embedded://{name}", parameters={"dir": str(tmp_path)}, connect=connect)
        case _:
            made = Cluster(make, shared_brokers.url(scheme))
    async with closing(made):
        yield made
    gc.collect()  # what was not closed is told here, not in a later test


@pytest.mark.parametrize("check", checks_delivery.CHECKS, ids=check_name)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_delivery(cluster: Cluster, check: Check) -> None:
    await check(cluster)


@pytest.fixture
async def linked(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[Cluster]:
    """A cluster of the broker under test, with a proxy before those nodes that ask for one."""
    make = broker_class(scheme)
    url = shared_brokers.url(scheme)
    async with TcpProxy(url) as proxy, closing(Cluster(make, url, link=proxy)) as made:
        yield made
    gc.collect()


@pytest.mark.fault
@pytest.mark.parametrize("check", checks_link.CHECKS, ids=check_name)
@pytest.mark.parametrize("scheme", LINKED)
async def test_link(linked: Cluster, check: Check) -> None:
    await check(linked)
