"""Coverage-guided fuzzing of everything that reads a payload of a stranger, with atheris.

    python -m tests.fuzz.fuzz_decode [corpus folder] -max_total_time=600

The arguments are libFuzzer's; without a bound of their own, a run ends after a minute. Anything that leaves the
decoders but `WireError` is a crash, and so is a packet that was let in and cannot be handed on.
"""

import importlib
import sys
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, cast


class Atheris(Protocol):
    """What is used of atheris, which has no annotations and is no dependency of this project."""

    def instrument_imports(self, include: Collection[str]) -> AbstractContextManager[None]: ...
    def Setup(self, argv: list[str], target: Callable[[bytes], None]) -> object: ...  # noqa: N802 - its name
    def Fuzz(self) -> None: ...  # noqa: N802 - its name


class Decoding(Protocol):
    """`tests.fuzz.decoding`, imported where its imports are watched."""

    def target(self, payload: bytes) -> None: ...
    def seeds(self) -> list[bytes]: ...


def main(arguments: list[str]) -> None:
    """Write the seeds into the corpus folder, if one is named, and fuzz until a bound is reached."""
    atheris = cast("Atheris", importlib.import_module("atheris"))
    with atheris.instrument_imports(
        include=["roomcast.core.wire", "roomcast.core.messages", "roomcast.core.packets", "socketio.packet"]
    ):
        decoding = cast("Decoding", importlib.import_module("tests.fuzz.decoding"))
    for folder in (Path(argument) for argument in arguments[1:] if not argument.startswith("-")):
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(decoding.seeds()):
            (folder / f"seed-{number:02}").write_bytes(seed)
    if not any(argument.startswith(("-max_total_time", "-runs")) for argument in arguments):
        arguments = [*arguments, "-max_total_time=60"]
    atheris.Setup(arguments, decoding.target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
