"""Each state machine of this folder catches the bugs it is there for: twins with one realistic mistake each."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from roomcast.core.acks import Acks, Over
from roomcast.core.broker import Subject
from roomcast.core.interest import Interest
from roomcast.core.messages import Heartbeat, Hello, Reply
from roomcast.core.outbox import Batch, Entry, Outbox
from roomcast.core.peers import PeerJoined, PeerLeft, PeerRefused, Peers
from roomcast.core.requests import Request, Requests
from roomcast.core.rooms import Client, Rooms
from roomcast.core.sequences import Numbering, Reading, Tracking
from roomcast.core.subjects import Room
from tests.core.effort import hunt
from tests.core.test_acks import AcksMachine
from tests.core.test_interest import LINGER, InterestMachine
from tests.core.test_outbox import OutboxMachine
from tests.core.test_peers import PeersMachine
from tests.core.test_requests import RequestsMachine
from tests.core.test_rooms import RoomsMachine
from tests.core.test_sequences import SequencesMachine


def escapes(machine: type[RuleBasedStateMachine], **parts: type[object]) -> bool:
    """Whether a machine lets a twin pass that takes the place of the real thing."""
    try:
        hunt(type("Twin", (machine,), parts))
    except (AssertionError, LookupError):  # what a shell would trip over counts as caught
        return False
    return True


class TellsEveryEntry(Rooms):
    """`enter` says "first" to whoever was not in the room, first or not."""

    def enter(self, namespace: str, client: Client, room: Room) -> bool:
        new = room not in client.rooms
        super().enter(namespace, client, room)
        return new


class LeavesGhosts(Rooms):
    """`remove` forgets the client, but leaves it in one of its rooms."""

    def remove(self, namespace: str, sid: str) -> tuple[Client, Sequence[Room]] | None:
        client = self.client(namespace, sid)
        if client is not None and len(client.rooms) > 1:
            del client.rooms[next(iter(client.rooms))]
        return super().remove(namespace, sid)


class SelectsTwice(Rooms):
    """A client in two of the rooms is selected for each."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Iterable[Client]:
        select = super().select
        if len(rooms) < 2:
            return select(namespace, rooms, excluded)
        return [client for room in rooms for client in select(namespace, (room,), excluded)]


class ExcludesSidsAlone(Rooms):
    """Who is in an excluded room is selected all the same."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Iterable[Client]:
        return [client for client in super().select(namespace, rooms) if client.sid not in excluded]


class ExcludesRoomsAlone(Rooms):
    """A sid among the excluded is overlooked where a room is among them."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Iterable[Client]:
        if not any(room in self.rooms(namespace) for room in excluded):
            return super().select(namespace, rooms, excluded)
        return [client for client in super().select(namespace, rooms) if not any(r in client.rooms for r in excluded)]


