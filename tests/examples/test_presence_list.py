"""The presence list of the examples: who is there first, then who comes and goes, on whatever process."""

from typing import Any

from tests.adapter.servers import Client
from tests.examples.running import Example, apart, example


async def test_who_is_there_and_who_comes_and_goes(redis_url: str) -> None:
    async with example("presence_list", apart(redis_url)) as room:
        ann, bob = await named(room, 0, "Ann"), await named(room, 1, "Bob")
        assert await entered(ann) == {ann.sid: "Ann"}
        assert await entered(bob) == {ann.sid: "Ann", bob.sid: "Bob"}
        assert (await ann.hear("arrived"))[-1] == ("arrived", "lobby", bob.sid, "Bob")
        cid = await named(room, 1, "Cid")
        assert await entered(cid) == {ann.sid: "Ann", bob.sid: "Bob", cid.sid: "Cid"}
        assert (await ann.hear("arrived"))[-1] == ("arrived", "lobby", cid.sid, "Cid")
        assert (await bob.hear("arrived"))[-1] == ("arrived", "lobby", cid.sid, "Cid")
        gone = bob.sid
        bob.drop()
        assert (await ann.hear("departed"))[-1] == ("departed", "lobby", gone)
        assert (await cid.hear("departed"))[-1] == ("departed", "lobby", gone)


async def named(room: Example, process: int, name: str) -> Client:
    return await room.client(process, auth={"name": name})


async def entered(client: Client) -> Any:
    return await client.socket.call("enter", "lobby", timeout=10)
