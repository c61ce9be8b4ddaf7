"""python-socketio's face of a node: the client manager that a `socketio.AsyncServer` is given.

Every call that the server makes on its manager keeps its meaning and reaches the whole cluster:

1. `emit` is accepted, or fails, as `broadcast` says.
2. When `enter_room` returns, what is emitted later to the room, on any node, reaches the client.
3. `enter_room`, `leave_room` and `disconnect` of a client elsewhere return when it is done there.
4. They come after what this node emitted before, wherever the client is. With `order="total"`, those about a client of
   this node wait until it has that, or until that was given up; but act `request_timeout` after it at the latest.

What python-socketio has no words for are the operators (`operator`) and the verbs below them.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any, Unpack, cast

from roomcast.core.acks import Callback
from roomcast.core.address import Address
from roomcast.core.answers import Answers
from roomcast.core.broadcast import Answer, Broadcast, Collector, call
from roomcast.core.broker import Gap, Subject
from roomcast.core.claims import Claims
from roomcast.core.client_queue import Bounds
from roomcast.core.clients import Clients, addressed, skipped
from roomcast.core.cluster import Cluster
from roomcast.core.doorway import Doorway
from roomcast.core.elsewhere import Elsewhere
from roomcast.core.errors import BrokerUnavailable, ConfigurationError, RoomcastError, WireError
from roomcast.core.events import Handlers, ServerEvents
from roomcast.core.fanout import FanOut
from roomcast.core.gaps import GapHook
from roomcast.core.health import Health
from roomcast.core.messages import CloseRoom, Emit, Selection, encode_message
from roomcast.core.node import Node
from roomcast.core.options import Settings, options
from roomcast.core.owed import Owed
from roomcast.core.packets import Packets, Parts
from roomcast.core.presence import Presence
from roomcast.core.recovery import Recoveries
from roomcast.core.rooms import Client, State
from roomcast.core.services import Services
from roomcast.core.sids import new_sid, owner
from roomcast.core.starting import Starting
from roomcast.core.subjects import Room, namespace_name, room_name
from roomcast.core.surveys import Surveys

logger = logging.getLogger("roomcast")


class Adapter(Clients, Services):
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
        self._fanout: FanOut | None = None
        self._handlers = Handlers()
        self._starting = Starting()
        self._doorway: Doorway | None = None
        self._become_node()
        self.on_gap(self._on_gap)

    def _become_node(self) -> None:
        """Make the node and all that works for it."""
        self._node = node = Node(self._url, self._settings, self._counts)
        self._broadcast = Broadcast(node, lambda emit: self._deliver(node.id, emit))
        self._owed = Owed(node, self._broadcast.acks)
        self._answers = Answers(node, self, self._rooms)
        self._surveys = Surveys(node)
        self._cluster = Cluster(node, self._broadcast, self._surveys, self._answers)
        self._events = ServerEvents(node, self._cluster, self._handlers)
        self._claims = Claims(node, self._surveys, self._answers, self, self._rooms, self._handlers)
        self._presence = Presence(node, self._rooms)
        node.on_beat.append(lambda: self._forget_unreachable(self._reachable))
        node.membership.on_joined.append(lambda info: self._events.tell("node_joined", info))
        node.membership.on_left.append(lambda info, why: self._events.tell("node_left", info, why))
        node.handlers |= {Emit: self._on_emit, CloseRoom: self._on_close_room}
        node.at_home |= {
            Emit: lambda emit: self._deliver(node.id, emit),
            CloseRoom: lambda close: self._on_close_room(node.id, close),
        }
        recovery = node.settings.recovery
        self._recoveries = None if recovery is None else Recoveries(node, recovery, self, self._rooms)
        self._elsewhere = Elsewhere(node, self._surveys, self._cluster, self._recoveries)

    def _counts(self) -> tuple[int, int]:
        return len(self._rooms), sum(len(self._rooms.rooms(namespace)) for namespace in self._rooms.namespaces())

    def _be_oneself(self) -> None:
        """Made before a fork, every process would be the same node: each becomes one of its own as it starts."""
        if self._node.pid != os.getpid():
            hooks = self._node.gaps.hooks
            self._become_node()
            self._node.gaps.hooks = hooks
            if self.server is not None:
                self._serve()

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
            ConfigurationError: the broker will never accept these settings.
            RuntimeError: it was started on another event loop.

        What is raised is also logged, because an ASGI server says no more than that startup failed.
        """
        self._be_oneself()
        if not self._starting.under_way:
            try:
                await self._node.start()
            except RoomcastError as exc:
                logger.error("roomcast: not started: %s", exc)  # noqa: TRY400 - socketio.ASGIApp drops what is raised
                raise
            return
        await self._starting.wait(self._node)
        if self._starting.error is not None:
            raise self._starting.error
        if not self._node.running:
            raise BrokerUnavailable(self._node.health().reason, broker=self._node.broker_name)

    async def aclose(self) -> None:
        """Leave the cluster: flush what was emitted, say bye, disconnect. Idempotent."""
        await self._starting.cancel()
        if self._recoveries is not None:
            self._recoveries.serving.flush()
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
        self._node.stats.acks_forgotten = self._broadcast.acks.forgotten
        return self._node.stats.snapshot()

    def on_gap(self, hook: GapHook) -> GapHook:
        """Call `hook` with a `Gap` whenever something was, or may have been, lost. Usable as a decorator."""
        self._node.gaps.hooks.append(hook)
        return hook

    def _on_gap(self, gap: Gap) -> None:
        self._presence.on_gap(gap)  # of the node that is, after a fork as well
        self._claims.on_gap(gap)

    def _known(self, sid: str, namespace: str) -> dict[str, Any] | None:
        if (client := self._rooms.client(namespace, sid)) is not None:
            return self._answers.data(client, namespace)
        return None if self._recoveries is None else self._recoveries.data(sid, namespace)

    # What the local half tells

    def _first_in(self, namespace: str, room: Room | None) -> None:
        self._node.subscriber.hear(self._subject_of(namespace, room))

    def _last_out(self, namespace: str, room: Room | None) -> None:
        self._node.subscriber.ignore(self._subject_of(namespace, room))

    def _entered(self, namespace: str, room: Room | None, sid: str) -> None:
        self._presence.entered(namespace, room, sid)
        if self._recoveries is not None and room is not None and (client := self._rooms.client(namespace, sid)):
            self._recoveries.serving.entered(client, room)

    def _exited(self, namespace: str, room: Room | None, sid: str) -> None:
        self._presence.exited(namespace, room, sid)
        if self._recoveries is not None and room is not None and (client := self._rooms.client(namespace, sid)):
            self._recoveries.serving.exited(client, room)

    def _parting(self, client: Client) -> None:
        self._owed.drop(client)
        if self._recoveries is not None:
            self._recoveries.serving.parting(
                client, sent_away=self._doorway is None or not self._doorway.leaves(client)
            )

    def _went(self, client: Client) -> None:
        self._owed.drop(client)
        self._claims.went(client.sid)
        if self._fanout is not None:
            self._fanout.went(client)
        if self._recoveries is not None:
            self._recoveries.serving.went(client)

    def send_away(self, client: Client) -> None:
        """See `Clients.send_away`."""
        if self._recoveries is not None:
            self._recoveries.serving.send_away(client)

    def _reachable(self, client: Client) -> bool:
        return self._fanout is None or self._fanout.reachable(client)

    def _subject_of(self, namespace: str, room: Room | None) -> Subject:
        subjects = self._node.subjects
        return subjects.namespace(namespace) if room is None else subjects.room(namespace, room)

    # What the server calls: life and connections

    def set_server(self, server: Any) -> None:
        """Called by the server with itself.

        Raises:
            ConfigurationError: it is no `socketio.AsyncServer`, or the adapter serves another one.
        """
        if not server.is_asyncio_based():
            raise ConfigurationError(
                "roomcast works with socketio.AsyncServer, not with socketio.Server and its threads."
            )
        if self.server is not None and self.server is not server:
            raise ConfigurationError("This adapter serves another socketio.AsyncServer: make one Adapter for each.")
        self.server = server
        self.json = server.packet_class.json
        self._note_auth(server)
        self._serve()

    def _serve(self) -> None:
        self._broadcast.packets = Packets(self.server.packet_class)
        settings = self._node.settings
        bounds = Bounds(
            settings.client_queue, settings.client_queue_bytes, settings.slow_client, settings.compress_from
        )
        self._fanout = FanOut(self.server, bounds, self._node.stats, paced=self._node.on_a_log)
        self._broadcast.crowded = self._fanout.crowded
        if self._node.on_a_log:
            self._node.paced = self._fanout
        if self._recoveries is not None:
            self._recoveries.serve(self.server, self._fanout, self._broadcast.packets)
            if self._doorway is None:
                self._doorway = Doorway(self.server, self._rooms, self._recoveries)
            self._doorway.recoveries = self._recoveries

    def initialize(self) -> None:
        """Called by the server before its first client: start in the background unless that was done."""
        super().initialize()
        self._be_oneself()
        self._starting.begin(self._node)

    async def pre_connect(self, eio_sid: str, namespace: str) -> str | None:
        """Admit a client to a namespace; None when its connection is in it already."""
        await self._starting.wait(self._node)
        if self._rooms.by_eio_sid(namespace, eio_sid) is not None:
            return None
        namespace_name(namespace)
        if self._doorway is not None:
            if (restored := await self._doorway.restored(eio_sid, namespace)) is not None:
                return restored
            if self._rooms.by_eio_sid(namespace, eio_sid) is not None or eio_sid not in self.server.environ:
                return None  # the connection has asked twice, or is gone
        elif self.server is not None:
            self.server.environ.get(eio_sid, {})["roomcast.recovered"] = False
        sid = new_sid(self._node.id)
        client = self.admit(namespace, sid, eio_sid)
        if self._doorway is not None:
            self._doorway.admit(client, namespace)
        try:
            await self._node.subscriber.heard(self._subject_of(namespace, None))
        except BaseException:
            self.basic_disconnect(sid, namespace)
            raise
        return sid

    async def connect(self, sid: str, namespace: str) -> str | None:
        """Mark a client as fully connected."""
        client = self._rooms.client(namespace, sid)
        if self._overtaken(sid, namespace):
            return sid
        if client is None:
            if owner(sid) == self._node.id or (self._recoveries is not None and self._recoveries.knows(sid)):
                return sid  # it went away while its connect handler ran
            admitted = await self.pre_connect(sid, namespace)  # the sid of an Engine.IO connection
            if admitted is None:
                return None
            client = cast("Client", self._rooms.client(namespace, admitted))
        client.state = State.CONNECTED
        if self._recoveries is not None:
            self._recoveries.serving.connected(client)
        if not self._reachable(client):
            # the connection was lost while the connect handler ran: the server has ignored that
            self._node.spawn(self.server._handle_disconnect(client.eio_sid, namespace))  # noqa: SLF001
        return client.sid

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        """Mark a client as going away while its disconnect handler runs."""
        if self._doorway is not None and self._doorway.refuses_in_vain(sid, namespace):
            return None
        return super().pre_disconnect(sid, namespace)

    async def can_disconnect(self, sid: str, namespace: str) -> bool:
        """Whether the server shall disconnect the client itself; a client elsewhere is disconnected there.

        Raises:
            RequestTimeout: the client's node did not answer.
        """
        if (client := await self._up_to_date(sid, namespace)) is not None:
            self.send_away(client)
            return self.is_connected(sid, namespace)
        await self._elsewhere.disconnect(sid, namespace)
        return False

    async def disconnect(self, sid: str, namespace: str, **kwargs: Any) -> None:
        """Forget a client of this node (`ignore_queue=True`, as the server calls it), or disconnect one anywhere.

        Raises:
            RequestTimeout: the client's node did not answer.
        """
        if kwargs.get("ignore_queue"):
            if not self._overtaken(sid, namespace) or self._is_going(sid, namespace):
                self.basic_disconnect(sid, namespace)
        elif (client := await self._up_to_date(sid, namespace)) is not None:
            self.send_away(client)
            await self.server.disconnect(sid, namespace=namespace, ignore_queue=True)
        else:
            await self._elsewhere.disconnect(sid, namespace)

    async def _up_to_date(self, sid: str, namespace: str) -> Client | None:
        """A client of this node, once it has what this node emitted before (rule 4); None when it is not here."""
        if self._rooms.client(namespace, sid) is not None:
            await self._node.caught_up()
        return self._rooms.client(namespace, sid)

    def _overtaken(self, sid: str, namespace: str) -> bool:
        return self._doorway is not None and self._doorway.overtaken(sid, namespace)

    def _is_going(self, sid: str, namespace: str) -> bool:
        client = self._rooms.client(namespace, sid)
        return client is not None and client.state is State.DISCONNECTING

    # What the server calls: rooms

    async def enter_room(self, sid: str, namespace: str, room: Room, eio_sid: str | None = None) -> None:  # noqa: ARG002
        """Put a client of any node into a room (rule 2).

        Raises:
            TypeError: the room is not named by text or an integer.
            ValueError: the client is not connected, here or anywhere, or the room is another client's own.
            ConfigurationError: the broker refuses this node the room's subject.
            RequestTimeout: the client's node did not answer.
        """
        room = room_name(room)
        if await self._up_to_date(sid, namespace) is None:
            await self._elsewhere.enter(sid, namespace, room)
        else:
            await self._answers.enter(Selection(namespace, (sid,)), (room,)).heard()

    async def leave_room(self, sid: str, namespace: str, room: Room) -> None:
        """Take a client of any node out of a room; once it returns, nothing emitted later to it arrives.

        Raises:
            TypeError: the room is not named by text or an integer.
            RequestTimeout: the client's node did not answer.
        """
        room = room_name(room)
        if await self._up_to_date(sid, namespace) is not None:
            self.basic_leave_room(sid, namespace, room)
        else:
            await self._elsewhere.leave(sid, namespace, room)

    async def close_room(self, room: Room, namespace: str | None = None) -> None:
        """Take everyone out of a room, on every node, in order with what this node emits.

        It returns once that is done on this node and on its way to the others. With `order="total"` it has its place in
        the log then, before everything that is emitted later on any node.

        Raises:
            TypeError: the room is not named by text or an integer.
            ValueError: the room is a client's own.
            PayloadTooLarge, Backpressure, BrokerClosed: nothing was done.
            PublishRejected: with `order="total"` and `confirm`: nothing was done.
            PublishUnconfirmed: the same: it may still be done.
        """
        room, namespace = room_name(room), namespace or "/"
        message = encode_message(CloseRoom(namespace, room))
        await self._node.publisher.reserve(len(message))
        try:
            if not self._node.total:
                self.basic_close_room(room, namespace)
            elif self.is_sid_room(namespace, room):
                raise ValueError("cannot close a sid room")  # noqa: TRY301 - either way the place is given back
        except ValueError:
            self._node.publisher.release_place(len(message))
            raise
        entry = self._node.publisher.put(self._node.subjects.room(namespace, room), message)
        if self._node.total and self._node.settings.confirm:
            await self._node.publisher.confirmed(entry)
        await self._node.caught_up()

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
        """Send an event to a client, a room, several rooms or everyone, on every node (rule 1).

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
        address = Address(
            namespace=namespace_name(namespace or "/"),
            rooms=addressed(to if to is not None else room),
            excluded=skipped(skip_sid),
            local=bool(kwargs.get("ignore_queue")),
        )
        await self._broadcast.emit(address, event, _arguments(data), callback)

    async def trigger_callback(self, sid: str, id: int, data: Sequence[Any]) -> None:  # noqa: A002 - socketio's name
        """Called by the server with a client's acknowledgement."""
        for namespace in self._rooms.namespaces():
            client = self._rooms.client(namespace, sid)
            if client is not None:
                break
        else:
            return
        try:
            waiter = self._owed.settle(client, id, data, namespace, self._broadcast.packets)
        except KeyError:
            logger.warning("roomcast: unknown callback %s of client %s, ignored", id, sid)
            return
        if isinstance(waiter, Collector):
            waiter.take(Answer(sid, self._node.id, tuple(data)))
        elif waiter is not None:
            await call(waiter, data)

    def _deliver(self, origin: str, emit: Emit, parts: Parts | None = None) -> None:
        """Hand a packet to the clients of this node that are addressed, in these parts or its own."""
        if self._fanout is None:
            if emit.request:
                self._owed.ask(origin, emit.request, ())
            return
        clients = self._rooms.select(emit.namespace, emit.rooms, emit.excluded)
        if not clients and not emit.request:
            return
        parts = parts or emit.packet.parts
        if emit.request:
            clients = self._fanout.ready(clients, volatile=emit.volatile)
            number = self._owed.ask(origin, emit.request, clients)
            parts = self._broadcast.packets.with_id(parts, emit.namespace, number)
        if self._recoveries is not None and not emit.request:
            self._recoveries.deliver(clients, emit, parts)
        elif clients:
            self._fanout.send(clients, parts, volatile=emit.volatile)

    def _on_emit(self, origin: str, message: Emit) -> None:
        try:
            parts = self._broadcast.packets.accept(message.packet, message.namespace)
        except WireError:
            if message.request:
                self._owed.ask(origin, message.request, ())
            raise
        self._deliver(origin, message, parts)


def _arguments(data: Any) -> Sequence[Any]:
    if isinstance(data, tuple):
        return cast("tuple[Any, ...]", data)
    return () if data is None else (data,)
