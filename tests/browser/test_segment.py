"""The Segment tab in a real browser: queries, segments, corrections, exports."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import threading
import zipfile

import numpy as np
import pytest
from app_builders import live_app
from PIL import Image
from playwright.sync_api import expect
from pycocotools.coco import COCO

from browser.test_app import CONTRAST, NAMELESS
from text2seg import Text2Seg
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment import requests
from text2seg.app.serve import running
from text2seg.app.settings import AppSettings
from text2seg.runtime import before_call

PIECE = ".t2s-image [data-piece]"
EXIF_ORIENTATION = 0x0112


def take_example(page, number=0):
    page.locator(f"[data-example='{number}']").click()
    page.locator(PIECE).first.wait_for()


def ready(page):
    page.locator("[data-example]").first.wait_for()


def upload(page, path):
    ready(page)
    page.set_input_files("t2s-stage input[type=file]", path)
    page.locator(".t2s-figure").wait_for()


def add_queries(page, *texts):
    for text in texts:
        page.get_by_label("Add a query").fill(text)
        page.keyboard.press("Enter")


def wait_until_idle(page):
    page.locator("svg.t2s-image[aria-busy=false]").wait_for()


def select(page, query, place=0):
    page.locator("t2s-legend").get_by_role("button", name=f"{query} {place + 1}, score").click()


def place_of(page, x, y):
    """Position of a pixel of the image within the element that shows it."""
    box = page.locator(".t2s-image").bounding_box()
    _, _, width, height = map(float, page.locator(".t2s-image").get_attribute("viewBox").split())
    scale = min(box["width"] / width, box["height"] / height)
    left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
    return {"x": left + x * scale, "y": top + y * scale}


def click_at(page, x, y, **options):
    """Click on the image at a position in image pixels, and wait for the response."""
    page.locator(".t2s-image").click(position=place_of(page, x, y), force=True, **options)
    wait_until_idle(page)


def paths(page):
    return page.locator(PIECE).evaluate_all("each => each.map(path => path.getAttribute('d'))")


def verdicts(page):
    entries = page.locator("t2s-legend .t2s-query").all()
    return {entry.locator("strong").inner_text(): entry.locator("span").inner_text() for entry in entries}


def save(page, kind):
    with page.expect_download() as download:
        page.locator(f"[data-kind={kind}]").click()
    with open(download.value.path(), "rb") as file:
        return download.value.suggested_filename, file.read()


def recorded_requests(page):
    """List that collects the requests of the page to the models from now on."""
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    return asked


def test_type_queries_and_see_segments(page, scene):
    upload(page, scene)
    add_queries(page, "sheep", "fire engine, koala")
    page.locator(PIECE).nth(2).wait_for()
    wait_until_idle(page)
    assert page.locator(".t2s-chips li").all_text_contents() == ["sheep×", "fire engine×", "koala×"]
    told = verdicts(page)
    assert told["sheep"].startswith("2 found, best 0.")
    assert told["koala"].startswith("not found (0.")
    assert "< 0.50)" in told["koala"]
    assert "sheep: 2 found" in page.locator("[data-part=said]").inner_text()


def test_chips_are_removed_by_backspace_and_cross(page, scene):
    upload(page, scene)
    add_queries(page, "sheep", "bomb")
    page.locator(PIECE).nth(2).wait_for()
    page.get_by_label("Add a query").press("Backspace")
    page.locator("t2s-legend").get_by_text("bomb").wait_for(state="detached")
    assert len(paths(page)) == 2
    page.get_by_role("button", name="Remove sheep").click()
    page.locator("t2s-legend").wait_for(state="hidden")  # no result stays without its word
    assert len(paths(page)) == 0


def test_hovering_names_the_segment(page):
    take_example(page)
    page.locator(f"{PIECE}[aria-label^='fire engine']").hover()
    assert page.locator(".t2s-tip").inner_text().startswith("fire engine 0.")
    assert page.locator("t2s-legend button.t2s-hover").count() == 1


def test_display_settings_send_no_request(page):
    take_example(page)
    asked = recorded_requests(page)
    page.get_by_label("At most").fill("1")
    assert len(paths(page)) == 2  # one sheep, one fire engine
    page.get_by_label("At most").fill("21")
    page.get_by_role("button", name="Hide sheep").click()
    assert len(paths(page)) == 1
    page.get_by_role("button", name="Show sheep").click()
    assert len(paths(page)) == 3
    page.get_by_label("Opacity").fill("0.9")
    assert page.locator(".t2s-image").evaluate("svg => svg.style.getPropertyValue('--t2s-opacity')") == "0.9"
    assert not asked


def test_sliders_search_again(page):
    take_example(page)
    select(page, "sheep")
    points = page.locator("t2s-stage .t2s-plus")
    before = points.count()
    page.get_by_label("Threshold").fill("0.95")
    page.wait_for_function(f"document.querySelectorAll('t2s-stage .t2s-plus').length !== {before}")
    page.get_by_label("Presence").fill("0")
    page.locator("t2s-legend li:not(.t2s-absent)").get_by_text("koala").wait_for()
    assert "--presence 0.0" in page.locator("[data-code=command]").text_content()


def test_add_points_undo_and_redo(page):
    take_example(page)
    before = paths(page)
    select(page, "fire engine")
    plus, minus = page.locator("t2s-stage .t2s-plus").count(), page.locator("t2s-stage .t2s-minus").count()
    click_at(page, 95, 150, modifiers=["Control"])  # on the bomb
    assert page.locator("t2s-stage .t2s-plus").count() == plus + 1
    corrected = paths(page)
    assert corrected != before
    click_at(page, 95, 150, modifiers=["Shift"])
    assert page.locator("t2s-stage .t2s-minus").count() == minus + 1
    page.keyboard.press("Control+z")
    wait_until_idle(page)
    assert sorted(paths(page)) == sorted(corrected)
    page.keyboard.press("Control+z")
    wait_until_idle(page)
    assert sorted(paths(page)) == sorted(before)
    page.keyboard.press("Control+y")
    wait_until_idle(page)
    assert sorted(paths(page)) == sorted(corrected)


def test_undo_brings_back_a_removed_word_with_its_hand_made_mask(page):
    take_example(page)
    assert page.get_by_role("button", name="Undo").is_disabled()
    page.get_by_role("button", name="Add by hand: koala").click()
    click_at(page, 60, 330)
    assert not verdicts(page)["koala"].startswith("not found")
    before = sorted(paths(page))
    page.get_by_role("button", name="Remove koala").click()
    page.locator("t2s-legend").get_by_text("koala").wait_for(state="detached")
    wait_until_idle(page)
    page.get_by_role("button", name="Undo").click()
    page.locator("t2s-legend").get_by_text("koala").wait_for()
    assert page.locator(".t2s-chips li").all_text_contents() == ["sheep×", "fire engine×", "koala×"]
    assert sorted(paths(page)) == before
    page.get_by_label("Threshold").fill("0.5")
    page.wait_for_function("document.querySelector('[data-code=command]').textContent.includes('--threshold 0.5')")
    wait_until_idle(page)
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("document.querySelector('[name=threshold]').value === '0.8'")
    page.get_by_role("button", name="Undo").click()  # the mask itself
    page.wait_for_function(f"document.querySelectorAll('{PIECE}').length === {len(before) - 1}")


def test_masks_that_go_with_their_word_are_told_and_come_back(page):
    take_example(page)
    page.get_by_label("Add a query").focus()
    for query in ("fire engine", "sheep"):
        select(page, query)
        page.keyboard.press("a")
        wait_until_idle(page)
    before = sorted(paths(page))
    page.get_by_label("Add a query").focus()
    page.keyboard.press("Backspace")  # koala
    wait_until_idle(page)
    note = page.locator("[data-part=note]")
    assert note.is_hidden()
    page.keyboard.press("Backspace")
    note.get_by_text("A mask that you made or accepted went with “fire engine”.").wait_for()
    page.keyboard.press("Backspace")
    note.get_by_text("2 masks that you made or accepted went with “fire engine”, “sheep”.").wait_for()
    page.keyboard.press("Control+z")  # in the empty field
    page.locator("t2s-legend").get_by_text("sheep").wait_for()
    wait_until_idle(page)
    page.get_by_role("button", name="Remove sheep").click()
    note.get_by_role("button", name="Bring back").click()
    page.locator("t2s-legend").get_by_text("sheep").wait_for()
    wait_until_idle(page)
    page.keyboard.press("Control+z")
    page.locator("t2s-legend").get_by_text("fire engine").wait_for()
    wait_until_idle(page)
    assert sorted(paths(page)) == before
    assert page.locator("t2s-legend").inner_text().count("✓") == 2


def test_the_sliders_stay_for_the_next_image(page, scene):
    ready(page)
    upload(page, scene)
    expect(page.get_by_label("Presence")).to_have_value("0.5")
    add_queries(page, "sheep", "koala")
    page.locator("t2s-legend .t2s-absent").get_by_text("koala").wait_for()
    page.get_by_label("Presence").fill("0")
    page.locator("t2s-legend li:not(.t2s-absent)").get_by_text("koala").wait_for()
    wait_until_idle(page)
    for number in (1, 0):
        page.get_by_role("button", name="Another image").click()
        page.locator(f"[data-example='{number}']").click()
        page.locator("t2s-legend li:not(.t2s-absent)").get_by_text("koala").wait_for()
        wait_until_idle(page)
        assert page.get_by_label("Presence").input_value() == "0"
        assert "--presence 0.0" in page.locator("[data-code=command]").text_content()


def test_two_quick_moves_of_sliders_both_count(page):
    take_example(page)
    page.get_by_label("Threshold").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    command = page.locator("[data-code=command]")
    expect(command).to_contain_text("--threshold 0.75")
    expect(command).to_contain_text("--presence 0.45")


def test_a_reload_keeps_the_sliders_of_an_image_without_words(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_label("Name", exact=True).fill("lorry")
    page.keyboard.press("Enter")
    page.locator("t2s-legend").get_by_text("lorry", exact=True).wait_for()
    page.get_by_label("Threshold").fill("0.5")
    wait_until_idle(page)
    for text in ("sheep", "fire engine", "koala"):
        page.get_by_role("button", name=f"Remove {text}", exact=True).click()
    wait_until_idle(page)
    page.get_by_label("Presence").fill("0.2")
    page.wait_for_function("JSON.parse(sessionStorage.getItem('text2seg-segment')).presence === 0.2")
    page.reload()
    page.locator(PIECE).first.wait_for()
    expect(page.get_by_label("Threshold")).to_have_value("0.5")
    expect(page.get_by_label("Presence")).to_have_value("0.2")
    add_queries(page, "sheep")
    expect(page.locator("[data-code=command]")).to_contain_text("--presence 0.2")


def test_the_name_of_a_file_is_kept_letter_by_letter(page, scene, tmp_path):
    name = """my "red" & $x!'é.jpg"""
    path = tmp_path / name
    path.write_bytes(scene.read_bytes())
    upload(page, path)
    add_queries(page, "sheep")
    page.locator(PIECE).first.wait_for()
    wait_until_idle(page)
    assert json.loads(save(page, "coco")[1])["images"][0]["file_name"] == name
    assert name in shlex.split(page.locator("[data-code=command]").text_content())


