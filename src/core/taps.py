"""The websocket that engine.io's writer sends to, watched: it proves that a connection may be written to directly.

1. A connection is proven once every packet that was taken from its queue since it is a websocket, at least one, has
   been sent by `send` exactly as the packet encodes itself, and no `send` is under way.
2. What does not fit ends the proof for ever: a newer engine.io that changes what it sends keeps to the queue.
3. A `send` that someone has put something else in the place of (python-socketio's Admin UI counts bytes there) is
   not gone past.
4. `send` waits while the transport is full, also where the server's own does not, so that a slow client costs no more
   than its bound.
"""

import asyncio
from collections import deque
from typing import Any

from roomcast.core.frames import EioPacket
from roomcast.core.writers import Writer

_PAUSE = 0.02  # seconds between two looks at a transport that its server does not wait for


class Tap:
    """A websocket of engine.io's, with its driver's own face.

    Args:
        websocket: of engine.io's driver.
        socket: the engine.io socket.

    Attributes:
        writer: of the connection, once it is proven and known.
        sends: how many sends have ended.
    """

    def __init__(self, websocket: Any, socket: Any) -> None:
        self._websocket = websocket
        self._socket = socket
        self._sending = 0
        self._expected: deque[Any] | None = deque()
        self._matched = False
        self._foreign = False
        self.writer: Writer | None = None
        self.sends = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._websocket, name)

    async def send(self, message: str | bytes) -> None:
        """Send as the driver does."""
        if self._expected is not None:
            self._compare(message)
        self._sending += 1
        try:
            if self.writer is not None and not self.writer.paced:
                while self.writer.full():  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(_PAUSE)
            await self._websocket.send(message)
        finally:
            self._sending -= 1
            self.sends += 1

    def expect(self, packet: EioPacket | None) -> None:
        """A packet was taken from the queue."""
        if self._expected is not None and packet is not None and self._socket.upgraded:
            self._expected.append(packet)

    def proven(self) -> bool:
        """Whether the queue may be written directly now (rules 1 to 3)."""
        socket = self._socket
        if self._sending or self._foreign or "send" in self.__dict__ or socket.upgrading or not socket.upgraded:
            return False
        if self._expected is None:
            return True
        if self._matched and not self._expected:
            self._expected = None  # proven for good
            return True
        return False

    def _compare(self, message: str | bytes) -> None:
        if not self._expected:
            self._foreign = self._foreign or self._socket.upgraded
        elif self._expected[0].encode() == message:
            self._expected.popleft()
            self._matched = True
        else:
            self._foreign = True
