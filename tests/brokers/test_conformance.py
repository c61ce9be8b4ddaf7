"""The rules of `roomcast.core.broker`, put to every broker.

The checks themselves, each quoting its rule, are in `checks_delivery.py` and `checks_link.py`; what a check
is worth is shown in `test_conformance_teeth.py`.
"""

import gc
import importlib.metadata
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.broker_clusters import SharedClusters
from tests.brokers import checks_delivery, checks_link
from tests.brokers.cluster import Check, Cluster, MakeBroker, closing, deleted
from tests.loops import ON_UVLOOP
from tests.redis_groups import proxy_before
from tests.services import SharedBrokers, unavailable

CLUSTERED = {"nats cluster": "nats", "amqp cluster": "amqp"}
LOGS = ("redis+streams", "nats+jetstream", "amqp+streams")
LINKED = ("redis", "nats", "amqp", "redis+sentinel", "redis+cluster", *CLUSTERED, *LOGS)
SCHEMES = ("memory", "memory+log", *LINKED, "embedded")


def schemes(names: Iterable[str]) -> pytest.MarkDecorator:
    """One test for each; those of a cluster are marked, so that it begins to start in time."""
    marks = {name: pytest.mark.cluster(scheme) for name, scheme in CLUSTERED.items()}
    return pytest.mark.parametrize("scheme", [pytest.param(name, marks=marks.get(name, ())) for name in names])


def broker_class(scheme: str) -> MakeBroker:
    """The broker class of a scheme, as an application finds it: by its entry point."""
    points = importlib.metadata.entry_points(group="roomcast.brokers", name=scheme)
    try:
        return cast("MakeBroker", points[scheme].load())
    except ImportError as exc:
        unavailable(f"The broker of {scheme}://", repr(exc))


def check_name(check: Check) -> str:
    return check.__name__


def servers(scheme: str, brokers: SharedBrokers, clusters: SharedClusters) -> list[str]:
    """A URL for each server of the broker under test; the nodes of a check take them in turn."""
    if scheme in CLUSTERED:
        return clusters.urls(CLUSTERED[scheme])
    return [brokers.log_url(scheme) if scheme in LOGS else brokers.url(scheme)]


@pytest.fixture
async def cluster(
    scheme: str, shared_brokers: SharedBrokers, shared_clusters: SharedClusters, tmp_path: Path
) -> AsyncIterator[Cluster]:
    """A cluster of the broker under test, with nothing between it and its nodes."""
    make = broker_class(CLUSTERED.get(scheme, scheme))
    name = f"t{uuid4().hex[:12]}"
    match scheme:
        case "memory" | "memory+log":
            made = Cluster(make, f"{scheme}://{name}")
        case "embedded":
            made = Cluster(make, f"embedded://{name}", parameters={"dir": str(tmp_path)}, inner=broker_class("nats"))
        case _:
            made = Cluster(make, servers(scheme, shared_brokers, shared_clusters))
    async with deleted(made), closing(made):
        yield made
    gc.collect()  # what was not closed is told here, not in a later test


@pytest.mark.parametrize("check", checks_delivery.CHECKS, ids=check_name)
@schemes(SCHEMES)
async def test_delivery(cluster: Cluster, check: Check) -> None:
    await check(cluster)


@ON_UVLOOP
@pytest.mark.parametrize("check", checks_delivery.CHECKS, ids=check_name)
@schemes(("redis", "nats", "amqp", "redis+streams"))
async def test_delivery_on_uvloop(cluster: Cluster, check: Check) -> None:
    await check(cluster)


@schemes(SCHEMES)
@given(schedule=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(["await", "yield", "go on"])), max_size=80))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_schedule_of_publishes_is_in_order(cluster: Cluster, schedule: list[tuple[int, str]]) -> None:
    """Rule 4: calls made one after the other are delivered in that order, awaited one by one or not."""
    await checks_delivery.any_schedule_of_publishes_is_in_order(cluster, schedule)


@pytest.fixture
async def linked(scheme: str, shared_brokers: SharedBrokers, shared_clusters: SharedClusters) -> AsyncIterator[Cluster]:
    """A cluster of the broker under test, with a proxy before those nodes that ask for one.

    They have no other way than the proxy: a server that told them of others would spoil the fault.
    """
    make = broker_class(CLUSTERED.get(scheme, scheme))
    first, *others = servers(scheme, shared_brokers, shared_clusters)
    parameters = {"gossip": "0"} if scheme == "nats cluster" else {}
    async with (
        proxy_before(first) as proxy,
        deleted(Cluster(make, [*others, first], link=proxy, parameters=parameters)) as made,
        closing(made),
    ):
        yield made
    gc.collect()


@pytest.mark.fault
@pytest.mark.parametrize("check", checks_link.CHECKS, ids=check_name)
@schemes(LINKED)
async def test_link(linked: Cluster, check: Check) -> None:
    await check(linked)


@ON_UVLOOP
@pytest.mark.fault
@pytest.mark.parametrize("check", checks_link.CHECKS, ids=check_name)
@schemes(("redis", "nats", "amqp"))
async def test_link_on_uvloop(linked: Cluster, check: Check) -> None:
    await check(linked)
