"""What a node has said of its sessions and the broker has not taken: it is to be said again.

1. What is said of a session while something about it waits here waits behind it, once.
2. A newer description takes the place of all that was said before it, even when that is refused later. Not of the word
   that the client is sent away: that is meant in whichever term it is read (see `sessions`), and follows.
3. After a pause what waits about one session is said again, and once that is taken all the rest at once. The pause
   doubles with each refusal, up to `_LONGEST`, and begins anew once something was taken.
4. At most `limit` sessions are waited for; the one that has waited longest gives way.

Pure: the shell waits, and says it.
"""

from roomcast.core.messages import Keep, Part

_FIRST = 0.1
_LONGEST = 1.0  # seconds: for so long at most the older description can be believed once the broker takes messages


class Unsaid:
    """What waits, session by session.

    Args:
        limit: see rule 4.

    Attributes:
        pause: seconds until the next try.
    """

    def __init__(self, limit: int) -> None:
        self.pause = _FIRST
        self._limit = limit
        self._all: dict[str, list[Keep | Part]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, pid: str) -> bool:
        return pid in self._all

    def first(self, count: int) -> list[str]:
        """The pids of those that have waited longest."""
        return [pid for pid, _ in zip(self._all, range(count), strict=False)]

    def waits(self, message: Keep | Part) -> bool:
        """Whether a new message has to wait here (rules 1 and 2)."""
        waiting = self._all.get(message.pid)
        if waiting is None:
            return False
        if isinstance(message, Part):
            self._add(waiting, message)
            return True
        waiting[:] = [one for one in waiting if is_sent_away(one)]
        if not waiting:
            del self._all[message.pid]
        return False

    def refused(self, message: Keep | Part) -> None:
        """The broker has not taken a message."""
        waiting = self._all.get(message.pid)
        if waiting is None:
            if len(self._all) >= self._limit:
                del self._all[next(iter(self._all))]
            self._all[message.pid] = [message]
            return
        newest = waiting.pop(0) if isinstance(waiting[0], Keep) else None
        if isinstance(message, Part):
            self._add(waiting, message)
        elif newest is None or (newest.term, newest.number) < (message.term, message.number):
            newest = message
        if newest is not None:
            waiting[:] = [newest, *(one for one in waiting if one.term >= newest.term or is_sent_away(one))]

    def take(self, pid: str) -> list[Keep | Part]:
        """What is to be said again of a session, in order; it waits no more."""
        return self._all.pop(pid, [])

    def tried(self, *, taken: bool) -> None:
        """What was said again was taken, or it was not (rule 3)."""
        self.pause = _FIRST if taken else min(2 * self.pause, _LONGEST)

    @staticmethod
    def _add(waiting: list[Keep | Part], part: Part) -> None:
        if part not in waiting:
            waiting.append(part)


def is_sent_away(message: Keep | Part) -> bool:
    """Whether it says that the application has sent the client away."""
    return isinstance(message, Part) and message.sent_away
