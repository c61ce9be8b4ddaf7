"""What the broker does not take of a client's session: nobody is given what was known before it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from roomcast.brokers.log_broker import failed
from roomcast.brokers.memory_log import MemoryLogLink
from roomcast.core.broker import Gap, Subject
from roomcast.core.errors import PublishRejected
from roomcast.core.messages import Part, encode_message
from tests.adapter.homes import LONG, Home, emit, events, free, kill
from tests.adapter.servers import Node
from tests.waiting import until


class Refusing:
    """A broker that takes nothing on the subject of the sessions while `on`; `only` from one link, if there is any.

    With `each` it takes every third message, with `about` all that does not contain this.
    """

    def __init__(self) -> None:
        self.on = self.each = False
        self.about = b""
        self.only: MemoryLogLink | None = None
        self.refused = 0

    def append(self, link: MemoryLogLink, stream: int, subject: Subject, payload: bytes, once: Any) -> Any:
        meant = subject.endswith(".sessions") and self.about in payload
        if not self.on or not meant or self.only not in (None, link):
            return _append(link, stream, subject, payload, once)
        self.refused += 1
        if self.each and self.refused % 3 == 0:
            return _append(link, stream, subject, payload, once)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        failed(future, PublishRejected("The server is out of memory.", broker="memory+log"))
        return future

    async def again(self, count: int = 2) -> None:
        """Return once it has refused so many more."""
        already = self.refused
        await until(lambda: self.refused >= already + count, what="the refusals")


_append: Any = MemoryLogLink.append


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    """A broker that can refuse."""
    refusing = Refusing()

    def append(link: MemoryLogLink, *args: Any) -> Any:
        return refusing.append(link, *args)

    monkeypatch.setattr(MemoryLogLink, "append", append)
    yield refusing
    assert refusing.refused, "the fault has happened"


async def described(node: Node, pid: str, room: str) -> None:
    """Return once a node knows that a client is in a room."""
    table = node.inside._recoveries.reader.table
    await until(
        lambda: any(stay.room == room and stay.left is None for stay in table.get(pid).keep.stays),
        what="the description",
    )


def say_nothing(_session: Any) -> None:
    """In place of an answer to who asks for a session."""


async def test_a_description_that_was_refused_is_said_again_as_soon_as_the_broker_takes_it(
    home: Home, refusing: Refusing
) -> None:
    """Then the node may be killed: what comes back is what was."""
    one, two = await home.nodes()
    clients = [await home.client(one) for _ in range(3)]
    refusing.on = True
    for client in clients:
        await one.sio.enter_room(client.sid, "late")
        await one.sio.leave_room(client.sid, "red")
    await refusing.again(3 + 2)
    refusing.on = False
    for client in clients:
        await described(two, client.pid, "late")
    kill(one)
    await emit(two, [1], to="late")
    await emit(two, [99], to="red")
    for client in clients:
        await client.drop()
        await client.connect(two)
        assert client.recovered
    assert await home.end(two, *clients) == [events([1])] * 3


async def test_who_is_lost_while_nothing_is_taken_comes_back_with_all_of_its_session(
    home: Home, refusing: Refusing
) -> None:
    """Its end waits behind what was to be said of it before."""
    one, two = await home.nodes()
    client = await home.client(one)
    refusing.on = True
    await one.sio.enter_room(client.sid, "late")
    await refusing.again()
    await client.drop()
    await refusing.again()
    await emit(two, [1], to="late")
    refusing.on = False
    await client.connect(two)
    assert client.recovered
    assert await home.end(one, client) == [events([1])]


async def test_who_comes_back_while_nothing_is_taken_is_answered_once_it_is(home: Home, refusing: Refusing) -> None:
    """What is asked for it is refused as well: for its session, and that a silent node shall not have it any more."""
    one, two = await home.nodes(patience=LONG / 9)
    client = await home.client(one)
    kill(one)
    await home.away(two, client, 1)
    refusing.on = refusing.each = True
    await client.ask(two)
    await client.answered()
    assert client.recovered
    assert await home.end(two, client) == [events([1])]


async def test_who_was_disconnected_while_nothing_was_taken_does_not_come_back(home: Home, refusing: Refusing) -> None:
    """Not even when its node is killed later."""
    one, two = await home.nodes()
    client = await home.client(one)
    refusing.on = True
    await one.sio.disconnect(client.sid)
    await refusing.again()
    refusing.on = False
    await until(lambda: two.inside._recoveries.reader.table.get(client.pid) is None, what="the end to be known")
    kill(one)
    await client.connect(two)
    assert not client.recovered


@pytest.mark.parametrize("changes", [False, True])
async def test_who_was_sent_away_while_that_was_not_taken_does_not_stay(
    home: Home, refusing: Refusing, changes: bool
) -> None:
    """It comes back in time to the node that has said so in vain. That describes its session, which is refused as well
    when it `changes`."""
    one, two = await home.nodes(skip_connect_handler=True)
    client = await home.client(one)
    await home.away(one, client, 1)
    await until(lambda: free(one) == 1, what="the session to be free")
    refusing.on, refusing.about = True, encode_message(Part(client.pid, 0, over=True, sent_away=True))
    await one.sio.disconnect(client.sid)
    await refusing.again(1)
    await client.connect(one)
    assert client.recovered, "nobody else can know"
    waiting = one.inside._recoveries.serving._unsaid._all
    if changes:
        refusing.about = b""
        await one.sio.enter_room(client.sid, "late")
        await until(lambda: len(waiting.get(client.pid, ())) == 2, what="the description to be refused")
    await refusing.again()
    refusing.on = False
    async with asyncio.timeout(LONG):
        await client.over.wait()
    await client.connect(two)
    assert not client.recovered


async def test_who_was_given_back_what_was_known_before_is_cut_when_there_was_more(
    home: Home, refusing: Refusing
) -> None:
    """Another node has taken it before it could be said."""
    one, two = await home.nodes()
    client = await home.client(one)
    refusing.on, refusing.only = True, one.inside._node._broker._life.link
    await one.sio.enter_room(client.sid, "late")
    await refusing.again()
    await client.walk_out()
    await client.connect(two)
    assert client.recovered, "nobody can know"
    await refusing.again()
    refusing.on = False
    async with asyncio.timeout(LONG):
        await client.over.wait()
    await client.connect(two)
    assert not client.recovered


async def test_who_was_given_back_what_was_known_before_a_change_was_told_is_cut(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other node has taken it within the time in which several changes are told at once."""
    monkeypatch.setattr("roomcast.core.serving._SETTLE", 60.0)
    one, two = await home.nodes()
    client = await home.client(one)
    serving = one.inside._recoveries.serving
    monkeypatch.setattr(serving, "asked", say_nothing)
    await one.sio.enter_room(client.sid, "late")
    await client.walk_out()
    await client.ask(two)
    async with asyncio.timeout(LONG):
        await client.over.wait()
    await client.connect(two)
    assert not client.recovered


async def test_after_an_outage_that_the_outbox_did_not_outlast_all_sessions_are_described_anew(
    home: Home, refusing: Refusing
) -> None:
    """What was changed meanwhile was given up."""
    one, two = await home.nodes()
    clients = [await home.client(one) for _ in range(3)]
    gaps: list[Gap] = []
    one.inside.on_gap(gaps.append)
    node = one.inside._node
    refusing.on = True
    node._on_gap(Gap("disconnected", ongoing=True))
    for client in clients:
        await one.sio.enter_room(client.sid, "late")
    await until(lambda: node.publisher.backlog >= 3, what="them to wait")
    node.publisher._give_up(node.publisher._outbox.clear(), "the outage outlasted outbox_age")
    await until(lambda: len(one.inside._recoveries.serving._unsaid) == 3, what="them to be given up")
    node._on_gap(Gap("reconnected", missed=0))
    await refusing.again()
    refusing.on = False
    for client in clients:
        await described(two, client.pid, "late")
    assert gaps
