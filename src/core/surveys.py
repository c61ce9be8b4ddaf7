"""Asking other nodes: the shell around `requests` that sends, waits and gives up.

1. A survey asks the nodes that were alive when it began. One that dies is no longer waited for, and what it had
   answered is kept; one that joins is not waited for.
2. What this node does itself for the same request happens right after the request took its place in the outbox,
   without suspending: so both are in order with everything this node emits. With `order="total"` it happens when the
   request comes back from the log, for the same reason, and nothing is answered before.
3. Nothing is left behind when the caller stops: the request is forgotten, and who has not answered to the end is told.
4. A reply that is here when the deadline is noticed has come in time: a process that was held up blames nobody.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from roomcast.core.errors import RequestTimeout
from roomcast.core.messages import (
    CountClients,
    Disconnect,
    Fetch,
    Join,
    Leave,
    ListRooms,
    Message,
    More,
    Reply,
    encode_message,
)
from roomcast.core.node import Node
from roomcast.core.requests import Request, Requests


class Survey:
    """One request and its answers; use it as an async context manager."""

    def __init__(self, surveys: "Surveys", request: Request) -> None:
        self._surveys = surveys
        self._request = request
        self._news = asyncio.Event()

    @property
    def number(self) -> int:
        """What the message must carry."""
        return self._request.number

    @property
    def waiting(self) -> frozenset[str]:
        """The nodes whose last reply is not there."""
        return frozenset(self._request.waiting)

    async def __aenter__(self) -> "Survey":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._surveys.end(self, self._request)

    async def send(self, message: Message, then: Callable[[], None] = lambda: None) -> None:
        """Send the request to the nodes it waits on, and do `then` (rule 2).

        Raises:
            EncodeError, PayloadTooLarge, Backpressure, BrokerClosed: nobody was asked, and `then` was not done.
        """
        await self._surveys.send(self._request, message, then)

    async def next(self, deadline: float) -> tuple[str, Reply] | None:
        """The next reply and its node, in the order of arrival; None when there will be no more.

        Args:
            deadline: when to give up, on the loop's clock.

        Raises:
            TimeoutError: nothing came; `waiting` says from whom.
            BrokerClosed: this node was closed.
        """
        request = self._request
        while not request.arrived:
            if not request.waiting:
                return None
            self._surveys.node.check_open()
            self._news.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._news.wait()
            except TimeoutError:
                if not self._news.is_set():  # else it came in the very turn of the deadline
                    raise
        node, reply = request.arrived.popleft()
        if reply.more:
            self._surveys.more(request, node)
        return node, reply

    def wake(self) -> None:
        """Something arrived, or will not."""
        self._news.set()


class Surveys:
    """The surveys of one node that are under way.

    Args:
        node: asks through this one, and hears the answers from it.

    Attributes:
        node: the same.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self._requests = Requests()
        self._open: dict[int, Survey] = {}
        self._to_do: dict[int, Callable[[], None]] = {}  # when a request comes back
        node.handlers[Reply] = self._on_reply
        node.at_home |= dict.fromkeys((Join, Leave, Disconnect, CountClients, Fetch, ListRooms), self._come_back)
        node.on_left.append(self._on_left)
        node.on_close.append(self._on_close)

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, nodes: Collection[str]) -> Survey:
        """A survey of these nodes (rule 1), this one among them when the request is to come back (rule 2)."""
        request = self._requests.begin(nodes)
        survey = self._open[request.number] = Survey(self, request)
        return survey

    async def ask(self, node: str, make: Callable[[int], Message], timeout: float) -> Reply | None:
        """The answer of one node; None when it went away instead.

        Raises:
            RequestTimeout: there was none.
            PayloadTooLarge, Backpressure, BrokerClosed: the node was not asked.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self.begin({node}) as survey:
            await survey.send(make(survey.number))
            try:
                answered = await survey.next(deadline)
            except TimeoutError:
                raise RequestTimeout(
                    f"Node {node} did not answer within {timeout} s.", replies={}, missing={node}
                ) from None
            return None if answered is None else answered[1]

    async def send(self, request: Request, message: Message, then: Callable[[], None]) -> None:
        """See `Survey.send`."""
        publisher, subjects = self.node.publisher, self.node.subjects
        nodes = request.waiting
        if not nodes:
            await publisher.turn()
            then()
            return
        raw = encode_message(message)
        await publisher.reserve(len(raw))
        subject = subjects.inbox(next(iter(nodes))) if len(nodes) == 1 else subjects.control
        publisher.put(subject, raw)
        if self.node.id in nodes:
            self._to_do[request.number] = then
        else:
            then()

    def _come_back(self, message: Any) -> None:
        """A request of this node's own has its place in the log (rule 2)."""
        then = self._to_do.pop(message.request, None)
        if then is None:
            return
        error = ""
        try:
            then()
        except ValueError as exc:
            error = str(exc)
        self._on_reply(self.node.id, Reply(message.request, error=error))

    def more(self, request: Request, node: str) -> None:
        """Ask a node for its next part."""
        if node in request.begun:
            self._requests.more(request, node)
            self.node.answer(node, More(request.number))

    def end(self, survey: Survey, request: Request) -> None:
        """The caller stops (rule 3)."""
        del self._open[survey.number]
        self._to_do.pop(survey.number, None)
        self._requests.end(request)
        for node in sorted(request.waiting - {self.node.id}):  # in the middle of an answer, or about to begin one
            if self.node.running:
                self.node.answer(node, More(request.number, stop=True))

    def _on_reply(self, origin: str, reply: Reply) -> None:
        try:
            request = self._requests.reply(origin, reply)
        except KeyError:
            self.node.stats.stray_replies += 1
        else:
            self._open[request.number].wake()

    def _on_left(self, node: str) -> None:
        for request in self._requests.left(node):
            self._open[request.number].wake()

    def _on_close(self) -> None:
        for survey in self._open.values():
            survey.wake()
