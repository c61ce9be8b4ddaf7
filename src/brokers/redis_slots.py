"""The map of a Redis Cluster: which slot a channel is in, and which server owns a slot.

A channel's slot is the CRC-16 (XMODEM) of its name, or of what stands in its first braces, modulo 16384
(Redis Cluster specification, "Key distribution model" and "Hash tags").

Pure: replies in, values out.
"""

from binascii import crc_hqx
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from roomcast.brokers.redis_servers import Address

SLOTS = 16384


def slot_of(channel: bytes) -> int:
    """The slot of a channel."""
    if b"{" in channel:
        tag, closed, _ = channel.partition(b"{")[2].partition(b"}")
        if closed and tag:
            channel = tag
    return crc_hqx(channel, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class Moved:
    """A server's word that another one owns a slot.

    Attributes:
        slot: the slot.
        owner: who owns it; None when the server does not know the owner's address.
    """

    slot: int
    owner: Address | None


def moved(text: str, asked: Address) -> Moved | None:
    """What an error such as `MOVED 3999 10.0.0.2:6379` says; None when it is another error.

    Args:
        text: of the error.
        asked: the server that answered it; its host is meant when none is named.
    """
    words = text.split()
    if len(words) != 3 or words[0] != "MOVED" or not words[1].isdigit():  # noqa: PLR2004 - the three words
        return None
    host, _, port = words[2].rpartition(":")
    if not port.isdigit() or host == "?":
        return Moved(int(words[1]) % SLOTS, None)
    return Moved(int(words[1]) % SLOTS, Address(host.strip("[]") or asked.host, int(port)))


@dataclass(frozen=True, slots=True)
class Claim:
    """A server's word that a node owns some slots.

    Attributes:
        first, last: the slots.
        node: its id.
        address: where it is.
        epoch: of its configuration; of two nodes that claim one slot, the one with the higher epoch owns it.
    """

    first: int
    last: int
    node: bytes
    address: Address
    epoch: int


def claims(slots: object, nodes: object, asked: Address) -> list[Claim] | None:
    """What the replies to CLUSTER SLOTS and CLUSTER NODES claim; None when they are no such replies.

    Args:
        slots: the first reply, as the client parsed it.
        nodes: the second.
        asked: the server that gave them; its host is meant where it does not know its own.
    """
    if not (isinstance(slots, list) and isinstance(nodes, bytes)):
        return None
    epochs = dict(_epochs(nodes))
    try:
        return list(_claims(cast("list[object]", slots), epochs, asked))
    except (TypeError, ValueError):
        return None


def _claims(slots: list[object], epochs: dict[bytes, int], asked: Address) -> Iterator[Claim]:
    for entry in slots:
        first, last, owner = cast("list[object]", entry)[:3]
        if not isinstance(owner, list):
            raise TypeError("no owner")
        host, port, node = cast("list[object]", owner)[:3]
        if not (isinstance(first, int) and isinstance(last, int) and isinstance(port, int) and isinstance(node, bytes)):
            raise TypeError("no range of slots")
        if not 0 <= first <= last < SLOTS:
            raise ValueError("no such slots")
        name = host.decode() if isinstance(host, bytes) else ""
        if name != "?":
            yield Claim(first, last, node, Address(name or asked.host, port), epochs.get(node, 0))


def _epochs(nodes: bytes) -> Iterator[tuple[bytes, int]]:
    """The configuration epoch of each node: the first and the seventh word of its line."""
    for line in nodes.splitlines():
        words = line.split(b" ")
        if len(words) > 6 and words[6].isdigit():  # noqa: PLR2004 - the seventh word
            yield words[0], int(words[6])
