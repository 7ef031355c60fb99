"""A real browser, Debian's Chromium, without a screen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from playwright.sync_api import Page, sync_playwright

from .programs import program

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


def chromium() -> str:
    """Its path; without it the test is skipped, but where all tests have to run."""
    return program("chromium", "chromium", "chromium-browser")


@contextlib.contextmanager
def page(width: int = 1200, dark: bool = False, bound: float = 60.0) -> Iterator[Page]:
    """A page of so many pixels; what its scripts complain of is an error in the end."""
    complaints: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            made = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
            )
            made.set_default_timeout(bound * 1000)
            made.on("pageerror", lambda error: complaints.append(f"{error}"))
            made.on(
                "console",
                lambda said: (
                    complaints.append(said.text)
                    # It says so of each answer that is no 200, as 503 of what is not well.
                    if said.type == "error" and not said.text.startswith("Failed to load resource")
                    else None
                ),
            )
            yield made
        finally:
            browser.close()
    assert not complaints, complaints
