"""Several windows of one browser, which share its six connections to the app."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from app_builders import live_app
from playwright.sync_api import expect

from text2seg.app.segment import requests

PIECE = ".t2s-image [data-piece]"
MANY = 7
"""More than a browser has connections."""


def window(page, url):
    """Open another window of the same browser."""
    other = page.context.new_page()
    other.goto(url)
    other.locator("[data-example='0']").click()
    return other


def test_many_windows_work(page, app_url):
    windows = [window(page, app_url) for _ in range(MANY)]
    for each in windows:
        each.locator(PIECE).first.wait_for()


def test_many_windows_that_wait_leave_others_usable_and_say_so(visitor, servers: ExitStack, demo, monkeypatch):
    go_on = threading.Event()
    found = requests.find
    monkeypatch.setattr(requests, "find", lambda *given, **named: go_on.wait(120) and found(*given, **named))
    url = servers.enter_context(live_app(demo, workers=MANY))
    page = visitor(url)
    windows = [window(page, url) for _ in range(MANY)]
    notice = windows[-1].get_by_text("Waiting for other windows of this app")
    notice.wait_for()
    page.get_by_role("tab", name="Label a folder").click()
    page.locator("#folder-queries input, #folder-queries textarea").first.fill("koala")
    page.get_by_role("button", name="Convert to ontology").click()
    go_on.set()
    for each in windows:
        each.locator(PIECE).first.wait_for()
    expect(notice).to_be_hidden()


def test_an_app_that_does_not_answer_says_so_and_goes_on(page):
    page.locator("[data-example='0']").click()
    page.locator(PIECE).first.wait_for()
    held = []
    page.route("**/app_id", lambda route: held.append(route))
    notice = page.get_by_text("The app does not answer")
    notice.wait_for()
    page.unroute("**/app_id")
    expect(notice).to_be_hidden()
    expect(page.locator(PIECE).first).to_be_visible()
