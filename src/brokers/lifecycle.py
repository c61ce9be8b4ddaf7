"""The life of a broker that has one link at a time: started once, its link replaced whenever it is lost, then closed.

What makes, flushes and ends a link is the broker's own; when that happens, and who is told, is here.

1. `start` returns with a link, or raises what the attempt raised; then it can be called again. While one runs, or once
   one has succeeded, it does nothing.
2. Cancelled, `start` raises the cancellation whatever the attempt makes of it (a client library may take it for an
   error of the connection, or succeed all the same), and leaves no link.
3. `aclose` ends a `start`, which raises `BrokerClosed`.
4. A link that is over is waited for until nothing of it is left, then replaced, for ever. Why it cannot be replaced is
   logged once for each reason.
5. The first attempt is made at once, unless the link was lost within `SETTLED`: a server that cuts this node each time
   it connects is not to be connected to in a tight loop. Then come attempts with pauses that grow.
6. A link is in use (`link`) from `use`, which the attempt calls as it ends, until it is `lost`, or dropped on purpose.
   The loss of the link in use is told once, as a gap, and the next `use` tells that it is over. Of a link that is not
   in use nothing is told.
7. `aclose` wakes whoever receives, takes the link out of use, flushes it, and returns when nothing is left of it and of
   any attempt. Another `aclose` waits for the first. From then on no link comes into use.
8. Every link that an attempt has made is dropped, by whatever its making or its life ends. A drop is not cut short.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from roomcast.brokers.attempts import SETTLED, Pauses, cancelling
from roomcast.core.broker import Gap
from roomcast.core.errors import BrokerClosed, BrokerError, BrokerUnavailable, ConfigurationError

_logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that a cancelled attempt gets before it is cancelled again."""
_RESTORED = Gap("reconnected")


class Kept(Protocol):
    """A link that is replaced when it is over."""

    @property
    def over(self) -> asyncio.Event:
        """Set once it is lost or ended."""
        ...

    async def aclose(self) -> None:
        """Wait until nothing of an ended link is left."""
        ...


class Events(Protocol):
    """What waits behind the broker's `receive`."""

    def gap(self, gap: Gap, /) -> None:
        """Take in a change of the link."""
        ...

    def wake(self) -> None:
        """Let whoever waits see that the broker is closed."""
        ...


L = TypeVar("L", bound=Kept)


class Lifecycle(Generic[L]):
    """The link of one broker, from `start` to `aclose`.

    Args:
        name: of the broker, in errors.
        where: what it is linked to, for people to read.
        events: are told of the link.
        connect: one attempt: makes a link and calls `use` with it, or raises `BrokerError` or `ConfigurationError`.
        flush: waits for what a link has accepted, within a bound.
        drop: ends a link on purpose, and waits until nothing of it is left.
        longest: seconds between two attempts, at most.
        restored: how the end of a loss is told.

    Attributes:
        link: the one in use.
        closed: whether `aclose` was called.
    """

    def __init__(
        self,
        name: str,
        where: Callable[[], str],
        events: Events,
        *,
        connect: Callable[[], Awaitable[L]],
        flush: Callable[[L], Awaitable[None]],
        drop: Callable[[L], Awaitable[None]],
        longest: float,
        restored: Gap = _RESTORED,
    ) -> None:
        self.link: L | None = None
        self.closed = False
        self._name = name
        self._where = where
        self._events = events
        self._connect = connect
        self._flush = flush
        self._drop = drop
        self._longest = longest
        self._restored = restored
        self._missing = False  # a loss was told, and its end was not
        self._task: asyncio.Task[None] | None = None
        self._attempting = False
        self._gone = asyncio.Event()

    async def start(self) -> None:
        """Connect, and stay so (rules 1 to 3).

        Raises:
            BrokerUnavailable: it cannot be connected now.
            ConfigurationError: it will not connect without a change.
            BrokerClosed: it is closed, or was closed meanwhile.
        """
        self.check_open()
        if self._task is not None:
            return
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = task = asyncio.create_task(self._live(up), name=f"roomcast-{self._name}")
        try:
            await asyncio.wait((task, up), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self.closed:  # else aclose ends the task, when it has flushed
                try:
                    await self._end(task)
                finally:
                    self._task = None
            raise
        self.check_open()
        if not up.done():
            self._task = None
            task.result()  # raises why

    async def aclose(self) -> None:
        """Flush and leave nothing behind (rule 7)."""
        if self.closed:
            await self._gone.wait()
            return
        self.closed = True
        self._events.wake()
        task, link, self.link = self._task, self.link, None
        try:
            if link is not None:
                await self._flush(link)
        finally:
            try:
                if task is not None:
                    await self._end(task)
            finally:
                self._gone.set()

    def use(self, link: L) -> None:
        """This link is the one in use from now on (rules 6 and 7)."""
        if self.closed:
            return
        self.link = link
        if self._missing:
            self._missing = False
            _logger.info("The link to %s is restored.", self._where())
            self._events.gap(self._restored)

    def lost(self, link: L, cause: object) -> bool:
        """Tell that a link is lost, if it was in use, which is returned (rule 6)."""
        if self.link is not link:
            return False
        self.link = None
        self._missing = True
        _logger.warning("The link to %s is lost: %s", self._where(), cause)
        self._events.gap(Gap("disconnected", ongoing=True))
        return True

    def check_open(self) -> None:
        """Raise `BrokerClosed` once it is closed."""
        if self.closed:
            raise self.no_link()

    def require(self) -> L:
        """The link in use, or `no_link` is raised."""
        if self.link is None:
            raise self.no_link()
        return self.link

    def no_link(self) -> BrokerError:
        """What a call ends with that finds no link."""
        if self.closed:
            return BrokerClosed("The broker is closed.", broker=self._name)
        text = f"There is no link to {self._where()} now: start() comes first; a lost link is being made again."
        return BrokerUnavailable(text, broker=self._name)

    async def _live(self, up: "asyncio.Future[None]") -> None:
        """Connect, then replace the link whenever it is lost, until this is cancelled."""
        loop = asyncio.get_running_loop()
        link = await self._attempt()
        try:
            up.set_result(None)
            pauses = Pauses(self._longest)
            while not cancelling():
                since = loop.time()
                await link.over.wait()
                await link.aclose()
                if loop.time() - since > SETTLED:
                    pauses.forget()
                link = await self._next(link, pauses)
        finally:
            if self.link is link:
                self.link = None
            await self._drop(link)

    async def _next(self, last: L, pauses: Pauses) -> L:
        """The next link, or the last one when this is cancelled without one."""
        said = ""
        while True:
            await pauses.wait()
            try:
                return await self._attempt()
            except (BrokerError, ConfigurationError) as exc:
                if cancelling():
                    return last
                if said != (said := str(exc)):
                    _logger.warning("Trying to restore the link: %s", said)

    async def _attempt(self) -> L:
        self._attempting = True
        try:
            return await self._connect()
        finally:
            self._attempting = False

    async def _end(self, task: "asyncio.Task[None]") -> None:
        """Cancel the task, and its attempt again if need be: `wait_for` of CPython 3.11 can swallow a cancellation."""
        if not task.cancelling():
            task.cancel()
        await asyncio.wait((task,), timeout=PATIENCE)
        while not task.done():
            if self._attempting:
                task.cancel()
            await asyncio.wait((task,), timeout=PATIENCE)
        if not task.cancelled():
            task.exception()  # seen: whoever ends a task has no use for it
