"""Names on the wire: one safe token per name, one subject per thing a node can hear.

| subject                             | who hears it                                                    |
|-------------------------------------|-----------------------------------------------------------------|
| `<prefix>.room.<namespace>.<room>`  | nodes with a member of the room (brokers that bear many subjects) |
| `<prefix>.part.<n>`                 | nodes with a member of any room that hashes to n (the others)   |
| `<prefix>.all.<namespace>`          | nodes with a client in the namespace                            |
| `<prefix>.inbox.<node>`             | that node                                                       |
| `<prefix>.control`                  | every node                                                      |
| `<prefix>.sessions`                 | every node that restores clients that come back                 |

A token holds only `A-Za-z0-9_-`, so no name can carry a wildcard, a separator or a line end into a broker's
protocol; its first letter says what it was made from, so that the text "1" and the integer 1 stay apart.
"""

import re
from binascii import b2a_base64
from functools import lru_cache
from hashlib import blake2b

from roomcast.core.broker import Subject
from roomcast.core.errors import ConfigurationError

Room = str | int
"""What a room may be called: any text, or an integer of at most 64 bits."""

_LONG = 47  # UTF-8 bytes; two tokens of 64 characters and the longest prefix make a subject of 200
_URLSAFE = bytes.maketrans(b"+/", b"-_")
_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}(\.[A-Za-z0-9_-]{1,32})?")


def room_name(room: object) -> Room:
    """The room's name as it travels: `str` and `int`, and their subclasses by value.

    Raises:
        TypeError: it is not text (lone surrogates are not text) nor an integer that fits 64 bits.
    """
    if type(room) is str:
        name = room
    elif isinstance(room, str):
        name = str.__str__(room)
    elif isinstance(room, int) and not isinstance(room, bool):
        number = int(room)
        if -(2**63) <= number < 2**64:
            return number
        raise TypeError(f"A room named by an integer takes at most 64 bits, not {number.bit_length()}.")
    else:
        raise TypeError(
            f"A room is named by text or an integer, not by {type(room).__name__} {room!r:.80}"
            + (": pass its .value." if hasattr(room, "value") else ".")
        )
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise TypeError(f"The room name {name!r:.80} holds a lone surrogate, which is not text.") from None
    return name


def namespace_name(namespace: object) -> str:
    """The namespace, checked to be one that a Socket.IO packet can carry.

    Raises:
        TypeError: it is not text.
        ValueError: it does not begin with "/" or holds a comma (Socket.IO protocol v5, packet encoding).
    """
    if namespace == "/":
        return "/"
    if not isinstance(namespace, str):
        raise TypeError(f"A namespace is text such as '/chat', not {type(namespace).__name__}.")
    if not namespace.startswith("/") or "," in namespace:
        raise ValueError(f"A namespace begins with '/' and holds no comma, unlike {namespace!r:.80}.")
    room_name(namespace)
    return namespace


def token(name: Room) -> str:
    """One token of `A-Za-z0-9_-`, at most 64 characters, different for different names."""
    if isinstance(name, int):
        return f"i{name}"
    raw = name.encode()
    if len(raw) > _LONG:
        return "h" + _base64(blake2b(raw, digest_size=24).digest())
    return "s" + _base64(raw)


def _base64(raw: bytes) -> str:
    return b2a_base64(raw, newline=False).translate(_URLSAFE, b"=").decode("ascii")


class Subjects:
    """The subjects of one cluster.

    Args:
        prefix: stands literally at the head of every subject, so that an operator can write an ACL.
        partitions: the broker's `guarantees.partitions`.

    Raises:
        ConfigurationError: the prefix is not one or two tokens of at most 32 characters each.
    """

    def __init__(self, prefix: str, partitions: int | None = None) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(
                f"The prefix {prefix!r:.80} must be one or two words of A-Z a-z 0-9 _ -, joined by a dot, "
                "at most 32 characters each."
            )
        self.prefix = prefix
        self.partitions = partitions
        self.control = Subject(f"{prefix}.control")
        self.sessions = Subject(f"{prefix}.sessions")
        self.room = lru_cache(maxsize=8192)(self._partition if partitions else self._room)
        self.namespace = lru_cache(maxsize=1024)(self._namespace)
        self._token = lru_cache(maxsize=1024)(token)

    def inbox(self, node: str) -> Subject:
        """Where one node hears what is meant for it and its clients alone."""
        return Subject(f"{self.prefix}.inbox.{node}")

    def _namespace(self, namespace: str) -> Subject:
        return Subject(f"{self.prefix}.all.{token(namespace)}")

    def _room(self, namespace: str, room: Room) -> Subject:
        return Subject(f"{self.prefix}.room.{self._token(namespace)}.{token(room)}")

    def _partition(self, namespace: str, room: Room) -> Subject:
        name = f"{self._token(namespace)}.{token(room)}".encode("ascii")
        number = int.from_bytes(blake2b(name, digest_size=8).digest(), "big")
        return Subject(f"{self.prefix}.part.{number % (self.partitions or 1)}")
