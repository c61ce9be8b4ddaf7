"""Whether a connection is still there, with an engine.io socket that sends what its client answers."""

import asyncio
from typing import Any, cast

from engineio import packet as eio_packet

from roomcast.core.probe import Probe

Packet = cast("Any", eio_packet.Packet)


class Server:
    """An engine.io server with one connection.

    Attributes:
        received: the packets that the connection was given to handle.
        answers: what comes in after each ping.
    """

    def __init__(self, *answers: int) -> None:
        self.sockets = {"eio": self}
        self.closed = self.closing = False
        self.received: list[int] = []
        self.answers = answers

    async def send(self, _packet: Any) -> None:
        for answer in self.answers:
            await self.receive(Packet(answer))

    async def receive(self, packet: Any) -> None:
        self.received.append(packet.packet_type)


async def test_the_pong_is_an_answer_and_is_not_taken_for_one_to_another_ping() -> None:
    server = Server(eio_packet.PONG)
    probe = Probe(server, 5.0)
    for _ in range(3):
        assert all(await asyncio.gather(probe.answers("eio"), probe.answers("eio")))
    assert server.received == []
    await server.receive(Packet(eio_packet.PONG))
    assert server.received == [eio_packet.PONG], "to a ping of engine.io's own"


async def test_anything_is_an_answer_and_its_pong_may_come_later() -> None:
    server = Server(eio_packet.MESSAGE)
    probe = Probe(server, 5.0)
    assert await probe.answers("eio")
    assert await probe.answers("eio")
    for _ in range(3):
        await server.receive(Packet(eio_packet.PONG))
    assert server.received == [eio_packet.MESSAGE, eio_packet.MESSAGE, eio_packet.PONG]


async def test_who_says_nothing_is_not_there() -> None:
    server = Server()
    probe = Probe(server, 0.01)
    assert not await probe.answers("eio")
    server.closing = True
    assert not await probe.answers("eio")
    assert not await probe.answers("another")
