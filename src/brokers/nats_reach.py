"""The barrier of a cluster of NATS servers, for one link: it sends probes and waits for their reports.

1. `everywhere` returns once every server that the probes can reach has handled all that the link sent before.
2. A probe is sent again while its reports stay out: a server may have died with it, and then no longer counts.
3. A server that does not report within the patience of the call is given up, told as a gap, and not waited for until
   it reports again, or has left the cluster; then the gap is over.
4. Where servers do not trace, or no report comes at all, there is no such barrier, and `scope` says so.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Mapping

from roomcast.brokers.nats_trace import FIRST_TRACING, Probe, Probes
from roomcast.core.broker import Barrier, Gap, Subject

_logger = logging.getLogger(__name__)

_TRIES = 8
"""How often a probe is sent before the patience of a call ends."""
_SETTLE, _PAUSE = 0.25, 0.02
"""Seconds that the first node on a server looks for others, and between two looks."""
_VERSION = re.compile(r"(\d+)\.(\d+)\.")


class Reach:
    """What one link knows of the servers behind its own.

    Args:
        info: what the server says of itself.
        echo: the subject on which reports come back.
        send: publishes an empty message with these headers to the subject of probes.
        tell: told of a server that falls silent, and of its return.

    """

    def __init__(
        self,
        info: Mapping[str, object],
        echo: Subject,
        send: Callable[[Mapping[str, str]], None],
        tell: Callable[[Gap], None],
    ) -> None:
        self._echo = echo
        self._send = send
        self._tell = tell
        version = _VERSION.match(str(info.get("version", "")))
        numbers = [int(number) for number in version.groups()] if version else []
        self._able = self._traces = bool(info.get("headers")) and numbers >= FIRST_TRACING
        self._clustered = bool(info.get("cluster"))
        self._name = str(info.get("server_name", ""))
        self._probes = Probes(self._name)
        self._news: set[asyncio.Event] = set()
        self._others = False  # some server has passed a probe on
        self._lost = False

    @property
    def beyond(self) -> bool:
        """Whether other servers matter and can be asked: then an echo of this one is not enough."""
        return self._traces and (self._clustered or self._others)

    @property
    def scope(self) -> Barrier:
        """How far a barrier reaches (rule 4)."""
        return "server" if self._probes.blind or (self._clustered and not self._traces) else "cluster"

    def look(self) -> None:
        """Send a probe without waiting for it: a server that stood alone may have got a leaf node meanwhile."""
        if self._able:
            self._send(self._probes.begin(self._echo)[1])

    async def meet(self, patience: float) -> None:
        """What a new link begins with: meet the servers behind its own, or find that they cannot be asked (rule 4)."""
        if not self._traces:
            if self._clustered:
                self._warn("is too old to trace messages (2.11 is the first that does)")
            return
        await self.everywhere(patience, opening=True)

    async def settle(self, patience: float) -> None:
        """What the opening of a link ends with, where its server is the only one of the cluster that reports.

        The server may just have started, or a node on another server may just be starting: a little later, what they
        do not know of each other yet is there.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + _SETTLE
        while self.beyond and not (self._others or self._lost) and loop.time() < until:
            await asyncio.sleep(_PAUSE)
            await self.everywhere(patience)

    async def everywhere(self, patience: float, *, opening: bool = False) -> None:
        """Return once all that was sent before is handled everywhere (rules 1 to 3), or the link is lost.

        Args:
            patience: seconds that other servers get to report.
            opening: the link is new: if even its own server does not report, then because it does not trace. Later
                that is a matter of the watchdog.
        """
        if not self._traces:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        news = asyncio.Event()
        self._news.add(news)
        sent: list[Probe] = []
        try:
            while not self._lost:
                probe, headers = self._probes.begin(self._echo)
                sent.append(probe)
                self._send(headers)
                if await self._reported(sent, news, loop.time() + patience / _TRIES):
                    return
                if self._name in probe.missing:
                    if opening and loop.time() >= deadline + patience:
                        self._traces = False  # until a report comes after all
                        if self._clustered:
                            self._warn("does not trace messages (has it no system account?)")
                        return
                elif loop.time() >= deadline:
                    self._give_up(probe, patience)
                    return
        finally:
            self._news.discard(news)
            before = self._probes.silent
            for probe in sent:
                self._probes.end(probe)
            self._over(before)

    async def _reported(self, sent: list[Probe], news: asyncio.Event, until: float) -> bool:
        try:
            async with asyncio.timeout_at(until):
                while not self._lost and not any(probe.complete(self._probes.silent) for probe in sent):
                    news.clear()
                    await news.wait()
        except TimeoutError:
            return False
        return True

    def read(self, payload: bytes) -> None:
        """Take in what may be a report."""
        before = self._probes.silent
        probe = self._probes.read(payload)
        if probe is not None:
            self._traces = True
            self._others = self._others or len(probe.named) > 1
            for news in self._news:
                news.set()
        self._over(before)

    def lose(self) -> None:
        """Let nobody wait any longer: the link is lost."""
        self._lost = True
        for news in self._news:
            news.set()

    def _warn(self, why: str) -> None:
        _logger.warning(
            "NATS server %s %s: subscriptions reach the other servers of its cluster some moments after `subscribe` "
            "returns.",
            self._name,
            why,
        )

    def _give_up(self, probe: Probe, patience: float) -> None:
        for name in sorted(probe.missing - self._probes.silent):
            _logger.warning(
                "NATS server %s has not answered through its cluster for %.3g s. What is published there may not "
                "arrive here until it answers.",
                name,
                patience,
            )
            self._tell(Gap("missed", ongoing=True))
        self._probes.give_up(probe)

    def _over(self, before: frozenset[str]) -> None:
        for name in sorted(before - self._probes.silent):
            _logger.info("NATS server %s answers again, or has left the cluster.", name)
            self._tell(Gap("missed"))
