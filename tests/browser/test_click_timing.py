"""Clicks before the page has loaded, double clicks, and clicks during a request: none is lost.

The page is slow in these tests: a slow connection and a slow processor.
"""

from __future__ import annotations

import socket
import zipfile

import pytest
from app_builders import SCENE, live_app
from playwright.sync_api import expect

EARLY = """(selectors) => {
  // Clicks each of these, one after the other, in the first frame in which a person could.
  window.pressedEarly = [];
  const press = () => {
    const found = [...document.querySelectorAll(selectors[0])].find((each) => each.checkVisibility());
    const { x, y, width, height } = found?.getBoundingClientRect() ?? {};
    if (found && width && !found.disabled && !found.closest("[inert]")) {
      found.click();
      window.pressedEarly.push(selectors.shift());
    }
    if (selectors.length) requestAnimationFrame(press);
  };
  press();
}"""
PIECE = ".t2s-image [data-piece]"


def slow_down(page, *, latency: int = 300, kilobytes: int = 600, slower: int = 4) -> None:
    """Make a page slow: `latency` milliseconds for each request, `kilobytes` per second, a processor `slower` times as
    slow."""
    chromium = page.context.new_cdp_session(page)
    rate = kilobytes * 1000
    conditions = {"offline": False, "latency": latency, "downloadThroughput": rate, "uploadThroughput": rate}
    chromium.send("Network.emulateNetworkConditions", conditions)
    chromium.send("Emulation.setCPUThrottlingRate", {"rate": slower})


@pytest.fixture
def early_clicks(visitor, app_url):
    """Function that opens a slow page and clicks these controls as soon as possible."""

    def open_and_click(*selectors: str, url: str = app_url):
        def prepare(page) -> None:
            slow_down(page)
            page.add_init_script(f"addEventListener('DOMContentLoaded', () => ({EARLY})({list(selectors)!r}))")

        page = visitor(url, prepare=prepare)
        page.wait_for_function(f"window.pressedEarly.length === {len(selectors)}")
        return page

    return open_and_click


