"""Attempts to connect, rule by rule, on virtual time."""

import asyncio
import itertools
from contextlib import suppress

import pytest

from roomcast.brokers.attempts import FIRST_PAUSE, LEAST, SETTLED, each_once, keep
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


class Link:
    """A link that is over when the test says so."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.over = asyncio.Event()
        self.gone = False

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.gone = True


class Kept:
    """Links that `keep` makes: at which moments it tried, and what it was told; "" is well."""

    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)
        self.links = [Link(0)]
        self.tried: list[float] = []
        self.restored = asyncio.Queue[float]()
        self.dropped: list[Link] = []
        self.deaf = False
        self.task = asyncio.create_task(keep(self.links[0], self.connect, self.drop, self.tell, longest=0.3))

    async def connect(self) -> Link:
        assert self.links[-1].gone, "rule 4"
        self.tried.append(asyncio.get_running_loop().time())
        if self.deaf:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
        if self.errors and (error := self.errors.pop(0)):
            raise BrokerUnavailable(error, broker="test")
        self.links.append(Link(len(self.links)))
        return self.links[-1]

    async def drop(self, link: Link) -> None:
        self.dropped.append(link)

    def tell(self) -> None:
        self.restored.put_nowait(asyncio.get_running_loop().time())

    async def lose(self) -> float:
        """Lose the link; how long it took to have another one."""
        before = asyncio.get_running_loop().time()
        self.links[-1].over.set()
        return await self.restored.get() - before

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        assert self.dropped == [self.links[-1]], "rule 6"


@virtual
async def test_rule_5_a_link_that_lived_is_replaced_at_once() -> None:
    kept = Kept()
    for number in range(1, 4):
        await asyncio.sleep(SETTLED + 0.1)
        assert await kept.lose() == 0
        assert kept.links[-1].number == number
    await kept.end()


@virtual
async def test_rule_5_a_link_that_is_cut_at_once_is_not_replaced_in_a_tight_loop() -> None:
    kept = Kept()
    waits = [await kept.lose() for _ in range(6)]
    assert waits[0] == 0
    assert all(wait >= FIRST_PAUSE / 2 for wait in waits[1:])
    assert 0.15 <= waits[-1] <= 0.3
    await asyncio.sleep(SETTLED + 0.1)
    assert await kept.lose() == 0
    await kept.end()


@pytest.mark.parametrize("error", ["", "away"])
@virtual
async def test_rule_6_a_cancellation_that_an_attempt_keeps_to_itself_is_one(error: str) -> None:
    kept = Kept(error)
    await asyncio.sleep(SETTLED + 0.1)
    kept.deaf = True
    kept.links[-1].over.set()
    await asyncio.sleep(0.1)
    await kept.end()
    assert kept.task.done()


@virtual
async def test_rule_6_it_never_gives_up_and_says_why_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept(*["away"] * 50, "full", "full", "away", "")
    await asyncio.sleep(SETTLED + 0.1)
    await kept.lose()
    assert len(kept.tried) == 54
    pauses = [after - before for before, after in itertools.pairwise(kept.tried)]
    assert FIRST_PAUSE / 2 <= pauses[0] <= FIRST_PAUSE
    assert all(0.15 <= pause <= 0.3 for pause in pauses[4:])
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["away", "full", "away"]
    await kept.end()
