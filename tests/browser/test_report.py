"""The page of `text2seg report` in a real browser, opened as a file: marks are made, downloaded, and honoured."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from text2seg.cli import main
from text2seg.coco.dataset import read_dataset

from .conftest import SCENES

QUERIES = "sheep, fire engine, bomb, octopus"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The labelled scene_0019, with two sheep, a fire engine and two bombs, and its page."""
    folder = tmp_path_factory.mktemp("report")
    output = folder / "dataset.json"
    images = SCENES / "new-scenes" / "images"
    command = ["label", str(images), "--glob", "scene_0019.jpg", "--queries", QUERIES, "--model", "demo"]
    assert main([*command, "--output", str(output)]) == 0
    assert main(["report", str(output), "--images", str(images), "--output", str(folder / "report.html")]) == 0
    return output


@pytest.fixture
def page(browser, dataset):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page, problems = context.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.set_default_timeout(10_000)
    page.goto(dataset.with_name("report.html").as_uri())
    page.get_by_text("2 more").click()
    yield page
    context.close()
    assert not problems


def ids(dataset, category):
    names = {each["id"]: each["name"] for each in dataset["categories"]}
    return [each["id"] for each in dataset["annotations"] if names[each["category_id"]] == category]


def press(page, verdict, number):
    page.locator(f"[data-annotation='{number}']").get_by_role("button", name=verdict).click()


def download(page, path):
    with page.expect_download() as got:
        page.get_by_role("button", name="Download marks").click()
    got.value.save_as(path)
    assert got.value.suggested_filename == "dataset-marks.json"
    return json.loads(path.read_text())


def test_marks_are_downloaded_and_merge_honours_them(page, dataset, tmp_path):
    before = read_dataset(dataset)
    (first, second), (engine,), (bomb, _) = (ids(before, name) for name in ("sheep", "fire engine", "bomb"))
    expect(page.locator("#marked")).to_have_text("0 of 5 annotations marked")
    expect(page.get_by_role("button", name="Download marks")).to_be_disabled()
    press(page, "Accept", first)
    press(page, "Reject", second)
    press(page, "Accept", bomb)
    press(page, "Accept", bomb)  # takes it back
    choice = page.get_by_label(f"Category of annotation {engine}")
    choice.focus()
    choice.select_option("octopus")
    expect(page.locator("#marked")).to_have_text("3 of 5 annotations marked")
    content = download(page, tmp_path / "marks.json")
    image = "scene_0019.jpg"
    assert content["marks"] == sorted(
        [
            {"image": image, "annotation": first, "verdict": "accepted"},
            {"image": image, "annotation": second, "verdict": "rejected"},
            {"image": image, "annotation": engine, "verdict": "accepted", "category": "octopus"},
        ],
        key=lambda each: each["annotation"],
    )
    merged = tmp_path / "merged.json"
    assert main(["merge", str(dataset), "--marks", str(tmp_path / "marks.json"), "--output", str(merged)]) == 0
    after = read_dataset(merged)
    assert [len(ids(after, name)) for name in ("sheep", "fire engine", "bomb", "octopus")] == [1, 0, 2, 1]
    reviews = [each["attributes"].get("review", "") for each in after["annotations"]]
    assert sorted(reviews) == ["", "", "accepted", "corrected"]


def test_marks_are_kept_over_a_reload_and_come_back_from_their_file(page, dataset, tmp_path):
    (engine,) = ids(read_dataset(dataset), "fire engine")
    choice = page.get_by_label(f"Category of annotation {engine}")
    choice.focus()
    choice.select_option("octopus")
    content = download(page, tmp_path / "marks.json")
    page.reload()
    page.get_by_text("2 more").click()
    expect(page.locator("#marked")).to_have_text("1 of 5 annotations marked")
    expect(page.get_by_label(f"Category of annotation {engine}")).to_have_value("octopus")
    page.locator("#file").set_input_files(tmp_path / "marks.json")  # downloaded marks are replaced without a question
    expect(page.get_by_label(f"Category of annotation {engine}")).to_have_value("octopus")
    press(page, "Reject", engine)
    rejected = page.locator(f"[data-annotation='{engine}'] [data-verdict='rejected']")
    for answer, pressed in (("dismiss", "true"), ("accept", "false")):
        with page.expect_event("dialog") as asked:
            page.once("dialog", lambda dialog, answer=answer: getattr(dialog, answer)())
            page.locator("#file").set_input_files(tmp_path / "marks.json")
        assert asked.value.message == "Your marks are not downloaded. Replace them with those of marks.json?"
        expect(rejected).to_have_attribute("aria-pressed", pressed)
    expect(page.get_by_label(f"Category of annotation {engine}")).to_have_value("octopus")
    expect(page.locator("#problem")).to_be_empty()
    assert download(page, tmp_path / "again.json") == content


