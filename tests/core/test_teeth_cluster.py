"""The state machines of this folder catch their bugs, part two: what a node knows of others: peers, requests, acks."""

from collections.abc import Collection
from typing import Any

import pytest

from roomcast.core.acks import Acks, Over
from roomcast.core.messages import Heartbeat, Hello, Reply
from roomcast.core.peers import PeerJoined, PeerLeft, PeerRefused, Peers
from roomcast.core.requests import Request, Requests
from tests.core.test_acks import AcksMachine
from tests.core.test_peers import PeersMachine
from tests.core.test_requests import RequestsMachine
from tests.core.test_teeth import escapes


class AwaitsTheDead(Peers):
    """A peer that was lost is awaited for ever after an outage."""

    def tick(self, now: float) -> list[PeerLeft]:
        awaited = set(self._awaited)
        lost = super().tick(now)
        self._awaited = awaited
        return lost


class DeafToHeartbeats(Peers):
    """A heartbeat is not taken for a sign of life."""

    def heartbeat(self, node: str, beat: Heartbeat, now: float) -> bool:
        before = self._live[node].heard if node in self._live else now
        known = super().heartbeat(node, beat, now)
        if node in self._live:
            self._live[node].heard = before
        return known


class BlamesThePeers(Peers):
    """Our own deafness is taken for the silence of the peers."""

    def resume(self, now: float) -> None:
        """Nothing."""


class LosesOneAtATime(Peers):
    """Of several lost peers one is told, and the others vanish."""

    def tick(self, now: float) -> list[PeerLeft]:
        return super().tick(now)[:1]


class ForgetsTheVersion(Peers):
    """A peer that says hello again keeps what its first hello said."""

    def hello(self, node: str, hello: Hello, now: float) -> PeerJoined | PeerRefused | None:
        known = self._live.get(node)
        return super().hello(node, hello if known is None else known.hello, now)


class TellsAnOldHeartbeat(Peers):
    """A peer that says hello again is taken to have no clients."""

    def hello(self, node: str, hello: Hello, now: float) -> PeerJoined | PeerRefused | None:
        news = super().hello(node, hello, now)
        if node in self._live:
            self._live[node].beat = Heartbeat(0)
        return news


FOCUS: dict[type[Peers], str] = {
    AwaitsTheDead: "hello regroup wait tick",
    LosesOneAtATime: "hello wait tick",
}
"""The rules that a hunt needs, where it would be long with all of them."""


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin",
    [AwaitsTheDead, DeafToHeartbeats, BlamesThePeers, LosesOneAtATime, ForgetsTheVersion, TellsAnOldHeartbeat],
)
def test_peers(twin: type[Peers]) -> None:
    assert not escapes(PeersMachine, FOCUS.get(twin, ""), make=twin)


class CountsReplies(Requests):
    """Waits on a count of replies, so a repeated one stands for a node that never answered."""

    def reply(self, node: str, reply: Reply) -> Request:
        request = self._pending[reply.request]
        if node not in request.waiting and not reply.more and any(node == who for who, _ in request.arrived):
            request.waiting.pop()
            request.waiting.add(node)
        return super().reply(node, reply)


class AsksTheUnasked(Requests):
    """A reply of a node that was not asked is an answer as well."""

    def reply(self, node: str, reply: Reply) -> Request:
        self._pending[reply.request].waiting.add(node)
        return super().reply(node, reply)


class ForgetsWhatTheDeadSaid(Requests):
    """A node takes what it had answered with it."""

    def left(self, node: str) -> list[Request]:
        affected = super().left(node)
        for request in affected:
            request.arrived = type(request.arrived)(one for one in request.arrived if one[0] != node)
        return affected


class WaitsForTheRestOfTheDead(Requests):
    """A node that leaves in the middle of its answer is waited for."""

    def left(self, node: str) -> list[Request]:
        begun = [request for request in self._pending.values() if node in request.begun]
        for request in begun:
            request.waiting.discard(node)
        affected = super().left(node)
        for request in begun:
            request.waiting.add(node)
        return affected


class TellsOnlyTheLast(Requests):
    """Who still waits on others is not told that one is gone."""

    def left(self, node: str) -> list[Request]:
        return [request for request in super().left(node) if not request.waiting]


