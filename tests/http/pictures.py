"""``python -m tests.http.pictures``: the pictures of the page that are in the documentation."""

from __future__ import annotations

import asyncio
import contextlib
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xoscar as xo
from playwright.sync_api import expect

from ..support import browser, crashing, web
from ..support.processes import ROOT
from .test_page import row

PICTURES = ROOT / "docs/pictures"
WIDTHS = (1200, 400)

STATE = "/var/lib/xoscar-idle"
PLACES = {
    sysconfig.get_path("purelib"): "/usr/lib/python3/site-packages",
    sysconfig.get_path("stdlib"): "/usr/lib/python3",
    ROOT: "/srv",
}
"""Of this machine, and what is shown in their place."""

ANYWHERE = """places => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    for (const [here, there] of Object.entries(places)) {
      const text = texts.currentNode.data;
      if (text.includes(here)) texts.currentNode.data = text.replaceAll(here, there);
    }
  }
}"""


async def call(address: str, method: str, *args: Any) -> None:
    """Call the victim there, whatever becomes of it."""
    with contextlib.suppress(OSError, xo.ServerClosed):
        await getattr(await xo.actor_ref(address=address, uid=address), method)(*args)


def take() -> None:
    """One that has crashed and is back, and one that is busy."""
    address = web.free()
    with (
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor() as threads,
        crashing.host(
            XOSCAR_SUPERVISE="act",
            XOSCAR_CAPTURE_STDERR="1",
            XOSCAR_SUPERVISE_DIR=f"{directory}/state",
            XOSCAR_HEALTH_ADDRESS=address,
            XOSCAR_HEALTH_TOKEN=web.TOKEN,
        ),
    ):
        pools = web.request(f"http://{address}", "/health").json["pools"]
        for pool, method, argument in zip(pools, ("die", "block"), ("segfault", 60.0), strict=True):
            threads.submit(asyncio.run, call(pool["address"], method, argument))
        for width in WIDTHS:
            with browser.page(width) as page:
                page.goto(f"http://{address}")
                expect(row(page, 1)).to_have_attribute("data-state", "healthy")
                expect(row(page, 2)).to_have_attribute("data-state", "busy")
                page.locator("#events").get_by_text("was killed by SIGSEGV").wait_for()
                row(page, 1).locator("[data-unfold]").click()
                expect(row(page, 1).locator(".stacks")).to_contain_text("in die")
                page.evaluate(
                    ANYWHERE,
                    {f"{k}": v for k, v in PLACES.items()} | {f"{directory}/state": STATE},
                )
                PICTURES.mkdir(exist_ok=True)
                page.screenshot(path=PICTURES / f"page-{width}.png", full_page=True)


if __name__ == "__main__":
    take()
