"""A model of a Redis server: what the broker's two connections need of it, over any transport.

1. Commands of one connection are carried out in order, and answered in order. What a piece of input holds is carried
   out at once; all that it makes to be said, to anybody, is written afterwards, as Redis does before it sleeps.
2. A published message goes to those who hear its channel at that moment; the reply says how many they are.
3. A connection whose output waits for longer than the limit of bytes is closed (`client-output-buffer-limit`).

`test_servers_alike.py` puts the same bytes to it and to a real one.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

from tests.simulation.talking import Talking

_HEARING = (b"subscribe", b"unsubscribe", b"ssubscribe", b"sunsubscribe", b"ping", b"quit")
_ALLOWED = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context"
_ARITY = {
    b"ping": (1, 2),
    b"echo": (2, 2),
    b"select": (2, 2),
    b"publish": (3, 3),
    b"spublish": (3, 3),
    b"subscribe": (2, 0),
    b"ssubscribe": (2, 0),
    b"unsubscribe": (1, 0),
    b"sunsubscribe": (1, 0),
    b"client": (2, 0),
    b"quit": (1, 0),
}
"""Words of each command, at least and (0: without a limit) at most."""


class RedisModel(Talking):
    """The server.

    Args:
        limit: bytes of output that may wait for one connection.

    Attributes:
        heard: who hears each channel, of publish/subscribe and of its sharded form.
        cut: how many connections were closed because they read too slowly.
    """

    def __init__(self, *, limit: int = 8 * 1024 * 1024) -> None:
        super().__init__()
        self.limit = limit
        self.cut = 0
        self.heard: dict[bytes, dict[bytes, dict[RedisConnection, None]]] = {b"": {}, b"s": {}}

    def accept(self) -> "RedisConnection":
        return RedisConnection(self)

    def publish(self, form: bytes, channel: bytes, payload: bytes) -> int:
        """Rule 2."""
        receivers = self.heard[form].get(channel, {})
        for receiver in receivers:
            receiver.say(array(bulk(form + b"message"), bulk(channel), bulk(payload)))
        return len(receivers)

    def inject(self, channel: bytes, payload: bytes) -> None:
        """Somebody publishes."""
        self.publish(b"", channel, payload)
        self.flush()


class RedisConnection(asyncio.Protocol):
    """What the server knows of one client."""

    def __init__(self, server: RedisModel) -> None:
        self._server = server
        self._transport: Any = None
        self._input = bytearray()
        self._output: list[bytes] = []
        self._channels: dict[bytes, dict[bytes, None]] = {b"": {}, b"s": {}}
        self._over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._over = True
        for form, channels in self._channels.items():
            for channel in channels:
                self._leave(form, channel)
            channels.clear()

    def data_received(self, data: bytes) -> None:
        self._input += data
        try:
            for words in self._commands():
                self._carry_out(words)
        except _Broken as exc:
            self.say(b"-ERR Protocol error: %b\r\n" % str(exc).encode())
            self._over = True
        self._server.flush()
        if self._over:
            self._transport.close()

    def say(self, raw: bytes) -> None:
        self._output.append(raw)
        self._server.talks(self)

    def flush(self) -> None:
        output, self._output = self._output, []
        self._transport.write(b"".join(output))
        if self._transport.get_write_buffer_size() > self._server.limit:
            self._server.cut += 1
            self._transport.abort()

    def _commands(self) -> Iterator[list[bytes]]:
        """The commands that are complete."""
        while not self._over and (found := _command(self._input)) is not None:
            words, size = found
            del self._input[:size]
            if words:
                yield words

    def _carry_out(self, words: list[bytes]) -> None:
        verb, *rest = words
        name = verb.lower()
        least, most = _ARITY.get(name, (0, 0))
        if not least:
            told = "".join(f"'{word.decode()}' " for word in rest)
            self._refuse(f"unknown command '{verb.decode()}', with args beginning with: {told}")
        elif len(words) < least or (most and len(words) > most):
            self._refuse(f"wrong number of arguments for '{name.decode()}' command")
        elif any(self._channels.values()) and name not in _HEARING:
            self._refuse(f"Can't execute '{name.decode()}': {_ALLOWED}")
        elif name.endswith(b"subscribe"):
            self._move(name, rest)
        else:
            self._answer(name, rest)

    def _answer(self, name: bytes, rest: list[bytes]) -> None:
        match name:
            case b"ping" if any(self._channels.values()):
                self.say(array(bulk(b"pong"), bulk(b"".join(rest))))
            case b"ping" | b"echo":
                self.say(bulk(rest[0]) if rest else b"+PONG\r\n")
            case b"publish" | b"spublish":
                self.say(b":%d\r\n" % self._server.publish(name[: name.index(b"p")], *rest))
            case b"client" if rest[0].lower() != b"setname":
                told = rest[0].decode()
                self._refuse(f"unknown subcommand '{told}'. Try CLIENT HELP.")
            case b"quit":
                self.say(b"+OK\r\n")
                self._over = True
            case _:
                self.say(b"+OK\r\n")

    def _refuse(self, why: str) -> None:
        self.say(f"-ERR {why}\r\n".encode())

    def _move(self, name: bytes, channels: list[bytes]) -> None:
        form = b"s" if name.startswith((b"ss", b"sun")) else b""
        mine = self._channels[form]
        hears = not name.removeprefix(form).startswith(b"un")
        if not hears and not channels:
            channels = list(mine)
            if not channels:
                self.say(array(bulk(name), b"$-1\r\n", b":%d\r\n" % len(mine)))
        for channel in channels:
            if hears:
                mine[channel] = None
                self._server.heard[form].setdefault(channel, {})[self] = None
            elif channel in mine:
                del mine[channel]
                self._leave(form, channel)
            self.say(array(bulk(name), bulk(channel), b":%d\r\n" % len(mine)))

    def _leave(self, form: bytes, channel: bytes) -> None:
        heard = self._server.heard[form]
        hearers = heard[channel]
        del hearers[self]
        if not hearers:
            del heard[channel]


class _Broken(Exception):
    """What came is not the protocol."""


def _command(raw: bytearray) -> tuple[list[bytes], int] | None:
    """The first command in what has come, and its length; None when it is not complete."""
    if (line := _line(raw, 0)) is None:
        return None
    head, at = line
    if not head.startswith(b"*"):
        return head.split(), at
    words: list[bytes] = []
    for _ in range(_number(head, "invalid multibulk length")):
        if (line := _line(raw, at)) is None:
            return None
        head, at = line
        if not head.startswith(b"$"):
            raise _Broken(f"expected '$', got '{head[:1].decode()}'")
        end = at + _number(head, "invalid bulk length")
        if len(raw) < end + 2:
            return None
        words.append(bytes(raw[at:end]))
        at = end + 2
    return words, at


def _line(raw: bytearray, at: int) -> tuple[bytes, int] | None:
    end = raw.find(b"\r\n", at)
    return None if end < 0 else (bytes(raw[at:end]), end + 2)


def _number(head: bytes, otherwise: str) -> int:
    try:
        return int(head[1:])
    except ValueError:
        raise _Broken(otherwise) from None


def bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)
