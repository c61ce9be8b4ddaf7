"""The minutes of the examples, in Chromium: a page that changes processes says what it missed, and shows it."""

import json
import re
from pathlib import Path

import pytest

from tests.demo.browser import chromium, expect
from tests.examples.running import apart, example
from tests.proxy import TcpProxy
from tests.services import SharedBrokers

pytestmark = [pytest.mark.browser, pytest.mark.fault]


async def test_a_page_whose_process_dies_shows_what_it_missed(tmp_path: Path, shared_brokers: SharedBrokers) -> None:
    broker = apart(shared_brokers.log_url("redis+streams"))
    async with (
        chromium() as browser,
        example("minutes", broker, MINUTES=str(tmp_path / "minutes")) as app,
        TcpProxy(app.urls[0]) as balancer,
    ):
        page = await browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        frames: list[str] = []
        page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
        status, lines = page.get_by_role("status"), page.get_by_role("listitem")

        await page.goto(balancer.url)
        await expect(status).to_contain_text(f"On process {app.processes[0].process.pid}: loaded 0 lines.")
        await page.get_by_label("Line").fill("<b>Apologies</b>")
        await page.get_by_role("button").click()
        await expect(lines).to_have_text(["<b>Apologies</b>"])

        balancer.refuse()
        app.processes[0].process.kill()
        await expect(status).to_have_text("Away…")
        other = await app.client(1)
        for line in ("Accounts", "Any other business"):
            await other.emit("add", line)
            assert (await other.only("line"))[2] == line
        await page.get_by_label("Line").fill("Next meeting")
        await page.get_by_role("button").click()
        balancer.point(app.urls[1])
        await balancer.accept()
        await expect(status).to_have_text(f"On process {app.processes[1].process.pid}: recovered, 2 missed lines came.")
        minutes = ["<b>Apologies</b>", "Accounts", "Any other business", "Next meeting"]
        await expect(lines).to_have_text(minutes)
        heard = [json.loads(frame[2:])[1:3] for frame in frames if re.match(r'42\["line"', frame)]
        assert heard == [[number, line] for number, line in enumerate(minutes, 1)]  # each once, in order

        await page.reload()
        await expect(status).to_contain_text("loaded 4 lines.")
        await expect(lines).to_have_text(minutes)
        assert problems == []
