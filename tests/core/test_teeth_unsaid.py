"""The machine of what a broker has not taken catches each of these mistakes."""

import pytest

from roomcast.core.messages import Keep, Part
from roomcast.core.unsaid import Unsaid
from tests.core.test_teeth import escapes
from tests.core.unsaid_machine import UnsaidMachine


class LetsTheEndOvertake(Unsaid):
    """What follows is said at once, though something waits that was said before."""

    def waits(self, message: Keep | Part) -> bool:
        return isinstance(message, Keep) and super().waits(message)


class SaysTheOldAgain(Unsaid):
    """What waited when a newer description was said is said after it."""

    def waits(self, message: Keep | Part) -> bool:
        return isinstance(message, Part) and super().waits(message)


class ForgetsWhoIsSentAway(Unsaid):
    """A newer description takes the place of the word that the client is sent away."""

    def waits(self, message: Keep | Part) -> bool:
        if isinstance(message, Keep):
            self.take(message.pid)
        return super().waits(message)


class ForgetsWhoWasSentAwayBefore(Unsaid):
    """The same, when the newer description is refused."""

    def refused(self, message: Keep | Part) -> None:
        if isinstance(message, Keep):
            self._all[message.pid] = [one for one in self._all.get(message.pid, ()) if one.term >= message.term]
            if not self._all[message.pid]:
                del self._all[message.pid]
        super().refused(message)


class ForgetsTheEnd(Unsaid):
    """A description that is refused takes the place of the end that was said after it."""

    def refused(self, message: Keep | Part) -> None:
        if isinstance(message, Keep) and message.pid in self:
            self._all[message.pid][:] = [message]
        super().refused(message)


class BelievesTheLast(Unsaid):
    """Of two descriptions the one that was refused last stays."""

    def refused(self, message: Keep | Part) -> None:
        waiting = self._all.get(message.pid)
        if waiting and isinstance(message, Keep) and isinstance(waiting[0], Keep):
            waiting[0] = message
        super().refused(message)


class BelievesTheFirst(Unsaid):
    """Of two descriptions the one that was refused first stays."""

    def refused(self, message: Keep | Part) -> None:
        waiting = self._all.get(message.pid, [])
        if not isinstance(message, Keep) or not any(isinstance(one, Keep) for one in waiting):
            super().refused(message)


class BeginsWithTheEnd(Unsaid):
    """What waits is said in the order in which it was refused."""

    def refused(self, message: Keep | Part) -> None:
        if message.pid in self and message not in self._all[message.pid]:
            self._all[message.pid].append(message)
        else:
            super().refused(message)


class PartsInEveryTerm(Unsaid):
    """That an owner has parted with it is said again after the description of the next one."""

    def refused(self, message: Keep | Part) -> None:
        before = [one for one in self._all.get(message.pid, ()) if isinstance(one, Part)]
        super().refused(message)
        waiting = self._all[message.pid]
        waiting += [one for one in before if one not in waiting]


class StammersOn(Unsaid):
    """What is said twice waits twice."""

    @staticmethod
    def _add(waiting: list[Keep | Part], part: Part) -> None:
        waiting.append(part)


class NeverTakesAway(Unsaid):
    """What is said again still waits."""

    def take(self, pid: str) -> list[Keep | Part]:
        return list(self._all.get(pid, ()))


class GivesUpTheNewest(Unsaid):
    """When too many wait, the one that came last has to go."""

    def refused(self, message: Keep | Part) -> None:
        if message.pid not in self and len(self) >= self._limit:
            self._all.popitem()
        super().refused(message)


class GivesUpNobody(Unsaid):
    """The limit is forgotten."""

    def refused(self, message: Keep | Part) -> None:
        self._limit = len(self) + 1
        super().refused(message)


class GivesUpForTheKnown(Unsaid):
    """One has to go although nothing comes in addition."""

    def refused(self, message: Keep | Part) -> None:
        if message.pid in self and len(self) >= self._limit:
            self.take(self.first(1)[0])
        super().refused(message)


class LetsTheNewestGoFirst(Unsaid):
    """The one that came last is said again first."""

    def first(self, count: int) -> list[str]:
        return list(reversed(self._all))[:count]


class NeverCalmsDown(Unsaid):
    """The pause stays as long as it has become."""

    def tried(self, *, taken: bool) -> None:
        if not taken:
            super().tried(taken=taken)


class WaitsEverLonger(Unsaid):
    """The pause has no bound."""

    def tried(self, *, taken: bool) -> None:
        self.pause *= 2
        if taken:
            super().tried(taken=taken)


TWINS: list[type[Unsaid]] = [
    LetsTheEndOvertake,
    SaysTheOldAgain,
    ForgetsWhoIsSentAway,
    ForgetsWhoWasSentAwayBefore,
    ForgetsTheEnd,
    BelievesTheLast,
    BelievesTheFirst,
    BeginsWithTheEnd,
    PartsInEveryTerm,
    StammersOn,
    NeverTakesAway,
    GivesUpTheNewest,
    GivesUpNobody,
    GivesUpForTheKnown,
    LetsTheNewestGoFirst,
    NeverCalmsDown,
    WaitsEverLonger,
]


FOCUS: dict[type[Unsaid], str] = dict.fromkeys(
    (BelievesTheLast, BelievesTheFirst, PartsInEveryTerm), "client_is_soon_back broker_refuses"
)
"""The rules that a hunt needs, where it would be long with all of them."""


@pytest.mark.teeth
@pytest.mark.parametrize("twin", TWINS)
def test_the_machine_catches(twin: type[Unsaid]) -> None:
    assert not escapes(UnsaidMachine, FOCUS.get(twin, ""), make=twin)
