"""What is NATS's own: URLs, logins, TLS, permissions, and how the link uses nats-py."""

# pyright: reportPrivateUsage=false
# What the echo costs shows only inside.

import asyncio
import gc
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from roomcast.brokers.nats import NatsBroker
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Subject
from roomcast.core.errors import BrokerUnavailable, ConfigurationError, PublishRejected, PublishUnconfirmed
from tests.services import NatsServer, free_port, unavailable
from tests.waiting import until

Opened = Callable[..., Awaitable[NatsBroker]]


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    """Makes started brokers of one prefix, and closes them."""
    prefix = f"t{uuid4().hex[:12]}"
    async with AsyncExitStack() as stack:

        async def make(url: str, parameters: Mapping[str, str] | None = None) -> NatsBroker:
            broker = NatsBroker(BrokerConfig(url, parameters or {}, prefix=prefix, connect_timeout=3.0))
            stack.push_async_callback(broker.aclose)
            await broker.start()
            return broker

        yield make


async def configured(stack: AsyncExitStack, text: str) -> NatsServer:
    """A server with a configuration file."""
    server = NatsServer()
    path = server.directory / "nats.conf"
    path.write_text(text)
    server.config = ("-c", str(path))
    return await stack.enter_async_context(server)


async def heard(broker: NatsBroker, payload: bytes) -> list[Delivery | Gap]:
    """Everything up to and with the delivery of `payload`."""
    events: list[Delivery | Gap] = []
    async with asyncio.timeout(10):
        while not any(isinstance(event, Delivery) and event.payload == payload for event in events):
            events += await broker.receive()
    return events


async def works(broker: NatsBroker, name: str = "room") -> None:
    subject = Subject(f"{broker._config.prefix}.{name}")
    await broker.subscribe([subject])
    await broker.publish(subject, b"hello")
    await heard(broker, b"hello")


@pytest.mark.parametrize(
    "url",
    [
        "nats://",
        "nats://:4222",
        "nats://host/path",
        "nats://host:port",
        "nats://host:99999",
        "nats://a,,b",
        "nats://one@a,two@b",
        "nats://@host",
        "nats://:secret@host",
        "nats://user:top#secret@host:4222",
        "nats://user:top:secret@[::1",
    ],
)
def test_a_malformed_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        NatsBroker(BrokerConfig(url))
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "servers", "login"),
    [
        ("nats://host", ["nats://host:4222"], {}),
        ("tls://host:1", ["tls://host:1"], {}),
        ("nats://[::1]:7", ["nats://[::1]:7"], {}),
        ("nats://token@host", ["nats://host:4222"], {"token": "token"}),
        ("nats://me:p%40ss@a:1,b:2", ["nats://a:1", "nats://b:2"], {"user": "me", "password": "p@ss"}),
        ("nats://me:x@a,me:x@b", ["nats://a:4222", "nats://b:4222"], {"user": "me", "password": "x"}),
    ],
)
def test_a_url_names_servers_and_one_login(url: str, servers: list[str], login: dict[str, str]) -> None:
    broker = NatsBroker(BrokerConfig(url))
    assert sorted(broker._servers.following().url for _ in servers) == servers
    assert {key: value for key, value in broker._options.items() if key != "tls"} == login
    assert ("tls" in broker._options) is url.startswith("tls:")


@pytest.mark.parametrize(
    ("scheme", "parameters"),
    [
        ("nats", {"creds": "/does/not/exist"}),
        ("nats", {"nkey_seed": "/does/not/exist"}),
        ("nats", {"tls_ca": "/does/not/exist"}),
        ("tls", {"tls_ca": "/does/not/exist"}),
        ("tls", {"tls_key": "/does/not/exist"}),
        ("tls", {"tls_handshake_first": "perhaps"}),
    ],
)
def test_a_parameter_that_cannot_work_is_refused(scheme: str, parameters: dict[str, str]) -> None:
    assert set(parameters) <= NatsBroker.parameters
    with pytest.raises(ConfigurationError, match=next(iter(parameters))):
        NatsBroker(BrokerConfig(f"{scheme}://host", parameters))


