"""What a node counts."""

import inspect
import json
import re
from dataclasses import fields

from roomcast.core.stats import Stats


def test_a_snapshot_is_plain_data_under_the_names_of_the_counters() -> None:
    stats = Stats()
    stats.missed += 3
    stats.refused["malformed"] += 2
    snapshot = stats.snapshot()
    assert list(snapshot) == [counter.name for counter in fields(Stats)]
    assert (snapshot["missed"], snapshot["refused"]) == (3, {"malformed": 2})
    assert type(snapshot["refused"]) is dict
    assert json.loads(json.dumps(snapshot)) == snapshot


def test_a_snapshot_does_not_change_any_more() -> None:
    stats = Stats()
    before = stats.snapshot()
    stats.gaps += 1
    stats.refused["stale"] += 1
    assert (before["gaps"], before["refused"]) == (0, {})
    assert stats.snapshot()["refused"] == {"stale": 1}


def test_every_counter_begins_at_nothing_and_is_explained() -> None:
    explained = re.findall(r"^    (\w+): ", inspect.getdoc(Stats) or "", re.MULTILINE)
    assert explained == [counter.name for counter in fields(Stats)]
    assert not any(Stats().snapshot().values())
