"""One order for the clients of all nodes (P2), on real brokers that keep a log, with several publishers at once."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any, cast
from uuid import uuid4

import pytest

from roomcast import Recovery
from roomcast.brokers.log_broker import LogBroker
from roomcast.core.broker import BrokerConfig
from tests.adapter.servers import Client, Cluster, Heard, Node, serving
from tests.brokers.test_conformance import LOGS, broker_class
from tests.services import SharedBrokers

EVENTS = 300
"""Of each publisher."""


@pytest.fixture(params=("memory+log", *LOGS))
async def logged(request: pytest.FixtureRequest, shared_brokers: SharedBrokers) -> AsyncIterator[Cluster]:
    """A cluster on each log in turn."""
    scheme = str(request.param)
    url = f"memory+log://m{uuid4().hex[:12]}" if scheme == "memory+log" else shared_brokers.log_url(scheme)
    async with serving(url) as cluster:
        yield cluster
    if scheme != "memory+log":
        broker = cast("LogBroker", broker_class(scheme)(BrokerConfig(url, prefix=cluster.prefix)))
        await broker.delete()
        await broker.aclose()
    gc.collect()


async def publish(node: Node, name: str, room: str | None) -> None:
    """Events as a busy application emits them: some awaited, most not."""
    sending: list[asyncio.Future[None]] = []
    for number in range(EVENTS):
        sending.append(asyncio.ensure_future(node.sio.emit("n", (name, number), to=room)))
        await (sending[-1] if number % 10 == 0 else asyncio.sleep(0))
    await asyncio.gather(*sending)


async def test_p2_all_clients_see_the_events_of_several_publishers_in_one_order(logged: Cluster) -> None:
    nodes = [await logged.node(order="total") for _ in range(3)]
    clients: list[Client] = []
    for node in nodes:
        for _ in range(2):
            client = await node.client()
            await node.sio.enter_room(client.sid, "red")
            clients.append(client)
    await asyncio.gather(*(publish(node, f"{at}", "red" if at else None) for at, node in enumerate(nodes)))
    heard = await logged.finish(nodes[0], *clients)
    assert all(one == heard[0] for one in heard), "P2"
    assert len(heard[0]) == 3 * EVENTS, "P3 and P5"
    for at in range(3):
        own: list[Heard] = [event for event in heard[0] if event[1] == f"{at}"]
        assert own == [("n", f"{at}", number) for number in range(EVENTS)], "P1"
    assert len({event[1] for event in heard[0][:EVENTS]}) == 3, "the publishers did publish at once"


@pytest.mark.parametrize(
    "settings", [{"order": "total"}, {"recovery": Recovery(window=10.0)}], ids=["total", "recovery"]
)
async def test_p4_a_process_moves_its_clients_in_order_with_what_it_emits(
    logged: Cluster, settings: dict[str, Any]
) -> None:
    node, other = [await logged.node(**settings) for _ in range(2)]
    client = await node.client()
    sid, sio = client.sid, node.sio
    noise = asyncio.ensure_future(publish(other, "noise", "other"))
    for number in range(20):
        await sio.enter_room(sid, "red")
        await sio.emit("n", number, to="red")
        await sio.leave_room(sid, "red")
        await sio.emit("n", "left", to="red")
        await sio.enter_room(sid, "red")
        await sio.close_room("red")
        await sio.emit("n", "closed", to="red")
        await sio.enter_room(sid, "blue")
        await sio.emit("n", number, to="blue")
        await sio.close_room("blue")
    await noise
    await sio.emit("bye", to=sid)
    await sio.disconnect(sid)
    heard = await client.hear("bye")
    await client.gone.wait()
    assert heard == [*(("n", number) for number in range(20) for _ in range(2)), ("bye",)]
