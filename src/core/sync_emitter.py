"""The emitter for programs without an event loop: the same names, plain calls.

1. Each call does what the emitter's coroutine of that name does, and returns or raises the same. It may come from any
   thread, and from many at once; called on a thread that runs an event loop, it blocks that loop.
2. It connects with its first call, on a thread of its own. Until then it holds no thread and no socket, so it can be
   made when a module is imported, and used after a fork.
3. A forked process gets a connection of its own with its own first call, also when the parent has one. A fork while
   another thread connects waits until that is done, or has failed.
4. `close`, and the exit of the interpreter, flush what was emitted.

How calls reach the loop is `portal`; what they do there is `emitter`.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar, Unpack

from roomcast.core.address import Address
from roomcast.core.broadcast import Answer
from roomcast.core.emitter import Emitter
from roomcast.core.errors import BrokerClosed, ConfigurationError, RequestTimeout
from roomcast.core.events import NodeAnswer
from roomcast.core.gaps import GapHook
from roomcast.core.health import Health
from roomcast.core.membership import NodeInfo
from roomcast.core.operator import Operator, RemoteSocket, SocketInfo
from roomcast.core.options import Settings
from roomcast.core.portal import Portal, process, whole
from roomcast.core.subjects import Room

T = TypeVar("T")


class Session:
    """An emitter, and the portal to the loop it lives on, in one process."""

    def __init__(self, emitter: Emitter) -> None:
        self.emitter = emitter
        self.portal = Portal(emitter.aclose, self._closed)
        self._starting: asyncio.Task[None] | None = None

    def operator(self, address: Address) -> Operator:
        """The emitter's operator for an address."""
        return replace(self.emitter.namespace("/"), address=address)

    def call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine returns that is made and run on the loop, once the emitter is connected."""
        return self.portal.call(lambda: self._connected(make))

    def look(self, at: Callable[[Emitter], T]) -> T:
        """What a function finds out about the emitter, on the loop if there is one; nothing is started for it."""
        if self.portal.idle or self.portal.inside:
            return at(self.emitter)

        async def see() -> T:
            return at(self.emitter)

        try:
            return self.portal.call(see)
        except BrokerClosed:  # in between
            return at(self.emitter)

    def each(self, items: AsyncGenerator[T]) -> Generator[T]:
        """The items of an asynchronous generator, which is closed when this one is."""
        steps = _Steps(items)
        try:
            while (item := self.call(steps.next)) is not None:
                yield item
        finally:
            self.portal.tell(steps.aclose)

    async def _connected(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """All who find it not connected wait for one attempt."""
        starting = self._starting
        if starting is None or (starting.done() and (starting.cancelled() or starting.exception() is not None)):
            starting = self._starting = asyncio.ensure_future(self._start())
            starting.add_done_callback(_look)
        await asyncio.shield(starting)
        return await make()

    async def _start(self) -> None:
        with whole:
            await self.emitter.start()

    def _closed(self) -> BrokerClosed:
        return BrokerClosed("The emitter is closed; make a new one.", broker=self.emitter.broker_name)


class _Steps(Generic[T]):
    """An asynchronous generator, one step at a time: a step that was cancelled is over before it is closed."""

    def __init__(self, items: AsyncGenerator[T]) -> None:
        self._items = items
        self._turn = asyncio.Lock()

    async def next(self) -> T | None:
        async with self._turn:
            return await anext(self._items, None)

    async def aclose(self) -> None:
        async with self._turn:
            await self._items.aclose()


class SyncVerbs:
    """The steps and verbs that an operator and the emitter share; see `Operator` for what each of them does."""

    __slots__ = ()

    def _here(self) -> "SyncOperator":
        """The operator that they begin from."""
        raise NotImplementedError

    def to(self, *rooms: Room) -> "SyncOperator":
        """Address the clients in a room, in any of several, or of a sid; see `Operator.to`."""
        return self._here().step(lambda operator: operator.to(*rooms))

    def in_(self, *rooms: Room) -> "SyncOperator":
        """The same as `to`."""
        return self.to(*rooms)

    def except_(self, *rooms: Room) -> "SyncOperator":
        """Leave out the clients in a room, in any of several, or of a sid; see `Operator.except_`."""
        return self._here().step(lambda operator: operator.except_(*rooms))

    def namespace(self, namespace: str) -> "SyncOperator":
        """Address clients of this namespace instead of "/"; see `Operator.namespace`."""
        return self._here().step(lambda operator: operator.namespace(namespace))

    def timeout(self, seconds: float) -> "SyncOperator":
        """Wait this long for answers, instead of `request_timeout`; see `Operator.timeout`."""
        return self._here().step(lambda operator: operator.timeout(seconds))

    @property
    def volatile(self) -> "SyncOperator":
        """Let an event be dropped for a client, or a node, for whom others wait."""
        return self._here().step(lambda operator: operator.volatile)

    @property
    def local(self) -> "SyncOperator":
        """Raises ValueError: an emitter has no clients of its own."""
        return self._here().step(lambda operator: operator.local)

    def emit_with_ack(self, event: str, *args: Any) -> list[Answer]:
        """Send an event; what each client acknowledged, once the last one has; see `Operator.emit_with_ack`."""
        return self._here().call(lambda operator: operator.emit_with_ack(event, *args))

    def acks(self, event: str, *args: Any) -> Generator[Answer]:
        """Send an event when the iteration begins, and give what each client acknowledges; see `Operator.acks`."""
        here = self._here()
        session = here.session()
        yield from session.each(session.operator(here.address).acks(event, *args))

    def fetch_sockets(self) -> "list[SyncRemoteSocket]":
        """The addressed clients; see `Operator.fetch_sockets`."""
        here = self._here()
        try:
            return here.remotes(here.call(lambda operator: operator.fetch_sockets()))
        except RequestTimeout as exc:
            exc.replies = {node: here.remotes(sockets) for node, sockets in exc.replies.items()}
            raise

    def iter_sockets(self) -> "Generator[SyncRemoteSocket]":
        """The same, one by one as they arrive, few of them in memory at a time; see `Operator.iter_sockets`."""
        here = self._here()
        session = here.session()
        for part in session.each(_in_parts(session.operator(here.address))):
            yield from here.remotes(part)

    def sockets_join(self, *rooms: Room) -> int:
        """Put the addressed clients into rooms; how many they were; see `Operator.sockets_join`."""
        return self._here().call(lambda operator: operator.sockets_join(*rooms))

    def sockets_leave(self, *rooms: Room) -> int:
        """Take the addressed clients out of rooms; how many they were; see `Operator.sockets_leave`."""
        return self._here().call(lambda operator: operator.sockets_leave(*rooms))

    def disconnect_sockets(self, close: bool = False) -> int:
        """Disconnect the addressed clients; how many they were; see `Operator.disconnect_sockets`."""
        return self._here().call(lambda operator: operator.disconnect_sockets(close))


@dataclass(frozen=True, slots=True)
class SyncOperator(SyncVerbs):
    """Some clients, and how to reach them; an immutable value, made by `SyncEmitter.to` and its like.

    Attributes:
        session: gives the session of this process.
        address: the clients.
    """

    session: Callable[[], Session] = field(repr=False)
    address: Address

    def _here(self) -> "SyncOperator":
        return self

    def step(self, change: Callable[[Operator], Operator]) -> "SyncOperator":
        """One step further, as an operator makes it."""
        return replace(self, address=change(self.session().operator(self.address)).address)

    def call(self, verb: Callable[[Operator], Coroutine[Any, Any, T]]) -> T:
        """What a verb of the operator returns."""
        session = self.session()
        return session.call(lambda: verb(session.operator(self.address)))

    def remotes(self, sockets: list[RemoteSocket]) -> "list[SyncRemoteSocket]":
        """The same clients with plain methods."""
        return [
            SyncRemoteSocket(**_info(socket), operator=replace(self, address=socket.operator.address))
            for socket in sockets
        ]

    def emit(self, event: str, *args: Any) -> None:
        """Send an event to the addressed clients; the broker has it when this returns; see `Operator.emit`."""
        self.call(lambda operator: operator.emit(event, *args))

    def count(self) -> int:
        """How many clients are addressed; see `Operator.count`."""
        return self.call(lambda operator: operator.count())


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncRemoteSocket(SocketInfo):
    """A client somewhere in the cluster: what was fetched of it, and what can be done with it, in plain calls."""

    operator: SyncOperator = field(repr=False)

    def emit(self, event: str, *args: Any) -> None:
        """Send it an event; see `RemoteSocket.emit`."""
        self.operator.emit(event, *args)

    def emit_with_ack(self, event: str, *args: Any, timeout: float | None = None) -> Any:
        """Send it an event; what it acknowledges; see `RemoteSocket.emit_with_ack`."""
        return self.operator.call(
            lambda operator: RemoteSocket(**_info(self), operator=operator).emit_with_ack(event, *args, timeout=timeout)
        )

    def join(self, *rooms: Room) -> None:
        """Put it into rooms; see `RemoteSocket.join`."""
        self.operator.sockets_join(*rooms)

    def leave(self, *rooms: Room) -> None:
        """Take it out of rooms; see `RemoteSocket.leave`."""
        self.operator.sockets_leave(*rooms)

    def disconnect(self, close: bool = False) -> None:
        """Disconnect it; see `RemoteSocket.disconnect`."""
        self.operator.disconnect_sockets(close)


class SyncEmitter(SyncVerbs):
    """Reaches the clients of a cluster from plain Python: a Celery task, a Django view, a script.

    Args:
        url: the broker's, as for an `Emitter`; not `memory://`, which nobody on another thread hears.
        settings: as for an `Emitter`.

    Raises:
        ConfigurationError: there is no URL, or it or a setting cannot work.

    Make one for each program, at import time if that suits, and use it from everywhere (rules 1 to 4). Any call
    connects, and raises `BrokerUnavailable` when no broker answers within `connect_timeout`, `BrokerClosed` after
    `close`.
    """

    def __init__(self, url: str | None = None, **settings: Unpack[Settings]) -> None:
        self._url = url
        self._settings = settings
        self._hooks: list[GapHook] = []
        self._closed = False
        self._sessions = {process(): self._begin()}

    def _begin(self) -> Session:
        emitter = Emitter(self._url, **self._settings)
        if emitter.broker_name == "memory":
            raise ConfigurationError(
                "memory:// joins what runs on one event loop, and a SyncEmitter has its own: nobody would hear it."
            )
        for hook in self._hooks:
            emitter.on_gap(hook)
        session = Session(emitter)
        if self._closed:
            session.portal.close()
        return session

    def _current(self) -> Session:
        """The session of this process (rule 3); those of its parents are kept, and left alone."""
        return self._sessions.get(process()) or self._sessions.setdefault(process(), self._begin())

    def _here(self) -> SyncOperator:
        return SyncOperator(self._current, Address())

    def _call(self, verb: Callable[[Emitter], Coroutine[Any, Any, T]]) -> T:
        session = self._current()
        return session.call(lambda: verb(session.emitter))

    # Life

    def start(self) -> None:
        """Connect now instead of with the first call; see `Emitter.start`."""
        self._call(lambda emitter: emitter.start())

    def close(self) -> None:
        """Send what was emitted, waiting at most `emit_timeout` for the broker, and disconnect (rule 4). Idempotent.

        A parent's connection is not this process's to close.
        """
        self._closed = True
        self._current().portal.close()

    def __enter__(self) -> "SyncEmitter":
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        for session in getattr(self, "_sessions", {}).values():
            session.portal.abandon()

    def health(self) -> Health:
        """Whether the emitter hears and is heard; connects nothing; see `Emitter.health`."""
        return self._current().look(lambda emitter: emitter.health())

    def stats(self) -> dict[str, Any]:
        """The emitter's counters by name, in this process; connects nothing."""
        return self._current().look(lambda emitter: emitter.stats())

    def on_gap(self, hook: GapHook) -> GapHook:
        """Call `hook` with a `Gap` whenever something was, or may have been, lost; usable as a decorator.

        It runs on the emitter's own thread, where it can look at the emitter, but not call it.
        """
        self._hooks.append(hook)
        self._current().emitter.on_gap(hook)
        return hook

    # Verbs

    def emit(self, event: str, *args: Any) -> None:
        """Send an event to everyone in "/"; the broker has it when this returns; see `Operator.emit`."""
        self._call(lambda emitter: emitter.emit(event, *args))

    def count(self, *rooms: Room, namespace: str = "/") -> int:
        """How many clients are in any of the rooms, or, without one, in the namespace; see `Emitter.count`."""
        return self._call(lambda emitter: emitter.count(*rooms, namespace=namespace))

    def all_rooms(self, namespace: str = "/") -> dict[Room, int]:
        """The rooms of a namespace and how many members each has; see `Emitter.all_rooms`."""
        return self._call(lambda emitter: emitter.all_rooms(namespace))

    def get_session(self, sid: str, namespace: str = "/") -> dict[str, Any]:
        """What the application last stored with a client of any node; see `Emitter.get_session`."""
        return self._call(lambda emitter: emitter.get_session(sid, namespace))

    def nodes(self) -> list[NodeInfo]:
        """The live nodes, the oldest first."""
        return self._call(lambda emitter: emitter.nodes())

    def server_count(self) -> int:
        """How many nodes there are."""
        return self._call(lambda emitter: emitter.server_count())

    def server_side_emit(self, event: str, *args: Any) -> None:
        """Send an event to the application on every node; see `Emitter.server_side_emit`."""
        self._call(lambda emitter: emitter.server_side_emit(event, *args))

    def server_side_emit_with_ack(self, event: str, *args: Any, timeout: float | None = None) -> dict[str, NodeAnswer]:
        """Send an event to the application on every node; each one's answer, by node id; see `Emitter`'s."""
        return self._call(lambda emitter: emitter.server_side_emit_with_ack(event, *args, timeout=timeout))


async def _in_parts(operator: Operator) -> AsyncGenerator[list[RemoteSocket]]:
    """What `Operator.iter_sockets` gives, as it travels: a call for each part instead of one for each socket."""
    async with aclosing(operator.cluster.describe(operator.address)) as parts:
        async for node, descriptions in parts:
            yield [operator.remote(node, one) for one in descriptions]


def _info(socket: SocketInfo) -> dict[str, Any]:
    return {one.name: getattr(socket, one.name) for one in fields(SocketInfo)}


def _look(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # those who waited were told; when none is left, nobody needs to be
