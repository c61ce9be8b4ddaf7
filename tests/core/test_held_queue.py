"""What waits for a client that has come back, rule by rule, in the place of a queue that is a list."""

import asyncio
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any

import pytest

from roomcast.core import held_queue
from roomcast.core.client_queue import Bounds
from roomcast.core.errors import ReplayUnavailable
from roomcast.core.frames import Frame
from roomcast.core.held_queue import HeldQueue
from roomcast.core.rooms import Client, State

BOUNDS = Bounds(packets=4, size=1000)


class Queue:
    """A client's queue, and its connection."""

    def __init__(self) -> None:
        self.taken: list[Frame] = []
        self.waiting: list[Frame] = []
        self.queue = self
        self.socket: Any = self
        self.closed = False
        self.empty = asyncio.Event()

    @property
    def size(self) -> int:
        return sum(frame.size for frame in self.waiting)

    def qsize(self) -> int:
        return len(self.waiting)

    def offer(self, frame: Frame) -> bool:
        self.taken.append(frame)
        self.waiting.append(frame)
        return not self.closed

    def read(self) -> None:
        """The client reads all that waits."""
        self.waiting.clear()
        self.empty.set()

    async def join(self) -> None:
        self.empty.clear()
        if self.waiting:
            await self.empty.wait()


class Gone:
    """What stands in the place of a connection that is over."""

    closed = True


def frames(count: int, size: int = 1) -> list[Frame]:
    return [Frame(("x" * size,)) for _ in range(count)]


def held(
    queue: Queue, missed: Iterable[Frame | None], turn: asyncio.Lock | None = None
) -> tuple[HeldQueue, Client, list[Any]]:
    client, cut = Client("sid", "eio"), list[Any]()

    def lost(_queue: Any) -> None:
        cut.append("lost")

    client.queue = HeldQueue(queue, iter(missed), BOUNDS, turn or asyncio.Lock(), cut=cut.append, lost=lost)
    return client.queue, client, cut


def let_go(queue: Queue, missed: list[Frame]) -> Coroutine[Any, Any, None] | None:
    waiting, client, _ = held(queue, missed)
    return waiting.let_go(client)


async def test_rule_1_nothing_leaves_before_and_then_all_of_it_in_order() -> None:
    queue, (missed, new) = Queue(), frames(2)
    waiting, client, _ = held(queue, [missed])
    assert waiting.busy()
    assert waiting.offer(new)
    assert queue.taken == []
    assert waiting.let_go(client) is None
    assert queue.taken == [missed, new]
    assert client.queue is queue


async def test_rule_2_what_is_too_much_for_once_goes_as_fast_as_the_client_reads() -> None:
    queue, missed = Queue(), frames(5)
    waiting, client, _ = held(queue, missed)
    more = waiting.let_go(client)
    assert queue.taken == missed[:2], "half of what may wait"
    assert more is not None
    going = asyncio.ensure_future(more)
    await asyncio.sleep(0)
    (new,) = frames(1)
    assert waiting.offer(new)
    assert queue.taken == missed[:2], "it has not read that yet"
    while not going.done():
        queue.read()
        await asyncio.sleep(0)
    assert queue.taken == [*missed, new]
    assert client.queue is queue


async def test_rule_2_clients_that_share_a_connection_take_turns() -> None:
    """Each has missed more than may wait for all of them."""
    for size, at_once in ((1, 2), (200, 2), (900, 1)):
        queue = Queue()
        missed = [frames(9, size) for _ in range(3)]
        going = [asyncio.ensure_future(more) for one in missed if (more := let_go(queue, one)) is not None]
        while not all(one.done() for one in going):
            assert len(queue.waiting) <= at_once, "half of what may wait"
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            queue.read()
        for one in missed:
            assert [frame for frame in queue.taken if frame in one] == one


async def test_rule_2_it_ends_when_the_client_leaves() -> None:
    """Its connection may stay: the client's next session there has nothing to do with what is left."""
    queue = Queue()
    waiting, client, _ = held(queue, frames(5))
    more = waiting.let_go(client)
    assert more is not None
    client.state = State.DISCONNECTING
    queue.read()
    await asyncio.wait_for(more, 5)
    assert len(queue.taken) == 2


async def test_rule_2_it_ends_with_the_connection() -> None:
    for over in (False, True):
        queue = Queue()
        waiting, client, _ = held(queue, frames(5))
        if over:
            queue.socket = Gone()
        more = waiting.let_go(client)
        assert more is not None
        queue.socket = Gone()
        await asyncio.wait_for(more, 5)
        assert len(queue.taken) == 2


async def test_rule_2_what_was_missed_is_taken_no_earlier_and_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "It is taken from its source no earlier, and in slices" """
    monkeypatch.setattr(held_queue, "_TURN", 0.0)
    queue, missed = Queue(), frames(3)
    taken: list[Frame | None] = []

    def source() -> Iterator[Frame | None]:
        for frame in (None, missed[0], None, *missed[1:]):
            taken.append(frame)
            yield frame

    waiting, client, _ = held(queue, source())
    (new,) = frames(1)
    waiting.offer(new)
    assert taken == []
    more = waiting.let_go(client)
    assert taken == [None]
    assert more is not None
    going = asyncio.ensure_future(more)
    await asyncio.sleep(0)
    assert (taken, queue.taken) == ([None, missed[0], None], missed[:1])
    while not going.done():
        await asyncio.sleep(0)
        queue.read()
    assert queue.taken == [*missed, new]
    assert client.queue is queue


async def test_rule_2_of_all_who_wait_one_takes_its_turn_each_time_the_loop_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_queue, "_TURN", 0.0)
    taken: list[int] = []

    def source(number: int) -> Iterator[Frame | None]:
        for _ in range(5):
            taken.append(number)
            yield None

    turn, going = asyncio.Lock(), list[asyncio.Future[None]]()
    for number in range(10):
        waiting, client, _ = held(Queue(), source(number), turn)
        more = waiting.let_go(client)
        assert more is not None
        going.append(asyncio.ensure_future(more))
    assert taken == list(range(10)), "the first slice at once"
    while not all(one.done() for one in going):
        before = len(taken)
        await asyncio.sleep(0)
        assert len(taken) <= before + 1
    assert sorted(taken) == sorted([*range(10)] * 5)


async def test_rule_2_a_client_is_lost_of_which_not_all_is_held_any_more() -> None:
    queue, (first,) = Queue(), frames(1)

    def source() -> Iterator[Frame | None]:
        yield first
        raise ReplayUnavailable("It is gone.", reason="trimmed")

    waiting, client, lost = held(queue, source())
    waiting.offer(frames(1)[0])
    assert waiting.let_go(client) is None
    assert queue.taken == [first], "nothing that is newer than what it does not get"
    assert lost == ["lost"]


async def test_rule_3_what_is_new_is_bounded() -> None:
    for size, allowed in ((1, 4), (300, 3)):
        queue = Queue()
        waiting, _, cut = held(queue, frames(9))
        assert [waiting.offer(frame) for frame in frames(allowed + 1, size)] == [True] * allowed + [False]
        assert cut == [queue]
