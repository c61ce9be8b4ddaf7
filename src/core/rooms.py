"""Local membership: which clients of this node are in which rooms, both directions.

1. Every operation costs O(rooms of the sid) or less, whatever the number of rooms and clients.
2. A sid's own room exists implicitly: it is looked up, not stored.
3. A room exists while it has a member; `enter` tells the first one in, `leave` and `remove` the last one out.
4. `select` gives each addressed client once, however many ways it matches, in the order in which they entered a room.

Most rooms of most applications have one member (a user's own devices, a document, a game), so a room of one is its
member, and only a larger room is a table: that halves the memory of a hundred thousand small rooms.
"""

from collections.abc import Collection, Sequence
from enum import Enum
from typing import Any

from roomcast.core.subjects import Room


class State(Enum):
    """Where a client is in its life."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"


class Client:
    """One Socket.IO session of this node: a sid in a namespace, on an Engine.IO connection."""

    __slots__ = ("acks", "auth", "eio_sid", "queue", "rooms", "session", "sid", "state", "time")

    def __init__(self, sid: str, eio_sid: str) -> None:
        self.sid = sid
        self.eio_sid = eio_sid
        self.state = State.CONNECTING
        self.rooms: dict[Room, None] = {}  # a set in order of entry, at half a set's memory
        self.acks: dict[int, tuple[str, int]] | None = None
        """Acknowledgements this client owes: packet id to (origin node, request number)."""
        self.time = 0.0
        """When it was admitted, seconds since 1970."""
        self.auth: Any = None
        """What it sent as `auth`."""
        self.queue: Any = None
        """What waits for it, once something was sent to it; the fan-out's."""
        self.session: Any = None
        """What is kept of it for when it comes back; the recovery's."""


class _Namespace:
    __slots__ = ("by_eio", "clients", "rooms")

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        self.by_eio: dict[str, Client] = {}
        self.rooms: dict[Room, Client | dict[str, Client]] = {}


_NOBODY = _Namespace()
_EMPTY: dict[str, Client] = {}


class Rooms:
    """The membership table of one node."""

    def __init__(self) -> None:
        self._namespaces: dict[str, _Namespace] = {}

    def __len__(self) -> int:
        """How many clients there are, each counted once per namespace."""
        return sum(len(namespace.clients) for namespace in self._namespaces.values())

    def namespaces(self) -> Collection[str]:
        """The namespaces with at least one client."""
        return self._namespaces.keys()

    def rooms(self, namespace: str) -> Collection[Room]:
        """The rooms of a namespace that have members here (rule 3)."""
        return self._namespaces.get(namespace, _NOBODY).rooms.keys()

    def client(self, namespace: str, sid: object) -> Client | None:
        """The client of this sid, if it is here."""
        return self._namespaces.get(namespace, _NOBODY).clients.get(sid)  # type: ignore[call-overload,no-any-return]

    def by_eio_sid(self, namespace: str, eio_sid: str) -> Client | None:
        """The client on this Engine.IO connection, if it is in the namespace."""
        return self._namespaces.get(namespace, _NOBODY).by_eio.get(eio_sid)

    def add(self, namespace: str, sid: str, eio_sid: str) -> Client:
        """Admit a client. Its Engine.IO connection must not be in the namespace yet."""
        here = self._namespaces.setdefault(namespace, _Namespace())
        client = Client(sid, eio_sid)
        here.clients[sid] = here.by_eio[eio_sid] = client
        return client

    def remove(self, namespace: str, sid: str) -> tuple[Client, Sequence[Room]] | None:
        """Forget a client; gives back the rooms it was the last member of, or None when it is not here."""
        here = self._namespaces.get(namespace, _NOBODY)
        client = here.clients.pop(sid, None)
        if client is None:
            return None
        here.by_eio.pop(client.eio_sid, None)
        emptied = [room for room in client.rooms if self._discard(here, room, client)]
        client.rooms.clear()
        if not here.clients:
            del self._namespaces[namespace]
        return client, emptied

    def enter(self, namespace: str, client: Client, room: Room) -> bool:
        """Put a client into a room; True when it is the room's first member here (rule 3)."""
        here = self._namespaces[namespace]
        if room in client.rooms:
            return False
        client.rooms[room] = None
        members = here.rooms.get(room)
        if members is None:
            here.rooms[room] = client
            return True
        if isinstance(members, Client):
            here.rooms[room] = {members.sid: members, client.sid: client}
        else:
            members[client.sid] = client
        return False

    def leave(self, namespace: str, client: Client, room: Room) -> bool:
        """Take a client out of a room; True when it was the last member here (rule 3)."""
        if room not in client.rooms:
            return False
        del client.rooms[room]
        return self._discard(self._namespaces[namespace], room, client)

    def members(self, namespace: str, room: Room | None) -> Collection[Client]:
        """The clients in a room, in the room of a sid (rule 2), or in the whole namespace (None)."""
        here = self._namespaces.get(namespace)
        if here is None:
            return ()
        if room is None:
            return here.clients.values()
        found = here.rooms.get(room, _EMPTY)
        members = (found,) if isinstance(found, Client) else found.values()
        own = here.clients.get(room) if isinstance(room, str) else None
        return members if own is None else dict.fromkeys((own, *members))

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Collection[Client]:
        """Everyone in any of `rooms` (in the namespace when there are none) and in none of `excluded` (rule 4)."""
        chosen: Collection[Client]
        if len(rooms) == 0:
            chosen = self.members(namespace, None)
        elif len(rooms) == 1:
            chosen = self.members(namespace, rooms[0])
        else:
            chosen = {client: None for room in rooms for client in self.members(namespace, room)}
        if not excluded:
            return chosen
        here = self._namespaces.get(namespace, _NOBODY)
        unwanted = frozenset(excluded)
        if here.rooms.keys().isdisjoint(unwanted):  # sids alone
            return [client for client in chosen if client.sid not in unwanted]
        return [c for c in chosen if c.sid not in unwanted and c.rooms.keys().isdisjoint(unwanted)]

    @staticmethod
    def _discard(here: _Namespace, room: Room, client: Client) -> bool:
        members = here.rooms[room]
        if isinstance(members, Client):
            del here.rooms[room]
            return True
        del members[client.sid]
        if len(members) == 1:
            (here.rooms[room],) = members.values()
        return False
