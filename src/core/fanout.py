"""From one packet to many clients: shared Engine.IO packets, put straight into each client's queue.

1. A packet is wrapped once, whatever the number of recipients; there is no task per recipient, and no suspension
   between the parts of one packet or between recipients.
2. A client whose queue holds more than `limit` packets is disconnected, counted and logged: a slow reader cannot
   grow a node without limit.
3. A client that is closing gets nothing.
4. A volatile packet is dropped, and counted, for a client for whom others wait.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, cast

from engineio import packet as eio_packet

from roomcast.core.packets import Parts
from roomcast.core.rooms import Client, State
from roomcast.core.stats import Stats

logger = logging.getLogger("roomcast")


class _Binary(eio_packet.Packet):  # type: ignore[misc]  # engineio has no annotations
    """A binary packet that polling and websocket clients may share: engineio's own caches one of the two forms."""

    def __init__(self, data: bytes) -> None:
        super().__init__(eio_packet.MESSAGE, data)  # pyright: ignore[reportUnknownMemberType]  # likewise
        self._blob = data
        self._text: str | None = None

    def encode(self, b64: bool = False) -> str | bytes:
        """The bytes themselves for a websocket, base64 text for polling."""
        if not b64:
            return self._blob
        if self._text is None:
            self.encode_cache = None
            self._text = cast("str", super().encode(b64=True))
        return self._text


class FanOut:
    """Hands packets to the clients of one python-socketio server.

    Args:
        server: the `socketio.AsyncServer`.
        limit: packets that may wait for one client (rule 2).
        stats: where to count.
    """

    def __init__(self, server: Any, limit: int, stats: Stats) -> None:
        self._server = server
        self._limit = limit
        self._stats = stats
        self._closing: dict[str, asyncio.Task[None]] = {}

    def ready(self, clients: Iterable[Client], *, volatile: bool) -> list[Client]:
        """Those of the clients who can be given a packet now (rules 3 and 4), and can answer it."""
        sockets = self._server.eio.sockets
        ready: list[Client] = []
        for client in clients:
            socket = sockets.get(client.eio_sid)
            if client.state is State.DISCONNECTING or socket is None or socket.closed or socket.closing:
                continue
            if volatile and not socket.queue.empty():
                self._stats.volatile_dropped += 1
                continue
            ready.append(client)
        return ready

    def send(self, clients: Iterable[Client], parts: Parts, *, volatile: bool = False) -> None:
        """Put a packet into the queue of each client (rules 1 to 4)."""
        packets: tuple[Any, ...] = ()
        sockets = self._server.eio.sockets
        count = 0
        for client in clients:
            socket = sockets.get(client.eio_sid)
            if socket is None or socket.closed or socket.closing:
                continue
            queue = socket.queue
            if self._closing and client.eio_sid in self._closing:
                continue
            if volatile and not queue.empty():
                self._stats.volatile_dropped += 1
                continue
            if queue.qsize() >= self._limit:
                self._cut(client, socket)
                continue
            packets = packets or tuple(_wrap(part) for part in parts)
            for packet in packets:
                queue.put_nowait(packet)
            count += 1
        self._stats.deliveries += count

    def reachable(self, client: Client) -> bool:
        """Whether a client's connection is still there."""
        socket = self._server.eio.sockets.get(client.eio_sid)
        return socket is not None and socket.closed is not True

    def _cut(self, client: Client, socket: Any) -> None:
        self._stats.clients_cut += 1
        logger.warning(
            "roomcast: client %s reads too slowly, %d packets wait for it: disconnected",
            client.sid,
            self._limit,
        )
        queue = socket.queue
        while not queue.empty():
            queue.get_nowait()
            queue.task_done()
        queue.put_nowait(None)  # ends the writer, which closes the connection
        task = asyncio.ensure_future(_close(self._server, socket))
        self._closing[client.eio_sid] = task
        task.add_done_callback(lambda _: self._closing.pop(client.eio_sid, None))


async def _close(server: Any, socket: Any) -> None:
    await socket.close(wait=False, abort=True, reason=server.reason.TRANSPORT_ERROR)


def _wrap(part: str | bytes) -> Any:
    return eio_packet.Packet(eio_packet.MESSAGE, part) if isinstance(part, str) else _Binary(part)
