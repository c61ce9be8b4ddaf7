"""A session as its owner knows it: what it says of it when it describes it to all.

1. A room's stay begins after the last message that was read when the client entered, and ends with the last one that
   was read when it left. That is what the client itself was given.
2. Stays that have ended are kept, the last `_STAYS` of them, for a client that did not get what was sent before. From
   where one of them has been forgotten nothing can be replayed.
3. After something of the log was not read, nothing can be replayed to who got nothing since.
4. While a client is given what it missed, the last place that it was given is not known; nor is it after rule 3.

Pure: places are numbers of the log.
"""

from typing import Any

import msgspec

from roomcast.core.messages import Keep, Stay
from roomcast.core.rooms import Client
from roomcast.core.subjects import Room
from roomcast.core.tail import UNKNOWN

_STAYS = 64


class Served:
    """One session that this node serves.

    Args:
        pid: its name.
        client: whose it is.
        namespace: where.
        born: where the client was admitted.

    Attributes:
        term: counts its owners.
        last: the place of the last packet that the client was given, or `UNKNOWN`.
        floor: from places before it nothing can be replayed (rule 2).
        kept: when it was described last, on the node's clock; None before the first time.
        number: of that description in this term.
        fits: a message can hold it.
        replaying: the client is given what it missed.
        parting: nothing that happens to the client changes it any more.
        unwanted: the application has sent the client away before its connect handler was done.
        timer: the shell's.
    """

    __slots__ = (
        "_left",
        "_stays",
        "born",
        "client",
        "data",
        "fits",
        "floor",
        "identity",
        "kept",
        "last",
        "namespace",
        "number",
        "parting",
        "pid",
        "replaying",
        "term",
        "timer",
        "unwanted",
    )

    def __init__(self, pid: str, client: Client, namespace: str, *, born: int, identity: str) -> None:
        self.pid = pid
        self.client = client
        self.namespace = namespace
        self.born = born
        self.identity = identity
        self.term = 0
        self.last = 0
        self.floor = 0
        self.data = msgspec.Raw(b"\x80")
        self.kept: float | None = None
        self.number = 0
        self.fits = True
        self.parting = False
        self.replaying = False
        self.unwanted = False
        self.timer: Any = None
        self._stays: dict[Room, int] = {}
        self._left: list[Stay] = []

    @classmethod
    def resumed(cls, keep: Keep, term: int, client: Client) -> "Served":
        """From what another owner, or this one before, has said of it (rule 4)."""
        served = cls(keep.pid, client, keep.namespace, born=keep.born, identity=keep.identity)
        served.term, served.data, served.floor = term, keep.data, keep.floor
        served.last, served.replaying = UNKNOWN, True
        served._stays = {stay.room: stay.joined for stay in keep.stays if stay.left is None}
        served._left = [stay for stay in keep.stays if stay.left is not None]
        return served

    def replayed(self, last: int) -> None:
        """The client was given all that it had missed; after this place it was given nothing of that (rule 4)."""
        if self.replaying and self.last == UNKNOWN:
            self.last = last
        self.replaying = False

    def entered(self, room: Room, place: int) -> None:
        """The client came into a room (rule 1)."""
        self._stays[room] = place

    def exited(self, room: Room, place: int) -> None:
        """The client left a room (rules 1 and 2)."""
        joined = self._stays.pop(room, None)
        if joined is not None and joined < place:
            self._left.append(Stay(room, joined, place))
            if len(self._left) > _STAYS:
                forgotten = self._left.pop(0)
                self.floor = max(self.floor, forgotten.left or 0)

    def cut(self, *, anew: bool) -> None:
        """Something of the log was not read (rule 3); `anew` when it is another log."""
        self.born = self.last = UNKNOWN
        self.replaying = False
        if anew:
            self._left.clear()
            self.floor = 0
            self._stays = dict.fromkeys(self._stays, 0)

    def describe(self, epoch: str, upto: int) -> Keep:
        """The session as it is now."""
        self.number += 1
        stays = (*(Stay(room, joined) for room, joined in self._stays.items()), *self._left)
        return Keep(
            *(self.pid, self.term, self.client.sid, self.namespace, stays, self.data),
            *(epoch, self.born, self.last, upto, self.identity, self.floor),
            number=self.number,
        )
