"""What the conformance checks are worth: the model passes all of them, and each seeded bug is caught."""

import asyncio
from functools import partial

import pytest

from roomcast.core.errors import RoomcastError
from tests.brokers import checks_delivery, checks_link, twins_link
from tests.brokers.cluster import Check, Cluster
from tests.brokers.model import Hub, ModelBroker
from tests.brokers.twins import CAUGHT_BY, Twin

pytestmark = pytest.mark.teeth

ALL_CHECKS = (*checks_delivery.CHECKS, *checks_link.CHECKS)
assert twins_link.__doc__  # importing it adds its twins to CAUGHT_BY
CATCH = (AssertionError, RoomcastError, OSError, KeyError, asyncio.CancelledError, pytest.fail.Exception)


async def run(twin: Twin, check: Check) -> None:
    """Put a broker to one check, model and twins under the same bounds, and clear away what a bug leaves."""
    before = asyncio.all_tasks()
    hub = Hub()
    patience = 1.0 if check in checks_delivery.CHECKS else 2.0
    cluster = Cluster(partial(twin, hub=hub), "model://direct", link=hub.link, patience=patience, scale=0.5)
    try:
        async with asyncio.timeout(3 * patience):
            await check(cluster)
    finally:
        left = asyncio.all_tasks() - before
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


@pytest.mark.parametrize("check", [pytest.param(check, id=check.__name__) for check in ALL_CHECKS])
async def test_the_model_keeps_every_rule(check: Check) -> None:
    await run(ModelBroker, check)


@pytest.mark.parametrize(
    ("twin", "check"),
    [
        pytest.param(twin, check, id=f"{twin.__name__}-{check.__name__}")
        for twin, checks in CAUGHT_BY.items()
        for check in checks
    ],
)
async def test_a_seeded_bug_is_caught(twin: Twin, check: Check) -> None:
    with pytest.raises(CATCH):
        await run(twin, check)


def test_every_check_catches_a_bug() -> None:
    toothless = set(ALL_CHECKS) - {check for checks in CAUGHT_BY.values() for check in checks}
    assert not [check.__name__ for check in toothless]
