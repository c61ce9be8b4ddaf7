"""A Socket.IO client that comes back, on the wire: what the official JavaScript client does, and nothing else.

It keeps the pid of the server's answer, and of each event, when the last argument is text, that text; as it connects
again it sends both.
"""

import asyncio
import contextlib
import json
from typing import Any, cast

import aiohttp

from tests.adapter.servers import PATIENCE, Node

Event = tuple[Any, ...]


class Returning:
    """One client in one namespace, and its connections, one after the other.

    Attributes:
        namespace: where it connects.
        auth: what it sends as `auth`, besides what recovery needs.
        sid, pid, place: what it was told; `place` is None before its first event.
        recovered: whether the server restored its session, as the JavaScript client finds out.
        refusal: what the server said in place of a sid.
        deaf: it answers no pings.
        over: set once the server has ended the session or the connection.
    """

    def __init__(self, namespace: str = "/", auth: dict[str, Any] | None = None) -> None:
        self.namespace = namespace
        self.auth = auth
        self.sid = self.pid = ""
        self.place: str | None = None
        self.recovered = False
        self.refusal: Any = None
        self.deaf = False
        self.over = asyncio.Event()
        self.acks: list[Any] = []
        self._events: list[Event] = []
        self._news = asyncio.Event()
        self._answered = asyncio.Event()
        self._http: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._reading: asyncio.Task[None] | None = None
        self._stale: list[aiohttp.ClientWebSocketResponse] = []

    async def connect(self, node: Node, *, pid: str | None = None, place: str | None = None) -> "Returning":
        """Connect, with the pid and place that it has or, to lie, with others; returns once it was answered."""
        asked = self.ask(node, pid=pid, place=place)
        await asked
        await self.answered()
        return self

    async def ask(self, node: Node, *, pid: str | None = None, place: str | None = None) -> None:
        """Connect, and do not wait for the answer."""
        self._http = self._http or aiohttp.ClientSession(headers={"User-Agent": "Mozilla/5.0"})
        self._answered.clear()
        self.over.clear()
        self._socket = socket = await self._http.ws_connect(f"{node.url}/socket.io/?EIO=4&transport=websocket")
        self._reading = asyncio.ensure_future(self._read(socket))
        auth: dict[str, Any] | None = self.auth
        if pid or self.pid:
            named = {"pid": pid or self.pid, "offset": place or self.place}
            auth = {key: text for key, text in named.items() if text is not None} | (self.auth or {})
        head = "40" if self.namespace == "/" else f"40{self.namespace},"
        await socket.send_str(head + ("" if auth is None else json.dumps(auth)))

    async def answered(self) -> None:
        """Return once the server has accepted or refused it."""
        async with asyncio.timeout(PATIENCE):
            await self._answered.wait()

    async def send(self, event: str, *args: Any) -> None:
        """Emit an event."""
        assert self._socket is not None
        head = "42" if self.namespace == "/" else f"42{self.namespace},"
        await self._socket.send_str(head + json.dumps([event, *args]))

    async def hear(self, event: str) -> list[Event]:
        """Everything heard up to and with the next `event`, and since the last call."""
        at = 0
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    for index in range(at, len(self._events)):
                        if self._events[index][0] == event:
                            taken, self._events[: index + 1] = self._events[: index + 1], []
                            return taken
                    at = len(self._events)
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain for {event!r}; heard {self._events[-5:]}") from None

    async def leave(self) -> None:
        """Disconnect, as a client that does not mean to come back."""
        assert self._socket is not None
        await self._socket.send_str("41" if self.namespace == "/" else f"41{self.namespace},")
        await self.drop()

    async def drop(self) -> None:
        """Lose the connection without a word."""
        if self._socket is not None:
            connection = cast("Any", self._socket)._response.connection
            if connection is not None:
                connection.transport.abort()
            await self._stop()

    async def walk_out(self) -> None:
        """Hear nothing more of a connection that the server takes for a good one: it will not even answer a ping."""
        assert self._socket is not None
        self._stale.append(self._socket)
        await self._stop()

    async def aclose(self) -> None:
        """Close everything."""
        await self.drop()
        for socket in self._stale:
            cast("Any", socket)._response.close()
        if self._http is not None:
            await self._http.close()

    async def _stop(self) -> None:
        self._socket = None
        if self._reading is not None:
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading

    async def _read(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        binary: tuple[str, list[bytes]] = ("", [])
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                binary[1].append(message.data)
                announced = int(binary[0][2 : binary[0].index("-")])
                if len(binary[1]) == announced:
                    text = binary[0]
                    self._take("42" + text[text.index("-") + 1 :], binary[1])
                continue
            text = str(message.data)
            if text == "2":
                if not self.deaf:
                    await socket.send_str("3")
            elif text.startswith("45"):
                binary = (text, [])
            else:
                self._take(text, [])
        self.over.set()

    def _take(self, text: str, blobs: list[bytes]) -> None:
        kind, rest = text[:2], text[2:]
        if self.namespace != "/":
            rest = rest.removeprefix(f"{self.namespace},")
        if kind == "40":
            answer = json.loads(rest)
            self.recovered = bool(answer.get("pid")) and answer["pid"] == self.pid
            self.sid, self.pid = answer["sid"], answer.get("pid", "")
            self._answered.set()
        elif kind == "44":
            self.refusal = json.loads(rest)
            self._answered.set()
        elif kind == "41":
            self.over.set()
        elif kind == "42":
            self._event(rest, blobs)

    def _event(self, rest: str, blobs: list[bytes]) -> None:
        number = rest[: rest.index("[")]
        data = [_with(item, blobs) for item in json.loads(rest[len(number) :])]
        if number:
            head = "43" if self.namespace == "/" else f"43{self.namespace},"
            assert self._socket is not None
            self.acks.append(asyncio.ensure_future(self._socket.send_str(f"{head}{number}{json.dumps(data[1:])}")))
        elif self.pid and isinstance(data[-1], str):
            self.place = data[-1]
            data = data[:-1]
        self._events.append(tuple(data))
        self._news.set()


def _with(item: Any, blobs: list[bytes]) -> Any:
    if isinstance(item, dict) and cast("dict[str, Any]", item).get("_placeholder"):
        return blobs[cast("dict[str, int]", item)["num"]]
    return cast("Any", item)
