"""The cursors of the examples: who reads a document sees who else does, and where their cursors are."""

from pathlib import Path
from typing import Any

import pytest
from socketio.exceptions import ConnectionError as RefusedError

from tests.adapter.servers import Client
from tests.examples.running import embedded, example


async def test_readers_on_different_processes_see_each_other_come_move_and_go(tmp_path: Path) -> None:
    async with example("cursors", embedded(tmp_path)) as cursors:
        ada = await cursors.client(0, auth={"name": "Ada"})
        bob = await cursors.client(1, auth={"name": "Bob"})
        assert await opened(ada, "plan") == {ada.sid: "Ada"}
        assert await opened(bob, "plan") == {ada.sid: "Ada", bob.sid: "Bob"}
        assert await ada.hear("came") == [("came", {"sid": bob.sid, "name": "Bob"})]

        await ada.emit("move", 0.25, 0.75)
        assert await bob.hear("moved") == [("moved", ada.sid, 0.25, 0.75)]
        await bob.emit("move", 1, 0)
        assert await ada.hear("moved") == [("moved", bob.sid, 1, 0)]  # and not her own

        assert await opened(bob, "draft") == {bob.sid: "Bob"}
        assert await ada.hear("went") == [("went", bob.sid)]
        assert await opened(bob, "plan") == {ada.sid: "Ada", bob.sid: "Bob"}
        await ada.hear("came")
        last = bob.sid
        await bob.aclose()
        assert await ada.hear("went") == [("went", last)]

        with pytest.raises(RefusedError):
            await cursors.client(1)


async def opened(client: Client, document: str) -> dict[str, str]:
    people: list[dict[str, Any]] = await client.socket.call("open", document, timeout=10)
    return {person["sid"]: person["name"] for person in people}
