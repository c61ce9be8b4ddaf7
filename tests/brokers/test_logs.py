"""What a log promises beyond the numbered rules, put to every broker that keeps one."""

import gc
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.brokers import checks_log
from tests.brokers.checks_log import LogCheck
from tests.brokers.cluster import Cluster, closing, deleted
from tests.brokers.log_tampers import TAMPERS
from tests.brokers.test_conformance import broker_class
from tests.services import SharedBrokers

SCHEMES = tuple(TAMPERS)


@pytest.fixture
async def cluster(scheme: str, shared_brokers: SharedBrokers) -> AsyncIterator[Cluster]:
    url = f"{scheme}://t{uuid4().hex[:12]}" if scheme == "memory+log" else shared_brokers.log_url(scheme)
    async with deleted(Cluster(broker_class(scheme), url)) as made, closing(made):
        yield made
    gc.collect()


@pytest.mark.parametrize("check", checks_log.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_log(cluster: Cluster, scheme: str, check: LogCheck) -> None:
    await check(cluster, TAMPERS[scheme])


STEP = st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from(["await", "yield", "go on"]))


@pytest.mark.parametrize("scheme", SCHEMES)
@given(schedule=st.lists(STEP, max_size=60))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_several_publishers_give_one_order(cluster: Cluster, schedule: list[tuple[int, int, str]]) -> None:
    """Rule 9: one order for everybody on a log of one stream."""
    await checks_log.order_is_the_same_for_everybody(cluster, schedule)
