"""The local half of the manager: what a python-socketio server asks about the clients of its own process.

1. Nothing here waits, and nothing here knows of other nodes.
2. `basic_enter_room`, `basic_leave_room` and `basic_disconnect` are the only ways in and out of a room;
   python-socketio's instrumentation for the Admin UI replaces them on the instance, so they are called through it.
3. The subclass is told of the first member in and the last one out, of each client that went, and of everyone who
   comes into a room or a namespace or leaves it.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, cast

from socketio.async_manager import AsyncManager

from roomcast.core.rooms import Client, Rooms, State
from roomcast.core.subjects import Room, room_name
from roomcast.core.views import RoomsView

NOT_HERE = "sid is not connected to requested namespace"  # python-socketio's own words


class Clients(AsyncManager):  # type: ignore[misc]  # python-socketio has no annotations
    """Who is connected to this process, and in which rooms."""

    server: Any

    def __init__(self) -> None:
        super().__init__()
        self._rooms = Rooms()
        self.rooms = RoomsView(self._rooms)
        self._unreachable: set[Client] = set()
        self._auth: dict[tuple[str, str], Any] = {}

    def _first_in(self, namespace: str, room: Room | None) -> None:
        """A room, or a namespace (None), has its first local member (rule 3)."""

    def _last_out(self, namespace: str, room: Room | None) -> None:
        """A room, or a namespace (None), has lost its last local member (rule 3)."""

    def _entered(self, namespace: str, room: Room | None, sid: str) -> None:
        """A client has come into a room, its own included, or (None) into a namespace (rule 3)."""

    def _exited(self, namespace: str, room: Room | None, sid: str) -> None:
        """A client has left a room, its own included, or (None) a namespace (rule 3)."""

    def _parting(self, client: Client) -> None:
        """A client is going: it says nothing any more (rule 3)."""

    def _went(self, client: Client) -> None:
        """A client is gone (rule 3)."""

    def send_away(self, client: Client) -> None:
        """The application disconnects a client that is going already, or is not connected yet."""

    def admit(self, namespace: str, sid: str, eio_sid: str) -> Client:
        """Take in a new client."""
        if namespace not in self._rooms.namespaces():
            self._first_in(namespace, None)
        client = self._rooms.add(namespace, sid, eio_sid)
        client.time = time.time()
        client.auth = self._auth.get((eio_sid, namespace))
        for place in (None, sid):
            self._entered(namespace, place, sid)
        return client

    def _note_auth(self, server: Any) -> None:
        """Keep what clients send as `auth`: python-socketio shows it to the connect handler alone."""
        handle = server._handle_connect  # noqa: SLF001 - it tells no one else

        async def handle_connect(eio_sid: str, namespace: str | None, data: Any) -> None:
            key = (eio_sid, namespace or "/")
            self._auth[key] = data
            try:
                await handle(eio_sid, namespace, data)
            finally:
                self._auth.pop(key, None)

        server._handle_connect = handle_connect  # noqa: SLF001

    def _forget_unreachable(self, reachable: Callable[[Client], bool]) -> None:
        """Let go of clients that were unreachable at the last call, too.

        python-socketio keeps a client for ever whose connect or disconnect handler raised.
        """
        gone: set[Client] = set()
        for namespace in tuple(self._rooms.namespaces()):
            for client in tuple(self._rooms.members(namespace, None)):
                if reachable(client):
                    continue
                if client in self._unreachable:
                    self.basic_disconnect(client.sid, namespace)
                else:
                    gone.add(client)
        self._unreachable = gone

    def is_pre_connected(self, sid: str, namespace: str) -> bool:
        """Whether a client is waiting for its connect handler."""
        client = self._rooms.client(namespace, sid)
        return client is not None and client.state is State.CONNECTING

    def is_connected(self, sid: str, namespace: str) -> bool:
        """Whether a client of this node is fully connected."""
        client = self._rooms.client(namespace, sid)
        return client is not None and client.state is State.CONNECTED

    def sid_from_eio_sid(self, eio_sid: str, namespace: str) -> str | None:
        """The client of an Engine.IO connection."""
        client = self._rooms.by_eio_sid(namespace, eio_sid)
        return None if client is None else client.sid

    def eio_sid_from_sid(self, sid: str, namespace: str) -> str | None:
        """The Engine.IO connection of a client of this node."""
        client = self._rooms.client(namespace, sid)
        return None if client is None else client.eio_sid

    def pre_disconnect(self, sid: str, namespace: str) -> str | None:
        """Mark a client as going away while its disconnect handler runs."""
        client = self._rooms.client(namespace, sid)
        if client is None:
            return None
        client.state = State.DISCONNECTING
        self._parting(client)
        return client.eio_sid

    def basic_disconnect(self, sid: str, namespace: str, **_kwargs: Any) -> None:
        """Forget a client of this node, its rooms and what it owes."""
        client = self._rooms.client(namespace, sid)
        if client is None:
            return
        for room in tuple(client.rooms):
            self.basic_leave_room(sid, namespace, room)
        self._rooms.remove(namespace, sid)
        if namespace not in self._rooms.namespaces():
            self._last_out(namespace, None)
        for place in (None, sid):
            self._exited(namespace, place, sid)
        self._went(client)

    def basic_enter_room(self, sid: str, namespace: str, room: Room | None, eio_sid: str | None = None) -> None:  # noqa: ARG002
        """Put a client of this node into a room, without waiting for the room to be heard."""
        client = self._rooms.client(namespace, sid)
        if client is None:
            raise ValueError(NOT_HERE)
        if room is None or room == sid:
            return  # everyone is in the namespace, and in the room of their own sid
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot enter a sid room")
        if room in client.rooms:
            return
        if self._rooms.enter(namespace, client, room):
            self._first_in(namespace, room)
        self._entered(namespace, room, sid)

    def basic_leave_room(self, sid: str, namespace: str, room: Room | None) -> None:
        """Take a client of this node out of a room."""
        client = self._rooms.client(namespace, sid)
        if client is None or room is None or room not in client.rooms:
            return
        if self._rooms.leave(namespace, client, room):
            self._last_out(namespace, room)
        self._exited(namespace, room, sid)

    def basic_close_room(self, room: Room, namespace: str) -> None:
        """Take every client of this node out of a room."""
        if self.is_sid_room(namespace, room):
            raise ValueError("cannot close a sid room")
        for client in tuple(self._rooms.members(namespace, room)):
            self.basic_leave_room(client.sid, namespace, room)

    def is_sid_room(self, namespace: str, room: Room | None) -> bool:
        """Whether a room is a local client's own."""
        return self._rooms.client(namespace, room) is not None

    def get_rooms(self, sid: str, namespace: str) -> list[Room]:
        """The rooms of a client of this node, its own first."""
        client = self._rooms.client(namespace, sid)
        return [] if client is None else [sid, *client.rooms]

    def get_namespaces(self) -> Sequence[str]:  # pyright: ignore[reportIncompatibleMethodOverride]  # dict_keys
        """The namespaces with a client on this node."""
        return tuple(self._rooms.namespaces())

    def get_participants(self, namespace: str, room: Any) -> Generator[tuple[str, str], None, None]:
        """The clients of this node in a room, in any of several, or in the namespace (None): (sid, eio_sid)."""
        for client in tuple(self._rooms.select(namespace, addressed(room))):
            yield client.sid, client.eio_sid


def addressed(room: Any) -> tuple[Room, ...]:
    """The rooms that an application names: one, several, or, with None, the whole namespace.

    Raises:
        TypeError: one of them is not named by text or an integer.
        ValueError: the list is empty.
    """
    if room is None:
        return ()
    if isinstance(room, (list, tuple, set, frozenset)):
        rooms = tuple(dict.fromkeys(room_name(item) for item in cast("Iterable[object]", room)))
        if not rooms:
            raise ValueError("An empty list of rooms addresses nobody; None addresses everyone.")
        return rooms
    return (room_name(room),)


def skipped(skip: Any) -> tuple[str, ...]:
    """The sids that an application leaves out: none, one or several.

    Raises:
        TypeError: one of them is not text.
    """
    if skip is None:
        return ()
    if isinstance(skip, str):
        return (skip,)
    if not all(isinstance(sid, str) for sid in skip if sid is not None):
        raise TypeError("skip_sid is a sid or a list of sids, and a sid is text.")
    return tuple(sid for sid in skip if sid is not None)
