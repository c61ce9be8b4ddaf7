"""What a node that restores clients reads in the log: the sessions of the whole cluster, and what was sent.

1. It keeps the tail and the table of sessions, and tells its listener what the log has decided.
2. At its start it reads back two windows, before any client is admitted.
3. When something of the log was not read, what it knows of the sessions is not certain, and is forgotten: their owners
   say it again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from roomcast.core.broker import Delivery, Log, Position
from roomcast.core.errors import ReplayUnavailable, WireError
from roomcast.core.messages import Bye, Emit, Keep, Lost, Message, Part, Refuse, Resume, Seize
from roomcast.core.node import Node
from roomcast.core.options import Recovery
from roomcast.core.sessions import News, Session, Sessions
from roomcast.core.sids import owner
from roomcast.core.tail import Tail, number_of

logger = logging.getLogger("roomcast")

PERIODS = 16
"""Of the clock in a window."""


class Owner(Protocol):
    """Who serves sessions here."""

    def compare(self, session: Session | None) -> None:
        """An owner has described a session."""
        ...

    def doubt(self, *, anew: bool) -> None:
        """Something of the log was not read; `anew` when it is another log."""
        ...

    def reassert(self) -> None:
        """This node was taken for lost."""
        ...

    def tick(self) -> None:
        """A period is over."""
        ...


class Listener(Protocol):
    """Whom the reader tells."""

    @property
    def serving(self) -> Owner:
        """Who serves sessions here."""
        ...

    def act(self, news: Iterable[News]) -> None:
        """The log has decided."""
        ...

    def heard(self, node: str) -> None:
        """A node speaks of sessions."""
        ...


class LogReader:
    """Reads the log for one node; see `reader` for what the node asks of it.

    Args:
        node: whose.
        settings: of the recovery.
        listener: see rule 1.

    Attributes:
        tail: the last stretch of the log.
        table: the sessions of the cluster.
    """

    def __init__(self, node: Node, settings: Recovery, listener: Listener) -> None:
        self._node = node
        self._settings = settings
        self._listener = listener
        self._known = asyncio.Event()
        self._clock: asyncio.Task[None] | None = None
        self._sent = 0.0  # of the message that is being read
        self._shared = (f"{node.subjects.prefix}.room.", f"{node.subjects.prefix}.all.", node.subjects.sessions)
        self._begin()
        node.reader = self
        node.handlers |= dict.fromkeys((Keep, Part, Resume, Refuse, Seize, Lost), _done)

    def _begin(self) -> None:
        window = self._settings.window
        self.tail = Tail(seconds=2 * window, size=self._settings.memory)
        self.table = Sessions(window=window, limit=self._settings.sessions)
        self.table.tick(time.monotonic())

    @property
    def known(self) -> bool:
        """Whether this node knows where in the log it is."""
        return self._known.is_set()

    async def ready(self) -> bool:
        """Whether this node knows where in the log it is; it waits for that for a while."""
        if not self._known.is_set() and self._node.running:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._node.settings.connect_timeout):
                    await self._known.wait()
        return self._known.is_set()

    async def rebuild(self, log: Log) -> None:
        """Read what the log holds of the last two windows: the sessions, and what was sent."""
        self._begin()
        try:
            async for page in log.replay(2 * self._settings.window):
                for delivery in page:
                    if self._node.wants(delivery.subject) or self.wants(delivery):
                        for _ in self._node.receiver.open(delivery, None):
                            pass  # it was for those who were here then
                await asyncio.sleep(0)
        except ReplayUnavailable as exc:
            self._begin()
            logger.warning("roomcast: clients that were connected before this node cannot come back here yet: %s", exc)
        if self.tail.latest >= 0:
            self._known.set()
        if self._clock is None:
            self._clock = self._node.spawn(self._keep_time())

    def wants(self, delivery: Delivery) -> bool:
        """See `Reader.wants`."""
        if delivery.subject.startswith(self._shared):
            return True
        self._mark(delivery.position, 0)
        return False

    def read(
        self, delivery: Delivery, origin: str, sent: int, messages: Sequence[Message | WireError], repeats: int
    ) -> Iterator[tuple[str, Message | WireError]]:
        """See `Reader.read`."""
        subject, position = delivery.subject, delivery.position
        about_sessions = subject == self._node.subjects.sessions
        self._mark(position, max(0, repeats - 1))
        for index, message in enumerate(messages, repeats):
            self._mark(position, index)
            self._sent = sent / 1e6
            if isinstance(message, Emit):
                if not (message.volatile or message.request) and subject.startswith(self._shared):
                    self.tail.add(subject, message, time.monotonic())
            elif isinstance(message, Bye):
                self._listener.act(self.table.lost(origin, self._sent))
            elif about_sessions and not isinstance(message, WireError):
                self._take_in(origin, message)
            if about_sessions or self._node.wants(subject):
                yield origin, message

    def unread(self, delivery: Delivery, error: WireError) -> None:
        """See `Reader.unread`: what is no message for anybody, such as a copy of an old one, is none for this node."""
        self._mark(delivery.position, 0)
        if error.kind == "stale":
            self.cut()
        elif error.kind == "too_large":  # for a node with a larger max_payload it may be one
            self.tail.cut()

    def cut(self) -> None:
        """See `Reader.cut` (rule 3)."""
        self.tail.cut()
        self._doubt(anew=False)

    def holder(self, sid: object) -> str:
        """See `Reader.holder`."""
        session = self.table.by_sid(sid) if isinstance(sid, str) else None
        if session is None:
            return owner(sid)
        return session.owner if session.parted is None else ""

    def _mark(self, position: Position | None, index: int) -> None:
        if position is None:
            return
        if self.tail.mark(position.epoch, number_of(position, index)):
            self._doubt(anew=True)
        if not self._known.is_set() and self._clock is not None:
            self._known.set()

    def _doubt(self, *, anew: bool) -> None:
        """Rule 3."""
        self.table.clear()
        self._listener.serving.doubt(anew=anew)

    def _take_in(self, origin: str, message: Message) -> None:
        table, sent = self.table, self._sent
        self._listener.heard(origin)
        try:
            match message:
                case Keep():
                    self._listener.act(table.keep(origin, message))
                    self._listener.serving.compare(table.get(message.pid))
                case Part():
                    self._listener.act(table.part(origin, message, sent))
                case Resume():
                    self._listener.act(table.resume(origin, message, sent))
                case Refuse():
                    self._listener.act(table.refuse(origin, message))
                case Seize():
                    self._listener.act(table.seize(origin, message, sent))
                case Lost():
                    self._listener.act(table.lost(message.node, sent))
                    if message.node == self._node.id:  # it is not
                        self._listener.serving.reassert()
                case _:
                    text = f"A {type(message).__name__} came among the sessions."
                    self._node.receiver.refuse(WireError("unexpected", text))
        except Exception as exc:  # noqa: BLE001 - no message ends the loop of the node
            self._node.fault(f"handling a {type(message).__name__} failed", exc)

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(self._settings.window / PERIODS)
            self.tail.tick(time.monotonic())
            self.table.tick(time.monotonic())
            self._listener.serving.tick()


def _done(_origin: str, _message: object) -> None:
    """What the node has to do about a message that the reader has taken in: the loop may run after each."""