@pytest.fixture
def zipped(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(SCENE, SCENE.name)
    return path


class TestClicksBeforeThePageHasLoaded:
    def test_click_on_an_example_opens_it(self, early_clicks):
        page = early_clicks("[data-example='0']")
        page.locator(PIECE).first.wait_for()

    def test_find_asks_for_an_image(self, early_clicks):
        page = early_clicks("[data-do=find]")
        expect(page.get_by_role("alert")).to_contain_text("Choose an image first")

    def test_a_query_typed_before_the_image_has_loaded_is_searched(self, early_clicks):
        page = early_clicks("[data-example='0']")
        page.get_by_label("Add a query").fill("bomb")
        page.keyboard.press("Enter")
        expect(page.locator("t2s-legend .t2s-query strong")).to_have_text(["sheep", "fire engine", "koala", "bomb"])

    def test_label_asks_for_images(self, early_clicks):
        page = early_clicks("[role=tab]:nth-child(2)", "#folder-start")
        expect(page.locator("#folder-problem").get_by_role("alert")).to_contain_text(
            "Choose images or a zip file first"
        )
        expect(page.locator("#folder-start")).to_be_enabled()

    def test_click_on_an_example_ontology_fills_the_editor(self, early_clicks):
        page = early_clicks("[role=tab]:nth-child(2)", ".t2s-folder-examples button")
        expect(page.locator(".t2s-valid")).to_contain_text("3 categories")

    def test_run_gives_a_result(self, early_clicks):
        page = early_clicks("[role=tab]:nth-child(3)", "#explain-run")
        expect(page.locator("#explain-status h3")).to_be_visible()
        expect(page.locator("#explain-status")).not_to_contain_text("An example")
        expect(page.locator("#explain-run")).to_be_enabled()

    def test_run_uses_the_tool_that_was_just_chosen(self, visitor, app_url):
        page = visitor(app_url, prepare=slow_down)
        page.get_by_role("tab", name="Explain").click()
        page.locator("#explain-tool select").select_option("multilabel")
        page.locator("#explain-run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()
        expect(page.locator("#explain-status")).not_to_contain_text("An example")
        expect(page.locator("#explain-status h3")).to_contain_text("labels it shows")

    def test_the_models_panel_answers(self, early_clicks):
        page = early_clicks("#models > button")
        expect(page.locator("#models-table")).to_contain_text("CLIP ViT-B/16")


class TestClicksDuringARequest:
    def test_a_click_before_the_previous_response_arrives_is_answered(self, page):
        """The server closes the stream of events, and the page sends another request before it receives the end."""
        page.get_by_role("tab", name="Label a folder").click()
        page.locator("#folder-begin").wait_for(state="attached")
        page.locator("#models > button").click()
        page.locator("#models-pair").get_by_text("demo", exact=True).click()
        expect(page.get_by_role("button", name="Use for everyone")).to_be_enabled()
        late = []

        def first_waits(route) -> None:
            if late:
                route.continue_()
            else:
                late.append((route, route.fetch()))

        page.route("**/queue/data*", first_waits)
        page.get_by_role("button", name="Use for everyone").click()
        while not late:
            page.wait_for_timeout(20)
        with page.expect_response("**/queue/join*"):
            page.get_by_role("button", name="Example: all options").click()
        route, answer = late[0]
        route.fulfill(response=answer)
        expect(page.locator("#models-said")).to_contain_text("demo is in use already")
        expect(page.locator("#folder-ontology")).to_contain_text("threshold")

    def test_label_during_the_upload_of_images(self, visitor, app_url, zipped):
        page = visitor(app_url)
        page.get_by_role("tab", name="Label a folder").click()
        page.get_by_label("Things to find, separated by commas").fill("sheep")
        slow_down(page, kilobytes=20)
        page.locator("#folder-files input[type=file]").set_input_files(zipped)
        page.locator("#folder-start").click()
        expect(page.locator(".t2s-status")).to_contain_text("photos.zip")

    def test_run_during_the_upload_of_the_image(self, visitor, app_url):
        page = visitor(app_url)
        page.get_by_role("tab", name="Explain").click()
        page.locator("#explain-tool select").select_option("multilabel")
        page.locator("#explain-image").get_by_role("button", name="Remove image").click()
        page.locator("#explain-image input[type=file]").wait_for(state="attached")
        slow_down(page, kilobytes=20)
        page.locator("#explain-image input[type=file]").set_input_files(SCENE)
        page.locator("#explain-run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()

    def test_text_typed_into_a_tool_is_kept_when_it_is_chosen_again(self, page):
        page.get_by_role("tab", name="Explain").click()
        tools = page.locator("#explain-tool select")
        tools.select_option("saliency")
        page.locator("#fields-of-saliency").wait_for()
        text = page.locator("#setting-text textarea")
        text.fill("a rocket")
        tools.select_option("compare")
        page.locator("#fields-of-compare").wait_for()
        expect(text).to_have_value("sheep")
        tools.select_option("saliency")
        expect(text).to_have_value("a rocket")

    def test_a_failed_upload_shows_an_error_and_can_be_repeated(self, page, scene):
        page.expected += ["503", "could not"]
        page.locator("[data-example]").first.wait_for()
        page.route("**/upload*", lambda route: route.fulfill(status=503, body="full"))
        page.set_input_files("t2s-stage input[type=file]", scene)
        expect(page.get_by_role("alert")).to_contain_text("scene_0019.jpg could not be uploaded")
        page.unroute("**/upload*")
        page.set_input_files("t2s-stage input[type=file]", scene)
        page.locator(".t2s-figure").wait_for()

    def test_an_upload_during_the_search_of_an_example_replaces_it(self, page, scene):
        page.locator("[data-example='1']").click()
        page.set_input_files("t2s-stage input[type=file]", scene)
        expect(page.get_by_role("group", name="scene_0019.jpg")).to_be_visible()
        page.locator("svg.t2s-image[aria-busy=false]").wait_for()
        expect(page.get_by_role("group", name="scene_0019.jpg")).to_be_visible()


class TestDoubleClicks:
    def test_double_click_on_label_makes_one_job(self, visitor, app_url, zipped):
        page = visitor(app_url)
        page.get_by_role("tab", name="Label a folder").click()
        page.get_by_label("Things to find, separated by commas").fill("sheep")
        page.locator("#folder-files input[type=file]").set_input_files(zipped)
        page.locator("#folder-files").get_by_text("photos").first.wait_for()
        asked = []
        page.on("request", lambda request: asked.append(request.post_data or "") if "join" in request.url else None)
        page.locator("#folder-start").dblclick()
        page.locator(".t2s-status.done").wait_for()
        assert sum("photos.zip" in each for each in asked) == 1
        expect(page.locator("#folder-jobs").get_by_role("radio")).to_have_count(2)

    def test_double_click_on_run_runs_once(self, page):
        page.get_by_role("tab", name="Explain").click()
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
        page.locator("#explain-run").wait_for()
        page.locator("[id^=fields-of-]").wait_for()
        expect(page.locator("#explain-status")).to_contain_text("An example")
        page.get_by_role("rowheader", name="a bomb").wait_for()
        before = len(asked)
        page.locator("#explain-run").dblclick()
        expect(page.locator("#explain-run")).to_be_enabled()
        expect(page.locator("#explain-status")).not_to_contain_text("An example")
        assert len(asked) - before == 1


def test_the_page_reloads_after_a_restart_of_the_server(visitor, demo):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with live_app(demo, port=port) as url:
        page = visitor(url)
        page.expected += [
            "ERR_CONNECTION_REFUSED",
            "ERR_INCOMPLETE_CHUNKED",
            "network error",
            "Failed to fetch",
            "errored",
            "Unable to preload CSS",  # the page loaded its last components when the server stopped
        ]
        page.evaluate("window.isBefore = true")
    with live_app(demo, port=port):
        page.wait_for_function("!window.isBefore")
        page.locator("[data-example='0']").click()
        page.locator(PIECE).first.wait_for()
        page.close()


TYPE_EARLY = """() => {
  // Chooses a tool as soon as there is a list, and types into its form as soon as there is one.
  const look = () => {
    const list = document.querySelector("#explain-tool select");
    if (list && !window.isChosen) {
      window.isChosen = true;
      list.value = "saliency";
      list.dispatchEvent(new Event("change", { bubbles: true }));
    }
    const field = document.querySelector("#fields-of-saliency #setting-text textarea");
    if (!field) return requestAnimationFrame(look);
    field.value = "koala";
    field.dispatchEvent(new Event("input", { bubbles: true }));
    window.isTyped = true;
  };
  look();
}"""


def test_a_text_that_is_typed_while_the_page_loads_stays(visitor, app_url):
    forms = []

    def prepare(page) -> None:
        slow_down(page)
        page.add_init_script("""sessionStorage.setItem('text2seg-tab', '"Explain"')""")
        page.add_init_script(f"addEventListener('DOMContentLoaded', {TYPE_EARLY})")
        page.on("request", lambda request: forms.append(1) if '["saliency",{}]' in (request.post_data or "") else None)

    page = visitor(app_url, prepare=prepare)
    page.wait_for_function("window.isTyped")
    page.wait_for_timeout(3000)  # answers that are on their way
    expect(page.locator("#fields-of-saliency #setting-text textarea")).to_have_value("koala")
    assert len(forms) == 1
