"""What can be asked of a whole cluster, by a node or by a guest: the verbs behind the operators.

1. A request goes to the nodes alive when it begins, this one included; to one alone when a sid names its node.
2. It returns as soon as the last of them has answered. A node that dies meanwhile is not waited for, and what it had
   answered counts.
3. When a node does not answer in time, `RequestTimeout` carries what the others said in `replies`, by node.
4. What a request does, here and elsewhere, comes after what this node emitted before. A join and a leave also come
   before what it emits later; a disconnection does once it is awaited.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing
from typing import TypeVar

import msgspec

from roomcast.core.address import Address
from roomcast.core.answers import Answers, Entered
from roomcast.core.broadcast import Broadcast
from roomcast.core.descriptions import Description
from roomcast.core.errors import RequestTimeout
from roomcast.core.messages import (
    DECODE_ERRORS,
    CountClients,
    Disconnect,
    Fetch,
    Join,
    Leave,
    ListRooms,
    Message,
    Reply,
)
from roomcast.core.node import Node
from roomcast.core.rooms import Client
from roomcast.core.sids import owner
from roomcast.core.subjects import Room
from roomcast.core.surveys import Surveys

T = TypeVar("T")
Here = Callable[[Answers], None]

_SLICE = 100  # items of this node's own answer between two turns of the loop


class _Tally(msgspec.Struct, array_like=True):
    """A room and how many members it has."""

    room: Room
    members: int


def nothing(_answers: Answers) -> None:
    """What a node has to do itself for a request that is for others alone."""


class Cluster:
    """The cluster, as one node or guest asks it.

    Args:
        node: asks.
        broadcast: sends events.
        surveys: waits for answers.
        answers: what this node itself has to say; None for a guest, which has no clients.
    """

    def __init__(self, node: Node, broadcast: Broadcast, surveys: Surveys, answers: Answers | None = None) -> None:
        self.node = node
        self.broadcast = broadcast
        self._surveys = surveys
        self._answers = answers

    @property
    def guest(self) -> bool:
        """Whether it is asked by a process without clients."""
        return self._answers is None

    async def count(self, to: Address) -> int:
        """How many clients are addressed."""
        own: list[int] = []

        def here(answers: Answers) -> None:
            own.append(len(answers.select(to.selection)))

        return await self._total(to, lambda number: CountClients(number, to.selection), here, own)

    async def join(self, to: Address, rooms: Collection[Room]) -> int:
        """Put the addressed clients into rooms; how many they were. Emits that start later reach them there.

        Raises:
            ValueError: a room is a client's own, and nobody was put anywhere; or a broker refuses a node the room.
        """
        for room in rooms:
            if (node := owner(room)) and (node == self.node.id or node in self.node.peers):
                raise ValueError(f"{room!r} is a client's own room: nobody else can enter it.")
        entered: list[Entered] = []
        own: list[int] = []

        def here(answers: Answers) -> None:
            entered.append(answers.enter(to.selection, rooms))
            own.append(entered[0].clients)

        try:
            total = await self._total(to, lambda number: Join(number, to.selection, tuple(rooms)), here, own)
        except BaseException:
            for one in entered:
                one.stand()  # who asked knows that it may have happened
            raise
        for one in entered:
            await one.heard()
        return total

    async def leave(self, to: Address, rooms: Collection[Room]) -> int:
        """Take the addressed clients out of rooms; how many they were."""
        own: list[int] = []

        def here(answers: Answers) -> None:
            own.append(answers.leave(to.selection, rooms))

        return await self._total(to, lambda number: Leave(number, to.selection, tuple(rooms)), here, own)

    async def disconnect(self, to: Address, *, close: bool) -> int:
        """Disconnect the addressed clients, those who are connected; how many they were."""
        clients: list[Client] = []
        parting: list[asyncio.Task[int]] = []

        def here(answers: Answers) -> None:
            clients.extend(answers.select(to.selection))
            parting.append(self.node.spawn(answers.disconnect(clients, to.namespace, close=close)))

        total = await self._total(to, lambda number: Disconnect(number, to.selection, close), here, [])
        return total + sum([await asyncio.shield(one) for one in parting])

    def describe(self, to: Address) -> AsyncGenerator[tuple[str, list[Description]]]:
        """The addressed clients as they are described, in parts, each with its node."""

        def own(answers: Answers) -> Iterator[bytes]:
            return answers.describe(to.selection)

        return self._parts(to, lambda number: Fetch(number, to.selection), own, Description)

    async def all_rooms(self, to: Address) -> dict[Room, int]:
        """The rooms of a namespace that have members, and how many."""

        def own(answers: Answers) -> Iterator[bytes]:
            return answers.list_rooms(to.namespace)

        found: dict[str, Counter[Room]] = {}
        try:
            async with aclosing(self._parts(to, lambda number: ListRooms(number, to.namespace), own, _Tally)) as parts:
                async for node, tallies in parts:
                    found.setdefault(node, Counter()).update({tally.room: tally.members for tally in tallies})
        except RequestTimeout as exc:
            exc.replies = {node: dict(rooms) for node, rooms in found.items()}
            raise
        return dict(sum(found.values(), Counter[Room]()))

    # One request

    def timeout(self, to: Address) -> float:
        """Seconds to wait for answers."""
        return self.node.settings.request_timeout if to.timeout is None else to.timeout

    def asked(self, to: Address) -> tuple[frozenset[str], bool]:
        """The other nodes that a request goes to, and whether it concerns this one (rule 1)."""
        if to.local:
            return frozenset(), True
        peers = self.node.peers
        node = self.node.holder(to.rooms[0]) if len(to.rooms) == 1 else ""
        if node == self.node.id:
            return frozenset(), True
        return (frozenset({node}), False) if node in peers else (peers.ids, True)

    async def replies(
        self, to: Address, make: Callable[[int], Message], here: Here = nothing
    ) -> AsyncGenerator[tuple[str, Reply]]:
        """What each other node answers; `here` is done for this one (rule 4), which answers only when it cannot be."""
        loop = asyncio.get_running_loop()
        if to.local:
            await self.node.caught_up()
        else:
            await self.node.met()
        nodes, concerned = self.asked(to)
        answers = self._answers if concerned else None
        timeout = self.timeout(to)
        if self.node.total and answers is not None and here is not nothing and not to.local:
            nodes |= {self.node.id}
        async with self._surveys.begin(nodes) as survey:
            await survey.send(make(survey.number), (lambda: None) if answers is None else (lambda: here(answers)))
            deadline = loop.time() + timeout
            try:
                while (answer := await survey.next(deadline)) is not None:
                    if answer[0] == self.node.id and not answer[1].error:
                        continue  # `here` was done
                    yield answer
                    deadline = max(deadline, loop.time() + timeout) if answer[1].more else deadline
            except TimeoutError:
                raise RequestTimeout(
                    f"Nodes {', '.join(sorted(survey.waiting))} did not answer within {timeout} s.",
                    replies={},
                    missing=survey.waiting,
                ) from None

    async def _total(self, to: Address, make: Callable[[int], Message], here: Here, own: list[int]) -> int:
        """The sum of what the nodes answer, with `own`, which `here` fills in."""
        values: dict[str, int] = {}
        error = ""
        try:
            async with aclosing(self.replies(to, make, here)) as replies:
                async for node, reply in replies:
                    values[node] = reply.value
                    error = error or (reply.error and f"Node {node}: {reply.error}")
        except RequestTimeout as exc:
            exc.replies = values | ({self.node.id: sum(own)} if own else {})
            raise
        if error:
            raise ValueError(error)
        return sum(values.values()) + sum(own)

    async def _parts(
        self,
        to: Address,
        make: Callable[[int], Message],
        own: Callable[[Answers], Iterator[bytes]],
        kind: type[T],
    ) -> AsyncGenerator[tuple[str, list[T]]]:
        """A long answer: each node's items, in parts."""
        items: list[Iterator[bytes]] = []
        decoder: msgspec.msgpack.Decoder[list[T]] = msgspec.msgpack.Decoder(list[kind])  # type: ignore[valid-type]
        one: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(kind)
        async with aclosing(self.replies(to, make, lambda answers: items.append(own(answers)))) as replies:
            async for node, reply in replies:
                yield node, self._decoded(node, reply, decoder)
        for raws in items:
            while part := [one.decode(raw) for _, raw in zip(range(_SLICE), raws, strict=False)]:
                yield self.node.id, part
                await asyncio.sleep(0)

    def _decoded(self, node: str, reply: Reply, decoder: msgspec.msgpack.Decoder[list[T]]) -> list[T]:
        try:
            if not reply.error:
                return decoder.decode(reply.data)
        except DECODE_ERRORS as exc:
            raise RequestTimeout(
                f"Node {node} answered what cannot be read: {exc}.", replies={}, missing={node}
            ) from exc
        raise RequestTimeout(f"Node {node} did not go on: {reply.error}.", replies={}, missing={node})
