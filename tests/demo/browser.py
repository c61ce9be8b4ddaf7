"""Headless Chromium, driven by Playwright; importing this skips, or fails, tests where Playwright is missing."""

import contextlib
import os
import shutil
from collections.abc import AsyncGenerator

import pytest

from tests.services import required, unavailable

try:
    from playwright.async_api import Browser, Page, WebSocket, async_playwright, expect
except ImportError:
    missing = "Playwright for Python is not available: not installed (uv sync --group browser)"
    if required():
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing, allow_module_level=True)

__all__ = ["Browser", "Page", "WebSocket", "chromium", "expect"]

expect.set_options(timeout=15_000)  # a browser beside other tests is slow at times

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    """The installed Chromium."""
    names = (os.environ.get("ROOMCAST_TEST_CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, filter(None, names))), None)
    if found is None:
        unavailable("Chromium", "none is installed (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
