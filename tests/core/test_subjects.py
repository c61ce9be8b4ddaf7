"""Names on the wire."""

import os
import re
import subprocess
import sys
from collections import Counter
from enum import Enum, IntEnum, StrEnum
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from roomcast.core.errors import ConfigurationError
from roomcast.core.subjects import Room, Subjects, namespace_name, room_name, token
from tests.core.effort import effort

SRC = Path(__file__).parents[2] / "typings"
LONGEST = "p" * 32 + "." + "q" * 32
SAFE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")

texts = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(2**63), 2**64 - 1)
names: st.SearchStrategy[Room] = st.one_of(texts, integers, integers.map(str), texts.map(lambda text: text * 50))

NASTY: list[Room] = [
    "",
    "*",
    ">",
    "#",
    "?",
    "a.b",
    "a.>",
    "a b",
    "a\tb",
    "\r\nPUB x 0\r\n",
    "\x00",
    "[a-z]",
    "\\",
    "{}",
    "a/b",
    "a,b",
    "é",
    "e\u0301",
    "\U0001f600\U0001f468\u200d\U0001f469",
    "\u202e",
    "x" * 10_000,
    "x" * 10_001,
    "\U0001f600" * 10_000,
    "s",
    "sYQ",
    "a",
    "A",
    0,
    1,
    -1,
    "0",
    "1",
    "-1",
    "01",
    2**63,
    2**64 - 1,
    -(2**63),
    str(2**64 - 1),
]


@given(namespace=texts, room=names)
@effort(200)
def test_a_subject_holds_safe_tokens_and_at_most_200_characters(namespace: str, room: Room) -> None:
    """ "dot-separated tokens of `A-Za-z0-9_-`, at most 200 characters, prefix first" """
    for subjects in (Subjects(LONGEST), Subjects(LONGEST, 64)):
        for subject in (subjects.room("/" + namespace, room), subjects.namespace("/" + namespace), subjects.control):
            assert SAFE.fullmatch(subject)
            assert len(subject) <= 200
            assert subject.startswith(LONGEST + ".")


@pytest.mark.parametrize("room", NASTY)
def test_no_name_carries_a_wildcard_a_separator_or_a_line_end(room: Room) -> None:
    """ "no name can carry a wildcard, a separator or a line end into a broker's protocol" """
    subject = Subjects(LONGEST).room("/" + "n" * 10_000, room)
    assert SAFE.fullmatch(subject)
    assert len(subject) <= 200
    assert subject.count(".") == 4
    assert len(token(room)) <= 64


def test_different_nasty_names_have_different_subjects() -> None:
    subjects = Subjects("roomcast")
    assert len({subjects.room("/", room) for room in NASTY}) == len(NASTY)


@given(one=st.tuples(texts, names), other=st.tuples(texts, names))
@example(one=("", "1"), other=("", 1))
@example(one=("", "x" * 47), other=("", "x" * 48))
@example(one=("a", "b"), other=("", "ab"))
@effort(300)
def test_different_rooms_have_different_subjects(one: tuple[str, Room], other: tuple[str, Room]) -> None:
    assume(one != other)
    subjects = Subjects("roomcast")
    assert subjects.room(*one) != subjects.room(*other)


@given(texts)
@effort()
def test_a_text_and_a_number_stay_apart(text: str) -> None:
    """ "its first letter says what it was made from, so that the text "1" and the integer 1 stay apart" """
    assert token(text)[0] in "sh"
    assert token(len(text)) == f"i{len(text)}"


def test_the_kinds_of_subject_do_not_meet() -> None:
    subjects = Subjects("roomcast")
    assert subjects.control == "roomcast.control"
    assert subjects.inbox("N0de_-") == "roomcast.inbox.N0de_-"
    assert subjects.namespace("/") == "roomcast.all.sLw"
    assert subjects.room("/", 7) == "roomcast.room.sLw.i7"
    assert Subjects("a.b", 4).room("/", 7).startswith("a.b.part.")


@pytest.mark.parametrize("prefix", ["", "a.b.c", "a b", "a*", ".", "a.", ".a", "x" * 33, "a\n", "é", "a/b"])
def test_a_prefix_that_cannot_head_a_subject_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="one or two words"):
        Subjects(prefix)


class Colour(Enum):
    RED = "red"


class Text(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Named(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "not this"


@pytest.mark.parametrize(
    ("room", "name"),
    [(Text.RED, "red"), (Number.ONE, 1), (Named("x"), "x"), ("", ""), (-5, -5), (2**64 - 1, 2**64 - 1)],
)
def test_subclasses_go_by_their_value(room: object, name: Room) -> None:
    """ "`str` and `int`, and their subclasses by value" """
    travels = room_name(room)
    assert travels == name
    assert type(travels) in (str, int)


@pytest.mark.parametrize(
    ("room", "says"),
    [
        (True, "not by bool"),
        (b"red", "not by bytes"),
        (None, "not by NoneType"),
        (1.0, "not by float"),
        (("red",), "not by tuple"),
        (Colour.RED, r"not by Colour .*: pass its \.value\."),
        ("\ud800", "lone surrogate"),
        ("ok\udfff", "lone surrogate"),
        (2**64, "at most 64 bits, not 65"),
        (-(2**63) - 1, "at most 64 bits, not 64"),
    ],
)
def test_what_cannot_name_a_room_is_refused_at_the_call(room: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        room_name(room)


def test_a_message_does_not_repeat_a_long_name() -> None:
    with pytest.raises(TypeError) as refused:
        room_name(b"x" * 100_000)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("namespace", ["/", "/chat", "/a/b", "/é", "/with space", "/" + "x" * 1000])
def test_a_namespace_that_a_packet_can_carry(namespace: str) -> None:
    assert namespace_name(namespace) == namespace


@pytest.mark.parametrize(
    ("namespace", "error"),
    [
        ("", ValueError),
        ("chat", ValueError),
        ("/a,b", ValueError),
        (None, TypeError),
        (7, TypeError),
        ("/\ud800", TypeError),
    ],
)
def test_a_namespace_that_it_cannot(namespace: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        namespace_name(namespace)


@given(namespace=texts, room=names, partitions=st.integers(1, 1000))
@effort(50)
def test_every_partition_is_in_range(namespace: str, room: Room, partitions: int) -> None:
    """ "`<prefix>.part.<n>`: nodes with a member of any room that hashes to n" """
    head, number = Subjects("roomcast", partitions).room(namespace, room).rsplit(".", 1)
    assert head == "roomcast.part"
    assert 0 <= int(number) < partitions


def test_partitions_are_reasonably_even() -> None:
    subjects = Subjects("roomcast", 64)
    counts = Counter(subjects.room("/", f"room{number}") for number in range(6400))
    assert len(counts) == 64
    assert max(counts.values()) < 200
    assert min(counts.values()) > 30


def test_every_process_finds_the_same_subjects() -> None:
    """Python's own hash differs from process to process; a room's subject must not."""
    program = (
        "from roomcast.core.subjects import Subjects\n"
        "for parts in (None, 64):\n"
        "    s = Subjects('roomcast', parts)\n"
        "    print([s.room('/chat', room) for room in ('red', '', 1, '1', 'x' * 100, 'caf\\u00e9')])\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": str(SRC), "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(said) == 1
    assert "roomcast.room.sL2NoYXQ.scmVk" in said.pop(), "and so does every version: this is what is on the wire"
