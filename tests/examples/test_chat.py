"""The chat of the examples: what one says, the others of the room hear, on whatever process they are."""

from pathlib import Path

from tests.adapter.servers import Client
from tests.examples.running import Example, apart, embedded, example, example_on_aiohttp


async def test_people_on_different_processes_talk_without_a_broker_to_install(tmp_path: Path) -> None:
    async with example("chat", embedded(tmp_path)) as chat:
        await people_talk(chat)


async def test_the_same_chat_runs_on_aiohttp_and_redis(redis_url: str) -> None:
    async with example_on_aiohttp("chat_aiohttp", apart(redis_url)) as chat:
        await people_talk(chat)


async def people_talk(chat: Example) -> None:
    ada, bob, eve = await chat.client(0), await chat.client(1), await chat.client(1)
    processes = [await join(ada, "lobby"), await join(bob, "lobby"), await join(eve, "elsewhere")]
    assert processes[0] != processes[1] == processes[2]
    await ada.emit("say", "lobby", "hello")
    assert await bob.hear("said") == [("said", "hello")]
    await bob.emit("say", "lobby", "hello yourself")
    assert await ada.hear("said") == [("said", "hello yourself")]  # and not what she said
    await ada.emit("say", "elsewhere", "anyone here?")
    assert await eve.hear("said") == [("said", "anyone here?")]  # and nothing of the lobby


async def join(client: Client, room: str) -> int:
    process: int = await client.socket.call("join", room, timeout=10)
    return process
