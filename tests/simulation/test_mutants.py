"""What the simulation is worth: each planted bug is found."""

import pytest

from tests.simulation.mutants import MUTANTS, Mutant

pytestmark = pytest.mark.teeth

SEEDS = 40
"""In how many seeds from its first one a bug must be found; that one finds it, until the plans change."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_simulation_finds(mutant: Mutant) -> None:
    assert mutant.hunt(first=mutant.first, seeds=SEEDS) is not None