def test_at_most_never_hides_a_mask_that_was_made_by_hand(page):
    take_example(page)
    select(page, "sheep", 1)
    click_at(page, 20, 20, modifiers=["Shift"])
    page.keyboard.press("Escape")
    page.get_by_label("At most").fill("1")
    shown = page.locator("t2s-legend [data-piece]:not(.t2s-not-shown)").all_inner_texts()
    assert len(shown) == 3  # and one that was found of each word
    assert sum("by hand" in text for text in shown) == 1


def test_another_image_asks_before_it_replaces_hand_work(page, scene):
    take_example(page)
    page.get_by_role("button", name="Another image").click()
    page.locator("[data-example='1']").click()  # nothing to lose
    page.get_by_role("group", name="scene_0012.jpg").wait_for()
    wait_until_idle(page)
    page.locator("t2s-legend [data-piece]").first.click()
    page.keyboard.press("a")
    wait_until_idle(page)
    page.set_input_files("t2s-stage input[type=file]", scene)
    page.get_by_text("1 mask that you made or accepted is lost when another image replaces scene_0012.jpg.").wait_for()
    add_queries(page, "sheep")  # the question stays
    page.locator("t2s-legend").get_by_text("sheep", exact=True).wait_for()
    page.get_by_role("button", name="Stay with scene_0012.jpg").click()
    assert "✓" in page.locator("t2s-legend").inner_text()
    page.get_by_role("button", name="Another image").click()
    page.locator("[data-example='0']").click()
    expect(page.get_by_role("button", name="Stay with scene_0012.jpg")).to_be_focused()
    page.get_by_role("button", name="Replace it").press("Enter")
    page.get_by_role("group", name="scene_0019.jpg").wait_for()


