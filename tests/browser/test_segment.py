"""The Segment tab in a real browser: type, see, correct, export."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from pycocotools.coco import COCO

from text2seg import Text2Seg
from text2seg.app.model_pool import ModelPool
from text2seg.app.serve import running
from text2seg.app.settings import AppSettings

PIECE = ".t2s-picture [data-piece]"
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


def ask_for(page, *texts):
    for text in texts:
        page.get_by_label("Add what to look for").fill(text)
        page.keyboard.press("Enter")


def idle(page):
    page.locator("svg.t2s-picture[aria-busy=false]").wait_for()


def select(page, query, place=0):
    page.locator("t2s-legend").get_by_role("button", name=f"{query} {place + 1}, score").click()


def click_at(page, x, y, **options):
    """Click on the picture, at a place in its own pixels, and wait for the answer."""
    box = page.locator(".t2s-picture").bounding_box()
    _, _, width, height = map(float, page.locator(".t2s-picture").get_attribute("viewBox").split())
    scale = min(box["width"] / width, box["height"] / height)
    left, top = (box["width"] - width * scale) / 2, (box["height"] - height * scale) / 2
    page.locator(".t2s-picture").click(position={"x": left + x * scale, "y": top + y * scale}, force=True, **options)
    idle(page)


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


def events(page):
    """Everything that the page asks of the models from now on."""
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    return asked


def test_type_and_see(page, scene):
    upload(page, scene)
    ask_for(page, "sheep", "fire engine, koala")
    page.locator(PIECE).nth(2).wait_for()
    idle(page)
    assert page.locator(".t2s-chips li").all_text_contents() == ["sheep×", "fire engine×", "koala×"]
    told = verdicts(page)
    assert told["sheep"].startswith("2 x, best 0.")
    assert told["koala"].startswith("not found (0.")
    assert "< 0.50)" in told["koala"]
    assert "sheep: 2 x" in page.locator("[data-part=said]").inner_text()


def test_chips_go_with_backspace_and_cross(page, scene):
    upload(page, scene)
    ask_for(page, "sheep", "bomb")
    page.locator(PIECE).nth(2).wait_for()
    page.get_by_label("Add what to look for").press("Backspace")
    page.locator("t2s-legend").get_by_text("bomb").wait_for(state="detached")
    assert len(paths(page)) == 2
    page.get_by_role("button", name="Remove sheep").click()
    page.get_by_role("alert").get_by_text("Type what you want to see").wait_for()


def test_hover_says_what_it_is(page):
    take_example(page)
    page.locator(f"{PIECE}[aria-label^='fire engine']").hover()
    assert page.locator(".t2s-tip").inner_text().startswith("fire engine 0.")
    assert page.locator("t2s-legend button.t2s-hover").count() == 1


def test_what_the_browser_can_do_alone_asks_nobody(page):
    take_example(page)
    asked = events(page)
    page.get_by_label("At most").fill("1")
    assert len(paths(page)) == 2  # one sheep, one fire engine
    page.get_by_label("At most").fill("21")
    page.get_by_role("button", name="Show sheep").click()
    assert len(paths(page)) == 1
    page.get_by_role("button", name="Show sheep").click()
    assert len(paths(page)) == 3
    page.get_by_label("Opacity").fill("0.9")
    assert page.locator(".t2s-picture").evaluate("svg => svg.style.getPropertyValue('--t2s-opacity')") == "0.9"
    assert not asked


def test_sliders_look_again(page):
    take_example(page)
    select(page, "sheep")
    points = page.locator(".t2s-plus")
    before = points.count()
    page.get_by_label("Threshold").fill("0.95")
    page.wait_for_function(f"document.querySelectorAll('.t2s-plus').length !== {before}")
    page.get_by_label("Presence").fill("0")
    page.locator("t2s-legend li:not(.t2s-absent)").get_by_text("koala").wait_for()
    assert "--presence 0.0" in page.locator("[data-code=command]").text_content()


def test_correct_undo_redo(page):
    take_example(page)
    before = paths(page)
    select(page, "fire engine")
    plus, minus = page.locator(".t2s-plus").count(), page.locator(".t2s-minus").count()
    click_at(page, 95, 150)  # on the bomb
    assert page.locator(".t2s-plus").count() == plus + 1
    corrected = paths(page)
    assert corrected != before
    click_at(page, 95, 150, modifiers=["Shift"])
    assert page.locator(".t2s-minus").count() == minus + 1
    page.keyboard.press("Control+z")
    idle(page)
    assert sorted(paths(page)) == sorted(corrected)
    page.keyboard.press("Control+z")
    idle(page)
    assert sorted(paths(page)) == sorted(before)
    page.keyboard.press("Control+y")
    idle(page)
    assert sorted(paths(page)) == sorted(corrected)


def test_the_toggle_is_shift_for_touch(page):
    take_example(page)
    select(page, "fire engine")
    minus = page.locator(".t2s-minus").count()
    page.get_by_role("button", name="Does not").click()
    click_at(page, 30, 330)
    assert page.locator(".t2s-minus").count() == minus + 1


def test_accept_delete_and_add_by_hand(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Accept").click()
    page.locator("t2s-legend").get_by_text("✓").wait_for()
    select(page, "sheep", 1)
    page.keyboard.press("Delete")
    idle(page)
    assert len(paths(page)) == 2
    page.get_by_role("button", name="Add a koala by hand").click()
    click_at(page, 95, 150)
    page.locator("t2s-legend").get_by_role("button", name="koala 1, score").wait_for()
    assert len(paths(page)) == 3


def test_split_into_parts(page):
    take_example(page)
    ask_for(page, "sheep+fire engine")
    page.locator(f"{PIECE}[aria-label^='sheep+fire engine']").wait_for()
    idle(page)
    count = len(paths(page))
    select(page, "sheep+fire engine")
    page.get_by_role("button", name="Split").click()
    idle(page)
    assert len(paths(page)) > count


def test_arrows_walk_from_segment_to_segment(page):
    take_example(page)
    page.locator(PIECE).first.focus()
    seen = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        seen.append(page.locator(f"{PIECE}[aria-pressed=true]").get_attribute("data-piece"))
    assert len(set(seen)) == 3
    page.keyboard.press("Escape")
    assert page.locator(f"{PIECE}[aria-pressed=true]").count() == 0


def test_why(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Why this mask").click()
    why = page.get_by_role("region", name="Why this mask")
    why.wait_for()
    assert why.locator(".t2s-won").count() == 1
    assert "Candidate" in why.locator("[data-part=reason]").inner_text()
    assert why.get_by_role("table").count() == 3
    page.wait_for_function("document.querySelector('t2s-why img').naturalWidth > 500")
    why.get_by_role("button", name="Close").click()
    assert why.is_hidden()


def test_why_goes_when_the_mask_is_another(page):
    take_example(page)
    select(page, "fire engine")
    page.get_by_role("button", name="Why this mask").click()
    why = page.get_by_role("region", name="Why this mask")
    why.wait_for()
    click_at(page, 95, 150)
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
        mask = np.asarray(Image.open(io.BytesIO(archive.read(f"{folder}/masks/fire-engine-1_mask.png"))))
        assert {"overlay.png", "cutouts/sheep-2_cutout.png"} <= {
            each.removeprefix(f"{folder}/") for each in archive.namelist()
        }
    (engine,) = (each for each in annotations if coco.cats[each["category_id"]]["name"] == "fire engine")
    assert np.array_equal(mask, coco.annToMask(engine) * 255)


@pytest.mark.parametrize("viewport", ["wide", "phone"])
def test_a_click_lands_right_on_a_rotated_picture(visitor, app_url, scene, tmp_path, viewport):
    upright = Image.open(scene)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned clockwise by whoever shows it
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    page = visitor(app_url, viewport=viewport)
    upload(page, tmp_path / "turned.png")
    assert page.locator(".t2s-picture").get_attribute("viewBox") == "0 0 270 360"
    ask_for(page, "fire engine")
    page.locator(PIECE).wait_for()
    idle(page)
    select(page, "fire engine")
    click_at(page, 215, 225)
    _, content = save(page, "coco")
    (annotation,) = json.loads(content)["annotations"]
    x, y, label, _ = annotation["attributes"]["points"][-1]
    assert (x, y, label) == (pytest.approx(215, abs=1), pytest.approx(225, abs=1), 1)
    left, top, width, height = annotation["bbox"]
    assert left < 215 < left + width
    assert top < 225 < top + height


def test_a_click_lands_right_on_the_full_screen(page):
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
def test_pictures_come_by_drop_and_paste(page, scene, way):
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


def test_errors_are_said_in_the_page(page, scene, tmp_path):
    (tmp_path / "letter.png").write_text("Dear reader,")
    ready(page)
    page.set_input_files("t2s-stage input[type=file]", tmp_path / "letter.png")
    page.get_by_role("alert").get_by_text("letter.png is no image").wait_for()
    upload(page, scene)
    page.get_by_role("button", name="Find").click()
    page.get_by_role("alert").get_by_text("Type what you want to see").wait_for()
    ask_for(page, "unicycle")
    page.get_by_role("alert").get_by_text("does not know 'unicycle'. Did you mean bicycle?").wait_for()
    assert "open “At work” for the list" in page.get_by_role("alert").inner_text()
    page.get_by_role("button", name="Remove unicycle").click()
    ask_for(page, "sheep")
    page.locator(PIECE).first.wait_for()
    assert page.get_by_role("alert").count() == 0


def test_after_a_broken_answer_one_can_go_on(page):
    ready(page)
    page.expected.append("503")
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json={"detail": "out of order"}))
    page.locator("[data-example='0']").click()
    page.get_by_role("alert").get_by_text("The server did not answer").wait_for()
    assert page.locator(".t2s-busy").is_hidden()
    page.unroute("**/queue/join*")
    take_example(page)
    assert len(paths(page)) == 3


def test_words_that_are_markup_stay_words(page, scene):
    upload(page, scene)
    ask_for(page, "<img src=x onerror=alert(1)> sheep")
    page.locator(PIECE).first.wait_for()
    assert page.locator("t2s-legend img").count() == 0


@pytest.mark.parametrize("viewport", ["phone", "tablet", "wide"])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(visitor, app_url, viewport, dark):
    page = visitor(app_url, viewport=viewport, dark=dark)
    take_example(page)
    ask_for(page, "sheep+fire engine", "monkey, trophy, bomb")  # the command has to be wider than its place
    page.locator("t2s-legend").get_by_text("trophy").wait_for()
    idle(page)
    select(page, "sheep")
    page.get_by_role("button", name="Why this mask").click()
    page.get_by_role("region", name="Why this mask").wait_for()
    page.locator("summary").get_by_text("Copy the command").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    parts = "t2s-stage, t2s-tools, t2s-legend, t2s-sliders, t2s-export, t2s-why"  # Gradio cuts off what is too wide
    ends = page.locator(parts).evaluate_all("all => all.map(each => each.getBoundingClientRect().right)")
    assert max(ends) <= page.viewport_size["width"]


def test_two_visitors_do_not_meet(visitor, app_url):
    one, other = visitor(app_url), visitor(app_url)
    take_example(one, 0)
    take_example(other, 1)
    select(one, "fire engine")
    one.keyboard.press("Delete")
    idle(one)
    assert set(verdicts(one)) == {"sheep", "fire engine", "koala"}
    assert set(verdicts(other)) == {"shirt", "frog", "horse"}
    assert verdicts(one)["fire engine"] == "removed by hand"


def test_suggestions_are_of_the_models_at_work(visitor, servers, demo):
    model_pool = ModelPool(demo, AppSettings(port=0))
    suggested = "#t2s-known option"
    url, _ = servers.enter_context(running(model_pool))
    page = visitor(url)
    take_example(page)
    assert page.locator(suggested).evaluate_all("all => all.map(each => each.value)") == list(demo.things.names)
    model_pool.use(Text2Seg(demo.clip, demo.sam, settings=demo.settings, input_size=demo.input_size))
    ask_for(page, "umbrella")
    expect(page.locator(suggested)).to_have_count(0)
