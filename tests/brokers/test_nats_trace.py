"""Probes and their reports, over random networks of servers; and which server comes next."""

# pyright: reportPrivateUsage=false
# The twins have their mistakes inside.

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from roomcast.brokers.nats_servers import Server, Servers
from roomcast.brokers.nats_trace import Probe, Probes, Step
from tests.core.effort import effort


def report(headers: Mapping[str, str], server: str, hop: str, passed_on: dict[str, str], error: str = "") -> bytes:
    """What a server says that was reached by `hop` and passed the probe on: a name for each hop."""
    header = {name: [value] for name, value in headers.items()} | ({"Nats-Trace-Hop": [hop]} if hop else {})
    events: list[dict[str, Any]] = [
        {"type": "in", "kind": 1, "cid": 7},
        {"type": "eg", "kind": 0, "cid": 8, "sub": "x.probe", "queue": "N1"},
        *({"type": "eg", "kind": 1, "name": name, "hop": one} for one, name in passed_on.items()),
    ]
    if error:
        events.append({"type": "eg", "kind": 1, "name": "old", "error": error})
    return json.dumps({"server": {"name": server}, "request": {"header": header}, "events": events}).encode()


@st.composite
def networks(draw: st.DrawFn) -> dict[str, list[str]]:
    """The hops of a probe: which each one leads on to. "" is the first server."""
    hops = {"": list[str]()}
    for _ in range(draw(st.integers(0, 6))):
        parent = draw(st.sampled_from(sorted(hops)))
        hop = f"{parent}.{len(hops[parent]) + 1}".lstrip(".")
        hops[parent].append(hop)
        hops[hop] = []
    return hops


def name(hop: str) -> str:
    return f"server {hop}"


def check_whole(make: type[Probe], data: st.DataObject) -> None:
    """Rule 2: complete when the first server has reported, and each server that any report names; not before."""
    network = data.draw(networks())
    probe = make(name(""))
    said = data.draw(st.permutations(list(network.items())))
    for number, (hop, onward) in enumerate(said):
        out = {name(one) for one, _ in said[number:]}
        assert not probe.complete(frozenset()), "some reports are out"
        assert probe.complete(frozenset(out)), "all that are out are known to be silent (rule 4)"
        probe.add(hop, [Step(type="eg", kind=1, hop=one, name=name(one)) for one in onward])
    assert probe.complete(frozenset())


@given(data=st.data())
@effort(80)
def test_a_probe_is_complete_with_the_last_report(data: st.DataObject) -> None:
    check_whole(Probe, data)


class Counts(Probe):
    """Waits for as many reports as the first server passed probes on, and for no server behind those."""

    def complete(self, silent: frozenset[str]) -> bool:  # noqa: ARG002 - that is its mistake, or not
        first = [hop for hop in self._named if "." not in hop]
        return "" in self._reported and len(self._reported) >= len(first)


class TrustsTheFirst(Probe):
    """Takes the first server's word for the whole."""

    def complete(self, silent: frozenset[str]) -> bool:  # noqa: ARG002 - that is its mistake, or not
        return name("") not in self.missing


class NeverGivesUp(Probe):
    """Waits for silent servers too."""

    def complete(self, silent: frozenset[str]) -> bool:  # noqa: ARG002 - that is its mistake, or not
        return not self.missing


@pytest.mark.parametrize("twin", [Counts, TrustsTheFirst, NeverGivesUp])
def test_a_seeded_bug_is_caught(twin: type[Probe]) -> None:
    @given(data=st.data())
    @settings(effort(300), phases=[Phase.generate], derandomize=True, report_multiple_bugs=False)
    def run(data: st.DataObject) -> None:
        check_whole(twin, data)

    with pytest.raises(AssertionError):
        run()


