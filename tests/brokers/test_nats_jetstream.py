"""What is particular to a log in JetStream; what every log promises is in test_logs.py."""

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

from roomcast.brokers.nats_jetstream import JetStreamBroker
from roomcast.brokers.nats_jetstream_link import JetStreamLink, moment, seconds_of, stream_name
from roomcast.brokers.nats_jetstream_wire import Wire
from roomcast.core.broker import BrokerConfig, Delivery, Gap, Subject
from roomcast.core.errors import ConfigurationError, PublishRejected, ReplayUnavailable
from tests.brokers.checks_log import at, log_of, patient, replayed
from tests.brokers.cluster import Cluster, closing, deleted, gaps, payloads, send
from tests.brokers.log_tampers import TAMPERS, nats_request
from tests.services import JetStreamServer, NatsServer, SharedBrokers

TAMPER = TAMPERS["nats+jetstream"]


@pytest.fixture
async def cluster(shared_brokers: SharedBrokers) -> AsyncIterator[Cluster]:
    async with deleted(Cluster(JetStreamBroker, shared_brokers.log_url("nats+jetstream"))) as made, closing(made):
        yield made


def log_at(server: NatsServer, credentials: str = "", parameters: Mapping[str, str] | None = None) -> Cluster:
    url = f"nats+jetstream://{credentials}127.0.0.1:{server.port}"
    return Cluster(JetStreamBroker, url, parameters=parameters, patience=30.0)


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("nats+jetstream://u:s3cret@host:port", {}),
        ("nats+jetstream://u:s3cret@host/path", {}),
        ("nats+jetstream://u:s3cret@host", {"replicas": "2"}),
        ("nats+jetstream://u:s3cret@host", {"storage": "cloud"}),
        ("nats+jetstream://u:s3cret@host", {"streams": "0"}),
        ("nats+jetstream://u:s3cret@host", {"tls_hostname": "x"}),
    ],
)
def test_a_url_that_cannot_work_is_refused_without_showing_credentials(url: str, parameters: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        JetStreamBroker(BrokerConfig(url=url, parameters=parameters))
    assert "s3cret" not in str(caught.value)


def test_without_the_client_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "nats" or name.startswith(("nats.", "roomcast.brokers.nats"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(ConfigurationError, match=r'pip install "roomcast\[nats\]"'):
        importlib.import_module("roomcast.brokers.nats_jetstream")


def test_moments_are_read_and_written_as_jetstream_does() -> None:
    assert moment(1700000000.25) == "2023-11-14T22:13:20.250000Z"
    for text in ("2023-11-14T22:13:20.250000123Z", "2023-11-14T22:13:20.25Z"):
        assert seconds_of(text) == pytest.approx(1700000000.25)
    assert seconds_of("2023-11-14T22:13:20Z") == 1700000000.0


def test_a_stream_is_named_after_the_prefix_whatever_it_is() -> None:
    assert stream_name("app.eu", 2) == "app_eu_log_2"


async def test_a_server_without_jetstream_is_a_configuration_error() -> None:
    async with NatsServer() as server, closing(log_at(server)) as cluster:
        with pytest.raises(ConfigurationError, match="nats-server with -js"):
            await cluster.node()


async def test_what_is_sent_again_is_not_appended_again(cluster: Cluster) -> None:
    node = await cluster.node(everything=True)
    log = log_of(node)
    (subject,) = cluster.subjects(1)
    first = await log.publish(subject, b"1", once=("me", 1))
    assert await log.publish(subject, b"again", once=("me", 1)) == first
    await log.publish(subject, b"mine", once=("another", 1))
    await log.publish(subject, b"2", once=("me", 2))
    assert payloads(await node.hear_payload(b"2")) == [b"1", b"mine", b"2"]


async def test_a_stream_of_somebody_else_is_refused(cluster: Cluster) -> None:
    config = {"name": f"{cluster.prefix}_log_0", "subjects": [f"{cluster.prefix}.theirs"], "max_bytes": 256 * 1024**2}
    config |= {"max_age": 300 * 10**9, "storage": "memory"}
    await nats_request(cluster, f"STREAM.CREATE.{cluster.prefix}_log_0", json.dumps(config).encode())
    with pytest.raises(ConfigurationError, match="not one of roomcast"):
        await cluster.node()


async def test_no_consumer_is_left_behind(cluster: Cluster) -> None:
    node, other = await cluster.node(), await cluster.node()
    (subject,) = cluster.subjects(1)
    await other.broker.publish(subject, b"hello")
    await replayed(await cluster.node(), 60.0)
    info = f"STREAM.INFO.{cluster.prefix}_log_0"
    for closed in (node, other, cluster.nodes[2]):
        await closed.broker.aclose()
    assert json.loads(await nats_request(cluster, info, b""))["state"]["consumer_count"] == 0


async def test_a_consumer_that_is_removed_is_made_again_and_nothing_is_lost(cluster: Cluster) -> None:
    node = await cluster.node(everything=True)
    (subject,) = cluster.subjects(1)
    await node.broker.publish(subject, b"before")
    await node.hear_payload(b"before")
    stream = f"{cluster.prefix}_log_0"
    (consumer,) = json.loads(await nats_request(cluster, f"CONSUMER.NAMES.{stream}", b""))["consumers"]
    await nats_request(cluster, f"CONSUMER.DELETE.{stream}.{consumer}", b"")
    await patient(cluster, lambda: node.broker.publish(subject, b"after"))
    events = await node.hear_payload(b"after")
    assert payloads(events) == [b"after"]
    assert [gap.missed for gap in gaps(events)] == [None, 0]


async def test_a_stream_that_goes_without_a_word_is_noticed(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 2 of the link: JetStream may end while those who wait for entries are still to be told."""
    told = JetStreamLink.__dict__["_told"]

    def told_little(link: JetStreamLink, request: str, status: str, description: str) -> None:
        if status != "409":
            told(link, request, status, description)

    monkeypatch.setattr(JetStreamLink, "_told", told_little)
    node = await cluster.node(everything=True, heartbeat=0.4)
    (subject,) = cluster.subjects(1)
    await node.broker.publish(subject, b"before")
    await node.hear_payload(b"before")
    await TAMPER.delete(cluster)
    async with asyncio.timeout(4.0):  # two heartbeats, and time for a busy machine
        assert Gap("trimmed") in gaps(await node.hear_gap("trimmed"))
    await patient(cluster, lambda: node.broker.publish(subject, b"after"))
    assert payloads(await node.hear_payload(b"after")) == [b"after"]


async def test_a_silent_log_keeps_its_link(cluster: Cluster) -> None:
    """Rule 2 of the link: nothing to read is not silence."""
    node = await cluster.node(everything=True, heartbeat=0.2)
    await asyncio.sleep(0.6)  # three heartbeats
    (subject,) = cluster.subjects(1)
    await node.broker.publish(subject, b"only")
    assert await node.hear_payload(b"only") == [Delivery(subject, b"only", ANY)]


async def test_a_stream_made_anew_before_its_consumer_is_noticed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 1 of the link: a place of one life is not looked up in another."""
    writer = await cluster.node()
    (subject,) = cluster.subjects(1)
    for _ in range(5):
        await writer.broker.publish(subject, b"before")
    ask, made = Wire.ask, 0

    async def ask_late(wire: Wire, verb: str, payload: Mapping[str, Any] | None = None) -> dict[str, Any]:
        nonlocal made
        if verb.startswith("CONSUMER.CREATE.") and not made:
            made += 1
            await TAMPER.delete(cluster)
            await patient(cluster, lambda: writer.broker.publish(subject, b"after"))
        return await ask(wire, verb, payload)

    monkeypatch.setattr(Wire, "ask", ask_late)
    late = await cluster.node(everything=True)
    events = await late.hear_payload(b"after")
    assert Gap("trimmed") in gaps(events)
    assert payloads(events) == [b"after"]


async def test_what_max_bytes_pushed_out_is_not_replayed_as_if_it_were_all(cluster: Cluster) -> None:
    parameters = {"max_bytes": "1mb"}
    node = await cluster.node(parameters=parameters)
    (subject,) = cluster.subjects(1)
    await asyncio.gather(*(send(node.broker, subject, bytes(10_000)) for _ in range(200)))
    late = await cluster.node(parameters=parameters)
    with pytest.raises(ReplayUnavailable) as caught:
        await replayed(late, 60.0)
    assert caught.value.reason == "trimmed"


async def test_what_is_too_old_goes_and_a_replay_of_less_is_complete(cluster: Cluster) -> None:
    parameters = {"retention": "1s", "max_bytes": "64mb"}
    node = await cluster.node(parameters=parameters)
    (subject,) = cluster.subjects(1)
    await node.broker.publish(subject, b"old")
    info = f"STREAM.INFO.{cluster.prefix}_log_0"
    for _ in range(100):  # a second, and what JetStream takes to look
        if not json.loads(await nats_request(cluster, info, b""))["state"]["messages"]:
            break
        await asyncio.sleep(0.05)
    await node.broker.publish(subject, b"new")
    late = await cluster.node(parameters=parameters)
    got = [event for page in await replayed(late, 0.9) for event in page]
    assert set(payloads(got)) <= {b"new"}, "nothing of the last 0.9 s can be missing"
    with pytest.raises(ReplayUnavailable):
        await replayed(late, 60.0)


@pytest.mark.fault
async def test_a_server_that_forgot_its_end_gives_the_log_another_epoch(tmp_path: Path) -> None:
    """As after a crash of the machine, or a restart from a backup: the offsets behind it would be used again."""
    async with JetStreamServer() as server, closing(log_at(server)) as cluster:
        nodes = [await cluster.node(everything=True) for _ in range(2)]
        (subject,) = cluster.subjects(1)
        await nodes[0].broker.publish(subject, b"kept")
        await server.kill()
        store, backup = server.directory / "jetstream", tmp_path / "backup"
        process = await asyncio.create_subprocess_exec("cp", "-r", str(store), str(backup))
        assert await process.wait() == 0
        await server.start()
        await patient(cluster, lambda: nodes[0].broker.publish(subject, b"forgotten"))
        before = {at((await node.hear_payload(b"forgotten"))[-1]).epoch for node in nodes}
        await server.kill()
        process = await asyncio.create_subprocess_exec("sh", "-c", 'rm -r "$1" && cp -r "$2" "$1"', "-", store, backup)
        assert await process.wait() == 0
        await server.start()
        for node in nodes:
            assert Gap("trimmed") in gaps(await node.hear_gap("trimmed"))
        await patient(cluster, lambda: nodes[0].broker.publish(subject, b"after"))
        after = [await node.hear_payload(b"after") for node in nodes]
        assert [payloads(events) for events in after] == [[b"after"]] * 2
        assert at(after[0][-1]) == at(after[1][-1])
        assert at(after[0][-1]).epoch not in before


async def test_a_user_confined_to_the_prefix_and_the_api_is_enough(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    allow = 'publish: ["app.>", "$JS.API.>"], subscribe: ["app.>"]'
    deny = 'publish: ["$JS.API.>", "app.echo.>", "app.log.0.app.may"], subscribe: ["app.>"]'
    config.write_text(
        'jetstream { store_dir: "' + str(tmp_path / "js") + '" }\n'
        "authorization { users: [\n"
        f"  {{user: node, password: pw, permissions: {{ {allow} }} }}\n"
        f"  {{user: half, password: pw, permissions: {{ {deny} }} }}\n"
        '  {user: none, password: pw, permissions: { publish: ["app.>"], subscribe: ["app.>"] } }\n'
        "] }\n"
    )
    async with NatsServer("--config", str(config)) as server:
        async with closing(log_at(server, "none:pw@")) as cluster:
            with pytest.raises(ConfigurationError, match="must allow"):
                await cluster.node(prefix="app")
        async with closing(log_at(server, "node:pw@")) as cluster:
            node = await cluster.node(prefix="app", everything=True)
            await node.broker.publish(Subject("app.room"), b"hello")
            assert payloads(await node.hear_payload(b"hello")) == [b"hello"]
        async with closing(log_at(server, "half:pw@")) as cluster:
            node = await cluster.node(prefix="app")
            with pytest.raises(PublishRejected, match="may not publish"):
                await node.broker.publish(Subject("app.room"), b"no")
            await node.broker.publish(Subject("app.may"), b"yes")


async def test_another_server_of_the_url_is_used_when_the_first_is_gone() -> None:
    async with JetStreamServer() as server:
        url = f"nats+jetstream://127.0.0.1:1,127.0.0.1:{server.port}"
        async with closing(Cluster(JetStreamBroker, url)) as cluster:
            node = await cluster.node()
            await node.broker.publish(Subject(f"{cluster.prefix}.a"), b"hello")
