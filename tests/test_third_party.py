"""A broker of another package: found by its entry point alone, written to the seam with plain coroutines."""

import asyncio
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import socketio

import roomcast
from roomcast.core.errors import ConfigurationError
from tests.waiting import until

BROKER = '''
import asyncio

from roomcast.core.broker import Delivery, Guarantees
from roomcast.core.errors import BrokerClosed

nodes = []


class AcmeBroker:
    """Delivers within one process, a moment later; written from the rules of the seam and from nothing else."""

    parameters = frozenset({"colour"})
    log = None

    def __init__(self, config):
        self.guarantees = Guarantees(order="publisher", confirmed=True, max_payload=config.max_payload)
        self.config = config
        self.subjects = set()
        self.events = asyncio.Queue()
        self.closed = False

    async def start(self):
        nodes.append(self)

    async def aclose(self):
        if not self.closed:
            self.closed = True
            nodes.remove(self)
            self.events.put_nowait(None)

    async def publish(self, subject, payload, /):
        for node in nodes:
            if subject in node.subjects:
                node.events.put_nowait(Delivery(subject, payload))
        await asyncio.sleep(0)

    async def subscribe(self, subjects, /):
        await asyncio.sleep(0)
        self.subjects.update(subjects)

    async def unsubscribe(self, subjects, /):
        self.subjects.difference_update(subjects)

    async def receive(self):
        event = await self.events.get()
        if event is None:
            raise BrokerClosed("The acme broker is closed.", broker="acme")
        return [event]
'''


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a distribution as pip would leave it: a module and a .dist-info folder."""
    (tmp_path / "acme_for_roomcast.py").write_text(BROKER)
    info = tmp_path / "acme_for_roomcast-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-for-roomcast\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[roomcast.brokers]\nacme = acme_for_roomcast:AcmeBroker\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "acme_for_roomcast", raising=False)


async def client(url: str, name: str) -> tuple[roomcast.Adapter, str, "asyncio.Queue[Any]"]:
    """A started adapter under a server, with one client; what the client is sent waits in the queue."""
    adapter = roomcast.Adapter(url)
    server: Any = socketio.AsyncServer(async_mode="asgi", client_manager=adapter)
    adapter.set_server(server)
    await adapter.start()
    queue: asyncio.Queue[Any] = asyncio.Queue()
    server.eio.sockets[name] = SimpleNamespace(queue=queue, closed=False, closing=False)
    sid = await adapter.pre_connect(name, "/")
    assert sid is not None
    await adapter.connect(sid, "/")
    return adapter, sid, queue


@pytest.mark.usefixtures("acme")
async def test_two_adapters_talk_through_a_broker_of_another_package() -> None:
    """ "A package that declares such an entry point adds a broker; nothing else is needed." """
    one, one_sid, one_hears = await client("acme://anywhere?colour=red&linger=0.1", "eio-1")
    other, other_sid, other_hears = await client("acme://anywhere", "eio-2")
    try:
        await until(lambda: one.health().peers == other.health().peers == 1, what="the nodes know each other")
        await one.enter_room(one_sid, "/", "lobby")
        for number in range(20):
            await other.emit("said", number, "/", room="lobby")
        await other.emit("told", b"bytes", "/", room=one_sid)
        await one.emit("everyone", None, "/")
        async with asyncio.timeout(10):
            heard = [(await one_hears.get()).data for _ in range(23)]
            assert (await other_hears.get()).data == '2["everyone"]'
        everyone = heard.index('2["everyone"]')
        del heard[everyone]
        assert heard[:20] == [f'2["said",{number}]' for number in range(20)]
        assert heard[20:] == ['51-["told",{"_placeholder":true,"num":0}]', b"bytes"]
        assert other_hears.empty()
        assert one.stats()["refused"] == other.stats()["refused"] == {}
        assert other_sid != one_sid
    finally:
        await one.aclose()
        await other.aclose()
    assert sys.modules["acme_for_roomcast"].nodes == [], "closed with the adapters"


@pytest.mark.usefixtures("acme")
def test_its_parameters_are_its_own() -> None:
    with pytest.raises(
        ConfigurationError, match=r"Unknown parameter 'size' in the acme:// URL: it is one of .* colour,"
    ):
        roomcast.Adapter("acme://anywhere?size=2")
    with pytest.raises(ConfigurationError, match="Unknown parameter 'colour'"):
        roomcast.Adapter("memory://anywhere?colour=red")


def test_without_the_package_there_is_no_such_broker() -> None:
    with pytest.raises(ConfigurationError, match="No broker serves acme://"):
        roomcast.Adapter("acme://anywhere")