class TakesUnaskedParts(Requests):
    """A node may send its whole answer at once, however long it is."""

    def reply(self, node: str, reply: Reply) -> Request:
        self._pending[reply.request].begun.pop(node, None)
        return super().reply(node, reply)


class DoneWithTheFirstPart(Requests):
    """The first part is taken for the whole answer."""

    def reply(self, node: str, reply: Reply) -> Request:
        request = super().reply(node, reply)
        request.waiting.discard(node)
        return request


class AsksOnForEver(Requests):
    """Once asked on, a node may send part after part."""

    def reply(self, node: str, reply: Reply) -> Request:
        asked = self._pending[reply.request].begun.get(node, False)
        request = super().reply(node, reply)
        if asked and reply.more:
            request.begun[node] = True
        return request


class StaysAfterItsCaller(Requests):
    """A request whose caller gave up is kept."""

    def end(self, request: Request) -> None:
        if not request.waiting:
            super().end(request)


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin",
    [
        CountsReplies,
        AsksTheUnasked,
        ForgetsWhatTheDeadSaid,
        WaitsForTheRestOfTheDead,
        TellsOnlyTheLast,
        TakesUnaskedParts,
        DoneWithTheFirstPart,
        AsksOnForEver,
        StaysAfterItsCaller,
    ],
)
def test_requests(twin: type[Requests]) -> None:
    assert not escapes(RequestsMachine, make=twin)


class ForgetsTheNewest(Acks):
    """When too many wait, the youngest has to go."""

    def begin(self, waiter: Any, nodes: Collection[str], over: Over | None = None) -> int:
        number = super().begin(waiter, nodes, over)
        if self.forgotten:
            self._pending = dict(reversed(self._pending.items()))
        return number


class DoneWhenEveryoneSpoke(Acks):
    """A wait is over when all nodes have spoken, before their clients have."""

    def expect(self, number: int, node: str, sids: Collection[str], *, more: bool = False) -> None:
        super().expect(number, node, sids, more=more)
        pending = self._pending.get(number)
        if pending is not None and not pending.nodes:
            pending.clients.clear()
            self._settle(number, pending)


class BelievesTheFirstPart(Acks):
    """A node that goes on saying whom it reached is not listened to."""

    def expect(self, number: int, node: str, sids: Collection[str], *, more: bool = False) -> None:  # noqa: ARG002
        super().expect(number, node, sids)


class WaitsForTheDead(Acks):
    """The clients of a node that left are waited for."""

    def left(self, node: str) -> None:
        for number, pending in list(self._pending.items()):
            pending.told.add(node)
            pending.nodes.discard(node)
            self._settle(number, pending)


class AnswersTwice(Acks):
    """A client's second acknowledgement is told again."""

    def answer(self, number: int, node: str, sid: str) -> Any:
        pending = self._pending.get(number)
        waiter = super().answer(number, node, sid)
        if waiter is not None and pending is not None and number in self._pending:
            pending.clients.setdefault(node, set()).add(sid)
        return waiter


class GivesUpInSilence(Acks):
    """Who is given up because too many wait is not told."""

    def begin(self, waiter: Any, nodes: Collection[str], over: Over | None = None) -> int:
        oldest = next(iter(self._pending.values()), None)
        if oldest is not None and len(self._pending) >= self._limit:
            oldest.over = None
        return super().begin(waiter, nodes, over)


class TellsTheOneWhoGaveUp(Acks):
    """Whoever gives up is told that the wait is over, as if it were."""

    def cancel(self, number: int) -> None:
        pending = self._pending.get(number)
        super().cancel(number)
        if pending is not None and pending.over is not None:
            pending.over(frozenset())


class OverWithTheNodeOfTheLast(Acks):
    """A wait that ends by the departure of a node is forgotten without a word."""

    def left(self, node: str) -> None:
        waits = [(number, pending, pending.over) for number, pending in self._pending.items()]
        for _, pending, _ in waits:
            pending.over = None
        super().left(node)
        for number, pending, over in waits:
            if number in self._pending:
                pending.over = over


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin",
    [
        ForgetsTheNewest,
        DoneWhenEveryoneSpoke,
        BelievesTheFirstPart,
        WaitsForTheDead,
        AnswersTwice,
        GivesUpInSilence,
        TellsTheOneWhoGaveUp,
        OverWithTheNodeOfTheLast,
    ],
)
def test_acks(twin: type[Acks]) -> None:
    assert not escapes(AcksMachine, make=twin)
