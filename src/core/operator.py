"""The fluent face of the cluster: whom to address, then what to do.

1. Operators are immutable values: each step gives a new one, in any order, and any of them can be kept and reused.
2. `to` and `in_` add rooms: a client in several of them is addressed once. `except_` takes away everyone who is in
   one of the named rooms, or is named by sid. Both are decided by each node when it hears of it.
3. What is wrong in an address is said when it is built: `TypeError` and `ValueError` name it.
4. A verb returns when it is done: an event is accepted, a request is answered by every node that was alive when it
   began. See each verb for what it raises when it is not.
"""

import math
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec

from roomcast.core.address import Address
from roomcast.core.broadcast import Answer
from roomcast.core.cluster import Cluster
from roomcast.core.descriptions import Description, Handshake
from roomcast.core.errors import AckTimeout, RequestTimeout
from roomcast.core.subjects import Room, namespace_name, room_name

Named = Room | Sequence[Room] | AbstractSet[Room]
"""A room, or a list, tuple or set of rooms."""


class Addressing:
    """The first steps of an address: what an adapter, an emitter and an operator all offer."""

    __slots__ = ()

    def _start(self) -> "Operator":
        """The operator that the steps begin from."""
        raise NotImplementedError

    def to(self, *rooms: Named) -> "Operator":
        """Address the clients in a room, in any of several, or of a sid (rule 2); lists of them are taken apart.

        Raises:
            TypeError: a room is not named by text or an integer.
            ValueError: no room is named.
        """
        start = self._start()
        return start.with_(rooms=_union(start.address.rooms, _named(rooms)))

    def in_(self, *rooms: Named) -> "Operator":
        """The same as `to`."""
        return self.to(*rooms)

    def except_(self, *rooms: Named) -> "Operator":
        """Leave out the clients in a room, in any of several, or of a sid (rule 2).

        Raises:
            TypeError: a room is not named by text or an integer.
            ValueError: no room is named.
        """
        start = self._start()
        return start.with_(excluded=_union(start.address.excluded, _named(rooms)))

    def namespace(self, namespace: str) -> "Operator":
        """Address clients of this namespace instead of "/".

        Raises:
            TypeError, ValueError: it cannot be the name of a namespace.
        """
        return self._start().with_(namespace=namespace_name(namespace))

    def timeout(self, seconds: float) -> "Operator":
        """Wait this long for answers, instead of `request_timeout`.

        Raises:
            TypeError, ValueError: it is not a number above 0.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"A timeout is a number of seconds, not {seconds!r:.80}.")
        if not seconds > 0 or math.isinf(seconds):
            raise ValueError(f"A timeout is a number of seconds above 0, not {seconds}.")
        return self._start().with_(timeout=float(seconds))

    @property
    def volatile(self) -> "Operator":
        """Let an event be dropped for a client, or a node, for whom others wait."""
        return self._start().with_(volatile=True)

    @property
    def local(self) -> "Operator":
        """Address only the clients of this node.

        Raises:
            ValueError: this process is an emitter and has no clients.
        """
        start = self._start()
        if start.cluster.guest:
            raise ValueError("An emitter has no clients of its own: there is nobody local to address.")
        return start.with_(local=True)


class Verbs(Addressing):
    """What can be done with the addressed clients, besides sending them an event."""

    __slots__ = ()

    async def emit_with_ack(self, event: str, *args: Any) -> list[Answer]:
        """Send an event; what each client acknowledged, in the order of arrival, once the last one has.

        A client that goes away, or whose node dies, is no longer waited for.

        Raises:
            AckTimeout: some did not within the timeout; `responses` has the other answers, `missing` the sids.
            Exception: what `Operator.emit` raises.
        """
        async with aclosing(self.acks(event, *args)) as answers:
            return [answer async for answer in answers]

    def acks(self, event: str, *args: Any) -> AsyncGenerator[Answer]:
        """Send an event, and give what each client acknowledges as it comes.

        Raises:
            AckTimeout: as `emit_with_ack`.
        """
        start = self._start()
        return start.cluster.broadcast.answers(start.address, event, args)

    async def fetch_sockets(self) -> list["RemoteSocket"]:
        """The addressed clients, with where they came from and what the application stored with them.

        Raises:
            RequestTimeout: a node did not answer; `replies` has the clients of the others, by node.
        """
        found: dict[str, list[RemoteSocket]] = {}
        start = self._start()
        try:
            async with aclosing(start.cluster.describe(start.address)) as parts:
                async for node, descriptions in parts:
                    found.setdefault(node, []).extend(start.remote(node, one) for one in descriptions)
        except RequestTimeout as exc:
            exc.replies = dict(found)
            raise
        return [socket for sockets in found.values() for socket in sockets]

    async def iter_sockets(self) -> AsyncGenerator["RemoteSocket"]:
        """The same, one by one as they arrive: however many there are, few are held in memory at a time.

        Raises:
            RequestTimeout: a node did not go on within the timeout; those given before are good.
        """
        start = self._start()
        async with aclosing(start.cluster.describe(start.address)) as parts:
            async for node, descriptions in parts:
                for one in descriptions:
                    yield start.remote(node, one)

    async def sockets_join(self, *rooms: Named) -> int:
        """Put the addressed clients into rooms; once it returns, emits to the rooms reach them.

        Returns:
            how many clients were addressed.

        Raises:
            TypeError, ValueError: a room cannot be entered.
            RequestTimeout: a node did not answer; the others have done it, and `replies` says for how many.
        """
        start = self._start()
        return await start.cluster.join(start.address, _named(rooms))

    async def sockets_leave(self, *rooms: Named) -> int:
        """Take the addressed clients out of rooms; once it returns, nothing emitted later to the rooms reaches them.

        Returns:
            how many clients were addressed.

        Raises:
            TypeError, ValueError: a room is not named by text or an integer.
            RequestTimeout: a node did not answer; the others have done it, and `replies` says for how many.
        """
        start = self._start()
        return await start.cluster.leave(start.address, _named(rooms))

    async def disconnect_sockets(self, close: bool = False) -> int:
        """Disconnect the addressed clients from the namespace, or with `close` end their connections.

        What this node emitted to them before reaches them first. It returns once the disconnect handlers are done.

        Returns:
            how many clients were disconnected.

        Raises:
            RequestTimeout: a node did not answer; the others have done it, and `replies` says for how many.
        """
        start = self._start()
        return await start.cluster.disconnect(start.address, close=close)


@dataclass(frozen=True, slots=True, repr=False)
class Operator(Verbs):
    """Some clients, and how to reach them; made by `Adapter.to` and its like, never directly.

    Attributes:
        source: gives what carries out the verbs: another one in a process that was forked since.
        address: the clients.
    """

    source: Callable[[], Cluster]
    address: Address

    @property
    def cluster(self) -> Cluster:
        """What carries out the verbs."""
        return self.source()

    def __repr__(self) -> str:
        return f"Operator({self.address!r})"

    def _start(self) -> "Operator":
        return self

    def with_(self, **changes: Any) -> "Operator":
        """The same operator with other fields of its address."""
        return replace(self, address=msgspec.structs.replace(self.address, **changes))

    def remote(self, node: str, description: Description) -> "RemoteSocket":
        """A client that was described, with an operator that addresses it alone."""
        one = Address(self.address.namespace, (description.sid,), timeout=self.address.timeout)
        return RemoteSocket.of(node, description, replace(self, address=one))

    async def emit(self, event: str, *args: Any) -> None:
        """Send an event to the addressed clients; accepted when it returns, as with `AsyncServer.emit`.

        Raises:
            EncodeError: the data cannot be serialised; nobody got the event.
            TypeError: the event is not named by text.
            PayloadTooLarge, Backpressure, BrokerClosed: nobody got the event.
            PublishUnconfirmed: only with `confirm`: other nodes may or may not have got it.
        """
        await self.cluster.broadcast.emit(self.address, event, args)

    async def count(self) -> int:
        """How many clients are addressed, without moving their descriptions.

        Raises:
            RequestTimeout: a node did not answer; `replies` has the counts of the others, by node.
        """
        return await self.cluster.count(self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketInfo:
    """A client somewhere in the cluster, as it was when it was fetched.

    Attributes:
        sid: its session id.
        node: id of its node.
        namespace: the one it was fetched in; a connection in several namespaces has a sid in each.
        rooms: its rooms, its own (the sid) first.
        data: what the application stored with `save_session`, by value: tuples are lists.
        omitted: names of what could not be serialised, or was too large to travel.
        handshake: how it connected.
    """

    sid: str
    node: str
    namespace: str
    rooms: tuple[Room, ...]
    data: dict[str, Any]
    omitted: tuple[str, ...]
    handshake: Handshake


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSocket(SocketInfo):
    """A client somewhere in the cluster: what was fetched of it, and what can be done with it."""

    operator: Operator = field(repr=False)

    @classmethod
    def of(cls, node: str, one: Description, operator: Operator) -> "RemoteSocket":
        """From its description."""
        return cls(
            sid=one.sid,
            node=node,
            namespace=operator.address.namespace,
            rooms=one.rooms,
            data=one.data,
            omitted=one.omitted,
            handshake=one.handshake,
            operator=operator,
        )

    async def emit(self, event: str, *args: Any) -> None:
        """Send it an event; raises what `Operator.emit` does."""
        await self.operator.emit(event, *args)

    async def emit_with_ack(self, event: str, *args: Any, timeout: float | None = None) -> Any:
        """Send it an event; what it acknowledges, as `AsyncServer.call` returns it.

        Raises:
            AckTimeout: it did not within the timeout, or it went away.
            Exception: what `Operator.emit` raises.
        """
        operator = self.operator if timeout is None else self.operator.timeout(timeout)
        answers = await operator.emit_with_ack(event, *args)
        if not answers:
            raise AckTimeout(f"The client {self.sid} is gone.", responses=[], missing={self.sid})
        return answers[0].value

    async def join(self, *rooms: Named) -> None:
        """Put it into rooms; raises what `Operator.sockets_join` does."""
        await self.operator.sockets_join(*rooms)

    async def leave(self, *rooms: Named) -> None:
        """Take it out of rooms; raises what `Operator.sockets_leave` does."""
        await self.operator.sockets_leave(*rooms)

    async def disconnect(self, close: bool = False) -> None:
        """Disconnect it; raises what `Operator.disconnect_sockets` does."""
        await self.operator.disconnect_sockets(close)


def _named(rooms: Iterable[object]) -> tuple[Room, ...]:
    """Names of rooms that an application gave, lists of them included.

    Raises:
        TypeError: one of them is not text or an integer.
        ValueError: there are none.
    """
    names: dict[Room, None] = {}
    for room in rooms:
        if isinstance(room, (list, tuple, set, frozenset)):
            names.update(dict.fromkeys(_named(cast("Iterable[object]", room))))
        else:
            names[room_name(room)] = None
    if not names:
        raise ValueError("Name at least one room: an empty list addresses nobody.")
    return tuple(names)


def _union(one: tuple[Room, ...], other: tuple[Room, ...]) -> tuple[Room, ...]:
    return tuple(dict.fromkeys((*one, *other)))
