"""The seam between the core and a broker: what a broker must do, as numbered rules.

A broker moves bytes between nodes, keeps this node's subjects alive across reconnections, and says
honestly when it may have lost something. Everything else (requests, membership, deduplication, encoding,
batching) is built once, in the core, from publish and subscribe. `tests/brokers/test_conformance.py` holds
one test per rule and runs over every broker.

 1. `start` returns connected or raises `BrokerUnavailable` within `connect_timeout`. From then on the broker
    reconnects by itself, for ever, with jittered back-off, first retry at once, and restores its subjects.
 2. `subscribe` is a barrier: once it returns, every publish that starts later, on any node, is delivered
    here. It is idempotent and plural, one round trip. Without a connection it keeps the subjects, to be
    restored with the connection, and raises `BrokerUnavailable`.
 3. `unsubscribe` is idempotent; what is in flight may still arrive and is ignored by the core. Without a
    connection it forgets the subjects and returns.
 4. The order of publishes is fixed at the call, before the first suspension: calls made one after the other
    are delivered in that order, awaited one by one or not.
 5. `publish` resolves once the message is accepted (`guarantees.confirmed`) or handed to the connection. It
    fails definitely (`PublishRejected`, `PayloadTooLarge`; `BrokerUnavailable` when there is no connection:
    nothing was sent) or indefinitely (`PublishUnconfirmed`); never silently, never by retrying behind the
    caller's back, never by buffering for a later connection, never with a `CancelledError` nobody sent.
 6. A subscribed node receives its own publications, or `guarantees.echo` says that it does not.
 7. `receive` waits for at least one event and returns all that are ready, in order. One consumer at a time;
    cancelling it loses nothing. The buffer behind it is bounded by `BrokerConfig.buffer` deliveries.
 8. Nothing is lost without a `Gap`, in line, before the first delivery after the loss: overflow of the buffer,
    a reconnection, a slow-consumer cut, a trimmed log. A lost connection is one `Gap("disconnected",
    ongoing=True)` when it is noticed and one `Gap("reconnected")` when all subjects are heard again.
    Where subjects are spread over several connections, the loss of some is told as `partial`, and once more
    without it when none is left; what is published on a lost one fails, on the others it goes on. After a loss of
    all, `Gap("reconnected", ongoing=True, partial=True)` may tell that some are back.
    With a log a lost connection loses nothing: it ends in `Gap("reconnected", missed=0)`, then comes what was
    published meanwhile. A full buffer makes the node read later ("overflow" is never told). What the log no
    longer holds is `Gap("trimmed")`, with how many entries were not read, or without when the log has a new life.
 9. Order is FIFO per publishing node across all its subjects (`guarantees.order == "publisher"`), at least
    per subject otherwise ("subject"; there too it is the same for everybody on a log), and one order for
    everybody on a log of one stream ("total").
10. A delivery has a `position` exactly when `log` is set; in one epoch positions only grow.
11. `aclose` is idempotent and works while calls are blocked (they raise `BrokerClosed`); it flushes accepted
    publishes, within a bound, and leaves no task, socket, queue or key behind.
12. A dead link is noticed without the kernel's help: a connection that carries nothing any more is declared
    lost within two `BrokerConfig.heartbeat` periods.
13. Errors of the client library stay inside: what leaves a broker is one of `roomcast.core.errors`, raised
    from the client's own, with no credentials in its text.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType, Protocol

import msgspec

Subject = NewType("Subject", str)
"""An address on the broker: dot-separated tokens of `A-Za-z0-9_-`, at most 200 characters, prefix first."""

Order = Literal["subject", "publisher", "total"]

Barrier = Literal["server", "cluster"]

GapReason = Literal["disconnected", "reconnected", "overflow", "missed", "given_up", "trimmed"]


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a log. Only positions of one epoch can be compared: an offset alone lies after a reset.

    Attributes:
        epoch: names one life of one stream of the log; a deleted or recreated one has a new one.
        offset: which entry of that life: a whole number in decimal, more with each entry, whatever its subject.
    """

    epoch: str
    offset: str


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One payload that arrived on one subject."""

    subject: Subject
    payload: bytes
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Something was, or may have been, lost here.

    Attributes:
        reason: "disconnected" and "reconnected" (the link), "overflow" (this node, or the broker on its
            behalf, could not keep up), "missed" (a publisher's numbers have a hole), "given_up" (this node's
            outbox abandoned messages that no broker had confirmed), "trimmed" (a log's retention).
        subject: the subject concerned; None means any subject of this node.
        origin: id of the node whose messages are missing, when known.
        missed: how many messages, when known; of a log that was trimmed how many entries, at most. The messages among
            them that were for this node are told besides, as "missed", once the numbers of their publishers show it.
        ongoing: True while the loss goes on (the link is down), False once it is over.
        partial: only some subjects are concerned, because the others have a link of their own that goes on.
    """

    reason: GapReason
    subject: Subject | None = None
    origin: str | None = None
    missed: int | None = None
    ongoing: bool = False
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Guarantees:
    """What a broker promises; a value that the core and the conformance suite both read.

    Attributes:
        order: see rule 9.
        confirmed: `publish` resolves only when the broker itself has the message: the server in use, where the
            broker is a cluster of several.
        barrier: how far rule 2 reaches: to publishes through any server of the broker, or ("server") only to
            those through the one in use, and to the others some moments later.
        max_payload: largest payload in bytes. Final once `start` has returned.
        echo: a subscribed node receives its own publications.
        partitions: None when a subject per room is cheap; else the fixed number of subjects that rooms hash
            onto, because the broker bears only few subjects.
    """

    order: Order
    confirmed: bool
    max_payload: int
    echo: bool = True
    partitions: int | None = None
    barrier: Barrier = "cluster"


