"""How long to wait for the owner of a session that is asked for.

1. An owner that is there says something as soon as one of its sessions is asked for. One that has said nothing of any
   session for `hearing` seconds since then is silent, until it is heard again: who asks meanwhile waits no more.
2. One that has been heard has `patience` seconds from each request to answer that.

Pure: `now` is a monotonic clock in seconds.
"""


class Silence:
    """What one node knows of the owners that it waits for.

    Args:
        hearing, patience: see the rules.
    """

    def __init__(self, *, hearing: float, patience: float) -> None:
        self._hearing = hearing
        self._patience = patience
        self._since: dict[str, float] = {}  # when those who have said nothing since were asked first

    def ask(self, owner: str, now: float) -> None:
        """A session of this owner is asked for."""
        self._since.setdefault(owner, now)

    def heard(self, owner: str) -> None:
        """It says something, or is known to be gone."""
        self._since.pop(owner, None)

    def left(self, owner: str, asked: float, now: float) -> float:
        """Seconds for which who asked then goes on waiting, as things are; 0 when it waits no more."""
        since = self._since.get(owner)
        unheard = since is not None and since <= asked
        until = since + self._hearing if since is not None and unheard else asked + self._patience
        return max(0.0, until - now)
