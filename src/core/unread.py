"""What a node has published and has not read back from the log: its own events, which its own clients get from there.

Messages come back in the order in which they took their places. So one that has come back settles all before it.

1. What comes back for certain is waited for itself. Of another, such as an event to a room that this node may not hear
   by then, nobody can say whether it will: what is certain is a message behind it.
2. What was given up does not come back. In its place stands the latest before it that may.

Pure: places count up; `now` is a monotonic clock in seconds.
"""

from collections.abc import Collection, Iterable


class Unread:
    """The own messages of one node that concern its clients.

    Attributes:
        newest: the place of the latest one.
        since: when that was published.
        certain: whether it comes back (rule 1).
        read: the place up to which everything has come back.
    """

    def __init__(self) -> None:
        self.newest = 0
        self.since = 0.0
        self.certain = True
        self.read = 0
        self._confirmed = 0

    @property
    def outstanding(self) -> bool:
        """Whether anything has not come back."""
        return self.newest > self.read

    def put(self, place: int, now: float, *, certain: bool) -> None:
        """A message has taken its place."""
        self.newest, self.since, self.certain = place, now, certain

    def confirmed(self, place: int) -> None:
        """The log has a message that comes back for certain, and all before it."""
        self._confirmed = max(self._confirmed, place)

    def came_back(self, place: int) -> None:
        """A message was read, and all before it."""
        self.read = max(self.read, place)

    def given_up(self, places: Collection[int], left: Iterable[int]) -> None:
        """Messages were given up; those `left` may still reach the log, and come back for certain then (rule 2)."""
        if self.newest in places and self.certain:
            self.newest = self.instead_of(self.newest, left)

    def instead_of(self, place: int, left: Iterable[int]) -> int:
        """What to wait for when the message at a place was given up (rule 2)."""
        return max(self._confirmed, *(one for one in left if one < place), 0)
