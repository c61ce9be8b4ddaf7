"""Sending events, and collecting what clients acknowledge.

1. `emit` encodes (or raises `EncodeError`), takes a place in the outbox (waiting for one only when it is full), and
   then, without suspending, hands the packet to the local clients and to the outbox. So a cancelled emit has
   happened everywhere or nowhere, and local clients never wait for the broker.
2. Where an event goes: a room to the nodes with a member, several rooms or none to the nodes with a client in the
   namespace, a sid to its node alone, an event that wants acknowledgements from more than one sid to every node.
   Where clients may move from node to node (recovery), a sid goes to those with a client in the namespace, too.
   With `order="total"` also to this node's own clients by way of the log, but for `local` events.
3. A volatile event does not wait: when the outbox is full, or the link is down, other nodes do not get it; counted. Nor
   do this node's own clients while other events wait for a place, which it would overtake.
4. An acknowledgement finds its way back to the node that asked; what waits for a client or a node that is gone
   waits no longer.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from roomcast.core.acks import Acks, Callback
from roomcast.core.address import Address
from roomcast.core.broker import Subject
from roomcast.core.errors import AckTimeout, WireError
from roomcast.core.messages import Ack, Emit, Expect, encode_message
from roomcast.core.node import Node
from roomcast.core.outbox import Entry
from roomcast.core.packets import Packets
from roomcast.core.sids import owner


@dataclass(frozen=True, slots=True)
class Answer:
    """What one client acknowledged an event with.

    Attributes:
        sid: the client.
        node: its node.
        args: all arguments of its acknowledgement.
    """

    sid: str
    node: str
    args: tuple[Any, ...]

    @property
    def value(self) -> Any:
        """As `AsyncServer.call` returns it: None, the one argument, or a tuple of several."""
        return self.args[0] if len(self.args) == 1 else self.args or None


class Collector:
    """Takes answers as they come, for whoever waits for them.

    Attributes:
        missing: who was given up, because too much waited.
    """

    def __init__(self) -> None:
        self.missing: frozenset[str] = frozenset()
        self._answers: deque[Answer] = deque()
        self._over = False
        self._news = asyncio.Event()

    def take(self, answer: Answer) -> None:
        """A client acknowledged."""
        self._answers.append(answer)
        self._news.set()

    def finish(self, missing: frozenset[str]) -> None:
        """There will be no more answers; `missing` is who might have given one, and is not waited for any longer."""
        self._over = True
        self.missing = missing
        self._news.set()

    async def next(self, deadline: float) -> Answer | None:
        """The next answer; None when nobody is left who might give one. Raises TimeoutError."""
        while not self._answers:
            if self.missing:
                raise TimeoutError
            if self._over:
                return None
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                if not self._news.is_set():  # else it came in the very turn of the deadline
                    raise
        return self._answers.popleft()


class Broadcast:
    """Sends events for one node.

    Args:
        node: publishes.
        deliver: hands an event to the clients of this node; None when it has none.

    Attributes:
        packets: encodes; the adapter puts the one of its server here.
        acks: what this node waits for.
        crowded: whether the loop ought to run before the next event, because so many local clients got one; the
            adapter puts the one of its fan-out here.
    """

    def __init__(self, node: Node, deliver: Callable[[Emit], None] | None = None) -> None:
        self.packets = Packets()
        self.acks = Acks()
        self.crowded: Callable[[], bool] = bool
        self._node = node
        self._deliver = deliver
        node.handlers |= {Ack: self._on_ack, Expect: self._on_expect}
        node.on_left.append(self.acks.left)
        node.on_close.append(self.acks.close)

    async def emit(
        self, to: Address, event: object, args: Sequence[Any], waiter: Callback | Collector | None = None
    ) -> int:
        """Send an event (rules 1 to 3); the number under which a waiter waits, or 0.

        Raises:
            EncodeError: the data cannot be serialised; nobody got the event.
            TypeError: the event is not named by text.
            PayloadTooLarge, Backpressure, BrokerClosed: nobody got the event.
            PublishUnconfirmed: only with `confirm`: other nodes may or may not have got it.
        """
        packet = self.packets.event(event, args, to.namespace)
        subject = None if to.local else self._subject(to, ack=waiter is not None)
        request = 0
        if waiter is not None:
            over = waiter.finish if isinstance(waiter, Collector) else None
            request = self.acks.begin(waiter, self._ackers(to, subject), over)
        emit = Emit(to.namespace, to.rooms, packet, to.excluded, request, to.volatile)
        try:
            entry = await self._send(emit, subject)
            if entry is not None and self._node.settings.confirm:
                await self._node.publisher.confirmed(entry)
            elif self.crowded():
                await asyncio.sleep(0)  # all has happened: nothing is undone when this is cancelled
        except BaseException:
            self.acks.cancel(request)
            raise
        return request

    async def _send(self, emit: Emit, subject: Subject | None) -> Entry | None:
        """Rule 1: a place first, then the local clients and the outbox in one go."""
        publisher = self._node.publisher
        own = self._deliver
        entry = None
        if subject is None:
            await publisher.turn()
        else:
            message = encode_message(emit)
            if emit.volatile and not publisher.fits(len(message)):
                self._drop(emit)
                if publisher.waited_for:
                    own = None
            else:
                if not publisher.reserve_now(len(message)):
                    await publisher.reserve(len(message))
                entry = publisher.put(subject, message)
        if own is not None and (subject is None or not self._node.total):
            own(emit)
        elif emit.request and (own is None or entry is None or subject not in self._node.always):
            self.acks.expect(emit.request, self._node.id, ())  # it will not come back to be handed on here
        return entry

    def _drop(self, emit: Emit) -> None:
        """Rule 3."""
        self._node.stats.volatile_dropped += 1
        for node in self._node.peers.ids if emit.request else ():
            self.acks.expect(emit.request, node, ())

    async def answers(self, to: Address, event: object, args: Sequence[Any]) -> AsyncGenerator[Answer]:
        """Send an event to clients and give what each one acknowledges, as it comes.

        Raises:
            AckTimeout: some did not within the timeout.
            BrokerClosed: this node was closed meanwhile.
            Exception: what `emit` raises.
        """
        timeout = self._node.settings.request_timeout if to.timeout is None else to.timeout
        deadline = asyncio.get_running_loop().time() + timeout
        if not to.local:
            await self._node.met()
        collector = Collector()
        responses: list[Answer] = []
        number = await self.emit(to, event, args, collector)
        try:
            while (answer := await collector.next(deadline)) is not None:
                responses.append(answer)
                yield answer
        except TimeoutError:
            self._node.check_open()
            missing = collector.missing or self.acks.missing(number)
            why = "too many other events wait" if collector.missing else f"not within {timeout} s"
            raise AckTimeout(
                f"{len(missing)} of {len(missing) + len(responses)} did not acknowledge {event!r:.80}: {why}.",
                responses=responses,
                missing=missing,
            ) from None
        finally:
            self.acks.cancel(number)

    def settle(self, waiter: Callback | Collector, answer: Answer) -> None:
        """Give an answer to who waits for it."""
        if isinstance(waiter, Collector):
            waiter.take(answer)
        else:
            self._node.spawn(call(waiter, answer.args))

    def _on_ack(self, origin: str, message: Ack) -> None:
        if message.packet is None:
            self.acks.gone(message.request, origin, message.sid)
            return
        data = self.packets.ack_data(message.packet)
        waiter = self.acks.answer(message.request, origin, message.sid)
        if waiter is None:
            raise WireError("stray_ack", "An acknowledgement arrived that nothing waits for.")
        self.settle(waiter, Answer(message.sid, origin, tuple(data)))

    def _on_expect(self, origin: str, message: Expect) -> None:
        self.acks.expect(message.request, origin, message.sids, more=message.more)

    def _subject(self, to: Address, *, ack: bool) -> Subject | None:
        """Where an event goes (rule 2); None when nobody elsewhere can be meant."""
        subjects = self._node.subjects
        sid = owner(to.rooms[0]) if len(to.rooms) == 1 else ""
        if len(to.rooms) == 1 and not (sid or ack):
            return subjects.room(to.namespace, to.rooms[0])
        if sid and self._node.roams and not ack:
            return subjects.namespace(to.namespace)  # the client may be on any node, and what it misses is replayed
        node = self._node.holder(to.rooms[0]) if sid else ""
        if node == self._node.id:  # a client of this node, here or gone
            return subjects.inbox(node) if self._node.total else None
        if node in self._node.peers:
            return subjects.inbox(node)
        if ack:
            return subjects.control
        # several rooms, or a sid of a node that has not said hello yet, or a room that looks like one
        return subjects.namespace(to.namespace)

    def _ackers(self, to: Address, subject: Subject | None) -> set[str]:
        """The nodes that will say which clients they reached."""
        here = set[str]() if self._deliver is None else {self._node.id}
        if subject is None:
            return here
        node = self._node.holder(to.rooms[0]) if len(to.rooms) == 1 else ""
        if node == self._node.id:
            return here
        return here | ({node} if node in self._node.peers else self._node.peers.ids)


async def call(callback: Callable[..., Any], args: Sequence[Any]) -> None:
    """Call an application's function, and await it when that is what it wants."""
    result = callback(*args)
    if inspect.isawaitable(result):
        await result
