"""Masks without words in a real browser: everything in an image, boxes, names; and answers that come late."""

from __future__ import annotations

import json
import threading

import pytest
from app_builders import live_app
from playwright.sync_api import expect
from pycocotools import mask as coco_mask

from browser.test_folder import begin as label
from browser.test_folder import folder_tab, make_zip, six, status, wait_for_tally  # noqa: F401
from browser.test_segment import (
    PIECE,
    add_queries,
    paths,
    place_of,
    recorded_requests,
    save,
    select,
    selected,
    take_example,
    upload,
    verdicts,
    wait_until_idle,
)
from text2seg.app.segment import requests

REGION = ".t2s-image [data-region]"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The apps of these tests do not ask before they begin, however slow the machine is."""
    monkeypatch.setattr(requests, "seconds_for_everything", lambda session: 0.0)


@pytest.fixture
def page(visitor, servers, demo):
    return visitor(servers.enter_context(live_app(demo)))


def show_everything(page):
    page.get_by_role("button", name="Everything").click()
    page.locator(REGION).first.wait_for()
    wait_until_idle(page)


def region_numbers(page):
    return page.locator(REGION).evaluate_all(
        "all => all.map(each => Number(each.dataset.region)).sort((a, b) => a - b)"
    )


def pick(page, number):
    """Pick a region that nothing covers, by keyboard."""
    page.locator(f"{REGION}[data-region='{number}']").focus()
    page.keyboard.press("Enter")
    page.locator(f"{REGION}[data-region='{number}']").wait_for(state="detached")
    wait_until_idle(page)


def name_it(page, name):
    field = page.get_by_label("Name", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Enter")
    page.locator("t2s-legend").get_by_text(name, exact=True).wait_for()
    wait_until_idle(page)


def drag(page, left, top, right, bottom):
    start, end = place_of(page, left, top), place_of(page, right, bottom)
    box = page.locator(".t2s-image").bounding_box()
    page.mouse.move(box["x"] + start["x"], box["y"] + start["y"])
    page.mouse.down()
    page.mouse.move(box["x"] + (start["x"] + end["x"]) / 2, box["y"] + (start["y"] + end["y"]) / 2)
    assert page.locator("[data-part=cursor] path").count() == 2  # the box is drawn
    page.mouse.move(box["x"] + end["x"], box["y"] + end["y"])
    page.mouse.up()
    wait_until_idle(page)


def test_everything_is_shown_lit_up_picked_named_and_exported(page, scene):
    upload(page, scene)
    expect(page.locator("t2s-toolbar [data-part=hint]")).to_contain_text("find everything without words")
    show_everything(page)
    numbers = region_numbers(page)
    assert len(numbers) >= 4
    fills = page.locator(REGION).evaluate_all("all => all.map(each => each.getAttribute('fill'))")
    assert len(set(fills)) == len(numbers)

    first = page.locator(f"{REGION}[data-region='1']")
    first.dispatch_event("pointermove", {"bubbles": True})
    expect(first).to_have_class("t2s-hover")
    assert page.locator(f"{REGION}.t2s-hover").count() == 1
    assert page.locator(".t2s-tip").inner_text() == "mask 1"
    d = first.get_attribute("d")

    first.click(force=True)
    page.locator(PIECE).wait_for()
    wait_until_idle(page)
    assert region_numbers(page) == numbers[1:]
    assert paths(page) == [d]
    assert verdicts(page) == {"object": "1 added by hand"}
    name_it(page, "unicycle")  # no word that the model knows
    assert verdicts(page) == {"unicycle": "1 added by hand"}

    file, content = save(page, "coco")
    dataset = json.loads(content)
    assert file == "scene_0019_dataset.json"
    assert [each["name"] for each in dataset["categories"]] == ["unicycle"]
    (annotation,) = dataset["annotations"]
    assert coco_mask.area(annotation["segmentation"]) == annotation["area"] > 0
    assert "--everything" in page.locator("[data-code=command]").text_content()

    page.keyboard.press("Control+z")
    page.locator("t2s-legend").get_by_text("object", exact=True).wait_for()
    wait_until_idle(page)
    page.keyboard.press("Control+z")
    page.locator(PIECE).wait_for(state="detached")
    expect(page.locator("svg.t2s-image")).to_be_focused()  # the download button with the focus is gone
    assert region_numbers(page) == numbers  # it can be picked again
    asked = recorded_requests(page)
    page.keyboard.press("e")
    page.locator(REGION).first.wait_for(state="detached")
    page.keyboard.press("e")
    page.locator(REGION).first.wait_for()
    assert not asked  # it is found once


def test_a_picked_mask_stays_with_searches_and_a_reload(page, scene):
    upload(page, scene)
    show_everything(page)
    pick(page, 2)
    name_it(page, "thing")
    add_queries(page, "sheep")
    page.locator("t2s-legend").get_by_text("sheep", exact=True).wait_for()
    wait_until_idle(page)
    assert set(verdicts(page)) == {"sheep", "thing"}
    before = sorted(paths(page))
    page.reload()
    page.locator(PIECE).nth(2).wait_for()
    wait_until_idle(page)
    assert sorted(paths(page)) == before
    assert page.locator(REGION).count() == 0
    asked = recorded_requests(page)
    page.get_by_role("button", name="Everything").click()
    page.locator(REGION).first.wait_for()
    assert 2 not in region_numbers(page)
    assert not asked


def test_a_found_segment_gets_another_name(page):
    take_example(page)
    select(page, "fire engine")
    field = page.get_by_label("Name", exact=True)
    expect(field).to_have_value("fire engine")
    field.fill("lorry")
    field.press("Enter")
    page.locator("t2s-legend").get_by_text("lorry", exact=True).wait_for()
    wait_until_idle(page)
    assert len(paths(page)) == 3
    assert [name.split(",")[0] for name in selected(page)] == ["lorry"]
    expect(page.locator("svg.t2s-image")).to_be_focused()


@pytest.mark.parametrize("leave", ["another mask", "a download"])
def test_a_name_counts_without_enter(page, scene, leave):
    upload(page, scene)
    show_everything(page)
    pick(page, 1)
    field = page.get_by_label("Name", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("lorry")
    if leave == "another mask":
        page.locator(f"{REGION}[data-region='2']").click(force=True)
        page.locator("t2s-legend").get_by_text("object", exact=True).wait_for()
        wait_until_idle(page)
        assert verdicts(page) == {"lorry": "1 added by hand", "object": "1 added by hand"}
        expect(field).to_be_focused()
        expect(field).to_have_value("object")
    else:
        (annotation,) = json.loads(save(page, "coco")[1])["categories"]
        assert annotation["name"] == "lorry"


def test_an_image_of_a_job_is_not_saved_with_a_name_that_is_refused(page, six):  # noqa: F811
    label(page, six)
    status(page, "done")
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    page.get_by_role("dialog", name="Large view").get_by_role("button", name="Edit").first.click()
    page.locator("#folder-return").get_by_text("day/scene_0019.jpg").wait_for()
    page.locator(f"{PIECE}[aria-pressed=true]").wait_for()
    page.get_by_role("button", name="Box").click()
    drag(page, 50, 112, 120, 205)
    field, save_it = page.get_by_label("Name", exact=True), page.get_by_role("button", name="Save and go back")
    expect(field).to_be_focused()
    refused = page.locator("t2s-toolbar").get_by_role("alert")
    for _ in range(2):  # also if it is pressed again
        field.fill("lorry")
        save_it.click()
        expect(refused).to_contain_text("lorry")
        expect(field).to_be_focused()
        expect(field).to_have_value("lorry")
    assert page.locator("#folder-return").is_visible()
    page.get_by_label("Threshold").press("ArrowLeft")  # takes no message away
    wait_until_idle(page)
    expect(refused).to_contain_text("lorry")
    field.fill("koala")
    expect(refused).to_be_hidden()
    save_it.click()
    page.locator("#folder-return").wait_for(state="hidden")
    wait_for_tally(page, "1 corrected")


def test_escape_takes_back_a_name_that_is_being_typed(page, scene):
    upload(page, scene)
    show_everything(page)
    pick(page, 1)
    asked = recorded_requests(page)
    page.get_by_label("Name", exact=True).fill("lorry")
    page.keyboard.press("Escape")
    expect(page.locator("svg.t2s-image")).to_be_focused()
    expect(page.get_by_label("Name", exact=True)).to_have_value("object")
    assert not asked


def test_a_dragged_box_gives_a_segment(page, scene):
    upload(page, scene)
    page.get_by_role("button", name="Box").click()
    drag(page, 185, 165, 268, 258)
    page.locator(PIECE).wait_for()
    name_it(page, "lorry")
    (annotation,) = json.loads(save(page, "coco")[1])["annotations"]
    left, top, width, height = annotation["bbox"]
    assert left >= 180
    assert top >= 160
    assert left + width <= 272
    assert top + height <= 262
    assert len(annotation["attributes"]["box_prompt"]) == 4
    page.keyboard.press("Control+z")
    page.locator("t2s-legend").get_by_text("object", exact=True).wait_for()
    wait_until_idle(page)
    page.keyboard.press("Control+z")
    page.locator(PIECE).wait_for(state="detached")


def test_a_box_may_begin_beside_the_image(page, scene):
    upload(page, scene)
    page.get_by_role("button", name="Box").click()
    drag(page, -8, 110, 105, 220)
    page.locator(PIECE).wait_for()
    name_it(page, "bomb")
    (annotation,) = json.loads(save(page, "coco")[1])["annotations"]
    assert annotation["attributes"]["box_prompt"][0] == 0


def test_a_box_for_a_word_needs_no_name(page):
    take_example(page)
    page.get_by_role("button", name="Add by hand: koala").click()
    drag(page, 5, 110, 105, 220)
    page.locator("t2s-legend").get_by_role("button", name="koala 1, score").wait_for()
    assert [name.split(",")[0] for name in selected(page)] == ["koala"]


def test_a_box_by_keys(page, scene):
    upload(page, scene)
    page.locator("svg.t2s-image").focus()
    page.keyboard.press("b")
    for key in ("ArrowLeft", "ArrowUp", "Enter", *["ArrowRight"] * 4, *["ArrowDown"] * 4, "Enter"):
        page.keyboard.press(key)
    page.locator(PIECE).wait_for()
    wait_until_idle(page)
    assert verdicts(page) == {"object": "1 added by hand"}


def test_a_click_with_the_box_tool_draws_no_box(page):
    take_example(page)
    asked = recorded_requests(page)
    page.get_by_role("button", name="Box").click()
    page.locator(f"{PIECE}[aria-label^='fire engine']").click(force=True)
    assert [name.split(",")[0] for name in selected(page)] == ["fire engine"]
    assert not asked


def test_slow_work_says_so_shows_progress_and_is_stopped(visitor, servers, demo, monkeypatch, scene):
    monkeypatch.setattr(requests, "seconds_for_everything", lambda session: 42.0)
    go_on, found = threading.Event(), requests.find_everything

    def slow(session):
        while not go_on.wait(0.05):
            session.opened.segment_prompt(session.document.pieces[0].segment.points)  # a call of the network
        return found(session)

    monkeypatch.setattr(requests, "find_everything", slow)
    page = visitor(servers.enter_context(live_app(demo)))
    take_example(page)
    page.get_by_role("button", name="Everything").click()
    ask = page.get_by_text("Finding everything takes about 42 s on this computer.")
    ask.wait_for()
    page.get_by_role("button", name="Not now").click()
    expect(page.get_by_role("button", name="Everything")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Everything").click()
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator(".t2s-busy")).to_contain_text("%")
    page.get_by_role("button", name="Stop", exact=True).click()
    page.get_by_text("Stopped. Nothing has changed.").wait_for()
    assert page.locator(".t2s-busy").is_hidden()
    assert len(paths(page)) == 3
    go_on.set()
    expect(page.get_by_role("button", name="Everything")).to_have_attribute("aria-pressed", "false")
    page.get_by_role("button", name="Everything").click()
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(REGION).first.wait_for()


class TestLateAnswers:
    """A request that still runs when the page shows something else."""

    @pytest.fixture
    def gate(self, monkeypatch):
        """Searches for "bomb" wait at this gate."""
        gate, found = threading.Event(), requests.find

        def waiting(session, pool, texts, **named):
            if "bomb" in texts:
                assert gate.wait(120)
            return found(session, pool, texts, **named)

        monkeypatch.setattr(requests, "find", waiting)
        yield gate
        gate.set()

    def test_an_edit_of_the_review_is_not_overwritten(self, page, six, gate):  # noqa: F811
        label(page, six)
        status(page, "done")
        page.get_by_role("tab", name="Segment").click()
        take_example(page, 1)
        add_queries(page, "bomb")
        page.locator(".t2s-busy").get_by_text("Searching …").wait_for()
        folder_tab(page)
        page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
        page.get_by_role("dialog", name="Large view").get_by_role("button", name="Edit").first.click()
        page.locator("#folder-return").get_by_text("day/scene_0019.jpg").wait_for()
        page.locator(f"{PIECE}[aria-pressed=true]").wait_for()
        with page.expect_response(lambda answer: "queue/join" in answer.url):
            gate.set()
            page.locator("[data-tool=accept]").click()
        page.locator("t2s-legend").get_by_text("✓").wait_for()
        wait_until_idle(page)
        assert page.get_by_role("group", name="day/scene_0019.jpg").is_visible()
        page.get_by_role("button", name="Save and go back").click()
        page.locator("#folder-sheet .t2s-tile").first.wait_for()
        page.locator("#folder-return").wait_for(state="hidden")
        page.get_by_role("tab", name="Segment").click()
        page.get_by_role("group", name="scene_0012.jpg").wait_for()

    def test_an_upload_during_a_search_wins(self, page, scene, gate):
        take_example(page, 1)
        add_queries(page, "bomb")
        page.locator(".t2s-busy").get_by_text("Searching …").wait_for()
        page.set_input_files("t2s-stage input[type=file]", scene)
        gate.set()
        page.get_by_role("group", name="scene_0019.jpg").wait_for()
        page.locator("t2s-legend").get_by_text("bomb", exact=True).wait_for()
        wait_until_idle(page)
        assert page.get_by_role("group", name="scene_0019.jpg").is_visible()

    def test_a_switch_of_models_during_a_search_leaves_a_page_that_works(self, visitor, servers, demo, gate):
        from text2seg import Text2Seg
        from text2seg.app.model_pool import ModelPool
        from text2seg.app.serve import running
        from text2seg.app.settings import AppSettings

        pool = ModelPool(demo, AppSettings(port=0))
        url, _ = servers.enter_context(running(pool))
        page = visitor(url)
        take_example(page)
        add_queries(page, "bomb")
        page.locator(".t2s-busy").get_by_text("Searching …").wait_for()
        pool.use(Text2Seg(demo.clip, demo.sam, settings=demo.settings, input_size=demo.input_size, card=demo.card))
        gate.set()
        page.locator("t2s-legend").get_by_text("bomb", exact=True).wait_for()
        wait_until_idle(page)
        before = len(paths(page))
        select(page, "bomb")
        page.get_by_role("button", name="Delete").click()
        wait_until_idle(page)
        assert len(paths(page)) == before - 1
        page.get_by_role("button", name="Undo").click()
        wait_until_idle(page)
        assert len(paths(page)) == before
