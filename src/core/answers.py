"""What a node does, and says, about its own clients when it is asked: by another node, or by itself.

1. Each request is answered, also when nobody is addressed, and when it cannot be done (`Reply.error`).
2. Who is addressed is decided when the request is handled, in order with the emits of the node that asks.
3. A join is answered once emits to the rooms reach this node; a disconnect once the application's handlers are done.
   A client that was admitted but whose connect handler still runs cannot be disconnected, and is not counted; one that
   has come back is refused then.
4. A long answer goes in parts, each one sent when the asking node wants it. An answer that nobody asks on for
   `_PATIENCE` seconds, or whose asker is gone, is forgotten. One more than `_ANSWERS` at a time is refused.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any

import msgspec

from roomcast.core.clients import Clients
from roomcast.core.descriptions import describe, handshake, travelled
from roomcast.core.errors import RoomcastError
from roomcast.core.messages import CountClients, Disconnect, Fetch, Join, Leave, ListRooms, More, Reply, Selection
from roomcast.core.node import Node
from roomcast.core.rooms import Client, Rooms
from roomcast.core.subjects import Room
from roomcast.core.wire import OVERHEAD

_PART = 65_536  # bytes of one part of an answer, about
_PATIENCE = 120.0  # seconds until an answer that nobody asks on for is forgotten
_ANSWERS = 1000  # in the middle of which a node may be
_AT_ONCE = 100  # clients that are disconnected at the same time
_CLOSING = 2.0  # seconds to wait for connections to close
_HEAD = 64  # bytes of a `Reply` without its data

_encoder = msgspec.msgpack.Encoder()


class Answers:
    """What one node answers.

    Args:
        node: the node.
        clients: its clients.
        rooms: where they are.
    """

    def __init__(self, node: Node, clients: Clients, rooms: Rooms) -> None:
        self._node = node
        self._clients = clients
        self._rooms = rooms
        self._stays: dict[tuple[Client, Room], _Stay] = {}  # that are not certain yet
        self._parts: OrderedDict[tuple[str, int], tuple[float, Iterator[bytes]]] = OrderedDict()
        node.handlers |= {
            Join: self._on_join,
            Leave: self._on_leave,
            Disconnect: self._on_disconnect,
            CountClients: self._on_count,
            Fetch: self._on_fetch,
            ListRooms: self._on_list_rooms,
            More: self._on_more,
        }
        node.on_left.append(self._on_left)
        node.on_beat.append(self._forget)

    # Deeds, for this node's own requests and for those of others

    def select(self, selection: Selection) -> list[Client]:
        """The clients of this node that are addressed."""
        return list(self._rooms.select(selection.namespace, selection.rooms, selection.excluded))

    def enter(self, selection: Selection, rooms: Collection[Room]) -> "Entered":
        """Put clients into rooms at once; await the result's `heard` before saying so (rule 3).

        Raises:
            ValueError: a room is another client's own; nobody was put anywhere.
        """
        clients = self.select(selection)
        for room in rooms:
            if any(room != client.sid for client in clients) and self._clients.is_sid_room(selection.namespace, room):
                raise ValueError("cannot enter a sid room")
        stays: list[_Stay] = []
        to_hear: dict[Room, None] = {}
        for client in clients:
            for room in rooms:
                if room == client.sid:
                    continue
                to_hear[room] = None  # also when the client is in it: its first join may still be under way
                if room not in client.rooms:
                    self._clients.basic_enter_room(client.sid, selection.namespace, room)
                    self._stays[client, room] = _Stay(client, room)
                if (stay := self._stays.get((client, room))) is not None:
                    stay.joins += 1
                    stays.append(stay)
        return Entered(self, selection.namespace, len(clients), to_hear, stays)

    def leave(self, selection: Selection, rooms: Iterable[Room]) -> int:
        """Take clients out of rooms; how many were addressed."""
        clients = self.select(selection)
        for room in rooms:
            for client in clients:
                self._clients.basic_leave_room(client.sid, selection.namespace, room)
        return len(clients)

    async def disconnect(self, clients: Iterable[Client], namespace: str, *, close: bool) -> int:
        """Disconnect clients, those who are connected; how many they were."""
        slots = asyncio.Semaphore(_AT_ONCE)
        closing: list[asyncio.Task[Any]] = []

        async def one(client: Client) -> bool:
            async with slots:
                if not self._clients.is_connected(client.sid, namespace):
                    self._clients.send_away(client)
                    return False
                try:
                    await self._clients.server.disconnect(client.sid, namespace=namespace, ignore_queue=True)
                except Exception as exc:  # noqa: BLE001 - of the application's handler: this node's, not the asker's
                    self._node.fault("a disconnect handler failed", exc)
                    self._clients.basic_disconnect(client.sid, namespace)
                if close:
                    closing.append(self._node.spawn(self._close(client.eio_sid)))
            return True

        touched = sum(await asyncio.gather(*(one(client) for client in clients)))
        if closing:
            _, unfinished = await asyncio.wait(closing, timeout=_CLOSING)
            for task in unfinished:  # nobody polls for the last packet: the connection is closed all the same
                task.cancel()
        return touched

    async def _close(self, eio_sid: str) -> None:
        """End a connection once it has taken what waits for it; a polling client that has gone quiet takes nothing."""
        eio = self._clients.server.eio
        if (socket := eio.sockets.get(eio_sid)) is not None:
            taken = asyncio.ensure_future(socket.queue.join())
            await asyncio.wait({taken}, timeout=_CLOSING / 2)
            taken.cancel()
        await eio.disconnect(eio_sid)

    def describe(self, selection: Selection) -> Iterator[bytes]:
        """Each addressed client as a `Description` in msgpack, as it is when its turn comes."""
        namespace = selection.namespace
        return (
            self._describe(client, namespace)
            for client in self.select(selection)
            if self._rooms.client(namespace, client.sid) is client
        )

    def data(self, client: Client, namespace: str) -> dict[str, Any] | None:
        """What the application stored with a client, as a description has it; None when its connection is gone."""
        gone = client.eio_sid not in self._clients.server.eio.sockets
        return None if gone else travelled(self._session(client, namespace))

    def _describe(self, client: Client, namespace: str) -> bytes:
        shaken = handshake(self._clients.server.environ.get(client.eio_sid, {}), client.auth, client.time)
        session = self._session(client, namespace)
        return describe(client.sid, (client.sid, *client.rooms), session, shaken, self._room_in_a_message)

    def _session(self, client: Client, namespace: str) -> object:
        socket = self._clients.server.eio.sockets.get(client.eio_sid)
        return {} if socket is None else socket.session.get(namespace, {})

    def list_rooms(self, namespace: str) -> Iterator[bytes]:
        """Each room of a namespace with its number of members here, in msgpack."""
        return (
            _encoder.encode((room, members))
            for room in tuple(self._rooms.rooms(namespace))
            if (members := len(self._rooms.members(namespace, room)))
        )

    async def heard(self, namespace: str, rooms: Iterable[Room]) -> None:
        """Return once emits to the rooms reach this node."""
        for room in rooms:
            await self._node.subscriber.heard(self._node.subjects.room(namespace, room))

    def settle(self, namespace: str, stays: Iterable["_Stay"], *, heard: bool) -> None:
        """A join has ended: its clients stay if the rooms are heard; else they leave, unless other joins want them."""
        for stay in stays:
            where = stay.client, stay.room
            if self._stays.get(where) is not stay:
                continue  # another join has made it certain, or the client has left since
            stay.joins -= 1
            if heard or not stay.joins:
                del self._stays[where]
                if not heard:
                    self._clients.basic_leave_room(stay.client.sid, namespace, stay.room)

    # For other nodes

    def _on_join(self, origin: str, message: Join) -> None:
        try:
            entered = self.enter(message.selection, message.rooms)
        except ValueError as exc:
            self._node.answer(origin, Reply(message.request, error=str(exc)))
        else:
            self._node.spawn(self._joined(origin, message.request, entered))

    async def _joined(self, origin: str, request: int, entered: "Entered") -> None:
        try:
            await entered.heard()
        except RoomcastError as exc:
            self._node.answer(origin, Reply(request, error=str(exc)))
        else:
            self._node.answer(origin, Reply(request, entered.clients))

    def _on_leave(self, origin: str, message: Leave) -> None:
        self._node.answer(origin, Reply(message.request, self.leave(message.selection, message.rooms)))

    def _on_disconnect(self, origin: str, message: Disconnect) -> None:
        self._node.spawn(self._disconnected(origin, message, self.select(message.selection)))

    async def _disconnected(self, origin: str, message: Disconnect, clients: list[Client]) -> None:
        touched = await self.disconnect(clients, message.selection.namespace, close=message.close)
        self._node.answer(origin, Reply(message.request, touched))

    def _on_count(self, origin: str, message: CountClients) -> None:
        self._node.answer(origin, Reply(message.request, len(self.select(message.selection))))

    def _on_fetch(self, origin: str, message: Fetch) -> None:
        self.in_parts(origin, message.request, self.describe(message.selection))

    def _on_list_rooms(self, origin: str, message: ListRooms) -> None:
        self.in_parts(origin, message.request, self.list_rooms(message.namespace))

    # Answers in parts (rule 4)

    def in_parts(self, origin: str, request: int, items: Iterable[bytes]) -> None:
        """Answer with a list of items, each one in msgpack and at most a message long."""
        key = (origin, request)
        self._parts[key] = (time.monotonic(), iter(items))
        self._next_part(key)

    @property
    def _room_in_a_message(self) -> int:
        return self._node.publisher.limit - OVERHEAD - _HEAD

    def _next_part(self, key: tuple[str, int]) -> None:
        origin, request = key
        _, items = self._parts.pop(key)
        limit = min(_PART, self._room_in_a_message)
        part: list[msgspec.Raw] = []
        size = 0
        more = False
        for item in items:
            if part and size + len(item) > limit:
                items = chain((item,), items)
                more = True
                break
            part.append(msgspec.Raw(item))
            size += len(item)
        if more and len(self._parts) >= _ANSWERS:  # none that is in use gives way
            self._node.answer(origin, Reply(request, error="too many long answers are under way here"))
            return
        if more:
            self._parts[key] = (time.monotonic(), items)
        reply = Reply(request, len(part), data=msgspec.Raw(_encoder.encode(part)), more=more)
        if not self._node.answer(origin, reply):
            self._parts.pop(key, None)

    def _on_more(self, origin: str, message: More) -> None:
        key = (origin, message.request)
        if message.stop:
            self._parts.pop(key, None)
        elif key in self._parts:
            self._next_part(key)
        else:
            self._node.answer(origin, Reply(message.request, error="the answer was given up: nobody asked on for long"))

    def _on_left(self, node: str) -> None:
        for key in [key for key in self._parts if key[0] == node]:
            del self._parts[key]

    def _forget(self) -> None:
        oldest = time.monotonic() - _PATIENCE
        while self._parts and next(iter(self._parts.values()))[0] < oldest:
            self._parts.popitem(last=False)


class _Stay:
    """A client has been put into a room that may not be heard yet; `joins` are under way that want it there."""

    __slots__ = ("client", "joins", "room")

    def __init__(self, client: Client, room: Room) -> None:
        self.client = client
        self.room = room
        self.joins = 0


class Entered:
    """Clients that were put into rooms.

    Attributes:
        clients: how many were addressed.
    """

    def __init__(
        self, answers: Answers, namespace: str, clients: int, to_hear: Iterable[Room], stays: list[_Stay]
    ) -> None:
        self.clients = clients
        self._to_hear = to_hear
        self._answers = answers
        self._namespace = namespace
        self._stays = stays

    async def heard(self) -> None:
        """Return once emits to the rooms reach this node; when that fails, nobody has entered, but by other joins.

        Raises:
            ConfigurationError: the broker refuses a room's subject.
        """
        try:
            await self._answers.heard(self._namespace, self._to_hear)
        except BaseException:
            self._answers.settle(self._namespace, self._stays, heard=False)
            raise
        self.stand()

    def stand(self) -> None:
        """Leave the clients where they are, heard or not."""
        self._answers.settle(self._namespace, self._stays, heard=True)
