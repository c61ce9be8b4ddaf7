"""The rules of the simulated network, as its docstring says them; and the conformance checks over it."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from tests.brokers import checks_delivery
from tests.brokers.cluster import Check, Cluster, closing
from tests.simulation.client_servers import KINDS as SERVERS
from tests.simulation.client_servers import SERVER
from tests.simulation.loop import WORLD, SeededLoop, context_of, seeded
from tests.simulation.network import Link, Listener, Network

ADDRESS = ("host", 1)


class Peer(asyncio.Protocol):
    """What one end has seen."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.pieces: list[bytes] = []
        self.told: list[str] = []
        self.end: Exception | None = None

    @property
    def got(self) -> bytes:
        return b"".join(self.pieces)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def eof_received(self) -> None:
        self.told.append("eof")

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.end = exc


Test = Callable[[SeededLoop, Network, Peer, Peer, Link], Coroutine[Any, Any, None]]


def connected(test: Test, *, seed: int = 1) -> None:
    """Run a test on a network with one connection, from the process "near" to the process "far"."""

    async def run(loop: SeededLoop) -> None:
        loop.network = network = Network(loop, seed, latency=lambda: 0.001, context=context_of(WORLD))
        accepted: list[Peer] = []

        def accept() -> Peer:
            accepted.append(Peer())
            return accepted[-1]

        network.listeners[ADDRESS] = Listener(accept, context_of("far"))
        connecting = loop.create_connection(Peer, *ADDRESS)
        _, near = await loop.create_task(connecting, context=context_of("near"))
        await asyncio.sleep(0.01)
        await test(loop, network, near, accepted[0], network.links[0])

    with seeded(seed) as (loop, carry_out):
        carry_out(run(loop))


@pytest.mark.parametrize("seed", range(5))
def test_rules_1_and_2_all_bytes_arrive_in_order_however_they_are_cut(seed: int) -> None:
    async def test(_loop: SeededLoop, _network: Network, near: Peer, far: Peer, link: Link) -> None:
        sent = random.Random(seed).randbytes(200_000)
        for start in range(0, len(sent), 10_000):
            near.transport.write(sent[start : start + 10_000])
        far.transport.write(b"from there")
        assert near.told == ["pause"]
        await asyncio.sleep(10)
        assert far.got == sent
        assert len(far.pieces) > 3
        assert near.got == b"from there"
        assert near.told == ["pause", "resume"]
        assert link.idle

    connected(test, seed=seed)


def test_rule_3_what_is_sent_to_a_process_that_stands_still_waits_for_it() -> None:
    async def test(loop: SeededLoop, _network: Network, near: Peer, far: Peer, _link: Link) -> None:
        loop.freeze("far", 5)
        near.transport.write(b"hello")
        _, other = await loop.create_connection(Peer, *ADDRESS)
        other.transport.write(b"I am connected")
        await asyncio.sleep(4)
        assert not far.pieces
        await asyncio.sleep(2)
        assert far.got == b"hello"

    connected(test)


def test_rule_4_close_sends_what_was_written_and_then_the_end() -> None:
    async def test(_loop: SeededLoop, network: Network, near: Peer, far: Peer, _link: Link) -> None:
        near.transport.write(b"x" * 200_000)
        near.transport.close()
        near.transport.write(b"")
        await asyncio.sleep(10)
        assert far.got == b"x" * 200_000
        assert far.told == ["eof", "lost"]
        assert near.told[-1] == "lost"
        assert (near.end, far.end) == (None, None)
        assert not network.links

    connected(test)


def test_rule_4_a_process_that_dies_sends_what_its_kernel_has() -> None:
    async def test(loop: SeededLoop, _network: Network, near: Peer, far: Peer, link: Link) -> None:
        near.transport.write(b"x" * 300_000)
        loop.freeze("near")
        link.near.die()
        await asyncio.sleep(10)
        assert 0 < len(far.got) < 300_000
        assert far.told == ["eof", "lost"]
        assert "lost" not in near.told

    connected(test)


def test_rule_4_a_closed_socket_answers_with_a_reset() -> None:
    async def test(loop: SeededLoop, _network: Network, _near: Peer, far: Peer, link: Link) -> None:
        loop.freeze("near")
        link.near.die()
        far.transport.write(b"too late")
        await asyncio.sleep(1)
        assert far.told[-1] == "lost"

    connected(test)


@pytest.mark.parametrize("seed", range(5))
def test_rule_5_a_cut_loses_all_but_a_piece_at_the_head_and_tells_both(seed: int) -> None:
    async def test(_loop: SeededLoop, network: Network, near: Peer, far: Peer, link: Link) -> None:
        sent = bytes(range(250))
        near.transport.write(sent)
        far.transport.write(sent)
        link.cut()
        near.transport.write(b"into nothing")
        await asyncio.sleep(1)
        for peer in (near, far):
            assert sent.startswith(peer.got)
            assert peer.told == ["lost"]
            assert isinstance(peer.end, ConnectionResetError)
        assert not network.links

    connected(test, seed=seed)


def test_rule_5_a_stall_holds_everything_up_and_tells_nobody() -> None:
    async def test(_loop: SeededLoop, _network: Network, near: Peer, far: Peer, link: Link) -> None:
        link.stall(link.near)
        near.transport.write(b"held")
        far.transport.write(b"not held")
        await asyncio.sleep(60)
        assert (far.got, near.got) == (b"", b"not held")
        link.stall(stalled=False)
        await asyncio.sleep(1)
        assert far.got == b"held"
        assert not near.told
        assert not far.told

    connected(test)


def test_rule_6_a_process_that_is_barred_cannot_connect() -> None:
    async def test(loop: SeededLoop, network: Network, near: Peer, _far: Peer, _link: Link) -> None:
        async def attempt() -> str:
            try:
                async with asyncio.timeout(1):
                    await loop.create_connection(Peer, *ADDRESS)
            except (OSError, TimeoutError) as exc:
                return type(exc).__name__
            return "connected"

        outcomes: list[str] = []
        for how in ("refused", "silent", None):
            network.bar("near", how)
            outcomes.append(await loop.create_task(attempt(), context=context_of("near")))
        assert outcomes == ["ConnectionRefusedError", "TimeoutError", "connected"]
        near.transport.write(b"an old connection goes on")

    connected(test)


@pytest.mark.parametrize("kind", list(SERVERS))
@pytest.mark.parametrize("check", checks_delivery.CHECKS, ids=lambda check: cast("Check", check).__name__)
def test_brokers_keep_the_rules_of_the_seam_over_it(kind: str, check: Check) -> None:
    port, make, new = SERVERS[kind]

    async def run(loop: SeededLoop) -> None:
        loop.network = Network(loop, 1, latency=lambda: 0.001, context=context_of(WORLD))
        loop.network.listeners[SERVER, port] = Listener(new(random.Random(1), 1 << 30).accept, context_of(SERVER))
        async with closing(Cluster(make, f"{kind}://{SERVER}:{port}", scale=0.1)) as cluster:
            await check(cluster)

    with seeded(1) as (loop, carry_out):
        carry_out(run(loop))
