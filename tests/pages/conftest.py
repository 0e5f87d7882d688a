"""The browser of the pages' tests: the machine's Chromium, driven by Playwright."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import factories as make
from tests.pages.morning import Morning, begin


@pytest.fixture
def page(chromium: Any, live_server: Any) -> Iterator[Any]:
    """A fresh window on a tablet-sized screen; an error on the page or a missing file fails the test."""
    context = chromium.new_context(
        viewport={"width": 1366, "height": 900}, base_url=live_server.url, timezone_id="UTC"
    )
    window = context.new_page()
    troubles: list[str] = []
    window.on("pageerror", lambda error: troubles.append(f"script error: {error}"))
    window.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if _broken(r) else None)
    window.set_default_timeout(10_000)
    yield window
    context.close()
    assert not troubles


def _broken(response: Any) -> bool:
    asked = response.url.partition("/viewer/")[1]  # the viewer is another room's, with tests of its own
    return response.status >= 400 and response.status != 409 and not asked


@pytest.fixture
def morning(transactional_db: None) -> Morning:
    """A department at work."""
    return begin(busy=True)


@pytest.fixture
def log_in(page: Any) -> Callable[[str], None]:
    """Log in by the login page."""

    def entered(name: str) -> None:
        page.goto("/login/")
        page.fill("#id_username", name)
        page.fill("#id_password", make.PASSWORD)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/login/" not in url)

    return entered


@pytest.fixture
def shot(page: Any, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A picture of the page, kept where ORDERLY_TEST_SHOTS says (nowhere: not taken)."""

    def taken(name: str) -> None:
        folder = os.environ.get("ORDERLY_TEST_SHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)

    return taken
