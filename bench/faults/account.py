"""What became of a numbered stream: lost, doubled, out of order, and who was told. Pure.

1. A node writes a line of its journal as each thing happens, so that the journal outlives the process:
   `call 17 12.5` (an emit begins, at this time), `done 17` (it returned), `raised 17 BackPressure`, and
   `told gap:missed 3` (the application of this node was told something, of so many events; 0: no number was given).
2. An event is *lost* when it was emitted and never arrived. It is *refused* when, besides, its emit raised. It is lost
   *in silence* when its emit returned, and no number that the receiver, or the emitter, was told covers it.
3. An event is *doubled* each time it arrives again, and *late* when one that was emitted after it arrived before it.
4. Events flow again when the first event emitted since the fault was over has arrived.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Journal:
    """What one node wrote (rule 1).

    Attributes:
        calls: when each emit began, by the number of its event.
        done: the events whose emit returned.
        raised: the name of the exception, by the number of its event.
        told: what the application was told: how often, by what it was.
        events: of how many events it was told, by what it was.
    """

    calls: dict[int, float] = field(default_factory=dict[int, float])
    done: set[int] = field(default_factory=set[int])
    raised: dict[int, str] = field(default_factory=dict[int, str])
    told: dict[str, int] = field(default_factory=dict[str, int])
    events: dict[str, int] = field(default_factory=dict[str, int])

    def read(self, lines: Iterable[str]) -> "Journal":
        """Take lines in; a last line that was cut off by the end of the process is left out."""
        for line in lines:
            if not line.endswith("\n"):
                break
            what, *values = line.split()
            if what == "call":
                self.calls[int(values[0])] = float(values[1])
            elif what == "done":
                self.done.add(int(values[0]))
            elif what == "raised":
                self.raised[int(values[0])] = values[1]
            elif what == "told":
                name, events = values[0], int(values[1])
                self.told[name] = self.told.get(name, 0) + 1
                self.events[name] = self.events.get(name, 0) + events
        return self


@dataclass(frozen=True, slots=True)
class Arrival:
    """One event at a client: its number, and when it was read."""

    number: int
    at: float


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the stream at one client (rules 2 to 4).

    Attributes:
        recovery: seconds from the end of the fault until events flowed again; None: they did not.
        pending: emits that had neither returned nor raised in the end.
    """

    emitted: int
    lost: int
    refused: int
    silent: int
    doubled: int
    late: int
    recovery: float | None
    pending: int


def account(emitter: Journal, receiver: Journal, arrivals: Sequence[Arrival], over: float) -> Account:
    """Compare what was emitted with what arrived.

    Args:
        emitter: the journal of the emitting node, or of both its lives.
        receiver: that of the node whose client it is.
        arrivals: at the client, in the order in which they were read.
        over: when the fault was over.
    """
    seen: set[int] = set()
    highest = -1
    doubled = late = 0
    flowing: float | None = None
    for arrival in arrivals:
        if arrival.number in seen:
            doubled += 1
            continue
        seen.add(arrival.number)
        late += arrival.number < highest
        highest = max(highest, arrival.number)
        if flowing is None and emitter.calls.get(arrival.number, 0.0) >= over:
            flowing = arrival.at
    missing = emitter.calls.keys() - seen
    refused = len(missing & emitter.raised.keys())
    accepted = len(missing & emitter.done)
    known = sum(receiver.events.values()) + emitter.events.get("gap:given_up", 0)
    return Account(
        emitted=len(emitter.calls),
        lost=len(missing),
        refused=refused,
        silent=max(0, accepted - known),
        doubled=doubled,
        late=late,
        recovery=None if flowing is None else flowing - over,
        pending=len(emitter.calls.keys() - emitter.done - emitter.raised.keys()),
    )
