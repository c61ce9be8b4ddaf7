"""The writing half of a link to NATS, against a model of the server's side of the connection."""

import asyncio
import re
from collections.abc import Set as AbstractSet
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.brokers.nats_outflow import Outflow, Publishing
from roomcast.core.broker import Subject
from roomcast.core.errors import BrokerUnavailable, PublishRejected, PublishUnconfirmed

ECHO = Subject("app.echo.me")
_PUB = re.compile(rb"PUB (\S+) (\d+)\r\n")


class Socket:
    """The connection, as far as it is used, and the server behind it."""

    def __init__(self) -> None:
        self.closing = False
        self.clogged = False
        self.sent: list[tuple[str, bytes]] = []  # what the server will handle
        self.writes = 0
        self.free = asyncio.Event()

    def send(self, commands: bytes) -> None:
        self.writes += 1
        at = 0
        while at < len(commands):
            head = _PUB.match(commands, at)
            assert head is not None
            end = head.end() + int(head[2])
            assert commands[end : end + 2] == b"\r\n"
            self.sent.append((head[1].decode(), commands[head.end() : end]))
            at = end + 2

    async def drained(self) -> None:
        if self.clogged:
            await self.free.wait()
            self.free.clear()
            self.clogged = False

    def handle(self, outflow: Outflow, *, deny: str | None = None, denied: set[Subject]) -> list[bytes]:
        """Handle all that was sent: the server refuses one subject, and sends the markers back; what it took."""
        sent, self.sent = self.sent, []
        taken: list[bytes] = []
        for subject, payload in sent:
            if subject == deny:
                denied.add(Subject(subject))
            elif subject == ECHO:
                assert outflow.confirm(payload, None)
            else:
                taken.append(payload)
        return taken


def outflow_to(socket: Socket, denied: set[Subject]) -> tuple[Outflow, list[Exception]]:
    lost: list[Exception] = []
    numbers = iter(range(10**6))
    connection: Any = socket
    return Outflow(connection, ECHO, lambda: b"%d" % next(numbers), denied, lost.append), lost


class World:
    """An outflow, its socket, and what became of everything that was published."""

    def __init__(self) -> None:
        self.socket, self.denied = Socket(), set[Subject]()
        self.outflow, self.lost = outflow_to(self.socket, self.denied)
        self.published: list[tuple[bytes, Publishing]] = []
        self.taken: list[bytes] = []
        self.refused: set[bytes] = set()

    async def publish(self) -> None:
        payload = b"%d" % len(self.published)
        self.published.append((payload, self.outflow.publish(Subject("app.room"), payload)))

    async def turn(self) -> None:
        await asyncio.sleep(0)

    async def clog(self) -> None:
        self.socket.clogged = True

    async def free(self) -> None:
        self.socket.clogged = False
        self.socket.free.set()
        for _ in range(3):
            await asyncio.sleep(0)

    async def handle(self) -> None:
        self.taken += self.socket.handle(self.outflow, denied=self.denied)

    async def deny(self) -> None:
        """The server handles what it has, and refuses all of it; a marker must be there to say so."""
        sent = self.socket.sent
        if sent and sent[-1][0] == ECHO:
            self.refused.update(payload for subject, payload in sent if subject != ECHO)
            self.socket.handle(self.outflow, deny="app.room", denied=self.denied)

    def check(self) -> None:
        for payload, future in self.published:
            assert not future.done() or payload in self.taken or payload in self.refused


STEPS = st.lists(st.sampled_from(["publish", "publish", "turn", "handle", "deny", "clog", "free"]), max_size=60)


@given(STEPS, st.booleans())
async def test_publishes_leave_in_order_and_resolve_behind_their_marker(steps: list[str], gone: bool) -> None:
    """Rules 1 to 4, whatever the turns of the loop, the server and the socket do."""
    world = World()
    writer = asyncio.create_task(world.outflow.keep_writing())
    for step in steps:
        await getattr(world, step)()
        world.check()
    if gone:
        left = dict(world.published)
        written = {payload for _, payload in world.socket.sent} | set(world.taken) | world.refused
        world.outflow.fail(lambda: BrokerUnavailable("gone", broker="nats"), ConnectionResetError())
        await outcomes(world, unsent=left.keys() - written)
    else:
        for _ in range(3):
            await world.free()
            await world.handle()
        assert world.taken == [payload for payload, _ in world.published if payload not in world.refused]
        await outcomes(world, unsent=set())
        assert not world.outflow.waiting()
    assert not world.lost
    writer.cancel()


