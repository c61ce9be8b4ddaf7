"""Whether a connection is still there: engine.io's own ping, and a wait for anything that comes back.

Several who ask about one connection at the same time share one answer. The pong to this ping is nobody else's business:
in python-engineio 4.13.0 and older each pong begins another round of pings, for ever.
"""

import asyncio
from typing import Any

from engineio import packet as eio_packet


class Probe:
    """Tests connections of one engine.io server.

    Args:
        eio: the server.
        seconds: how long a client may take to answer.
    """

    def __init__(self, eio: Any, seconds: float) -> None:
        self._eio = eio
        self._seconds = seconds
        self._tests: dict[str, asyncio.Task[bool]] = {}

    async def answers(self, eio_sid: str) -> bool:
        """Whether a client answers in time."""
        test = self._tests.get(eio_sid)
        if test is None:
            test = self._tests[eio_sid] = asyncio.ensure_future(self._test(eio_sid))
            test.add_done_callback(lambda _: self._tests.pop(eio_sid, None))
        return await asyncio.shield(test)

    async def _test(self, eio_sid: str) -> bool:
        socket = self._eio.sockets.get(eio_sid)
        if socket is None or socket.closed or socket.closing:
            return False
        heard = asyncio.Event()
        before = socket.__dict__.get("receive")  # of a test before, whose pong has not come
        receive = socket.receive

        async def watched(packet: Any) -> None:
            heard.set()
            if packet.packet_type != eio_packet.PONG:
                await receive(packet)
            elif before is None:
                del socket.receive
            else:
                socket.receive = before

        socket.receive = watched
        try:
            async with asyncio.timeout(self._seconds):
                await socket.send(eio_packet.Packet(eio_packet.PING))  # pyright: ignore[reportUnknownMemberType]
                await heard.wait()
        except TimeoutError:
            return False
        else:
            return not (socket.closed or socket.closing)
