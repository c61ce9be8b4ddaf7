"""The table of live nodes, against dictionaries and a clock that is passed in."""

from dataclasses import replace
from typing import ClassVar

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from roomcast.core.messages import Heartbeat, Hello
from roomcast.core.peers import Peer, PeerJoined, PeerLeft, PeerRefused, Peers
from tests.core.effort import run

TIMEOUT = 10.5
NODES = ("a", "b", "c")
STRANGERS = ("p", "q")

nodes = st.sampled_from(NODES)


def hello(node: str, *, partitions: int = 0, started: float = 0.0, version: str = "1", heartbeat: float = 5.0) -> Hello:
    return Hello(f"host:{node}", started, partitions, heartbeat, answer=False, version=version)


class PeersMachine(RuleBasedStateMachine):
    """Nodes say hello, beat, fall silent, leave and come back, in any order, while this node is deaf at times."""

    make: ClassVar[type[Peers]] = Peers

    def __init__(self) -> None:
        super().__init__()
        self.real = self.make(partitions=0, timeout=TIMEOUT)
        self.now = 100
        self.heard: dict[str, int] = {}
        self.peer: dict[str, Peer] = {}
        self.awaited: set[str] = set()
        self.refused: dict[str, int] = {}

    def sign_of_life(self, node: str) -> None:
        if node in self.refused:
            self.refused[node] = self.now
        if node in self.heard:
            self.hear(node)
            self.awaited.discard(node)

    def hear(self, node: str) -> None:
        self.heard[node] = self.now
        self.peer[node] = replace(self.peer[node], heard=self.now)

    def drop(self, node: str) -> Peer | None:
        self.heard.pop(node, None)
        self.awaited.discard(node)
        return self.peer.pop(node, None)

    @rule(node=nodes, started=st.integers(0, 9), version=st.sampled_from("12"))
    def hello(self, node: str, started: int, version: str) -> None:
        news = self.real.hello(node, hello(node, started=started, version=version), self.now)
        if node in self.heard:
            assert news is None
            self.peer[node] = replace(self.peer[node], started=started, version=version)
        else:
            self.peer[node] = Peer(node, f"host:{node}", started, version, clients=0, rooms=0, heard=self.now)
            assert news == PeerJoined(self.peer[node])
            self.heard[node] = self.now
        self.sign_of_life(node)

    @rule(node=st.sampled_from(STRANGERS))
    def hello_of_a_stranger(self, node: str) -> None:
        news = self.real.hello(node, hello(node, partitions=64), self.now)
        assert isinstance(news, PeerRefused) is (node not in self.refused), "rule 4: told once"
        self.refused[node] = self.now

    @rule(node=st.sampled_from(NODES + STRANGERS))
    def something_arrives(self, node: str) -> None:
        self.real.heard(node, self.now)
        self.sign_of_life(node)

    @rule(node=st.sampled_from(NODES + STRANGERS), clients=st.integers(0, 5), rooms=st.integers(0, 5))
    def heartbeat(self, node: str, clients: int, rooms: int) -> None:
        known = self.real.heartbeat(node, Heartbeat(clients, rooms), self.now)
        assert known is (node in self.heard or node in self.refused), "an unknown node is asked for its hello"
        if node in self.heard:
            self.peer[node] = replace(self.peer[node], clients=clients, rooms=rooms)
        self.sign_of_life(node)

    @rule(node=st.sampled_from(NODES + STRANGERS))
    def bye(self, node: str) -> None:
        left = self.real.bye(node)
        self.refused.pop(node, None)
        peer = self.drop(node)
        assert left == (None if peer is None else PeerLeft(peer, "bye"))

    @rule()
    def tick(self) -> None:
        lost = [node for node, heard in self.heard.items() if self.now - heard > TIMEOUT]
        told = self.real.tick(self.now)
        assert len(told) == len(lost)
        assert {left.peer.id for left in told} == set(lost)
        for left in told:
            assert left == PeerLeft(self.peer[left.peer.id], "lost")
            self.drop(left.peer.id)
        self.refused = {node: heard for node, heard in self.refused.items() if self.now - heard <= TIMEOUT}

    @rule()
    def was_deaf(self) -> None:
        self.real.resume(self.now)
        for node in self.heard:
            self.hear(node)
        self.refused = dict.fromkeys(self.refused, self.now)

    @rule()
    def regroup(self) -> None:
        self.real.regroup()
        self.awaited = set(self.heard)

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def same(self) -> None:
        assert self.real.ids == self.heard.keys()
        assert len(self.real) == len(self.heard)
        assert self.real.awaited == self.awaited
        assert bool(self.real.refusal) is bool(self.refused)
        for node in NODES + STRANGERS:
            assert (node in self.real) is (node in self.heard)
        snapshot = self.real.snapshot()
        assert sorted(snapshot, key=lambda peer: peer.id) == [self.peer[node] for node in sorted(self.peer)]
        assert [peer.started for peer in snapshot] == sorted(peer.started for peer in snapshot), "oldest first"


