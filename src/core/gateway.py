"""An application's way into the cluster: what an adapter and an emitter both offer."""

from typing import Any

from roomcast.core.address import Address
from roomcast.core.cluster import Cluster
from roomcast.core.events import NodeAnswer, ServerEvents
from roomcast.core.membership import NodeInfo
from roomcast.core.operator import Named, Operator, Verbs
from roomcast.core.subjects import Room, namespace_name


class Gateway(Verbs):
    """The verbs that address the whole cluster; the steps and verbs of an operator begin from everyone in "/"."""

    __slots__ = ()

    _cluster: Cluster
    _events: ServerEvents

    def _start(self) -> Operator:
        return Operator(self._current, Address())

    def _current(self) -> Cluster:
        return self._cluster

    async def count(self, *rooms: Named, namespace: str = "/") -> int:
        """How many clients are in any of the rooms, or, without one, in the namespace.

        Raises:
            TypeError, ValueError: a room or the namespace is not one.
            RequestTimeout: a node did not answer; `replies` has the counts of the others, by node.
        """
        operator = self.namespace(namespace)
        return await (operator.to(*rooms) if rooms else operator).count()

    async def all_rooms(self, namespace: str = "/") -> dict[Room, int]:
        """The rooms of a namespace and how many members each has; a client's own room is not listed.

        Raises:
            RequestTimeout: a node did not answer; `replies` has the rooms of the others, by node.
        """
        return await self._cluster.all_rooms(Address(namespace_name(namespace)))

    async def get_session(self, sid: str, namespace: str = "/") -> dict[str, Any]:
        """What the application last stored with a client of any node, by `save_session`.

        On the client's own node also while its connect or disconnect handler runs; with recovery also of one that is
        away and may still come back. It comes by value: tuples are lists, and what cannot be serialised is left out.

        Raises:
            ValueError: there is no such client.
            RequestTimeout: its node did not answer.
        """
        operator, node = self.namespace(namespace).to(sid), self._cluster.node
        while (data := self._known(sid, namespace)) is None:
            holder = node.holder(sid)
            for socket in await operator.fetch_sockets():
                if socket.sid == sid:
                    return socket.data
            if node.holder(sid) == holder:  # else it has gone, or moved, meanwhile
                raise ValueError(f"There is no client {sid!r:.80} in {namespace!r:.80}, on any node.")
        return data

    def _known(self, sid: str, namespace: str) -> dict[str, Any] | None:  # noqa: ARG002 - who knows overrides it
        """What is stored with a client, when this process knows it without asking."""
        return None

    async def nodes(self) -> list[NodeInfo]:
        """The live nodes, this one included, the oldest first."""
        await self._cluster.node.met()
        return self._cluster.node.membership.nodes()

    async def server_count(self) -> int:
        """How many nodes there are, this one included."""
        return len(await self.nodes())

    async def server_side_emit(self, event: str, *args: Any) -> None:
        """Send an event to the application on every other node; see `ServerEvents.emit` for what it raises."""
        await self._events.emit(event, *args)

    async def server_side_emit_with_ack(
        self, event: str, *args: Any, timeout: float | None = None
    ) -> dict[str, NodeAnswer]:
        """Send an event to the application on every other node; what each one answers, by node id.

        Raises:
            RequestTimeout: some did not within `timeout` (`request_timeout`); `replies` has the others' answers.
        """
        return await self._events.ask(event, *args, timeout=timeout)
