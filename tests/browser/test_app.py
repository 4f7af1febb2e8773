"""The whole page, the models panel and the Explain tab, in a real browser."""

from __future__ import annotations

import csv
import os
import re
import time
import zipfile
from dataclasses import replace

import httpx
import numpy as np
import pytest
from app_builders import SCENE, live_app
from checkpoint_builders import serving
from PIL import Image
from playwright.sync_api import expect

from text2seg.app.explain.form import FIRST_FIELDS
from text2seg.app.fields import shown_settings
from text2seg.explain import TOOLS
from text2seg.weights import download, registry

TABS = ("Segment", "Label a folder", "Explain")
IMAGE = "#explain-image .t2s-taken img"


def open_tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def fields_of(tool: str) -> list[str]:
    return [f"setting-{each.name}" for each in shown_settings(TOOLS[tool].settings)[:FIRST_FIELDS]]


def choose_tool(page, tool: str) -> None:
    """Choose a tool and wait for its fields."""
    open_tab(page, "Explain")
    page.locator("#explain-tool select").select_option(tool)
    expect(page.locator(f"#fields-of-{tool}")).to_be_visible()
    page.wait_for_function("(names) => names.every((name) => document.getElementById(name))", arg=fields_of(tool))


def clear_image(page) -> None:
    page.locator("#explain-image").get_by_role("button", name="Remove image").click()
    expect(page.locator("#explain-image .t2s-taken")).to_be_hidden()


def give_image(page, path=SCENE) -> None:
    """Replace the image of the example by an upload."""
    clear_image(page)
    page.locator("#explain-image input[type=file]").set_input_files(path)
    expect(page.locator(IMAGE)).to_be_visible()


def press_before_the_server_answers(page, button: str, place: str, words: str) -> None:
    """Press a button, and check that a place of the page says these words before the server has heard of it."""
    held, is_held = [], True

    def hold(route) -> None:
        if is_held and route.request.method == "POST":
            held.append(route)
        else:
            route.continue_()

    page.route("**/gradio_api/**", hold)
    page.evaluate(
        """([place, words]) => {
          window.isSaid = false;
          const look = () => { window.isSaid ||= document.querySelector(place)?.textContent.includes(words); };
          new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
        }""",
        [place, words],
    )
    page.get_by_role("button", name=button).click()
    page.wait_for_function("window.isSaid")
    is_held = False
    for route in held:
        route.continue_()


class TestThePage:
    def test_the_page_opens_with_its_tabs(self, page):
        assert page.title() == "text2seg"
        assert [tab.strip() for tab in page.get_by_role("tab").all_inner_texts()] == [*TABS]

    def test_the_panel_lists_the_vocabulary_of_the_demo_model(self, page):
        page.get_by_role("button", name="Model: demo").click()
        now = page.locator("#models-now")
        expect(now).to_contain_text("It knows 109 drawn things and nothing else")
        expect(now.get_by_text("fire engine")).to_be_hidden()
        now.locator("summary").click()
        expect(now.get_by_text("fire engine")).to_be_visible()

    def test_the_arrow_of_the_panel_shows_whether_it_is_open(self, page):
        chip = page.get_by_role("button", name="Model: demo")
        closed = chip.locator(".icon").evaluate("(icon) => getComputedStyle(icon).transform")
        chip.click()
        expect(chip.locator(".icon")).not_to_have_css("transform", closed)

    def test_the_page_has_no_footer_and_does_not_name_gradio(self, page):
        assert page.locator("footer").count() == 0 or not page.locator("footer").inner_text().strip()
        assert "gradio" not in page.locator("body").inner_text().lower()

    @pytest.mark.parametrize("viewport", ["phone", "tablet", "wide"])
    def test_no_horizontal_scrolling(self, visitor, app_url, viewport):
        page = visitor(app_url, viewport=viewport)
        for name in TABS:
            open_tab(page, name)
            page.wait_for_timeout(300)
            wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wider <= 0, name

    def test_arrow_keys_change_tabs(self, page):
        first = page.get_by_role("tab", name=TABS[0])
        first.focus()
        for key, name in (("ArrowRight", TABS[1]), ("ArrowRight", TABS[2]), ("ArrowLeft", TABS[1])):
            page.keyboard.press(key)
            expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")
            expect(page.get_by_role("tab", name=name)).to_be_focused()

    @pytest.mark.parametrize("name", TABS)
    def test_every_field_and_button_has_an_accessible_name(self, page, name):
        open_tab(page, name)
        page.wait_for_timeout(1000)
        nameless = page.evaluate(NAMELESS)
        assert not nameless, "\n".join(nameless)

    def test_no_name_is_a_key_of_a_missing_translation(self, visitor, app_url):
        page = visitor(app_url, prepare=lambda page: page.add_init_script(LISTEN))
        open_tab(page, "Explain")
        page.get_by_role("rowheader", name="a bomb").wait_for()  # the example has run
        open_tab(page, "Label a folder")
        page.locator("#folder-files input[type=file]").set_input_files(SCENE)
        page.locator("#folder-files").get_by_text("scene_0019").first.wait_for()
        assert page.evaluate(KEYS) == []
        assert page.evaluate("[...window.heard].filter((text) => /^[a-z_]+(\\.[a-z_]+)+$/.test(text))") == []

    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_text_has_enough_contrast(self, visitor, app_url, dark):
        page = visitor(app_url, dark=dark)
        ratio = page.evaluate(CONTRAST, ".t2s-header p")
        assert ratio >= 4.5
        assert page.evaluate("document.body.classList.contains('dark')") is dark


