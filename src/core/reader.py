"""What a node that restores clients does with the log before anyone else sees it.

1. It is shown every delivery of the log, in its order, whatever the node wants for itself.
2. What it gives back is handled by the node, message by message: it has moved on to a message when the node gets it.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from roomcast.core.broker import Delivery, Log
from roomcast.core.errors import WireError
from roomcast.core.messages import Message


class Reader(Protocol):
    """Reads the whole log for one node."""

    async def rebuild(self, log: Log) -> None:
        """Read what was in the log before the node came."""
        ...

    def wants(self, delivery: Delivery) -> bool:
        """Whether to open a delivery that the node does not want for itself; it is taken note of in any case."""
        ...

    def read(
        self, delivery: Delivery, origin: str, sent: int, messages: Sequence[Message | WireError], repeats: int
    ) -> Iterable[tuple[str, Message | WireError]]:
        """Take in what was opened; gives the messages that the node shall handle, with their origin.

        Args:
            delivery: where it stands.
            origin: who sent it.
            sent: when, in microseconds since 1970 by its clock.
            messages: those that are new.
            repeats: how many came before them.
        """
        ...

    def unread(self, delivery: Delivery, error: WireError) -> None:
        """A delivery could not be opened."""
        ...

    def cut(self) -> None:
        """Something of the log was not read."""
        ...

    def holder(self, sid: object) -> str:
        """The node that has a client; empty for what is no sid, and when nobody serves it."""
        ...
