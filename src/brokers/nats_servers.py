"""Which NATS server to try next: those of the URL, and as a fallback those that a cluster names of itself.

1. The servers of the URL come in an order of this node's own, so that the nodes of a lost server spread over the
   others. One round tries each of them, then each that was only learnt; the next round begins where it began.
2. What a server says of its cluster replaces what one said before. It is believed as far as the server is: over TLS a
   server that is named by a bare IP address must prove the name that led to the one that named it.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

_KNOWN = 64
"""How many servers beyond those of the URL are kept."""


@dataclass(frozen=True, slots=True)
class Server:
    """One server.

    Attributes:
        url: scheme, host and port, without credentials.
        name: what its certificate must be for; None for the host of its URL.
    """

    url: str
    name: str | None = None


class Servers:
    """The servers of one broker, in turn.

    Args:
        urls: those of the broker's URL.
        shuffle: puts a list in an order of its own.
    """

    def __init__(self, urls: Sequence[str], shuffle: Callable[[list[Server]], None] = random.shuffle) -> None:
        self._shuffle = shuffle
        self._named = [Server(url) for url in urls]
        shuffle(self._named)
        self._learnt: list[Server] = []
        self._turn = 0

    def __len__(self) -> int:
        return len(self._named) + len(self._learnt)

    @property
    def first(self) -> Server:
        """The server of the URL whose turn is the first."""
        return self._named[0]

    def following(self) -> Server:
        """The server whose turn it is (rule 1)."""
        known = [*self._named, *self._learnt]
        server = known[self._turn % len(known)]
        self._turn = (self._turn + 1) % len(known)
        return server

    def learn(self, urls: Iterable[str], teller: Server) -> None:
        """Take over what a server says of its cluster (rule 2)."""
        known = {server.url for server in self._named}
        found: dict[str, Server] = {}
        for url in urls:
            try:
                parts = urlsplit(url)
                host, port = parts.hostname, parts.port or 4222
            except ValueError:
                continue
            if not host or len(found) == _KNOWN:
                continue
            address = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            if address not in known:
                found[address] = Server(address, _proof(host, teller))
        if found.keys() != {server.url for server in self._learnt}:
            self._learnt = list(found.values())
            self._shuffle(self._learnt)
            self._turn %= len(self)


def _proof(host: str, teller: Server) -> str | None:
    try:
        ip_address(host)
    except ValueError:
        return None
    return teller.name or urlsplit(teller.url).hostname