def test_without_the_client_the_extra_is_named() -> None:
    code = "import sys; sys.modules['nats'] = None; import roomcast.brokers.nats"
    paths = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={"PYTHONPATH": paths}
    )
    assert 'ConfigurationError: nats:// needs the NATS client: pip install "roomcast[nats]"' in done.stderr


@pytest.mark.parametrize(
    ("config", "good", "bad"),
    [
        (("--auth", "s3cret"), "s3cret", "wr0ng"),
        (("--user", "me", "--pass", "s3cret"), "me:s3cret", "me:wr0ng"),
    ],
)
async def test_logins(opened: Opened, config: tuple[str, ...], good: str, bad: str) -> None:
    async with NatsServer(*config) as server:
        await works(await opened(f"nats://{good}@127.0.0.1:{server.port}"))
        with pytest.raises(BrokerUnavailable, match="Authorization Violation") as caught:
            await opened(f"nats://{bad}@127.0.0.1:{server.port}")
    assert "wr0ng" not in f"{caught.value!r} {caught.value.__cause__!r}"


async def test_the_next_server_is_tried(opened: Opened, nats_url: str) -> None:
    host = nats_url.partition("://")[2]
    for _ in range(4):  # where it begins is random
        await works(await opened(f"nats://127.0.0.1:{free_port()},{host}"))


async def test_tls_never_ends_in_plain_text(opened: Opened) -> None:
    said: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"auth_required":true}\r\n')
        said.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(BrokerUnavailable, match="secure connection not available"):
        await opened(f"tls://s3cret@127.0.0.1:{port}")
    await until(lambda: said != [], what="the server has seen the end")
    server.close()
    await server.wait_closed()
    assert set(said) == {b""}, "nothing was sent"


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[tuple[NatsServer, str, Mapping[str, str]]]:
    """A server with a certificate of its own, its URL, and how to trust it."""
    if shutil.which("openssl") is None:
        unavailable("TLS", "no openssl on this machine (Debian: apt-get install openssl)")
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:broker.test", "-days", "2"]
    argv = [*command, *subject, "-keyout", str(key), "-out", str(cert)]
    await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True)
    async with NatsServer("--tls", "--tlscert", str(cert), "--tlskey", str(key), "--auth", "s3cret") as server:
        trusted = {"tls_ca": str(cert), "tls_hostname": "broker.test"}
        yield server, f"tls://s3cret@127.0.0.1:{server.port}", trusted


async def test_tls_with_a_private_authority(opened: Opened, secured: tuple[NatsServer, str, Mapping[str, str]]) -> None:
    _, url, trusted = secured
    await works(await opened(url, trusted))
    for parameters in ({}, {"tls_ca": trusted["tls_ca"]}):  # an unknown authority, then another name
        with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await opened(url, parameters)


@pytest.mark.timeout(10)
async def test_a_server_that_reads_late_stops_nobody(opened: Opened) -> None:
    """`writelines` of some releases of CPython makes nobody wait: the loop must go on."""
    async with NatsServer() as server:
        await late(server, await opened(server.url))


@pytest.mark.timeout(10)
async def test_a_server_that_reads_late_over_tls_stops_nobody(
    opened: Opened, secured: tuple[NatsServer, str, Mapping[str, str]]
) -> None:
    """Of what waits, a TLS transport counts less, and makes nobody wait where TCP does: the loop must go on."""
    server, url, trusted = secured
    await late(server, await opened(url, trusted))


async def late(server: NatsServer, broker: NatsBroker) -> None:
    """Publish more than a halted server takes, and let it go on."""
    subject = Subject(f"{broker._config.prefix}.room")
    await broker.subscribe([subject])
    server.stop()
    try:
        publishes = [broker.publish(subject, b"%6d" % number + bytes(50_000)) for number in range(200)]
        await asyncio.wait(publishes, timeout=0.1)
    finally:
        server.cont()
    async with asyncio.timeout(15):
        assert await asyncio.gather(*publishes) == [None] * 200
        await broker.publish(subject, b"end")
    events = await heard(broker, b"end")
    got = [event.payload[:6] for event in events if isinstance(event, Delivery)]
    assert got == [*(b"%6d" % number for number in range(200)), b"end"]


