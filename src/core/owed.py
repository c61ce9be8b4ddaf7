"""The acknowledgements that clients of this node owe, and the nodes they owe them to.

1. A node that asks is told which clients were asked, before any of them can answer.
2. Each of them then acknowledges, once, or is taken for gone: when it leaves, when it owes more than `OWED`, or when
   its answer cannot travel. The node that asked is told in every case, so nothing there waits for ever; only when twice
   the outbox waits already it is not, which is counted and told as given up.
"""

from collections.abc import Sequence
from itertools import count
from typing import Any

from roomcast.core.acks import Acks
from roomcast.core.errors import EncodeError
from roomcast.core.messages import Ack, Expect
from roomcast.core.node import Node
from roomcast.core.packets import Packets
from roomcast.core.rooms import Client

SIDS = 100  # told in one message; it fits the smallest max_payload
OWED = 1000  # by one client; beyond it the oldest is given up


class Owed:
    """What the clients of one node owe.

    Args:
        node: the node they are clients of.
        acks: what this node itself waits for.
    """

    def __init__(self, node: Node, acks: Acks) -> None:
        self._node = node
        self._acks = acks
        self._numbers = count(1)  # one for each emit, so that all its clients can be given the same packet

    def ask(self, origin: str, request: int, asked: Sequence[Client]) -> int:
        """Note that `origin` asks these clients (rule 1); the number that the packet to them is to carry."""
        sids = tuple(client.sid for client in asked)
        if origin == self._node.id:
            self._acks.expect(request, origin, sids)
        else:
            for first in range(0, max(1, len(sids)), SIDS):
                more = first + SIDS < len(sids)
                self._node.answer(origin, Expect(request, sids[first : first + SIDS], more=more))
        number = next(self._numbers)
        for client in asked:
            client.acks = client.acks or {}
            client.acks[number] = (origin, request)
            if len(client.acks) > OWED:
                self._give_up(client, next(iter(client.acks)))
        return number

    def settle(self, client: Client, number: int, data: Sequence[Any], namespace: str, packets: Packets) -> Any:
        """A client acknowledged (rule 2): who waits for it, when that is on this node; else None.

        Raises:
            KeyError: the client does not owe this.
        """
        origin, request = (client.acks or {}).pop(number)
        if origin == self._node.id:
            return self._acks.answer(request, origin, client.sid)
        try:
            ack = Ack(request, client.sid, packets.ack(data, namespace, request))
        except EncodeError as exc:
            self._lost(origin, request, client, exc)
            return None
        if not self._node.answer(origin, ack) and not self._node.carries(ack):  # else too much waits, which is told
            self._lost(origin, request, client, EncodeError("It is larger than max_payload."))
        return None

    def drop(self, client: Client) -> None:
        """A client is gone (rule 2)."""
        for number in tuple(client.acks or ()):
            self._give_up(client, number)

    def _give_up(self, client: Client, number: int) -> None:
        origin, request = (client.acks or {}).pop(number)
        if origin == self._node.id:
            self._acks.gone(request, origin, client.sid)
        else:
            self._node.answer(origin, Ack(request, client.sid))

    def _lost(self, origin: str, request: int, client: Client, error: EncodeError) -> None:
        self._node.fault(f"an acknowledgement of client {client.sid} cannot travel to node {origin}", error)
        self._node.answer(origin, Ack(request, client.sid))
