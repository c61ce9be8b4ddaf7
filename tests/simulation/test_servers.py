"""The simulated servers keep the rules of the seam, so that what the simulation finds is not their fault."""

from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from tests.brokers import checks_delivery, checks_log
from tests.brokers.checks_log import LogCheck
from tests.brokers.cluster import Check, Cluster, MakeBroker, closing
from tests.cluster.faulty import FaultyBroker, Hub
from tests.simulation.log_server import LogServer
from tests.simulation.loop import seeded

LOG_CHECKS = (
    checks_log.every_delivery_has_a_place_that_its_publisher_knows,
    checks_log.a_replay_is_complete_and_meets_what_is_received,
    checks_log.a_replay_goes_back_as_far_as_asked,
    checks_log.nothing_is_skipped_while_a_reader_starts,
    checks_log.a_reader_that_does_not_receive_is_waited_for,
)


def _pubsub() -> MakeBroker:
    hub = Hub()
    return lambda config: FaultyBroker(hub, config, None)


def _log() -> MakeBroker:
    return LogServer().make()


def _put(make: Callable[[], MakeBroker], check: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with closing(Cluster(make(), "simulated://", scale=0.2)) as cluster:
            await check(cluster)

    with seeded(0) as (_, carry_out):
        carry_out(run())


@pytest.mark.parametrize("make", [_pubsub, _log], ids=["pubsub", "log"])
@pytest.mark.parametrize("check", checks_delivery.CHECKS, ids=lambda check: cast("Check", check).__name__)
def test_delivery(make: Callable[[], MakeBroker], check: Check) -> None:
    _put(make, check)


@pytest.mark.parametrize("check", LOG_CHECKS, ids=lambda check: cast("LogCheck", check).__name__)
def test_log(check: LogCheck) -> None:
    _put(_log, lambda cluster: check(cluster, cast("Any", None)))
