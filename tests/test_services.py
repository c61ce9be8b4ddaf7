"""The disposable servers start, die, come back on the same port, and leave nothing behind."""

import asyncio
import os
from pathlib import Path

import pytest

from tests.services import (
    NatsServer,
    RabbitServer,
    RedisServer,
    Server,
    SharedBrokers,
    speaks,
    until_closed,
)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def answers(server: Server, *, within: float = 2.0) -> bool:
    return speaks("127.0.0.1", server.port, server.hello, server.answer, within=within)


@pytest.mark.fault
@pytest.mark.parametrize("server_class", [RedisServer, NatsServer, RabbitServer])
async def test_a_server_dies_at_once_and_comes_back_on_its_port(server_class: type[Server]) -> None:
    config = ["vm_memory_high_watermark.absolute = 300MB"] if server_class is RabbitServer else []
    async with server_class(*config) as server:
        first = server.pid
        assert answers(server)
        await server.kill()
        await until_closed(server.port)
        assert not alive(first)
        await server.start()
        assert answers(server)
        assert server.pid != first
        assert server.starts == 2
        if isinstance(server, RabbitServer):  # here, because one more start would take seconds
            assert "guest" in await server.ctl("list_users")
            assert "300" in await server.ctl("environment")
        directory, last = server.directory, server.pid
    await until_closed(server.port)
    assert not os.path.lexists(directory)  # noqa: ASYNC240 - one stat
    assert not alive(last)


@pytest.mark.fault
@pytest.mark.parametrize("server_class", [RedisServer, NatsServer])
async def test_a_halted_server_is_silent_until_it_goes_on(server_class: type[Server]) -> None:
    async with server_class() as server:
        server.stop()
        await asyncio.to_thread(lambda: speaks("127.0.0.1", server.port, server.hello, server.answer, within=0.2))
        assert not await asyncio.to_thread(lambda: answers(server, within=0.2))
        server.cont()
        assert await asyncio.to_thread(lambda: answers(server))


@pytest.mark.fault
async def test_redis_takes_commands_and_settings() -> None:
    async with RedisServer("--client-output-buffer-limit", "pubsub 64kb 32kb 1") as server:
        assert await server.command("PING") == "+PONG"
        assert await server.command("CLIENT", "KILL", "TYPE", "pubsub") == ":0"
        assert "id=" in await server.command("CLIENT", "LIST")


def test_a_url_in_the_environment_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOMCAST_TEST_NATS_URL", "nats://example.invalid:1")
    assert SharedBrokers().url("nats") == "nats://example.invalid:1"


def silent(*_: object) -> bool:
    return False


def test_a_missing_broker_fails_where_brokers_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOMCAST_TEST_REDIS_URL", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("tests.services.speaks", silent)
    monkeypatch.setenv("ROOMCAST_TEST_REQUIRE", "1")
    with pytest.raises(pytest.fail.Exception, match="no redis-server installed"):
        SharedBrokers().url("redis")
    monkeypatch.setenv("ROOMCAST_TEST_REQUIRE", "0")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no redis-server installed"):
        SharedBrokers().url("redis")
