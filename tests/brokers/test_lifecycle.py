"""The life of a broker's link, rule by rule, on virtual time."""

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest

from roomcast.brokers.attempts import FIRST_PAUSE, SETTLED
from roomcast.brokers.lifecycle import PATIENCE, Lifecycle
from roomcast.core.broker import Gap
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, ConfigurationError
from tests.cluster.harness import virtual

DOWN, UP = Gap("disconnected", ongoing=True), Gap("reconnected")


class Link:
    """A link that is over when the test says so."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.flushed = False
        self.drops = 0
        self.gone = False

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.gone = True


class Broker:
    """What a lifecycle asks of a broker, and what it is told.

    Attributes:
        errors: how the attempts end, in their turns; "" is well, and so is what comes after the last one.
        takes: seconds of an attempt.
        deaf: how many cancellations an attempt keeps to itself.
        drop_takes: seconds of a drop.
        up: set once an attempt has made a link.
    """

    def __init__(self, *errors: str) -> None:
        self.errors = list(errors)
        self.takes = 0.0
        self.deaf = 0
        self.drop_takes = 0.0
        self.links: list[Link] = []
        self.tried: list[float] = []
        self.gaps = asyncio.Queue[Gap]()
        self.woken = False
        self.up = asyncio.Event()
        self.life = Lifecycle[Link](
            "test", lambda: "the test", self, connect=self.connect, flush=self.flush, drop=self.drop, longest=0.3
        )

    async def connect(self) -> Link:
        self.tried.append(now())
        assert all(link.gone for link in self.links), "rules 4 and 8"
        await self.pass_time()
        if self.errors and (error := self.errors.pop(0)):
            raise ConfigurationError(error) if error == "never" else BrokerUnavailable(error, broker="test")
        self.up.set()
        self.links.append(Link())
        self.life.use(self.links[-1])
        return self.links[-1]

    async def pass_time(self) -> None:
        until = now() + self.takes
        while (left := until - now()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                if not self.deaf:
                    raise
                self.deaf -= 1

    async def flush(self, link: Link) -> None:
        await asyncio.sleep(0.1)
        assert not link.drops
        link.flushed = True

    async def drop(self, link: Link) -> None:
        link.drops += 1
        await asyncio.sleep(self.drop_takes)
        link.gone = True

    def gap(self, gap: Gap, /) -> None:
        self.gaps.put_nowait(gap)

    def wake(self) -> None:
        self.woken = True

    def lose(self) -> None:
        """Lose the link in use."""
        link = self.life.require()
        link.over.set()
        assert self.life.lost(link, "it was cut")

    async def restored(self) -> float:
        """Lose the link in use; how long it took to have another one."""
        before = now()
        self.lose()
        assert [await self.gaps.get(), await self.gaps.get()] == [DOWN, UP]
        return now() - before


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asynccontextmanager
async def broker(*errors: str) -> AsyncGenerator[Broker]:
    """A broker that is closed at the end, of which nothing is left then (rules 7 and 8)."""
    mine = asyncio.all_tasks()
    made = Broker(*errors)
    yield made
    await made.life.aclose()
    assert asyncio.all_tasks() <= mine
    assert made.life.link is None
    assert all(link.gone for link in made.links)


@virtual
async def test_rule_1_start_returns_with_a_link_once() -> None:
    async with broker() as one:
        with pytest.raises(BrokerUnavailable):
            one.life.require()
        await one.life.start()
        assert one.life.require() is one.links[0]
        await one.life.start()
        assert len(one.tried) == 1
        assert one.gaps.empty()


@pytest.mark.parametrize(("error", "kind"), [("away", BrokerUnavailable), ("never", ConfigurationError)])
@virtual
async def test_rule_1_start_raises_what_the_attempt_raised_and_can_be_called_again(
    error: str, kind: type[Exception]
) -> None:
    async with broker(error) as one:
        with pytest.raises(kind, match=error):
            await one.life.start()
        await one.life.start()
        assert one.life.require() is one.links[0]
        assert one.gaps.empty(), "nothing was lost"


@pytest.mark.parametrize("deaf", [0, 1])
@pytest.mark.parametrize("error", ["", "away"])
@virtual
async def test_rule_2_a_cancelled_start_is_cancelled_whatever_the_attempt_makes_of_it(error: str, deaf: int) -> None:
    async with broker(error) as one:
        one.takes, one.deaf = 1.0, deaf
        starting = asyncio.create_task(one.life.start())
        await asyncio.sleep(0.5)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert one.deaf == 0
        assert one.life.link is None
        assert [link.drops for link in one.links] == ([1] if deaf and not error else [])
        one.errors.clear()
        await one.life.start()
        assert one.gaps.empty(), "nothing was lost"


@virtual
async def test_rule_2_a_start_that_is_cancelled_as_its_link_comes_up_leaves_none() -> None:
    async with broker() as one:
        starting = asyncio.create_task(one.life.start())
        await one.up.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert one.life.link is None
        assert one.links[0].drops == 1


@virtual
async def test_rule_2_an_attempt_that_keeps_a_cancellation_to_itself_is_cancelled_again() -> None:
    async with broker() as one:
        one.takes, one.deaf = 60.0, 2
        starting = asyncio.create_task(one.life.start())
        await asyncio.sleep(0.5)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert now() - one.tried[0] == pytest.approx(0.5 + 2 * PATIENCE)


@pytest.mark.parametrize("deaf", [0, 1])
@pytest.mark.parametrize("error", ["", "away"])
@virtual
async def test_rule_3_aclose_ends_a_start(error: str, deaf: int) -> None:
    async with broker(error) as one:
        one.takes, one.deaf = 1.0, deaf
        starting = asyncio.create_task(one.life.start())
        await asyncio.sleep(0.5)
        await one.life.aclose()
        with pytest.raises(BrokerClosed):
            await starting
        assert one.deaf == 0
        with pytest.raises(BrokerClosed):
            await one.life.start()


@virtual
async def test_rule_3_aclose_ends_a_start_as_its_link_comes_up() -> None:
    async with broker() as one:
        starting = asyncio.create_task(one.life.start())
        await one.up.wait()
        await one.life.aclose()
        with pytest.raises(BrokerClosed):
            await starting
        assert one.links[0].flushed
        assert one.links[0].drops == 1


@virtual
async def test_rule_3_a_start_that_is_cancelled_while_aclose_flushes_leaves_the_flush_alone() -> None:
    async with broker() as one:
        starting = asyncio.create_task(one.life.start())
        await one.up.wait()
        closing = asyncio.create_task(one.life.aclose())
        starting.cancel()
        await closing
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert one.links[0].flushed
        assert one.links[0].drops == 1


@virtual
async def test_rule_4_it_never_gives_up_and_says_why_once_for_each_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with broker("", *["away"] * 50, "never", "never", "away", "") as one:
        await one.life.start()
        await asyncio.sleep(SETTLED + 0.1)
        await one.restored()
        tried = one.tried[1:]
        assert len(tried) == 54
        pauses = [after - before for before, after in itertools.pairwise(tried)]
        assert FIRST_PAUSE / 2 <= pauses[0] <= FIRST_PAUSE
        assert all(0.15 <= pause <= 0.3 for pause in pauses[4:])
        said = [record.getMessage().rpartition(": ")[2] for record in caplog.records if "Trying" in record.getMessage()]
        assert said == ["away", "never", "away"]


@virtual
async def test_rule_5_a_link_that_lived_is_replaced_at_once() -> None:
    async with broker() as one:
        await one.life.start()
        for number in range(1, 4):
            await asyncio.sleep(SETTLED + 0.1)
            assert await one.restored() == 0
            assert one.life.require() is one.links[number]


@virtual
async def test_rule_5_a_link_that_is_cut_at_once_is_not_replaced_in_a_tight_loop() -> None:
    async with broker() as one:
        await one.life.start()
        waits = [await one.restored() for _ in range(6)]
        assert waits[0] == 0
        assert all(wait >= FIRST_PAUSE / 2 for wait in waits[1:])
        assert 0.15 <= waits[-1] <= 0.3
        await asyncio.sleep(SETTLED + 0.1)
        assert await one.restored() == 0


@virtual
async def test_rule_6_the_loss_of_the_link_in_use_is_told_once_and_that_of_no_other() -> None:
    async with broker() as one:
        await one.life.start()
        (first,) = one.links
        await one.restored()
        assert not one.life.lost(first, "it was lost before")
        assert not one.life.lost(Link(), "it never was in use")
        assert one.gaps.empty()
        assert one.life.require() is one.links[1]


@virtual
async def test_rule_6_the_end_of_a_loss_is_told_once() -> None:
    async with broker() as one:
        await one.life.start()
        await one.restored()
        one.life.use(one.life.require())
        assert one.gaps.empty()


@virtual
async def test_rule_7_aclose_wakes_flushes_and_leaves_nothing() -> None:
    async with broker() as one:
        await one.life.start()
        closing = asyncio.create_task(one.life.aclose())
        await turns()
        assert one.woken
        assert not one.life.lost(one.links[0], "while it was flushed")
        with pytest.raises(BrokerClosed):
            one.life.require()
        await closing
        assert one.links[0].flushed
        assert one.links[0].drops == 1
        assert one.gaps.empty()


@virtual
async def test_rule_7_another_aclose_waits_for_the_first() -> None:
    async with broker() as one:
        one.drop_takes = 1.0
        await one.life.start()
        closing = asyncio.create_task(one.life.aclose())
        await turns()
        await one.life.aclose()
        assert one.links[0].gone
        await closing


@virtual
async def test_rule_7_a_link_that_comes_up_while_the_last_one_is_flushed_is_not_used() -> None:
    async with broker() as one:
        await one.life.start()
        closing = asyncio.create_task(one.life.aclose())
        await turns()
        one.links[0].over.set()
        await turns()
        assert len(one.links) == 2
        assert one.life.link is None
        await closing
        assert one.links[1].drops == 1
        assert one.gaps.empty()


@pytest.mark.parametrize("deaf", [0, 1])
@pytest.mark.parametrize("error", ["", "away"])
@virtual
async def test_rule_7_aclose_ends_an_attempt_to_replace_a_link(error: str, deaf: int) -> None:
    async with broker("", error) as one:
        await one.life.start()
        one.takes, one.deaf = 1.0, deaf
        one.lose()
        await asyncio.sleep(0.5)
        await one.life.aclose()
        assert len(one.tried) == 2
        assert one.deaf == 0
        assert one.gaps.qsize() == 1, "it was lost, and is not back"


@virtual
async def test_rule_8_a_drop_is_not_cut_short() -> None:
    async with broker() as one:
        one.drop_takes = 3 * PATIENCE
        starting = asyncio.create_task(one.life.start())
        await one.up.wait()
        starting.cancel()
        await turns()
        before = now()
        await one.life.aclose()
        assert now() - before == pytest.approx(3 * PATIENCE)
        assert one.links[0].gone
        with suppress(asyncio.CancelledError):
            await starting
