"""What a load client says and hears: `bench/load_wire.py`."""

from itertools import pairwise
from typing import cast

import pytest
from bench.load_wire import (
    Cursor,
    EventStream,
    Handshake,
    ProtocolBroken,
    client_frame,
    payload,
    read_frame,
    server_frame,
)
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import Event
from websockets.server import ServerProtocol

SIZE = 20
STREAM = EventStream(40, SIZE)
LENGTH = STREAM.frame_length
PING = server_frame(b"2")
PONG = client_frame(b"3")


def event(number: int) -> bytes:
    return STREAM.data[number * LENGTH : (number + 1) * LENGTH]


def fed(*chunks: bytes) -> tuple[Cursor, bytes]:
    cursor = Cursor(STREAM)
    return cursor, b"".join(cursor.feed(chunk) for chunk in chunks)


def verdict(cursor: Cursor, until: int) -> tuple[int, int, int]:
    return cursor.lost(until), cursor.duplicated, cursor.reordered


def test_the_stream_is_what_a_server_sends() -> None:
    assert event(7) == server_frame(f'42["event","{payload(7, SIZE)}"]'.encode())
    assert len(payload(7, 200)) == 200


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536])
def test_frames_are_read_back_at_every_width_of_the_length(length: int) -> None:
    data = server_frame(bytes(length))
    frame = read_frame(b"x" + data, 1)
    assert frame is not None
    assert (frame.opcode, len(frame.payload), frame.end) == (1, length, 1 + len(data))
    assert all(read_frame(data[:cut]) is None for cut in (0, 1, len(data) - 1))


@pytest.mark.parametrize("head", [b"\x01\x00", b"\xc1\x00", b"\x81\x80"], ids=["fragment", "compressed", "masked"])
def test_a_frame_that_nobody_asked_for_is_refused(head: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        read_frame(head + bytes(8))


@given(st.integers(0, 40), st.lists(st.integers(0, 41 * LENGTH), max_size=12), st.sets(st.integers(0, 39)))
def test_rule_1_and_2_the_right_events_are_right_in_any_pieces_and_among_pings(
    events: int, cuts: list[int], pinged: set[int]
) -> None:
    data = b"".join((PING if number in pinged else b"") + event(number) for number in range(events))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    cursor, answers = fed(*(data[begin:end] for begin, end in pairwise(edges)))
    assert (cursor.next, cursor.rest) == (events, b"")
    assert verdict(cursor, events) == (0, 0, 0)
    assert answers == PONG * len(pinged & set(range(events)))


@given(st.lists(st.integers(0, 9), max_size=14), st.integers(1, 9))
def test_rule_2_events_out_of_turn_are_counted_as_a_model_counts_them(numbers: list[int], chunk: int) -> None:
    data = b"".join(event(number) for number in numbers)
    cursor, _ = fed(*(data[at : at + chunk] for at in range(0, len(data), chunk)))
    seen: set[int] = set()
    repeated = overtaken = 0
    for number in numbers:
        repeated += number in seen
        overtaken += number not in seen and any(number < other for other in seen)
        seen.add(number)
    assert verdict(cursor, 10) == (10 - len(seen), repeated, overtaken)


def test_an_end_that_never_came_is_lost() -> None:
    cursor, _ = fed(event(0) + event(1))
    assert verdict(cursor, 5) == (3, 0, 0)


def test_another_payload_than_was_sent_is_refused() -> None:
    wrong = event(0)[:-3] + b"?" + event(0)[-2:]
    with pytest.raises(ProtocolBroken, match="event 0"):
        fed(wrong)


def test_websocket_pings_are_answered_and_an_end_is_noticed() -> None:
    cursor, answers = fed(event(0) + server_frame(b"12", 0x9) + event(1) + server_frame(b"", 0x8))
    assert answers == client_frame(b"12", 0xA)
    assert cursor.closed
    assert cursor.next == 2


@given(st.integers(1, 400))
def test_the_handshake_satisfies_a_real_server_in_any_pieces(chunk: int) -> None:
    server, handshake = ServerProtocol(), Handshake()
    done: list[bool] = []

    def say(text: str) -> list[Event]:
        server.send_text(text.encode())
        return heard(server, handshake, chunk)

    (request,) = shake(server)
    assert isinstance(request, Request)
    assert heard(server, handshake, chunk) == []
    (answer,) = say('0{"sid":"x","upgrades":[],"pingInterval":25000,"pingTimeout":20000}')
    assert isinstance(answer, Frame)
    assert answer.data == b"40"
    done.append(handshake.done)
    assert say('40{"sid":"y"}') == []
    done.append(handshake.done)
    assert done == [False, True]


def test_what_comes_behind_the_handshake_is_kept_for_the_cursor() -> None:
    server, handshake = ServerProtocol(), Handshake()
    shake(server)
    server.send_text(b'40{"sid":"y"}')
    handshake.feed(b"".join(server.data_to_send()) + event(0)[:9])
    cursor, _ = fed(handshake.rest)
    assert cursor.pos == 9


def shake(server: ServerProtocol) -> list[Event]:
    """Let a server take the request and answer it."""
    server.receive_data(Handshake.request("127.0.0.1:1"))
    events = server.events_received()
    server.send_response(server.accept(cast("Request", events[0])))
    return events


def heard(server: ServerProtocol, handshake: Handshake, chunk: int) -> list[Event]:
    """Give what a server sends to a client, in pieces, and the server what the client answers."""
    data = b"".join(server.data_to_send())
    for at in range(0, len(data), chunk):
        if answer := handshake.feed(data[at : at + chunk]):
            server.receive_data(answer)
    return server.events_received()


def test_a_server_that_refuses_is_named() -> None:
    with pytest.raises(ProtocolBroken, match="403 Forbidden"):
        Handshake().feed(b"HTTP/1.1 403 Forbidden\r\n\r\n")
    server, handshake = ServerProtocol(), Handshake()
    shake(server)
    server.send_text(b'44{"message":"not welcome"}')
    with pytest.raises(ProtocolBroken, match="not welcome"):
        handshake.feed(b"".join(server.data_to_send()))
