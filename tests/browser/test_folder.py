"""The tab "Label a folder" in a real browser: upload, wait, look, decide, take home."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from pathlib import Path

import pytest
from app_builders import live_app
from pycocotools.coco import COCO

IMAGES = Path(__file__).parents[2] / "text2seg" / "demo" / "scenes" / "new-scenes" / "images"
SIX = ("scene_0019.jpg", *(f"scene_000{number}.jpg" for number in range(1, 6)))
TILE = "#folder-sheet .t2s-tile"


@pytest.fixture
def packed(tmp_path):
    """Makes a zip of names and content."""

    def pack(*entries, name="photos.zip"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in entries:
                archive.writestr(entry, content)
        return path

    return pack


@pytest.fixture
def six(packed):
    """Six scenes and a picture that is cut short, beside what is no image."""
    scenes = [(f"day/{name}", (IMAGES / name).read_bytes()) for name in SIX]
    return packed(*scenes, ("day/cut.jpg", scenes[0][1][:3000]), ("__MACOSX/._a.jpg", b""), ("notes.txt", b"hello"))


@pytest.fixture
def many(packed):
    """Enough scenes that a job lasts for a while."""
    scenes = [path.read_bytes() for path in sorted(IMAGES.glob("*.jpg"))]
    return packed(*((f"{n:03}.jpg", scenes[n % len(scenes)]) for n in range(120)), name="many.zip")


def folder_tab(page):
    """Open the tab, which on a narrow screen may stand in a menu. Waits for nothing in it."""
    page.get_by_role("tab", name="Segment").wait_for()
    tab, menu = page.get_by_role("tab", name="Label a folder"), page.get_by_role("button", name="More tabs")
    if menu.is_visible():
        menu.click()
        tab = page.locator(".overflow-dropdown").get_by_text("Label a folder")
    tab.click()


def choose(page, archive):
    page.locator("#folder-files input[type=file]").set_input_files(archive)
    page.locator("#folder-files").get_by_text(archive.name[:5]).first.wait_for()


def look_for(page, things):
    page.get_by_label("Things, with commas between them").fill(things)
    page.get_by_role("button", name="Write the ontology").click()
    page.locator(".t2s-fine").wait_for()


def start(page):
    page.get_by_role("button", name="Label the pictures").click()


def begin(page, archive, things="sheep, koala, fire engine"):
    folder_tab(page)
    look_for(page, things)
    choose(page, archive)
    start(page)
    status(page)


def status(page, *states):
    selector = ", ".join(f".t2s-status.{state}" for state in states) or ".t2s-status"
    page.locator(selector).wait_for()
    return page.locator(".t2s-status")


def reload(page):
    """A page that is left hangs up on answers that it waits for, and its script may say so."""
    page.expected += ["Connection errored out", "Failed to fetch"]
    page.reload()
    folder_tab(page)


def tally(page, words):
    page.locator("#folder-tally").get_by_text(re.compile(words)).wait_for()


def downloaded(page, name):
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return Path(download.value.path()), download.value.suggested_filename


def test_a_zip_becomes_a_dataset_that_was_looked_through(page, six, tmp_path):
    begin(page, six)
    done = status(page, "done")
    assert "7 of 7 pictures" in done.inner_text()
    assert done.get_by_role("progressbar").get_attribute("aria-valuenow") == "7"
    assert "1 picture failed" in done.inner_text()
    assert re.search(r"day/cut\.jpg: .*truncated", done.inner_text())
    assert "photos.zip: left out 1 hidden file" in done.inner_text()
    assert "no image: notes.txt" in done.inner_text()

    tiles = page.locator(TILE)
    tiles.first.wait_for()
    assert tiles.count() == 6
    doubts = [float(text.split()[1]) for text in page.locator(f"{TILE} .doubt").all_inner_texts()]
    assert doubts == sorted(doubts, reverse=True)
    assert all(page.locator(f"{TILE} img").evaluate_all("each => each.map(image => image.naturalWidth > 100)"))

    found = page.locator(TILE, has_text="scene_0019.jpg")
    assert found.get_by_role("checkbox").count() >= 2
    first = found.get_by_role("checkbox").first
    dropped = int(first.get_attribute("data-segment"))
    first.uncheck()
    tally(page, "1 segment left out")
    gone = page.locator(TILE, has_text="scene_0001.jpg")
    gone.get_by_role("button", name="Reject").click()
    found.get_by_role("button", name="Accept").click()
    tally(page, "1 accepted · 1 rejected · 1 segment left out · 4 not decided")
    assert gone.get_by_role("button", name="Reject").get_attribute("aria-pressed") == "true"

    path, name = downloaded(page, "COCO dataset with pictures")
    assert name == "photos-with-pictures.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (tmp_path / "dataset.json").write_bytes(archive.read("dataset.json"))
        assert "day/cut.jpg" in archive.read("failures.txt").decode()
    assert {each for each in names if each.startswith("pictures/")} == {
        f"pictures/day/{name}" for name in SIX if name != "scene_0001.jpg"
    }
    coco = COCO(tmp_path / "dataset.json")
    assert {image["file_name"] for image in coco.dataset["images"]} == {
        f"day/{name}" for name in SIX if name != "scene_0001.jpg"
    }
    assert dropped not in coco.anns
    assert coco.anns
    assert all(coco.annToMask(each).sum() == each["area"] for each in coco.dataset["annotations"])
    assert coco.dataset["info"]["review"]["rejected"] == ["day/scene_0001.jpg"]

    path, name = downloaded(page, "COCO dataset")
    assert name == "photos.zip"
    assert zipfile.ZipFile(path).namelist() == ["dataset.json", "README.txt", "failures.txt"]
    path, name = downloaded(page, "Review page")
    assert name == "photos-review.html"
    assert path.read_text().count("<article") == 5
    path, name = downloaded(page, "Failures")
    assert path.read_text().count("\n") == 1


def test_things_need_not_be_written_as_an_ontology_first(page, six):
    folder_tab(page)
    page.get_by_label("Things, with commas between them").fill("sheep, fire engine")
    start(page)
    page.locator("#folder-problem").get_by_text("Choose pictures first").wait_for()
    choose(page, six)
    start(page)
    assert "7 of 7 pictures" in status(page, "done").inner_text()
    assert page.locator("#folder-file").is_hidden()


def test_decisions_and_the_job_are_found_again_after_a_reload(page, six):
    begin(page, six)
    status(page, "done")
    page.locator(TILE).nth(2).wait_for()
    name = page.locator(f"{TILE} .name").nth(2).inner_text()
    page.locator(TILE).nth(2).get_by_role("button", name="Reject").click()
    tally(page, "1 rejected")
    reload(page)
    status(page, "done")
    tally(page, "1 rejected")
    page.locator("#folder-shown").get_by_text("Rejected").click()
    page.locator(f"{TILE}.rejected").wait_for()
    page.wait_for_function(f"document.querySelectorAll('{TILE}').length === 1")
    assert page.locator(f"{TILE} .name").all_inner_texts() == [name]


def test_a_job_goes_on_over_a_reload_until_it_is_cancelled_and_then_where_it_was(page, many):
    begin(page, many)
    status(page, "running")
    page.wait_for_function("Number(document.querySelector('.t2s-status .track').ariaValueNow) >= 4")
    reload(page)
    assert "of 120 pictures" in status(page, "running").inner_text()
    before = int(page.get_by_role("progressbar", name="Pictures done").get_attribute("aria-valuenow"))
    page.wait_for_function(f"Number(document.querySelector('.t2s-status .track').ariaValueNow) > {before}")
    assert re.search(r"about [\d.]+ (s|min) left", page.locator(".t2s-status").inner_text())
    page.get_by_role("button", name="Cancel").click()
    stopped = int(
        status(page, "stopped").get_by_role("progressbar", name="Pictures done").get_attribute("aria-valuenow")
    )
    assert before < stopped < 120
    page.get_by_role("button", name="Go on").click()
    status(page, "running")
    page.wait_for_function(f"Number(document.querySelector('.t2s-status .track').ariaValueNow) > {stopped}")
    page.get_by_role("button", name="Cancel").click()
    status(page, "stopped")
    page.get_by_role("button", name="Delete job").click()
    page.get_by_role("button", name="Yes, delete").click()
    page.locator("#folder-start").wait_for()
    assert page.locator("#folder-jobs").is_hidden()


def test_two_visitors_wait_for_each_other_and_see_only_their_own(visitor, app_url, many, six):
    anna, bert = visitor(app_url), visitor(app_url, viewport="phone")
    begin(anna, many)
    status(anna, "running")
    begin(bert, six)
    assert "1 job before this one" in status(bert, "waiting").inner_text()
    assert bert.locator("#folder-jobs").get_by_role("radio").count() == 2
    assert "many.zip" not in bert.locator("body").inner_text()
    assert "photos.zip" not in anna.locator("body").inner_text()
    anna.get_by_role("button", name="Cancel").click()
    status(anna, "stopped")
    status(bert, "done")
    reload(anna)
    assert "many.zip" in status(anna, "stopped").inner_text()
    assert anna.locator("#folder-jobs").get_by_role("radio").count() == 2


def test_an_ontology_shows_its_faults_as_it_is_typed(page, six):
    folder_tab(page)
    editor = page.locator("#folder-ontology .cm-content")
    editor.fill("categories:\n  sheep: {threshold: 3, queris: [lamb]}\n  dog:\n  Sheep: [ewe]")
    faults = page.locator(".t2s-faults li")
    faults.nth(2).wait_for()
    texts = [" ".join(text.split()) for text in faults.all_inner_texts()]
    assert texts[0].startswith("line 2 categories.sheep.threshold: must be a number above 0")
    assert "did you mean 'queries'?" in texts[1]
    assert texts[2].startswith("line 4 categories.Sheep: 'Sheep' is there already")
    choose(page, six)
    start(page)
    assert page.locator("#folder-problem").get_by_role("alert").inner_text() == (
        "The ontology has 3 faults to mend first"
    )
    editor.fill("categories: [sheep, dragon]")
    page.get_by_text("dragon: the demo model does not know").wait_for()
    assert page.locator("#folder-problem").get_by_role("alert").count() == 0
    editor.fill("categories: [sheep, dog]")
    assert "2 categories: sheep, dog" in page.locator(".t2s-fine").inner_text()
    for example in ("Example: a few things", "Example: wordings and limits", "All the demo model knows"):
        page.get_by_role("button", name=example).click()
        page.locator(".t2s-fine").wait_for()
    page.locator(".t2s-fine", has_text="109 categories").wait_for()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (("../evil.jpg", b"x"), "leads out of its folder"),
        (("bomb.png", bytes(30_000_000)), "grows more than 200 times"),
        (("notes.txt", b"x"), "no image in what you uploaded"),
    ],
)
def test_an_archive_that_is_refused_leaves_a_sentence_and_no_job(page, packed, entry, words):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(*entry)
    path = packed()
    path.write_bytes(content.getvalue())
    folder_tab(page)
    look_for(page, "sheep")
    choose(page, path)
    start(page)
    page.locator("#folder-problem").get_by_text(words).wait_for()
    assert page.locator("#folder-jobs").is_hidden()


def test_a_folder_of_the_server_is_labelled_in_place(visitor, servers, demo, tmp_path):
    front, back = tmp_path / "photos" / "front", tmp_path / "photos" / "back"
    for folder, names in ((front, SIX[:2]), (back, SIX[2:])):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes((IMAGES / name).read_bytes())
    page = visitor(servers.enter_context(live_app(demo, root=tmp_path / "photos")))
    folder_tab(page)
    look_for(page, "sheep, koala, fire engine")
    page.get_by_text("A folder of this server").click()
    page.locator("#folder-files").wait_for(state="hidden")
    page.get_by_label("Folder", exact=True).click()
    page.get_by_role("option", name="front").click()
    start(page)
    assert "2 of 2 pictures" in status(page, "done").inner_text()
    page.locator(TILE).first.wait_for()
    assert set(page.locator(f"{TILE} .name").all_inner_texts()) == {*SIX[:2]}
    assert {path.name for path in front.iterdir()} == {*SIX[:2]}


def test_nothing_uploaded_is_said_so(page):
    folder_tab(page)
    look_for(page, "sheep")
    start(page)
    page.locator("#folder-problem").get_by_text("Choose pictures first, or a zip of them").wait_for()


def test_the_contact_sheet_is_worked_through_by_keys(page, six):
    begin(page, six)
    tiles = page.locator(TILE)
    tiles.first.wait_for()
    tiles.first.focus()
    page.keyboard.press("a")
    page.keyboard.press("r")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("a")
    tally(page, "2 accepted · 1 rejected")
    shown = tiles.evaluate_all("each => each.map(tile => tile.className.replace('t2s-tile', '').trim())")
    assert shown == ["accepted", "rejected", "accepted", "", "", ""]
    assert page.evaluate("document.activeElement.dataset.place") == tiles.nth(3).get_attribute("data-place")


@pytest.mark.parametrize(("viewport", "dark"), [("phone", True), ("tablet", False), ("wide", True)])
def test_nothing_sticks_out_at_the_side(visitor, app_url, six, viewport, dark):
    page = visitor(app_url, viewport=viewport, dark=dark)
    wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    begin(page, six)
    assert not page.evaluate(wider)
    page.locator(TILE).first.wait_for()
    assert not page.evaluate(wider)
    for control in page.locator(f"{TILE} button, {TILE} input").all():
        assert control.is_enabled()


def test_a_jobs_files_are_served_to_nobody(page, six):
    """Not by their place on the disk, which a visitor could learn or guess."""
    begin(page, six)
    status(page, "done")
    places = list(Path(tempfile.gettempdir()).glob("text2seg-jobs-*/*/dataset.json"))
    assert places
    for place in [*places, IMAGES / SIX[0]]:
        answer = page.request.get(f"{page.url.rstrip('/')}/gradio_api/file={place}")
        assert answer.status in (403, 404)
