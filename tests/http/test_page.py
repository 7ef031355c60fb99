"""The page in a real browser: what operators see and do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import xoscar as xo
from playwright.sync_api import Locator, Page, expect

from ..support import browser, crashing, web
from ..support.crashing import Host, Victim
from ..support.waiting import BOUND, eventually

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

expect.set_options(timeout=BOUND * 1000)


@dataclass(frozen=True)
class Site:
    """A main pool in another process, and where it is told of."""

    host: Host
    where: str

    def pool(self, number: int) -> dict[str, Any]:
        """What is told of one of its sub-pools."""
        pools = web.request(self.where, "/health").json["pools"]
        found: dict[str, Any] = next(each for each in pools if each["lineage"] == number)
        return found

    def call(self, address: str, method: str, *args: Any, uid: str = "") -> Any:
        """Call the victim at an address from here."""

        async def call() -> Any:
            ref = await xo.actor_ref(address=address, uid=uid or address)
            return await getattr(ref, method)(*args)

        return apart(call)


def apart(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run it on a loop of its own: that of this thread is the browser's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result(BOUND)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    browser.chromium()
    address = web.free()
    with crashing.host(
        XOSCAR_SUPERVISE="act",
        XOSCAR_CAPTURE_STDERR="1",
        XOSCAR_SUPERVISE_DIR=f"{tmp_path}/state",
        XOSCAR_HEALTH_ADDRESS=address,
        XOSCAR_HEALTH_TOKEN=web.TOKEN,
    ) as host:
        yield Site(host, f"http://{address}")


def row(page: Page, number: int) -> Locator:
    return page.locator(f"[data-lineage='{number}']")


def focused(page: Page, selector: str) -> None:
    """Go on with the Tab key until that has the focus."""
    wanted = page.locator(selector).first
    for _ in range(60):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            return
    raise AssertionError(f"Tab does not come to {selector}")


def test_a_kill_appears_and_unfolds(site: Site) -> None:
    """Without reloading: first that it is down, then that it is back, and why."""
    with browser.page() as page:
        page.goto(site.where)
        expect(row(page, 1)).to_have_attribute("data-state", "healthy")
        expect(page.locator("#overall")).to_contain_text("healthy")
        with contextlib.suppress(Exception):  # its caller is told, too
            site.call(site.host.first, "die", "abort")
        crash = page.locator("#events").get_by_text(re.compile("was killed by SIGABRT"))
        expect(crash).to_be_visible()
        expect(row(page, 1)).to_contain_text(f"{site.pool(1)['pid']}")
        focused(page, "[data-lineage='1'] [data-unfold]")
        page.keyboard.press("Enter")
        expect(row(page, 1).locator(".stacks")).to_contain_text("in die")
        expect(row(page, 1)).not_to_contain_text("the last words")
        row(page, 1).locator(".show-log-tail").press("Enter")
        page.locator("#token").fill(web.TOKEN)
        page.locator("#token").press("Enter")
        expect(row(page, 1).locator(".log-tail")).to_contain_text("the last words")
        expect(row(page, 1)).to_have_attribute("data-state", "healthy")


def test_a_restart_with_the_keyboard(site: Site) -> None:
    before = site.pool(1)
    with browser.page() as page:
        page.goto(site.where)
        expect(row(page, 1)).to_have_attribute("data-state", "healthy")
        focused(page, "[data-lineage='1'] [data-instruction='restart']")
        page.keyboard.press("Enter")
        dialog = page.locator("#ask")
        expect(dialog).to_be_visible()
        expect(dialog).to_contain_text(before["address"])
        page.keyboard.type("a wrong token")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("XOSCAR_HEALTH_TOKEN")
        assert site.pool(1)["incarnation"] == 1, "nothing has been done"
        page.locator("#token").fill(web.TOKEN)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        expect(row(page, 1)).to_contain_text("it has been replaced")
        after = site.pool(1)
        assert (after["incarnation"], after["lineage"]) == (2, 1)
        assert after["pid"] != before["pid"]
        # The token is asked for once.
        row(page, 2).locator("[data-instruction='pause']").press("Enter")
        expect(page.locator("#token")).to_be_hidden()
        page.keyboard.press("Enter")
        expect(row(page, 2)).to_have_attribute("data-state", "paused")
        expect(row(page, 1)).to_have_attribute("data-state", "healthy")


def test_a_main_pool_that_is_blocked(site: Site, tmp_path: Path) -> None:
    """The page goes on, and says what it does."""
    with browser.page() as page:
        page.goto(site.where)
        expect(row(page, 1)).to_have_attribute("data-state", "healthy")
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            apart(lambda: asyncio.wait_for(_block(site.host.main), 2))
        expect(page.locator("header")).to_contain_text("busy")
        expect(page.locator("header")).to_contain_text("in block")
        os.kill(site.host.pid, signal.SIGKILL)
        expect(page.locator("#overall")).to_contain_text(re.compile("no answer|lost"))


async def _block(address: str) -> None:
    ref = await xo.actor_ref(address=address, uid=address)
    await ref.block(30)


def test_names_do_nothing(site: Site) -> None:
    """What programs call their actors is text, whatever it looks like."""
    name = "<img src=x id=xss onerror=alert(1)>"

    async def hold() -> None:
        address = site.host.first
        ref = await xo.create_actor(Victim, uid=name, address=address)
        await crashing.error_of(ref.hold())

    with ThreadPoolExecutor(1) as thread:
        held = thread.submit(lambda: asyncio.run(hold()))
        eventually(lambda: site.pool(1)["in_process"])
        with browser.page() as page:
            page.goto(site.where)
            expect(row(page, 1)).to_contain_text("onerror")
            row(page, 1).locator("[data-unfold]").click()
            expect(row(page, 1)).to_contain_text(f"{name}.hold()")
            assert page.locator("#xss").count() == 0
        os.kill(site.pool(1)["pid"], signal.SIGKILL)
        held.result(BOUND)


@pytest.mark.parametrize("width", [320, 400, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits(site: Site, width: int, dark: bool) -> None:
    with browser.page(width, dark) as page:
        page.goto(site.where)
        expect(row(page, 2)).to_have_attribute("data-state", "healthy")
        row(page, 1).locator("[data-unfold]").click()
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", ground)[0])
        assert (red < 100) == dark
