"""Joins, leaves and emits that race, and one address that must mean the same to every verb; over every broker."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from roomcast import Operator
from tests.adapter.conftest import broker_url
from tests.adapter.crowd import Swarm, acknowledging, left_behind, swarming
from tests.cluster.harness import SimClient, numbers
from tests.core.effort import effort
from tests.services import SharedBrokers
from tests.waiting import until

ROUNDS = 200


async def test_whoever_has_joined_gets_what_is_emitted_at_once_from_any_node(
    scheme: str, shared_brokers: SharedBrokers
) -> None:
    async with swarming(broker_url(scheme, shared_brokers), linger=0) as swarm:
        clients = [await node.client() for node in swarm.nodes]
        expected: dict[SimClient, list[int]] = {client: [] for client in clients}
        chance = random.Random(0)

        async def round_(number: int) -> None:
            client, asker, emitter = chance.choice(clients), chance.choice(swarm.nodes), chance.choice(swarm.nodes)
            room = f"room {number}"
            expected[client].append(number)
            how = number % 4
            if how == 0:
                await asker.server.enter_room(client.sid, room)
            elif how == 1:
                await asker.adapter.to(client.sid).sockets_join(room)
            elif how == 2:
                (socket,) = await asker.adapter.to(client.sid).fetch_sockets()
                await socket.join(room)
            else:
                others = [other.sid for other in clients if other is not client]
                await asker.adapter.except_(*others).sockets_join(room)
            await emitter.server.emit("n", number, room=room)

        for number in range(ROUNDS):
            await round_(number)
        await asyncio.gather(*(round_(number) for number in range(ROUNDS, 3 * ROUNDS)))
        await until(lambda: all(sorted(numbers(client)) == sorted(expected[client]) for client in clients))


async def test_joining_and_leaving_one_room_over_and_over_decides_each_emit(
    scheme: str, shared_brokers: SharedBrokers
) -> None:
    """The subject of the room is given up and taken again all the time, for nothing lingers here."""
    async with swarming(broker_url(scheme, shared_brokers), linger=0) as swarm:
        clients = [await node.client() for node in swarm.nodes]
        chance = random.Random(1)
        for number in range(ROUNDS // 4):
            asker, emitter, other = (chance.choice(swarm.nodes) for _ in range(3))
            some = chance.sample(clients, chance.randint(1, 3))
            assert await asker.adapter.to(*(client.sid for client in some)).sockets_join("room") == len(some)
            await emitter.server.emit("n", number, room="room")
            expected = [[("n", number)] if client in some else [] for client in clients]
            assert await swarm.finish(emitter, *clients) == expected
            assert await asker.adapter.to("room").sockets_leave("room") == len(some)
            await other.server.emit("n", number, room="room")
            assert await swarm.finish(other, *clients) == [[], [], []]


async def test_what_a_node_does_to_sockets_is_in_order_with_what_it_emits(
    scheme: str, shared_brokers: SharedBrokers
) -> None:
    """Not awaited one by one: the order of the calls is enough."""
    async with swarming(broker_url(scheme, shared_brokers)) as swarm:
        one, two, three = swarm.nodes
        await one.adapter.nodes()  # it has met the others: a verb does not have to wait for that any more
        clients = [await node.client("stay") for node in (one, two, three)]
        for number in range(0, ROUNDS, 2):
            room = f"room {number % 6}"
            await asyncio.gather(
                one.adapter.to("stay").emit("n", number),
                one.adapter.to("stay").sockets_join(room),
                one.adapter.local.to("stay").emit("local", number),
                one.adapter.to("stay").emit("n", number + 1),
            )
            await asyncio.gather(one.adapter.to(room).emit("in room", number), one.adapter.sockets_leave(room))
        for client, heard in zip(clients, await swarm.finish(one, *clients), strict=True):
            expected: list[Any] = []
            for number in range(0, ROUNDS, 2):
                expected += [("n", number)]
                expected += [("local", number)] if client.node is one else []
                expected += [("n", number + 1), ("in room", number)]
            assert heard == expected


async def test_a_client_that_is_disconnected_has_everything_emitted_before_and_nothing_after(
    scheme: str, shared_brokers: SharedBrokers
) -> None:
    async with swarming(broker_url(scheme, shared_brokers)) as swarm:
        one, two, three = swarm.nodes
        await one.adapter.nodes()
        for number in range(20):
            room = f"room {number}"
            clients = [await node.client(room) for node in (one, two, three)]
            emitting = [asyncio.ensure_future(one.server.emit("n", n, room=room)) for n in range(10)]
            parting = asyncio.ensure_future(one.adapter.to(room).disconnect_sockets(close=bool(number % 2)))
            assert await parting == 3
            await asyncio.gather(*emitting)
            await one.server.emit("n", 99, room=room)
            assert [numbers(client) for client in clients] == [list(range(10))] * 3
            assert all(client.disconnected for client in clients)


# One address, every verb

ROOMS: tuple[str | int, ...] = ("red", "blue", 7, "7", "")
WHO = tuple(range(9))


@dataclass
class Addressed:
    """An address in terms of client numbers, and its truth.

    Attributes:
        rooms, excluded: rooms by name, and clients by number, for their sids.
    """

    rooms: list[tuple[str, Any]]
    excluded: list[tuple[str, Any]]
    local: bool
    node: int

    def matches(self, number: int, members: dict[str | int, set[int]]) -> bool:
        def within(kind: str, what: Any) -> bool:
            return what == number if kind == "client" else number in members.get(what, ())

        return (
            (not self.rooms or any(within(*one) for one in self.rooms))
            and not any(within(*one) for one in self.excluded)
            and (not self.local or number % 3 == self.node)
        )

    def spelled(self, named: list[tuple[str, Any]], clients: Sequence[SimClient]) -> list[str | int]:
        return [clients[int(what)].sid if kind == "client" else what for kind, what in named]

    def operator(self, swarm: Swarm, clients: Sequence[SimClient], namespace: str) -> Operator:
        operator = swarm.nodes[self.node].adapter.namespace(namespace)
        for room in self.spelled(self.rooms, clients):
            operator = operator.to(room)
        if self.excluded:
            operator = operator.except_(*self.spelled(self.excluded, clients))
        return operator.local if self.local else operator


names = st.one_of(
    st.tuples(st.just("room"), st.sampled_from(ROOMS)), st.tuples(st.just("client"), st.sampled_from(WHO))
)
addresses = st.builds(
    Addressed,
    rooms=st.lists(names, max_size=3),
    excluded=st.lists(names, max_size=2),
    local=st.booleans(),
    node=st.integers(0, 2),
)
memberships = st.dictionaries(st.sampled_from(ROOMS), st.sets(st.sampled_from(WHO)), max_size=len(ROOMS))


@dataclass
class Stage:
    """A swarm with nine clients in each of two namespaces; the rooms of "/other" have everyone in them."""

    swarm: Swarm
    clients: list[SimClient]
    others: list[SimClient]
    marks: Any = field(default_factory=count)

    async def arrange(self, members: dict[str | int, set[int]]) -> None:
        for room in ROOMS:
            await self.swarm.nodes[0].adapter.sockets_leave(room)
        for room, numbers_ in members.items():
            for number in numbers_:
                client = self.clients[number]
                await client.node.server.enter_room(client.sid, room)

    async def heard(self, node: int) -> dict[int, list[Any]]:
        """What the clients got of what a node emitted, those who got something."""
        everyone = [*self.clients, *self.others]
        heard = await self.swarm.finish(self.swarm.nodes[node], *everyone)
        assert not any(heard[len(self.clients) :]), "another namespace"
        return {number: events for number, events in enumerate(heard[: len(self.clients)]) if events}


async def stage(swarm: Swarm) -> Stage:
    clients = [acknowledging(await swarm.nodes[number % 3].client(), f"[{number}]") for number in WHO]
    others = [acknowledging(await swarm.nodes[number % 3].client(*ROOMS, namespace="/other")) for number in WHO]
    return Stage(swarm, clients, others)


def test_one_address_means_the_same_clients_to_every_verb(scheme: str, shared_brokers: SharedBrokers) -> None:
    """Operators, `AsyncServer.emit` and its callback agree, on every node, with what the words say."""
    with asyncio.Runner() as runner:
        context = swarming(broker_url(scheme, shared_brokers), linger=0.001)
        set_up = runner.run(context.__aenter__())
        scene = runner.run(stage(set_up))
        try:

            @given(members=memberships, address=addresses)
            @effort(25)
            def agree(members: dict[str | int, set[int]], address: Addressed) -> None:
                runner.run(compare(scene, members, address))

            agree()
        finally:
            runner.run(context.__aexit__(None, None, None))


async def compare(scene: Stage, members: dict[str | int, set[int]], address: Addressed) -> None:
    await scene.arrange(members)
    expected = {number for number in WHO if address.matches(number, members)}
    operator = address.operator(scene.swarm, scene.clients, "/")
    node = scene.swarm.nodes[address.node]
    mark = next(scene.marks)

    await operator.emit("event", mark)
    assert await scene.heard(address.node) == {number: [("event", mark)] for number in expected}

    answers = await operator.emit_with_ack("ask", mark)
    assert sorted(answer.value for answer in answers) == sorted(expected)
    assert {answer.sid for answer in answers} == {scene.clients[number].sid for number in expected}
    assert await scene.heard(address.node) == {number: [("ask", mark)] for number in expected}

    sids = {scene.clients[number].sid for number in expected}
    sockets = await operator.fetch_sockets()
    assert sorted(socket.sid for socket in sockets) == sorted(sids)
    for socket in sockets:
        (number,) = (number for number in WHO if scene.clients[number].sid == socket.sid)
        assert set(socket.rooms[1:]) == {room for room, numbers_ in members.items() if number in numbers_}
    assert await operator.count() == len(expected)

    if all(kind == "client" for kind, _ in address.excluded):
        called: list[int] = []
        arguments: dict[str, Any] = {
            "skip_sid": address.spelled(address.excluded, scene.clients),
            "ignore_queue": address.local,
            "callback": called.append,
        }
        if address.rooms:
            arguments["room"] = address.spelled(address.rooms, scene.clients)
        await node.server.emit("call", mark, **arguments)
        assert await scene.heard(address.node) == {number: [("call", mark)] for number in expected}
        await until(lambda: len(called) >= len(expected), what="the callbacks")
        assert sorted(called) == sorted(expected)

    assert await operator.sockets_join("chosen") == len(expected)
    await node.adapter.to("chosen").emit("chosen", mark)
    assert await scene.heard(address.node) == {number: [("chosen", mark)] for number in expected}
    assert await operator.sockets_leave("chosen") == len(expected)
    assert await node.adapter.count("chosen") == 0
    await until(lambda: not any(left_behind(node.adapter) for node in scene.swarm.nodes), what="nothing to be left")
