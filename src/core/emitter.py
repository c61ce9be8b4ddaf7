"""Emit to, and ask, a cluster from a process that serves no clients: a script, a worker, a web view.

1. An emitter is a guest: it hears who is there and what is answered to it, and nothing else. No node counts it, waits
   for it or keeps anything for it that outlives its requests.
2. It does what an adapter's operators do, with the same errors. With `confirm`, which is its default, an emit returns
   once the broker has the event.
3. Its first request waits until all nodes are known: a round trip when there are some, a second when there are none.
4. `start` returns connected or raises `BrokerUnavailable`; a link that is lost later comes back by itself. `aclose`
   flushes what was emitted.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Unpack, get_args

from roomcast.core.acks import Callback
from roomcast.core.address import Address
from roomcast.core.broadcast import Broadcast, Collector
from roomcast.core.cluster import Cluster
from roomcast.core.errors import BrokerUnavailable, ConfigurationError
from roomcast.core.events import ServerEvents
from roomcast.core.gaps import GapHook
from roomcast.core.gateway import Gateway
from roomcast.core.health import Health
from roomcast.core.messages import Message
from roomcast.core.node import Node
from roomcast.core.options import Settings, options
from roomcast.core.surveys import Surveys


class Emitter(Gateway):
    """Reaches the clients of a cluster from a process, and an event loop, that has none of its own.

    Args:
        url: the broker's, as for an `Adapter`; without one, the environment variable ROOMCAST_URL. `memory://` reaches
            the adapters on the same event loop.
        settings: as for an `Adapter`; `prefix` and `secret` must be those of the nodes. `confirm` is true here.

    Raises:
        ConfigurationError: there is no URL, or it or a setting cannot work.

    Use it in `async with`, or call `start` and `aclose`.
    """

    def __init__(self, url: str | None = None, **settings: Unpack[Settings]) -> None:
        self._url = url or os.environ.get("ROOMCAST_URL") or ""
        if not self._url:
            raise ConfigurationError("An emitter must know the broker of the nodes: pass its URL, or set ROOMCAST_URL.")
        self._settings = options({"confirm": True} | settings)
        self._closed = False
        self._become_guest()

    def _become_guest(self) -> None:
        """Make the guest and all that works for it."""
        self._node = node = Node(self._url, self._settings, guest=True)
        self._broadcast = _Broadcast(node, self._check_started)
        self._cluster = Cluster(node, self._broadcast, Surveys(node))
        self._events = ServerEvents(node, self._cluster)
        for kind in get_args(Message):
            node.handlers.setdefault(kind, _ignore)  # rule 1: it is meant for nodes

    def _be_oneself(self) -> None:
        """Made before a fork, each process is a guest of its own."""
        if self._node.pid != os.getpid():
            hooks = self._node.gaps.hooks
            self._become_guest()
            self._node.gaps.hooks = hooks

    def _current(self) -> Cluster:
        self._be_oneself()
        return self._cluster

    def _check_started(self) -> None:
        if not self._closed and not self._node.running:
            raise BrokerUnavailable(
                "The emitter is not started: use it in `async with`, or await its `start` first.",
                broker=self.broker_name,
            )

    # Life

    async def start(self) -> None:
        """Connect (rule 4); fine when that has happened.

        Raises:
            BrokerUnavailable: no broker answered within `connect_timeout`; calling again is fine.
            BrokerClosed: the emitter was closed.
            ConfigurationError: the broker will never accept these settings.
        """
        self._be_oneself()
        await self._node.start()

    async def aclose(self) -> None:
        """Send what was emitted, waiting at most `emit_timeout` for the broker, and disconnect. Idempotent."""
        self._closed = True
        await self._node.aclose()

    async def __aenter__(self) -> "Emitter":
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    @property
    def broker_name(self) -> str:
        """What the broker is called in errors and logs."""
        return self._node.broker_name

    def health(self) -> Health:
        """Whether the emitter hears and is heard; true when it is, with the reason when it is not."""
        return self._node.health()

    def stats(self) -> dict[str, Any]:
        """The emitter's counters by name (see `roomcast.core.stats.Stats`)."""
        self._node.stats.acks_forgotten = self._broadcast.acks.forgotten
        return self._node.stats.snapshot()

    def on_gap(self, hook: GapHook) -> GapHook:
        """Call `hook` with a `Gap` whenever something was, or may have been, lost. Usable as a decorator."""
        self._node.gaps.hooks.append(hook)
        return hook

    # Events

    async def emit(self, event: str, *args: Any) -> None:
        """Send an event to everyone in "/"; see `Operator.emit` for what it raises."""
        await self._start().emit(event, *args)

    async def server_side_emit(self, event: str, *args: Any) -> None:
        """Send an event to the application on every node; see `ServerEvents.emit` for what it raises."""
        self._be_oneself()
        self._check_started()
        await super().server_side_emit(event, *args)


class _Broadcast(Broadcast):
    """Refuses to send what would wait for a start that nobody may make: no server does it in the background here."""

    def __init__(self, node: Node, check_started: Callable[[], None]) -> None:
        super().__init__(node)
        self._check_started = check_started

    async def emit(
        self, to: Address, event: object, args: Sequence[Any], waiter: Callback | Collector | None = None
    ) -> int:
        self._check_started()
        return await super().emit(to, event, args, waiter)


def _ignore(_origin: str, _message: object) -> None:
    """What a guest does about what is meant for nodes."""
