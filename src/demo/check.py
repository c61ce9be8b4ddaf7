"""`roomcast demo --check`: clients on every node talk to each other, and each promise that fails is a sentence.

Every node gets two clients, through the one address: one that speaks and one that listens. So a message from
a node to itself is tried like one to any other.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from time import perf_counter
from typing import Any

import socketio
from socketio.exceptions import ConnectionError as ClientConnectionError
from socketio.exceptions import TimeoutError as ClientTimeoutError

from roomcast.demo import DemoError

_PATIENCE = 5.0
"""Seconds that one message may take."""


class Client:
    """A client of one node, and what it heard."""

    def __init__(self, node: int) -> None:
        self.node = node
        self.heard: asyncio.Queue[tuple[dict[str, Any], float]] = asyncio.Queue()
        self._io: Any = socketio.AsyncClient(reconnection=False)
        self._welcome: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._io.on("welcome", self._welcome.set_result)
        self._io.on("said", self._on_said)
        self._io.on("waved", self._on_waved)

    @property
    def sid(self) -> str:
        """The id that this client has on the server."""
        sid: str = self._io.get_sid()
        return sid

    async def connect(self, address: str) -> None:
        """Connect through the balancer, and find oneself on the node that was asked for."""
        await self._io.connect(f"{address}?node={self.node}", transports=["websocket"], wait_timeout=_PATIENCE)
        welcome = await asyncio.wait_for(self._welcome, _PATIENCE)
        if welcome["node"] != self.node:
            raise DemoError(f"A client that asked for node {self.node} is on node {welcome['node']}.")

    async def ask(self, event: str, argument: object) -> Any:
        """What the client's own node answers to an event."""
        return await self._io.call(event, argument, timeout=_PATIENCE + 1)

    async def say(self, text: str, room: str | None) -> float:
        """Send a message; the time of it."""
        began = perf_counter()
        await self._io.emit("say", {"text": text, "room": room, "name": f"check {self.node}"})
        return began

    async def hears(self, text: str, sender: "Client") -> float:
        """The time at which the message was heard, which must be the next thing that is."""
        try:
            said, when = await asyncio.wait_for(self.heard.get(), _PATIENCE)
        except TimeoutError:
            raise DemoError(f"A message from node {sender.node} did not reach node {self.node}.") from None
        if (said["text"], said["node"]) != (text, sender.node):
            raise DemoError(f"Node {self.node} was sent {said['text']!r} from node {said['node']} instead of {text!r}.")
        return when

    def _on_said(self, said: dict[str, Any]) -> None:
        self.heard.put_nowait((said, perf_counter()))

    def _on_waved(self, wave: dict[str, Any]) -> dict[str, Any]:
        return {"from": wave["node"], "answered by": self.node}

    async def aclose(self) -> None:
        """Disconnect."""
        await self._io.disconnect()


@contextlib.asynccontextmanager
async def _connected(address: str, nodes: Sequence[int]) -> AsyncGenerator[dict[int, Client]]:
    clients = {node: Client(node) for node in nodes}
    try:
        await asyncio.gather(*(client.connect(address) for client in clients.values()))
        yield clients
    finally:
        await asyncio.gather(*(client.aclose() for client in clients.values()), return_exceptions=True)


async def check(address: str, nodes: Sequence[int], say: Callable[[str], None]) -> None:
    """Try everything, and tell each success.

    Args:
        address: the balancer's URL.
        nodes: the numbers of the nodes.
        say: called with one line for each thing that was tried.

    Raises:
        DemoError: something does not work; says what.
    """
    try:
        async with _connected(address, nodes) as speakers, _connected(address, nodes) as listeners:
            await _check_pairs(speakers, listeners, say)
            await _check_room(speakers, listeners, say)
            await _check_broadcast(speakers, listeners, say)
            await _check_ack(speakers, listeners, say)
    except ClientConnectionError as exc:
        raise DemoError(f"A client could not connect to the demo: {exc}.") from exc
    except ClientTimeoutError as exc:
        raise DemoError(f"A node did not answer its client within {_PATIENCE + 1:.0f} s.") from exc


async def _check_pairs(speakers: dict[int, Client], listeners: dict[int, Client], say: Callable[[str], None]) -> None:
    """From each node to each node, in a room of which the listener is the only member."""
    await asyncio.gather(*(listener.ask("join", f"only {node}") for node, listener in listeners.items()))
    for node, speaker in speakers.items():
        for other, listener in listeners.items():
            for text in ("warm-up", f"{node} to {other}"):
                began = await speaker.say(text, f"only {other}")
                took = await listener.hears(text, speaker) - began
            say(f"node {node} -> node {other}  ok  {took * 1000:.1f} ms")


async def _check_room(speakers: dict[int, Client], listeners: dict[int, Client], say: Callable[[str], None]) -> None:
    """A room with a member on every node; those who are not in it hear what is said next, and nothing before."""
    await asyncio.gather(*(listener.ask("join", "all of us") for listener in listeners.values()))
    for speaker in speakers.values():
        await speaker.say("to the room", "all of us")
        await speaker.say("to everyone", None)
        await asyncio.gather(*(listener.hears("to the room", speaker) for listener in listeners.values()))
        everyone = [*listeners.values(), *speakers.values()]
        await asyncio.gather(*(client.hears("to everyone", speaker) for client in everyone))
    say("room       ok  its members on every node, and nobody else")


async def _check_broadcast(
    speakers: dict[int, Client], listeners: dict[int, Client], say: Callable[[str], None]
) -> None:
    speaker, *_ = speakers.values()
    everyone = [*listeners.values(), *speakers.values()]
    began = await speaker.say("hello, world", None)
    heard = await asyncio.gather(*(client.hears("hello, world", speaker) for client in everyone))
    say(f"broadcast  ok  {len(everyone)} clients on {len(speakers)} nodes  {(max(heard) - began) * 1000:.1f} ms")


async def _check_ack(speakers: dict[int, Client], listeners: dict[int, Client], say: Callable[[str], None]) -> None:
    (node, speaker), *_ = speakers.items()
    slowest = 0.0
    for other, listener in listeners.items():
        began = perf_counter()
        answer = await speaker.ask("wave", listener.sid)
        if answer != {"from": node, "answered by": other}:
            raise DemoError(f"A call from node {node} to a client of node {other} was answered with {answer!r}.")
        slowest = max(slowest, perf_counter() - began)
    say(f"ack        ok  node {node} calls a client of every node  {slowest * 1000:.1f} ms")
