"""Official JavaScript clients that come back, as a test sees them: `tests/js/returning.mjs`."""

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from roomcast.core.tail import read_place
from tests.demo.running import JS, Program
from tests.waiting import until

Event = tuple[Any, ...]


class Returning:
    """Clients in one process of Node.js: `async with Returning(node_js, url, ada={"room": "red"}) as clients`.

    Each connects as `websocket` to "/" unless `transport` or `namespace` say otherwise; the rest is its `auth`.
    """

    def __init__(self, node_js: str, url: str, **clients: Mapping[str, Any]) -> None:
        self.names = tuple(clients)
        wanted = {
            name: {
                "transports": [client.get("transport", "websocket")],
                "namespace": client.get("namespace", "/"),
                "auth": {key: text for key, text in client.items() if key not in ("transport", "namespace")},
            }
            for name, client in clients.items()
        }
        self._program = Program([node_js, str(JS / "returning.mjs"), url, json.dumps(wanted)])
        self._read = 0
        self._news: dict[str, list[dict[str, Any]]] = {name: [] for name in clients}
        self._places: dict[str, tuple[str, int]] = {}

    async def __aenter__(self) -> Self:
        await self._program.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._program.__aexit__(kind, error, trace)

    async def connected(self, *names: str) -> dict[str, tuple[str, bool]]:
        """The next connection of each client, or of those named: its id, and whether it was recovered."""
        found = {name: await self._next(name, "connected") for name in names or self.names}
        return {name: (one["connected"], one["recovered"]) for name, one in found.items()}

    async def lost(self, *names: str) -> None:
        """Return once each client, or those named, has noticed that its connection is gone."""
        for name in names or self.names:
            await self._next(name, "lost")

    async def heard(self, name: str, last: str) -> list[Event]:
        """What a client heard since the last call and before the event `last`, without the places; checks those.

        Each event has one, and they grow, so none came twice.
        """
        events: list[Event] = []
        while not events or events[-1][0] != last:
            *event, place = (await self._next(name, "heard"))["heard"]
            read = read_place(place)
            assert read is not None, f"{event} came with {place!r} for a place"
            before = self._places.get(name)
            assert before is None or read[0] != before[0] or read[1] > before[1], f"{event} came out of order"
            self._places[name] = read
            events.append(tuple(event))
        return events[:-1]

    async def _next(self, name: str, kind: str) -> dict[str, Any]:
        """The next happening of a kind."""
        news = self._news[name]

        def found() -> int | None:
            self._take_in()
            return next((index for index, one in enumerate(news) if kind in one), None)

        await until(
            lambda: found() is not None or self._program.process.returncode is not None,
            what=f"{name} says {kind!r}; it said {news[-5:]}",
        )
        index = found()
        assert index is not None, self._program.output
        return news.pop(index)

    def _take_in(self) -> None:
        end = self._program.output.rfind("\n") + 1
        for line in self._program.output[self._read : end].splitlines():
            happening = json.loads(line)
            self._news[happening.pop("client")].append(happening)
        self._read = max(self._read, end)