class TestModels:
    @pytest.fixture
    def offline(self, servers, demo, monkeypatch):
        """App without network access."""
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        return servers.enter_context(live_app(demo))

    def test_the_panel_offers_the_real_weights(self, page):
        page.get_by_role("button", name="Model: demo").click()
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
        page.get_by_role("button", name="Model: demo").click()
        page.get_by_role("button", name="Download", exact=True).click()
        expect(page.locator("#models-said")).to_contain_text(re.compile(r"[01]/19 MiB"))
        page.get_by_role("button", name="Stop", exact=True).click()
        expect(page.locator("#models-said")).to_contain_text("The next download resumes here")

    def test_a_failed_download_shows_the_whole_message(self, visitor, offline):
        page = visitor(offline)
        page.get_by_role("button", name="Model: demo").click()
        page.get_by_role("button", name="Download", exact=True).click()
        alert = page.locator("#models-said").get_by_role("alert")
        expect(alert).to_contain_text("cannot reach the server")
        expect(alert).to_contain_text(re.compile(r"Fetch ViT-B-16\.pt from https://\S+ by other means and put it in /"))

    def test_missing_weights_cannot_be_selected(self, visitor, offline):
        page = visitor(offline)
        page.get_by_role("button", name="Model: demo").click()
        expect(page.get_by_role("button", name="Use for everyone")).to_be_disabled()
        page.locator("#models-pair").get_by_text("demo", exact=True).click()
        expect(page.get_by_role("button", name="Use for everyone")).to_be_enabled()
        page.locator("#models-pair").get_by_text("huge", exact=True).click()
        expect(page.get_by_role("button", name="Use for everyone")).to_be_disabled()

    def test_visitors_without_permission_have_no_buttons(self, visitor, servers, demo):
        url = servers.enter_context(live_app(demo, manage_models="never"))
        page = visitor(url)
        page.get_by_role("button", name="Model: demo").click()
        expect(page.locator("#models")).to_contain_text("text2seg app --model base")
        expect(page.get_by_role("button", name="Use for everyone")).to_have_count(0)


def run_although_long(page):
    """Press Run, and Start where the estimate of this machine makes the page ask."""
    page.locator("#explain-run").click()
    waits = page.locator("#explain-status").get_by_text("this run is next")
    page.locator("#explain-status header, [data-ask] button").or_(waits).first.wait_for()
    start = page.get_by_role("button", name="Start", exact=True)
    if start.is_visible():
        start.click()