def test_who_is_live_in_any_order_of_events() -> None:
    run(PeersMachine, 100)


@pytest.fixture
def peers() -> Peers:
    peers = Peers(partitions=0, timeout=10.0)
    peers.hello("a", hello("a"), 0.0)
    return peers


def test_rule_1_live_from_its_hello_and_lost_by_silence(peers: Peers) -> None:
    """ "A peer is live from its hello; anything heard from it keeps it alive; silent for `timeout` it is lost." """
    assert "a" in peers
    peers.heard("a", 8.0)
    assert peers.tick(17.0) == []
    assert [left.why for left in peers.tick(18.1)] == ["lost"]
    assert "a" not in peers
    assert peers.tick(99.0) == []


def test_rule_1_nobody_is_live_without_a_hello() -> None:
    peers = Peers(partitions=0, timeout=10.0)
    peers.heard("a", 0.0)
    assert not peers.heartbeat("a", Heartbeat(3), 0.0)
    assert "a" not in peers


def test_rule_2_a_bye_is_at_once(peers: Peers) -> None:
    """ "A peer that says bye is gone at once." """
    assert peers.bye("a") == PeerLeft(Peer("a", "host:a", 0.0, "1", clients=0, rooms=0, heard=0.0), "bye")
    assert (peers.ids, peers.bye("a")) == (frozenset(), None)


def test_rule_3_nobody_is_lost_by_our_own_deafness(peers: Peers) -> None:
    """ "While this node is deaf nobody is lost: `resume` counts everyone as heard, since the silence was ours." """
    peers.resume(100.0)
    assert peers.tick(109.0) == []


def test_rule_4_settings_that_cannot_work_are_refused() -> None:
    """ "A node whose first hello shows settings that cannot work with ours is refused, told once, and not live; it is
    refused until it leaves, or says a better hello."
    """
    peers = Peers(partitions=64, timeout=10.0)
    refused = peers.hello("a", hello("a", partitions=0), 0.0)
    assert isinstance(refused, PeerRefused)
    assert refused.id == "a"
    assert "host:a" in refused.reason
    assert "Give all nodes of a cluster the same broker URL" in refused.reason
    assert peers.hello("a", hello("a", partitions=0), 1.0) is None
    assert peers.heartbeat("a", Heartbeat(1), 1.0), "nor is it asked for a hello"
    assert "a" not in peers
    assert peers.refusal == refused.reason
    peers.bye("a")
    assert peers.refusal == ""
    assert isinstance(peers.hello("a", hello("a", partitions=0), 2.0), PeerRefused), "it left, and came back"


def test_rule_4_a_refused_node_that_falls_silent_has_left() -> None:
    peers = Peers(partitions=64, timeout=10.0)
    peers.hello("a", hello("a", partitions=0), 0.0)
    peers.heard("a", 8.0)
    assert peers.tick(17.0) == []
    assert peers.refusal
    assert peers.tick(18.1) == [], "it never was a peer"
    assert not peers.refusal


