"""The map of a Redis Cluster."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roomcast.brokers.redis_servers import Address
from roomcast.brokers.redis_slots import SLOTS, Claim, Moved, claims, moved, slot_of

ASKED = Address("asked", 7000)


@pytest.mark.parametrize(
    ("channel", "slot"),
    [
        (b"123456789", 0x31C3),  # the specification's own example
        (b"foo", 12182),
        (b"", 0),
        (b"{user1000}.following", slot_of(b"user1000")),
        (b"foo{}{bar}", 8363),
        (b"foo{{bar}}zap", slot_of(b"{bar")),
        (b"foo{bar}{zap}", slot_of(b"bar")),
        (b"foo{bar", slot_of(b"foo{bar")),
    ],
)
def test_the_slot_of_a_channel_is_that_of_the_specification(channel: bytes, slot: int) -> None:
    assert slot_of(channel) == slot


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM bit by bit, as the specification defines it."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
    return crc & 0xFFFF


@given(st.text("ABCXYZabcxyz0189_-.", max_size=200))
def test_the_slot_of_a_subject_is_its_crc(subject: str) -> None:
    assert slot_of(subject.encode()) == crc16(subject.encode()) % SLOTS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("MOVED 3999 10.0.0.2:6381", Moved(3999, Address("10.0.0.2", 6381))),
        ("MOVED 3999 :6381", Moved(3999, Address("asked", 6381))),
        ("MOVED 3999 ?:0", Moved(3999, None)),
        ("MOVED 3999 fe80::1:6381", Moved(3999, Address("fe80::1", 6381))),
        ("MOVED 3999 host", Moved(3999, None)),
        ("MOVED x host:1", None),
        ("MOVED", None),
        ("NOPERM 3999 10.0.0.2:6381", None),
    ],
)
def test_a_refusal_says_who_owns_the_slot(text: str, says: Moved | None) -> None:
    assert moved(text, ASKED) == says


def entry(first: int, last: int, host: bytes | None, port: int, node: bytes = b"id") -> list[object]:
    return [first, last, [host, port, node, []], [b"replica", 1, b"other", []]]


def line(node: bytes, epoch: int) -> bytes:
    return b"%b 10.0.0.1:7000@17000,host master - 0 1426238317239 %d connected 0-1 5\n" % (node, epoch)


@given(st.lists(st.integers(1, SLOTS - 1), max_size=8, unique=True))
def test_ranges_become_claims_with_the_epochs_of_their_nodes(cuts: Sequence[int]) -> None:
    bounds = [0, *sorted(cuts), SLOTS]
    ranges = [(first, last - 1) for first, last in pairwise(bounds)]
    numbered = list(enumerate(ranges))
    slots = [entry(first, last, b"h%d" % number, 7000 + number, b"id%d" % number) for number, (first, last) in numbered]
    nodes = b"".join(line(b"id%d" % number, 100 + number) for number, _ in numbered)
    assert claims(slots, nodes, ASKED) == [
        Claim(first, last, b"id%d" % number, Address(f"h{number}", 7000 + number), 100 + number)
        for number, (first, last) in numbered
    ]


def test_who_is_not_named_is_who_was_asked_and_who_is_not_known_claims_nothing() -> None:
    told = claims([entry(0, 0, None, 1), entry(1, 1, b"", 2), entry(2, 2, b"?", 0)], b"", ASKED)
    assert told == [Claim(0, 0, b"id", Address("asked", 1), 0), Claim(1, 1, b"id", Address("asked", 2), 0)]


NO_MAPS: list[object] = [
    *(None, b"OK", 1, [1], [[0, 1]], [[0, 1, b"host"]], [[0, 1, []]], [[0, 1, [b"h", 1]]]),
    *([[b"0", 1, [b"h", 1, b"id"]]], [[0, SLOTS, [b"h", 1, b"id"]]], [[0, 1, [b"h", b"1", b"id"]]]),
]


@pytest.mark.parametrize("reply", NO_MAPS)
def test_what_is_no_map_is_none(reply: object) -> None:
    assert claims(reply, b"", ASKED) is None
    assert claims([], None, ASKED) is None
