"""What arrives on a link to NATS, handed on in the same call in which it is read from the socket.

1. Everything comes in the order in which the server sent it: messages to `message`, other lines to `line`.
2. What is no part of the protocol ends the link, and so does what a handler raises.
3. The pieces of a message wait until it is whole, and are put together once: a large one comes in many.

A stream, a task that reads it a turn of the loop later, regular expressions and a coroutine for each message, which is
the library's way, cost several times as much, and the turn is part of every event's latency.
"""

import asyncio
from collections.abc import Callable

_END = b"\r\n"
_WORDS = 4
"""Of a message's first line: verb, subject, subscription, size; one more for where to reply, and for headers' size."""
_LINE = 1 << 20
"""Bytes of a line, at most; the longest that a server sends names all servers of its cluster."""

Message = Callable[[bytes, bytes, bytes, bytes, bytes], None]
"""Called with subscription, subject, payload, where to reply and headers, the last two empty where there are none."""


class Inlet(asyncio.Protocol):
    """Stands before the protocol of the library's stream, which goes on to know when the socket is full.

    Args:
        stream: the protocol that had the transport.
        message: takes a message (rule 1).
        line: takes any other line, without its end.
        lose: is called with what ends the link; more than once, perhaps.
        gone: is called when the connection is.
    """

    def __init__(
        self,
        stream: asyncio.Protocol,
        *,
        message: Message,
        line: Callable[[bytes], None],
        lose: Callable[[Exception], None],
        gone: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._message = message
        self._line = line
        self._lose = lose
        self._gone = gone
        self._pieces: list[bytes] = []  # the beginning of something
        self._lacking = 0  # bytes before it is worth looking at again

    def data_received(self, data: bytes) -> None:
        """Hand on what there is (rules 1 to 3)."""
        if self._pieces:
            self._pieces.append(data)
            self._lacking -= len(data)
            if self._lacking > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            at = self._read(data)
        except Exception as exc:  # noqa: BLE001 - whatever keeps from reading ends the link, and says so
            self._lose(exc)
            return
        if at < len(data):
            self._pieces.append(data[at:])

    def _read(self, data: bytes) -> int:
        """Hand on what is whole; where it ends."""
        at = 0
        message = self._message
        while (line := data.find(_END, at)) >= 0:
            plain = data.startswith(b"MSG ", at)
            if not plain and not data.startswith(b"HMSG ", at):
                self._line(data[at:line])
                at = line + 2
                continue
            words = data[at:line].split()
            replies = len(words) - (_WORDS if plain else _WORDS + 1)
            begin = line + 2
            body = begin if plain else begin + int(words[-2])
            end = begin + int(words[-1])
            if replies not in (0, 1) or not begin <= body <= end:
                raise ConnectionError("NATS sent a message that cannot be read.")
            if len(data) < end + 2:
                self._lacking = end + 2 - len(data)
                return at
            at = end + 2
            message(words[2], words[1], data[body:end], words[3] if replies else b"", data[begin:body])
        if len(data) - at > _LINE:
            raise ConnectionError("NATS sent a line without an end.")
        self._lacking = 1
        return at

    def eof_received(self) -> bool | None:
        """The server says no more."""
        self._lose(ConnectionError("The connection was closed"))
        return self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes any more."""
        self._lose(exc or ConnectionError("The connection was closed"))
        self._gone()
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        """The stream's."""
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        """The stream's."""
        self._stream.resume_writing()
