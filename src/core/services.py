"""What an adapter offers its application besides events: presence, claims, and handlers of server-side events."""

from collections.abc import Callable
from typing import Any, overload

from roomcast.core.claims import Claimed, Claims
from roomcast.core.events import Handler, Handlers
from roomcast.core.gateway import Gateway
from roomcast.core.presence import Presence, PresenceWatch
from roomcast.core.subjects import Room, namespace_name, room_name
from roomcast.core.tickets import Policy


class Services(Gateway):
    """The verbs of an adapter that an emitter has not."""

    __slots__ = ()

    _handlers: Handlers
    _claims: Claims
    _presence: Presence

    def presence(self, room: Room | None, namespace: str = "/") -> PresenceWatch:
        """Watch who is in a room, or (None) in the namespace, on all nodes: `async with` and `async for`.

        Raises:
            TypeError, ValueError: the room or the namespace is not one.
        """
        return self._presence.watch(namespace_name(namespace), None if room is None else room_name(room))

    @overload
    def on(self, event: str) -> Callable[[Handler], Handler]: ...
    @overload
    def on(self, event: str, handler: Handler) -> Handler: ...
    def on(self, event: str, handler: Any = None) -> Any:
        """Call a function, or await it, for a server-side event; usable as a decorator.

        Its arguments are the event's; what it returns is this node's answer, when one was asked for. The library
        itself tells `node_joined` (a `NodeInfo`) and `node_left` (a `NodeInfo`, and "bye" or "lost").

        Raises:
            ValueError: the event has a handler already, or its name is reserved.
        """

        def register(function: Handler) -> Handler:
            self._handlers.add(event, function)
            return function

        return register if handler is None else register(handler)

    async def claim(
        self, sid: str, key: str, limit: int = 1, policy: Policy = "refuse", namespace: str = "/"
    ) -> Claimed:
        """Let a client of this node hold a key that at most `limit` clients hold in the whole cluster.

        It is held until `release`, or until the client or its node is gone; claiming again what one holds is granted.
        All claims of a key should name the same limit and policy.

        Args:
            sid: the client; its connect handler is a good place for this.
            key: what is claimed, such as "user:42"; one and the same in all namespaces.
            limit: how many may hold it.
            policy: what happens to one too many: "refuse" it, or "evict_oldest": the clients whose claims are the
                oldest are disconnected, after their nodes' handlers of `evicted` (sid, key) are done.
            namespace: of the client.

        Raises:
            ValueError: the client is not here, or an argument cannot work.
            TypeError: the key is not text, or the limit not an integer.
            RequestTimeout: a node, or a client to be evicted, did not respond in time: the key is not held.
            Backpressure, BrokerUnavailable, BrokerClosed: nobody could be asked: the key is not held.
        """
        return await self._claims.claim(sid, key, limit, policy, namespace)

    async def release(self, sid: str, key: str) -> None:
        """Give back a key that a client of this node holds; fine when it does not."""
        self._claims.release(sid, key)
