"""`manager.rooms` as python-socketio's instrumentation reads it: namespace to room to {sid: eio_sid}.

Read-only, made at each look from the membership table, which holds everything once and by other keys.
"""

from collections.abc import Iterator, Mapping

from roomcast.core.rooms import Rooms
from roomcast.core.subjects import Room


class RoomsView(Mapping[str, Mapping[Room | None, Mapping[str, str]]]):
    """The namespaces of this node; each one maps None to everyone, a sid to itself, and a room to its members."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    def __getitem__(self, namespace: str) -> Mapping[Room | None, Mapping[str, str]]:
        if namespace not in self._rooms.namespaces():
            raise KeyError(namespace)
        return _NamespaceView(self._rooms, namespace)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._rooms.namespaces()))

    def __len__(self) -> int:
        return len(self._rooms.namespaces())


class _NamespaceView(Mapping[Room | None, Mapping[str, str]]):
    def __init__(self, rooms: Rooms, namespace: str) -> None:
        self._rooms = rooms
        self._namespace = namespace

    def __getitem__(self, room: Room | None) -> Mapping[str, str]:
        members = self._rooms.members(self._namespace, room)
        if not members:
            raise KeyError(room)
        return {client.sid: client.eio_sid for client in members}

    def __iter__(self) -> Iterator[Room | None]:
        sids = (client.sid for client in self._rooms.members(self._namespace, None))
        return iter(dict.fromkeys((None, *sids, *self._rooms.rooms(self._namespace))))

    def __len__(self) -> int:
        return sum(1 for _ in self)
