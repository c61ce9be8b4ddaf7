"""The reference names what the code has, all of it and nothing else; and the lists of pages and modules are whole."""

import re
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import get_args

import pytest

from roomcast.core import errors
from roomcast.core.broker import Gap, GapReason
from roomcast.core.health import Health
from roomcast.core.options import Options, Recovery
from roomcast.core.stats import Stats

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def section(page: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    text = (DOCS / page).read_text()
    level = heading.index(" ")
    return re.split(rf"\n#{{1,{level}}} ", text[text.index(f"{heading}\n") + len(heading) :])[0]


def rows(text: str) -> list[str]:
    """The names in the first column of tables."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]


def names(kind: type) -> list[str]:
    return [one.name for one in fields(kind)]


def test_every_setting_stands_in_the_reference() -> None:
    assert set(rows(section("reference/settings.md", "# Settings").split("\n## ")[0])) == {*names(Options)} - {"given"}
    assert rows(section("reference/settings.md", "## Recovery")) == names(Recovery)


def test_every_parameter_of_a_broker_stands_in_the_reference() -> None:
    told = set(re.findall(r"`(\w+)`", section("reference/settings.md", "## The broker's own parameters")))
    brokers = [found.load() for found in entry_points(group="roomcast.brokers") if found.value.startswith("roomcast.")]
    assert brokers
    assert {name for broker in brokers for name in broker.parameters} - told == set()


def test_every_counter_stands_in_the_reference() -> None:
    text = section("reference/counters.md", "## `adapter.stats()`")
    counters, kinds = text.split("The kinds of `refused`")
    assert rows(counters) == names(Stats)
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    used = set(re.findall(r'WireError\(\s*"(\w+)"', source))
    assert used
    assert used <= set(rows(kinds)) == set(re.findall(r"`(\w+)`", counters.rpartition("by kind:")[2]))


def test_every_field_and_reason_of_a_gap_stands_in_the_reference() -> None:
    text = section("reference/counters.md", "## `adapter.on_gap(hook)`")
    assert sorted(rows(text)) == sorted(names(Gap))
    assert set(get_args(GapReason)) == set(re.findall(r"`(\w+)`:", text))


def test_every_field_of_health_stands_in_the_reference() -> None:
    assert set(names(Health)) <= set(re.findall(r"`(\w+)`", section("reference/counters.md", "## `adapter.health()`")))


def test_every_exception_stands_in_the_reference() -> None:
    raised = {name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception)}
    assert {*rows(section("reference/errors.md", "# Errors").split("\n## ")[0]), "RoomcastError"} == raised


@pytest.mark.parametrize(
    ("page", "pages"),
    [("index.md", ["tutorial", "how-to", "reference", "explanation"]), ("decisions/README.md", ["decisions"])],
)
def test_every_page_is_linked_where_pages_are_listed(page: str, pages: list[str]) -> None:
    listed = DOCS / page
    linked = {(listed.parent / link).resolve() for link in re.findall(r"\]\(([\w/.-]+\.md)\)", listed.read_text())}
    there = {path for folder in pages for path in (DOCS / folder).glob("*.md")}
    assert there - linked - {listed} == set()


def test_a_newcomer_is_told_of_every_module_of_the_core() -> None:
    told = (ROOT / "CONTRIBUTING.md").read_text()
    modules = [path.name for path in (ROOT / "src" / "core").glob("*.py") if path.name != "__init__.py"]
    assert [name for name in modules if not re.search(rf"[`/]{re.escape(name)}`", told)] == []
