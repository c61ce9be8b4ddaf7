"""A room as a node sees it that watches: who is in it on each node, and what whoever looks has not seen yet.

1. A node's part is sure once it has told its whole set. It is unsure from its first sign of life to then, and again
   whenever something it told may be missing: a hole in the versions, or a doubt from outside.
2. While a part is unsure it stays as it was; what is told of it counts from its next whole set on, and that set's
   differences from what was known are the changes.
3. A node that left takes its members along at once. Who is not expected is not believed.
4. A view begins with who is there, and each change it gives takes what it shows one step further: so who starts from
   what is shown and applies the changes is never wrong. Until the first change is asked for, each look shows what is
   so now.
5. Changes come in the order in which they were told. A change and its reverse that nobody has seen cancel out: a view
   never holds more than the members there were and are.
6. A client that came back on another node while the one it was on has not let go of it is there once: it has left the
   one and joined the other, and what the first one says of it later is no change.

Pure: no clock, no loop, no wire.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from roomcast.core.messages import Members


@dataclass(frozen=True, slots=True)
class Change:
    """Somebody came or went.

    Attributes:
        kind: "joined" or "left".
        sid: the client.
        node: id of its node.
    """

    kind: Literal["joined", "left"]
    sid: str
    node: str


class _Part:
    """The members on one node."""

    __slots__ = ("fresh", "sids", "version")

    def __init__(self) -> None:
        self.sids: dict[str, None] = {}  # sets in the order in which they were told
        self.fresh: dict[str, None] | None = None  # a whole set of which more is to come
        self.version = 0


class Mirror:
    """One room, or namespace, on all nodes.

    Attributes:
        unsure: the nodes whose part is not sure (rule 1).
    """

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}
        self._places: dict[str, str] = {}  # each member, and where it came last
        self._twice: set[str] = set()  # those that were on two nodes at a time (rule 6)
        self.unsure: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each member and its node."""
        return iter(self._places.items())

    def expect(self, nodes: Iterable[str]) -> None:
        """These nodes are there, and will tell."""
        for node in nodes:
            if node not in self._parts:
                self._parts[node] = _Part()
                self.unsure.add(node)

    def doubt(self, node: str) -> None:
        """Something that a node told may be missing."""
        part = self._parts.get(node)
        if part is not None:
            part.fresh = None
            self.unsure.add(node)

    def left(self, node: str) -> list[Change]:
        """A node is gone (rule 3)."""
        self.unsure.discard(node)
        part = self._parts.pop(node, None)
        return [] if part is None else [change for sid in part.sids for change in self._gone(sid, node)]

    def take(self, node: str, told: Members) -> list[Change]:
        """A node tells; what that changes."""
        part = self._parts.get(node)
        if part is None:
            return []
        if told.whole:
            part.fresh = {}
            self.unsure.add(node)
        elif node in self.unsure and part.fresh is None:
            return []  # rule 2
        elif told.version != part.version + 1:
            self.doubt(node)
            return []
        part.version = told.version
        if part.fresh is None:
            return self._update(node, part, told.joined, told.left)
        part.fresh.update(dict.fromkeys(told.joined))
        if told.more:
            return []
        fresh, part.fresh = part.fresh, None
        self.unsure.discard(node)
        return self._update(node, part, fresh, [sid for sid in part.sids if sid not in fresh])

    def here(self, node: str, joined: Iterable[str], left: Iterable[str] = ()) -> list[Change]:
        """What this node knows of itself, which is always sure."""
        return self._update(node, self._parts.setdefault(node, _Part()), joined, left)

    def _update(self, node: str, part: _Part, joined: Iterable[str], left: Iterable[str]) -> list[Change]:
        changes: list[Change] = []
        for sid in joined:
            if sid not in part.sids:
                part.sids[sid] = None
                if (before := self._places.pop(sid, None)) is not None:
                    self._twice.add(sid)
                    changes.append(Change("left", sid, before))
                self._places[sid] = node
                changes.append(Change("joined", sid, node))
        for sid in left:
            if sid in part.sids:
                del part.sids[sid]
                changes += self._gone(sid, node)
        return changes

    def _gone(self, sid: str, node: str) -> list[Change]:
        """A node, or what it told, does not have a client any more."""
        if self._places[sid] != node:
            return []
        del self._places[sid]
        if sid not in self._twice:
            return [Change("left", sid, node)]
        other = next((other for other, part in self._parts.items() if other != node and sid in part.sids), None)
        if other is None:
            self._twice.discard(sid)
            return [Change("left", sid, node)]
        self._places[sid] = other
        return [Change("left", sid, node), Change("joined", sid, other)]


class View:
    """What one watch has shown, and what it has not (rules 4 and 5).

    Args:
        present: each member now, and its node.
    """

    def __init__(self, present: Iterable[tuple[str, str]] = ()) -> None:
        self._shown = dict(present)
        self._changes: OrderedDict[tuple[str, str], Change] = OrderedDict()  # its first item is taken at no cost
        self._asked = False

    def __len__(self) -> int:
        """How many changes wait."""
        return len(self._changes)

    def note(self, changes: Collection[Change]) -> None:
        """This has changed."""
        for change in changes:
            key = change.sid, change.node
            if self._changes.pop(key, None) is None:
                self._changes[key] = change

    def next(self) -> Change | None:
        """The next change, shown from now on; None when there is none."""
        self._asked = True
        return self._show() if self._changes else None

    def look(self) -> dict[str, str]:
        """The members that are shown, and their nodes."""
        while self._changes and not self._asked:
            self._show()
        return dict(self._shown)

    def _show(self) -> Change:
        _, change = self._changes.popitem(last=False)
        if change.kind == "joined":
            self._shown[change.sid] = change.node
        else:
            del self._shown[change.sid]
        return change
