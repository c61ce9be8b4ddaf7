"""Who takes part in a simulation: processes and clients, and with what settings."""

import contextvars
from collections.abc import Callable, Collection
from typing import Any, Protocol

from roomcast.core.broker import Delivery, Subject
from tests.cluster.harness import Arguments, SimClient, SimNode

SETTINGS: dict[str, Any] = {
    "heartbeat": 1.0,
    "peer_timeout": 3.0,
    "linger": 0.3,
    "regroup_timeout": 0.5,
    "request_timeout": 2.0,
    "emit_timeout": 1.5,
    "outbox_messages": 12,
    "outbox_age": 4.0,
    "max_payload": 16_384,
    "buffer": 400,
}
SETTLE = 8.0  # seconds after which all is quiet: a peer that was lost is, requests have ended, lingers are over
BURST = 25  # emits at once, at most
ROOMS = ("r0", "r1", "r2", "")
NAMESPACES = ("/", "/chat")


class Member(SimClient):
    """A client of the simulation.

    Attributes:
        name: in the history.
        at: its node.
    """

    def __init__(self, name: str, at: "SimProcess", namespace: str) -> None:
        super().__init__(at.sim, namespace)
        self.name = name
        self.at = at
        self.gone = False
        self.lost = False
        self.answered = False
        self.early: list[Arguments] = []  # what came before the answer: the JavaScript client keeps that, too
        self.pid = ""
        self.place: str | None = None

    @property
    def here(self) -> bool:
        """Whether it is connected."""
        return self.answered and not self.gone and not self.lost

    async def lose(self) -> None:
        """Its connection is lost."""
        await self.socket.close(wait=False, abort=True, reason=self.node.server.reason.TRANSPORT_ERROR)


class Telling(Protocol):
    """A broker that tells what passes between it and its node.

    Attributes:
        asked: the subjects for which a call of `subscribe` has come back.
        handed: called with each delivery as the node gets it.
        forgotten: called with the subjects that the node gives up.
    """

    asked: set[Subject]
    handed: Callable[[Delivery], None]
    forgotten: Callable[[Collection[Subject]], None]


class SimProcess:
    """One process of the cluster: a node, its context, and whether it still runs."""

    def __init__(self, name: str, sim: SimNode, context: contextvars.Context) -> None:
        self.name = name
        self.sim = sim
        self.context = context
        self.alive = True
        self.stopping = False
        self.watches: list[tuple[str, str, dict[str, str]]] = []
        self.subjects: dict[str, int] = {}

    @property
    def adapter(self) -> Any:
        return self.sim.adapter

    @property
    def server(self) -> Any:
        return self.sim.server

    @property
    def broker(self) -> Telling:
        """The broker of its node; but one with a log does not tell."""
        return self.sim.broker