async def outcomes(world: World, unsent: AbstractSet[bytes]) -> None:
    """Each publish has ended by what is certain about it."""
    for payload, future in world.published:
        (outcome,) = await asyncio.gather(future, return_exceptions=True)
        if payload in unsent:
            assert isinstance(outcome, BrokerUnavailable)
        elif payload in world.refused:
            assert isinstance(outcome, PublishRejected | PublishUnconfirmed)
        elif payload in world.taken:
            assert outcome is None or isinstance(outcome, PublishUnconfirmed)
        else:
            assert isinstance(outcome, PublishUnconfirmed)


async def test_the_publishes_of_a_turn_are_two_writes_and_two_markers() -> None:
    """Rules 1 and 3."""
    socket, denied = Socket(), set[Subject]()
    outflow, _ = outflow_to(socket, denied)
    futures = [outflow.publish(Subject("app.room"), b"%d" % number) for number in range(1000)]
    assert [payload for _, payload in socket.sent] == [b"0", b"0"]  # the first one, and its marker
    await asyncio.sleep(0)
    assert socket.writes == 2
    assert [subject for subject, _ in socket.sent].count(ECHO) == 2
    assert len(socket.handle(outflow, denied=denied)) == 1000
    assert await asyncio.gather(*futures) == [None] * 1000
    futures = [outflow.publish(Subject("app.room"), b"again") for _ in range(1000)]
    assert not socket.sent
    await asyncio.sleep(0)
    assert socket.writes == 3
    assert [subject for subject, _ in socket.sent].count(ECHO) == 1
    socket.handle(outflow, denied=denied)
    outflow.publish(Subject("app.room"), b"one")
    await asyncio.sleep(0)
    outflow.publish(Subject("app.room"), b"at once again")
    assert [payload for subject, payload in socket.sent if subject != ECHO] == [b"one", b"at once again"]


async def test_nothing_is_written_to_a_socket_that_is_full() -> None:
    """Rule 2."""
    socket, denied = Socket(), set[Subject]()
    outflow, _ = outflow_to(socket, denied)
    writer = asyncio.create_task(outflow.keep_writing())
    await asyncio.sleep(0)
    socket.clogged = True
    future = outflow.publish(Subject("app.room"), b"late")
    for _ in range(3):
        await asyncio.sleep(0)
    assert not socket.sent
    socket.free.set()
    for _ in range(3):
        await asyncio.sleep(0)
    assert socket.handle(outflow, denied=denied) == [b"late"]
    assert await future is None
    writer.cancel()


async def test_what_cannot_be_written_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    socket, denied = Socket(), set[Subject]()
    outflow, lost = outflow_to(socket, denied)

    def send(_commands: bytes) -> None:
        raise RuntimeError("the transport is closed")

    monkeypatch.setattr(socket, "send", send)
    future = outflow.publish(Subject("app.room"), b"x")
    assert [str(reason) for reason in lost] == ["the transport is closed"]
    outflow.fail(lambda: BrokerUnavailable("gone", broker="nats"), lost[0])
    assert isinstance(future.exception(), PublishUnconfirmed)
    assert isinstance(outflow.publish(Subject("app.room"), b"y").exception(), BrokerUnavailable)


async def test_nothing_counts_as_written_to_a_connection_that_is_closed() -> None:
    """Rule 4: a write finds out that the connection is gone before a read does; what comes then is certainly unsent."""
    socket, denied = Socket(), set[Subject]()
    outflow, lost = outflow_to(socket, denied)
    written, second, third = (outflow.publish(Subject("app.room"), payload) for payload in (b"1", b"2", b"3"))
    socket.closing = True
    await asyncio.sleep(0)
    assert [type(reason) for reason in lost] == [ConnectionResetError]
    outflow.fail(lambda: BrokerUnavailable("gone", broker="nats"), lost[0])
    outcomes = await asyncio.gather(written, second, third, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PublishUnconfirmed, BrokerUnavailable, BrokerUnavailable]
    assert [payload for subject, payload in socket.sent if subject != ECHO] == [b"1"]


async def test_a_foreign_marker_confirms_nothing() -> None:
    socket, denied = Socket(), set[Subject]()
    outflow, _ = outflow_to(socket, denied)
    future = outflow.publish(Subject("app.room"), b"x")
    assert not outflow.confirm(b"999", None)
    assert not outflow.confirm(b"", None)
    assert not future.done()
    socket.handle(outflow, denied=denied)
    assert await future is None