def test_a_flood_of_strangers_takes_no_more_memory_than_its_bound() -> None:
    peers = Peers(partitions=64, timeout=10.0)
    for number in range(2000):
        assert isinstance(peers.hello(f"n{number}", hello("n"), 0.0), PeerRefused)
    assert len(peers._refused) <= 1024  # pyright: ignore[reportPrivateUsage]  # memory shows nowhere else
    assert len(peers) == 0


def test_there_is_a_bound_on_live_peers_too() -> None:
    peers = Peers(partitions=0, timeout=10.0)
    joined = [peers.hello(f"n{number}", hello("n"), 0.0) for number in range(10_001)]
    assert joined[-1] is None
    assert len(peers) == sum(news is not None for news in joined) == 10_000
    assert "n10000" not in peers
    peers.heartbeat("n10000", Heartbeat(1), 0.0)
    assert len(peers) == 10_000


def test_rule_5_regroup_names_those_not_heard_yet(peers: Peers) -> None:
    """ "After an outage `regroup` names the peers not heard yet: those that have not come back, as far as we know." """
    peers.hello("b", hello("b"), 0.0)
    peers.hello("c", hello("c"), 0.0)
    assert peers.awaited == frozenset()
    peers.regroup()
    assert peers.awaited == {"a", "b", "c"}
    peers.heard("a", 1.0)
    peers.bye("b")
    assert peers.awaited == {"c"}
    peers.tick(50.0)
    assert peers.awaited == frozenset()


def test_a_heartbeat_says_how_many_clients_and_rooms_there_are(peers: Peers) -> None:
    assert peers.heartbeat("a", Heartbeat(7, 3), 1.0)
    assert peers.snapshot() == [Peer("a", "host:a", 0.0, "1", clients=7, rooms=3, heard=1.0)]
    peers.hello("a", hello("a", version="2"), 2.0)
    assert peers.snapshot() == [Peer("a", "host:a", 0.0, "2", clients=7, rooms=3, heard=2.0)], "no less known for it"


def test_who_left_is_told_as_it_was_when_last_heard(peers: Peers) -> None:
    peers.heartbeat("a", Heartbeat(7, 3), 1.0)
    (left,) = peers.tick(50.0)
    assert left == PeerLeft(Peer("a", "host:a", 0.0, "1", clients=7, rooms=3, heard=1.0), "lost")


def test_rule_4_a_better_hello_is_accepted() -> None:
    peers = Peers(partitions=64, timeout=10.0)
    assert isinstance(peers.hello("a", hello("a"), 0.0), PeerRefused)
    assert isinstance(peers.hello("a", hello("a", partitions=64), 1.0), PeerJoined)
    assert not peers.refusal
    assert peers.ids == {"a"}


def test_the_longest_window_of_those_who_are_there_is_known() -> None:
    peers = Peers(partitions=0, timeout=10.0)
    windows: list[float] = []
    for node, window in (("a", 5.0), ("b", 7.0), ("c", 0.0), ("b", 3.0)):
        peers.hello(node, msgspec.structs.replace(hello(node), window=window), 0.0)
        windows.append(peers.window)
    for node in "abc":
        peers.bye(node)
        windows.append(peers.window)
    assert windows == [5.0, 7.0, 7.0, 5.0, 3.0, 0.0, 0.0]


@pytest.mark.parametrize(("heartbeat", "patience"), [(1.0, 10.0), (8.0, 16.0), (1e9, 100.0)])
def test_a_peer_that_beats_slowly_is_given_two_of_its_own_beats_within_reason(
    heartbeat: float, patience: float
) -> None:
    peers = Peers(partitions=0, timeout=10.0)
    peers.hello("a", hello("a", heartbeat=heartbeat), 0.0)
    assert peers.tick(patience) == []
    assert [left.why for left in peers.tick(patience + 0.1)] == ["lost"]
