"""The presence list of the examples: a friend is online while any tab of theirs is, wherever it is connected."""

from typing import Any

from tests.adapter.servers import Client
from tests.examples.running import Example, apart, example


async def test_friends_are_shown_as_they_come_and_go(redis_url: str) -> None:
    async with example("presence_list", apart(redis_url)) as app:
        bob = await tab(app, 1, "bob")
        ada = await tab(app, 0, "ada")
        await ada.emit("friends", ["bob", "eve"])
        assert await shown(ada, 2) == [{"user": "bob", "tabs": 1}, {"user": "eve", "tabs": 0}]

        second = await tab(app, 0, "bob")
        assert await shown(ada) == [{"user": "bob", "tabs": 2}]
        await bob.aclose()
        assert await shown(ada) == [{"user": "bob", "tabs": 1}]
        second.drop()
        assert await shown(ada) == [{"user": "bob", "tabs": 0}]

        await ada.emit("friends", ["eve"])
        assert await shown(ada) == [{"user": "eve", "tabs": 0}]
        await tab(app, 1, "bob")
        await tab(app, 1, "eve")
        assert await shown(ada) == [{"user": "eve", "tabs": 1}], "bob is shown no more"


async def tab(app: Example, process: int, user: str) -> Client:
    return await app.client(process, auth={"user": user})


async def shown(client: Client, friends: int = 1) -> list[dict[str, Any]]:
    """What is shown next, by name."""
    taken = [(await client.only("friend"))[1] for _ in range(friends)]
    return sorted(taken, key=lambda friend: str(friend["user"]))