class Log(Protocol):
    """The one optional capability of a broker: it remembers.

    Everything that is published goes into the log, whatever its subject, and every node reads all of it forward from
    where it ended when `start` was called (determined before the reading begins, so that nothing falls between).
    """

    @property
    def retention(self) -> float:
        """Seconds for which it is set to keep everything, as long as that fits its size."""
        ...

    def publish(
        self, subject: Subject, payload: bytes, /, *, once: tuple[str, int] | None = None
    ) -> Awaitable[Position | None]:
        """As `Broker.publish`, and where the broker can, not twice what is sent again.

        Args:
            subject: as there.
            payload: as there.
            once: who publishes and the number of the message, which grows with each of its messages; what is sent
                again has the number it had. A number that is not above the highest one of its origin on the stream is
                not appended again. Brokers that cannot tell append it: receivers look at numbers themselves.
        """
        ...

    def replay(self, seconds: float, /) -> AsyncIterator[Sequence[Delivery]]:
        """Everything that was published in the last `seconds` before `start`, on all subjects, oldest first, in pages.

        The last page ends where `receive` begins. Where order holds per subject only, so it does here.

        Raises:
            ReplayUnavailable: the log does not hold all of it any more ("trimmed"; pages that came before are worth
                nothing), or is another one than at the start ("epoch_changed"). A log that began later is complete.
            BrokerUnavailable: there is no connection, or it was lost on the way.
            BrokerClosed: after `aclose`.
        """
        ...


class Broker(Protocol):
    """The seam: two facts and six verbs. The rules are in this module's docstring."""

    @property
    def guarantees(self) -> Guarantees:
        """What this broker promises."""
        ...

    @property
    def log(self) -> Log | None:
        """The log, when the broker keeps one (rule 10)."""
        ...

    async def start(self) -> None:
        """Connect, or raise `BrokerUnavailable` (rule 1)."""
        ...

    async def aclose(self) -> None:
        """Flush, disconnect and leave nothing behind (rule 11)."""
        ...

    def publish(self, subject: Subject, payload: bytes, /) -> Awaitable[Position | None]:
        """Send one payload; order is fixed by the call (rules 4 and 5).

        Either a coroutine function or a plain method that returns a future will do: the core starts each
        coroutine as a task, in the order of the calls, and uses a future as it is.
        """
        ...

    async def subscribe(self, subjects: Collection[Subject], /) -> None:
        """Hear these subjects from now on; a barrier (rule 2)."""
        ...

    async def unsubscribe(self, subjects: Collection[Subject], /) -> None:
        """Stop hearing these subjects (rule 3)."""
        ...

    async def receive(self) -> Sequence[Delivery | Gap]:
        """All events that are ready, at least one, in order (rules 7 and 8)."""
        ...


@dataclass(frozen=True, slots=True)
class BrokerConfig:
    """What a broker is made from. A broker class is called with one of these.

    Attributes:
        url: the URL with roomcast's own options taken out. May hold credentials: never log it.
        parameters: the query parameters that are the broker's own, each one named in the class attribute
            `parameters: frozenset[str]` of the broker class. Parameters nobody knows were refused before.
        prefix: the head of every channel, exchange and key that the broker touches.
        node: this node's id, for connection names that an operator can read.
        connect_timeout: seconds that `start`, and each later attempt, may take.
        heartbeat: seconds between checks of the link (rule 12).
        max_payload: largest payload in bytes to accept, whatever the broker itself could carry.
        buffer: how many received deliveries may wait for `receive` (rule 7).
        everything: deliver what comes on any subject of the prefix, not only on those subscribed to. Logs only.
        connect: makes another broker from a URL, with everything else as here; for a broker that only finds
            or starts a server and leaves the talking to the broker of that server.
    """

    url: str = field(repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    prefix: str = "roomcast"
    node: str = "node"
    connect_timeout: float = 5.0
    heartbeat: float = 5.0
    max_payload: int = 1024 * 1024
    buffer: int = 65_536
    everything: bool = False
    connect: Callable[[str], Broker] | None = field(default=None, repr=False)
