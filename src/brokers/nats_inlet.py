"""What arrives on a link to NATS: messages are handed on as they are read from the socket, the rest is nats-py's.

The library's own way is a stream, a task that reads it a turn of the loop later, regular expressions and a coroutine
for each message. That costs several times as much, and the turn is part of every event's latency.

1. A message without headers at the head of what was read is taken here.
2. Everything else goes to the library, and so does what comes behind it, until the library has read all that it was
   given: nothing overtakes anything.
3. The pieces of a message wait until it is whole, and are put together once: a large one comes in many.
"""

import asyncio
from collections.abc import Callable

from roomcast.brokers.nats_client import NatsClient

_MESSAGE = b"MSG "
_END = b"\r\n"
_WORDS = (3, 4)
"""Of a message's first line: subject, subscription, perhaps where to reply, size (NATS protocol, MSG)."""


class Inlet(asyncio.Protocol):
    """Stands before the protocol of the library's stream.

    Args:
        client: connected.
        stream: the protocol that had the transport.
        take: is called with the subject and the payload of each message (rule 1).
        lose: is called with what ends the link.
    """

    def __init__(
        self,
        client: NatsClient,
        stream: asyncio.BaseProtocol,
        take: Callable[[str, bytes], None],
        lose: Callable[[Exception], None],
    ) -> None:
        self._client = client
        self._stream: asyncio.Protocol = stream  # type: ignore[assignment]  # what `open_connection` makes
        self._take = take
        self._lose = lose
        self._pieces: list[bytes] = []  # the beginning of a message
        self._lacking = 0  # bytes before it is worth looking at again

    def data_received(self, data: bytes) -> None:
        """Take what there is (rules 1 to 3)."""
        if self._pieces:
            self._pieces.append(data)
            self._lacking -= len(data)
            if self._lacking > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        if not self._client.all_read:
            self._stream.data_received(data)
            return
        try:
            at = self._messages(data)
        except Exception as exc:  # noqa: BLE001 - whatever keeps from reading ends the link, and says so
            self._lose(exc)
            return
        if at == len(data):
            return
        if _MESSAGE.startswith(data[at : at + len(_MESSAGE)]):
            self._pieces.append(data[at:])
        else:
            self._stream.data_received(data[at:])

    def _messages(self, data: bytes) -> int:
        """Take the whole messages at the head; where they end."""
        at = 0
        self._lacking = 1
        take = self._take
        while data.startswith(_MESSAGE, at):
            line = data.find(_END, at)
            if line < 0:
                break
            words = data[at + len(_MESSAGE) : line].split()
            if len(words) not in _WORDS:
                raise ConnectionError("NATS sent a message that cannot be read.")
            begin = line + len(_END)
            end = begin + int(words[-1])
            if len(data) < end + len(_END):
                self._lacking = end + len(_END) - len(data)
                break
            at = end + len(_END)
            take(words[0].decode(), data[begin:end])
        return at

    def eof_received(self) -> bool | None:
        """The stream's."""
        return self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The stream's."""
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        """The stream's."""
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        """The stream's."""
        self._stream.resume_writing()