def test_another_image_replaces_downloaded_work_without_a_question(page):
    take_example(page)
    select(page, "fire engine")
    page.keyboard.press("a")
    wait_until_idle(page)
    save(page, "overlay")  # which holds no mask
    page.get_by_role("button", name="Another image").click()
    page.locator("[data-example='1']").click()
    page.get_by_role("button", name="Stay with scene_0019.jpg").click()
    save(page, "coco")
    page.get_by_role("button", name="Another image").click()
    page.locator("[data-example='1']").click()
    page.get_by_role("group", name="scene_0012.jpg").wait_for()


def test_words_stay_when_their_search_is_stopped(visitor, servers, demo, monkeypatch):
    asked, go_on = threading.Event(), threading.Event()
    search = requests.find

    def slow(session, model_pool, texts, **given):
        if "sun" in texts and not go_on.is_set():
            asked.set()
            go_on.wait()
            before_call()
        return search(session, model_pool, texts, **given)

    monkeypatch.setattr(requests, "find", slow)
    page = visitor(servers.enter_context(live_app(demo)))
    take_example(page)
    wait_until_idle(page)
    page.get_by_label("Add a query").fill("sun")
    page.get_by_role("button", name="Find", exact=True).click()
    asked.wait()
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_timeout(500)  # until the server knows
    go_on.set()
    page.get_by_text("Stopped. Nothing has changed.").wait_for()
    wait_until_idle(page)
    assert page.get_by_role("button", name="Remove sun").is_visible()
    assert "sun" not in verdicts(page)
    page.get_by_role("button", name="Find", exact=True).click()
    page.locator("t2s-legend").get_by_text("sun", exact=True).wait_for()


def test_words_that_were_typed_count_when_an_image_is_opened(page, scene):
    ready(page)
    page.get_by_label("Add a query").press_sequentially("sheep, koala")
    upload(page, scene)
    page.locator("t2s-legend").get_by_text("koala", exact=True).wait_for()
    wait_until_idle(page)
    assert set(verdicts(page)) == {"sheep", "koala"}


def test_an_edit_made_while_a_search_runs_counts(page):
    take_example(page)
    select(page, "fire engine")
    page.evaluate("""() => {
      const slider = document.querySelector("[name=threshold]");
      slider.value = 0.7;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    }""")
    page.get_by_text("Searching …").wait_for()
    page.keyboard.press("a")
    page.get_by_role("button", name="fire engine 1, score").and_(page.locator("t2s-legend button")).filter(
        has_text="✓"
    ).wait_for()
    wait_until_idle(page)
    assert [name.split(",")[0] for name in selected(page)] == ["fire engine"]
    assert page.locator("[data-part=note]").is_hidden()


def selected(page):
    """Names of the selected segments."""
    return page.locator(f"{PIECE}[aria-pressed=true]").evaluate_all("all => all.map(each => each.ariaLabel)")


def test_a_click_selects_and_never_edits(page):
    take_example(page)
    before = paths(page)
    asked = recorded_requests(page)
    click_at(page, 250, 200)  # the fire engine
    assert [name.split(",")[0] for name in selected(page)] == ["fire engine"]
    click_at(page, 130, 230)  # the lower sheep
    lower = selected(page)
    assert [name.split(",")[0] for name in lower] == ["sheep"]
    click_at(page, 70, 30)  # the upper one
    assert selected(page) != lower
    for _ in range(2):
        page.locator(".t2s-image").dblclick(position=place_of(page, 130, 230), force=True)
        assert selected(page) == lower
    click_at(page, 20, 300)  # on nothing
    assert selected(page) == []
    assert paths(page) == before
    assert not asked


