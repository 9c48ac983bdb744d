"""Pages in a real browser, Debian's chromium, without a network; what they ask for and complain of is noted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """A page that is open.

    Attributes:
        page: Playwright's.
        complaints: of its console, and exceptions. requests: for anything but the file itself.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser; tests that need one are skipped where there is none (.ci/run installs it)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra test")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def visit(browser: Any, path: Path, width: int = 1280, height: int = 900, **options: Any) -> Iterator[Seen]:
    """Open a page from the disk, and wait until it is ready."""
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True, **options)
    seen = Seen(context.new_page())
    address = path.resolve().as_uri()
    seen.page.on(
        "console", lambda each: seen.complaints.append(each.text) if each.type in ("error", "warning") else None
    )
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on(
        "request",
        lambda each: None if each.url.startswith((address, "data:", "blob:")) else seen.requests.append(each.url),
    )
    seen.page.goto(address)
    seen.page.wait_for_selector("html[data-ready]", timeout=20_000)
    yield seen
    context.close()
