"""Who else is there: this node introduces itself, hears the others, and tells who came and who went.

1. A node says hello to all when it starts and when its link is back; each hearer answers with its own hello, which
   names the nodes it knows. It says a heartbeat in each period, and bye at the end, after which it says nothing more.
2. A guest hears the same and says none of it: it asks who is there, and is counted as a node by nobody.
3. `met` returns once every node that was named is known or gone, or after a second: from then on "all nodes" means all
   of them. Only one that starts at the same moment is not named: it is known once its hello is here.

The table itself is `peers`; the loop that keeps time is the node's.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from roomcast.core.broker import Subject
from roomcast.core.messages import KNOWN, Bye, Census, Heartbeat, Hello, Message
from roomcast.core.peers import Peer, PeerJoined, PeerLeft, PeerRefused, Peers
from roomcast.core.subjects import Subjects

logger = logging.getLogger("roomcast")

VERSION = version("roomcast")

_MEET = 1.0  # seconds after which a node that nobody answers takes itself for the first
_INTRODUCTIONS = 1000  # nodes that are told hello in one period of the clock


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node of the cluster, as another one knows it.

    Attributes:
        id: names one life of a process; the sids of its clients begin with it.
        name: for people: host and process, or the setting `name`.
        started: seconds since 1970, by its own clock.
        clients: how many it served at its last heartbeat.
        rooms: how many rooms had members there at its last heartbeat.
        version: of roomcast.
        last_heartbeat: when it was last heard, seconds since 1970 by this node's clock.
    """

    id: str
    name: str
    started: float
    clients: int
    rooms: int
    version: str
    last_heartbeat: float


