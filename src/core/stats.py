"""What a node counts. Plain integers, read at any time, never reset."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class Stats:
    """Counters of one node since it was made.

    Attributes:
        published: messages handed to the broker and confirmed by it, as far as the broker confirms.
        payloads: broker messages that carried them.
        resent: messages sent again because the link was lost before their confirm.
        given_up: messages the outbox abandoned; each one is a loss, told by `on_gap` here, and as `missed` by the
            receivers once the next message on its subject arrives.
        received: messages of other nodes that arrived in order.
        repeats: messages that arrived again and were dropped.
        missed: messages known to be lost on the way, by the holes in their publishers' numbers.
        gaps: how often something was, or may have been, lost.
        disconnects: how often the link to the broker was lost.
        deliveries: packets put into a client's queue.
        sent_direct: packets that left a client's queue straight to its transport, many or few at a time.
        sent_queued: packets that left it through engine.io's own writer, or a polling request.
        volatile_dropped: volatile events that other nodes did not get, or that a client did not, because others waited.
        clients_cut: clients disconnected because they read too slowly.
        dropped_newest: events that a client did not get because too many waited for it (`slow_client="drop_newest"`).
        dropped_oldest: events that a client did not get because newer ones took their place (`"drop_oldest"`).
        acks_forgotten: callbacks dropped because too many waited.
        stray_replies: replies that nothing waited for: late, repeated or forged.
        sessions_recovered: clients that came back to this node and went on where they were.
        sessions_unrecovered: clients that came back with a session that could not be restored.
        sessions_taken: clients of this node whose session another one took, because this one did not answer in time.
        sessions_forgotten: sessions of absent clients that gave way because too many were absent.
        faults: errors in handlers that a message or a hook ran into; logged with a traceback.
        refused: payloads and messages that were not accepted, by kind (see `WireError.kind`).
    """

    published: int = 0
    payloads: int = 0
    resent: int = 0
    given_up: int = 0
    received: int = 0
    repeats: int = 0
    missed: int = 0
    gaps: int = 0
    disconnects: int = 0
    deliveries: int = 0
    sent_direct: int = 0
    sent_queued: int = 0
    volatile_dropped: int = 0
    clients_cut: int = 0
    dropped_newest: int = 0
    dropped_oldest: int = 0
    acks_forgotten: int = 0
    stray_replies: int = 0
    sessions_recovered: int = 0
    sessions_unrecovered: int = 0
    sessions_taken: int = 0
    sessions_forgotten: int = 0
    faults: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])

    def snapshot(self) -> dict[str, Any]:
        """The counters by name."""
        return asdict(self) | {"refused": dict(self.refused)}
