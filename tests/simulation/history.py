"""What happened in a simulated cluster, one event after the other: all that the checkers know.

Nodes are "n0", "n1" ..., clients "c0", "c1" ..., and the room of a client's own sid is "@c0". A call is what an
application asked of a node: it has a number, a beginning and, usually, an end. The place of an event in the list says
what came before what.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["returned", "failed", "unsure", "cancelled"]
"""How a call ended: well; with an error that says that nothing happened; with another one; by being cancelled."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True, slots=True)
class NodeUp(Event):
    node: str


@dataclass(frozen=True, slots=True)
class NodeStopping(Event):
    """From here on a node's clients are not owed anything."""

    node: str


@dataclass(frozen=True, slots=True)
class NodeDown(Event):
    node: str
    how: Literal["closed", "killed"]


@dataclass(frozen=True, slots=True)
class ClientUp(Event):
    client: str
    node: str
    namespace: str


@dataclass(frozen=True, slots=True)
class ClientLeaving(Event):
    client: str


@dataclass(frozen=True, slots=True)
class ClientGone(Event):
    client: str


@dataclass(frozen=True, slots=True)
class Away(Event):
    """A client's connection is lost, and it means to come back."""

    client: str


@dataclass(frozen=True, slots=True)
class Back(Event):
    """A client has its session back."""

    client: str
    node: str


@dataclass(frozen=True, slots=True)
class Called(Event):
    """An application asks a node for something.

    Attributes:
        op: "emit", "ask" (an emit that wants acknowledgements), "enter", "leave", "close" (a room), "claim", "release",
            "watch", "survey", "start", "stop".
        within: seconds in which it must end.
    """

    call: int
    node: str
    op: str
    within: float
    client: str = ""
    namespace: str = "/"
    rooms: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    volatile: bool = False
    local: bool = False
    key: str = ""


@dataclass(frozen=True, slots=True)
class Ended(Event):
    call: int
    outcome: Outcome
    error: str = ""
    value: object = None


@dataclass(frozen=True, slots=True)
class Got(Event):
    """A client got the event of an emit."""

    client: str
    call: int


@dataclass(frozen=True, slots=True)
class Told(Event):
    """A node told its application of a gap."""

    node: str
    reason: str
    subject: str = ""
    origin: str = ""
    missed: int | None = None


@dataclass(frozen=True, slots=True)
class Deaf(Event):
    """The link of a node is down, and `health` says so, or does not."""

    node: str
    told: bool


@dataclass(frozen=True, slots=True)
class Handed(Event):
    """A broker gave numbered messages of a node to another one.

    Attributes:
        place: of the first of them, in everything its node sends.
    """

    node: str
    subject: str
    origin: str
    epoch: int
    first: int
    last: int
    place: int = 0


@dataclass(frozen=True, slots=True)
class Forgot(Event):
    """A node gave up a subject."""

    node: str
    subject: str


@dataclass(frozen=True, slots=True)
class Dropped(Event):
    """Emits vanished on the way to a node, and nobody was told."""

    node: str
    calls: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Fault(Event):
    """A fault was injected; `node` is empty for one of the server."""

    kind: str
    node: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Quiet(Event):
    """Every link is up, and all that was under way has arrived."""


@dataclass(frozen=True, slots=True)
class Seen(Event):
    """What a node is like when all is quiet.

    Attributes:
        peers: whom it knows.
        rooms: (client, its rooms) for each of its clients.
        holds: (client, key) of claims.
        broken: what must not be, in words.
    """

    node: str
    peers: tuple[str, ...]
    rooms: tuple[tuple[str, tuple[str, ...]], ...]
    holds: tuple[tuple[str, str], ...] = ()
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Watched(Event):
    """What somebody who watches a room's presence has seen, when all is quiet."""

    node: str
    namespace: str
    room: str
    present: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change(Event):
    """Somebody who watches was told of a change, and what they took to be so did or did not fit."""

    node: str
    room: str
    kind: str
    client: str
    fits: bool


@dataclass(frozen=True, slots=True)
class Met(Event):
    """A node was told that another one joined, or left."""

    node: str
    peer: str
    kind: Literal["joined", "left"]
    why: str = ""


@dataclass(frozen=True, slots=True)
class Size(Event):
    """How much a node holds of something bounded, at some moment."""

    node: str
    what: str
    size: int
    bound: int


@dataclass
class History:
    """Everything that happened, in order.

    Attributes:
        total: whether `order="total"` is set.
        log: whether the broker keeps a log.
        recovery: whether clients come back.
        moments: when each event happened.
    """

    total: bool = False
    log: bool = False
    recovery: bool = False
    events: list[Event] = field(default_factory=list[Event])
    moments: list[float] = field(default_factory=list[float])

    def add(self, event: Event, now: float = 0.0) -> int:
        """Note an event; its place."""
        self.events.append(event)
        self.moments.append(now)
        return len(self.events) - 1

    def lines(self) -> Iterator[str]:
        """To be read by people."""
        for number, (moment, event) in enumerate(zip(self.moments, self.events, strict=True)):
            yield f"{number:6} {moment:10.4f} {event}"

    def digest(self) -> str:
        """The same for the same history."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line.encode())
        return digest.hexdigest()[:16]
