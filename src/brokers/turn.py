"""What a link writes at once, and what it holds to leave in one write, within turns of the event loop.

1. What comes first in a turn is written at once; what follows in the same turn leaves together at its end.
2. After a turn with several, all of the next one leaves together at its end; after a turn with one, rule 1 again.
3. What the socket did not take still waits at the end of the turn, and counts as if it had come in it.

Pure: whoever has a turn lets the loop call it back at the end, and does the writing.
"""


class Turn:
    """The turn of one link.

    Attributes:
        under_way: whether something has come in this turn of the loop. Asked for everything sent, so not a method.
    """

    __slots__ = ("_alone", "under_way")

    def __init__(self) -> None:
        self.under_way = False
        self._alone = True  # the last turn had one at most

    def begin(self) -> bool:
        """The first of a turn has come: whether it is to be written now."""
        self.under_way = True
        return self._alone

    def end(self, waiting: int) -> None:
        """The turn is over; all that waits is to be written.

        Args:
            waiting: how many were not written.
        """
        self._alone = waiting <= (0 if self._alone else 1)
        self.under_way = False