def test_marks_on_images_and_marks_to_begin_with(page, dataset, tmp_path):
    """Another page with the downloaded marks shows them, and keeps its own."""
    (engine,) = ids(read_dataset(dataset), "fire engine")
    press(page, "Reject", engine)
    page.get_by_role("button", name="Accept image scene_0019.jpg").click()
    expect(page.locator("#marked")).to_have_text("1 of 5 annotations marked, 1 image")
    content = download(page, tmp_path / "marks.json")
    assert {"image": "scene_0019.jpg", "verdict": "accepted"} in content["marks"]
    press(page, "Accept", engine)
    images = ["--images", str(SCENES / "new-scenes" / "images")]
    command = ["report", str(dataset), *images, "--marks", str(tmp_path / "marks.json")]
    assert main([*command, "--output", str(tmp_path / "begun.html")]) == 0
    page.goto((tmp_path / "begun.html").as_uri())
    expect(page.locator("#marked")).to_have_text("1 of 5 annotations marked, 1 image")
    rejected = page.locator(f"[data-annotation='{engine}'] [data-verdict='rejected']")
    expect(rejected).to_have_attribute("aria-pressed", "true")
    assert download(page, tmp_path / "again.json") == content


def test_only_marks_that_no_file_has_are_warned_of(page, dataset, tmp_path):
    """The browser asks on closing only if a mark differs from the downloaded or opened file."""
    (engine,) = ids(read_dataset(dataset), "fire engine")
    asks = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"  # false: it asks
    assert page.evaluate(asks)
    press(page, "Reject", engine)
    assert not page.evaluate(asks)
    download(page, tmp_path / "marks.json")
    assert page.evaluate(asks)
    press(page, "Accept", engine)
    assert not page.evaluate(asks)
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#file").set_input_files(tmp_path / "marks.json")
    expect(page.locator(f"[data-annotation='{engine}'] [data-verdict='rejected']")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert page.evaluate(asks)
    press(page, "Reject", engine)  # takes it back
    press(page, "Reject", engine)
    assert page.evaluate(asks)


def test_a_file_of_another_dataset_is_refused(page, tmp_path):
    other = {"text2seg_marks": 1, "dataset": {"name": "other.json", "sha256": "0" * 64}, "marks": []}
    for content, words in (
        (json.dumps(other), "has marks of another dataset, other.json"),
        ("{", "is not a file of marks"),
    ):
        (tmp_path / "x.json").write_text(content)
        page.locator("#file").set_input_files(tmp_path / "x.json")
        expect(page.locator("#problem")).to_contain_text(words)
    expect(page.locator("#marked")).to_have_text("0 of 5 annotations marked")


def test_keys_mark_all_annotations_of_an_image(page):
    page.keyboard.press("j")
    page.keyboard.press("r")
    expect(page.locator("#marked")).to_have_text("5 of 5 annotations marked")
    expect(page.locator("[data-verdict='rejected'][aria-pressed='true']")).to_have_count(5)
    page.keyboard.press("r")  # a second time
    expect(page.locator("[data-verdict='rejected'][aria-pressed='true']")).to_have_count(5)
    page.keyboard.press("a")
    expect(page.locator("[data-verdict='accepted'][aria-pressed='true']")).to_have_count(5)
    page.keyboard.press("u")
    expect(page.locator("#marked")).to_have_text("0 of 5 annotations marked")