class ExcludesOneRoom(Rooms):
    """Of several excluded rooms only the first one counts."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Iterable[Client]:
        return super().select(namespace, rooms, tuple(excluded)[:1])


class ForgetsOwnRoom(Rooms):
    """Where somebody else entered the room of a sid, the sid itself is overlooked."""

    def members(self, namespace: str, room: Room | None) -> Collection[Client]:
        entered = [one for one in super().members(namespace, None) if room in one.rooms]
        return entered or super().members(namespace, room)


@pytest.mark.parametrize(
    "twin",
    [
        TellsEveryEntry,
        LeavesGhosts,
        SelectsTwice,
        ForgetsOwnRoom,
        ExcludesSidsAlone,
        ExcludesRoomsAlone,
        ExcludesOneRoom,
    ],
)
def test_rooms(twin: type[Rooms]) -> None:
    assert not escapes(RoomsMachine, make=twin)


class NoRecheck(Interest):
    """Who comes back during the linger is forgotten, and the subject unsubscribed under it."""

    def __init__(self, linger: float) -> None:
        super().__init__(linger)
        self.left: dict[Subject, float] = {}

    def release(self, subject: Subject, now: float) -> None:
        super().release(subject, now)
        self.left[subject] = now

    def to_unsubscribe(self, now: float) -> list[Subject]:
        due = [subject for subject, left in self.left.items() if now - left >= LINGER and self.active(subject)]
        super().to_unsubscribe(now)
        return due


class NeverUnsubscribes(Interest):
    """A subject whose last user left during the subscribe is kept for ever."""

    def __init__(self, linger: float) -> None:
        super().__init__(linger)
        self.users: Counter[Subject] = Counter()

    def acquire(self, subject: Subject) -> bool:
        self.users[subject] += 1
        return super().acquire(subject)

    def release(self, subject: Subject, now: float) -> None:
        self.users[subject] -= 1
        super().release(subject, now)

    def subscribed(self, subjects: Iterable[Subject], now: float) -> None:
        for subject in subjects:
            if not self.users[subject]:
                super().acquire(subject)
        super().subscribed(subjects, now)


class FirstOneOut(Interest):
    """Not counted: the first user who leaves ends it for all."""

    def __init__(self, linger: float) -> None:
        super().__init__(linger)
        self.users: Counter[Subject] = Counter()

    def acquire(self, subject: Subject) -> bool:
        self.users[subject] += 1
        return super().acquire(subject)

    def release(self, subject: Subject, now: float) -> None:
        for _ in range(self.users.pop(subject, 0)):
            super().release(subject, now)


class SubscribesForNobody(Interest):
    """A subject that nobody wants any more is subscribed all the same."""

    def __init__(self, linger: float) -> None:
        super().__init__(linger)
        self.once: list[Subject] = []

    def acquire(self, subject: Subject) -> bool:
        active = super().acquire(subject)
        if not active and subject not in self.once:
            self.once.append(subject)
        return active

    def to_subscribe(self) -> list[Subject]:
        return [subject for subject in self.once if not self.active(subject)]


@pytest.mark.parametrize("twin", [NoRecheck, NeverUnsubscribes, FirstOneOut, SubscribesForNobody])
def test_interest(twin: type[Interest]) -> None:
    assert not escapes(InterestMachine, make=twin)


class CountsOneTooMany(Tracking):
    """The size of a hole is off by one."""

    def read(self, subject: Subject, origin: str, epoch: int, first: int, count: int, place: int = 0) -> Reading:
        reading = super().read(subject, origin, epoch, first, count, place)
        return Reading(reading.repeats, reading.missed + 1) if reading.missed else reading


class TurnsBack(Tracking):
    """A repeat turns the count back, so that what follows looks lost, or new again."""

    def read(self, subject: Subject, origin: str, epoch: int, first: int, count: int, place: int = 0) -> Reading:
        reading = super().read(subject, origin, epoch, first, count, place)
        if reading.repeats:
            self.forget_origin(origin)
            super().read(subject, origin, epoch, first, count, place)
        return reading


class TrustsNewEpochs(Tracking):
    """Whatever a new epoch begins with is taken for its first message."""

    def read(self, subject: Subject, origin: str, epoch: int, first: int, count: int, place: int = 0) -> Reading:
        last = self._heard.get(subject, {}).get(origin)
        new = last is not None and epoch > last.epoch
        reading = super().read(subject, origin, epoch, first, count, place)
        return Reading() if new else reading


class SeesHolesInAPause(Tracking):
    """What nobody here listened to counts as lost."""

    def pause(self, subject: Subject) -> None:
        for last in self._heard.get(subject, {}).values():
            last.paused = False


class HandsOnTheLate(Tracking):
    """What was sent again after something later is handed on, out of order."""

    def read(self, subject: Subject, origin: str, epoch: int, first: int, count: int, place: int = 0) -> Reading:  # noqa: ARG002
        return super().read(subject, origin, epoch, first, count)


class ReusesEpochs(Numbering):
    """A publisher that forgot a count begins at 1 in an epoch it used before."""

    def next(self, subject: Subject) -> tuple[int, int]:
        if subject not in self._counts:
            self._epoch = 1000
        return super().next(subject)


@pytest.mark.parametrize("twin", [CountsOneTooMany, TurnsBack, TrustsNewEpochs, SeesHolesInAPause, HandsOnTheLate])
def test_tracking(twin: type[Tracking]) -> None:
    assert not escapes(SequencesMachine, tracking=twin)


def test_numbering() -> None:
    assert not escapes(SequencesMachine, numbering=ReusesEpochs)


class AwaitsTheDead(Peers):
    """A peer that was lost is awaited for ever after an outage."""

    def tick(self, now: float) -> list[PeerLeft]:
        awaited = set(self._awaited)
        lost = super().tick(now)
        self._awaited = awaited
        return lost


class DeafToHeartbeats(Peers):
    """A heartbeat is not taken for a sign of life."""

    def heartbeat(self, node: str, beat: Heartbeat, now: float) -> bool:
        before = self._live[node].heard if node in self._live else now
        known = super().heartbeat(node, beat, now)
        if node in self._live:
            self._live[node].heard = before
        return known


class BlamesThePeers(Peers):
    """Our own deafness is taken for the silence of the peers."""

    def resume(self, now: float) -> None:
        """Nothing."""


class LosesOneAtATime(Peers):
    """Of several lost peers one is told, and the others vanish."""

    def tick(self, now: float) -> list[PeerLeft]:
        return super().tick(now)[:1]


class ForgetsTheVersion(Peers):
    """A peer that says hello again keeps what its first hello said."""

    def hello(self, node: str, hello: Hello, now: float) -> PeerJoined | PeerRefused | None:
        known = self._live.get(node)
        return super().hello(node, hello if known is None else known.hello, now)


class TellsAnOldHeartbeat(Peers):
    """A peer that says hello again is taken to have no clients."""

    def hello(self, node: str, hello: Hello, now: float) -> PeerJoined | PeerRefused | None:
        news = super().hello(node, hello, now)
        if node in self._live:
            self._live[node].beat = Heartbeat(0)
        return news


@pytest.mark.parametrize(
    "twin",
    [AwaitsTheDead, DeafToHeartbeats, BlamesThePeers, LosesOneAtATime, ForgetsTheVersion, TellsAnOldHeartbeat],
)
def test_peers(twin: type[Peers]) -> None:
    assert not escapes(PeersMachine, make=twin)


class CountsReplies(Requests):
    """Waits on a count of replies, so a repeated one stands for a node that never answered."""

    def reply(self, node: str, reply: Reply) -> Request:
        request = self._pending[reply.request]
        if node not in request.waiting and not reply.more and any(node == who for who, _ in request.arrived):
            request.waiting.pop()
            request.waiting.add(node)
        return super().reply(node, reply)


class AsksTheUnasked(Requests):
    """A reply of a node that was not asked is an answer as well."""

    def reply(self, node: str, reply: Reply) -> Request:
        self._pending[reply.request].waiting.add(node)
        return super().reply(node, reply)


class ForgetsWhatTheDeadSaid(Requests):
    """A node takes what it had answered with it."""

    def left(self, node: str) -> list[Request]:
        affected = super().left(node)
        for request in affected:
            request.arrived = type(request.arrived)(one for one in request.arrived if one[0] != node)
        return affected


class WaitsForTheRestOfTheDead(Requests):
    """A node that leaves in the middle of its answer is waited for."""

    def left(self, node: str) -> list[Request]:
        begun = [request for request in self._pending.values() if node in request.begun]
        for request in begun:
            request.waiting.discard(node)
        affected = super().left(node)
        for request in begun:
            request.waiting.add(node)
        return affected


class TellsOnlyTheLast(Requests):
    """Who still waits on others is not told that one is gone."""

    def left(self, node: str) -> list[Request]:
        return [request for request in super().left(node) if not request.waiting]


class TakesUnaskedParts(Requests):
    """A node may send its whole answer at once, however long it is."""

    def reply(self, node: str, reply: Reply) -> Request:
        self._pending[reply.request].begun.pop(node, None)
        return super().reply(node, reply)


class DoneWithTheFirstPart(Requests):
    """The first part is taken for the whole answer."""

    def reply(self, node: str, reply: Reply) -> Request:
        request = super().reply(node, reply)
        request.waiting.discard(node)
        return request


class AsksOnForEver(Requests):
    """Once asked on, a node may send part after part."""

    def reply(self, node: str, reply: Reply) -> Request:
        asked = self._pending[reply.request].begun.get(node, False)
        request = super().reply(node, reply)
        if asked and reply.more:
            request.begun[node] = True
        return request


class StaysAfterItsCaller(Requests):
    """A request whose caller gave up is kept."""

    def end(self, request: Request) -> None:
        if not request.waiting:
            super().end(request)


@pytest.mark.parametrize(
    "twin",
    [
        CountsReplies,
        AsksTheUnasked,
        ForgetsWhatTheDeadSaid,
        WaitsForTheRestOfTheDead,
        TellsOnlyTheLast,
        TakesUnaskedParts,
        DoneWithTheFirstPart,
        AsksOnForEver,
        StaysAfterItsCaller,
    ],
)
def test_requests(twin: type[Requests]) -> None:
    assert not escapes(RequestsMachine, make=twin)


class ForgetsTheNewest(Acks):
    """When too many wait, the youngest has to go."""

    def begin(self, waiter: Any, nodes: Collection[str], over: Over | None = None) -> int:
        number = super().begin(waiter, nodes, over)
        if self.forgotten:
            self._pending = dict(reversed(self._pending.items()))
        return number


class DoneWhenEveryoneSpoke(Acks):
    """A wait is over when all nodes have spoken, before their clients have."""

    def expect(self, number: int, node: str, sids: Collection[str], *, more: bool = False) -> None:
        super().expect(number, node, sids, more=more)
        pending = self._pending.get(number)
        if pending is not None and not pending.nodes:
            pending.clients.clear()
            self._settle(number, pending)


class BelievesTheFirstPart(Acks):
    """A node that goes on saying whom it reached is not listened to."""

    def expect(self, number: int, node: str, sids: Collection[str], *, more: bool = False) -> None:  # noqa: ARG002
        super().expect(number, node, sids)


class WaitsForTheDead(Acks):
    """The clients of a node that left are waited for."""

    def left(self, node: str) -> None:
        for number, pending in list(self._pending.items()):
            pending.told.add(node)
            pending.nodes.discard(node)
            self._settle(number, pending)


class AnswersTwice(Acks):
    """A client's second acknowledgement is told again."""

    def answer(self, number: int, node: str, sid: str) -> Any:
        pending = self._pending.get(number)
        waiter = super().answer(number, node, sid)
        if waiter is not None and pending is not None and number in self._pending:
            pending.clients.setdefault(node, set()).add(sid)
        return waiter


