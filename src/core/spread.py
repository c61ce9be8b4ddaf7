"""Packets on their way into very many queues: not all of these have them yet. Pure.

1. Each connection gets each packet once, and packets in the order in which they were added.
2. `some` gives the next puts to do: of the oldest packet, and not more than so many.
3. `owed` gives all that one connection is still to get, at once, so that something else can be put behind it.
4. Which connection of a packet comes first is not said.

An operation costs a constant for each put and each packet, however many others are still to be put.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from roomcast.core.frames import Frame

Connection = TypeVar("Connection")
Client = TypeVar("Client")


class Puts(NamedTuple, Generic[Client]):
    """A packet, and the clients that get it now; a volatile one only if nothing waits for them."""

    frame: Frame
    clients: Sequence[Client]
    volatile: bool


class Spread(Generic[Connection, Client]):
    """What is still to be put.

    Attributes:
        left: how many puts.
    """

    def __init__(self) -> None:
        self.left = 0
        self._packets: list[tuple[Frame, dict[Connection, Client], bool]] = []

    def add(self, frame: Frame, to: Mapping[Connection, Client], *, volatile: bool) -> None:
        """Begin with a packet for these clients, each on a connection."""
        self.left += len(to)
        self._packets.append((frame, dict(to), volatile))

    def some(self, most: int) -> Puts[Client]:
        """The next puts (rule 2); there must be some left."""
        frame, to, volatile = self._packets[0]
        clients = [to.popitem()[1] for _ in range(min(most, len(to)))]
        self._taken(len(clients))
        return Puts(frame, clients, volatile)

    def owed(self, connection: Connection) -> Iterator[Puts[Client]]:
        """What one connection is still to get (rule 3)."""
        for frame, to, volatile in tuple(self._packets):
            if connection in to:
                client = to.pop(connection)
                self._taken(1)
                yield Puts(frame, (client,), volatile)

    def _taken(self, puts: int) -> None:
        self.left -= puts
        self._packets = [packet for packet in self._packets if packet[1]]
