"""The command `roomcast`: argparse, because it is there, and the demo's dependencies only when the demo is run."""

import argparse
import asyncio
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence

_NEEDED = ("uvicorn", "websockets", "aiohttp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0 for well, 1 for a failure that was told, 2 for a wrong command line."""
    parser = _parser()
    order = parser.parse_args(arguments)
    if order.command is None:
        parser.print_help()
        return 2
    port = order.port if order.port is not None else 0 if order.check else 8000
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f'The demo needs {", ".join(missing)}: pip install "roomcast[demo]"')
    if sys.platform == "win32":
        return _fail("The demo needs a POSIX system (Linux, macOS, WSL).")
    from roomcast.demo import DemoError  # noqa: PLC0415 - `roomcast --version` needs none of it
    from roomcast.demo.run import Order, run  # noqa: PLC0415

    try:
        return asyncio.run(run(Order(order.nodes, order.broker, order.host, port, order.check)))
    except DemoError as exc:
        return _fail(str(exc))


def _fail(sentence: str) -> int:
    print(f"roomcast: {sentence}", file=sys.stderr)  # noqa: T201 - a command speaks
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="roomcast", description="Socket.IO on many Python processes.")
    version = importlib.metadata.version("roomcast")
    parser.add_argument("--version", action="version", version=f"roomcast {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="run a chat on several processes of this machine",
        description="Run a chat on several real processes of this machine, behind one address.",
    )
    demo.add_argument("--nodes", type=_between(1, 32), default=3, metavar="N", help="how many processes (3)")
    demo.add_argument("--broker", default="embedded://", metavar="URL", help="what joins them (embedded://)")
    demo.add_argument("--host", default="127.0.0.1", help="the address to listen on (127.0.0.1)")
    demo.add_argument(
        "--port", type=_between(0, 65535), help="the port to listen on, 0 for any free one (8000; with --check 0)"
    )
    demo.add_argument("--check", action="store_true", help="try everything without a browser, and exit")
    return parser


def _between(least: int, most: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return whole_number


if __name__ == "__main__":
    sys.exit(main())