async def test_permissions_are_told_apart_from_losses(opened: Opened) -> None:
    async with AsyncExitStack() as stack:
        permissions = '{publish: {deny: "*.mute"}, subscribe: {deny: "*.deaf"}}'
        users = f'{{user: "me", password: "x", permissions: {permissions}}}'
        server = await configured(stack, f"authorization {{ users: [{users}] }}")
        broker = await opened(f"nats://me:x@127.0.0.1:{server.port}")
        prefix = broker._config.prefix
        with pytest.raises(ConfigurationError, match="deaf"):
            await broker.subscribe([Subject(f"{prefix}.deaf"), Subject(f"{prefix}.other")])
        mute, fine = Subject(f"{prefix}.mute"), Subject(f"{prefix}.fine")
        outcomes = await asyncio.gather(
            *(broker.publish(subject, b"") for subject in (fine, mute, fine, mute)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [type(None), PublishRejected] * 2
        await works(broker, "other")


async def test_what_may_be_published_to_and_not_heard_is_told_apart(opened: Opened) -> None:
    """Rules 2 and 5: the refusal of a subscription is not that of a publish, nor lost in it."""
    async with AsyncExitStack() as stack:
        deaf = '{user: "deaf", password: "x", permissions: {publish: ">", subscribe: {deny: "*.room"}}}'
        mute = '{user: "mute", password: "x", permissions: {subscribe: ">", publish: {deny: "*.room"}}}'
        server = await configured(stack, f"authorization {{ users: [{deaf}, {mute}] }}")
        for user, hears, taken in (("deaf", ConfigurationError, type(None)), ("mute", type(None), PublishRejected)):
            broker = await opened(f"nats://{user}:x@127.0.0.1:{server.port}")
            room = Subject(f"{broker._config.prefix}.room")
            for _ in range(20):
                sent = [broker.publish(room, b"before") for _ in range(2)]
                hearing = asyncio.ensure_future(broker.subscribe([room]))
                await asyncio.sleep(0)
                sent += [broker.publish(room, b"behind") for _ in range(2)]
                outcomes = await asyncio.gather(*sent, return_exceptions=True)
                (heard_of,) = await asyncio.gather(hearing, return_exceptions=True)
                assert type(heard_of) is hears
                assert [type(outcome) for outcome in outcomes] == [taken] * 4
                await broker.unsubscribe([room])


async def test_all_who_ask_for_a_subject_are_told_of_its_refusal(opened: Opened) -> None:
    """Rule 2."""
    async with AsyncExitStack() as stack:
        users = '{user: "me", password: "x", permissions: {subscribe: {deny: "*.room"}}}'
        server = await configured(stack, f"authorization {{ users: [{users}] }}")
        broker = await opened(f"nats://me:x@127.0.0.1:{server.port}")
        rooms = [Subject(f"{broker._config.prefix}.room")]
        for _ in range(2):
            outcomes = await asyncio.gather(*(broker.subscribe(rooms) for _ in range(3)), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [ConfigurationError] * 3


async def test_a_login_without_the_echo_cannot_start(opened: Opened) -> None:
    async with AsyncExitStack() as stack:
        users = '{user: "me", password: "x", permissions: {subscribe: {deny: "*.echo.>"}}}'
        server = await configured(stack, f"authorization {{ users: [{users}] }}")
        with pytest.raises(BrokerUnavailable, match="lost") as caught:
            await opened(f"nats://me:x@127.0.0.1:{server.port}")
        assert "Permissions Violation" in str(caught.value.__cause__)


@pytest.mark.parametrize("header", [b"NATS/1.0", b"NATS/1.0\r\n", b"x", b"NATS/1.0 \xff\r\n:\xff\r\n\r\n"])
async def test_foreign_headers_do_no_harm(opened: Opened, nats_url: str, header: bytes) -> None:
    broker = await opened(nats_url)
    subject = Subject(f"{broker._config.prefix}.room")
    await broker.subscribe([subject])
    host, _, port = nats_url.rpartition("/")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b'CONNECT {"verbose":false,"headers":true,"protocol":1}\r\n')
    writer.write(b"HPUB %s %d %d\r\n%sbody\r\nPING\r\n" % (subject.encode(), len(header), len(header) + 4, header))
    await reader.readuntil(b"PONG\r\n")
    writer.close()
    await writer.wait_closed()
    await broker.publish(subject, b"after")
    events = await heard(broker, b"after")
    assert [event.payload for event in events if isinstance(event, Delivery)] == [b"body", b"after"]
    assert len(events) == 2


async def test_foreign_bytes_on_the_echo_do_no_harm(opened: Opened, nats_url: str) -> None:
    broker, other = await opened(nats_url), await opened(nats_url)
    assert broker._life.link is not None
    for payload in (b"", b"\xff", b"999999", b"x" * 1000):
        await other.publish(broker._life.link._echo, payload)
    await works(broker)


async def test_what_was_not_written_failed_definitely(opened: Opened, nats_url: str) -> None:
    broker = await opened(nats_url)
    subject = Subject(f"{broker._config.prefix}.room")
    await broker.subscribe([subject])
    link = broker._life.link
    assert link is not None
    early = broker.publish(subject, b"early")  # the first one of a turn is written at once, the others at its end
    late = broker.publish(subject, b"late")
    link.lose(ConnectionResetError("found out before the end of the turn"))
    outcomes = await asyncio.gather(early, late, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PublishUnconfirmed, BrokerUnavailable]
    causes = [outcome.__cause__ for outcome in outcomes if isinstance(outcome, BaseException)]
    assert [type(cause) for cause in causes] == [ConnectionResetError] * 2
    async with asyncio.timeout(10):
        events = [*await broker.receive()]
        while Gap("reconnected") not in events:
            events += await broker.receive()
    await broker.publish(subject, b"after")
    events += await heard(broker, b"after")
    assert b"late" not in [event.payload for event in events if isinstance(event, Delivery)]


async def test_a_subscription_is_nothing_that_the_collector_walks(opened: Opened, nats_url: str) -> None:
    """A node has as many subscriptions as rooms; an object of each would cost every collection its look at it."""
    broker = await opened(nats_url)
    gc.collect()
    before = len(gc.get_objects())
    await broker.subscribe([Subject(f"{broker._config.prefix}.room.s{number}") for number in range(1000)])
    gc.collect()
    assert len(gc.get_objects()) - before < 100
    await works(broker)


async def test_rooms_that_differ_in_case_alone_are_told_apart_in_a_refusal(opened: Opened) -> None:
    """Rules 2 and 5."""
    async with AsyncExitStack() as stack:
        permissions = '{publish: {deny: "*.room"}, subscribe: {deny: "*.room"}}'
        users = f'{{user: "me", password: "x", permissions: {permissions}}}'
        server = await configured(stack, f"authorization {{ users: [{users}] }}")
        broker = await opened(f"nats://me:x@127.0.0.1:{server.port}")
        room, other = (Subject(f"{broker._config.prefix}.{name}") for name in ("room", "ROOM"))
        outcomes = await asyncio.gather(
            *(broker.publish(subject, b"") for subject in (room, other)),
            *(broker.subscribe([subject]) for subject in (room, other)),
            return_exceptions=True,
        )
        assert [type(one) for one in outcomes] == [PublishRejected, type(None), ConfigurationError, type(None)]


async def test_one_marker_confirms_many_publishes(opened: Opened, nats_url: str) -> None:
    broker = await opened(nats_url)
    subject = Subject(f"{broker._config.prefix}.room")
    assert broker._life.link is not None
    before = broker._life.link._markers
    await asyncio.gather(*(broker.publish(subject, b"x") for _ in range(5000)))
    assert 0 < broker._life.link._markers - before <= 50


async def test_subscriptions_have_no_task_of_their_own(opened: Opened, nats_url: str) -> None:
    broker = await opened(nats_url)
    before = len(asyncio.all_tasks())
    await broker.subscribe([Subject(f"{broker._config.prefix}.room.{number}") for number in range(500)])
    assert len(asyncio.all_tasks()) <= before
