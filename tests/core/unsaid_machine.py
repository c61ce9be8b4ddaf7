"""A node that says something of its sessions, and a broker that refuses what it likes, before or after what follows it.

The machine does what `serving` does: it describes a session that it serves anew instead of saying again what it said,
and it ends one that it does not serve when its description was taken last. What must hold is looked up in the log of
the broker once all has been taken.
"""

from dataclasses import dataclass
from typing import ClassVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from roomcast.core.messages import Keep, Part, Stay
from roomcast.core.unsaid import Unsaid, is_sent_away

LIMIT = 2
PIDS = ("a", "b", "c")

pids = st.sampled_from("aaabc")
indexes = st.integers(0, 5)


def keep(number: int, pid: str = "p", term: int = 0) -> Keep:
    """A description of a session."""
    stays = (Stay("red", 11),)
    return Keep(pid, term, f"sid of {pid}", "/", stays, msgspec.Raw(b"\x80"), "e", 1, 0, 1, number=number)


def age(description: Keep) -> tuple[int, int]:
    """What is greater of a newer description."""
    return description.term, description.number


@dataclass
class Flying:
    """What the broker has been given; `again` when that was not the first time."""

    message: Keep | Part
    again: bool


class UnsaidMachine(RuleBasedStateMachine):
    """See the module.

    `held` is all that came to wait of each session since nothing of it did; the one that has waited longest is first.
    """

    make: ClassVar[type[Unsaid]] = Unsaid

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make(LIMIT)
        self.pause = 0.1
        self.served = set[str](PIDS)
        self.latest = {pid: keep(0, pid) for pid in PIDS}
        self.ends: list[Part] = []
        self.flying: list[Flying] = []
        self.held: dict[str, list[Keep | Part]] = {}
        self.given_up: set[str] = set()
        self.log: list[Keep | Part] = []

    @staticmethod
    def due(held: list[Keep | Part]) -> list[Keep | Part]:
        """What is to be said again, by rules 1 and 2."""
        newest = max((one for one in held if isinstance(one, Keep)), key=age, default=None)
        parts = [one for one in held if isinstance(one, Part)]
        if newest is None:
            return [*dict.fromkeys(parts)]
        return [newest, *dict.fromkeys(one for one in parts if one.sent_away or one.term >= newest.term)]

    def say(self, message: Keep | Part) -> None:
        pid = message.pid
        behind = pid in self.held and isinstance(message, Part)
        assert self.real.waits(message) is behind, "rule 1"
        if behind:
            self.held[pid].append(message)
            return
        if pid in self.held:
            self.held[pid] = [one for one in self.held[pid] if is_sent_away(one)]
            if not self.held[pid]:
                del self.held[pid]
        self.flying.append(Flying(message, again=False))

    def describe(self, pid: str, term: int) -> None:
        last = self.latest[pid]
        self.latest[pid] = keep(last.number + 1 if term == last.term else 1, pid, term)
        self.say(self.latest[pid])

    @rule(pid=pids)
    def session_changes(self, pid: str) -> None:
        if pid in self.served:
            self.describe(pid, self.latest[pid].term)

    @rule(pid=pids, over=st.booleans())
    def client_goes(self, pid: str, over: bool) -> None:
        if pid in self.served:
            self.served.remove(pid)
            self.say(Part(pid, self.latest[pid].term, over, self.latest[pid].number))

    @rule(pid=pids)
    def client_is_sent_away(self, pid: str) -> None:
        """Whether it is there or not."""
        self.served.discard(pid)
        self.ends.append(Part(pid, self.latest[pid].term, over=True, sent_away=True))
        self.say(self.ends[-1])

    @rule(pid=pids)
    def client_comes_back(self, pid: str) -> None:
        if pid not in self.served:
            self.served.add(pid)
            self.describe(pid, self.latest[pid].term + 1)

    @rule(pid=pids)
    def client_is_soon_back(self, pid: str) -> None:
        """What was said before, that it went, and what is said now are all on their way."""
        self.session_changes(pid)
        self.client_goes(pid, over=False)
        self.client_comes_back(pid)

    @precondition(lambda self: self.flying)
    @rule()
    def broker_takes(self) -> None:
        self.log.append(self.flying.pop(0).message)

    @precondition(lambda self: self.flying)
    @rule(index=indexes)
    def broker_refuses(self, index: int) -> None:
        flown = self.flying.pop(index % len(self.flying))
        message, latest = flown.message, self.latest[flown.message.pid]
        if isinstance(message, Keep) and not flown.again and message.term == latest.term and message != latest:
            return  # the later one decides
        if message.pid not in self.held and len(self.held) == LIMIT:
            longest = next(iter(self.held))
            self.given_up.add(longest)
            del self.held[longest]
        self.held.setdefault(message.pid, []).append(message)
        self.real.refused(message)

    @precondition(lambda self: self.held)
    @rule(count=st.integers(1, LIMIT))
    def all_is_said_again(self, count: int) -> None:
        for pid in self.real.first(count):
            self.say_again(pid)

    def say_again(self, pid: str) -> None:
        messages = self.real.take(pid)
        assert messages == self.due(self.held.pop(pid)), "rules 1 and 2"
        assert not self.real.take(pid), "it waits no more"
        if pid in self.served and messages[0].term == self.latest[pid].term:
            self.describe(pid, messages[0].term)
            messages = [one for one in messages if is_sent_away(one)]
        elif pid not in self.served and isinstance(messages[-1], Keep):
            messages = [*messages, Part(pid, messages[0].term, over=True)]
        self.flying += [Flying(one, again=True) for one in messages]

    @rule(taken=st.booleans())
    def broker_was_tried(self, taken: bool) -> None:
        self.real.tried(taken=taken)
        self.pause = 0.1 if taken else min(2 * self.pause, 1.0)

    @invariant()
    def same(self) -> None:
        assert self.real.first(9) == list(self.held), "rule 4, and the one that has waited longest comes first"
        assert self.real.first(1) == list(self.held)[:1]
        assert len(self.real) == len(self.held) <= LIMIT
        assert [pid in self.real for pid in PIDS] == [pid in self.held for pid in PIDS]
        assert self.real.pause == self.pause, "rule 3"

    def teardown(self) -> None:
        """Once all is taken, it is known what is said last of each session, and of everyone who was sent away."""
        while self.flying or self.held:
            self.log += [one.message for one in self.flying]
            self.flying.clear()
            for pid in tuple(self.held):
                self.say_again(pid)
        for pid in set(PIDS) - self.given_up:
            latest = self.latest[pid]
            log = [
                one for one in self.log if one.pid == pid and (one.term == latest.term or is_sent_away(one))
            ]  # what counts
            if latest.number:
                assert [one for one in log if isinstance(one, Keep)][-1] == latest, "the latest description"
            if pid not in self.served:
                assert isinstance(log[-1], Part), "the end comes last"
        assert all(end in self.log for end in self.ends if end.pid not in self.given_up), "sent away"
