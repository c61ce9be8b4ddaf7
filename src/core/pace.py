"""How a node that was away reads what it has missed: no faster than its clients take it. Pure; `now` is an argument.

What is not read yet waits in the log, at no cost to this node. So nobody need be cut for a backlog that is not theirs.
But a slow client must not cost the others their time, so the reading waits for clients in narrow bounds:

1. Only after an absence (this process was stopped, or had no link), and for `PERIOD` seconds from its end. At any other
   time the bounds of a client's queue decide alone, and whoever reads more slowly than the rooms speak is cut by them.
2. Only while a client is *behind*: more than half of what may wait for it does.
3. Only while it moves: it has taken something in the last `STILL` seconds, or has not been behind for as long. Who does
   not read at all is waited for once, and then no more until it moves.
"""

from collections.abc import Mapping
from typing import Protocol

PERIOD = 60.0
"""Seconds from the end of an absence in which clients are waited for."""
STILL = 5.0
"""Seconds without a movement after which a client is not waited for."""


class Paced(Protocol):
    """Clients who are waited for.

    Attributes:
        fell_behind: whether one of them may have to be waited for.
    """

    fell_behind: bool

    def away(self) -> None:
        """This node was away until now (rule 1)."""
        ...

    async def serve(self) -> bool:
        """Let them have what they were given; whether some were slow to take it."""
        ...


class Pace:
    """Whether the reading has to wait now."""

    def __init__(self) -> None:
        self._until = float("-inf")
        self._seen: dict[object, tuple[object, float]] = {}

    def away(self, now: float) -> None:
        """An absence has ended (rule 1)."""
        self._until = now + PERIOD

    def waits(self, behind: Mapping[object, object], now: float) -> bool:
        """Whether to wait.

        Args:
            behind: who is behind, with what is another when they have moved.
            now: seconds on any clock that only goes forward.
        """
        before = self._seen
        if now >= self._until:
            behind = {}
        self._seen = {
            who: before[who] if who in before and before[who][0] == state else (state, now)
            for who, state in behind.items()
        }
        return any(now - since < STILL for _, since in self._seen.values())
