"""The page as such, the models panel and the Explain tab, in a real browser."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace

import httpx
import pytest
from app_builders import SCENE, live_app
from checkpoint_builders import serving
from PIL import Image
from playwright.sync_api import expect

from text2seg.app.explain_tab import FIRST_FIELDS
from text2seg.app.fields import shown_settings
from text2seg.explain import TOOLS
from text2seg.weights import download, registry

TABS = ("Segment", "Label a folder", "Explain")


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fields_of(tool: str) -> list[str]:
    return [f"setting-{each.name}" for each in shown_settings(TOOLS[tool].settings)[:FIRST_FIELDS]]


def choose_tool(page, group: str, tool: str) -> None:
    """Choose it and wait until its fields are there."""
    open_tab(page, "Explain")
    expect(page.locator("[id^=setting-]").first).to_be_visible()
    page.locator("#explain-group").get_by_text(group, exact=True).click()
    page.locator("#explain-tool").get_by_text(re.compile(f"^{tool}:")).click()
    expect(page.locator(f"#fields-of-{tool}")).to_be_visible()
    page.wait_for_function("(names) => names.every((name) => document.getElementById(name))", arg=fields_of(tool))


def give_picture(page, path=SCENE) -> None:
    page.locator("#explain-picture input[type=file]").set_input_files(path)
    expect(page.locator("#explain-picture img")).to_be_visible()


class TestThePage:
    def test_it_opens(self, page):
        assert page.title() == "text2seg"
        assert [tab.strip() for tab in page.get_by_role("tab").all_inner_texts()] == [*TABS]

    def test_it_says_what_the_demo_model_knows(self, page):
        now = page.locator("#models-now")
        expect(now).to_contain_text("the demo model, which knows 109 drawn things and nothing else")
        expect(now.get_by_text("fire engine")).to_be_hidden()
        now.locator("summary").click()
        expect(now.get_by_text("fire engine")).to_be_visible()

    def test_it_advertises_nobody(self, page):
        assert page.locator("footer").count() == 0 or not page.locator("footer").inner_text().strip()
        assert "gradio" not in page.locator("body").inner_text().lower()

    @pytest.mark.parametrize("viewport", ["phone", "tablet", "wide"])
    def test_nothing_sticks_out_sideways(self, visitor, app_url, viewport):
        page = visitor(app_url, viewport=viewport)
        for name in TABS:
            open_tab(page, name)
            page.wait_for_timeout(300)
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, name

    def test_tabs_are_reached_and_changed_by_keys(self, page):
        first = page.get_by_role("tab", name=TABS[0])
        first.focus()
        for key, name in (("ArrowRight", TABS[1]), ("ArrowRight", TABS[2]), ("ArrowLeft", TABS[1])):
            page.keyboard.press(key)
            expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
            expect(page.get_by_role("tab", name=name)).to_be_focused()

    @pytest.mark.parametrize("name", TABS)
    def test_everything_to_fill_in_or_press_has_a_name(self, page, name):
        open_tab(page, name)
        page.wait_for_timeout(1000)
        nameless = page.evaluate(NAMELESS)
        assert not nameless, "\n".join(nameless)

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_words_stand_out_from_what_is_behind_them(self, visitor, app_url, dark):
        page = visitor(app_url, dark=dark)
        ratio = page.evaluate(CONTRAST, ".t2s-header p")
        assert ratio >= 4.5
        assert page.evaluate("document.body.classList.contains('dark')") is dark


class TestModels:
    @pytest.fixture
    def offline(self, servers, demo, monkeypatch):
        """An app that reaches no other machine."""
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        return servers.enter_context(live_app(demo))

    def test_the_panel_offers_the_real_weights(self, page):
        page.get_by_role("button", name="Models and weights").click()
        table = page.locator("#models-table")
        for words in ("CLIP ViT-B/16 + SAM vit_h", "335 + 2,446 MiB", "MIT (OpenAI)", "Apache 2.0 (Meta)"):
            expect(table).to_contain_text(words)

    def test_a_download_shows_its_progress_and_stops(self, visitor, servers, demo, monkeypatch):
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(download, "CHUNK", 100_000)
        monkeypatch.setattr(download, "_read", lambda response: time.sleep(0.5) or response.read(100_000))
        server = servers.enter_context(serving(os.urandom(20_000_000)))
        url = servers.enter_context(live_app(demo))
        ours = tuple(replace(each, url=server.url) if each.url else each for each in registry.CHECKPOINTS)
        monkeypatch.setattr(registry, "CHECKPOINTS", ours)
        page = visitor(url)
        page.get_by_role("button", name="Models and weights").click()
        page.get_by_role("button", name="Download", exact=True).click()
        expect(page.locator("#models-said")).to_contain_text(re.compile(r"[01]/19 MiB"))
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#models-said")).to_contain_text("the next download goes on from there")

    def test_a_download_that_fails_says_all(self, visitor, offline):
        page = visitor(offline)
        page.get_by_role("button", name="Models and weights").click()
        page.get_by_role("button", name="Download", exact=True).click()
        alert = page.locator("#models-said").get_by_role("alert")
        expect(alert).to_contain_text("cannot reach the server")
        expect(alert).to_contain_text(re.compile(r"Fetch ViT-B-16\.pt from https://\S+ by other means and put it in /"))

    def test_what_is_not_here_is_not_used(self, visitor, offline):
        page = visitor(offline)
        page.get_by_role("button", name="Models and weights").click()
        page.get_by_role("button", name="Use for everyone").click()
        expect(page.locator("#models-said").get_by_role("alert")).to_contain_text("download first")

    def test_others_may_only_look(self, visitor, servers, demo):
        url = servers.enter_context(live_app(demo, manage_models="never"))
        page = visitor(url)
        page.get_by_role("button", name="Models and weights").click()
        expect(page.locator("#models")).to_contain_text("text2seg app --model base")
        expect(page.get_by_role("button", name="Use for everyone")).to_have_count(0)


class TestExplain:
    def test_a_tool_shows_its_pictures_and_they_can_be_taken_home(self, page, tmp_path):
        choose_tool(page, "Saliency", "saliency")
        give_picture(page)
        page.locator("#setting-text textarea").fill("sheep\nkoala")
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()
        expect(page.locator("#explain-panels img").first).to_be_visible()
        with page.expect_download() as download:
            page.locator("#explain-sheet").click()
        path = tmp_path / "sheet.png"
        download.value.save_as(path)
        assert Image.open(path).width > 200

    def test_tables_and_notes_are_on_the_page(self, page):
        choose_tool(page, "Board", "board")
        give_picture(page)
        page.locator("#setting-text textarea").fill("a sheep\na koala")
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_role("gridcell", name="a koala").first).to_be_visible()

    def test_an_example_is_one_click(self, page):
        choose_tool(page, "Recognition", "multilabel")
        page.locator("#explain-examples button").first.click()
        expect(page.locator("#explain-picture img")).to_be_visible()
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()

    def test_what_is_wrong_is_said_on_the_page(self, page, tmp_path):
        choose_tool(page, "Saliency", "saliency")
        alert = page.locator("#explain-status").get_by_role("alert")
        page.get_by_role("button", name="Run").click()
        expect(alert).to_contain_text("looks at one image, got 0")
        large = tmp_path / "sky.png"
        Image.new("1", (10_000, 6_000)).save(large)
        page.locator("#explain-picture input[type=file]").set_input_files(large)
        expect(page.locator("#explain-picture img")).to_be_visible()
        page.get_by_role("button", name="Run").click()
        expect(alert).to_contain_text("sky.png is 10000 x 6000 pixels, over the limit of 50 million")

    def test_a_long_run_shows_progress_and_stops(self, page):
        choose_tool(page, "Opinion", "opinion")
        give_picture(page)
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-status")).to_contain_text(re.compile(r"\b[1-9]\d*/300"))
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#explain-status")).to_contain_text("Stopped; this is what there was until then.")

    def test_who_waits_sees_the_place_in_the_queue(self, visitor, servers, demo):
        url = servers.enter_context(live_app(demo, workers=1))
        pages = [visitor(url) for _ in range(2)]
        for page in pages:
            choose_tool(page, "Opinion", "opinion")
            give_picture(page)
            page.get_by_role("button", name="Run").click()
            page.wait_for_timeout(1500)
        first, second = (page.locator("#explain-status") for page in pages)
        expect(second).to_contain_text(re.compile(r"queue: 1/1"))
        expect(first).to_contain_text(re.compile(r"\b[1-9]\d*/300"))
        pages[0].get_by_role("button", name="Stop").click()
        expect(second).to_contain_text(re.compile(r"\b[1-9]\d*/300"))
        pages[1].get_by_role("button", name="Stop").click()
        expect(second).to_contain_text("Stopped")

    def test_two_visitors_see_their_own(self, visitor, app_url):
        pages = [visitor(app_url) for _ in range(2)]
        for page, text in zip(pages, ("a sheep", "a rocket"), strict=True):
            choose_tool(page, "Board", "board")
            give_picture(page)
            page.locator("#setting-text textarea").fill(text)
            page.get_by_role("button", name="Run").click(no_wait_after=True)
        for page, own, other in zip(pages, ("a sheep", "a rocket"), ("a rocket", "a sheep"), strict=True):
            expect(page.get_by_role("gridcell", name=own).first).to_be_visible()
            expect(page.get_by_role("gridcell", name=other)).to_have_count(0)


def test_a_password_opens_the_page(visitor, servers, demo, monkeypatch):
    monkeypatch.setenv("TEXT2SEG_PASSWORD", "geheim")
    url = servers.enter_context(live_app(demo, auth=("ann",)))
    assert httpx.get(url).status_code == 401
    page = visitor(url, http_credentials={"username": "ann", "password": "geheim"})
    give = page.locator("#explain-picture input[type=file]")
    open_tab(page, "Explain")
    give.set_input_files(SCENE)
    expect(page.locator("#explain-picture img")).to_be_visible()


NAMELESS = """() => {
  const seen = (e) => e.checkVisibility() && e.getClientRects().length;
  const words = (id) => id.split(' ').map((one) => document.getElementById(one)?.textContent ?? '').join(' ');
  const name = (e) => (e.getAttribute('aria-label') || words(e.getAttribute('aria-labelledby') ?? '')
    || [...(e.labels ?? [])].map((label) => label.textContent).join(' ')
    || (e.matches('button, a, summary, [role=button], [role=tab]') ? e.textContent : '')
    || e.title || e.querySelector('img')?.alt || '').trim();
  return [...document.querySelectorAll('input:not([type=hidden]), textarea, select, button, [role=button], summary')]
    .filter(seen).filter((e) => !name(e)).map((e) => e.outerHTML.slice(0, 300));
}"""

CONTRAST = """(selector) => {
  const element = document.querySelector(selector);
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  let behind = element;
  while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const [a, b] = [light(parse(getComputedStyle(element).color)),
    light(parse(getComputedStyle(behind ?? document.body).backgroundColor))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""
