"""What the model servers have in common: all that a turn gives a connection to say leaves in one write."""

from typing import Protocol


class Talker(Protocol):
    """A connection with something to write."""

    def flush(self) -> None: ...


class Talking:
    """The connections of a server that something is to be written to, in the order in which that began."""

    def __init__(self) -> None:
        self._talking: dict[Talker, None] = {}

    def talks(self, connection: Talker) -> None:
        """Something is to be written to a connection."""
        self._talking[connection] = None

    def flush(self) -> None:
        """Write it."""
        talking, self._talking = self._talking, {}
        for connection in talking:
            connection.flush()
