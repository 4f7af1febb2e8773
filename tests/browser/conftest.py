"""A real server with the demo model, and pages in a real browser.

`page` and `visitor()` fail their test at its end if the console of the browser showed an error, a script failed, a
request failed, a response was an error, or a request went to another host. A test announces the problems that it
expects: `page.expected.append("413")`, part of the reported line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "text2seg" / "demo" / "scenes"
VIEWPORTS = {"wide": (1440, 900), "tablet": (820, 1180), "phone": (390, 844)}
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
REQUIRED = "TEXT2SEG_REQUIRE_BROWSER"
START_SECONDS = 180
PATIENCE_MS = 60_000
SAID: dict[str, Callable[[], str]] = {}
"""What an app that runs has said until now, by its address."""


def find_chromium() -> str | None:
    """Return the installed Chromium, or the one that Playwright has downloaded."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if found := shutil.which(name):
            return found
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        fetched = driver.chromium.executable_path
    return fetched if Path(fetched).exists() else None


@pytest.fixture(scope="session")
def browser():
    """One Chromium for all tests."""
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        return _missing("the package playwright is not installed: pip install playwright")
    executable = find_chromium()
    if executable is None:
        return _missing("there is no Chromium: apt-get install chromium, or playwright install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=executable, headless=True, args=[*FLAGS])
        yield chromium
        chromium.close()


def _missing(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}")
    pytest.skip(reason)


@contextmanager
def _served(**environment: str) -> Iterator[str]:
    """Start the app as a process on a free port and yield its address once it answers. Its output goes to a file,
    because a full pipe that nobody reads would block it."""
    command = [
        sys.executable,
        "app.py",
        "--port",
        "0",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--folder-jobs",
        "1000",
    ]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=said, stderr=said)
        try:
            until, address = time.monotonic() + START_SECONDS, None
            while address is None:
                address = re.search(r"open (http://\S+)", _read(said))
                if process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"the app did not start:\n{_read(said)}")
                time.sleep(0.1)
            SAID[address[1]] = partial(_read, said)
            yield address[1]
            del SAID[address[1]]
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def _read(said: IO[str]) -> str:
    """Return the content of a file to which another process writes, without moving the file position."""
    return os.pread(said.fileno(), os.fstat(said.fileno()).st_size, 0).decode(errors="replace")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the output of the running apps to the report of a failed test."""
    report = yield
    if report.failed:
        for address, said in SAID.items():
            report.sections.append((f"The app at {address} said", said()))
    return report


@pytest.fixture(scope="session")
def app_url(tmp_path_factory) -> Iterator[str]:
    """App with the demo model, one for all tests. Tests that need other settings use `live_app`."""
    with _served(TEXT2SEG_CHECKPOINTS=str(tmp_path_factory.mktemp("checkpoints"))) as url:
        yield url


@pytest.fixture(scope="session")
def scene() -> Path:
    """Path of an image with a sheep, a fire engine and a koala."""
    return SCENES / "new-scenes" / "images" / "scene_0019.jpg"


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    """Stack for the apps of one test, `servers.enter_context(live_app(demo))`; they end after the pages that use it."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def visitor(browser, servers) -> Iterator[Callable]:
    """Function that opens the page as a new visitor, `visitor(url, viewport="phone", dark=True)`, and records problems;
    a second call makes a second visitor. `prepare` is called with the page before the first request; further keywords
    go to Playwright's `new_context`."""
    opened: list[tuple] = []

    def open_page(
        url: str,
        *,
        viewport: str = "wide",
        dark: bool = False,
        prepare: Callable[[Any], object] = lambda page: None,
        **options: Any,
    ):
        width, height = VIEWPORTS[viewport]
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", **options
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.expected, problems = [], []
        _record_problems(page, urlsplit(url).netloc, problems)
        opened.append((context, page, problems))
        prepare(page)
        page.goto(url)
        page.get_by_role("heading", name="text2seg").wait_for()
        page.get_by_role("tab", name="Explain").wait_for()
        return page

    yield open_page
    unexpected = []
    for context, page, problems in opened:
        unexpected += [line for line in problems if not any(part in line for part in page.expected)]
        context.close()
    assert not unexpected, "\n".join(unexpected)


def _record_problems(page, netloc: str, problems: list[str]) -> None:
    def failed(request) -> None:
        # A stream of events that the page itself has closed counts as failed for Chromium.
        if request.failure != "net::ERR_ABORTED":
            problems.append(f"failed request: {request.url} {request.failure}")

    def asked(request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != netloc:
            problems.append(f"asked elsewhere: {request.url}")

    def answered(response) -> None:
        if response.status >= 400:
            problems.append(f"answered {response.status}: {response.request.method} {response.url}")

    def said(message) -> None:
        # Gradio logs that it closed its own stream of events, as when a page is left while something runs.
        if message.type == "error" and "AbortError: signal is aborted" not in message.text:
            problems.append(f"console: {message.text} ({message.location.get('url', '')})")

    page.on("console", said)
    page.on("pageerror", lambda error: problems.append(f"script: {error}"))
    page.on("request", asked)
    page.on("requestfailed", failed)
    page.on("response", answered)


@pytest.fixture
def page(visitor, app_url):
    """Page of the app on a wide screen."""
    return visitor(app_url)
