"""The promises P1 to P9 hold whatever happens: a Hypothesis state machine over whole clusters."""

from typing import Any, ClassVar

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.cluster.machine import ClusterMachine, profile

pytestmark = pytest.mark.timeout(600)  # a failure takes its time to be shrunk


class SignedMachine(ClusterMachine):
    options: ClassVar[dict[str, Any]] = {"secret": "a secret of the tests", "freshness": 3600.0}


class PartitionedMachine(ClusterMachine):
    url: ClassVar[str] = "faulty://hub?partitions=8"


class ConfirmingMachine(ClusterMachine):
    options: ClassVar[dict[str, Any]] = {"confirm": True}


def test_a_cluster_keeps_its_promises() -> None:
    run_state_machine_as_test(ClusterMachine, settings=profile(examples=150))


def test_a_cluster_that_signs_keeps_its_promises() -> None:
    run_state_machine_as_test(SignedMachine, settings=profile(examples=40))


def test_a_cluster_with_partitions_keeps_its_promises() -> None:
    run_state_machine_as_test(PartitionedMachine, settings=profile(examples=60))


def test_a_cluster_that_waits_for_confirms_keeps_its_promises() -> None:
    run_state_machine_as_test(ConfirmingMachine, settings=profile(examples=40))
