"""Which subjects this node must hear: first in subscribes, last out unsubscribes after a linger.

A subject moves through four states, and the shell does what `work` tells it:

    (absent) --acquire--> wanted --work, subscribed--> active --last release--> lingering --expiry, work--> (absent)

1. `acquire` and `release` are counted per subject; only the first and the last have an effect.
2. An active subject whose last user left stays active for `linger` seconds; a user who comes back meanwhile
   finds it active, and no call to the broker is made.
3. `work` gives each change once, and never a subscribe and an unsubscribe of one subject together.
"""

from collections.abc import Iterable

from roomcast.core.broker import Subject


class Interest:
    """Reference counts of subjects, with linger."""

    def __init__(self, linger: float) -> None:
        self._linger = linger
        self._counts: dict[Subject, int] = {}
        self._wanted: dict[Subject, None] = {}
        self._active: set[Subject] = set()
        self._lingering: dict[Subject, float] = {}

    def __len__(self) -> int:
        """How many subjects the broker has been asked to deliver."""
        return len(self._active)

    def acquire(self, subject: Subject) -> bool:
        """One more user; True when the subject is already active (rule 2)."""
        self._counts[subject] = self._counts.get(subject, 0) + 1
        self._lingering.pop(subject, None)
        if subject in self._active:
            return True
        self._wanted[subject] = None
        return False

    def release(self, subject: Subject, now: float) -> None:
        """One user less."""
        count = self._counts[subject] - 1
        if count:
            self._counts[subject] = count
            return
        del self._counts[subject]
        if subject in self._active:
            self._lingering[subject] = now + self._linger
        else:
            self._wanted.pop(subject, None)

    def active(self, subject: Subject) -> bool:
        """Whether the broker has been asked, successfully, to deliver this subject."""
        return subject in self._active

    def to_subscribe(self) -> list[Subject]:
        """The subjects to subscribe to now. The shell answers with `subscribed`."""
        return list(self._wanted)

    def subscribed(self, subjects: Iterable[Subject], now: float) -> None:
        """The broker delivers these from now on, or will when its connection is back."""
        for subject in subjects:
            self._wanted.pop(subject, None)
            self._active.add(subject)
            if subject not in self._counts:  # its last user left while the call was under way
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
            self._active.discard(subject)
        return due

    def next_deadline(self) -> float | None:
        """When the next linger ends, on the clock of `now`; None when nothing lingers."""
        return next(iter(self._lingering.values()), None)
