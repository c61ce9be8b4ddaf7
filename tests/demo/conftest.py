"""Fixtures of the tests in this folder."""

import asyncio
import fcntl
import shutil

import pytest

from tests.demo.running import JS, Program
from tests.services import unavailable


@pytest.fixture
async def node_js() -> str:
    """The path of Node.js, with the packages of `tests/js` installed."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        unavailable("Node.js", "no node and npm on this machine (Debian: apt-get install nodejs npm)")
    with (JS / "package.json").open() as lock:  # test processes that run in parallel install it once
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not (JS / "node_modules" / ".package-lock.json").is_file():
            async with Program([npm, "ci", "--prefix", str(JS), "--no-audit", "--no-fund"]) as install:
                if await install.ended(within=50):
                    unavailable("The JavaScript client", f"npm ci failed:\n{install.output}")
    return node