class TestExplain:
    def test_the_tab_opens_with_an_example(self, page):
        open_tab(page, "Explain")
        expect(page.locator("#explain-status")).to_contain_text("An example")
        expect(page.locator(IMAGE)).to_be_visible()
        expect(page.locator("#setting-text textarea")).to_have_value("a sheep\na fire engine\na bomb")
        expect(page.get_by_role("rowheader", name="a fire engine").first).to_be_visible()

    def test_the_example_does_not_replace_a_result(self, page):
        choose_tool(page, "multilabel")
        page.get_by_role("button", name="Run").click()
        heading = page.locator("#explain-status h3.t2s-title")
        expect(heading).to_contain_text("labels it shows")
        expect(page.locator("#explain-status")).not_to_contain_text("An example")
        before = heading.inner_text()
        open_tab(page, "Segment")
        open_tab(page, "Explain")
        page.wait_for_timeout(1000)
        assert heading.inner_text() == before

    def test_a_tool_shows_images_that_can_be_downloaded(self, page, tmp_path):
        choose_tool(page, "saliency")
        give_image(page)
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
        choose_tool(page, "board")
        give_image(page)
        page.locator("#setting-text textarea").fill("a sheep\na koala")
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_role("rowheader", name="a koala").first).to_be_visible()

    def test_a_click_opens_an_example(self, page):
        choose_tool(page, "multilabel")
        clear_image(page)
        page.locator("#explain-image [data-example]").nth(1).click()
        expect(page.locator(IMAGE)).to_be_visible()
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()

    def test_errors_are_shown_on_the_page(self, page, tmp_path):
        choose_tool(page, "saliency")
        alert = page.locator("#explain-problem").get_by_role("alert")
        clear_image(page)
        page.get_by_role("button", name="Run").click()
        expect(alert).to_contain_text("There is no image yet")
        large = tmp_path / "sky.png"
        Image.new("1", (10_000, 6_000)).save(large)
        page.locator("#explain-image input[type=file]").set_input_files(large)
        expect(page.locator(IMAGE)).to_be_visible()
        page.get_by_role("button", name="Run").click()
        expect(alert).to_contain_text("sky.png is 10000 x 6000 pixels, over the limit of 50 million")

    def test_a_photograph_gives_a_warning(self, page, tmp_path):
        noise = np.random.default_rng(0).integers(0, 256, (120, 160), np.uint8)  # rough and grey, as photographs are
        Image.fromarray(noise).save(tmp_path / "photo.png")
        choose_tool(page, "multilabel")
        give_image(page, tmp_path / "photo.png")
        page.get_by_role("button", name="Run").click()
        warning = page.locator("#explain-status .t2s-warning")
        expect(warning).to_contain_text("This looks like a photograph, and this model knows drawings only")
        warning.get_by_role("button", name="Use real weights").click()
        expect(page.locator("#models-table")).to_be_visible()
        expect(page.locator("#models > button")).to_have_attribute("aria-expanded", "true")
        page.keyboard.press("Escape")
        expect(page.locator("#models-table")).to_be_hidden()
        expect(page.locator("#models > button")).to_have_attribute("aria-expanded", "false")
        expect(page.locator("#models > button")).to_be_focused()

    def test_a_table_can_be_downloaded(self, page):
        open_tab(page, "Explain")
        table = page.get_by_role("table").first
        expect(table.get_by_role("rowheader", name="a bomb")).to_be_visible()
        cells = table.get_by_role("cell")
        assert set(cells.evaluate_all("all => all.map(each => getComputedStyle(each).textAlign)")) == {"right"}
        with page.expect_download() as download:
            page.get_by_role("link", name="CSV").first.click()
        with open(download.value.path(), newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert [f"{float(value):.3f}" for row in rows[1:] for value in row[1:]] == cells.all_inner_texts()

    def test_a_long_run_shows_progress_and_stops(self, page):
        choose_tool(page, "opinion")
        give_image(page)
        run_although_long(page)
        expect(page.locator("#explain-status")).to_contain_text(re.compile(r"[1-9]\d* of 300 steps"))
        press_before_the_server_answers(page, "Stop", "#explain-status", "Stopping …")
        expect(page.locator("#explain-status")).to_contain_text("Stopped. This is the result so far.")

    def test_a_slow_tool_says_its_time_before_it_starts(self, page):
        choose_tool(page, "opinion")
        said, steps = page.locator("#explain-estimate"), page.locator("#setting-steps input")
        steps.fill("2000")  # slow on any computer
        page.keyboard.press("Tab")
        expect(said).to_contain_text(re.compile(r"Takes about \d+ (s|min) on this computer"))
        before = said.inner_text()
        steps.fill("1")
        page.keyboard.press("Tab")
        expect(said).not_to_contain_text(before)

    def test_the_tool_before_leaves_nothing(self, page):
        choose_tool(page, "multilabel")
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()
        expect(page.get_by_role("rowheader").first).to_be_visible()
        choose_tool(page, "opinion")
        expect(page.locator("#explain-status h3")).to_have_count(0)
        expect(page.get_by_role("rowheader")).to_have_count(0)
        expect(page.locator("#explain-panels img")).to_have_count(0)
        run_although_long(page)
        expect(page.locator("#explain-status")).to_contain_text("of 300 steps")
        tools = page.locator("#explain-tool select")
        tools.select_option("saliency")
        page.get_by_text("Choosing another tool stops this run").wait_for()
        page.get_by_role("button", name="Go on").click()
        expect(tools).to_have_value("opinion")
        expect(page.locator("#explain-status")).to_contain_text("of 300 steps")
        tools.select_option("saliency")
        page.get_by_role("button", name="Stop it").click()
        expect(tools).to_have_value("saliency")
        expect(page.locator("#explain-run")).to_be_enabled()
        expect(page.locator("#explain-status h3")).to_have_count(0)

    def test_a_result_is_there_again_with_its_tool_while_the_image_is_the_same(self, page):
        open_tab(page, "Explain")
        expect(page.locator("#explain-status h3")).to_be_visible()
        choose_tool(page, "multilabel")
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-tables table")).to_be_visible()
        title = page.locator("#explain-status h3").inner_text()
        choose_tool(page, "faithfulness")
        expect(page.locator("#explain-status h3")).to_have_count(0)
        for field in ("#explain-image", "#explain-files"):  # it reads scenes of its own
            expect(page.locator(field)).to_be_hidden()
        choose_tool(page, "multilabel")
        expect(page.locator("#explain-status h3")).to_have_text(title)
        expect(page.locator("#explain-tables table")).to_be_visible()
        expect(page.locator("#explain-image")).to_be_visible()
        choose_tool(page, "board")
        expect(page.locator("#explain-status h3")).to_be_visible()  # the example
        page.locator("#explain-image [data-example]").nth(1).click()
        choose_tool(page, "multilabel")
        expect(page.locator("#explain-status")).to_contain_text("Choose a tool and an image")

    def test_run_waits_for_the_form_of_the_chosen_tool(self, page):
        open_tab(page, "Explain")
        run, title = page.get_by_role("button", name="Run"), page.locator("#explain-status h3")
        expect(title).to_be_visible()
        tools = ("multilabel", "saliency", "semantic") * 2
        for tool, example in zip(tools, (1, 2, 0, 2, 0, 1), strict=True):  # no result is of the same image
            page.locator("#explain-image [data-example]").nth(example).click()
            expect(title).to_have_count(0)
            page.locator("#explain-tool select").select_option(tool)
            run.click()
            expect(title).to_be_visible()
            expect(run).to_be_enabled()

    def test_an_unknown_text_stops_no_other(self, page):
        choose_tool(page, "saliency")
        page.locator("#setting-text textarea").fill("a sheep\na unicorn")
        page.keyboard.press("Tab")
        page.locator("#explain-run").click()
        status = page.locator("#explain-status")
        expect(status).to_contain_text("Left out: the demo model does not know 'a unicorn'")
        expect(status.get_by_role("button", name="Use real weights")).to_be_visible()

    def test_a_message_goes_with_its_cause(self, page):
        choose_tool(page, "board")
        clear_image(page)
        page.get_by_role("button", name="Run").click()
        alert = page.locator("#explain-problem").get_by_role("alert")
        expect(alert).to_contain_text("There is no image yet")
        page.locator("#explain-image [data-example]").first.click()
        expect(alert).to_have_count(0)

    def test_the_focus_is_not_lost_when_a_run_starts(self, page):
        choose_tool(page, "multilabel")
        page.locator("#explain-run").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#explain-status")).to_be_focused()
        expect(page.locator("#explain-status h3")).to_be_visible()

    def test_the_image_of_the_segment_tab_is_offered(self, page, tmp_path):
        page.locator("[data-example='1']").click()
        page.locator(".t2s-image [data-piece]").first.wait_for()
        choose_tool(page, "multilabel")
        page.get_by_role("button", name="scene_0012.jpg, from Segment").click()
        page.get_by_role("button", name="Run").click()
        expect(page.locator("#explain-status h3")).to_contain_text("scene_0012")

    def test_a_pasted_image_goes_to_one_place(self, page):
        """The one with the focus, else the first."""
        choose_tool(page, "saliency")
        first, second = page.locator("#explain-image"), page.locator("#fields-of-saliency t2s-files").first
        expect(second).to_be_visible()
        paste = """(name) => {
            const carried = new DataTransfer();
            carried.items.add(new File(["x"], name, { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carried, bubbles: true }));
        }"""
        page.evaluate(paste, "one.png")
        expect(first).to_contain_text("one.png")
        expect(second).not_to_contain_text("one.png")
        second.get_by_role("button").first.focus()
        page.evaluate(paste, "two.png")
        expect(second).to_contain_text("two.png")
        expect(first).to_contain_text("one.png")

    def test_a_panel_opens_at_full_size(self, page):
        open_tab(page, "Explain")
        panel = page.locator("#explain-panels button").nth(2)
        panel.click()
        large = page.get_by_role("dialog", name="Large view")
        expect(large.get_by_role("heading")).to_contain_text("a sheep")
        expect(large).to_contain_text("3 of 5")
        large.get_by_role("button", name="Next").click()
        expect(large.get_by_role("heading")).to_contain_text("a fire engine")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Escape")
        expect(large).to_be_hidden()
        expect(panel).to_be_focused()

    def test_the_files_of_run_all_can_be_downloaded(self, page, tmp_path):
        choose_tool(page, "run-all")
        page.locator("#explain-files input[type=file]").set_input_files(SCENE)
        expect(page.locator("#explain-files")).to_contain_text("scene_0019.jpg")
        page.locator("#setting-steps input").fill("2")
        page.keyboard.press("Tab")
        run_although_long(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="All files (ZIP)").click()
        with zipfile.ZipFile(download.value.path()) as archive:
            names = archive.namelist()
            html = archive.read("run-all/run-all.html").decode()
        assert "run-all/0001_scene_0019.png" in names
        assert "0001_scene_0019.png" in html
        assert "on the page run-all.html" in page.locator("body").inner_text()

    def test_a_waiting_visitor_sees_the_place_in_the_queue(self, visitor, servers, demo):
        url = servers.enter_context(live_app(demo, workers=1))
        pages = [visitor(url) for _ in range(2)]
        first, second = (page.locator("#explain-status") for page in pages)
        for page in pages:
            choose_tool(page, "opinion")
            give_image(page)
            page.locator("#setting-steps input").fill("2000")  # the first runs until the second has waited
            page.keyboard.press("Tab")
        run_although_long(pages[0])
        expect(first).to_contain_text(re.compile(r"[1-9]\d* of 2000 steps"))
        run_although_long(pages[1])
        expect(second).to_contain_text("busy with other visitors; this run is next")
        pages[0].get_by_role("button", name="Stop").click()
        expect(second).to_contain_text(re.compile(r"[1-9]\d* of 2000 steps"))
        pages[1].get_by_role("button", name="Stop").click()
        expect(second).to_contain_text("Stopped")

    def test_two_visitors_see_their_own_results(self, visitor, app_url):
        pages = [visitor(app_url) for _ in range(2)]
        for page, text in zip(pages, ("a sheep", "a rocket"), strict=True):
            choose_tool(page, "board")
            give_image(page)
            page.locator("#setting-text textarea").fill(text)
            page.get_by_role("button", name="Run").click(no_wait_after=True)
        for page, own, other in zip(pages, ("a sheep", "a rocket"), ("a rocket", "a sheep"), strict=True):
            expect(page.get_by_role("rowheader", name=own).first).to_be_visible()
            expect(page.get_by_role("rowheader", name=other)).to_have_count(0)


def test_a_password_opens_the_page(visitor, servers, demo, monkeypatch):
    monkeypatch.setenv("TEXT2SEG_PASSWORD", "geheim")
    url = servers.enter_context(live_app(demo, auth=("ann",)))
    assert httpx.get(url).status_code == 401
    page = visitor(url, http_credentials={"username": "ann", "password": "geheim"})
    open_tab(page, "Explain")
    give_image(page)


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

LISTEN = """
  window.heard = new Set(); // what live regions said
  new MutationObserver((changes) => changes.forEach(({ target }) => {
    const element = target.nodeType === Node.TEXT_NODE ? target.parentElement : target;
    const region = element?.closest?.('[aria-live], [role=status], [role=alert]');
    if (region) window.heard.add(region.textContent.trim());
  })).observe(document, { childList: true, subtree: true, characterData: true });
"""

KEYS = """() => [...document.querySelectorAll('body *:not(script):not(style)')].flatMap((e) => [
  e.getAttribute('aria-label'), e.title, e.placeholder, e.alt, e.children.length ? '' : e.textContent])
  .filter((text) => /^[a-z_]+(\\.[a-z_]+)+$/.test((text ?? '').trim()) && !/\\.(jpg|png|json|zip|yaml)$/.test(text))"""

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
