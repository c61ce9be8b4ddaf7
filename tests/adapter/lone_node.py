"""One node in a process of its own: `python -m tests.adapter.lone_node URL PREFIX HEARTBEAT`.

It prints its port, puts every client into the room "red" and says its counters, as JSON, for each line it reads.
"""

import asyncio
import json
import sys

from tests.adapter.servers import Cluster, Node


async def main(url: str, prefix: str, heartbeat: float) -> None:
    node: Node = await Cluster(url, prefix).node(heartbeat=heartbeat, peer_timeout=2 * heartbeat)

    async def enter(sid: str, _environ: object) -> None:
        await node.sio.enter_room(sid, "red")

    node.sio.on("connect", enter)
    print(node.port, flush=True)  # noqa: T201 - for the process that started this one
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        health = node.adapter.health()
        print(json.dumps(node.adapter.stats() | {"ok": bool(health), "peers": health.peers}), flush=True)  # noqa: T201
    await node.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
