"""Presses that come before the page is all there, twice, or while something else is under way: none is lost.

The page is slow here: a connection as on the road, and a processor that has other things to do.
"""

from __future__ import annotations

import socket
import zipfile

import pytest
from app_builders import SCENE, live_app
from playwright.sync_api import expect

EARLY = """(selectors) => {
  // Presses each of these, one after the other, in the first frame in which a person could.
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
PIECE = ".t2s-picture [data-piece]"


def slowly(page, *, latency: int = 300, kilobytes: int = 600, slower: int = 4) -> None:
    """Make a page slow: milliseconds of every request, kilobytes in a second, times the processor needs longer."""
    chromium = page.context.new_cdp_session(page)
    rate = kilobytes * 1000
    conditions = {"offline": False, "latency": latency, "downloadThroughput": rate, "uploadThroughput": rate}
    chromium.send("Network.emulateNetworkConditions", conditions)
    chromium.send("Emulation.setCPUThrottlingRate", {"rate": slower})


@pytest.fixture
def hasty(visitor, app_url):
    """A slow page on which these controls are pressed as soon as they can be."""

    def opened(*selectors: str, url: str = app_url):
        def prepare(page) -> None:
            slowly(page)
            page.add_init_script(f"addEventListener('DOMContentLoaded', () => ({EARLY})({list(selectors)!r}))")

        page = visitor(url, prepare=prepare)
        page.wait_for_function(f"window.pressedEarly.length === {len(selectors)}")
        return page

    return opened


@pytest.fixture
def zipped(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(SCENE, SCENE.name)
    return path


class TestEarly:
    def test_an_example(self, hasty):
        page = hasty("[data-example='0']")
        page.locator(PIECE).first.wait_for()

    def test_find(self, hasty):
        page = hasty("[data-do=look]")
        expect(page.get_by_role("alert")).to_contain_text("Choose a picture first")

    def test_what_is_typed_before_the_picture_is_there_is_looked_for(self, hasty):
        page = hasty("[data-example='0']")
        page.get_by_label("Add what to look for").fill("bomb")
        page.keyboard.press("Enter")
        expect(page.locator("t2s-legend .t2s-query strong")).to_have_text(["sheep", "fire engine", "koala", "bomb"])

    def test_label(self, hasty):
        page = hasty("[role=tab]:nth-child(2)", "#folder-start")
        expect(page.locator("#folder-problem").get_by_role("alert")).to_contain_text("Choose pictures first")
        expect(page.locator("#folder-start")).to_be_enabled()

    def test_an_ontology(self, hasty):
        page = hasty("[role=tab]:nth-child(2)", ".t2s-folder-examples button")
        expect(page.locator(".t2s-fine")).to_contain_text("3 categories")

    def test_run(self, hasty):
        page = hasty("[role=tab]:nth-child(3)", "#explain-run")
        expect(page.locator("#explain-status").get_by_role("alert")).to_contain_text("looks at one image, got 0")
        expect(page.locator("#explain-run")).to_be_enabled()

    def test_run_with_the_tool_that_was_just_chosen(self, hasty):
        page = hasty("[role=tab]:nth-child(3)", "#explain-tool label:nth-of-type(2) input", "#explain-run")
        chosen = page.locator("#explain-tool label").nth(1).inner_text().partition(":")[0].strip()
        expect(page.locator("#explain-status").get_by_role("alert")).to_contain_text(chosen)

    def test_the_models_panel(self, hasty):
        page = hasty("#models button", "#models-use")
        expect(page.locator("#models-said").get_by_role("alert")).to_contain_text("download first")


class TestMeanwhile:
    def test_a_press_while_the_answers_before_it_are_on_their_way(self, page):
        """The server closes the stream of answers, and the page, which has not heard of it yet, asks something else."""
        page.get_by_role("tab", name="Label a folder").click()
        page.locator("#folder-begin").wait_for(state="attached")
        page.get_by_role("button", name="Models and weights").click()
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
            page.get_by_role("button", name="Example: wordings and limits").click()
        route, answer = late[0]
        route.fulfill(response=answer)
        expect(page.locator("#models-said").get_by_role("alert")).to_contain_text("download first")
        expect(page.locator("#folder-ontology")).to_contain_text("threshold")

    def test_label_while_the_pictures_are_uploaded(self, visitor, app_url, zipped):
        page = visitor(app_url)
        page.get_by_role("tab", name="Label a folder").click()
        page.get_by_label("Things, with commas between them").fill("sheep")
        slowly(page, kilobytes=20)
        page.locator("#folder-files input[type=file]").set_input_files(zipped)
        page.locator("#folder-start").click()
        expect(page.locator("#folder-start")).to_be_disabled()
        expect(page.locator(".t2s-status")).to_contain_text("photos.zip")

    def test_run_while_the_picture_is_uploaded(self, visitor, app_url):
        page = visitor(app_url)
        page.get_by_role("tab", name="Explain").click()
        page.locator("#explain-picture input[type=file]").wait_for(state="attached")
        page.locator("#explain-group").get_by_text("Recognition", exact=True).click()
        page.locator("#explain-tool").get_by_text("multilabel").click()
        slowly(page, kilobytes=20)
        page.locator("#explain-picture input[type=file]").set_input_files(SCENE)
        page.locator("#explain-run").click()
        expect(page.locator("#explain-status h3")).to_be_visible()

    def test_what_was_typed_into_a_tool_is_there_when_it_is_chosen_again(self, page):
        page.get_by_role("tab", name="Explain").click()
        page.locator("#explain-group").get_by_text("Saliency", exact=True).click()
        tool, other = (page.locator("#explain-tool label").nth(place) for place in (0, 1))
        page.locator("#fields-of-saliency").wait_for()
        text = page.locator("#setting-text textarea")
        text.fill("a sheep")
        other.click()
        expect(text).to_have_value("")
        tool.click()
        expect(text).to_have_value("a sheep")

    def test_an_upload_that_fails_is_said_and_one_can_go_on(self, page, scene):
        page.expected += ["503", "could not"]
        page.locator("[data-example]").first.wait_for()
        page.route("**/upload*", lambda route: route.fulfill(status=503, body="full"))
        page.set_input_files("t2s-stage input[type=file]", scene)
        expect(page.get_by_role("alert")).to_contain_text("scene_0019.jpg could not be sent")
        page.unroute("**/upload*")
        page.set_input_files("t2s-stage input[type=file]", scene)
        page.locator(".t2s-figure").wait_for()

    def test_another_picture_while_one_is_looked_at(self, page, scene):
        page.locator("[data-example='1']").click()
        page.set_input_files("t2s-stage input[type=file]", scene)
        expect(page.get_by_role("group", name="scene_0019.jpg")).to_be_visible()
        page.locator("svg.t2s-picture[aria-busy=false]").wait_for()
        expect(page.get_by_role("group", name="scene_0019.jpg")).to_be_visible()


class TestTwice:
    def test_label_on_a_first_visit_makes_one_job(self, visitor, app_url, zipped):
        page = visitor(app_url)
        page.get_by_role("tab", name="Label a folder").click()
        page.get_by_label("Things, with commas between them").fill("sheep")
        page.locator("#folder-files input[type=file]").set_input_files(zipped)
        page.locator("#folder-files").get_by_text("photos").first.wait_for()
        asked = []
        page.on("request", lambda request: asked.append(request.post_data or "") if "join" in request.url else None)
        page.locator("#folder-start").dblclick()
        page.locator(".t2s-status.done").wait_for()
        assert sum("photos.zip" in each for each in asked) == 1
        expect(page.locator("#folder-jobs").get_by_role("radio")).to_have_count(2)

    def test_run_runs_once(self, page):
        page.get_by_role("tab", name="Explain").click()
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
        page.locator("#explain-run").wait_for()
        page.locator("[id^=fields-of-]").wait_for()
        before = len(asked)
        page.locator("#explain-run").dblclick()
        page.locator("#explain-status").get_by_role("alert").wait_for()
        assert len(asked) - before <= 2  # the run, and the tables of its exhibit


def test_a_server_that_was_started_anew_gets_a_page_that_is_loaded_anew(visitor, demo):
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
        ]
        page.evaluate("window.isBefore = true")
    with live_app(demo, port=port):
        page.wait_for_function("!window.isBefore")
        page.locator("[data-example='0']").click()
        page.locator(PIECE).first.wait_for()
        page.close()
