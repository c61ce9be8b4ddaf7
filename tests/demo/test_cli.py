"""The command line."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec

import pytest

from roomcast import cli


def test_it_knows_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"roomcast {importlib.metadata.version('roomcast')}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"]])
def test_it_helps(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    assert "usage: roomcast" in capsys.readouterr().out


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--nodes", "0"], ["--nodes", "three"], ["--port", "65536"], ["--port", "-1"]])
def test_a_number_that_cannot_be_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *arguments])
    assert ended.value.code == 2
    assert "whole number from" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find: Callable[[str], ModuleSpec | None] = importlib.util.find_spec

    def all_but_uvicorn(name: str) -> ModuleSpec | None:
        return None if name == "uvicorn" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", all_but_uvicorn)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == 'roomcast: The demo needs uvicorn: pip install "roomcast[demo]"\n'