class GivesUpInSilence(Acks):
    """Who is given up because too many wait is not told."""

    def begin(self, waiter: Any, nodes: Collection[str], over: Over | None = None) -> int:
        oldest = next(iter(self._pending.values()), None)
        if oldest is not None and len(self._pending) >= self._limit:
            oldest.over = None
        return super().begin(waiter, nodes, over)


class TellsTheOneWhoGaveUp(Acks):
    """Whoever gives up is told that the wait is over, as if it were."""

    def cancel(self, number: int) -> None:
        pending = self._pending.get(number)
        super().cancel(number)
        if pending is not None and pending.over is not None:
            pending.over(frozenset())


class OverWithTheNodeOfTheLast(Acks):
    """A wait that ends by the departure of a node is forgotten without a word."""

    def left(self, node: str) -> None:
        waits = [(number, pending, pending.over) for number, pending in self._pending.items()]
        for _, pending, _ in waits:
            pending.over = None
        super().left(node)
        for number, pending, over in waits:
            if number in self._pending:
                pending.over = over


@pytest.mark.parametrize(
    "twin",
    [
        ForgetsTheNewest,
        DoneWhenEveryoneSpoke,
        BelievesTheFirstPart,
        WaitsForTheDead,
        AnswersTwice,
        GivesUpInSilence,
        TellsTheOneWhoGaveUp,
        OverWithTheNodeOfTheLast,
    ],
)
def test_acks(twin: type[Acks]) -> None:
    assert not escapes(AcksMachine, make=twin)


