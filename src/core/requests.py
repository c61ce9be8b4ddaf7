"""Pending requests to other nodes: each waits on a set of nodes, never on a count.

1. A request waits on the nodes it was addressed to; a node's last reply, or its departure, takes it out of the set.
2. A node that leaves is dropped from every set at once; what it had answered is kept.
3. A late, repeated or unasked reply changes nothing and is reported as such.
4. An answer may come in parts. Each part but the first must have been asked for, so one part of each node waits to
   be taken, whatever the size of the answer.
5. A request is over when its set is empty, or when its caller ends it, and is then forgotten.

Pure: the clock, and whom to wake, are the caller's business.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from roomcast.core.messages import Reply


@dataclass(slots=True, eq=False)
class Request:
    """One request and what it has gathered so far.

    Attributes:
        number: its name on the wire, unique for this node.
        waiting: the nodes whose last reply is not there.
        arrived: replies and parts of them, with their nodes, in the order of arrival; the caller takes them out.
        begun: the nodes that are in the middle of an answer, and whether their next part was asked for.
        gone: nodes that left before their last reply.
    """

    number: int
    waiting: set[str]
    arrived: deque[tuple[str, Reply]] = field(default_factory=deque[tuple[str, Reply]])
    begun: dict[str, bool] = field(default_factory=dict[str, bool])
    gone: set[str] = field(default_factory=set[str])


class Requests:
    """The requests of one node that are under way."""

    def __init__(self) -> None:
        self._number = 0
        self._pending: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, nodes: Collection[str]) -> Request:
        """A new request to a set of nodes."""
        self._number += 1
        request = Request(self._number, set(nodes))
        if request.waiting:
            self._pending[request.number] = request
        return request

    def reply(self, node: str, reply: Reply) -> Request:
        """A node answered; the request that was meant. Raises KeyError by rule 3."""
        request = self._pending[reply.request]
        if node not in request.waiting or not request.begun.get(node, True):
            raise KeyError(node)
        request.arrived.append((node, reply))
        if reply.more:
            request.begun[node] = False
        else:
            request.begun.pop(node, None)
            request.waiting.discard(node)
            self._settle(request)
        return request

    def more(self, request: Request, node: str) -> None:
        """The caller asks a node for its next part (rule 4)."""
        if node in request.begun:
            request.begun[node] = True

    def left(self, node: str) -> list[Request]:
        """A node is gone (rule 2); the requests that waited on it."""
        affected = [request for request in self._pending.values() if node in request.waiting]
        for request in affected:
            request.waiting.discard(node)
            request.begun.pop(node, None)
            request.gone.add(node)
            self._settle(request)
        return affected

    def end(self, request: Request) -> None:
        """The caller waits no longer."""
        self._pending.pop(request.number, None)

    def _settle(self, request: Request) -> None:
        if not request.waiting:
            self.end(request)
