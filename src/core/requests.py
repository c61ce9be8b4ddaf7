"""Pending requests to other nodes: each waits on a set of nodes, never on a count.

1. A request waits on the nodes it was addressed to; each reply, departure and deadline takes nodes out of the set.
2. A node that leaves is dropped from every set at once; what it had answered is kept.
3. A late, repeated or unasked reply changes nothing and is reported as such.
4. A request is over when its set is empty or its deadline has passed, and is then forgotten.

Pure: `now` is a monotonic clock in seconds; whom to wake is the caller's business.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from roomcast.core.wire import Reply


@dataclass(slots=True)
class Request:
    """One request and what it has gathered so far.

    Attributes:
        number: its name on the wire, unique for this node.
        deadline: when it gives up.
        waiting: the nodes that have not answered.
        replies: the answers, by node.
        gone: nodes that left before they answered.
    """

    number: int
    deadline: float
    waiting: set[str]
    replies: dict[str, Reply] = field(default_factory=dict[str, Reply])
    gone: set[str] = field(default_factory=set[str])

    @property
    def missing(self) -> frozenset[str]:
        """The nodes whose answer is not there."""
        return frozenset(self.waiting | self.gone)


class Requests:
    """The requests of one node that are under way."""

    def __init__(self) -> None:
        self._number = 0
        self._pending: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, nodes: Collection[str], deadline: float) -> Request:
        """A new request to a set of nodes."""
        self._number += 1
        request = Request(self._number, deadline, set(nodes))
        if request.waiting:
            self._pending[request.number] = request
        return request

    def reply(self, node: str, reply: Reply) -> Request | None:
        """A node answered; the request if that was its last one, or None. Raises KeyError by rule 3."""
        request = self._pending[reply.request]
        request.waiting.remove(node)
        request.replies[node] = reply
        return self._over(request)

    def left(self, node: str) -> list[Request]:
        """A node is gone (rule 2); the requests that this ends."""
        ended: list[Request] = []
        for request in list(self._pending.values()):
            if node in request.waiting:
                request.waiting.discard(node)
                request.gone.add(node)
                if self._over(request):
                    ended.append(request)
        return ended

    def end(self, request: Request) -> None:
        """The caller waits no longer."""
        self._pending.pop(request.number, None)

    def expire(self, now: float) -> list[Request]:
        """The requests whose deadline has passed (rule 4)."""
        late = [request for request in self._pending.values() if request.deadline <= now]
        for request in late:
            self.end(request)
        return late

    def _over(self, request: Request) -> Request | None:
        if request.waiting:
            return None
        self.end(request)
        return request
