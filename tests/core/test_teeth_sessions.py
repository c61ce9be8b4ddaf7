"""The machine of the sessions catches each of these mistakes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from roomcast.core import sessions
from roomcast.core.messages import Keep, Part, Stay
from roomcast.core.served import Served
from roomcast.core.sessions import News, Session, Sessions
from roomcast.core.subjects import Room
from roomcast.core.tail import Kept, Tail
from tests.core import session_machine
from tests.core.effort import hunt
from tests.core.session_machine import Cluster


class ForgetsTheTerm(Sessions):
    """What an owner says late undoes what was decided since."""

    def keep(self, origin: str, keep: Keep) -> Sequence[News]:
        session = self.get(keep.pid)
        if session is not None and keep.term < session.term:
            session.owner, session.term = origin, keep.term
        return super().keep(origin, keep)


class LetsAnyonePart(Sessions):
    """An owner of before parts with what is another's."""

    def part(self, origin: str, part: Part, sent: float) -> Sequence[News]:  # noqa: ARG002
        session = self.get(part.pid)
        if session is None:
            return ()
        return super().part(session.owner, msgspec.structs.replace(part, term=session.term), sent)


class LetsThemStay(Sessions):
    """Who was sent away in the moment in which it came back stays."""

    def part(self, origin: str, part: Part, sent: float) -> Sequence[News]:
        return super().part(origin, msgspec.structs.replace(part, sent_away=False), sent)


class PassesOverWhatComesLate(Sessions):
    """What an owner says of a session that was taken from it is not looked at."""

    def _late(self, session: Session, origin: str, keep: Keep) -> Sequence[News]:  # noqa: ARG002
        return ()


class RepeatsTheLast(Tail):
    """The place that a client names is among what it has missed."""

    def since(self, number: int, subjects: Iterable[Any]) -> Iterator[Kept]:
        return super().since(max(0, number - 1), subjects)


class ForgetsWhoLeft(Served):
    """What was sent to a room before its client left is not owed."""

    def exited(self, room: Room, place: int) -> None:
        super().exited(room, place)
        self._left.clear()


class MarksTooFar(Served):
    """What comes after the description is taken for delivered."""

    def describe(self, epoch: str, upto: int) -> Keep:
        return super().describe(epoch, upto + 1)


def in_its_rooms_from_the_beginning(
    start: int, sid: str, namespace: str, stays: Sequence[Stay]
) -> Callable[[Kept], bool]:
    """What was sent to a room before the client came into it is owed, too."""
    return sessions.owed(start, sid, namespace, [msgspec.structs.replace(stay, joined=0) for stay in stays])


def whom_it_was_not_for(start: int, sid: str, namespace: str, stays: Sequence[Stay]) -> Callable[[Kept], bool]:
    """Those who are left out are not."""
    is_owed = sessions.owed(start, sid, namespace, stays)

    def excluding_nobody(kept: Kept) -> bool:
        kept.emit = msgspec.structs.replace(kept.emit, excluded=())
        return is_owed(kept)

    return excluding_nobody


TWINS: list[tuple[str, Any]] = [
    ("Sessions", ForgetsTheTerm),
    ("Sessions", LetsAnyonePart),
    ("Sessions", LetsThemStay),
    ("Sessions", PassesOverWhatComesLate),
    ("Tail", RepeatsTheLast),
    ("Served", ForgetsWhoLeft),
    ("Served", MarksTooFar),
    ("owed", in_its_rooms_from_the_beginning),
    ("owed", whom_it_was_not_for),
]


FOCUS: dict[Any, str] = {
    LetsThemStay: "lose_connection come_back send_away read_all read_on",
    MarksTooFar: "emit lose_connection come_back read_all",
}
"""The rules that a hunt needs, where it would be long with all of them."""


@pytest.mark.teeth
@pytest.mark.parametrize(("name", "twin"), TWINS, ids=lambda one: getattr(one, "__name__", one))
def test_the_machine_catches(name: str, twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_machine, name, twin)
    with pytest.raises(AssertionError):
        hunt(Cluster, FOCUS.get(twin, ""))
