"""A stream of numbered events from one node to another, while the broker, a link or a node breaks.

What was sent is received, or told as missed or given up; in order, once, and the clients of the sending node
get all of it at once. Each test proves that its fault really happened.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from functools import partial

import pytest

from roomcast import Gap
from tests.adapter.servers import serving
from tests.faults.lone import lone_node
from tests.faults.streams import BEAT, QUICK, RECOVERY, Stream, at_once, lost, recovered, streaming
from tests.proxy import TcpProxy
from tests.services import NatsServer, RedisServer, Server, SharedBrokers
from tests.waiting import until

pytestmark = pytest.mark.fault


def both_lost(stream: Stream, times: int) -> bool:
    return min(lost(stream.a), lost(stream.b)) == times


@pytest.fixture(params=[RedisServer, NatsServer], ids=lambda server: server.scheme)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    async with request.param() as server:
        yield server


@pytest.fixture(params=["redis", "nats", "amqp"])
async def proxy(request: pytest.FixtureRequest, shared_brokers: SharedBrokers) -> AsyncIterator[TcpProxy]:
    async with TcpProxy(shared_brokers.url(request.param)) as proxy:
        yield proxy


async def test_a_broker_that_is_killed_and_restarted(server: Server) -> None:
    async with serving(server.url) as cluster, streaming(cluster) as stream:
        for _ in range(2):
            pid, before = server.pid, (lost(stream.a), lost(stream.b))
            await server.kill()
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
            await until(lambda: not stream.a.adapter.health() and not stream.b.adapter.health())
            await at_once(stream)
            await stream.flows(100)
            await server.start()
            await recovered(stream, f"{server.name} killed")
            assert (lost(stream.a), lost(stream.b)) == (before[0] + 1, before[1] + 1)
            await stream.flows()
        assert server.starts == 3
        await stream.account()
        reasons = [gap.reason for gap in stream.gaps if gap.reason in ("disconnected", "reconnected")]
        assert reasons == ["disconnected", "reconnected"] * 2


async def test_links_that_are_reset(proxy: TcpProxy) -> None:
    async with serving(proxy.url) as cluster, streaming(cluster) as stream:
        for number in range(3):
            assert await proxy.reset() >= 2
            await until(partial(both_lost, stream, number + 1))
            await recovered(stream, "reset")
            await stream.flows()
        await stream.account()
        assert [gap.reason for gap in stream.gaps].count("reconnected") == 3


async def test_a_broker_that_cannot_be_reached_for_a_while(proxy: TcpProxy) -> None:
    async with serving(proxy.url) as cluster, streaming(cluster) as stream:
        proxy.refuse()
        await proxy.cut()
        await until(lambda: not stream.a.adapter.health() and not stream.b.adapter.health())
        assert stream.b.adapter.health().reason
        await at_once(stream)
        await stream.flows(200)
        assert not stream.b.adapter.health()
        await proxy.accept()
        await recovered(stream, "refused")
        await stream.account()
        assert min(lost(stream.a), lost(stream.b)) == 1


@pytest.mark.parametrize("who", ["the sender", "the receiver"])
async def test_a_black_hole(proxy: TcpProxy, shared_brokers: SharedBrokers, who: str) -> None:
    scheme = proxy.url.partition(":")[0]
    direct = shared_brokers.url(scheme)
    sender = who == "the sender"
    async with (
        serving(proxy.url if sender else direct) as cluster,
        streaming(cluster, direct if sender else proxy.url) as stream,
    ):
        victim = stream.a if sender else stream.b
        proxy.stall()
        took = await until(lambda: not victim.adapter.health(), what="the silence to be noticed")
        assert took <= 2 * BEAT + 0.5
        await stream.flows(200)
        assert proxy.bytes_held > 0
        proxy.resume()
        await recovered(stream, f"black hole before {who}")
        assert lost(victim) >= 1
        await stream.flows()
        await stream.account()


async def test_an_outage_that_the_outbox_cannot_hold_is_counted_and_told(server: Server) -> None:
    async with serving(server.url) as cluster, streaming(cluster, outbox_messages=50) as stream:
        told: list[Gap] = []
        stream.a.adapter.on_gap(told.append)
        await server.kill()
        await until(lambda: not stream.a.adapter.health() and not stream.b.adapter.health())
        await stream.flows(200)
        await server.start()
        await recovered(stream, f"{server.name} killed, small outbox")
        # what was given up has numbers, too: the receiver sees the hole and tells it as missed, but for the events that
        # it had got before the server died, and whose confirms died with it
        got, missed = await stream.end()
        given_up = stream.a.adapter.stats()["given_up"]
        assert given_up == sum(gap.missed or 0 for gap in told if gap.reason == "given_up") >= 100
        assert got + missed == stream.sent
        assert missed >= 100


async def test_a_receiver_that_the_broker_cuts_for_being_slow() -> None:
    limit = ("--client-output-buffer-limit", "pubsub 100kb 0 0")
    async with (
        RedisServer(*limit) as server,
        TcpProxy(server.url) as proxy,
        serving(server.url) as cluster,
        streaming(cluster, proxy.url, heartbeat=5.0, peer_timeout=10.0) as stream,
    ):
        proxy.stall()
        filler = "x" * 60_000
        info = ""
        for _ in range(2_000):
            await stream.a.sio.emit("filler", filler, room="red", skip_sid=[stream.near.sid, stream.far.sid])
            info = await server.command("CLIENT", "LIST", "TYPE", "pubsub")
            if info.count("id=") == 1:
                break
        assert info.count("id=") == 1, "the server cut nobody"
        proxy.resume()
        await until(lambda: lost(stream.b) == 1, what="the cut to be noticed")
        await recovered(stream, "cut for being slow")
        got, missed = await stream.end()
        assert missed > 0
        assert stream.sent - missed <= got <= stream.sent  # fillers are missed, too
        assert [gap.reason for gap in stream.gaps if gap.missed is None] == ["disconnected", "reconnected"]


@pytest.mark.parametrize("scheme", ["redis", "nats", "amqp"])
async def test_a_node_that_is_stopped_for_a_while(scheme: str, shared_brokers: SharedBrokers) -> None:
    async with serving(shared_brokers.url(scheme)) as cluster, lone_node(cluster, heartbeat=BEAT) as lone:
        node = await cluster.node(**QUICK)
        await until(lambda: node.adapter.health().peers == 1)
        for number in range(20):
            await node.sio.emit("n", number, room="red")
        await lone.stop()
        await until(lambda: node.adapter.health().peers == 0, within=4, what="the silent peer to be lost")
        for number in range(20, 220):
            await node.sio.emit("n", number, room="red")
            await asyncio.sleep(0.005)  # the pace of the stream: about as long as the silence that loses a peer
        assert lone.stopped()
        lone.go_on()
        took = await until(lambda: node.adapter.health().peers == 1, what="the peer to be back")
        print(f"{scheme}: stopped node back after {took:.3f} s")  # noqa: T201 - a measurement
        assert took <= RECOVERY
        async with asyncio.timeout(RECOVERY):
            stats = await lone.stats()
            while not (stats["ok"] and stats["peers"]):
                stats = await lone.stats()
        await node.sio.emit("end", room="red")
        heard = [number for _, number in (await lone.client.hear("end"))[:-1]]
        assert heard == sorted(set(heard))
        assert len(heard) + (await lone.stats())["missed"] == 220
        assert not node.adapter.stats()["given_up"]
