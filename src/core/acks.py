"""Acknowledgements this node waits for: who waits, for which clients of which nodes.

1. A node that was given an emit with a request says which sids it reached (`expect`); each of them then
   acknowledges or goes away, once.
2. A wait is over, and forgotten, when nobody it waits for is left: the last client acknowledged or went away, or its
   node left. So nothing waits for ever on a client that is gone.
3. At most `limit` waits are kept; beyond it the oldest is given up and counted.
"""

from collections.abc import Callable, Collection
from typing import Any

Callback = Callable[..., Any]
Over = Callable[[frozenset[str]], None]


class _Pending:
    __slots__ = ("clients", "nodes", "over", "told", "waiter")

    def __init__(self, waiter: Any, nodes: Collection[str], over: Over | None) -> None:
        self.waiter = waiter
        self.over = over
        self.nodes = set(nodes)
        self.told: set[str] = set()  # nodes that have said whom they reached, or left
        self.clients: dict[str, set[str]] = {}


class Acks:
    """The waits of one node for clients anywhere."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._number = 0
        self._pending: dict[int, _Pending] = {}
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._pending)

    def begin(self, waiter: Any, nodes: Collection[str], over: Over | None = None) -> int:
        """A new wait for these nodes to say whom they reached; its number on the wire.

        Args:
            waiter: given back by `answer`; what it is is the caller's business.
            nodes: the nodes.
            over: called when the wait is over (rule 2), or given up (rule 3), with who is still waited for then.
        """
        if len(self._pending) >= self._limit:
            oldest = next(iter(self._pending))
            missing, forgotten = self.missing(oldest), self._pending.pop(oldest)
            self.forgotten += 1
            if forgotten.over is not None:
                forgotten.over(missing)
        self._number += 1
        self._pending[self._number] = _Pending(waiter, nodes, over)
        return self._number

    def cancel(self, number: int) -> None:
        """The emit did not happen after all, or who waits has gone."""
        self._pending.pop(number, None)

    def close(self) -> None:
        """Nothing will be heard any more: every wait is given up."""
        for number in list(self._pending):
            missing, pending = self.missing(number), self._pending.pop(number)
            if pending.over is not None:
                pending.over(missing)

    def missing(self, number: int) -> frozenset[str]:
        """Who is still waited for: sids, and ids of nodes that have not said whom they reached."""
        pending = self._pending.get(number)
        return frozenset[str]() if pending is None else frozenset(pending.nodes).union(*pending.clients.values())

    def expect(self, number: int, node: str, sids: Collection[str], *, more: bool = False) -> None:
        """A node says whom it reached (rule 1); with `more`, it has not said all yet."""
        pending = self._pending.get(number)
        if pending is not None and node not in pending.told:  # a node that joined since may answer too, once
            if not more:
                pending.told.add(node)
                pending.nodes.discard(node)
            if sids:
                pending.clients.setdefault(node, set()).update(sids)
            self._settle(number, pending)

    def answer(self, number: int, node: str, sid: str) -> Any:
        """A client acknowledged: the waiter to tell, or None when that is not waited for."""
        pending = self._pending.get(number)
        if pending is None or not self._take(number, pending, node, sid):
            return None
        return pending.waiter

    def gone(self, number: int, node: str, sid: str) -> None:
        """A client went away without an acknowledgement (rule 2)."""
        pending = self._pending.get(number)
        if pending is not None:
            self._take(number, pending, node, sid)

    def left(self, node: str) -> None:
        """A node went away with all its clients (rule 2)."""
        for number, pending in list(self._pending.items()):
            pending.told.add(node)
            pending.nodes.discard(node)
            pending.clients.pop(node, None)
            self._settle(number, pending)

    def _take(self, number: int, pending: _Pending, node: str, sid: str) -> bool:
        sids = pending.clients.get(node, set())
        if sid not in sids:
            return False
        sids.discard(sid)
        if not sids:
            del pending.clients[node]
        self._settle(number, pending)
        return True

    def _settle(self, number: int, pending: _Pending) -> None:
        if not pending.nodes and not pending.clients:
            self._pending.pop(number, None)
            if pending.over is not None:
                pending.over(frozenset())
