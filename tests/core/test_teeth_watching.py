"""The machine of presence holds, and catches each of these mistakes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from roomcast.core.messages import Members, Watch
from roomcast.core.subjects import Room
from roomcast.core.telling import Telling
from roomcast.core.watching import Change, Mirror, View
from tests.core.effort import hunt, run
from tests.core.presence_machine import PATIENCE, PresenceMachine


def test_whatever_is_lost_whoever_looks_learns_who_is_there() -> None:
    run(PresenceMachine, 200)


# Twins with one realistic mistake each


class KeepsTheFirst(Telling):
    """Of a join and a leave in one go, the first one is told."""

    def _note(self, place: tuple[str, Room | None], sid: str, *, came: bool) -> None:
        for told in self._by_place.get(place, ()):
            if not told.whole:
                told.changes.setdefault(sid, came)
                self._due[told] = None


class Silent(Telling):
    """Renewals are not answered, and the loss of a last message stays unseen."""

    def watch(self, origin: str, watch: Watch, now: float) -> bool:
        for told in self._by_origin.get(origin, {}).values():
            if not watch.again and not told.changes and not told.whole:
                told.renewed = now
                return True
        return super().watch(origin, watch, now)


class EmptyAnswers(Telling):
    """The answer to a renewal has the version of the message before, and shows no hole."""

    def _messages(self, told: Any, page: int) -> Iterator[Members]:
        for message in super()._messages(told, page):
            if message.joined or message.left or message.whole:
                yield message
            else:
                told.version -= 1


class NoPatience(Telling):
    """Who is not live is forgotten at once."""

    def beat(self, now: float, live: Iterable[str]) -> None:  # type: ignore[override]
        super().beat(now + PATIENCE, set(live))


class Immortal(Telling):
    """Who is gone without a word is told for ever."""

    def beat(self, now: float, live: Iterable[str]) -> None:  # type: ignore[override]
        super().beat(now, {*live, "watcher"})


class EndsEachPage(Telling):
    """Each page of a whole set looks like the last one."""

    @staticmethod
    def _next(told: object, **fields: object) -> Members:
        return Telling._next(told, **(fields | {"more": False}))  # type: ignore[arg-type]


class SendsOn(Telling):
    """What failed is taken for sent: the numbers do not tell either."""

    def tell(self, send: Callable[[str, Members], bool], page: int) -> None:
        versions = {told: told.version for told in self._due}
        sent: list[Members] = []

        def try_to(origin: str, message: Members) -> bool:
            if send(origin, message):
                sent.append(message)
            return True

        super().tell(try_to, page)
        for told, version in versions.items():
            told.version = version + sum(message.number == told.number for message in sent)


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin",
    [KeepsTheFirst, Silent, EmptyAnswers, NoPatience, Immortal, EndsEachPage, SendsOn],
    ids=lambda twin: twin.__name__,
)
def test_telling(twin: type[Telling]) -> None:
    assert not escapes(make_telling=twin)


class SeesNoHole(Mirror):
    """Versions are not looked at."""

    def take(self, node: str, told: Members) -> list[Change]:
        part = self._parts.get(node)
        if part is not None:
            part.version = told.version - 1
        return super().take(node, told)


class NotesJoinsAlone(Mirror):
    """A whole set brings newcomers, and nobody goes with it."""

    def take(self, node: str, told: Members) -> list[Change]:
        return [change for change in super().take(node, told) if told.left or change.kind == "joined"]


class LeavesGhosts(Mirror):
    """A node goes, and its members stay on the screens."""

    def left(self, node: str) -> list[Change]:
        return super().left(node)[1:]


class BelievesStrangers(Mirror):
    """Who is not there is believed nevertheless."""

    def take(self, node: str, told: Members) -> list[Change]:
        self.expect({node})
        return super().take(node, told)


class BelievesWhatIsUnsure(Mirror):
    """Changes are believed while the set they belong to is not known."""

    def take(self, node: str, told: Members) -> list[Change]:
        part = self._parts.get(node)
        if part is not None and node in self.unsure and part.fresh is None and not told.whole:
            return self._update(node, part, told.joined, told.left)
        return super().take(node, told)


class GathersOn(Mirror):
    """A whole set that begins anew is put together with the one that was broken off."""

    def take(self, node: str, told: Members) -> list[Change]:
        part = self._parts.get(node)
        before = set(part.fresh or ()) if part is not None else set[str]()
        if told.whole and before:
            told = Members(told.number, told.version, (*told.joined, *before), (), whole=True, more=told.more)
        return super().take(node, told)


class NeverDoubts(Mirror):
    """What may be missing is not missed."""

    def doubt(self, node: str) -> None:
        """Nothing."""


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin",
    [
        SeesNoHole,
        NotesJoinsAlone,
        LeavesGhosts,
        BelievesStrangers,
        BelievesWhatIsUnsure,
        GathersOn,
        NeverDoubts,
    ],
    ids=lambda twin: twin.__name__,
)
def test_mirror(twin: type[Mirror]) -> None:
    assert not escapes(make_mirror=twin)


class KeepsTheLast(View):
    """A reverse takes the place of what it reverses: somebody goes who never came."""

    def note(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._changes[change.sid, change.node] = change


class ForgetsTheReverse(View):
    """Once a change of a client waits, later ones are dropped."""

    def note(self, changes: Iterable[Change]) -> None:
        for change in changes:
            self._changes.setdefault((change.sid, change.node), change)


class LooksAhead(View):
    """A look takes changes away from the iteration."""

    def look(self) -> dict[str, str]:
        self._asked = False
        return super().look()


class LooksBehind(View):
    """A look shows what was so in the beginning."""

    def look(self) -> dict[str, str]:
        self._asked = True
        return super().look()


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin", [KeepsTheLast, ForgetsTheReverse, LooksAhead, LooksBehind], ids=lambda twin: twin.__name__
)
def test_view(twin: type[View]) -> None:
    assert not escapes(make_view=twin)


FOCUS: dict[type[object], str] = {
    KeepsTheFirst: "client_enters client_exits node_tells everything_settles",
    GathersOn: "client_enters client_exits node_tells whole_set_is_broken_off watcher_is_told everything_settles",
    BelievesWhatIsUnsure: "client_enters client_exits node_tells message_is_lost watcher_doubts watcher_is_told "
    "everything_settles",
    Immortal: "node_is_asked node_beats node_leaves watcher_beats everything_settles",
    SendsOn: "client_enters node_tells watcher_is_told everything_settles",
}
"""The rules that a hunt needs, where it would be long with all of them."""


def escapes(**parts: type[object]) -> bool:
    """Whether the machine lets a twin pass that takes the place of the real thing."""
    try:
        hunt(type("Twin", (PresenceMachine,), parts), "".join(FOCUS.get(part, "") for part in parts.values()))
    except (AssertionError, LookupError):  # what a shell would trip over counts as caught
        return False
    return True
