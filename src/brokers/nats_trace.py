"""Whether every server of a NATS cluster has handled what one connection has sent: probes, and their traces.

A server tells its routes of a new subscription and does not wait for them, so an echo through one server says
nothing of the others. A **probe** does: a message to a subject that every node hears, marked to be traced and not
delivered (`Nats-Trace-Only`). Each server that handles it reports to whoever sent it, and names the servers that it
passed the probe on to, each by a **hop** of its own.

1. Between two servers, subscriptions and messages of one account travel over one connection, in order. So a report of
   another server proves two things: that it has handled all that went to it before the probe, and, because the report
   comes back the same way, that all it had sent before has been handled here.
2. A probe is complete when the first server has reported, and each server that any report names.
3. A server that cannot report (NATS before 2.11) is passed over, and makes the proof partial.
4. So is a server that has been given up as silent, until it reports again.
5. Anything may arrive in place of a report; what is none is ignored.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

FIRST_TRACING: Final = [2, 11]
"""The version of NATS that began to report."""
_PROBE = "Roomcast-Probe"
_HOP = "Nats-Trace-Hop"
_KEPT = 64
"""Probes that are remembered: reports of older ones only show that a server speaks again."""


class _Request(msgspec.Struct):
    header: dict[str, list[str]] = {}


class _Server(msgspec.Struct):
    name: str = ""


class Step(msgspec.Struct):
    """What one server did with a probe: here, passed it on to another one, or could not."""

    type: str = ""
    kind: int = 0
    hop: str = ""
    name: str = ""
    error: str = ""


class _Report(msgspec.Struct):
    request: _Request
    server: _Server = msgspec.field(default_factory=_Server)
    events: list[Step] = []


_decode = msgspec.json.Decoder(_Report).decode
_SERVERS = frozenset({1, 2, 4})  # kinds of a step: a route, a gateway, a leaf node


class Probe:
    """One probe and the reports that have come of it.

    Args:
        first: the name of the server that the probe is sent to.
    """

    def __init__(self, first: str) -> None:
        self._named: dict[str, str] = {"": first}  # the server of each hop that must report
        self._reported: set[str] = set()

    @property
    def named(self) -> frozenset[str]:
        """The names of all servers that the probe has gone to, as far as reported."""
        return frozenset(self._named.values())

    @property
    def missing(self) -> frozenset[str]:
        """The names of the servers that have not reported."""
        return frozenset(name for hop, name in self._named.items() if hop not in self._reported)

    def complete(self, silent: frozenset[str]) -> bool:
        """Whether all have reported (rules 2 and 4)."""
        return self.missing <= silent

    def add(self, hop: str, steps: list[Step]) -> None:
        """Take in one report; reports come in any order."""
        self._reported.add(hop)
        for step in steps:
            if step.hop and not step.error:
                self._named[step.hop] = step.name


class Probes:
    """The probes of one connection.

    Args:
        first: the name of the server at the other end of it.

    Attributes:
        silent: names of servers that are not waited for, because they did not report in time.
        blind: some server cannot report, so that no probe proves anything of it (rule 3).
    """

    def __init__(self, first: str) -> None:
        self._first = first
        self._last = 0
        self._under_way: dict[str, Probe] = {}
        self.silent: frozenset[str] = frozenset()
        self.blind = False

    def begin(self, destination: str) -> tuple[Probe, Mapping[str, str]]:
        """A new probe, and the headers of the message to send for it; reports go to `destination`."""
        self._last += 1
        probe = self._under_way[str(self._last)] = Probe(self._first)
        while len(self._under_way) > _KEPT:
            self._under_way.pop(next(iter(self._under_way)))
        return probe, {"Nats-Trace-Dest": destination, "Nats-Trace-Only": "true", _PROBE: str(self._last)}

    def end(self, probe: Probe) -> None:
        """Forget a probe that nobody waits for any longer; silent servers that it did not go to have left."""
        if probe.complete(self.silent):
            self.silent &= probe.named
        self._under_way = {number: other for number, other in self._under_way.items() if other is not probe}

    def read(self, payload: bytes) -> Probe | None:
        """Take in what may be a report; the probe that it belongs to."""
        try:
            report = _decode(payload)
        except (msgspec.DecodeError, RecursionError):
            return None  # rule 5
        header = report.request.header
        self.silent -= {report.server.name}
        probe = self._under_way.get("".join(header.get(_PROBE, [])))
        if probe is not None:
            probe.add("".join(header.get(_HOP, [])), report.events)
            self.blind = self.blind or any(step.kind in _SERVERS and step.error for step in report.events)
        return probe

    def give_up(self, probe: Probe) -> frozenset[str]:
        """Wait no longer for the servers that have not reported; their names."""
        missing = probe.missing
        self.silent |= missing
        return missing
