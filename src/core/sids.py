"""Session ids that carry their node: six characters of its id, then fourteen random ones (84 bits).

So whatever is meant for one client finds its node's inbox, and no table of clients is shared. Twenty characters of
the URL-safe alphabet is the form that Socket.IO's own ids have.
"""

import re
import secrets

TAG = 6  # characters of a node's id
_RANDOM = 14
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_SID = re.compile(rf"[A-Za-z0-9_-]{{{TAG + _RANDOM}}}")


def _random(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_node() -> str:
    """An id for a node, drawn anew for every life of a process."""
    return _random(TAG)


def new_sid(node: str) -> str:
    """An id for a client of a node."""
    return node + _random(_RANDOM)


def owner(sid: object) -> str:
    """The node that gave out a sid; empty for what does not look like one."""
    return sid[:TAG] if isinstance(sid, str) and len(sid) == TAG + _RANDOM and _SID.fullmatch(sid) else ""
