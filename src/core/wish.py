"""What a client says of itself as it connects: the pid of the session that it had, and the last place that it got.

1. A pid is text as long as those that are given here. Any other is the application's own, and so is all that stands
   beside it.
2. A client that got nothing yet names no place. One that names what cannot be a place, such as a number or null (an
   `offset` of the application's own wins over the client's), may have got something: its place is not one of the log.
3. The rest of `auth` is the application's.
"""

import secrets
from dataclasses import dataclass
from typing import Any, cast

from roomcast.core.options import Recovery

_PID = 18  # random bytes
_NO_PLACE = ""  # is never one of a log
_UNDEFINED = (0, b"\0")  # JavaScript's undefined, as the client's msgpack parser sends it; JSON leaves it out


def new_pid() -> str:
    """A pid for a new session, which nobody can guess."""
    return secrets.token_urlsafe(_PID)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client said.

    Attributes:
        offered: whether it may have a session that can be restored.
        identity: who it is, as the application says.
        pid, place: of the session that it had, if any, and the last place it got.
    """

    offered: bool
    identity: str = ""
    pid: str = ""
    place: str | None = None


def look_at(settings: Recovery, environ: dict[str, Any], auth: Any) -> tuple[Wish, Any, Exception | None]:
    """A client's wish, its `auth` without that, and what a function of the application raised about it."""
    pid, place, own = _without_recovery(auth)
    try:
        if not settings.offer(environ, own):
            return Wish(offered=False), own, None
        identity = "" if settings.identity is None else str(settings.identity(environ, own))
    except Exception as exc:  # noqa: BLE001 - the application's function: its client connects without recovery
        return Wish(offered=False), own, exc
    return Wish(True, identity, pid, place), own, None


def _without_recovery(auth: Any) -> tuple[str, str | None, Any]:
    """The pid and the place in what a client sent as `auth`, and the rest of it."""
    own = dict(cast("dict[str, Any]", auth)) if isinstance(auth, dict) else {}
    pid, place = own.pop("pid", None), own.pop("offset", _UNDEFINED)
    if not isinstance(pid, str) or len(pid) != _PID * 4 // 3:  # there is none, or it is the application's own
        return "", None, cast("Any", auth)
    place = None if place == _UNDEFINED else place if isinstance(place, str) else _NO_PLACE
    return pid, place, own or None
