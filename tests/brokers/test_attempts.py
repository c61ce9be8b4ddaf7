"""Attempts to connect, rule by rule, on virtual time."""

import asyncio

import pytest

from roomcast.brokers.attempts import LEAST, each_once
from roomcast.core.errors import BrokerUnavailable, ConfigurationError
from tests.cluster.harness import virtual


class Servers:
    """What the attempts meet, in their turns: how long it takes, and how it ends; "" is well."""

    def __init__(self, *each: tuple[float, str]) -> None:
        self.each = list(each)
        self.given: list[float] = []

    async def attempt(self, within: float) -> int:
        self.given.append(round(within, 6))
        takes, error = self.each[len(self.given) - 1]
        await asyncio.sleep(takes)
        if error == "never":
            raise ConfigurationError(error)
        if error:
            raise BrokerUnavailable(error, broker="test")
        return len(self.given)


@virtual
async def test_rule_1_the_first_that_succeeds_ends_it() -> None:
    servers = Servers((0, "away"), (0, ""), (0, "not asked"))
    assert await each_once(3, 6.0, servers.attempt) == 2
    assert len(servers.given) == 2


@virtual
async def test_rule_1_when_none_does_the_last_error_says_why() -> None:
    servers = Servers((0, "first"), (0, "second"), (0, "last"))
    with pytest.raises(BrokerUnavailable, match="last"):
        await each_once(3, 6.0, servers.attempt)
    assert len(servers.given) == 3


@virtual
async def test_rule_2_each_has_its_share_of_the_time_that_is_left() -> None:
    servers = Servers((2, "silent"), (0.5, "away"), (1, ""))
    assert await each_once(3, 6.0, servers.attempt) == 3
    assert servers.given == [2.0, 2.0, 3.5]


@virtual
async def test_rule_2_the_last_one_is_tried_when_no_time_is_left() -> None:
    servers = Servers((9, "slow"), (0, "slow"), (0, ""))
    assert await each_once(3, 6.0, servers.attempt) == 3
    assert servers.given == [2.0, LEAST, LEAST]


@virtual
async def test_rule_3_what_no_retry_mends_ends_it_at_once() -> None:
    servers = Servers((0, "never"), (0, ""))
    with pytest.raises(ConfigurationError):
        await each_once(2, 6.0, servers.attempt)
    assert len(servers.given) == 1
