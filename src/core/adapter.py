"""python-socketio's face of a node: the client manager that a `socketio.AsyncServer` is given.

Every call that the server makes on its manager keeps its meaning and reaches the whole cluster:

1. `emit` encodes (or raises `EncodeError`), takes a place in the outbox (waiting for one only when it is full), and
   then, without suspending, hands the packet to the local clients and to the outbox. So a cancelled emit has
   happened everywhere or nowhere, and local clients never wait for the broker.
2. Where an event goes: a room to the nodes with a member, several rooms or none to the nodes with a client in the
   namespace, a sid to its node alone, an event that wants acknowledgements from more than one sid to every node.
3. When `enter_room` returns, what is emitted later to the room, on any node, reaches the client.
4. An acknowledgement finds its way back to the node that asked; a callback whose client or node is gone is dropped.
"""

import asyncio
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, Unpack, cast

from roomcast.core.acks import Acks, Callback
from roomcast.core.broker import Subject
from roomcast.core.clients import NOT_HERE, Clients, addressed, skipped
from roomcast.core.errors import BrokerUnavailable, RoomcastError, WireError
from roomcast.core.fanout import FanOut
from roomcast.core.health import Health
from roomcast.core.node import GapHook, Node
from roomcast.core.options import Settings, options
from roomcast.core.outbox import Entry
from roomcast.core.owed import Owed
from roomcast.core.packets import Packets, Parts
from roomcast.core.rooms import Client, State
from roomcast.core.sids import new_sid, owner
from roomcast.core.subjects import Room, namespace_name, room_name
from roomcast.core.wire import (
    Ack,
    CloseRoom,
    Disconnect,
    Emit,
    Enter,
    Expect,
    Leave,
    Reply,
    encode_message,
)

logger = logging.getLogger("roomcast")

_BACKOFF = 0.1, 2.0  # seconds between attempts of a start in the background: first, longest


