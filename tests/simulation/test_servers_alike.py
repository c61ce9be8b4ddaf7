"""The model servers say what real ones say: the same bytes to both, and what comes back is compared."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.services import NatsServer, SharedBrokers
from tests.simulation.nats_server import NatsModel
from tests.simulation.redis_server import RedisModel, array, bulk

Step = tuple[int, bytes]
"""What which client sends."""
Answered = Callable[[bytes, bytes], bool]
CLOSED = b"(closed)"


class Talk:
    """Some clients of one server, and all that it has said to each.

    Args:
        port: of the server.
        last: bytes whose answer shows that everything before them is answered.
        answered: whether this client has all the answers to what was sent, and to `last`.
    """

    def __init__(self, port: int, last: bytes, answered: "Answered") -> None:
        self._port = port
        self._last = last
        self._answered = answered
        self._streams: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def carry_out(self, steps: Sequence[Step]) -> list[dict[int, bytes]]:
        """What each client hears at each step."""
        heard: list[dict[int, bytes]] = []
        for client, raw in steps:
            if client not in self._streams:
                self._streams[client] = await asyncio.open_connection("127.0.0.1", self._port)
            writer = self._streams[client][1]
            for piece in re.findall(rb"(?s).{1,7}", raw):  # a server may not depend on how it comes
                writer.write(piece)
                await asyncio.sleep(0)
            order = [client, *(other for other in self._streams if other != client)]
            heard.append({one: await self._hear(one, raw if one == client else b"") for one in order})
        return heard

    async def _hear(self, client: int, sent: bytes) -> bytes:
        reader, writer = self._streams[client]
        heard = b""
        async with asyncio.timeout(10):
            try:
                writer.write(self._last)
                while not self._answered(sent, heard):
                    if not (some := await reader.read(65_536)):
                        return heard + CLOSED
                    heard += some
            except ConnectionError:
                return heard + CLOSED
        return heard

    async def aclose(self) -> None:
        for _, writer in self._streams.values():
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)


@asynccontextmanager
async def serving(accept: Callable[[], asyncio.Protocol]) -> AsyncGenerator[int]:
    """A model on a port of the loopback."""
    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def both(
    model: Callable[[], asyncio.Protocol],
    real: int,
    steps: Sequence[Step],
    last: bytes,
    answered: Answered,
    plain: Callable[[bytes], object],
) -> None:
    """Compare a model with a real server on a port, step by step, once `plain` has taken out what may differ."""
    said: list[list[dict[int, bytes]]] = []
    async with serving(model) as port:
        for one in (port, real):
            talk = Talk(one, last, answered)
            try:
                said.append(await talk.carry_out(steps))
            finally:
                await talk.aclose()
    for step, mine, other in zip(steps, *said, strict=True):
        for client in mine:
            assert plain(mine[client]) == plain(other[client]), f"client {client}, after {step}"


def command(*words: bytes) -> bytes:
    return array(*map(bulk, words))


def _redis_script(name: bytes) -> list[Step]:
    one, two, three = (name + b".%d" % number for number in (1, 2, 3))
    return [
        (0, command(b"PING")),
        (0, command(b"ping", b"x") + command(b"CLIENT", b"SETNAME", b"n:hears") + command(b"SELECT", b"0")),
        (0, command(b"SUBSCRIBE", one, two)),
        (0, command(b"SUBSCRIBE", two) + command(b"PING") + command(b"PING", b"\r\n")),
        (1, command(b"PUBLISH", one, b"first") + command(b"PUBLISH", three, b"nobody")),
        (1, command(b"SUBSCRIBE", one) + command(b"SUBSCRIBE", three)),
        (2, command(b"PUBLISH", one, b"") + command(b"PUBLISH", one, b"*1\r\n$4\r\nPING\r\n\0\xff")),
        (0, command(b"PUBLISH", one, b"not from here") + command(b"ECHO", b"x")),
        (0, command(b"UNSUBSCRIBE", one, one, three)),
        (2, command(b"PUBLISH", one, b"for one") + command(b"PUBLISH", two, b"for another")),
        (0, command(b"UNSUBSCRIBE") + command(b"PUBLISH", one, b"now it may")),
        (0, command(b"UNSUBSCRIBE")),
        (2, command(b"SSUBSCRIBE", one)),
        (0, command(b"SPUBLISH", one, b"sharded") + command(b"PUBLISH", one, b"plain")),
        (2, command(b"SUNSUBSCRIBE", one) + command(b"SPUBLISH", one, b"nobody")),
        (2, command(b"PUBLISH", one) + command(b"SUBSCRIBE") + command(b"NOSUCH", b"thing")),
        (2, b"PING inline\r\n\r\n" + command(b"ECHO", b"on")),
        (1, command(b"QUIT")),
        (0, command(b"PUBLISH", one, b"nobody is left")),
        (0, b"*2\r\n$3\r\nGET\r\n!\r\n"),
    ]


def _plain_redis(raw: bytes) -> bytes:
    return re.sub(rb"-(\w+) [^\r]*\r\n", rb"-\1\r\n", raw)


async def test_the_model_of_redis_says_what_redis_says(shared_brokers: SharedBrokers) -> None:
    real = urlsplit(shared_brokers.url("redis")).port or 6379
    script = _redis_script(uuid4().hex.encode())
    last = b"that was all"

    def answered(_sent: bytes, heard: bytes) -> bool:
        return heard.endswith(last + b"\r\n")

    await both(RedisModel().accept, real, script, command(b"PING", last), answered, _plain_redis)


CONNECT = b'CONNECT {"verbose":%b,"echo":%b,"headers":true,"no_responders":true,"protocol":1,"name":"n"}\r\n'


def _nats_script(name: bytes) -> list[Step]:
    header = b"NATS/1.0\r\nA: b\r\n\r\n"
    traced = b"NATS/1.0\r\nNats-Trace-Dest: %b.echo\r\nNats-Trace-Only: true\r\nOwn: 7\r\n\r\n" % name
    probe = b"HPUB %b.probe %d %d\r\n%b\r\n" % (name, len(traced), len(traced), traced)

    def of(raw: bytes) -> bytes:
        return raw.replace(b"%", name)

    return [
        (0, CONNECT % (b"false", b"true")),
        (1, CONNECT % (b"false", b"false")),
        (2, CONNECT % (b"true", b"true")),
        (0, of(b"SUB %.a  1\r\nSUB %.b 2\r\nsub %.c\t3\r\n")),
        (1, of(b"SUB %.a 9\r\nPUB %.a 5\r\nhello\r\nPUB %.none 0\r\n\r\n")),
        (2, of(b"PUB %.a re.ply 2\r\n\r\n\r\nHPUB %.b 18 21\r\n") + header + b"abc\r\n"),
        (0, of(b"PUB %.c 1\r\nx\r\nUNSUB 3 \r\nPUB %.c 1\r\ny\r\nUNSUB 77\r\n")),
        (1, of(b"SUB inbox.% 4\r\nPUB %.nobody.hears inbox.% 0\r\n\r\n")),
        (1, of(b"SUB %.a 9\r\nSUB %. 11\r\n")),
        (0, of(b"SUB %.probe q 8\r\nSUB %.echo 10\r\n") + probe),
        (0, of(b"PUB %.a 3\r\nxyz\r\n") + probe),
        (2, of(b"SUB %.q one 20\r\nSUB %.q one 21\r\nSUB %.q 22\r\n")),
        (0, of(b"PUB %.q 1\r\nQ\r\n")),
        (1, b"BOGUS 1\r\n"),
        (2, of(b"PUB %.a 9999999\r\n")),
        (0, of(b"PUB %.a 1\r\nz\r\n")),
    ]


_IN_ITS_OWN_TIME = re.compile(rb"INFO [^\r]*\r\n|(?<!\S)PING\r\n")


def _nats_answered(sent: bytes, heard: bytes) -> bool:
    reported = b"Nats-Trace" not in sent or b'{"server"' in heard
    return reported and b"PONG\r\n" in heard and _IN_ITS_OWN_TIME.sub(b"", heard).endswith(b"\r\n")


def _plain_nats(raw: bytes) -> object:
    """Without what is said at its own time, and of reports what matters."""
    raw = _IN_ITS_OWN_TIME.sub(b"", raw)
    raw = re.sub(rb"\d+ \d+(\r\nNATS/1.0 503\r\n)Nats-Subject: \S+\r\n", rb"16 16\1", raw)  # old ones: no name
    reports: list[Any] = []
    for found in re.findall(rb'\{"server".*?\}\r\n', raw):
        report = json.loads(found)
        steps = [
            {key: step.get(key) for key in ("type", "kind", "name", "sub", "queue", "hop")} for step in report["events"]
        ]
        reports.append((report["request"]["header"], report["request"]["msgsize"], steps))
    raw = re.sub(rb'MSG (\S+ \S+) +\d+\r\n\{"server".*?\}\r\n', rb"REPORT \1\r\n", raw)
    raw = re.sub(rb"(\.q) 2[01] 1\r\n", rb"\1 (one of them) 1\r\n", raw)
    return sorted(raw.split(b"\r\n")) if reports else raw, reports


@pytest.mark.parametrize("own", [False, True], ids=["the usual one", "one that traces"])
async def test_the_model_of_nats_says_what_nats_says(shared_brokers: SharedBrokers, own: bool) -> None:
    script = _nats_script(uuid4().hex.encode())
    if not own:
        port = urlsplit(shared_brokers.url("nats")).port or 4222
        traced = [step for step in script if b"Nats-Trace" not in step[1]]
        await both(NatsModel().accept, port, traced, b"PING\r\n", _nats_answered, _plain_nats)
        return
    async with NatsServer() as server:
        await both(NatsModel().accept, server.port, script, b"PING\r\n", _nats_answered, _plain_nats)
