"""The Explain tab in a real browser: questions before a run, images, and results that are outdated."""

from __future__ import annotations

import re
import threading

import pytest
from app_builders import SCENE, live_app
from PIL import Image
from playwright.sync_api import expect

from text2seg.app.explain.form import Estimates
from text2seg.app.explain.run import PATIENCE


def test_a_long_run_asks_before_it_starts(page):
    page.get_by_role("tab", name="Explain").click()
    page.locator("#explain-tool select").select_option("faithfulness")
    page.locator("#fields-of-faithfulness").wait_for()
    page.locator("#explain-run").click()  # the estimate may not be there yet
    expect(page.get_by_role("button", name="Start", exact=True)).to_be_focused()
    assert page.locator("#explain-stop").is_disabled()
    page.get_by_role("button", name="Not now").click()
    expect(page.locator("#explain-run")).to_be_focused()
    page.locator("#explain-run").click()
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator("#explain-status .t2s-status").get_by_text(re.compile("of [0-9]+ steps")).wait_for()
    page.locator("#explain-stop").click()
    expect(page.locator("#explain-run")).to_be_enabled()


def test_while_the_speed_is_measured_the_page_does_not_speak_of_other_visitors(visitor, servers, demo, monkeypatch):
    measured, seconds = threading.Event(), Estimates.seconds

    def slow(self, tool, *given):
        return seconds(self, tool, *given) if tool.name != "opinion" or measured.wait(60) else 0.0

    monkeypatch.setattr(Estimates, "seconds", slow)
    page = visitor(servers.enter_context(live_app(demo)))
    page.get_by_role("tab", name="Explain").click()
    page.locator("#explain-tool select").select_option("opinion")
    page.locator("#explain-run").click()
    status = page.locator("#explain-status")
    status.get_by_text("Measuring how long this takes").wait_for()
    page.wait_for_timeout(2000 * PATIENCE)
    expect(status).not_to_contain_text("other visitors")
    measured.set()
    page.locator("#explain-status header, [data-ask] button").first.wait_for()


def test_tools_for_several_images_begin_with_examples_and_the_image_field_comes_back(page):
    page.get_by_role("tab", name="Explain").click()
    tool = page.locator("#explain-tool select")
    tool.select_option("similarity-table")
    page.locator("#explain-files").get_by_text("Rocket and horse").wait_for()
    page.locator("#explain-run").click()
    page.locator("#explain-tables").get_by_text("Rocket and horse.jpg").wait_for()
    page.get_by_role("button", name="Remove all").click()
    page.locator("#explain-run").click()
    page.locator("#explain-problem").get_by_text("“Table of similarities” needs at least one image").wait_for()
    tool.select_option("saliency")
    page.locator("#explain-image").get_by_role("button", name="Umbrellas and a clock").click()
    expect(page.locator("#explain-image [data-part=names]")).to_have_text("Umbrellas and a clock")


def test_a_result_of_other_values_looks_outdated_until_it_runs_again(page):
    page.get_by_role("tab", name="Explain").click()
    example = page.get_by_role("rowheader", name="a bomb")
    example.wait_for()
    text, result = page.locator("#setting-text textarea"), page.locator("#explain-result")
    note = result.get_by_text("This result is of the values before")
    expect(note).to_be_hidden()
    text.fill("a koala")
    note.wait_for()
    expect(page.locator("#explain-tables")).to_have_css("opacity", "0.4")
    page.locator("#explain-run").click()
    page.get_by_role("rowheader", name="a koala").wait_for()
    expect(note).to_be_hidden()
    expect(page.locator("#explain-tables")).to_have_css("opacity", "1")
    text.fill("a sheep")
    note.wait_for()
    text.fill("a koala")  # as it was
    expect(note).to_be_hidden()
    text.fill("a sheep")
    page.locator("#explain-tool select").select_option("saliency")
    expect(note).to_be_hidden()
    expect(page.locator("#explain-status")).to_have_css("opacity", "1")


def test_an_example_that_comes_after_a_text_was_typed_looks_outdated(page):
    held, is_held = [], True

    def hold(route) -> None:
        if is_held and '"value":"Explain"' in route.request.post_data:
            held.append(route)
        else:
            route.continue_()

    page.route("**/queue/join**", hold)
    page.get_by_role("tab", name="Explain").click()
    page.locator("#setting-text textarea").fill("a koala")
    is_held = False
    for route in held:
        route.continue_()
    page.get_by_text("This result is of the values before").wait_for()
    page.get_by_role("rowheader", name="a bomb").wait_for()


def run(page):
    page.locator("#explain-run").click()
    expect(page.locator("#explain-stop")).to_be_disabled()
    page.locator("#explain-status .t2s-title").wait_for()