class Adapter(Clients):
    """Joins the clients of this process with those of every other one on the same broker.

    Args:
        url: the broker: `redis://`, `nats://`, `amqp://`, `embedded://`, `memory://`; without one, the environment
            variable ROOMCAST_URL, else `memory://`. Its query may set any of the settings, and wins.
        settings: see `roomcast.core.options.Options`; durations are seconds.

    Raises:
        ConfigurationError: the URL or a setting cannot work.

    `start` and `aclose` belong in the application's own start and shutdown, or use `async with`. Without `start` the
    adapter starts by itself with the first client, in the background, and keeps trying while the broker is away.
    """

    def __init__(self, url: str | None = None, **settings: Unpack[Settings]) -> None:
        super().__init__()
        self._url = url or os.environ.get("ROOMCAST_URL") or "memory://"
        self._settings = options(settings)
        self._packets = Packets()
        self._fanout: FanOut | None = None
        self._acks = Acks()
        self._starting: asyncio.Task[None] | None = None
        self._start_error: RoomcastError | None = None
        self._node = self._make_node()

    def _make_node(self) -> Node:
        node = Node(self._url, self._settings, lambda: len(self._rooms))
        node.on_left = self._acks.left
        node.on_beat = lambda: self._forget_unreachable(self._reachable)
        self._owed = Owed(node, self._acks)
        node.handlers |= {
            Emit: self._on_emit,
            Expect: self._owed.on_expect,
            Ack: self._on_ack,
            Enter: self._on_enter,
            Leave: self._on_leave,
            Disconnect: self._on_disconnect,
            CloseRoom: self._on_close_room,
        }
        return node

    def _be_oneself(self) -> None:
        """Made before a fork, every process would be the same node: each becomes one of its own as it starts."""
        if self._node.pid != os.getpid():
            hooks, self._node = self._node.gap_hooks, self._make_node()
            self._node.gap_hooks = hooks
            if self.server is not None:
                self.set_server(self.server)

    # Life

    @property
    def host_id(self) -> str:
        """This node's id, under the name that python-socketio's instrumentation looks for."""
        return self._node.id

    async def start(self) -> None:
        """Join the cluster; once it returns, this node hears the others.

        Raises:
            BrokerUnavailable: no broker answered within `connect_timeout`; calling again is fine.
            BrokerClosed: the adapter was closed.
        """
        self._be_oneself()
        if self._starting is None or self._starting.done():
            await self._node.start()
            return
        await asyncio.wait({self._starting}, timeout=self._node.settings.connect_timeout)
        if self._start_error is not None:
            raise self._start_error
        if not self._node.running:
            raise BrokerUnavailable(self._node.health().reason, broker=self._node.broker_name)

    async def aclose(self) -> None:
        """Leave the cluster: flush what was emitted, say bye, disconnect. Idempotent."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        await self._node.aclose()

    async def __aenter__(self) -> "Adapter":
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    def health(self) -> Health:
        """Whether this node hears and is heard; true when it is, with the reason when it is not."""
        return self._node.health()

    def stats(self) -> dict[str, Any]:
        """The node's counters by name (see `roomcast.core.stats.Stats`)."""
        self._node.stats.acks_forgotten = self._acks.forgotten
        return self._node.stats.snapshot()

    def on_gap(self, hook: GapHook) -> GapHook:
        """Call `hook` with a `Gap` whenever something was, or may have been, lost. Usable as a decorator."""
        self._node.gap_hooks.append(hook)
        return hook

    # What the local half tells

    def _first_in(self, namespace: str, room: Room | None) -> None:
        self._node.subscriber.hear(self._subject_of(namespace, room))

    def _last_out(self, namespace: str, room: Room | None) -> None:
        self._node.subscriber.ignore(self._subject_of(namespace, room))

    def _went(self, client: Client) -> None:
        self._owed.drop(client)

    def _reachable(self, client: Client) -> bool:
        return self._fanout is None or self._fanout.reachable(client)

    def _subject_of(self, namespace: str, room: Room | None) -> Subject:
        subjects = self._node.subjects
        return subjects.namespace(namespace) if room is None else subjects.room(namespace, room)

    # What the server calls: life and connections

    def set_server(self, server: Any) -> None:
        """Called by the server with itself."""
        self.server = server
        self.json = server.packet_class.json
        self._packets = Packets(server.packet_class)
        self._fanout = FanOut(server, self._node.settings.client_queue, self._node.stats)

    def initialize(self) -> None:
        """Called by the server before its first client: start in the background unless that was done."""
        super().initialize()
        self._be_oneself()
        if not self._node.running and self._starting is None:
            self._starting = asyncio.ensure_future(self._start_in_background())

    async def _start_in_background(self) -> None:
        delay, longest = _BACKOFF
        while True:
            try:
                await self._node.start()
            except BrokerUnavailable as exc:
                logger.warning("roomcast: not started, trying again: %s", exc)
            except RoomcastError as exc:
                logger.exception("roomcast: not started, and trying again would not help")
                self._start_error = exc
                return
            else:
                return
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Admit a client to a namespace; None when its connection is in it already."""
        if self._starting is not None and not self._starting.done():
            await asyncio.wait({self._starting}, timeout=self._node.settings.connect_timeout)
        if self._rooms.by_eio_sid(namespace, eio_sid) is not None:
            return None
        namespace_name(namespace)
        sid = new_sid(self._node.id)
        self._admit(namespace, sid, eio_sid)
        try:
            await self._node.subscriber.heard(self._subject_of(namespace, None))
        except BaseException:
            self.basic_disconnect(sid, namespace)
            raise
        return sid

    async def connect(self, sid: str, namespace: str) -> str | None:
        """Mark a client as fully connected."""
        client = self._rooms.client(namespace, sid)
        if client is None:
            if owner(sid) == self._node.id:
                return sid  # it went away while its connect handler ran
            admitted = await self.pre_connect(sid, namespace)  # the sid of an Engine.IO connection
            if admitted is None:
                return None
            client = cast("Client", self._rooms.client(namespace, admitted))
        client.state = State.CONNECTED
        if not self._reachable(client):
            # the connection was lost while the connect handler ran: the server has ignored that
            self._node.spawn(self.server._handle_disconnect(client.eio_sid, namespace))  # noqa: SLF001
        return client.sid

    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether the server shall disconnect the client itself; a client elsewhere is disconnected there.

        Raises:
            RequestTimeout: the client's node did not answer.
        """
        if self._rooms.client(namespace, sid) is not None:
            return self.is_connected(sid, namespace)
        await self._disconnect_elsewhere(sid, namespace)
        return False

    async def disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        """Forget a client of this node (`ignore_queue=True`, as the server calls it), or disconnect one anywhere.

        Raises:
            RequestTimeout: the client's node did not answer.
        """
        if kwargs.get("ignore_queue"):
            self.basic_disconnect(sid, namespace)
        elif self._rooms.client(namespace, sid) is not None:
            await self.server.disconnect(sid, namespace=namespace, ignore_queue=True)
        else:
            await self._disconnect_elsewhere(sid, namespace)

    async def _disconnect_elsewhere(self, sid: str, namespace: str) -> None:
        node = owner(sid)
        if node in self._node.peers:
            await self._node.request(node, lambda number: Disconnect(number, namespace, sid))

    def _on_disconnect(self, origin: str, message: Disconnect) -> None:
        self._node.spawn(self._disconnect_for(origin, message))

    async def _disconnect_for(self, origin: str, message: Disconnect) -> None:
        known = self._rooms.client(message.namespace, message.sid) is not None
        try:
            if known:
                await self.server.disconnect(message.sid, namespace=message.namespace, ignore_queue=True)
        finally:  # an error of the application's disconnect handler is this node's, not the asking one's
            self._node.answer(origin, Reply(message.request, value=int(known)))

    # What the server calls: rooms

    async def enter_room(self, sid: str, namespace: str, room: Room, eio_sid: str | None = None) -> None:  # noqa: ARG002
        """Put a client of any node into a room (rule 3).

        Raises:
            TypeError: the room is not named by text or an integer.
            ValueError: the client is not connected, here or anywhere, or the room is another client's own.
            ConfigurationError: the broker refuses this node the room's subject.
            RequestTimeout: the client's node did not answer.
        """
        room = room_name(room)
        if self._rooms.client(namespace, sid) is None:
            node = owner(sid)
            if node not in self._node.peers:
                raise ValueError(NOT_HERE)
            reply = await self._node.request(node, lambda number: Enter(number, namespace, sid, room))
            if reply.error:
                raise ValueError(reply.error)
            return
        await self._join(sid, namespace, room)

    async def _join(self, sid: str, namespace: str, room: Room) -> None:
        """Rule 3. Undone when the broker refuses the room's subject, or the caller waits no longer."""
        self.basic_enter_room(sid, namespace, room)
        try:
            await self._node.subscriber.heard(self._subject_of(namespace, room))
        except BaseException:
            self.basic_leave_room(sid, namespace, room)
            raise

    async def leave_room(self, sid: str, namespace: str, room: Room) -> None:
        """Take a client of any node out of a room; once it returns, nothing emitted later to it arrives.

        Raises:
            TypeError: the room is not named by text or an integer.
            RequestTimeout: the client's node did not answer.
        """
        room = room_name(room)
        if self._rooms.client(namespace, sid) is not None:
            self.basic_leave_room(sid, namespace, room)
        elif (node := owner(sid)) in self._node.peers:
            await self._node.request(node, lambda number: Leave(number, namespace, sid, room))

    async def close_room(self, room: Room, namespace: str | None = None) -> None:
        """Take everyone out of a room, on every node, in order with what this node emits.

        Raises:
            TypeError: the room is not named by text or an integer.
            ValueError: the room is a client's own.
        """
        room, namespace = room_name(room), namespace or "/"
        message = encode_message(CloseRoom(namespace, room))
        await self._node.publisher.reserve(len(message))
        try:
            self.basic_close_room(room, namespace)
        except ValueError:
            self._node.publisher.release_place(len(message))
            raise
        self._node.publisher.put(self._node.subjects.room(namespace, room), message)

    def _on_enter(self, origin: str, message: Enter) -> None:
        try:
            self.basic_enter_room(message.sid, message.namespace, message.room)
        except ValueError as exc:
            self._node.answer(origin, Reply(message.request, error=str(exc)))
        else:
            self._node.spawn(self._entered(origin, message))

    async def _entered(self, origin: str, message: Enter) -> None:
        try:
            await self._node.subscriber.heard(self._subject_of(message.namespace, message.room))
        except RoomcastError as exc:
            self.basic_leave_room(message.sid, message.namespace, message.room)
            self._node.answer(origin, Reply(message.request, error=str(exc)))
        else:
            self._node.answer(origin, Reply(message.request, value=1))

    def _on_leave(self, origin: str, message: Leave) -> None:
        self.basic_leave_room(message.sid, message.namespace, message.room)
        self._node.answer(origin, Reply(message.request, value=1))

    def _on_close_room(self, _origin: str, message: CloseRoom) -> None:
        if not self.is_sid_room(message.namespace, message.room):
            self.basic_close_room(message.room, message.namespace)

    # What the server calls: events

    async def emit(
        self,
        event: str,
        data: Any = None,
        namespace: str | None = None,
        room: Any = None,
        skip_sid: Any = None,
        callback: Callback | None = None,
        to: Any = None,
        **kwargs: Any,
    ) -> None:
        """Send an event to a client, a room, several rooms or everyone, on every node (rules 1 and 2).

        Args:
            event: the event's name.
            data: one argument; a tuple for several; None for none.
            namespace: "/" when not given.
            room: a room, a sid, or a list of them; None for everyone in the namespace. `to` is an alias.
            skip_sid: a sid, or a list of them, that shall not get the event.
            callback: called, or awaited, with each client's acknowledgement.
            to: alias of `room`.
            kwargs: `ignore_queue=True` reaches only the clients of this node.

        Raises:
            EncodeError: the data cannot be serialised; nobody got the event.
            TypeError: a room or the event is not named by text (a room: or an integer).
            PayloadTooLarge, Backpressure, BrokerClosed: nobody got the event.
            PublishUnconfirmed: only with `confirm`: other nodes may or may not have got it.
        """
        namespace = namespace_name(namespace or "/")
        rooms = addressed(to if to is not None else room)
        skip = skipped(skip_sid)
        packet = self._packets.event(event, _arguments(data), namespace)
        subject = None if kwargs.get("ignore_queue") else self._subject(namespace, rooms, ack=callback is not None)
        if callback is None:
            entry = await self._send(Emit(namespace, rooms, packet, skip), subject)
        else:
            request = self._acks.begin(callback, self._ackers(rooms, subject))
            try:
                entry = await self._send(Emit(namespace, rooms, packet, skip, request), subject)
            except BaseException:
                self._acks.cancel(request)
                raise
        if entry is not None and self._node.settings.confirm:
            await self._node.publisher.confirmed(entry, self._node.settings.emit_timeout)

    async def _send(self, emit: Emit, subject: Subject | None) -> Entry | None:
        """Rule 1: a place first, then the local clients and the outbox in one go."""
        publisher = self._node.publisher
        if subject is None:
            await publisher.turn()
            self._deliver(self._node.id, emit, emit.packet.parts)
            return None
        message = encode_message(emit)
        await publisher.reserve(len(message))
        entry = publisher.put(subject, message)
        self._deliver(self._node.id, emit, emit.packet.parts)
        return entry

    async def trigger_callback(self, sid: str, id: int, data: Sequence[Any]) -> None:  # noqa: A002 - socketio's name
        """Called by the server with a client's acknowledgement (rule 4)."""
        for namespace in self._rooms.namespaces():
            client = self._rooms.client(namespace, sid)
            if client is not None:
                break
        else:
            return
        try:
            callback = self._owed.settle(client, id, data, namespace, self._packets)
        except KeyError:
            logger.warning("roomcast: unknown callback %s of client %s, ignored", id, sid)
            return
        if callback is not None:
            await _call(callback, data)

    def _deliver(self, origin: str, emit: Emit, parts: Parts) -> None:
        """Hand a packet to the clients of this node that are addressed."""
        if self._fanout is None:
            return
        clients = self._rooms.select(emit.namespace, emit.rooms, emit.skip)
        if not emit.request:
            self._fanout.send(clients, parts)
            return
        for client, number in self._owed.ask(origin, emit.request, clients):
            self._fanout.send((client,), self._packets.with_id(parts, emit.namespace, number))

    def _on_emit(self, origin: str, message: Emit) -> None:
        try:
            parts = self._packets.accept(message.packet, message.namespace)
        except WireError:
            if message.request:
                self._node.answer(origin, Expect(message.request, ()))
            raise
        self._deliver(origin, message, parts)

    def _on_ack(self, origin: str, message: Ack) -> None:
        if message.packet is None:
            self._acks.gone(message.request, origin, message.sid)
            return
        data = self._packets.ack_data(message.packet)
        callback = self._acks.answer(message.request, origin, message.sid)
        if callback is None:
            raise WireError("stray_ack", "An acknowledgement arrived that nothing waits for.")
        self._node.spawn(_call(callback, data))

    def _subject(self, namespace: str, rooms: tuple[Room, ...], *, ack: bool) -> Subject | None:
        """Where an event goes (rule 2); None when nobody elsewhere can be meant."""
        subjects = self._node.subjects
        everyone = subjects.control if ack else subjects.namespace(namespace)
        if len(rooms) != 1:
            return everyone
        node = owner(rooms[0])
        if not node:
            return subjects.control if ack else subjects.room(namespace, rooms[0])
        if node == self._node.id:
            return None  # a client of this node, here or gone
        # a sid of a node that has not said hello yet, or a room that looks like one: both are found everywhere
        return subjects.inbox(node) if node in self._node.peers else everyone

    def _ackers(self, rooms: tuple[Room, ...], subject: Subject | None) -> set[str]:
        """The nodes that will say which clients they reached."""
        if subject is None:
            return {self._node.id}
        node = owner(rooms[0]) if len(rooms) == 1 else ""
        return {self._node.id, node} if node in self._node.peers else {self._node.id, *self._node.peers.ids}


def _arguments(data: Any) -> Sequence[Any]:
    if isinstance(data, tuple):
        return cast("tuple[Any, ...]", data)
    return () if data is None else (data,)


async def _call(callback: Callable[..., Any], data: Sequence[Any]) -> None:
    result = callback(*data)
    if inspect.isawaitable(result):
        await result
