"""The tab "Label a folder" in a real browser: upload, progress, review, download."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from app_builders import live_app
from PIL import Image
from playwright.sync_api import expect
from pycocotools.coco import COCO

from browser.test_app import press_before_the_server_answers

IMAGES = Path(__file__).parents[2] / "text2seg" / "demo" / "scenes" / "new-scenes" / "images"
SIX = ("scene_0019.jpg", *(f"scene_000{number}.jpg" for number in range(1, 6)))
TILE = "#folder-sheet .t2s-tile"


@pytest.fixture
def make_zip(tmp_path):
    """Function that makes a zip of names and contents."""

    def pack(*entries, name="photos.zip"):
        path = tmp_path / name
        with zipfile.ZipFile(path, "w") as archive:
            for entry, content in entries:
                archive.writestr(entry, content)
        return path

    return pack


@pytest.fixture
def six(make_zip):
    """Zip with six scenes, a truncated image, and files that are not images."""
    scenes = [(f"day/{name}", (IMAGES / name).read_bytes()) for name in SIX]
    return make_zip(*scenes, ("day/cut.jpg", scenes[0][1][:3000]), ("__MACOSX/._a.jpg", b""), ("notes.txt", b"hello"))


@pytest.fixture
def many(make_zip):
    """Zip with 120 scenes, so that a job takes some time."""
    scenes = [path.read_bytes() for path in sorted(IMAGES.glob("*.jpg"))]
    return make_zip(*((f"{n:03}.jpg", scenes[n % len(scenes)]) for n in range(120)), name="many.zip")


@pytest.fixture
def fourteen(make_zip):
    """Zip with images for two pages of the review."""
    scenes = [path.read_bytes() for path in sorted(IMAGES.glob("*.jpg"))[:3]]
    return make_zip(*((f"{n:02}.jpg", scenes[n % len(scenes)]) for n in range(14)))


def folder_tab(page):
    """Open the tab, which may be in a menu on a narrow screen, without waiting for its content."""
    page.get_by_role("tab", name="Segment").wait_for()
    tab, menu = page.get_by_role("tab", name="Label a folder"), page.get_by_role("button", name="More tabs")
    if menu.is_visible():
        menu.click()
        tab = page.locator(".overflow-dropdown").get_by_text("Label a folder")
    tab.click()


def choose(page, archive):
    page.locator("#folder-files input[type=file]").set_input_files(archive)
    page.locator("#folder-files").get_by_text(archive.name[:5]).first.wait_for()


def set_queries(page, things):
    page.get_by_label("Things to find, separated by commas").fill(things)
    page.get_by_role("button", name="Convert to ontology").click()
    page.locator(".t2s-valid").wait_for()


def start(page):
    page.get_by_role("button", name="Label images").click()


def begin(page, archive, things="sheep, koala, fire engine"):
    folder_tab(page)
    set_queries(page, things)
    choose(page, archive)
    start(page)
    status(page)


def status(page, *states):
    selector = ", ".join(f".t2s-status.{state}" for state in states) or ".t2s-status"
    page.locator(selector).wait_for()
    return page.locator(".t2s-status")


def reload(page):
    """Reload the page. The browser then aborts pending requests, and the script may log that."""
    page.expected += ["Connection errored out", "Failed to fetch"]
    page.reload()
    folder_tab(page)


def wait_for_tally(page, words):
    expect(page.locator("#folder-tally")).to_contain_text(re.compile(words))


def download(page, name):
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return Path(download.value.path()), download.value.suggested_filename


def test_a_zip_becomes_a_reviewed_dataset(page, six, tmp_path):
    begin(page, six)
    done = status(page, "done")
    assert "7 of 7 images" in done.inner_text()
    assert done.get_by_role("progressbar").get_attribute("aria-valuenow") == "7"
    assert "1 image failed" in done.inner_text()
    assert re.search(r"day/cut\.jpg: .*truncated", done.inner_text())
    assert "photos.zip: 1 hidden file" in done.inner_text()
    assert "not images: notes.txt" in done.inner_text()

    tiles = page.locator(TILE)
    tiles.first.wait_for()
    assert tiles.count() == 6
    doubts = [float(text.split()[1]) for text in page.locator(f"{TILE} .uncertainty").all_inner_texts()]
    assert doubts == sorted(doubts, reverse=True)
    page.wait_for_function(
        "tile => [...document.querySelectorAll(`${tile} img`)].every((image) => image.complete)", arg=TILE
    )
    assert all(page.locator(f"{TILE} img").evaluate_all("each => each.map(image => image.naturalWidth > 100)"))

    found = page.locator(TILE, has_text="scene_0019.jpg")
    assert found.get_by_role("checkbox").count() >= 2
    first = found.get_by_role("checkbox").first
    dropped = int(first.get_attribute("data-segment"))
    first.uncheck()
    wait_for_tally(page, "1 segment rejected")
    gone = page.locator(TILE, has_text="scene_0001.jpg")
    gone.get_by_role("button", name="Reject").click()
    found.get_by_role("button", name="Accept").click()
    wait_for_tally(page, "1 accepted · 1 rejected · 1 segment rejected · 4 undecided")
    assert gone.get_by_role("button", name="Reject").get_attribute("aria-pressed") == "true"

    path, name = download(page, "COCO dataset with images")
    assert name == "photos-coco-with-images.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (tmp_path / "dataset.json").write_bytes(archive.read("dataset.json"))
        assert "day/cut.jpg" in archive.read("failures.txt").decode()
    assert {each for each in names if each.startswith("images/")} == {
        f"images/day/{name}" for name in SIX if name != "scene_0001.jpg"
    }
    coco = COCO(tmp_path / "dataset.json")
    assert {image["file_name"] for image in coco.dataset["images"]} == {
        f"day/{name}" for name in SIX if name != "scene_0001.jpg"
    }
    assert dropped not in coco.anns
    assert coco.anns
    assert all(coco.annToMask(each).sum() == each["area"] for each in coco.dataset["annotations"])
    assert coco.dataset["info"]["review"]["rejected"] == ["day/scene_0001.jpg"]

    path, name = download(page, "COCO dataset")
    assert name == "photos-coco.zip"
    assert zipfile.ZipFile(path).namelist() == [
        "dataset.json",
        "README.txt",
        "unreviewed.json",
        "marks.json",
        "failures.txt",
        "left_out.txt",
    ]
    path, name = download(page, "Review page")
    assert name == "photos-review.html"
    assert path.read_text().count("<article") == 6
    path, name = download(page, "Failures")
    assert path.read_text().count("\n") == 1


def test_photographs_are_named_in_the_status_and_the_review(page, make_zip):
    content = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (120, 160), np.uint8)  # rough and grey, as photographs are
    Image.fromarray(noise).save(content, "PNG")
    begin(page, make_zip(("photo.png", content.getvalue()), (SIX[0], (IMAGES / SIX[0]).read_bytes())))
    status(page, "done")
    warning = page.locator("#folder-status .t2s-warning")
    assert "1 of 2 images looks like a photograph, and this model knows drawings only" in warning.inner_text()
    page.locator(TILE).nth(1).wait_for()
    marked = page.locator(TILE, has_text="It looks like a photograph")
    assert marked.locator(".name").all_inner_texts() == ["photo.png"]
    warning.get_by_role("button", name="Use real weights").click()
    page.locator("#models-table").wait_for()


def test_typed_queries_are_converted_to_an_ontology_on_start(page, six):
    folder_tab(page)
    page.get_by_label("Things to find, separated by commas").fill("sheep, fire engine")
    start(page)
    page.locator("#folder-problem").get_by_text("Choose images or a zip file first").wait_for()
    choose(page, six)
    start(page)
    assert "7 of 7 images" in status(page, "done").inner_text()
    assert page.locator("#folder-file").is_hidden()


def test_a_reload_keeps_the_job_and_its_decisions(page, six):
    begin(page, six)
    status(page, "done")
    page.locator(TILE).nth(2).wait_for()
    name = page.locator(f"{TILE} .name").nth(2).inner_text()
    page.locator(TILE).nth(2).get_by_role("button", name="Reject").click()
    wait_for_tally(page, "1 rejected")
    reload(page)
    status(page, "done")
    wait_for_tally(page, "1 rejected")
    page.locator("#folder-shown").get_by_text("Rejected").click()
    page.locator(f"{TILE}.rejected").wait_for()
    page.wait_for_function(f"document.querySelectorAll('{TILE}').length === 1")
    assert page.locator(f"{TILE} .name").all_inner_texts() == [name]


def test_a_job_runs_during_a_reload_and_resumes_after_cancel(page, many):
    begin(page, many)
    status(page, "running")
    page.wait_for_function("Number(document.querySelector('.t2s-status .track').ariaValueNow) >= 4")
    reload(page)
    assert "of 120 images" in status(page, "running").inner_text()
    before = int(page.get_by_role("progressbar", name="Images done").get_attribute("aria-valuenow"))
    page.wait_for_function(f"Number(document.querySelector('.t2s-status .track').ariaValueNow) > {before}")
    assert re.search(r"about [\d.]+ (s|min) left", page.locator(".t2s-status").inner_text())
    press_before_the_server_answers(page, "Stop", "#folder-status .badge", "stopping")
    stopped = int(status(page, "stopped").get_by_role("progressbar", name="Images done").get_attribute("aria-valuenow"))
    assert before < stopped < 120
    page.get_by_role("button", name="Resume").click()
    status(page, "running")
    page.wait_for_function(f"Number(document.querySelector('.t2s-status .track').ariaValueNow) > {stopped}")
    page.get_by_role("button", name="Stop").click()
    status(page, "stopped")
    page.get_by_role("button", name="Delete job").click()
    page.get_by_role("button", name="Yes, delete").click()
    page.locator("#folder-start").wait_for()
    assert page.locator("#folder-jobs").is_hidden()


def test_two_visitors_share_the_queue_and_see_only_their_own_jobs(visitor, app_url, many, six):
    anna, bert = visitor(app_url), visitor(app_url, viewport="phone")
    begin(anna, many)
    status(anna, "running")
    begin(bert, six)
    assert "1 job before this one" in status(bert, "waiting").inner_text()
    assert bert.locator("#folder-jobs").get_by_role("radio").count() == 2
    assert "many.zip" not in bert.locator("body").inner_text()
    assert "photos.zip" not in anna.locator("body").inner_text()
    anna.get_by_role("button", name="Stop").click()
    status(anna, "stopped")
    status(bert, "done")
    reload(anna)
    assert "many.zip" in status(anna, "stopped").inner_text()
    assert anna.locator("#folder-jobs").get_by_role("radio").count() == 2


def test_an_ontology_shows_its_errors_while_typing(page, six):
    folder_tab(page)
    editor = page.locator("#folder-ontology .cm-content")
    editor.fill("categories:\n  sheep: {threshold: 3, queris: [lamb]}\n  dog:\n  Sheep: [ewe]")
    faults = page.locator(".t2s-errors li")
    faults.nth(2).wait_for()
    texts = [" ".join(text.split()) for text in faults.all_inner_texts()]
    assert texts[0].startswith("line 2 categories.sheep.threshold: must be a number above 0")
    assert "did you mean 'queries'?" in texts[1]
    assert texts[2].startswith("line 4 categories.Sheep: 'Sheep' is there already")
    choose(page, six)
    start(page)
    problem = page.locator("#folder-problem").get_by_role("alert").inner_text()
    assert problem.startswith("Ontology, line 2: categories.sheep.threshold: must be a number above 0")
    assert problem.endswith("(2 more errors)")
    editor.fill("categories: [sheep, dragon]")
    page.get_by_text("1 category not looked for").wait_for()
    assert page.locator("#folder-problem").get_by_role("alert").count() == 0
    editor.fill("categories: [sheep, dog]")
    expect(page.locator(".t2s-valid")).to_contain_text("2 categories: sheep, dog")
    for example in ("Example: a few things", "Example: all options", "All the model knows"):
        page.get_by_role("button", name=example).click()
        page.locator(".t2s-valid").wait_for()
    page.locator(".t2s-valid", has_text="109 categories").wait_for()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (("../evil.jpg", b"x"), "leads out of its folder"),
        (("bomb.png", bytes(30_000_000)), "grows more than 200 times"),
        (("notes.txt", b"x"), "no image in your upload"),
    ],
)
def test_a_refused_archive_shows_an_error_and_makes_no_job(page, make_zip, entry, words):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(*entry)
    path = make_zip()
    path.write_bytes(content.getvalue())
    folder_tab(page)
    set_queries(page, "sheep")
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
    set_queries(page, "sheep, koala, fire engine")
    page.get_by_text("A folder on the server").click()
    page.locator("#folder-files").wait_for(state="hidden")
    page.get_by_label("Folder", exact=True).click()
    page.get_by_role("option", name="front").click()
    start(page)
    assert "2 of 2 images" in status(page, "done").inner_text()
    page.locator(TILE).first.wait_for()
    assert set(page.locator(f"{TILE} .name").all_inner_texts()) == {*SIX[:2]}
    assert {path.name for path in front.iterdir()} == {*SIX[:2]}


def test_starting_without_images_shows_an_error(page):
    folder_tab(page)
    set_queries(page, "sheep")
    start(page)
    page.locator("#folder-problem").get_by_text("Choose images or a zip file first").wait_for()


def test_a_message_stays_beside_an_ontology_that_ends_with_a_line_end(page):
    folder_tab(page)
    page.locator("#folder-ontology .cm-content").click()
    page.keyboard.type("categories: [sheep]\n")
    start(page)
    message = page.locator("#folder-problem").get_by_text("Choose images or a zip file first")
    message.wait_for()
    page.wait_for_timeout(1000)  # for events of the fields that got the answer
    assert message.is_visible()


def test_the_focus_follows_a_job_and_its_pages(page, fourteen):
    folder_tab(page)
    set_queries(page, "sheep")
    choose(page, fourteen)
    page.locator("#folder-start").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'folder-status'")
    status(page, "done")
    page.get_by_text("1 of 2", exact=True).wait_for()
    page.locator("#folder-next").focus()
    page.keyboard.press("Enter")  # the last page, where this button is disabled
    expect(page.locator(TILE)).to_have_count(2)
    page.wait_for_function("document.activeElement.matches('.t2s-tile')")


def test_a_message_goes_with_its_cause(page, six):
    folder_tab(page)
    start(page)
    problem = page.locator("#folder-problem").get_by_role("alert")
    problem.get_by_text("Choose images or a zip file first").wait_for()
    choose(page, six)
    problem.wait_for(state="detached")
    start(page)
    problem.get_by_text("Nothing to find yet").wait_for()
    page.get_by_label("Things to find, separated by commas").fill("sheep")
    problem.wait_for(state="detached")


def test_a_card_opens_large_with_zoom(page, six):
    begin(page, six)
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    large = page.get_by_role("dialog", name="Large view")
    large.get_by_role("heading", name="day/scene_0019.jpg").wait_for()
    page.wait_for_function("document.querySelector('.t2s-large img').naturalHeight === 1600")
    for button, zoom in (("Zoom in", "140 %"), ("Zoom in", "196 %"), ("Fit", "100 %")):
        large.get_by_role("button", name=button).click()
        assert large.locator("output").inner_text() == zoom
    large.get_by_role("button", name="Accept").click()
    wait_for_tally(page, "1 accepted")
    first = large.get_by_role("heading").inner_text()
    page.keyboard.press("ArrowRight")
    assert large.get_by_role("heading").inner_text() != first
    page.keyboard.press("Escape")
    large.wait_for(state="hidden")
    assert page.locator(f"{TILE}.accepted .name").all_inner_texts() == ["day/scene_0019.jpg"]
    page.wait_for_function("document.activeElement.matches('.t2s-tile')")  # once the dialog has told that it is closed
    page.locator(f"{TILE} h4").first.click()  # all of a card but its buttons and fields
    large.wait_for()
    large.locator(".t2s-tile-body .text").click(position={"x": 1, "y": 1})
    assert large.is_visible()


def test_a_card_opens_large_again_after_other_tabs_were_shown(page, six):
    begin(page, six)
    for accepted in (1, 0):
        page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
        page.wait_for_function("document.querySelector('.t2s-large img').naturalHeight === 1600")
        page.get_by_role("dialog", name="Large view").get_by_role("button", name="Accept").click()
        wait_for_tally(page, f"{accepted} accepted")
        page.keyboard.press("Escape")
        page.get_by_role("dialog", name="Large view").wait_for(state="hidden")
        page.get_by_role("tab", name="Segment").click()
        page.locator("#segment-canvas").wait_for()
        folder_tab(page)
    reload(page)
    wait_for_tally(page, "0 accepted")


def test_a_page_that_is_drawn_again_while_a_card_is_large_has_each_segment_once(page, six):
    begin(page, six)
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    page.get_by_role("dialog", name="Large view").wait_for()
    page.keyboard.press("a")
    wait_for_tally(page, "1 accepted")
    page.locator("#folder-shown input").nth(2).dispatch_event("click")  # only those that are accepted
    page.wait_for_function(f"document.querySelectorAll('{TILE}').length === 1")
    page.keyboard.press("Escape")
    page.get_by_role("dialog", name="Large view").wait_for(state="hidden")
    assert page.locator(f"{TILE} .t2s-tile-body").count() == 1
    numbers = page.locator("#folder-sheet [data-segment]").evaluate_all("each => each.map(box => box.dataset.segment)")
    assert len(numbers) == len(set(numbers)) > 1


def test_a_rejected_segment_is_drawn_as_rejected(page, six):
    begin(page, six)
    tile = page.locator(TILE, has=page.get_by_text("day/scene_0019.jpg"))
    small = tile.locator(".stage img")
    before = small.get_attribute("src")
    box = tile.get_by_role("checkbox").first
    box.uncheck()
    expect(small).not_to_have_attribute("src", before)
    box.check()
    expect(small).to_have_attribute("src", before)
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    large = page.get_by_role("dialog", name="Large view")
    page.wait_for_function("document.querySelector('.t2s-large img').naturalHeight === 1600")
    shown = large.locator(".t2s-large-stage img")
    kept = shown.get_attribute("src")
    large.get_by_role("checkbox").first.uncheck()
    expect(shown).not_to_have_attribute("src", kept)
    expect(small).not_to_have_attribute("src", before)
    large.get_by_role("button", name="Reject").click()
    expect(shown).to_have_css("filter", "grayscale(1)")
    large.get_by_role("button", name="Reject").click()
    expect(shown).to_have_css("filter", "none")


def correct_the_fire_engine(page):
    """Make a koala of the fire engine in the large view, and return its annotation."""
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    large = page.get_by_role("dialog", name="Large view")
    entry = large.locator(".segment", has=page.locator("b", has_text="fire engine")).first
    number = int(entry.get_by_role("checkbox").get_attribute("data-segment"))
    entry.get_by_role("combobox").select_option("koala")
    wait_for_tally(page, "1 corrected")
    large.get_by_role("button", name="Close").click()
    return number


def test_a_category_is_corrected(page, six):
    begin(page, six)
    number = correct_the_fire_engine(page)
    page.locator(f"{TILE} .segment", has=page.locator(f"[data-segment='{number}']")).locator(
        "b", has_text="koala"
    ).wait_for()
    dataset = dataset_in(download(page, "COCO dataset")[0])
    names = {each["id"]: each["name"] for each in dataset["categories"]}
    assert {each["id"]: names[each["category_id"]] for each in dataset["annotations"]}[number] == "koala"
    assert dataset["info"]["review"]["corrected_categories"] == {str(number): "fire engine"}


def test_marks_go_to_the_review_page_and_come_back(page, six, tmp_path):
    begin(page, six)
    tile = page.locator(TILE, has_text="scene_0019.jpg")
    tile.get_by_role("button", name="Accept").click()
    number = correct_the_fire_engine(page)
    sheep = tile.locator(".segment", has=page.locator("b", has_text="sheep")).first
    other = int(sheep.get_by_role("checkbox").get_attribute("data-segment"))
    sheep.get_by_role("checkbox").uncheck()
    wait_for_tally(page, "1 accepted · 0 rejected · 1 segment rejected · 1 corrected")
    path, name = download(page, "Review page")
    review = page.context.new_page()
    path = path.rename(tmp_path / name)
    review.goto(path.as_uri())
    expect(review.locator("#marked")).to_contain_text("2 of ")
    expect(review.locator("#marked")).to_contain_text("marked, 1 image")
    expect(review.get_by_label(f"Category of annotation {number}")).to_have_value("koala")
    expect(review.locator(f"[data-annotation='{other}'] [data-verdict='rejected']")).to_have_attribute(
        "aria-pressed", "true"
    )
    review.get_by_role("button", name="Reject image day/scene_0001.jpg").click()
    review.locator(f"[data-annotation='{other}'] [data-verdict='accepted']").click()
    with review.expect_download() as got:
        review.get_by_role("button", name="Download marks").click()
    assert got.value.suggested_filename == "photos-marks.json"
    got.value.save_as(tmp_path / "marks.json")
    review.close()
    page.locator("#folder-review input[type=file]").set_input_files(tmp_path / "marks.json")
    page.locator("#folder-review-problem").get_by_text(
        "Marks of marks.json taken over: 1 accepted, 1 corrected"
    ).wait_for()
    wait_for_tally(page, "1 accepted · 1 rejected · 0 segments rejected · 1 corrected")
    expect(sheep.get_by_role("checkbox")).to_be_checked()
    path, name = download(page, "Download marks")
    assert name == "photos-marks.json"
    content = json.loads(path.read_text())
    theirs = json.loads((tmp_path / "marks.json").read_text())
    assert content["dataset"]["sha256"] == theirs["dataset"]["sha256"]
    assert {json.dumps(each) for each in content["marks"]} == {json.dumps(each) for each in theirs["marks"]}
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(content | {"dataset": {"name": "other.json", "sha256": "0" * 64}}))
    page.locator("#folder-review input[type=file]").set_input_files(wrong)
    page.locator("#folder-review-problem").get_by_text("wrong.json has marks of another dataset, other.json").wait_for()


def test_a_segment_is_edited_in_the_editor(page, six):
    """The Segment tab keeps what it held before."""
    page.locator("[data-example='1']").click()
    page.locator(".t2s-image [data-piece]").first.wait_for()
    begin(page, six)
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    large = page.get_by_role("dialog", name="Large view")
    entry = large.locator(".segment", has=page.locator("b", has_text="fire engine")).first
    number = int(entry.get_by_role("checkbox").get_attribute("data-segment"))
    entry.get_by_role("button", name="Edit").click()
    page.locator("#folder-return").get_by_text("day/scene_0019.jpg").wait_for()
    assert page.get_by_role("tab", name="Segment").get_attribute("aria-selected") == "true"
    page.locator(".t2s-image [data-piece][aria-pressed=true]").wait_for()
    page.locator("[data-tool=delete]").click()
    page.wait_for_function("!document.querySelector('.t2s-image [aria-pressed=true]')")
    page.get_by_role("button", name="Save and go back").click()
    wait_for_tally(page, "1 segment rejected")
    assert page.get_by_role("tab", name="Label a folder").get_attribute("aria-selected") == "true"
    box = page.locator(f"{TILE} [data-segment='{number}']")
    assert not box.is_checked()
    assert number not in {each["id"] for each in dataset_in(download(page, "COCO dataset")[0])["annotations"]}
    page.get_by_role("tab", name="Segment").click()
    page.get_by_role("group", name="scene_0012.jpg").wait_for()
    assert page.locator("#folder-return").is_hidden()


def test_a_reload_and_a_second_edit_lose_nothing_of_an_edited_image(page, six):
    def edit(name):
        page.get_by_role("button", name=f"Show day/{name} large").click()
        page.get_by_role("dialog", name="Large view").get_by_role("button", name="Edit").first.click()

    begin(page, six)
    edit("scene_0019.jpg")
    bar = page.locator("#folder-return").get_by_text("day/scene_0019.jpg")
    bar.wait_for()
    page.locator(".t2s-image [data-piece][aria-pressed=true]").wait_for()
    page.locator("[data-tool=delete]").click()
    page.wait_for_function("!document.querySelector('.t2s-image [aria-pressed=true]')")
    page.expected += ["Connection errored out", "Failed to fetch"]
    page.reload()
    bar.wait_for()
    folder_tab(page)
    edit("scene_0001.jpg")
    page.get_by_text("still holds day/scene_0019.jpg").wait_for()
    page.get_by_role("tab", name="Segment").click()
    bar.wait_for()
    page.get_by_role("button", name="Save and go back").click()
    wait_for_tally(page, "1 segment rejected")
    assert page.get_by_role("tab", name="Label a folder").get_attribute("aria-selected") == "true"


def test_the_review_tells_of_an_edit_that_is_not_saved(page, six, make_zip):
    begin(page, six)
    page.get_by_role("button", name="Show day/scene_0019.jpg large").click()
    page.get_by_role("dialog", name="Large view").get_by_role("button", name="Edit").first.click()
    page.locator(".t2s-image [data-piece][aria-pressed=true]").wait_for()
    lines = page.locator(".t2s-folder-unsaved")

    def review_says(count):
        """Look in the review, come back, and say how many lines tell of the image."""
        page.get_by_role("tab", name="Label a folder").click()
        page.locator(TILE).first.wait_for()
        expect(lines.get_by_text("day/scene_0019.jpg is open in the editor with unsaved changes.")).to_have_count(count)
        page.get_by_role("button", name="Delete job").click()
        words = ", marks and the unsaved changes of day/scene_0019.jpg?" if count else " and marks?"
        expect(page.locator("#folder-delete-what")).to_have_text(f"Delete this job with its uploads{words}")
        page.get_by_role("button", name="Keep", exact=True).click()
        if count:
            lines.last.get_by_role("button", name="Go to the editor").click()
        else:
            page.get_by_role("tab", name="Segment").click()
        page.locator("#folder-return").get_by_text("day/scene_0019.jpg").wait_for()

    review_says(0)
    page.locator("[data-tool=delete]").click()
    page.wait_for_function("!document.querySelector('.t2s-image [aria-pressed=true]')")
    review_says(2)
    page.locator("[data-tool=undo]").click()
    page.locator("[data-tool=redo]:enabled").wait_for()
    review_says(0)
    page.locator("[data-tool=redo]").click()
    page.locator("[data-tool=redo]:disabled").wait_for()
    page.expected += ["Connection errored out", "Failed to fetch"]
    page.reload()
    page.locator("#folder-return").get_by_text("day/scene_0019.jpg").wait_for()
    review_says(2)
    folder_tab(page)
    page.get_by_label("New job").check()
    set_queries(page, "sheep")
    choose(page, make_zip((SIX[0], (IMAGES / SIX[0]).read_bytes()), name="other.zip"))
    start(page)
    page.locator("#folder-status").get_by_text("other.zip").wait_for()
    status(page, "done")
    expect(page.locator(TILE)).to_have_count(1)
    expect(lines).to_have_count(0)
    page.get_by_label("photos.zip").check()
    expect(lines).to_have_count(2)
    lines.first.get_by_role("button", name="Go to the editor").click()
    page.get_by_role("button", name="Save and go back").click()
    wait_for_tally(page, "1 segment rejected")
    expect(lines).to_have_count(0)


def test_the_review_goes_on_where_an_image_was_edited(page, fourteen):
    begin(page, fourteen, "sheep, fire engine")
    page.locator(TILE).nth(11).wait_for()
    page.locator(TILE).nth(11).locator("[data-open]").click()
    large = page.get_by_role("dialog", name="Large view")
    large.get_by_text("12 of 14").wait_for()
    page.keyboard.press("r")  # goes on, to the next page
    large.get_by_text("13 of 14").wait_for()
    page.keyboard.press("ArrowLeft")
    large.get_by_text("12 of 14").wait_for()
    page.keyboard.press("j")
    large.get_by_text("13 of 14").wait_for()
    page.keyboard.press("ArrowRight")
    large.get_by_text("14 of 14").wait_for()
    assert large.get_by_role("button", name="Next").is_disabled()
    wait_for_tally(page, "1 rejected")
    name = large.get_by_role("heading").inner_text()
    large.get_by_role("button", name="Edit this image").click()
    page.locator("#folder-return").get_by_text(name).wait_for()
    page.get_by_role("button", name="Another image").wait_for(state="hidden")
    page.get_by_label("Add a query").fill("koala")
    page.keyboard.press("Enter")
    page.locator(".t2s-refused").get_by_text("“koala” is not a category of this job").wait_for()
    page.get_by_role("button", name="Save and go back").click()
    page.wait_for_function(f"document.activeElement.dataset.name === '{name}'")
    page.get_by_text("2 of 2", exact=True).wait_for()


def test_counts_follow_the_review_and_the_deletion_asks_in_sight(page, six):
    begin(page, six)
    found = page.locator("#folder-status .found")
    expect(found.locator("li", has_text="sheep")).to_have_text("2 sheep")
    tile = page.locator(TILE, has_text="scene_0019.jpg")
    sheep = tile.locator(".segment", has=page.locator("b", has_text="sheep"))
    sheep.first.get_by_role("checkbox").uncheck()
    expect(found.locator("li", has_text="sheep")).to_have_text("1 sheep")
    tile.get_by_role("button", name="Reject").click()
    expect(found.locator("li", has_text="sheep")).to_have_count(0)
    page.get_by_role("button", name="Delete job").click()
    keep = page.get_by_role("button", name="Keep")
    expect(keep).to_be_focused()
    expect(keep).to_be_in_viewport()
    assert page.get_by_role("button", name="Delete job").is_hidden()
    keep.click()
    expect(page.get_by_role("button", name="Delete job")).to_be_focused()


def dataset_in(archive):
    with zipfile.ZipFile(archive) as opened:
        return json.loads(opened.read("dataset.json"))


def test_review_by_keys(page, six):
    begin(page, six)
    tiles = page.locator(TILE)
    tiles.first.wait_for()
    tiles.first.focus()
    page.keyboard.press("a")
    page.keyboard.press("r")
    page.keyboard.press("j")
    page.keyboard.press("k")
    page.keyboard.press("a")
    wait_for_tally(page, "2 accepted · 1 rejected")
    shown = tiles.evaluate_all("each => each.map(tile => tile.className.replace('t2s-tile', '').trim())")
    assert shown == ["accepted", "rejected", "accepted", "", "", ""]
    expect(tiles.nth(3)).to_be_focused()
    for key in "kkka":  # a second time on the first image
        page.keyboard.press(key)
    expect(tiles.nth(1)).to_be_focused()
    page.keyboard.press("a")
    wait_for_tally(page, "3 accepted · 0 rejected")
    page.keyboard.press("u")
    expect(tiles.nth(2)).to_be_focused()
    wait_for_tally(page, "2 accepted · 0 rejected")
    tiles.nth(0).get_by_role("button", name="Accept").click()  # pressed already
    wait_for_tally(page, "1 accepted · 0 rejected")
    tiles.nth(1).locator("[data-open]").click()
    large = page.get_by_role("dialog", name="Large view")
    for key, place, tally in (("a", 3, "1 accepted"), ("ArrowLeft", 2, "1 accepted"), ("u", 2, "0 accepted")):
        page.keyboard.press(key)
        large.get_by_text(f"{place} of 6").wait_for()
        wait_for_tally(page, tally)
    for _ in range(6):
        page.keyboard.press("a")
    large.get_by_text("6 of 6, the last image").wait_for()
    wait_for_tally(page, "5 accepted")


def test_keys_turn_the_pages_of_the_review(page, fourteen):
    begin(page, fourteen, "sheep, fire engine")
    tiles = page.locator(TILE)
    tiles.nth(11).focus()

    def expect_at(place, number):
        page.get_by_text(f"{number} of 2", exact=True).wait_for()
        expect(page.locator(f"{TILE}[data-place='{place}']")).to_be_focused()
        expect(page.locator(f"{TILE}[data-place='{place}']")).to_be_in_viewport(ratio=0.99)

    page.keyboard.press("a")
    expect_at(12, 2)
    page.keyboard.press("k")
    expect_at(11, 1)
    expect(tiles.nth(11)).to_have_class(re.compile("accepted"))
    page.keyboard.press("j")
    expect_at(12, 2)
    page.keyboard.press("r")
    page.keyboard.press("r")
    expect_at(13, 2)
    expect(page.locator("#folder-end")).to_have_text("This is the last image.")
    expect(page.locator("#folder-end p")).to_be_in_viewport()
    wait_for_tally(page, "1 accepted · 2 rejected")
    page.keyboard.press("k")
    expect(page.locator("#folder-end")).to_have_text("")
    page.get_by_label("Undecided", exact=True).check()
    page.locator(".t2s-sheet[data-shown=undecided]").wait_for()
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator("#folder-end")).to_have_text("This is the first image.")


def test_the_next_page_shows_the_undecided_images_after_the_last_one_shown(page, fourteen):
    begin(page, fourteen, "sheep, fire engine")
    page.get_by_label("Undecided", exact=True).check()
    page.locator(".t2s-sheet[data-shown=undecided]").wait_for()
    page.locator(TILE).first.get_by_role("button", name="Accept").click()
    wait_for_tally(page, "1 accepted")
    page.get_by_role("button", name="Next ›").click()
    page.get_by_text("2 of 2", exact=True).wait_for()
    assert page.locator(TILE).evaluate_all("each => each.map(tile => tile.dataset.place)") == ["12", "13"]
    page.get_by_role("button", name="‹ Previous").click()
    page.get_by_text("1 of 2", exact=True).wait_for()
    places = page.locator(TILE).evaluate_all("each => each.map(tile => Number(tile.dataset.place))")
    assert places == [*range(1, 13)]


def test_a_page_that_cannot_be_fetched_leaves_the_review_as_it_was(page, fourteen):
    begin(page, fourteen, "sheep, fire engine")
    page.locator(TILE).nth(11).focus()
    page.expected += ["answered 500", "Failed to load resource"]
    page.route("**/queue/join*", lambda route: route.fulfill(status=500, body="{}"))
    page.keyboard.press("j")
    expect(page.locator(".t2s-sheet")).not_to_have_attribute("inert", "")
    expect(page.get_by_role("button", name="Next ›")).to_be_enabled()
    page.unroute("**/queue/join*")
    page.locator(TILE).nth(11).focus()
    page.keyboard.press("j")
    page.get_by_text("2 of 2", exact=True).wait_for()


HOLD_ACCEPTED = """(() => {
  const { fetch: ask } = window;
  window.arrived = [];
  window.fetch = async (what, how) => {
    const [, verdict] = String(how?.body).match(/"verdict":"([a-z]+)"/) ?? [];
    if (verdict === "accepted") await new Promise((ready) => setTimeout(ready, 1000));
    const answer = await ask(what, how);
    if (verdict) window.arrived.push(verdict);
    return answer;
  };
})()"""


def test_decisions_count_in_their_order(visitor, app_url, six):
    """Also where the first of two requests takes a second longer to arrive."""
    page = visitor(app_url, prepare=lambda page: page.add_init_script(HOLD_ACCEPTED))
    begin(page, six)
    tile = page.locator(TILE).first
    tile.wait_for()
    tile.focus()
    for key in "akr":  # accept, back to the same image, reject
        page.keyboard.press(key)
    page.wait_for_function("arrived.length === 2")
    assert page.evaluate("arrived") == ["accepted", "rejected"]
    wait_for_tally(page, "0 accepted · 1 rejected")
    page.get_by_label("Accepted", exact=True).check()
    page.get_by_text("No image here is accepted.").wait_for()


@pytest.mark.parametrize(("viewport", "dark"), [("phone", True), ("tablet", False), ("wide", True)])
def test_no_horizontal_scrolling(visitor, app_url, six, viewport, dark):
    page = visitor(app_url, viewport=viewport, dark=dark)
    wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    begin(page, six)
    assert not page.evaluate(wider)
    page.locator(TILE).first.wait_for()
    assert not page.evaluate(wider)
    cut = "each => each.filter((hint) => hint.scrollWidth > hint.clientWidth).map((hint) => hint.textContent)"
    assert page.locator("#folder-review .t2s-hint").evaluate_all(cut) == []
    for control in page.locator(f"{TILE} button, {TILE} input").all():
        assert control.is_enabled()


def test_files_of_a_job_are_not_served(page, six):
    """Not by their place on the disk, which a visitor could learn or guess."""
    begin(page, six)
    status(page, "done")
    places = list(Path(tempfile.gettempdir()).glob("text2seg-jobs-*/*/dataset.json"))
    assert places
    for place in [*places, IMAGES / SIX[0]]:
        answer = page.request.get(f"{page.url.rstrip('/')}/gradio_api/file={place}")
        assert answer.status in (403, 404)


def test_the_visible_things_are_labelled_also_after_a_refusal(page, make_zip):
    """Things that were changed after the conversion, and the same upload after an unknown word."""
    one = make_zip((SIX[0], (IMAGES / SIX[0]).read_bytes()))
    folder_tab(page)
    set_queries(page, "sheep, dog")
    page.get_by_label("Things to find, separated by commas").fill("unicorn")
    choose(page, one)
    start(page)
    page.locator("#folder-problem").get_by_text("unicorn: the demo model does not know").wait_for()
    page.locator("#folder-checked").get_by_text("unicorn").first.wait_for()
    page.get_by_label("Things to find, separated by commas").fill("fire engine")
    start(page)
    status(page, "done")
    page.locator(TILE).get_by_text("fire engine").first.wait_for()
    assert not page.locator(f"{TILE} .segment").get_by_text("sheep", exact=True).count()
    page.get_by_label("New job").check()
    page.get_by_text("Drop images, a folder or a zip file here").wait_for()
    assert page.locator("#folder-files input[type=file]").get_attribute("multiple") is not None
    assert page.get_by_role("button", name="Label images").count() == 1


def test_a_chosen_folder_keeps_its_places_and_leaves_out_what_is_no_image(page, tmp_path):
    for place in ("holiday/a/one.jpg", "holiday/b/one.jpg", "holiday/.cache/one.jpg"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes((IMAGES / SIX[0]).read_bytes())
    (tmp_path / "holiday" / "notes.txt").write_text("hello")
    folder_tab(page)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(tmp_path / "holiday")
    page.locator("#folder-files").get_by_text("2 files that are no images were left out.").wait_for()
    set_queries(page, "sheep")
    start(page)
    expect(status(page, "done").get_by_role("heading")).to_have_text("holiday")
    expect(page.locator(f"{TILE} .name")).to_have_text(["a/one.jpg", "b/one.jpg"])


def test_a_reload_keeps_the_form_and_the_examples_can_be_labelled(page):
    folder_tab(page)
    page.locator("#folder-files").get_by_role("button", name="6 examples").click()
    set_queries(page, "sheep, red dog")
    expect(page.locator("#folder-checked")).to_contain_text("The demo model knows only 'dog' of 'red dog'.")
    page.wait_for_function("sessionStorage.getItem('text2seg-draft')?.includes('red dog')")
    reload(page)
    expect(page.get_by_label("Things to find, separated by commas")).to_have_value("sheep, red dog")
    page.locator(".t2s-valid").get_by_text("red dog").wait_for()
    start(page)
    status(page, "done")
    expect(page.locator(TILE)).to_have_count(6)
    page.get_by_label("New job").check()
    page.get_by_role("button", name="Choose a folder").wait_for()


def test_things_are_labelled_whose_ontology_was_emptied(page, make_zip):
    folder_tab(page)
    set_queries(page, "sheep")
    choose(page, make_zip((SIX[0], (IMAGES / SIX[0]).read_bytes())))
    page.locator("#folder-ontology .cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    expect(page.locator("#folder-checked")).to_contain_text("Type things and convert them to an ontology")
    page.keyboard.press("Tab")  # leaves the editor
    expect(page.locator("#folder-ontology .cm-content")).not_to_be_focused()
    start(page)
    status(page, "done")


def test_the_keys_of_the_review_begin_at_the_first_image(page, six):
    begin(page, six)
    page.locator(TILE).first.wait_for()
    page.get_by_label("Undecided", exact=True).check()
    page.locator(".t2s-sheet[data-shown=undecided]").wait_for()
    page.get_by_label("All", exact=True).check()
    page.locator(".t2s-sheet[data-shown=all]").wait_for()
    page.keyboard.press("j")
    expect(page.locator(TILE).first).to_be_focused()
    page.keyboard.press("a")
    wait_for_tally(page, "1 accepted")


def test_an_unknown_word_stops_no_other_and_the_ontology_follows_the_things(page, make_zip):
    folder_tab(page)
    things = page.get_by_label("Things to find, separated by commas")
    for typed, first in (("sheep", "sheep"), ("fire engine, unicorn", "fire engine")):
        things.fill(typed)
        things.blur()
        page.locator(".t2s-valid").get_by_text(first).wait_for()
    checked = page.locator("#folder-checked")
    expect(checked).to_contain_text("1 category not looked for")
    expect(checked).to_contain_text("line 3")
    checked.get_by_role("button", name="Use real weights").click()
    page.locator("#models-table").wait_for()
    choose(page, make_zip((SIX[0], (IMAGES / SIX[0]).read_bytes()), name="Bäume.zip"))
    start(page)
    done = status(page, "done")
    expect(done).to_contain_text("Not looked for: 1 category")
    page.locator(TILE).get_by_text("fire engine").first.wait_for()
    assert download(page, "COCO dataset")[1] == "Bäume-coco.zip"


def test_a_stopped_job_is_finished_with_what_is_done_and_a_reload_stays_here(page, many):
    begin(page, many, "sheep")
    page.wait_for_function("Number(document.querySelector('#folder-status [role=progressbar]')?.ariaValueNow) > 1")
    page.get_by_role("button", name="Stop").click()
    status(page, "stopped")
    page.get_by_role("button", name="Finish with what is done").click()
    expect(page.get_by_role("button", name="Not now")).to_be_focused()
    page.get_by_role("button", name="Finish", exact=True).click()
    expect(status(page, "done")).to_contain_text("left out when the job was finished early")
    page.locator(TILE).first.wait_for()
    page.expected += ["Connection errored out", "Failed to fetch"]
    page.reload()
    expect(page.get_by_role("tab", name="Label a folder")).to_have_attribute("aria-selected", "true")
    page.locator(TILE).first.wait_for()


def test_a_double_click_counts_once(page, six):
    begin(page, six)
    tile = page.locator(TILE, has_text="scene_0019.jpg")
    tile.get_by_role("button", name="Accept").dblclick()
    wait_for_tally(page, "1 accepted")
    expect(tile).to_have_class(re.compile("accepted"))
    tile.get_by_role("button", name="large").click()
    page.get_by_role("dialog", name="Large view").get_by_role("button", name="Edit").first.dblclick()
    page.locator("#folder-return").get_by_text("day/scene_0019.jpg").wait_for()
    page.locator(".t2s-image [data-piece][aria-pressed=true]").wait_for()
    expect(page.get_by_role("dialog", name="Large view")).to_be_hidden()
    expect(page.get_by_role("button", name="Save and go back")).to_be_in_viewport()
    page.get_by_role("button", name="Go back without saving").click()
    expect(tile).to_be_focused()
    page.get_by_role("button", name="Delete job").dblclick()
    expect(page.get_by_role("button", name="Delete job")).to_be_hidden()
    expect(page.get_by_role("button", name="Keep", exact=True)).to_be_focused()
    page.get_by_role("button", name="Keep", exact=True).click()


def test_a_page_that_comes_late_has_the_decisions_made_since(page, six):
    """The server makes a page before it hears of a decision, and the page arrives after it."""
    begin(page, six)
    tile = page.locator(TILE, has_text="scene_0019.jpg")
    accept = tile.get_by_role("button", name="Accept")
    expect(tile.locator("[data-segment]").first).to_be_checked()
    for _ in range(3):
        page.evaluate(
            """(selector) => {
              const tiles = [...document.querySelectorAll(selector)];
              const tile = tiles.find((each) => each.dataset.name.endsWith("0019.jpg"));
              document.querySelector("#folder-shown input").dispatchEvent(new Event("input", { bubbles: true }));
              document.querySelectorAll("#folder-shown input")[1].click();
              tile.querySelector("[data-verdict=accepted]").click();
            }""",
            TILE,
        )
        wait_for_tally(page, "1 accepted")
        page.locator("#folder-shown").get_by_label("All").check()
        expect(page.locator(TILE)).to_have_count(6)
        expect(tile).to_have_class(re.compile("accepted"))
        accept.click()
        wait_for_tally(page, "0 accepted")
        expect(tile).not_to_have_class(re.compile("accepted"))


def test_an_ontology_that_does_not_come_from_the_things_is_not_used_silently(page, make_zip):
    folder_tab(page)
    set_queries(page, "sheep")
    page.get_by_role("button", name="Example: all options").click()
    page.locator("#folder-checked").get_by_text("vehicle").first.wait_for()
    page.get_by_label("Things to find, separated by commas").fill("bell")
    choose(page, make_zip((SIX[0], (IMAGES / SIX[0]).read_bytes())))
    start(page)
    page.locator("#folder-problem").get_by_text("does not come from the things").wait_for()
