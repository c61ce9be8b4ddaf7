"""Each state machine of this folder catches the bugs it is there for: twins with one realistic mistake each."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import pytest
from hypothesis.stateful import RuleBasedStateMachine

from roomcast.core.broker import Subject
from roomcast.core.interest import Interest
from roomcast.core.outbox import Batch, Entry, Outbox
from roomcast.core.rooms import Client, Rooms
from roomcast.core.sequences import Numbering, Reading, Tracking
from roomcast.core.subjects import Room
from tests.core.effort import hunt
from tests.core.test_interest import LINGER, InterestMachine
from tests.core.test_outbox import OutboxMachine
from tests.core.test_rooms import RoomsMachine
from tests.core.test_sequences import SequencesMachine


def escapes(machine: type[RuleBasedStateMachine], rules: str = "", **parts: type[object]) -> bool:
    """Whether a machine lets a twin pass that takes the place of the real thing."""
    try:
        hunt(type("Twin", (machine,), parts), rules)
    except (AssertionError, LookupError, ValueError):  # what a shell would trip over counts as caught
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

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Collection[Client]:
        select = super().select
        if len(rooms) < 2:
            return select(namespace, rooms, excluded)
        return [client for room in rooms for client in select(namespace, (room,), excluded)]


class ExcludesSidsAlone(Rooms):
    """Who is in an excluded room is selected all the same."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Collection[Client]:
        return [client for client in super().select(namespace, rooms) if client.sid not in excluded]


class ExcludesRoomsAlone(Rooms):
    """A sid among the excluded is overlooked where a room is among them."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Collection[Client]:
        if not any(room in self.rooms(namespace) for room in excluded):
            return super().select(namespace, rooms, excluded)
        return [client for client in super().select(namespace, rooms) if not any(r in client.rooms for r in excluded)]


class ExcludesOneRoom(Rooms):
    """Of several excluded rooms only the first one counts."""

    def select(self, namespace: str, rooms: Sequence[Room], excluded: Collection[Room] = ()) -> Collection[Client]:
        return super().select(namespace, rooms, tuple(excluded)[:1])


class ForgetsOwnRoom(Rooms):
    """Where somebody else entered the room of a sid, the sid itself is overlooked."""

    def members(self, namespace: str, room: Room | None) -> Collection[Client]:
        entered = [one for one in super().members(namespace, None) if room in one.rooms]
        return entered or super().members(namespace, room)


@pytest.mark.teeth
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
    assert not escapes(RoomsMachine, FOCUS.get(twin, ""), make=twin)


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


@pytest.mark.teeth
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
        last = self._heard.get(origin, {}).get(subject)
        new = last is not None and epoch > last >> 64
        reading = super().read(subject, origin, epoch, first, count, place)
        return Reading() if new else reading


class SeesHolesInAPause(Tracking):
    """What nobody here listened to counts as lost."""

    def pause(self, subjects: Collection[Subject]) -> None:
        """They are listened to all the same."""


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


@pytest.mark.teeth
@pytest.mark.parametrize("twin", [CountsOneTooMany, TurnsBack, TrustsNewEpochs, SeesHolesInAPause, HandsOnTheLate])
def test_tracking(twin: type[Tracking]) -> None:
    assert not escapes(SequencesMachine, FOCUS.get(twin, ""), tracking=twin)


@pytest.mark.teeth
def test_numbering() -> None:
    assert not escapes(SequencesMachine, numbering=ReusesEpochs)


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


FOCUS: dict[type[object], str] = {
    TellsEveryEntry: "add enter",
    LeavesGhosts: "add enter remove",
    SelectsTwice: "add enter select",
    ExcludesSidsAlone: "add enter select",
    ExcludesRoomsAlone: "add enter select",
    ExcludesOneRoom: "add enter select",
    SeesHolesInAPause: "publish lose receive stop_listening",
    HandsOnTheLate: "publish send_again receive lose publisher_leaves",
    ComesBackLast: "put take give_back",
    GathersASubject: "put take confirm",
    NeverTooOld: "put take give_back wait expire",
}
"""The rules that a hunt needs, where it would be long with all of them."""


@pytest.mark.teeth
@pytest.mark.parametrize("twin", [ComesBackLast, FreesTwice, DropsInSilence, GathersASubject, NeverTooOld])
def test_outbox(twin: type[Outbox]) -> None:
    assert not escapes(OutboxMachine, FOCUS.get(twin, ""), make=twin)
