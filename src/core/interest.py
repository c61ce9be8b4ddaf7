"""Which subjects this node must hear: first in subscribes, last out unsubscribes after a linger.

A subject moves through four states; the shell subscribes and unsubscribes as `to_subscribe` and `to_unsubscribe` say:

    (absent) --acquire--> wanted --subscribed--> active --last release--> lingering --to_unsubscribe--> (absent)

1. `acquire` and `release` are counted per subject; only the first and the last have an effect.
2. An active subject whose last user left stays active for `linger` seconds; a user who comes back meanwhile
   finds it active, and no call to the broker is made.
3. A subject is never in `to_subscribe` and in `to_unsubscribe` at the same time, nor given up while it has a user.
"""

from collections.abc import Iterable

from roomcast.core.broker import Subject

_ABSENT = object()


class Interest:
    """Reference counts of subjects, with linger."""

    def __init__(self, linger: float) -> None:
        self._linger = linger
        self._users: dict[Subject, int] = {}
        self._wanted: dict[Subject, None] = {}  # used, or just released, but not subscribed yet
        self._lingering: dict[Subject, float] = {}

    def __len__(self) -> int:
        """How many subjects the broker has been asked to deliver."""
        return len(self._users.keys() - self._wanted.keys()) + len(self._lingering)

    def acquire(self, subject: Subject) -> bool:
        """One more user; True when the subject is already active (rule 2)."""
        users = self._users.get(subject, 0)
        self._users[subject] = users + 1
        if not users and self._lingering.pop(subject, None) is None:
            self._wanted[subject] = None
        return subject not in self._wanted

    def release(self, subject: Subject, now: float) -> None:
        """One user less."""
        users = self._users[subject] - 1
        if users:
            self._users[subject] = users
            return
        del self._users[subject]
        if self._wanted.pop(subject, _ABSENT) is _ABSENT:
            self._lingering[subject] = now + self._linger

    def wanted(self, subject: Subject) -> bool:
        """Whether the subject has a user and is not active yet."""
        return subject in self._wanted

    def active(self, subject: Subject) -> bool:
        """Whether the broker has been asked, successfully, to deliver this subject."""
        return (subject in self._users and subject not in self._wanted) or subject in self._lingering

    def to_subscribe(self) -> list[Subject]:
        """The subjects to subscribe to now. The shell answers with `subscribed`."""
        return list(self._wanted)

    def subscribed(self, subjects: Iterable[Subject], now: float) -> None:
        """The broker delivers these from now on, or will when its connection is back."""
        for subject in subjects:
            self._wanted.pop(subject, None)
            if subject not in self._users:  # its last user left while the call was under way
                self._lingering[subject] = now + self._linger

    def to_unsubscribe(self, now: float) -> list[Subject]:
        """The subjects whose linger is over; they are no longer active once this returns."""
        due: list[Subject] = []
        for subject, deadline in self._lingering.items():  # insertion order is deadline order
            if deadline > now:
                break
            due.append(subject)
        for subject in due:
            del self._lingering[subject]
        return due

    def next_deadline(self) -> float | None:
        """When the next linger ends, on the clock of `now`; None when nothing lingers."""
        return next(iter(self._lingering.values()), None)
