"""Claims: a client takes one of the few places that a key has in the whole cluster. The shell around `tickets`.

1. A claim is kept by the node of its client and ends with it: with the client's connection, or with the node.
2. A claim is granted only when every live node has answered, and is withdrawn when one does not, in time.
3. A node answers only those nodes that it would ask itself.
4. Whoever is evicted is told by its node's handler of `evicted`, then disconnected; only then is the evicting claim
   granted. A client whose connect handler still runs is evicted once that is done.
5. Nodes that did not hear each other check what they hold when they meet again: all of it when one was lost or the
   link was down, what is new when one is new.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import get_args

import msgspec

from roomcast.core.answers import Answers
from roomcast.core.broker import Gap
from roomcast.core.clients import NOT_HERE, Clients
from roomcast.core.errors import BrokerClosed, RequestTimeout, RoomcastError
from roomcast.core.events import Handlers
from roomcast.core.membership import NodeInfo
from roomcast.core.messages import DECODE_ERRORS, Claim, Evict, Heartbeat, Reply
from roomcast.core.node import Node
from roomcast.core.rooms import Rooms
from roomcast.core.surveys import Surveys
from roomcast.core.tickets import Policy, Question, Rival, Ticket, Tickets

logger = logging.getLogger("roomcast")

_KEY = 1000  # characters of the longest key
_LAST_WORDS = 2.0  # seconds that the handler of `evicted` may take
_POLL = 0.05  # seconds between two looks whether a connect handler is done
_RETRY = 0.1  # seconds until a node that could not answer is asked again
_AGAIN = 1.0  # seconds until a claim that could not be checked is checked again
_AT_ONCE = 32  # claims that are checked at the same time
_LOST = 10_000  # lost nodes to remember

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Rival])


@dataclass(frozen=True, slots=True)
class Claimed:
    """What became of a claim; true when it was granted.

    Attributes:
        granted: whether the client holds the key now.
        evicted: sids of the clients that lost the key to it, and were disconnected; the oldest claim first.
    """

    granted: bool
    evicted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.granted


class Claims:
    """The claims of one node's clients.

    Args:
        node: the node.
        surveys: asks the others.
        answers: sends long answers, and disconnects clients.
        clients: of this node.
        rooms: where they are.
        handlers: of the application.
    """

    def __init__(
        self, node: Node, surveys: Surveys, answers: Answers, clients: Clients, rooms: Rooms, handlers: Handlers
    ) -> None:
        self._node = node
        self._surveys = surveys
        self._answers = answers
        self._clients = clients
        self._rooms = rooms
        self._handlers = handlers
        self._tickets = Tickets(node.id)
        self._own: dict[int, asyncio.Future[list[Rival]]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._evictions: dict[Ticket, asyncio.Task[None]] = {}
        self._unchecked: dict[Ticket, None] = {}
        self._checking: asyncio.Task[None] | None = None
        self._lost: dict[str, None] = {}
        self._closed = False
        node.handlers |= {Claim: self._on_claim, Evict: self._on_evict}
        node.membership.on_left.append(self._on_left)
        node.membership.on_joined.append(self._on_joined)
        node.on_close.append(self._on_close)

    # For the application

    async def claim(self, sid: str, key: str, limit: int, policy: Policy, namespace: str) -> Claimed:
        """See `Adapter.claim`."""
        _check_terms(key, limit, policy)
        if self._rooms.client(namespace, sid) is None:
            raise ValueError(f"{NOT_HERE}: a key is claimed on the client's own node, such as in its connect handler.")
        await self._node.met()
        while (ticket := self._tickets.find(key, sid)) is not None:
            if ticket.held:
                ticket.limit, ticket.policy = limit, policy
                return Claimed(ticket not in self._evictions)
            await self._change(key)
            self._node.check_open()
        if self._rooms.client(namespace, sid) is None:
            return Claimed(granted=False)
        return await self._claim(Ticket(key, sid, namespace, limit, policy))

    def release(self, sid: str, key: str) -> None:
        """A client gives a key back; fine when it has none."""
        if (ticket := self._tickets.find(key, sid)) is not None:
            self._tickets.drop(ticket)
            self._settle(key)

    def went(self, sid: str) -> None:
        """A client of this node is gone (rule 1)."""
        for ticket in self._tickets.of(sid):
            self.release(sid, ticket.key)

    # One claim

    async def _claim(self, ticket: Ticket) -> Claimed:
        tickets, peers = self._tickets, self._node.peers
        deadline = asyncio.get_running_loop().time() + self._node.settings.request_timeout
        evicted: tuple[str, ...] = ()
        tickets.enter(ticket, peers.ids, _now())
        try:
            while True:
                rivals = await self._rivals(ticket, deadline)
                if ticket not in tickets:
                    return Claimed(granted=False)
                verdict = tickets.judge(ticket, rivals)
                if verdict.outcome != "again":
                    break
                tickets.draw(ticket, peers.ids, _now())
                self._settle(ticket.key)
            if verdict.outcome == "refuse":
                return Claimed(granted=False)
            evicted = await self._evict_all(ticket, verdict.evict)
            if ticket not in tickets:
                return Claimed(granted=False, evicted=evicted)
            tickets.hold(ticket)
        finally:
            if not ticket.held:
                tickets.drop(ticket)
            self._settle(ticket.key)
        if not peers.ids <= ticket.asked:
            self._check([ticket])  # who came, or came back, while others were asked
        return Claimed(granted=True, evicted=evicted)

    async def _rivals(self, ticket: Ticket, deadline: float) -> list[Rival]:
        """What all nodes answer, this one included; whoever could not answer is asked again.

        Raises:
            RequestTimeout: some did not until the deadline.
            PayloadTooLarge, Backpressure, BrokerClosed: nobody was asked.
        """
        while True:
            try:
                return await self._ask(ticket, deadline)
            except _Unanswered as exc:
                if asyncio.get_running_loop().time() + _RETRY > deadline:
                    raise RequestTimeout(f"{exc} The claim is withdrawn.", replies={}, missing={exc.node}) from None
            await asyncio.sleep(_RETRY)
            if ticket not in self._tickets:
                return []
            if ticket.held:
                ticket.asked = {*self._node.peers.ids, self._node.id}
            else:
                self._tickets.draw(ticket, self._node.peers.ids, _now())
                self._settle(ticket.key)

    async def _ask(self, ticket: Ticket, deadline: float) -> list[Rival]:
        this, rivals = self._node.id, list[Rival]()
        ticket.homes.clear()
        own: asyncio.Future[list[Rival]] = asyncio.get_running_loop().create_future()
        async with self._surveys.begin(ticket.asked - {this}) as survey:
            self._own[survey.number] = own
            try:
                question = Question(this, survey.number, ticket.key, ticket.clock, ticket.sid)
                self._put(question)
                await survey.send(Claim(survey.number, ticket.key, ticket.sid, ticket.clock))
                while (answer := await survey.next(deadline)) is not None:
                    rivals += self._read(ticket, *answer)
                async with asyncio.timeout_at(deadline):
                    mine = await own
                rivals += mine
                ticket.homes.update(dict.fromkeys((rival.sid for rival in mine), this))
                self._node.check_open()
            except ValueError as exc:
                raise _Unanswered(this, str(exc)) from None
            except TimeoutError as exc:
                if isinstance(exc, RequestTimeout):
                    raise
                raise RequestTimeout(
                    f"{_missing(survey.waiting)} within {self._node.settings.request_timeout} s: "
                    "the claim is withdrawn.",
                    replies={},
                    missing=survey.waiting,
                ) from None
            finally:
                self._own.pop(survey.number, None)
        return rivals

    def _read(self, ticket: Ticket, node: str, reply: Reply) -> list[Rival]:
        if reply.error:
            raise _Unanswered(node, reply.error)
        try:
            rivals = _decoder.decode(reply.data)
            for rival in rivals:
                self._tickets.hear(rival.clock, _now())
                ticket.homes[rival.sid] = node
        except (*DECODE_ERRORS, ValueError) as exc:
            raise _Unanswered(node, str(exc)) from exc
        return rivals

    def _put(self, question: Question) -> None:
        """Take a question, and answer it as soon as that can be done."""
        self._tickets.ask(question)
        self._settle(question.key)

    def _settle(self, key: str) -> None:
        """Something about a key has changed."""
        for question, rivals in self._tickets.answers(key):
            if question.origin != self._node.id:
                if not self._closed:
                    self._answers.in_parts(question.origin, question.request, map(_encoder.encode, rivals))
            elif (own := self._own.get(question.request)) is not None and not own.done():
                own.set_result(rivals)
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self, key: str) -> None:
        """Return once something about a key has changed, or this node is closed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(key, []).append(waiter)
        await waiter

    # Evictions (rule 4)

    async def _evict_all(self, ticket: Ticket, rivals: Sequence[Rival]) -> tuple[str, ...]:
        """Evict them at the same time; the sids of those who had not gone by themselves.

        Raises:
            RequestTimeout: a node did not answer in time.
            Backpressure, BrokerClosed: a node was not asked.
        """
        done = await asyncio.gather(
            *(self._evict(ticket.key, rival, ticket.homes.get(rival.sid, self._node.id)) for rival in rivals),
            return_exceptions=True,
        )
        for error in done:
            if isinstance(error, BaseException):
                raise error
        return tuple(rival.sid for rival, evicted in zip(rivals, done, strict=True) if evicted)

    async def _evict(self, key: str, rival: Rival, node: str) -> bool:
        timeout = self._node.settings.request_timeout
        if node != self._node.id:
            if node not in self._node.peers:
                return False  # it is gone, and its claims are
            message = Evict(0, key, rival.sid, rival.clock)
            reply = await self._surveys.ask(node, lambda n: msgspec.structs.replace(message, request=n), timeout)
            return reply is not None and reply.value > 0
        ticket = self._tickets.find(key, rival.sid)
        if ticket is None or ticket.clock != rival.clock:
            return False
        eviction = self._evict_here(ticket)
        await asyncio.wait({eviction}, timeout=timeout)
        self._node.check_open()
        if not eviction.done():
            raise RequestTimeout(
                f"A handler has not let go of client {rival.sid} within {timeout} s: the claim is withdrawn.",
                replies={},
                missing={node},
            )
        return True

    def _evict_here(self, ticket: Ticket) -> asyncio.Task[None]:
        """The eviction of a client of this node, once for all who want it."""
        eviction = self._evictions.get(ticket)
        if eviction is None:
            eviction = self._evictions[ticket] = self._node.spawn(self._part(ticket))
            eviction.add_done_callback(lambda _: self._evictions.pop(ticket, None))
        return eviction

    async def _part(self, ticket: Ticket) -> None:
        sid, namespace = ticket.sid, ticket.namespace
        while self._clients.is_pre_connected(sid, namespace):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(_POLL)
        if "evicted" in self._handlers and ticket in self._tickets:
            try:
                async with asyncio.timeout(_LAST_WORDS):
                    await self._handlers.call("evicted", sid, ticket.key)
            except Exception as exc:  # noqa: BLE001 - the application's: the client is disconnected all the same
                self._node.fault("the handler of the event 'evicted' failed", exc)
        if (client := self._rooms.client(namespace, sid)) is not None:
            await self._answers.disconnect([client], namespace, close=False)
        while ticket in self._tickets and not self._closed:  # its disconnect handler runs
            await self._change(ticket.key)

    # For other nodes

    def _on_claim(self, origin: str, message: Claim) -> None:
        try:
            if origin not in self._node.peers:  # rule 3
                self._node.membership.on_heartbeat(origin, Heartbeat(0))
                raise ValueError("it does not know the node that asks")  # noqa: TRY301 - one way to say no
            self._tickets.hear(message.clock, _now())
            self._put(Question(origin, message.request, message.key, message.clock, message.sid))
        except ValueError as exc:
            self._node.answer(origin, Reply(message.request, error=str(exc)))

    def _on_evict(self, origin: str, message: Evict) -> None:
        ticket = self._tickets.find(message.key, message.sid)
        if ticket is None or ticket.clock != message.clock:
            self._node.answer(origin, Reply(message.request))
        else:
            eviction = self._evict_here(ticket)
            eviction.add_done_callback(lambda _: self._closed or self._node.answer(origin, Reply(message.request, 1)))

    # Meeting again (rule 5)

    def on_gap(self, gap: Gap) -> None:
        """Something was lost."""
        if gap.reason == "reconnected":
            self._check(self._tickets.held())

    def _on_left(self, info: NodeInfo, why: str) -> None:
        self._tickets.left(info.id)
        if why == "lost":
            self._lost[info.id] = None
            if len(self._lost) > _LOST:
                del self._lost[next(iter(self._lost))]

    def _on_joined(self, info: NodeInfo) -> None:
        oldest = 0 if info.id in self._lost else _now() - round(self._node.settings.peer_timeout * 1e6)
        self._lost.pop(info.id, None)
        self._check(ticket for ticket in self._tickets.held() if ticket.clock >= oldest)

    def _check(self, tickets: Iterable[Ticket]) -> None:
        self._unchecked.update(dict.fromkeys(tickets))
        if self._unchecked and not self._closed and (self._checking is None or self._checking.done()):
            self._checking = self._node.spawn(self._check_all())

    async def _check_all(self) -> None:
        while self._unchecked:
            batch = list(islice(self._unchecked, _AT_ONCE))
            for ticket in batch:
                del self._unchecked[ticket]
            checked = await asyncio.gather(*map(self._checked, batch))
            if not all(checked):
                await asyncio.sleep(_AGAIN)
                self._unchecked.update({ticket: None for ticket, done in zip(batch, checked, strict=True) if not done})

    async def _checked(self, ticket: Ticket) -> bool:
        """Whether a claim is held rightly, or has been put right; false when that could not be found out."""
        if ticket not in self._tickets:
            return True
        ticket.asked = {*self._node.peers.ids, self._node.id}
        try:
            rivals = await self._rivals(ticket, asyncio.get_running_loop().time() + self._node.settings.request_timeout)
            surplus = self._tickets.surplus(ticket, [*rivals, Rival(*ticket.order)]) if ticket in self._tickets else []
            for rival in surplus:
                logger.warning("roomcast: nodes meet again, and client %s is one too many: evicted", rival.sid)
            await self._evict_all(ticket, surplus)
        except BrokerClosed:
            return True
        except RoomcastError as exc:
            logger.info("roomcast: a claim could not be checked, trying again: %s", exc)
            return False
        return True

    def _on_close(self) -> None:
        self._closed = True
        for own in self._own.values():
            if not own.done():
                own.set_result([])
        for key in tuple(self._waiters):
            self._settle(key)


class _Unanswered(Exception):
    """A node could not answer now."""

    def __init__(self, node: str, why: str) -> None:
        super().__init__(f"Node {node} could not answer: {why}.")
        self.node = node


def _missing(nodes: frozenset[str]) -> str:
    if nodes:
        return f"Nodes {', '.join(sorted(nodes))} did not answer"
    return "Claims of this key that came first were not decided"


def _now() -> int:
    return time.time_ns() // 1000


def _check_terms(key: object, limit: object, policy: object) -> None:
    if not isinstance(key, str):
        raise TypeError(f"A key is text, not {type(key).__name__} {key!r:.80}.")
    if len(key) > _KEY or key != key.encode(errors="replace").decode():
        raise ValueError(f"A key is at most {_KEY} characters of Unicode text, not {key!r:.80}.")
    if not isinstance(limit, int) or isinstance(limit, bool):
        raise TypeError(f"The limit is an integer, not {type(limit).__name__} {limit!r:.80}.")
    if limit < 1:
        raise ValueError(f"The limit is 1 or more, not {limit}.")
    if policy not in get_args(Policy):
        raise ValueError(f"The policy is 'refuse' or 'evict_oldest', not {policy!r:.80}.")
