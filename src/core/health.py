"""What a node says of itself when it is asked whether it works."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a node can hear and speak; true when it can.

    Attributes:
        ok: connected, hearing, and accepted by its peers.
        reason: why not, as a sentence; empty when ok.
        connected: the link to the broker is up.
        peers: how many other nodes are live.
        backlog: messages not confirmed yet.
    """

    ok: bool
    reason: str
    connected: bool
    peers: int
    backlog: int

    def __bool__(self) -> bool:
        return self.ok
