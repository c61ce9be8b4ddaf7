"""The machine of the tickets holds, and catches each of these mistakes."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest

from roomcast.core.tickets import Question, Rival, Ticket, Tickets, Verdict
from tests.core.effort import hunt, run
from tests.core.ticket_machine import ClaimsMachine


def test_no_two_clients_too_many_hold_a_key() -> None:
    run(ClaimsMachine, 300, steps=50)


# Twins with one realistic mistake each


class ForgetsTheOthersClocks(Tickets):
    """A ticket may be lower than one that its node has heard of."""

    def hear(self, clock: int, now: int) -> None:
        """Nothing."""


class WaitsForNobody(Tickets):
    """Claims under way are not in the answer, even if they came first."""

    def _answer(self, question: Question) -> list[Rival] | None:
        claims = self._keys.get(question.key, {}).values()
        return [Rival(*one.order) for one in claims if one.held and one.sid != question.sid]


class TrustsEveryoneToAsk(Tickets):
    """A claim under way that does not ask the one who asks is not told."""

    def _answer(self, question: Question) -> list[Rival] | None:
        rivals = super()._answer(question)
        return None if rivals is None else [rival for rival in rivals if rival.held]


class KeepsItsTicket(Tickets):
    """A claim goes on with its ticket, though one with a higher one does not ask it."""

    def judge(self, ticket: Ticket, rivals: Collection[Rival]) -> Verdict:
        verdict = super().judge(ticket, rivals)
        if verdict.outcome != "again":
            return verdict
        return super().judge(ticket, [Rival(0, rival.sid) for rival in rivals if rival.held])


class CountsTheLowerOnes(Tickets):
    """What is held with a higher ticket does not count."""

    def judge(self, ticket: Ticket, rivals: Collection[Rival]) -> Verdict:
        return super().judge(ticket, [rival for rival in rivals if rival.order < ticket.order])


class AdmitsOneMore(Tickets):
    """The limit itself is forgotten in the count."""

    def judge(self, ticket: Ticket, rivals: Collection[Rival]) -> Verdict:
        return super().judge(ticket, sorted(rivals, key=lambda rival: rival.order)[1:])


class DropsTheQuestion(Tickets):
    """A question that cannot be answered at once is forgotten."""

    def answers(self, key: str) -> list[tuple[Question, list[Rival]]]:
        ready = super().answers(key)
        for question in tuple(self._questions.get(key, {}).values()):
            self._forget(question)
        return ready


class WaitsForTheHigher(Tickets):
    """Two claims under way wait for each other."""

    def _answer(self, question: Question) -> list[Rival] | None:
        claims = self._keys.get(question.key, {}).values()
        return None if any(not one.held and one.sid != question.sid for one in claims) else super()._answer(question)


class RefusesForTheUndecided(Tickets):
    """A claim under way takes a place, though it may not get it."""

    def _answer(self, question: Question) -> list[Rival] | None:
        claims = self._keys.get(question.key, {}).values()
        return [
            Rival(*one.order)
            for one in claims
            if one.sid != question.sid and (one.held or one.order < (question.clock, question.sid))
        ]


class KeepsTheSurplus(Tickets):
    """What two sides granted apart stays granted."""

    @staticmethod
    def surplus(ticket: Ticket, rivals: Iterable[Rival]) -> list[Rival]:  # noqa: ARG004
        return []


FOCUS: dict[type[Tickets], str] = {
    TrustsEveryoneToAsk: "clients_claim node_joins_and_is_quick something_arrives all_to_and_from_a_node_arrives",
    KeepsTheSurplus: "clients_claim world_parts world_is_whole_again everything_arrives",
    ForgetsTheOthersClocks: "clients_claim much_arrives_from_one_node all_to_and_from_a_node_arrives",
}
"""The rules that a hunt needs, where it would be long with all of them."""


@pytest.mark.teeth
@pytest.mark.parametrize(
    "twin",
    [
        ForgetsTheOthersClocks,
        WaitsForNobody,
        TrustsEveryoneToAsk,
        KeepsItsTicket,
        CountsTheLowerOnes,
        AdmitsOneMore,
        DropsTheQuestion,
        WaitsForTheHigher,
        RefusesForTheUndecided,
        KeepsTheSurplus,
    ],
)
def test_the_machine_catches(twin: type[Tickets]) -> None:
    machine: Any = type("Twin", (ClaimsMachine,), {"make": twin})
    with pytest.raises(AssertionError):
        hunt(machine, FOCUS.get(twin, ""))
