"""What the how-to guides, and the README, print of the cluster API runs as it is printed, on two nodes.

Blocks that begin with a decorator are what every process runs, before it has clients; the others run on one node.
"""

import ast
import asyncio
import contextlib
import inspect
import os
import re
from pathlib import Path
from types import CodeType
from typing import Any
from uuid import uuid4

import pytest

import roomcast
from tests.adapter.servers import Client, Cluster, Node, serving

ROOT = Path(__file__).parents[2]

GUIDES = ("address-clients", "collect-acks", "find-clients", "move-clients", "talk-between-servers", "nodes")
RECOVER = "docs/how-to/recover-connections.md"


@pytest.mark.parametrize("page", [*(f"docs/how-to/{guide}.md" for guide in GUIDES), RECOVER, "README.md"])
async def test_a_guide_runs_as_it_is_printed(page: str) -> None:
    printed = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    blocks = [block for block in printed if not block.startswith("import")]  # that one is a whole program
    everywhere = [block for block in blocks if block.startswith("@")]
    once = [block for block in blocks if not block.startswith("@")]
    assert blocks
    scheme, recovery = ("memory+log", roomcast.Recovery()) if page == RECOVER else ("memory", None)
    async with serving(f"{scheme}://m{uuid4().hex[:12]}") as cluster:
        nodes = cluster.unstarted(recovery=recovery), cluster.unstarted(recovery=recovery)
        for node in nodes:
            await run(everywhere, names(node))
            await node.start()
        await cluster.meet()
        sid = await people(cluster, *nodes)
        await run(once, names(nodes[0]) | {"sid": sid, "x": 0.25, "y": 0.75})
        assert [node.adapter.stats()["faults"] for node in nodes] == [0, 0]


async def people(cluster: Cluster, here: Node, there: Node) -> str:
    """Clients of both nodes in the rooms that the guides name; the sid of one who is not on the first."""
    crew = [await member(node, "lobby", "crew", "drivers") for node in (here, there)]
    silent = await member(there, "lobby")
    silent.socket.on("ready?", never)
    await member(there, "banned")
    await cluster.meet()
    return crew[1].sid


async def member(node: Node, *rooms: str) -> Client:
    client = await node.client(auth={"user": "ada"})
    client.answers["ready?"] = "yes"
    await node.sio.save_session(client.sid, {"user": "ada"})
    for room in rooms:
        await node.sio.enter_room(client.sid, room)
    return client


async def never(*_args: object) -> None:
    await asyncio.Event().wait()


def names(node: Node) -> dict[str, Any]:
    """What a snippet takes for granted, besides the standard library."""
    here = {"adapter": node.adapter, "sio": node.sio, "print": quiet, "load_state": list}
    return here | {"roomcast": roomcast, "contextlib": contextlib, "os": os}


def quiet(*_shown: object) -> None:
    """A `print` that shows nothing."""


async def run(blocks: list[str], scope: dict[str, Any]) -> None:
    """Run code that may await at its top level."""
    for block in blocks:
        code: CodeType = compile(block, "a guide", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, scope)  # noqa: S307 - our own pages
        if inspect.isawaitable(result):
            await result


def test_the_reference_has_everything_that_is_exported() -> None:
    shown = re.findall(r"^::: roomcast\.(\w+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    assert set(shown) >= set(roomcast.__all__)