class Membership:
    """The nodes of a cluster as one of them, or a guest, sees them.

    Args:
        node: this one's id.
        name: this one's name.
        guest: whether it is a guest (rule 2).
        heartbeat: seconds between this node's heartbeats.
        timeout: seconds of silence after which a peer is lost.
        subjects: where to speak.
        say: says a message of this moment on a subject.
        counts: how many clients and how many rooms this node has.
        window: seconds for which it can restore clients that come back; 0 when it cannot.

    Attributes:
        peers: the table.
        on_joined, on_left: called with each node that came, or went and why.
    """

    def __init__(
        self,
        *,
        node: str,
        name: str,
        guest: bool,
        heartbeat: float,
        timeout: float,
        subjects: Subjects,
        say: Callable[[Subject, Message], asyncio.Future[Any]],
        counts: Callable[[], tuple[int, int]],
        window: float = 0.0,
    ) -> None:
        self.peers = Peers(partitions=subjects.partitions or 0, timeout=timeout)
        self.on_joined: list[Callable[[NodeInfo], None]] = []
        self.on_left: list[Callable[[NodeInfo, Literal["bye", "lost"]], None]] = []
        self._id = node
        self._name = name
        self._guest = guest
        self._heartbeat = heartbeat
        self._subjects = subjects
        self._say = say
        self._counts = counts
        self._window = window
        self._started = 0.0
        self._parted = False
        self._introduced: set[str] = set()
        self._named: set[str] = set()  # by others, and not known yet
        self._answered = False
        self._met = asyncio.Event()
        self._alone: asyncio.TimerHandle | None = None

    # Speaking

    def start(self) -> None:
        """Say hello for the first time."""
        self._started = time.time()
        self._alone = asyncio.get_running_loop().call_later(_MEET, self._met.set)
        self.greet()

    def close(self) -> None:
        """Wait for nobody any more."""
        if self._alone is not None:
            self._alone.cancel()
        self._met.set()

    def greet(self) -> None:
        """Say hello to all, or ask who is there."""
        self._greet(self._subjects.control, answer=True)

    def beat(self) -> None:
        """Say that this node is alive."""
        if not self._guest and not self._parted:
            self._say(self._subjects.control, Heartbeat(*self._counts()))

    def part(self) -> asyncio.Future[Any] | None:
        """Say bye; a future that is done once it is said, or None for a guest."""
        self._parted = True
        return None if self._guest else self._say(self._subjects.control, Bye())

    def period_over(self) -> None:
        """A period of the clock is over: who asks again may be introduced to again."""
        self._introduced.clear()

    def _greet(self, subject: Subject, *, answer: bool) -> None:
        if not self._parted:
            self._say(subject, Census() if self._guest else self._hello(answer=answer))

    def _hello(self, *, answer: bool) -> Hello:
        return Hello(
            name=self._name,
            started=self._started,
            partitions=self._subjects.partitions or 0,
            heartbeat=self._heartbeat,
            answer=answer,
            version=VERSION,
            peers=() if answer else tuple(sorted(self.peers.ids)[:KNOWN]),
            window=self._window,
        )

    def _introduce(self, node: str, *, answer: bool) -> None:
        """Say hello to one node, once in each period of the clock: a flood must not be answered by another one."""
        if node not in self._introduced and len(self._introduced) < _INTRODUCTIONS:
            self._introduced.add(node)
            self._greet(self._subjects.inbox(node), answer=answer)

    # Hearing

    def on_hello(self, origin: str, hello: Hello) -> None:
        """A node introduces itself (rule 1)."""
        now = time.monotonic()
        news = self.peers.hello(origin, hello, now)
        if isinstance(news, PeerRefused):
            logger.error("roomcast: %s", news.reason)
        elif isinstance(news, PeerJoined):
            logger.info("roomcast: node %s (%s) is here", origin, hello.name)
            if hello.window != self._window and not self._guest:
                logger.warning(
                    "roomcast: node %s (%s) restores clients for %g s, this one for %g s: give all the same recovery",
                    *(origin, hello.name, hello.window, self._window),
                )
        self._meet(origin, hello)
        if isinstance(news, PeerJoined):
            for joined in self.on_joined:
                joined(self._info(news.peer, now))
        if hello.answer and not self._guest:
            self._introduce(origin, answer=False)

    def on_census(self, origin: str, _census: Census) -> None:
        """A guest asks who is there (rule 2)."""
        if not self._guest:
            self._introduce(origin, answer=False)

    def on_heartbeat(self, origin: str, beat: Heartbeat) -> None:
        """A node is alive."""
        if not self.peers.heartbeat(origin, beat, time.monotonic()):
            self._introduce(origin, answer=True)

    def on_bye(self, origin: str, _bye: Bye) -> None:
        """A node leaves."""
        if (left := self.peers.bye(origin)) is not None:
            self._left(left)
        self._named.discard(origin)
        self._check_met()

    def tick(self, now: float) -> None:
        """Drop the peers that are lost by `now`."""
        for left in self.peers.tick(now):
            self._left(left)

    def _left(self, left: PeerLeft) -> None:
        logger.info("roomcast: node %s (%s) is gone: %s", left.peer.id, left.peer.name, left.why)
        info = self._info(left.peer, time.monotonic())
        for hook in self.on_left:
            hook(info, left.why)

    # Asking

    @property
    def has_met(self) -> bool:
        """Whether all nodes are known (rule 3)."""
        return self._met.is_set()

    async def met(self) -> None:
        """Return once all nodes are known (rule 3)."""
        await self._met.wait()

    def _meet(self, origin: str, hello: Hello) -> None:
        if self._met.is_set():
            return
        self._named.update(hello.peers)
        self._named -= self.peers.ids
        self._named -= {origin, self._id}
        self._answered |= not hello.answer  # an answer to ours names everyone that its node knows
        self._check_met()

    def _check_met(self) -> None:
        if self._answered and not self._named:
            self._met.set()

    def nodes(self) -> list[NodeInfo]:
        """The nodes of the cluster, this one included unless it is a guest, the oldest first."""
        now = time.monotonic()
        nodes = [self._info(peer, now) for peer in self.peers.snapshot()]
        if not self._guest:
            clients, rooms = self._counts()
            nodes.append(NodeInfo(self._id, self._name, self._started, clients, rooms, VERSION, time.time()))
        return sorted(nodes, key=lambda node: (node.started, node.id))

    @staticmethod
    def _info(peer: Peer, now: float) -> NodeInfo:
        heard = time.time() - (now - peer.heard)
        return NodeInfo(peer.id, peer.name, peer.started, peer.clients, peer.rooms, peer.version, heard)