def test_a_double_click_with_a_tool_sets_one_point(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Add to mask").click()
    plus = page.locator("t2s-stage .t2s-plus").count()
    page.locator(".t2s-image").dblclick(position=place_of(page, 95, 150), force=True)
    wait_until_idle(page)
    assert page.locator("t2s-stage .t2s-plus").count() == plus + 1
    assert selected(page)[0].startswith("fire engine")


def test_points_of_the_person_look_different(page):
    take_example(page)
    select(page, "fire engine")
    assert page.locator("t2s-stage .t2s-own").count() == 0
    click_at(page, 95, 150, modifiers=["Control"])
    own = page.locator("t2s-stage .t2s-plus.t2s-own")
    widths = "all => all.map(each => parseFloat(getComputedStyle(each).strokeWidth))"
    assert own.count() == 1
    others = page.locator("t2s-stage .t2s-plus:not(.t2s-own)").evaluate_all(widths)
    assert min(own.evaluate_all(widths)) > max(others)
    click_at(page, 20, 20, modifiers=["Shift"])
    assert page.locator("t2s-stage .t2s-minus.t2s-own").count() == 1
    page.keyboard.press("Control+z")
    wait_until_idle(page)
    assert page.locator("t2s-stage .t2s-minus.t2s-own").count() == 0


def test_points_are_set_by_keys(page):
    take_example(page)
    page.locator(f"{PIECE}[aria-label^='fire engine']").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("-")
    page.keyboard.press("ArrowLeft")
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    assert page.locator("[data-part=cursor] path").count() == 2
    place = page.locator("[data-part=said]").inner_text()
    page.keyboard.press("Enter")
    wait_until_idle(page)
    _, content = save(page, "coco")
    (added,) = (each for each in json.loads(content)["annotations"] if each["attributes"]["by_hand"])
    x, y, label, _ = added["attributes"]["points"][-1]
    assert place == f"{x:.0f}, {y:.0f}"
    assert label == 0
    page.locator("svg.t2s-image").focus()
    page.keyboard.press("Escape")  # ends the tool
    assert selected(page)
    page.keyboard.press("Escape")
    assert not selected(page)


def test_a_segment_is_added_by_keys(page):
    take_example(page)
    page.get_by_role("button", name="Add by hand: koala").press("Enter")
    expect(page.locator("svg.t2s-image")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.locator("t2s-legend").get_by_role("button", name="koala 1, score").wait_for()


def test_the_focus_stays_in_the_image_after_a_key(page):
    take_example(page)
    inside = "document.querySelector('svg.t2s-image').contains(document.activeElement)"
    page.locator(f"{PIECE}[aria-label^='fire engine']").focus()
    for key in ("Enter", "a", "Delete"):
        page.keyboard.press(key)
        wait_until_idle(page)
        assert page.evaluate(inside), key
    assert len(paths(page)) == 2
    page.keyboard.press("ArrowRight")  # the keys still work
    assert len(selected(page)) == 1
    page.get_by_role("button", name="Delete").press("Enter")  # a button that disappears
    wait_until_idle(page)
    assert len(paths(page)) == 1
    assert page.evaluate(inside)


def test_remove_from_mask_by_button(page):
    take_example(page)
    select(page, "fire engine")
    minus = page.locator("t2s-stage .t2s-minus").count()
    page.get_by_role("button", name="Remove from mask").click()
    click_at(page, 30, 330)
    assert page.locator("t2s-stage .t2s-minus").count() == minus + 1


def test_accept_delete_and_add_by_hand(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Accept").click()
    page.locator("t2s-legend").get_by_text("✓").wait_for()
    select(page, "sheep", 1)
    page.keyboard.press("Delete")
    wait_until_idle(page)
    assert len(paths(page)) == 2
    page.get_by_role("button", name="Add by hand: koala").click()
    click_at(page, 95, 150)
    page.locator("t2s-legend").get_by_role("button", name="koala 1, score").wait_for()
    assert len(paths(page)) == 3


def test_split_into_parts(page):
    take_example(page)
    add_queries(page, "sheep+fire engine")
    page.locator(f"{PIECE}[aria-label^='sheep+fire engine']").wait_for()
    wait_until_idle(page)
    count = len(paths(page))
    select(page, "sheep+fire engine")
    page.get_by_role("button", name="Split").click()
    wait_until_idle(page)
    assert len(paths(page)) > count


def test_arrow_keys_select_segments(page):
    take_example(page)
    page.locator(PIECE).first.focus()
    seen = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        seen.append(page.locator(f"{PIECE}[aria-pressed=true]").get_attribute("data-piece"))
    assert len(set(seen)) == 3
    page.keyboard.press("Escape")
    assert page.locator(f"{PIECE}[aria-pressed=true]").count() == 0


def test_why_shows_the_stages_of_a_mask(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Why this mask").click()
    why = page.get_by_role("region", name="Why this mask")
    why.wait_for()
    assert why.locator(".t2s-chosen").count() == 1
    assert "Candidate" in why.locator("[data-part=reason]").inner_text()
    assert why.get_by_role("figure").count() == 4  # the map and three candidates
    assert why.locator(".t2s-panel .t2s-plus").count() == page.locator("t2s-stage .t2s-plus").count() > 0
    assert all(
        why.locator("figure:not(:first-child) path").evaluate_all("each => each.map(path => path.getTotalLength())")
    )
    why.get_by_text("Points", exact=True).click()
    assert why.get_by_role("table").count() == 2
    width = """async (url) => {
        const image = Object.assign(new Image(), { src: url });
        await image.decode();
        return image.naturalWidth;
    }"""
    assert page.evaluate(width, why.locator("image").first.get_attribute("href")) > 100
    why.get_by_role("button", name="Close").click()
    assert why.is_hidden()


def test_another_candidate_is_taken(page):
    take_example(page)
    select(page, "sheep")
    before = paths(page)
    page.get_by_role("button", name="Why this mask").click()
    why = page.get_by_role("region", name="Why this mask")
    drawn = why.locator("figure:not(.t2s-chosen):has(button)")
    path = drawn.locator("svg path").first.get_attribute("d")
    why.get_by_text("Points", exact=True).click()
    drawn.get_by_role("button", name="Take this one").first.click()
    why.get_by_text("You chose candidate").wait_for()
    expect(why.get_by_role("table").first).to_be_visible()  # the points stay open
    assert why.locator(".t2s-chosen path").get_attribute("d") == path
    assert path in paths(page)
    assert path not in before
    page.keyboard.press("Control+z")
    wait_until_idle(page)
    assert sorted(paths(page)) == sorted(before)


def test_why_not_shows_the_map_of_what_was_not_found(page):
    take_example(page)
    page.get_by_role("button", name="Why koala was not found").click()
    why = page.get_by_role("region", name="Why not found")
    why.get_by_text("The model does not find it: presence 0.0").wait_for()
    assert why.get_by_role("figure").count() == 1
    assert why.get_by_role("img", name="Similarity map").is_visible()
    why.get_by_role("button", name="Close").click()
    assert why.is_hidden()
    button = page.get_by_role("button", name="Why koala was not found")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    why.wait_for()
    page.keyboard.press("Escape")
    assert why.is_hidden()
    expect(button).to_be_focused()


def test_why_closes_when_the_mask_changes(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Why this mask").click()
    why = page.get_by_role("region", name="Why this mask")
    why.wait_for()
    click_at(page, 95, 150, modifiers=["Control"])
    why.wait_for(state="hidden")


def test_exports_read_back(page, tmp_path):
    take_example(page)
    select(page, "sheep")
    click_at(page, 20, 20, modifiers=["Shift"])
    name, content = save(page, "coco")
    assert name == "scene_0019_dataset.json"
    (tmp_path / name).write_bytes(content)
    coco = COCO(tmp_path / name)
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [each["attributes"]["by_hand"] for each in annotations].count(True) == 1
    name, content = save(page, "all")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        folder = name.removesuffix(".zip")
        assert json.loads(archive.read(f"{folder}/dataset.json")) == coco.dataset
        mask = np.asarray(Image.open(io.BytesIO(archive.read(f"{folder}/masks/scene_0019_fire-engine_1.png"))))
        assert {"scene_0019_overlay.png", "cutouts/scene_0019_sheep_2.png"} <= {
            each.removeprefix(f"{folder}/") for each in archive.namelist()
        }
    (engine,) = (each for each in annotations if coco.cats[each["category_id"]]["name"] == "fire engine")
    assert np.array_equal(mask, coco.annToMask(engine) * 255)


@pytest.mark.parametrize("viewport", ["wide", "phone"])
def test_a_click_on_a_rotated_image_has_the_right_place(visitor, app_url, scene, tmp_path, viewport):
    upright = Image.open(scene)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned clockwise by whoever shows it
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    page = visitor(app_url, viewport=viewport)
    upload(page, tmp_path / "turned.png")
    assert page.locator(".t2s-image").get_attribute("viewBox") == "0 0 270 360"
    add_queries(page, "fire engine")
    page.locator(PIECE).wait_for()
    wait_until_idle(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Add to mask").click()
    click_at(page, 215, 225)
    _, content = save(page, "coco")
    (annotation,) = json.loads(content)["annotations"]
    x, y, label, _ = annotation["attributes"]["points"][-1]
    assert (x, y, label) == (pytest.approx(215, abs=1), pytest.approx(225, abs=1), 1)
    left, top, width, height = annotation["bbox"]
    assert left < 215 < left + width
    assert top < 225 < top + height


def test_a_click_in_full_screen_has_the_right_place(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("document.fullscreenElement !== null")
    click_at(page, 240, 210, modifiers=["Shift"])
    page.evaluate("document.exitFullscreen()")
    page.wait_for_function("document.fullscreenElement === null")
    _, content = save(page, "coco")
    added = [
        each["attributes"]["points"][-1] for each in json.loads(content)["annotations"] if each["attributes"]["by_hand"]
    ]
    assert [(x, y) for x, y, *_ in added] == [(pytest.approx(240, abs=1), pytest.approx(210, abs=1))]


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_images_are_opened_by_drop_and_paste(page, scene, way):
    ready(page)
    page.evaluate(
        """async ([way, encoded]) => {
            const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], "given.jpg", { type: "image/jpeg" }));
            if (way === "drop") document.querySelector("t2s-stage").dispatchEvent(
                new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
            else document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: carried, bubbles: true }));
        }""",
        [way, base64.b64encode(scene.read_bytes()).decode()],
    )
    page.get_by_role("group", name="given.jpg").wait_for()


def test_errors_are_shown_on_the_page(page, scene, tmp_path):
    (tmp_path / "letter.png").write_text("Dear reader,")
    ready(page)
    page.set_input_files("t2s-stage input[type=file]", tmp_path / "letter.png")
    page.get_by_role("alert").get_by_text("letter.png is not an image").wait_for()
    upload(page, scene)
    page.get_by_role("button", name="Find").click()
    page.get_by_role("alert").get_by_text("Type what to find").wait_for()
    expect(page.get_by_label("Add a query")).to_be_focused()
    page.keyboard.type("s")
    assert page.get_by_role("alert").count() == 0
    page.keyboard.type("heep")
    page.keyboard.press("Enter")
    page.locator(PIECE).first.wait_for()


def test_find_without_an_image_leads_to_the_place_for_one(page, scene):
    ready(page)
    page.get_by_role("button", name="Find").click()
    page.get_by_role("alert").get_by_text("Choose an image first").wait_for()
    expect(page.locator("[data-do=choose]")).to_be_focused()
    upload(page, scene)
    assert page.get_by_role("alert").count() == 0
    expect(page.get_by_label("Add a query")).to_be_focused()  # the next step


def test_a_zip_is_sent_to_the_tab_that_takes_it(page, tmp_path):
    ready(page)
    (tmp_path / "photos.ZIP").write_bytes(b"PK")
    page.set_input_files("t2s-stage input[type=file]", tmp_path / "photos.ZIP")
    page.get_by_role("alert").get_by_text("photos.ZIP is not an image. “Label a folder” takes zips").wait_for()


def test_an_unknown_word_does_not_stop_the_others(page, scene):
    upload(page, scene)
    add_queries(page, "sheep, unicycle")
    page.locator(PIECE).nth(1).wait_for()
    line = page.locator(".t2s-refused p")
    expect(line).to_contain_text(
        "“unicycle” is not among the 109 drawn things that the demo model knows. Did you mean bicycle?"
    )
    assert page.locator(".t2s-unknown").all_text_contents() == ["unicycle×"]
    line.get_by_role("button", name="What it knows").click()
    page.get_by_role("group", name="What the model knows").get_by_role("button", name="fire engine").click()
    page.locator("t2s-legend").get_by_text("fire engine").wait_for()
    line.get_by_role("button", name="Use real weights").click()
    page.locator("#models-table").get_by_text("CLIP ViT-B/16 + SAM vit_b").wait_for()
    line.get_by_role("button", name="bicycle").click()
    page.locator("t2s-legend").get_by_text("bicycle").wait_for()
    assert page.locator(".t2s-chips li").all_text_contents() == ["sheep×", "bicycle×", "fire engine×"]
    assert page.locator(".t2s-refused p").count() == 0


def test_a_half_known_query_is_searched_with_a_note(page, scene):
    upload(page, scene)
    add_queries(page, "red sheep")
    page.locator(PIECE).first.wait_for()
    expect(page.locator(".t2s-half-known")).to_have_text("The demo model knows only 'sheep' of 'red sheep'.")
    assert page.locator(".t2s-unknown").count() == 0
    page.get_by_role("button", name="Remove red sheep").click()
    expect(page.locator(".t2s-half-known")).to_have_count(0)


@pytest.mark.parametrize("number", range(6))
def test_no_example_is_taken_for_a_photograph(page, number):
    take_example(page, number)
    wait_until_idle(page)
    assert page.locator("[data-part=unfamiliar]").is_hidden()


def test_the_demo_model_says_of_a_photograph_that_it_knows_drawings_only(page, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (120, 160), np.uint8)  # rough and grey, as photographs are
    Image.fromarray(noise).save(tmp_path / "photo.png")
    upload(page, tmp_path / "photo.png")
    warning = page.locator("[data-part=unfamiliar]")
    warning.get_by_text("this model knows drawings only").wait_for()
    add_queries(page, "koala")
    page.locator("t2s-legend").get_by_text("koala").wait_for()
    wait_until_idle(page)
    assert "Try other words" not in page.locator("t2s-toolbar [data-part=hint]").inner_text()
    warning.get_by_role("button", name="Use real weights").click()
    page.locator("#models-table").wait_for()
    page.get_by_role("button", name="Another image").click()
    assert warning.is_hidden()


def test_the_page_works_after_a_failed_request(page):
    ready(page)
    page.expected.append("503")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "out of order"}))
    page.locator("[data-example='0']").click()
    page.get_by_role("alert").get_by_text("The server did not answer").wait_for()
    assert page.locator(".t2s-busy").is_hidden()
    page.unroute("**/queue/join*")
    take_example(page)
    assert len(paths(page)) == 3


def test_a_word_that_is_there_already_is_searched_again_after_a_failure(page, scene):
    upload(page, scene)
    page.expected.append("503")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "out of order"}))
    add_queries(page, "sheep")
    page.get_by_role("alert").get_by_text("The server did not answer").wait_for()
    page.unroute("**/queue/join*")
    add_queries(page, "sheep")
    page.locator(PIECE).first.wait_for()


def test_a_query_with_an_exclusion_takes_the_place_of_the_plain_one(page, scene):
    upload(page, scene)
    add_queries(page, "sheep", "sheep -koala")
    page.locator(PIECE).first.wait_for()
    wait_until_idle(page)
    assert page.locator("t2s-chips li").evaluate_all("all => all.map((each) => each.firstChild.data)") == [
        "sheep -koala"
    ]


def test_markup_in_queries_is_escaped(page, scene):
    upload(page, scene)
    add_queries(page, "<img src=x onerror=alert(1)> sheep")
    page.locator(PIECE).first.wait_for()
    assert page.locator("t2s-legend img").count() == 0


def test_messages_and_questions_are_seen_in_full_screen(page, tmp_path):
    take_example(page)
    select(page, "fire engine")
    page.keyboard.press("a")
    wait_until_idle(page)
    page.get_by_role("button", name="Full screen").click()
    page.wait_for_function("document.fullscreenElement !== null")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page.set_input_files("t2s-stage input[type=file]", broken)
    question = page.get_by_text("1 mask that you made or accepted is lost")
    is_on_top = """(each) => {
      const { x, y } = each.getBoundingClientRect();
      return each.contains(document.elementFromPoint(x + 5, y + 5));
    }"""
    assert question.evaluate(is_on_top)
    page.get_by_role("button", name="Replace it").click()
    note = page.get_by_role("alert").get_by_text("broken.png")
    note.wait_for()
    assert note.evaluate(is_on_top)
    page.locator(PIECE).first.click()
    page.keyboard.press("w")
    page.locator("t2s-why h3").wait_for()
    page.wait_for_function("document.fullscreenElement === null")
    page.keyboard.press("Escape")
    page.wait_for_function("document.fullscreenElement !== null")


def test_the_toolbar_of_a_full_screen_fits_a_phone(visitor, app_url):
    page = visitor(app_url, viewport="phone")
    take_example(page, 0)
    outside = """() => [...document.querySelectorAll("t2s-toolbar button, t2s-toolbar input, .t2s-image")]
      .filter((each) => each.checkVisibility() && each.getBoundingClientRect().right > innerWidth + 1).length"""
    page.locator("[data-tool=full]").click()
    page.wait_for_function("document.fullscreenElement !== null")
    assert page.evaluate(outside) == 0
    page.locator(PIECE).first.click()
    page.locator("[data-tool=plus]").wait_for()
    assert page.evaluate(outside) == 0
    page.locator("[data-tool=plus]").click()
    expect(page.locator("[data-tool=plus]")).to_have_attribute("aria-pressed", "true")
    page.locator("[data-tool=plus]").click()  # there is no room for “Select”
    expect(page.locator("[data-tool=plus]")).to_have_attribute("aria-pressed", "false")
    page.locator("[data-tool=deselect]").click()
    page.locator("[data-tool=full]").click()
    page.wait_for_function("document.fullscreenElement === null")


@pytest.mark.parametrize("viewport", ["phone", "tablet", "wide"])
@pytest.mark.parametrize("dark", [False, True])
def test_no_part_is_wider_than_the_screen(visitor, app_url, viewport, dark):
    page = visitor(app_url, viewport=viewport, dark=dark)
    take_example(page)
    add_queries(page, "sheep+fire engine", "monkey, trophy, bomb")  # the command has to be wider than its place
    page.locator("t2s-legend").get_by_text("trophy").wait_for()
    wait_until_idle(page)
    select(page, "sheep")
    page.get_by_role("button", name="Why this mask").click()
    page.get_by_role("region", name="Why this mask").wait_for()
    page.locator("summary").get_by_text("Command and Python code").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    parts = "t2s-stage, t2s-toolbar, t2s-legend, t2s-sliders, t2s-export, t2s-why"  # Gradio cuts off what is too wide
    ends = page.locator(parts).evaluate_all("all => all.map(each => each.getBoundingClientRect().right)")
    assert max(ends) <= page.viewport_size["width"]


@pytest.mark.parametrize("viewport", ["phone", "tablet", "wide"])
def test_the_tools_are_in_one_row_above_the_image(visitor, app_url, viewport):
    page = visitor(app_url, viewport=viewport)
    take_example(page)
    add_queries(page, "sheep+fire engine")
    wait_until_idle(page)
    select(page, "sheep+fire engine")  # it has two parts, so that all tools are shown
    tools = page.locator("[data-tool]:visible")
    boxes = [tool.bounding_box() for tool in tools.all()]
    assert len(boxes) >= 9
    assert len({box["y"] for box in boxes}) == 1
    assert min(box["x"] for box in boxes) >= 0
    assert max(box["x"] + box["width"] for box in boxes) <= page.viewport_size["width"]
    assert min(box["width"] for box in boxes) >= 30
    assert boxes[0]["y"] + boxes[0]["height"] <= page.locator(".t2s-image").bounding_box()["y"]
    assert all(tool.get_attribute("title") and tool.text_content().strip() for tool in tools.all())


def test_everything_around_an_open_image_has_an_accessible_name(page):
    take_example(page)
    add_queries(page, "unicycle")
    page.locator(".t2s-refused p").wait_for()
    page.get_by_role("button", name="The 109 things that the model knows").click()
    select(page, "fire engine")
    page.get_by_role("button", name="Why this mask").click()
    page.get_by_role("region", name="Why this mask").wait_for()
    assert page.evaluate(NAMELESS) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_marks_and_hints_have_enough_contrast(visitor, app_url, dark):
    page = visitor(app_url, dark=dark)
    take_example(page)
    add_queries(page, "unicycle")
    page.locator(".t2s-refused p").wait_for()
    wait_until_idle(page)
    for part in (".t2s-unknown", ".t2s-refused p", ".t2s-link", "t2s-sliders small", "t2s-toolbar .t2s-hint"):
        assert page.evaluate(CONTRAST, part) >= 4.5, part


def test_examples_can_be_had_again(page):
    take_example(page)
    page.get_by_role("button", name="Another image").click()
    assert page.locator(".t2s-image").is_hidden()
    page.get_by_role("button", name="Back to scene_0019.jpg").click()
    assert len(paths(page)) == 3
    page.get_by_role("button", name="Another image").click()
    page.locator("[data-example='1']").click()
    page.get_by_role("group", name="scene_0012.jpg").wait_for()
    assert set(verdicts(page)) == {"shirt", "frog", "horse"}


def test_words_that_were_typed_stay_with_an_example_and_those_of_the_last_example_go(page):
    ready(page)
    add_queries(page, "bomb")
    page.get_by_text("Now choose an image").wait_for()
    take_example(page)
    page.locator("t2s-legend").get_by_text("bomb").wait_for()
    assert set(verdicts(page)) == {"sheep", "koala", "fire engine", "bomb"}
    page.get_by_role("button", name="Another image").click()
    page.locator("[data-example='1']").click()
    page.get_by_role("group", name="scene_0012.jpg").wait_for()
    page.locator("t2s-legend").get_by_text("bomb").wait_for()
    assert set(verdicts(page)) == {"shirt", "frog", "horse", "bomb"}


def test_quick_undo_and_redo_keep_words_and_results_together(page):
    take_example(page)
    assert page.evaluate("document.activeElement.matches('.t2s-image')")  # keys work at once
    for word in ("bomb", "trophy"):
        page.get_by_label("Add a query").fill(word)
        page.keyboard.press("Enter")
        page.locator("t2s-legend strong", has_text=word).wait_for()
    page.locator(".t2s-image").focus()
    for keys, last in (("Control+z Control+z", ["koala"]), ("Control+y Control+y", ["koala", "bomb", "trophy"])):
        for key in keys.split():
            page.keyboard.press(key)
        words = ["sheep", "fire engine", *last]
        expect(page.locator("t2s-legend strong")).to_have_text(words)
        expect(page.locator(".t2s-chips li")).to_have_text([f"{word}×" for word in words])


def test_escape_closes_what_is_open_first(page):
    take_example(page)
    page.locator(".t2s-image [data-piece]").first.click()
    page.keyboard.press("w")
    page.locator("t2s-why h3").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("t2s-why").is_hidden()
    assert page.locator(".t2s-image [data-piece][aria-pressed=true]").count() == 1
    page.keyboard.press("Control+z")  # there is nothing to undo: the search that opened the example stays
    page.keyboard.press("Escape")
    assert page.locator(".t2s-image [data-piece][aria-pressed=true]").count() == 0
    assert len(paths(page)) == 3
    page.get_by_role("button", name=re.compile("things that the model knows")).click()
    page.keyboard.press("Escape")
    assert page.get_by_role("group", name="What the model knows").is_hidden()
    assert "things that the model knows" in page.evaluate("document.activeElement.textContent")


def test_nothing_shown_cannot_be_downloaded(page):
    take_example(page)
    downloads = page.locator("[data-kind]")
    assert downloads.count() == 5
    for query in ("sheep", "fire engine"):
        page.get_by_role("button", name=f"Hide {query}").click()
    assert page.locator("[data-kind]:disabled").count() == 5
    page.get_by_text("All segments are hidden").wait_for()
    page.get_by_role("button", name="Show sheep").click()
    assert page.locator("[data-kind]:disabled").count() == 0
    assert page.get_by_text("All segments are hidden").is_hidden()


def test_the_sliders_say_what_they_do(page):
    take_example(page)
    for name, words in (("Threshold", "cover more of a thing"), ("Presence", "lower finds more"), ("At most", "best")):
        slider = page.get_by_role("slider", name=name)
        hint = page.locator(f"#{slider.get_attribute('aria-describedby')}")
        assert hint.is_visible()
        assert words in hint.inner_text()


class TestReload:
    @pytest.mark.parametrize("way", ["reload", "back"])
    def test_image_words_and_corrections_are_kept(self, page, app_url, way):
        take_example(page)
        add_queries(page, "bomb, unicycle")
        page.locator("t2s-legend").get_by_text("bomb").wait_for()
        wait_until_idle(page)
        select(page, "fire engine")
        click_at(page, 95, 150, modifiers=["Control"])
        select(page, "sheep", 1)
        page.keyboard.press("Delete")
        wait_until_idle(page)
        page.get_by_role("button", name="Hide bomb").click()
        page.get_by_label("Threshold").fill("0.6")
        page.wait_for_timeout(400)
        wait_until_idle(page)
        before, told = sorted(paths(page)), verdicts(page)
        if way == "reload":
            page.reload()
        else:
            page.goto(f"{app_url}/api/v1/health")
            page.go_back()
        page.locator(PIECE).first.wait_for()
        wait_until_idle(page)
        assert sorted(paths(page)) == before
        assert verdicts(page) == told
        assert page.locator(".t2s-chips li").all_text_contents() == [
            f"{text}×" for text in ("sheep", "fire engine", "koala", "bomb", "unicycle")
        ]
        assert page.get_by_label("Threshold").input_value() == "0.6"
        assert page.locator(".t2s-unknown").count() == 1
        assert page.get_by_role("button", name="Show bomb").is_visible()  # it is still hidden
        select(page, "fire engine")  # the session goes on
        click_at(page, 20, 20, modifiers=["Shift"])
        assert page.locator("t2s-stage .t2s-minus.t2s-own").count() == 1
        assert page.locator("t2s-stage .t2s-plus.t2s-own").count() == 1

    def test_words_without_an_image_are_kept(self, page):
        ready(page)
        add_queries(page, "sheep, koala")
        page.reload()
        ready(page)
        assert page.locator(".t2s-chips li").all_text_contents() == ["sheep×", "koala×"]

    def test_a_lost_image_is_explained(self, page):
        take_example(page)
        page.evaluate("""() => {
            const kept = JSON.parse(sessionStorage.getItem("text2seg-segment"));
            sessionStorage.setItem("text2seg-segment", JSON.stringify({ ...kept, token: "x".repeat(32) }));
        }""")
        page.reload()
        page.get_by_role("alert").get_by_text("The server no longer has your last image").wait_for()
        assert page.locator(".t2s-chips li").count() == 3
        page.reload()
        ready(page)
        page.wait_for_timeout(500)
        assert page.get_by_role("alert").count() == 0

    def test_another_window_begins_anew(self, page, app_url):
        take_example(page)
        other = page.context.new_page()
        other.goto(app_url)
        ready(other)
        other.wait_for_timeout(500)
        assert other.locator(".t2s-chips li").count() == 0
        assert other.locator(PIECE).count() == 0


def test_two_visitors_have_separate_sessions(visitor, app_url):
    one, other = visitor(app_url), visitor(app_url)
    take_example(one, 0)
    take_example(other, 1)
    select(one, "fire engine")
    one.keyboard.press("Delete")
    wait_until_idle(one)
    assert set(verdicts(one)) == {"sheep", "fire engine", "koala"}
    assert set(verdicts(other)) == {"shirt", "frog", "horse"}
    assert verdicts(one)["fire engine"] == "deleted"


def test_a_waiting_visitor_sees_how_many_come_before(visitor, servers, demo, monkeypatch):
    go_on = threading.Event()
    found = requests.find
    monkeypatch.setattr(requests, "find", lambda *given, **named: go_on.wait(60) and found(*given, **named))
    url, _ = servers.enter_context(running(ModelPool(demo, AppSettings(port=0, workers=1))))
    pages = [visitor(url) for _ in range(3)]
    for page in pages:
        ready(page)
        page.locator("[data-example='0']").click()
        page.locator(".t2s-busy").get_by_text("Searching …").wait_for()
        page.wait_for_timeout(500)
    pages[2].locator(".t2s-busy").get_by_text("1 before you").wait_for()
    assert pages[0].locator(".t2s-busy span").inner_text() == "Searching …"
    go_on.set()
    pages[2].locator(PIECE).first.wait_for()
    wait_until_idle(pages[2])
    assert pages[2].locator(".t2s-busy").is_hidden()


def test_suggestions_come_from_the_current_models(visitor, servers, demo):
    model_pool = ModelPool(demo, AppSettings(port=0))
    suggested = "#t2s-known option"
    url, _ = servers.enter_context(running(model_pool))
    page = visitor(url)
    take_example(page)
    assert page.locator(suggested).evaluate_all("all => all.map(each => each.value)") == list(
        demo.closed_vocabulary.names
    )
    model_pool.use(Text2Seg(demo.clip, demo.sam, settings=demo.settings, input_size=demo.input_size))
    add_queries(page, "umbrella")
    expect(page.locator(suggested)).to_have_count(0)
