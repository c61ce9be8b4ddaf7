"""What clients owe to nodes: each node that asks is told whom it waits for, and what became of each of them."""

from typing import Any, cast

import pytest

from roomcast.core.acks import Acks
from roomcast.core.errors import EncodeError
from roomcast.core.messages import Ack, Expect, Message
from roomcast.core.node import Node
from roomcast.core.owed import OWED, SIDS, Owed
from roomcast.core.packets import Packets
from roomcast.core.rooms import Client

HERE, FAR = "here", "far"


class Outgoing:
    """Stands in for a node: keeps what it is to answer.

    Attributes:
        said: (node, message), in order.
        refuses: whether no acknowledgement can be sent.
        small: whether one is small enough all the same.
        faults: what went wrong where no caller was to be told.
    """

    id = HERE

    def __init__(self) -> None:
        self.said: list[tuple[str, Message]] = []
        self.refuses = False
        self.small = False
        self.faults: list[BaseException] = []

    def answer(self, node: str, message: Message) -> bool:
        if self.refuses and isinstance(message, Ack) and message.packet is not None:
            return False
        self.said.append((node, message))
        return True

    def carries(self, _message: Message) -> bool:
        return self.small

    def fault(self, _what: str, error: BaseException) -> None:
        self.faults.append(error)


@pytest.fixture
def node() -> Outgoing:
    return Outgoing()


@pytest.fixture
def acks() -> Acks:
    return Acks()


@pytest.fixture
def owed(node: Outgoing, acks: Acks) -> Owed:
    return Owed(cast("Node", node), acks)


def clients(number: int) -> list[Client]:
    return [Client(f"s{index}", f"e{index}") for index in range(number)]


@pytest.mark.parametrize("asked", [0, 1, SIDS - 1, SIDS, SIDS + 1, 3 * SIDS])
def test_rule_1_who_asks_is_told_whom_before_any_of_them_can_answer(node: Outgoing, owed: Owed, asked: int) -> None:
    """ "A node that asks is told which clients were asked, before any of them can answer." """
    wanted = clients(asked)
    owed.ask(FAR, 7, wanted)
    expects = [message for _, message in node.said if isinstance(message, Expect)]
    assert node.said == [(FAR, Expect(7, expect.sids, expect.more)) for expect in expects]
    assert [sid for expect in expects for sid in expect.sids] == [client.sid for client in wanted]
    assert all(len(expect.sids) <= SIDS for expect in expects)
    assert [expect.more for expect in expects] == [True] * (len(expects) - 1) + [False], "also when there is nobody"


def test_rule_1_this_node_is_told_directly(node: Outgoing, owed: Owed, acks: Acks) -> None:
    request = acks.begin("waiter", [HERE])
    owed.ask(HERE, request, clients(2))
    assert node.said == []
    assert acks.missing(request) == {"s0", "s1"}


def test_rule_2_each_of_them_acknowledges_once(node: Outgoing, owed: Owed) -> None:
    """ "Each of them then acknowledges, once, or is taken for gone." """
    one, two = clients(2)
    number = owed.ask(FAR, 7, [one, two])
    node.said.clear()
    packets = Packets()
    assert owed.settle(one, number, ["yes", b"blob"], "/chat", packets) is None
    ((to, message),) = node.said
    assert isinstance(message, Ack)
    assert (to, message.request, message.sid) == (FAR, 7, "s0")
    assert message.packet is not None
    assert packets.ack_data(message.packet) == ["yes", b"blob"]
    with pytest.raises(KeyError):
        owed.settle(one, number, ["again"], "/chat", packets)
    with pytest.raises(KeyError):
        owed.settle(two, number + 1, ["never asked"], "/chat", packets)
    assert len(node.said) == 1


def test_rule_2_of_this_nodes_own_the_waiter_is_given_back(node: Outgoing, owed: Owed, acks: Acks) -> None:
    (one,) = clients(1)
    number = owed.ask(HERE, acks.begin("waiter", [HERE]), [one])
    assert owed.settle(one, number, [], "/", Packets()) == "waiter"
    assert len(acks) == 0
    assert node.said == []


def test_rule_2_who_leaves_is_gone_for_everyone_who_asked(node: Outgoing, owed: Owed, acks: Acks) -> None:
    (one,) = clients(1)
    owed.ask(FAR, 7, [one])
    owed.ask("other", 8, [one])
    owed.ask(HERE, acks.begin("waiter", [HERE]), [one])
    node.said.clear()
    owed.drop(one)
    assert node.said == [(FAR, Ack(7, "s0")), ("other", Ack(8, "s0"))]
    assert len(acks) == 0
    owed.drop(one)
    assert len(node.said) == 2


def test_rule_2_who_owes_too_much_is_taken_for_gone(node: Outgoing, owed: Owed) -> None:
    """ "when it owes more than `OWED`": the oldest is given up, and the node that asked is told."""
    (one,) = clients(1)
    numbers = [owed.ask(FAR, request, [one]) for request in range(1, OWED + 3)]
    gone = [message for _, message in node.said if isinstance(message, Ack)]
    assert gone == [Ack(1, "s0"), Ack(2, "s0")]
    assert len(one.acks or ()) == OWED
    with pytest.raises(KeyError):
        owed.settle(one, numbers[0], [], "/", Packets())
    assert owed.settle(one, numbers[-1], [], "/", Packets()) is None


@pytest.mark.parametrize("way", ["too large", "no data"])
def test_rule_2_an_answer_that_cannot_travel_is_told_as_none(node: Outgoing, owed: Owed, way: str) -> None:
    (one,) = clients(1)
    number = owed.ask(FAR, 7, [one])
    node.said.clear()
    node.refuses = way == "too large"
    data: list[Any] = ["x"] if node.refuses else [object()]
    assert owed.settle(one, number, data, "/", Packets()) is None
    assert node.said == [(FAR, Ack(7, "s0"))]
    (fault,) = node.faults
    assert isinstance(fault, EncodeError)


def test_rule_2_an_answer_for_which_there_is_no_place_is_no_fault(node: Outgoing, owed: Owed) -> None:
    """ "Only when twice the outbox waits already it is not, which is counted and told as given up." """
    (one,) = clients(1)
    number = owed.ask(FAR, 7, [one])
    node.said.clear()
    node.refuses = node.small = True
    assert owed.settle(one, number, ["x"], "/", Packets()) is None
    assert node.said == []
    assert node.faults == []


def test_all_clients_of_one_emit_can_be_given_the_same_packet(owed: Owed) -> None:
    one, two = clients(2)
    first = owed.ask(FAR, 7, [one, two])
    assert one.acks == two.acks == {first: (FAR, 7)}
    assert owed.ask(FAR, 8, [one]) != first


def test_no_table_is_made_for_who_owes_nothing() -> None:
    assert Client("s", "e").acks is None
