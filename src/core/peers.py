"""The table of live nodes: who said hello, who is silent, who said bye.

1. A peer is live from its hello; anything heard from it keeps it alive; silent for `timeout` it is lost.
2. A peer that says bye is gone at once.
3. While this node is deaf nobody is lost: `resume` counts everyone as heard, since the silence was ours.
4. A node whose first hello shows settings that cannot work with ours is refused, told once, and not live; it is
   refused until it leaves, or says a better hello.
5. After an outage `regroup` names the peers not heard yet: those that have not come back, as far as we know.

Pure: `now` is a monotonic clock in seconds.
"""

from dataclasses import dataclass
from typing import Literal

from roomcast.core.messages import Heartbeat, Hello


@dataclass(frozen=True, slots=True)
class Peer:
    """Another live node.

    Attributes:
        id: names one life of a process; sids of its clients begin with it.
        name: for people.
        started: seconds since 1970, by its clock.
        version: of roomcast.
        clients, rooms: how many it had at its last heartbeat.
        heard: when it was last heard, on the clock of `now`.
    """

    id: str
    name: str
    started: float
    version: str
    clients: int
    rooms: int
    heard: float


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A node said hello for the first time."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A node is gone; `why` says whether it told us."""

    peer: Peer
    why: Literal["bye", "lost"]


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """A node cannot work with this one."""

    id: str
    reason: str


class _Entry:
    __slots__ = ("beat", "heard", "hello")

    def __init__(self, hello: Hello, heard: float) -> None:
        self.hello = hello
        self.heard = heard
        self.beat = Heartbeat(0)


@dataclass(slots=True)
class _Refusal:
    reason: str
    heard: float


_PEERS, _REFUSALS = 10_000, 1024  # bounds against a flood of strangers


class Peers:
    """The live peers of one node.

    Args:
        partitions: our broker's `guarantees.partitions`, 0 for none.
        timeout: seconds of silence after which a peer is lost.

    Attributes:
        window: seconds for which some live peer can restore clients that come back; 0 when none can.
    """

    def __init__(self, *, partitions: int, timeout: float) -> None:
        self._partitions = partitions
        self._timeout = timeout
        self._live: dict[str, _Entry] = {}
        self._refused: dict[str, _Refusal] = {}
        self._awaited: set[str] = set()
        self.window = 0.0

    def __contains__(self, node: str) -> bool:
        return node in self._live

    def __len__(self) -> int:
        return len(self._live)

    @property
    def ids(self) -> frozenset[str]:
        """Ids of the live peers."""
        return frozenset(self._live)

    @property
    def awaited(self) -> frozenset[str]:
        """Peers not heard since `regroup` (rule 5)."""
        return frozenset(self._awaited)

    @property
    def refusal(self) -> str:
        """Why some node here now is refused, as a sentence; empty when none is."""
        return next((refusal.reason for refusal in self._refused.values()), "")

    def snapshot(self) -> list[Peer]:
        """The live peers, oldest first."""
        return sorted((self._peer(id_, entry) for id_, entry in self._live.items()), key=lambda peer: peer.started)

    def hello(self, node: str, hello: Hello, now: float) -> PeerJoined | PeerRefused | None:
        """A node introduced itself (rules 1 and 4); None when that is no news."""
        if hello.partitions != self._partitions:
            if node in self._refused:
                self.heard(node, now)
                return None
            reason = (
                f"Node {node} ({hello.name:.80}) spreads rooms over {hello.partitions} subjects and this node over "
                f"{self._partitions}: neither would hear the other. Give all nodes of a cluster the same broker URL."
            )
            if len(self._refused) < _REFUSALS:
                self._refused[node] = _Refusal(reason, now)
            return PeerRefused(node, reason)
        entry = self._live.get(node)
        if entry is not None:
            before, entry.hello = entry.hello, hello
            self._look(hello, before)
            self.heard(node, now)
            return None
        if len(self._live) >= _PEERS:
            return None
        self._refused.pop(node, None)
        self._live[node] = entry = _Entry(hello, now)
        self._look(hello)
        return PeerJoined(self._peer(node, entry))

    def heard(self, node: str, now: float) -> None:
        """Something arrived from a node (rule 1)."""
        entry = self._live.get(node)
        if entry is not None:
            entry.heard = now
            self._awaited.discard(node)
        elif (refusal := self._refused.get(node)) is not None:
            refusal.heard = now

    def heartbeat(self, node: str, beat: Heartbeat, now: float) -> bool:
        """A node is alive; False when it never said hello to us and should be asked to."""
        self.heard(node, now)
        entry = self._live.get(node)
        if entry is None:
            return node in self._refused
        entry.beat = beat
        return True

    def bye(self, node: str) -> PeerLeft | None:
        """A node said it leaves (rule 2)."""
        self._refused.pop(node, None)
        return self._drop(node, "bye")

    def tick(self, now: float) -> list[PeerLeft]:
        """The peers lost by now (rule 1)."""
        for id_ in [id_ for id_, refusal in self._refused.items() if now - refusal.heard > self._timeout]:
            del self._refused[id_]
        silent = [id_ for id_, entry in self._live.items() if now - entry.heard > self._patience(entry)]
        return [left for id_ in silent if (left := self._drop(id_, "lost")) is not None]

    def resume(self, now: float) -> None:
        """This node was deaf until now (rule 3)."""
        for entry in self._live.values():
            entry.heard = now
        for refusal in self._refused.values():
            refusal.heard = now

    def regroup(self) -> None:
        """Await a sign of life from every peer (rule 5)."""
        self._awaited = set(self._live)

    def _patience(self, entry: _Entry) -> float:
        """A peer that beats more slowly than we do is given two of its own beats, within reason."""
        return min(max(self._timeout, 2 * entry.hello.heartbeat), 10 * self._timeout)

    def _drop(self, node: str, why: Literal["bye", "lost"]) -> PeerLeft | None:
        entry = self._live.pop(node, None)
        self._awaited.discard(node)
        if entry is not None:
            self._look(None, entry.hello)
        return None if entry is None else PeerLeft(self._peer(node, entry), why)

    def _look(self, hello: Hello | None, before: Hello | None = None) -> None:
        """Keep `window` true when one hello takes the place of another."""
        if before is not None and before.window:
            self.window = max((entry.hello.window for entry in self._live.values()), default=0.0)
        elif hello is not None:
            self.window = max(self.window, hello.window)

    @staticmethod
    def _peer(node: str, entry: _Entry) -> Peer:
        hello, beat = entry.hello, entry.beat
        return Peer(node, hello.name, hello.started, hello.version, beat.clients, beat.rooms, entry.heard)