def test_reports_belong_to_their_probe() -> None:
    probes = Probes("a")
    first, headers = probes.begin("echo")
    second, others = probes.begin("echo")
    assert headers["Nats-Trace-Dest"] == "echo"
    assert probes.read(report(others, "a", "", {"1": "b"})) is second
    assert probes.read(report(headers, "a", "", {})) is first
    assert first.complete(frozenset())
    assert second.missing == {"b"}
    probes.end(first)
    assert probes.read(report(headers, "a", "", {})) is None


def test_a_server_given_up_is_not_waited_for_until_it_reports() -> None:
    probes = Probes("a")
    probe, headers = probes.begin("echo")
    probes.read(report(headers, "a", "", {"1": "b", "2": "c"}))
    assert probes.give_up(probe) == {"b", "c"}
    assert probe.complete(probes.silent)
    probes.read(report(headers, "b", "1", {}))
    assert probes.silent == {"c"}
    later, headers = probes.begin("echo")
    probes.read(report(headers, "a", "", {"1": "b"}))  # c is not there any more
    probes.read(report(headers, "b", "1", {}))
    probes.end(later)
    assert probes.silent == frozenset()


def test_a_server_that_cannot_report_is_passed_over() -> None:
    probes = Probes("a")
    probe, headers = probes.begin("echo")
    assert not probes.blind
    probes.read(report(headers, "a", "", {}, error="remote does not support message tracing"))
    assert probe.complete(frozenset())
    assert probes.blind


def test_probes_that_are_never_reported_are_forgotten() -> None:
    probes = Probes("a")
    _, headers = probes.begin("echo")
    for _ in range(1000):
        probes.begin("echo")
    assert probes.read(report(headers, "a", "", {})) is None
    assert len(probes._under_way) <= 64


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"7",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"request": {"header": {"Roomcast-Probe": "1"}}}',
        b'{"request": {"header": {"Roomcast-Probe": ["1"]}}, "events": [{"hop": 7}]}',
        b'{"request": {"header": {"Roomcast-Probe": ["77"]}}, "events": []}',
    ],
)
def test_what_is_no_report_is_ignored(payload: bytes) -> None:
    probes = Probes("a")
    probe, _ = probes.begin("echo")
    assert probes.read(payload) is None
    assert probe.missing == {"a"}


def reverse(servers: list[Server]) -> None:
    servers.reverse()


def urls(servers: Servers, count: int) -> list[str]:
    return [servers.following().url for _ in range(count)]


def test_every_server_of_the_url_has_its_turn() -> None:
    servers = Servers(["nats://a:1", "nats://b:2", "nats://c:3"], reverse)
    assert urls(servers, 6) == ["nats://c:3", "nats://b:2", "nats://a:1"] * 2


def test_learnt_servers_come_after_those_of_the_url() -> None:
    servers = Servers(["nats://a:1"], reverse)
    servers.learn(["nats://a:1", "nats://x", "nats://[::1]:9"], servers.following())
    assert len(servers) == 3
    assert urls(servers, 4) == ["nats://a:1", "nats://[::1]:9", "nats://x:4222", "nats://a:1"]
    servers.learn([], Server("nats://a:1"))
    assert urls(servers, 2) == ["nats://a:1"] * 2


def test_hardly_anything_a_server_says_can_do_harm() -> None:
    servers = Servers(["nats://a:1"])
    servers.learn(
        ["nats://[::1", "nats://b:port", "nats://", *(f"nats://h{n}" for n in range(500))], Server("nats://a:1")
    )
    assert len(servers) <= 65


def test_a_bare_address_proves_the_name_that_led_to_it() -> None:
    servers = Servers(["tls://nats.example.org"])
    servers.learn(["tls://10.0.0.7:4222", "tls://n2.example.org:4222"], servers.following())
    learnt = {server.url: server for server in (servers.following() for _ in range(3))}
    assert learnt["tls://10.0.0.7:4222"].name == "nats.example.org"
    assert learnt["tls://n2.example.org:4222"].name is None
    servers.learn(["tls://10.0.0.8:4222"], learnt["tls://10.0.0.7:4222"])
    assert {server.name for server in (servers.following() for _ in range(2))} == {None, "nats.example.org"}
