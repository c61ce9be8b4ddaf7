"""Who comes first, rule by rule; all of them together are the matter of `ticket_machine`."""

import pytest

from roomcast.core.tickets import AHEAD, Policy, Question, Rival, Ticket, Tickets, Verdict
from tests.core.ticket_machine import KEY


def claim(tickets: Tickets, sid: str, now: int, *peers: str, limit: int = 1, policy: Policy = "refuse") -> Ticket:
    """A claim that is under way."""
    ticket = Ticket(KEY, sid, "/", limit, policy)
    tickets.enter(ticket, peers, now)
    return ticket


def told(tickets: Tickets, origin: str, clock: int, sid: str = "other.1") -> list[Rival] | None:
    """What a node is told when it asks for a claim; None when it has to wait."""
    tickets.ask(Question(origin, 1, KEY, clock, sid))
    answers = [rivals for question, rivals in tickets.answers(KEY) if (question.origin, question.sid) == (origin, sid)]
    return answers[0] if answers else None


def test_rule_1_a_ticket_is_beyond_every_one_heard_of_and_follows_the_time() -> None:
    """ "A claim draws a ticket: a clock beyond every ticket that its node has heard of, and its sid." """
    tickets = Tickets("a")
    assert claim(tickets, "a.1", 1000).order == (1000, "a.1")
    assert claim(tickets, "a.2", 900).order == (1001, "a.2"), "the time of day went back"
    tickets.hear(5000, 1000)
    assert claim(tickets, "a.3", 1000).order == (5001, "a.3")
    tickets.hear(10, 1000)
    assert claim(tickets, "a.4", 6000).order == (6000, "a.4")


def test_rule_1_a_ticket_from_far_ahead_spoils_nothing() -> None:
    tickets = Tickets("a")
    tickets.hear(1000 + AHEAD, 1000)
    with pytest.raises(ValueError, match=r"differ by 2\.0 hours"):
        tickets.hear(1000 + 2 * AHEAD, 1000)
    assert claim(tickets, "a.1", 2000).clock == 1001 + AHEAD


def test_rule_2_a_node_that_leaves_is_no_longer_one_of_those_it_asks() -> None:
    """ "A claim is entered before anyone is asked, and is under way until it is held or dropped. It asks every node
    that its node knows at that moment, its own among them; a node that leaves is no longer one of those it asks."
    """
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1000, "b", "c")
    assert ticket.asked == {"a", "b", "c"}
    tickets.left("b")
    assert ticket.asked == {"a", "c"}
    assert told(tickets, "b", 500) == [Rival(1000, "a.1", held=False)], "back, and not asked any more"
    assert told(tickets, "c", 500) == []


def test_rule_2_what_a_node_that_leaves_has_asked_is_forgotten() -> None:
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1000)
    assert told(tickets, "b", 2000) is None
    assert told(tickets, "c", 2000, "c.1") is None
    tickets.left("b")
    assert tickets.waiting == 1
    tickets.drop(ticket)
    assert [question.origin for question, _ in tickets.answers(KEY)] == ["c"]


def test_rule_3_an_answer_waits_for_the_claims_that_came_first() -> None:
    """ "A node answers a question once none of its own claims of the key with a lower ticket is under way: with those
    it holds, and with those under way that do not ask the node that asks."
    """
    tickets = Tickets("a")
    first, second = claim(tickets, "a.1", 1000, "b"), claim(tickets, "a.2", 1001, "b")
    later = claim(tickets, "a.3", 3000, "b")
    other = Ticket("another key", "a.4", "/", 1, "refuse")
    tickets.enter(other, (), 1)
    assert told(tickets, "b", 2000) is None
    tickets.hold(first)
    assert tickets.answers(KEY) == []
    tickets.drop(second)
    assert [rivals for _, rivals in tickets.answers(KEY)] == [[Rival(1000, "a.1")]]
    assert tickets.waiting == 0
    assert told(tickets, "b", 2000) == [Rival(1000, "a.1")]
    assert told(tickets, "joined", 2000) == [Rival(1000, "a.1"), Rival(3000, "a.3", held=False)]
    tickets.hold(later)
    assert told(tickets, "b", 2000) == [Rival(1000, "a.1"), Rival(3000, "a.3")]


def test_rule_3_a_claim_does_not_wait_for_itself() -> None:
    tickets = Tickets("a")
    claim(tickets, "a.1", 1000)
    assert told(tickets, "a", 1000, "a.1") == []


