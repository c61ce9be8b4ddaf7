"""The link breaks and comes back: what is kept, what is sent again, what is given up, and who is told."""

import asyncio

from tests.cluster.harness import Cluster, SimClient, virtual


def numbers(client: SimClient, event: str = "n") -> list[int]:
    return [args[1] for args in client.events if args[0] == event]


@virtual
async def test_what_was_emitted_during_an_outage_arrives_once_and_in_order_after_it() -> None:
    async with Cluster() as cluster:
        one, two = await cluster.node(), await cluster.node()
        near, far = await one.client("a"), await two.client("a")
        one.broker.lose_link()
        for number in range(10):
            await one.server.emit("n", number, room="a")
        assert numbers(near) == list(range(10)), "P9: the clients of one node reach each other at once"
        await asyncio.sleep(3)
        assert numbers(far) == []
        one.broker.restore_link()
        await asyncio.sleep(2)
        assert numbers(far) == list(range(10))
        assert one.adapter.stats()["given_up"] == 0