def test_a_result_is_not_outdated_when_its_tool_is_chosen_again(page):
    page.get_by_role("tab", name="Explain").click()
    tool, title = page.locator("#explain-tool select"), page.locator("#explain-status .t2s-title")
    for name in ("signed", "saliency", "similarity-table"):
        tool.select_option(name)
        page.locator(f"#fields-of-{name}").wait_for()
        run(page)
    for name in ("signed", "saliency", "similarity-table", "signed"):
        tool.select_option(name)
        page.locator(f"#fields-of-{name}").wait_for()
        title.wait_for()
        page.wait_for_timeout(500)  # for events of the fields that were just put in place
        expect(page.locator("#explain-result")).not_to_have_attribute("data-outdated", "")


def test_a_reload_keeps_the_tool_and_what_was_typed(page):
    page.get_by_role("tab", name="Explain").click()
    page.locator("#explain-tool select").select_option("average-map")
    texts = page.locator("#fields-of-average-map").get_by_label("Text (one per line)")
    texts.fill("a bomb")
    texts.blur()
    page.wait_for_function("sessionStorage.getItem('t2s-typed')?.includes('a bomb')")
    page.expected += ["Connection errored out", "Failed to fetch"]
    for _ in range(2):
        page.reload()
        expect(texts).to_have_value("a bomb")
        page.wait_for_timeout(1500)  # Gradio puts the first tool in place again, some time after the page is there
        expect(texts).to_have_value("a bomb")
        expect(page.locator("#explain-tool select")).to_have_value("average-map")
        expect(page.locator("#explain-tool p")).to_contain_text("Many images")
        expect(page.locator("#explain-files")).to_be_visible()
        expect(page.locator("#explain-image")).to_be_hidden()
    run(page)
    expect(page.locator("#explain-tables")).to_contain_text("a bomb")


@pytest.mark.parametrize("chosen", ["an upload", "another example", "the image of Segment", "no image"])
def test_a_reload_keeps_the_image(page, tmp_path, chosen):
    page.expected += ["Connection errored out", "Failed to fetch"]
    if chosen == "the image of Segment":
        page.locator("[data-example='1']").click()
        page.locator(".t2s-image [data-piece]").first.wait_for()
    page.get_by_role("tab", name="Explain").click()
    image, title = page.locator("#explain-image"), page.locator("#explain-status .t2s-title")
    title.wait_for()  # of the example
    if chosen == "an upload":
        name = "mine.png"
        Image.open(SCENE).crop((0, 0, 200, 150)).save(tmp_path / name)
        image.locator("input[type=file]").set_input_files(tmp_path / name)
    elif chosen == "another example":
        name = "Rocket and horse"
        image.get_by_role("button", name=name).click()
    elif chosen == "the image of Segment":
        name = "scene_0012.jpg"
        image.get_by_role("button", name=f"{name}, from Segment").click()
    else:
        name = ""
        image.get_by_role("button", name="Remove image").click()
    expect(title).to_be_hidden()
    shown = image.locator(".t2s-taken")
    for _ in range(2):
        page.reload()
        if name:
            expect(shown).to_contain_text(name)
        page.wait_for_timeout(1500)  # Gradio puts the first image in place again, some time after the page is there
        expect(shown).to_be_visible() if name else expect(shown).to_be_hidden()
        expect(title).to_be_hidden()
    if not name:
        page.locator("#explain-run").click()
        page.get_by_text("There is no image yet").wait_for()
        return
    assert image.locator(".t2s-taken img").evaluate("each => each.naturalWidth") > 0
    run(page)
    expect(title).to_contain_text(name.removesuffix(".jpg").removesuffix(".png"))


def test_the_result_of_an_image_that_was_replaced_in_segment_goes(page):
    page.locator("[data-example='1']").click()
    page.locator(".t2s-image [data-piece]").first.wait_for()
    page.get_by_role("tab", name="Explain").click()
    page.locator("#explain-image").get_by_role("button", name="scene_0012.jpg, from Segment").click()
    run(page)
    title = page.locator("#explain-status .t2s-title")
    for _ in range(2):
        page.get_by_role("tab", name="Segment").click()
        page.get_by_role("tab", name="Explain").click()
        expect(title).to_contain_text("scene_0012")
    page.get_by_role("tab", name="Segment").click()
    page.get_by_role("button", name="Another image").click()
    page.locator("t2s-stage [data-example='0']").click()
    page.get_by_role("group", name="scene_0019.jpg").wait_for()
    page.get_by_role("tab", name="Explain").click()
    expect(page.locator("#explain-image .t2s-taken")).to_contain_text("scene_0019.jpg")
    expect(title).to_be_hidden()