def test_rule_3_asked_again_for_the_same_claim_only_the_last_question_is_answered() -> None:
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1000)
    for request in (1, 2):
        tickets.ask(Question("b", request, KEY, 2000 + request, "b.1"))
    assert tickets.waiting == 1
    tickets.drop(ticket)
    assert [question.request for question, _ in tickets.answers(KEY)] == [2]


def test_rule_3_only_so_many_questions_wait() -> None:
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1)
    for number in range(10_000):
        tickets.ask(Question("b", number, KEY, 2, f"b.{number}"))
    with pytest.raises(ValueError, match="claims wait"):
        tickets.ask(Question("b", 0, "another key", 2, "b.new"))
    tickets.ask(Question("b", 1, KEY, 3, "b.1"))
    tickets.drop(ticket)
    assert len(tickets.answers(KEY)) == 10_000
    assert tickets.waiting == 0
    assert tickets.answers("another key") == []


def test_rule_4_told_of_a_higher_ticket_a_claim_draws_a_new_one() -> None:
    """ "A claim that is told of a ticket higher than its own draws a new one beyond it, and asks again." """
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1000, limit=2)
    for higher in (Rival(1001, "b.1"), Rival(1001, "b.1", held=False), Rival(1000, "b.1")):
        assert tickets.judge(ticket, [higher]) == Verdict("again")
    ticket.policy = "evict_oldest"
    assert tickets.judge(ticket, [Rival(1, "c.1"), Rival(1001, "b.1")]) == Verdict("again"), "before anyone is evicted"
    tickets.hear(1001, 1000)
    tickets.draw(ticket, ("b",), 1000)
    assert (ticket.clock, ticket.asked) == (1002, {"a", "b"})


@pytest.mark.parametrize(
    ("limit", "policy", "verdict"),
    [
        (3, "refuse", Verdict("grant")),
        (2, "refuse", Verdict("refuse")),
        (3, "evict_oldest", Verdict("grant")),
        (2, "evict_oldest", Verdict("grant", (Rival(5, "z.1"),))),
        (1, "evict_oldest", Verdict("grant", (Rival(5, "z.1"), Rival(7, "b.1")))),
    ],
)
def test_rule_5_granted_while_fewer_than_the_limit_are_held(limit: int, policy: Policy, verdict: Verdict) -> None:
    """ "When all have answered, a claim is granted if fewer than `limit` are held. Else it is refused, or, with
    "evict_oldest", granted once the oldest ones beyond the limit are evicted."
    """
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1000, limit=limit, policy=policy)
    assert tickets.judge(ticket, [Rival(7, "b.1"), Rival(5, "z.1")]) == verdict


def test_rule_5_enough_that_are_held_refuse_a_claim_whatever_their_tickets() -> None:
    tickets = Tickets("a")
    assert tickets.judge(claim(tickets, "a.1", 1000), [Rival(2000, "b.1")]) == Verdict("refuse")


def test_rule_6_the_newest_are_surplus_or_the_oldest() -> None:
    """ "What two halves of a cluster granted apart is too much once they meet: the newest claims are surplus, or, with
    "evict_oldest", the oldest."
    """
    tickets = Tickets("a")
    oldest, middle, newest, undecided = Rival(1, "c.1"), Rival(2, "a.1"), Rival(3, "b.1"), Rival(4, "b.2", held=False)
    every = [newest, undecided, oldest, middle]
    for limit, surplus in [(1, [middle, newest]), (2, [newest]), (3, [])]:
        assert tickets.surplus(Ticket(KEY, "a.1", "/", limit, "refuse"), every) == surplus
    for limit, surplus in [(1, [oldest, middle]), (2, [oldest]), (3, []), (4, [])]:
        assert tickets.surplus(Ticket(KEY, "a.1", "/", limit, "evict_oldest"), every) == surplus


def test_what_is_dropped_leaves_nothing_behind() -> None:
    tickets = Tickets("a")
    ticket = claim(tickets, "a.1", 1000)
    other = Ticket("another key", "a.1", "/", 1, "refuse")
    tickets.enter(other, (), 1)
    tickets.hold(other)
    assert (len(tickets), tickets.of("a.1"), tickets.held()) == (2, [ticket, other], [other])
    for _ in range(2):
        tickets.drop(ticket)
    assert ticket not in tickets
    assert other in tickets
    again = claim(tickets, "a.1", 1000)
    tickets.drop(ticket)  # it is not this one
    assert again in tickets
    tickets.drop(again)
    tickets.drop(other)
    assert (len(tickets), tickets.of("a.1"), tickets.find(KEY, "a.1"), tickets.held()) == (0, [], None, [])
