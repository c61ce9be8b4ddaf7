"""The demo's page in a real browser: tabs on different nodes talk to each other."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.demo.browser import Browser, Page, WebSocket, chromium, expect
from tests.demo.running import demo, shown
from tests.services import RedisServer

pytestmark = pytest.mark.browser

ARTEFACTS = Path(__file__).parents[1] / "artefacts"


@contextlib.asynccontextmanager
async def browsing(*arguments: str) -> AsyncGenerator[tuple[Browser, str]]:
    """A browser, and the address of a demo of three nodes."""
    async with chromium() as browser, demo("--port", "0", "--nodes", "3", *arguments) as program:
        address, _ = await shown(program)
        yield browser, address


class Tab:
    """One tab, which must neither throw nor ask anything of another host.

    Attributes:
        problems: exceptions, errors on the console, and requests that leave the demo's address.
        frames: what its WebSocket received.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.problems: list[str] = []
        self.frames: list[str | bytes] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        page.on("dialog", lambda dialog: self.problems.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda sent: None if sent.url.startswith(address) else self.problems.append(sent.url))
        page.on("websocket", self._on_websocket)

    def _on_websocket(self, websocket: WebSocket) -> None:
        websocket.on("framereceived", self._on_frame)

    def _on_frame(self, frame: str | bytes) -> None:
        self.frames.append(frame)

    @classmethod
    async def open(cls, browser: Browser, address: str, path: str = "/") -> "Tab":
        context = await browser.new_context(viewport={"width": 1100, "height": 780})
        page = await context.new_page()
        tab = cls(page, address)
        await page.goto(address + path)
        await page.wait_for_selector("body[data-ready]")
        return tab

    async def node(self) -> int:
        status = await self.page.get_by_role("status").inner_text()
        found = re.search(r"on node (\d+)", status)
        assert found is not None, status
        return int(found.group(1))

    async def say(self, text: str) -> None:
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    async def join(self, room: str) -> None:
        await self.page.get_by_label("Join a room").fill(room)
        await self.page.get_by_role("button", name="Join", exact=True).click()
        await expect(self.page.get_by_role("log")).to_contain_text(f"You joined {room}.")

    async def hears(self, text: str, node: int) -> None:
        message = self.page.locator(".message", has_text=text)
        await expect(message).to_have_count(1)
        await expect(message).to_contain_text(f"from node {node}")

    async def counts(self, node: int, clients: int) -> None:
        await expect(self.page.locator(f'[data-node="{node}"] strong')).to_have_text(str(clients))


async def test_two_tabs_on_two_nodes_talk_and_every_node_counts_its_clients() -> None:
    async with browsing() as (browser, address):
        one, two = await Tab.open(browser, address), await Tab.open(browser, address)
        assert (await one.node(), await two.node()) == (1, 2)
        await one.say("Hello from the first tab.")
        await asyncio.gather(one.hears("Hello from", 1), two.hears("Hello from", 1))
        await two.say("And hello from the second.")
        await asyncio.gather(one.hears("And hello", 2), two.hears("And hello", 2))

        for tab in (one, two):
            for node, clients in ((1, 1), (2, 1), (3, 0)):
                await tab.counts(node, clients)
            await expect(tab.page.locator('#nodes [data-state="on"]')).to_have_count(3)
        third = await Tab.open(browser, address, "/?node=3")
        assert await third.node() == 3
        await asyncio.gather(*(tab.counts(3, 1) for tab in (one, two, third)))

        await one.page.get_by_role("button", name="Wave at").click()
        await expect(one.page.get_by_role("log")).to_contain_text("answered your wave from node 2")
        await expect(two.page.get_by_role("log")).to_contain_text("Somebody on node 1 waves at you.")
        ARTEFACTS.mkdir(exist_ok=True)
        await one.page.screenshot(path=ARTEFACTS / "two-nodes.png")

        await third.page.context.close()
        await asyncio.gather(*(tab.counts(3, 0) for tab in (one, two)))
        assert one.problems + two.problems + third.problems == []


async def test_a_room_is_heard_by_its_members_alone() -> None:
    async with browsing() as (browser, address):
        one, two, three = [await Tab.open(browser, address, f"/?node={node}") for node in (1, 2, 3)]
        await one.join("tea")
        await two.join("tea")
        await one.say("milk or lemon?")
        await asyncio.gather(one.hears("milk or lemon?", 1), two.hears("milk or lemon?", 1))

        await one.page.get_by_role("button", name="Everyone").click()
        await one.say("to all of you")
        for tab in (two, three):
            await tab.page.get_by_role("button", name="Everyone").click()
            await tab.hears("to all of you", 1)
        # what was said to the room came before, and to its members alone
        for tab, got in ((one, True), (two, True), (three, False)):
            assert any("milk or lemon?" in str(frame) for frame in tab.frames) is got

        await two.page.get_by_role("button", name="Leave tea").click()
        await expect(two.page.get_by_role("button", name="tea", exact=True)).to_have_count(0)
        assert one.problems + two.problems + three.problems == []


async def test_what_people_type_is_shown_as_text() -> None:
    attack = "<img src=/nowhere onerror=\"alert('text')\"><script>alert('script')</script>"
    async with browsing() as (browser, address):
        one, two = [await Tab.open(browser, address, f"/?node={node}") for node in (1, 2)]
        await one.page.get_by_label("Your name").fill("<b>Mallory</b>")
        room = "<i>room</i>"
        await one.join(room)
        await two.join(room)
        await one.say(attack)
        await two.hears(attack, 1)
        message = two.page.locator(".message")
        assert await message.locator("p").inner_text() == attack
        assert await message.locator(".meta b").inner_text() == "<b>Mallory</b>"
        for tab in (one, two):
            assert await tab.page.locator("#log :is(img, script, i), #rooms i, .meta b b").count() == 0
        ARTEFACTS.mkdir(exist_ok=True)
        await two.page.screenshot(path=ARTEFACTS / "typed-markup.png")
        assert one.problems + two.problems == []


@pytest.mark.fault
async def test_the_page_shows_a_broker_that_is_away_and_back() -> None:
    async with RedisServer() as redis, browsing("--broker", redis.url) as (browser, address):
        one, two = [await Tab.open(browser, address, f"/?node={node}") for node in (1, 1)]
        await expect(one.page.locator('#nodes [data-state="on"]')).to_have_count(3)
        await redis.kill()
        await expect(one.page.locator('#nodes [data-state="off"]')).to_have_count(3)
        await one.say("still here")  # clients of one node reach each other all the same
        await two.hears("still here", 1)
        await redis.start()
        await expect(one.page.locator('#nodes [data-state="on"]')).to_have_count(3)
        assert one.problems + two.problems == []


async def test_a_narrow_window_needs_no_scrolling_sideways() -> None:
    async with browsing() as (browser, address):
        tab = await Tab.open(browser, address)
        await tab.page.set_viewport_size({"width": 360, "height": 740})
        await tab.say("x" * 1000)
        await tab.hears("xxx", 1)
        assert await tab.page.evaluate("document.documentElement.scrollWidth") <= 360
        ARTEFACTS.mkdir(exist_ok=True)
        await tab.page.screenshot(path=ARTEFACTS / "narrow.png", full_page=True)
        assert tab.problems == []