def test_a_file_that_is_no_image_is_told_when_it_is_chosen(page, tmp_path):
    page.get_by_role("tab", name="Explain").click()
    page.locator("#explain-status .t2s-title").wait_for()
    (tmp_path / "text.png").write_text("no image")
    page.locator("#explain-image input[type=file]").set_input_files(tmp_path / "text.png")
    expect(page.locator("#explain-problem")).to_contain_text("text.png is not an image that can be read here")
    page.locator("#explain-image").get_by_role("button", name="Rocket and horse").click()
    expect(page.locator("#explain-problem")).to_be_empty()


def test_an_image_that_the_server_has_lost_is_told(page, tmp_path):
    page.expected += [
        "Connection errored out",
        "Failed to fetch",
        "answered 404",
        "the server responded with a status of 404",
    ]
    page.get_by_role("tab", name="Explain").click()
    page.locator("#explain-status .t2s-title").wait_for()
    page.evaluate("""() => sessionStorage.setItem("text2seg-files",
        JSON.stringify({ "explain-image": { path: "/tmp/text2seg-app-before/mine.png", name: "mine.png" } }))""")
    page.reload()
    image = page.locator("#explain-image")
    expect(image.get_by_role("status")).to_have_text("mine.png is no longer on the server. Choose it again.")
    expect(image.locator(".t2s-taken")).to_be_hidden()
    image.get_by_role("button", name="Rocket and horse").click()
    run(page)


def test_a_run_that_waits_for_its_turn_can_be_given_up_and_asked_for_again(visitor, servers, demo):
    url = servers.enter_context(live_app(demo, workers=1))
    first, page = visitor(url), visitor(url)
    for each in (first, page):
        each.get_by_role("tab", name="Explain").click()
        each.get_by_role("rowheader", name="a bomb").wait_for()
    first.locator("#explain-tool select").select_option("opinion")
    first.locator("#setting-steps input").fill("2000")  # until the second has waited
    first.keyboard.press("Tab")
    first.locator("#explain-run").click()
    first.locator("#explain-status header, [data-ask] button").first.wait_for()
    if first.get_by_role("button", name="Start", exact=True).is_visible():
        first.get_by_role("button", name="Start", exact=True).click()
    expect(first.locator("#explain-status")).to_contain_text(re.compile(r"[1-9]\d* of 2000 steps"))
    title = page.locator("#explain-status .t2s-title").inner_text()
    tables, status = page.locator("#explain-tables"), page.locator("#explain-status")
    for _ in range(2):
        page.locator("#explain-run").click()
        expect(status).to_contain_text("busy with other visitors; this run is next")
        expect(status).to_have_css("opacity", "1")
        expect(page.locator(".wrap:not(.hide) > .progress-text")).to_have_count(0)  # no second counter
        expect(tables).to_have_css("opacity", "0.4")
        page.locator("#explain-stop").click()
        expect(status).to_contain_text(title)
        expect(tables).to_have_css("opacity", "1")
        expect(page.locator("#explain-run")).to_be_enabled()
        expect(page.locator("#explain-stop")).to_be_disabled()
    page.locator("#explain-run").click()
    page.locator("#explain-tool select").select_option("saliency")
    page.get_by_role("button", name="Stop it").click()
    expect(page.locator("#explain-run")).to_be_enabled()
    page.locator("#fields-of-saliency").wait_for()
    page.locator("#explain-run").click()
    expect(status).to_contain_text("busy with other visitors; this run is next")
    first.locator("#explain-stop").click()
    expect(page.locator("#explain-status .t2s-title")).to_contain_text("saliency by surgery")
    expect(page.locator("#explain-run")).to_be_enabled()
    expect(page.locator("#explain-stop")).to_be_disabled()


def test_the_question_whether_to_stop_a_run_goes_when_the_run_ends(page):
    page.get_by_role("tab", name="Explain").click()
    tool = page.locator("#explain-tool select")
    tool.select_option("compare")
    page.locator("#fields-of-compare").wait_for()
    page.locator("#explain-run").click()
    page.locator("#explain-status header").wait_for()
    tool.select_option("saliency")
    question = page.get_by_text("Choosing another tool stops this run")
    question.wait_for()
    page.locator("#explain-status .t2s-title").wait_for()
    expect(question).to_be_hidden()
    expect(tool).to_have_value("compare")
    expect(tool).to_be_focused()


def test_a_list_shows_its_default_after_a_list_of_several(page):
    page.get_by_role("tab", name="Explain").click()
    for name, label, value in (("faithfulness", "Method", ""), ("words", "Method", "default")):
        page.locator("#explain-tool select").select_option(name)
        expect(page.locator(f"#fields-of-{name}").get_by_label(label, exact=True)).to_have_value(value)
