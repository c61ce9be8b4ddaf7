"""Events from server to server: what the application on one node tells, or asks, the applications on the others.

1. An event goes to every other node that is alive when it is sent, never to the sender itself.
2. A handler gets the event's arguments. What it returns, or what it raises, is its node's answer; a node without a
   handler says so. So an answer is late only when a handler is slow, or its node stopped.
3. A handler that raises is logged on its own node, whether an answer was wanted or not. At most `_AT_ONCE` run at a
   time; an event beyond that is refused, counted, and answered so.
4. `node_joined`, `node_left` and `evicted` are told by the library, on each node for itself; nobody can emit them.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from roomcast.core.address import Address
from roomcast.core.cluster import Cluster
from roomcast.core.errors import EncodeError, RequestTimeout, WireError
from roomcast.core.messages import DECODE_ERRORS, Reply, ServerEvent, encode_message
from roomcast.core.node import Node

logger = logging.getLogger("roomcast")

Handler = TypeVar("Handler", bound=Callable[..., Any])

LOCAL = frozenset({"node_joined", "node_left", "evicted"})
"""What the library tells each node itself (rule 4)."""

_RESERVED = LOCAL | {"connect", "connection", "disconnect", "new_namespace"}  # the last ones are Socket.IO's own


_AT_ONCE = 1000  # handlers under way on one node


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """What one node answered to a server-side event.

    Attributes:
        value: what its handler returned, by value: tuples are lists.
        error: why there is no value: what the handler raised, or that there is none; empty when all is well.
    """

    value: Any = None
    error: str = ""


class Handlers:
    """The handlers of one application; they outlive a node that a fork replaced."""

    def __init__(self) -> None:
        self._handlers: dict[str, Callable[..., Any]] = {}

    def __contains__(self, event: str) -> bool:
        return event in self._handlers

    def add(self, event: str, handler: Callable[..., Any]) -> None:
        """Call `handler` for an event.

        Raises:
            TypeError: the event is not named by text.
            ValueError: the event has a handler already, or its name is Socket.IO's own.
        """
        _check_name(event)
        if event in _RESERVED - LOCAL:
            raise ValueError(f"The name {event!r} is reserved: it is no server-side event.")
        if event in self._handlers:
            raise ValueError(f"The event {event!r:.80} has a handler already; one function can call several.")
        self._handlers[event] = handler

    async def call(self, event: str, *args: Any) -> Any:
        """What the handler of an event returns. Raises LookupError when there is none, else what it raises."""
        handler = self._handlers.get(event)
        if handler is None:
            raise LookupError(f"this node has no handler for {event!r:.80}")
        result = handler(*args)
        return await result if inspect.isawaitable(result) else result


class ServerEvents:
    """Sends and answers server-side events for one node or guest.

    Args:
        node: sends and receives.
        cluster: asks.
        handlers: of this node's application; None for a guest, which hears none.
    """

    def __init__(self, node: Node, cluster: Cluster, handlers: Handlers | None = None) -> None:
        self._node = node
        self._cluster = cluster
        self._handlers = handlers
        self._running = 0
        if handlers is not None:
            node.handlers[ServerEvent] = self._on_event

    async def emit(self, event: str, *args: Any) -> None:
        """Send an event to the other nodes.

        Raises:
            TypeError: the event is not named by text.
            ValueError: its name is reserved (rule 4).
            EncodeError: the data cannot be serialised; nobody got the event.
            PayloadTooLarge, Backpressure, BrokerClosed: nobody got the event.
            PublishUnconfirmed: only with `confirm`: other nodes may or may not have got it.
        """
        _check(event)
        message = encode_message(ServerEvent(event, args))
        await self._node.publisher.reserve(len(message))
        entry = self._node.publisher.put(self._node.subjects.control, message)
        if self._node.settings.confirm:
            await self._node.publisher.confirmed(entry)

    async def ask(self, event: str, *args: Any, timeout: float | None = None) -> dict[str, NodeAnswer]:
        """Send an event to the other nodes; what each one answers, by node id (rule 2).

        Raises:
            RequestTimeout: some did not answer in time; `replies` has the answers of the others.
            Exception: what `emit` raises.
        """
        _check(event)
        answers: dict[str, NodeAnswer] = {}
        to = Address(timeout=timeout)
        try:
            async with aclosing(self._replies(to, event, args)) as replies:
                async for node, reply in replies:
                    answers[node] = _answer(reply)
        except RequestTimeout as exc:
            exc.replies = dict(answers)
            raise
        return answers

    def _replies(self, to: Address, event: str, args: tuple[Any, ...]) -> AsyncGenerator[tuple[str, Reply]]:
        return self._cluster.replies(to, lambda number: ServerEvent(event, args, number))

    def tell(self, event: str, *args: Any) -> None:
        """Call this node's own handler, if it has one, for what the library itself tells (rule 4)."""
        if self._handlers is not None and event in self._handlers:
            self._node.spawn(self._handlers.call(event, *args))

    def _on_event(self, origin: str, message: ServerEvent) -> None:
        if message.event in _RESERVED:
            raise WireError("reserved", f"The server-side event {message.event!r} arrived, and nobody may send it.")
        if self._running >= _AT_ONCE:
            if message.request:
                self._node.answer(origin, Reply(message.request, error="too many handlers are under way here"))
            raise WireError("busy", f"Over {_AT_ONCE} handlers of server-side events are under way: one is refused.")
        self._running += 1
        self._node.spawn(self._answer(origin, message)).add_done_callback(self._ended)

    def _ended(self, _task: object) -> None:
        self._running -= 1

    async def _answer(self, origin: str, message: ServerEvent) -> None:
        assert self._handlers is not None  # noqa: S101 - or nobody would have called
        known = message.event in self._handlers
        reply = Reply(message.request or 1)
        try:
            value = await self._handlers.call(message.event, *message.args)
            reply = Reply(message.request or 1, data=_encoded(value))
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or task.cancelling():
                raise  # this node is closing
            reply = Reply(message.request or 1, error="CancelledError: the handler was cancelled")
        except Exception as exc:  # noqa: BLE001 - rule 2
            if known:
                self._node.fault(f"the handler of the server-side event {message.event!r:.80} failed", exc)
            reply = Reply(message.request or 1, error=_words(exc, known=known))
        if message.request and not self._node.answer(origin, reply):
            self._node.answer(origin, Reply(message.request, error="the answer is larger than a message may be"))


def _check_name(event: object) -> None:
    if not isinstance(event, str):
        raise TypeError(f"An event is named by text, not by {type(event).__name__} {event!r:.80}.")


def _check(event: str) -> None:
    _check_name(event)
    if event in _RESERVED:
        raise ValueError(f"The name {event!r} is reserved: choose another one for a server-side event.")


def _encoded(value: Any) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.msgpack.encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise EncodeError(f"what the handler returned cannot be serialised: {exc}") from exc


def _words(error: Exception, *, known: bool) -> str:
    text = f"{type(error).__name__}: {error}" if known and not isinstance(error, EncodeError) else str(error)
    return text.encode(errors="replace").decode()[:1000] or type(error).__name__


def _answer(reply: Reply) -> NodeAnswer:
    if reply.error:
        return NodeAnswer(error=reply.error)
    try:
        return NodeAnswer(msgspec.msgpack.decode(reply.data))
    except DECODE_ERRORS as exc:
        return NodeAnswer(error=f"the answer cannot be read: {exc}")
