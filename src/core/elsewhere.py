"""What the application does, by its sid, to a client that is not on this node.

It returns when it is done there. A client that is nowhere is no error, except for who wants it somewhere.
"""

from collections.abc import Callable
from contextlib import aclosing

from roomcast.core.address import Address
from roomcast.core.clients import NOT_HERE
from roomcast.core.cluster import Cluster
from roomcast.core.messages import Disconnect, Join, Leave, Message, Reply, Selection
from roomcast.core.node import Node
from roomcast.core.recovery import Recoveries
from roomcast.core.sids import owner
from roomcast.core.subjects import Room
from roomcast.core.surveys import Surveys


class Elsewhere:
    """The clients of other nodes.

    Args:
        node: asks the others.
        surveys: waits for one of them.
        cluster: waits for all of them.
        recoveries: know the clients that are away, where there is recovery.
    """

    def __init__(self, node: Node, surveys: Surveys, cluster: Cluster, recoveries: Recoveries | None) -> None:
        self._node = node
        self._surveys = surveys
        self._cluster = cluster
        self._recoveries = recoveries

    async def enter(self, sid: str, namespace: str, room: Room) -> None:
        """Put a client into a room; emits that start later reach it there.

        Raises:
            ValueError: there is no such client, or the room is another client's own.
            RequestTimeout: the client's node did not answer.
        """
        join = Selection(namespace, (sid,))
        reply = await self._ask(sid, namespace, lambda number: Join(number, join, (room,)))
        if reply is None or reply.error or not reply.value:
            raise ValueError(NOT_HERE if reply is None else reply.error or NOT_HERE)

    async def leave(self, sid: str, namespace: str, room: Room) -> None:
        """Take a client out of a room.

        Raises:
            RequestTimeout: the client's node did not answer.
        """
        leave = Selection(namespace, (sid,))
        await self._ask(sid, namespace, lambda number: Leave(number, leave, (room,)))

    async def disconnect(self, sid: str, namespace: str) -> None:
        """Disconnect a client; one that is away shall not come back.

        Raises:
            RequestTimeout: the client's node did not answer.
        """
        if self._recoveries is not None:
            self._recoveries.end(sid)
        await self._ask(sid, namespace, lambda number: Disconnect(number, Selection(namespace, (sid,))))

    async def _ask(self, sid: str, namespace: str, make: Callable[[int], Message]) -> Reply | None:
        """What a client's node answers; None when there is no such node."""
        node = self._node.holder(sid)
        if node not in self._node.peers and node != self._node.id and self._node.running:
            await self._node.met()  # a process that has just started has not heard of every node yet
            node = self._node.holder(sid)
        if node in self._node.peers:
            return await self._surveys.ask(node, make, self._node.settings.request_timeout)
        found: Reply | None = None
        if not node and owner(sid) and self._node.reader is None:  # clients roam, and this node does not know where to
            async with aclosing(self._cluster.replies(Address(namespace, (sid,)), make)) as replies:
                async for _, reply in replies:
                    found = reply if reply.value or reply.error else found
        return found
