"""Frames: every form of a packet, against the websocket library that real servers use."""

from typing import Any, cast

import pytest
from engineio import packet as eio_packet
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame as Reference
from websockets.frames import Opcode

from roomcast.core.frames import EioPacket, Frame
from tests.core.effort import effort

LENGTHS = [0, 1, 124, 125, 126, 127, 65_534, 65_535, 65_536, 70_000]


def eio(kind: int, data: Any = None) -> EioPacket:
    return cast("Any", eio_packet).Packet(kind, data)  # type: ignore[no-any-return]


def reference(part: str | bytes) -> bytes:
    """A message as python-engineio and a server without compression send it."""
    encoded = eio(eio_packet.MESSAGE, part).encode()
    kind = Opcode.TEXT if isinstance(part, str) else Opcode.BINARY
    payload = encoded.encode() if isinstance(encoded, str) else encoded
    return Reference(kind, payload).serialize(mask=False)


@given(st.lists(st.one_of(st.text(), st.binary(max_size=300)), min_size=1, max_size=4))
@effort(200)
def test_rule_2_the_bytes_are_those_that_a_server_would_write(parts: list[str | bytes]) -> None:
    frame = Frame(tuple(parts))
    assert frame.wire == b"".join(reference(part) for part in parts)
    assert frame.size == sum(len(part.encode() if isinstance(part, str) else part) for part in parts)


@pytest.mark.parametrize("length", LENGTHS)
def test_rule_2_at_each_length_of_the_header(length: int) -> None:
    assert Frame(("x" * length,)).wire == reference("x" * length)
    assert Frame((b"x" * length,)).wire == reference(b"x" * length)


def test_rule_1_a_form_is_made_once() -> None:
    frame = Frame(("event", b"attachment"))
    assert frame.wire is frame.wire
    assert frame.packets is frame.packets
    text, binary = frame.packets
    assert text is not None
    assert binary is not None
    assert text.encode() == "4event"
    assert (binary.encode(), binary.encode(b64=True), binary.encode()) == (
        b"attachment",
        "bYXR0YWNobWVudA==",
        b"attachment",
    )


@pytest.mark.parametrize("kind", range(7))
def test_rule_4_a_packet_of_engine_io_is_no_event_and_has_a_size(kind: int) -> None:
    packet = eio(kind, "x" * 100)
    frame = Frame.own(packet)
    assert frame.packets == (packet,)
    assert not frame.event
    assert frame.message == (kind == eio_packet.MESSAGE)
    assert frame.size == 100
    assert Frame.own(eio(kind)).size == Frame.own(None).size == 64
    assert frame.wire == Reference(Opcode.TEXT, f"{kind}{'x' * 100}".encode()).serialize(mask=False)