class ComesBackLast(Outbox):
    """What comes back stands behind what came back before it."""

    def give_back(self, batch: Batch) -> None:
        if self._flying.pop(batch.index, None) is not None:
            self._returned.append(batch)


class FreesTwice(Outbox):
    """A batch that is confirmed after it came back gives its places free twice."""

    def confirm(self, batch: Batch) -> None:
        if batch.index not in self._flying:
            self._free(batch.entries)
        super().confirm(batch)


class DropsInSilence(Outbox):
    """One of those given up is not handed over."""

    def evict(self, size: int) -> list[Entry]:
        return super().evict(size)[1:]


class GathersASubject(Outbox):
    """A message is moved past one of another subject to fill a batch."""

    def take(self) -> Batch | None:
        batch = super().take()
        if batch is not None and self._queue and len(self._queue) > 1:
            later = self._queue[1]
            if later.subject == batch.subject != self._queue[0].subject and len(self._flying) == 1:
                self._queue.remove(later)
                batch.entries = [*batch.entries, later]
        return batch


class NeverTooOld(Outbox):
    """What came back from the broker is kept, however old it is."""

    def expire(self, now: float) -> list[Entry]:
        return [] if self._returned else super().expire(now)


@pytest.mark.parametrize("twin", [ComesBackLast, FreesTwice, DropsInSilence, GathersASubject, NeverTooOld])
def test_outbox(twin: type[Outbox]) -> None:
    assert not escapes(OutboxMachine, make=twin)
