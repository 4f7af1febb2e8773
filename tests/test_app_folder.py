"""The folder tab without a browser: sources of images, the ontology, decisions, downloads, owners of jobs."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import weakref
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import labelling_builders
import numpy as np
import pytest
from app_builders import SCENE
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pycocotools.coco import COCO

from text2seg.app.checks import read_image
from text2seg.app.folder import editing, layout
from text2seg.app.folder.archives import UploadLimit
from text2seg.app.folder.inputs import (
    EXAMPLES,
    LETTERS,
    WITH_LIMITS,
    Checked,
    Upload,
    as_yaml,
    check,
    copy_uploads,
    folders_in,
    known_things,
    link_folder,
)
from text2seg.app.folder.jobs import Job, Jobs
from text2seg.app.folder.layout import lay_out_return
from text2seg.app.folder.review import (
    LARGE,
    PAGE,
    ContactSheet,
    dataset_zip,
    failures_text,
    marks_file,
    review_page,
)
from text2seg.app.folder.tab import build
from text2seg.app.folder.visitors import VisitorJobs
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment import build as build_editor
from text2seg.app.segment.desk import KeptSessions
from text2seg.app.segment.edits import add_point, draw_box, give_name
from text2seg.app.segment.requests import read_request
from text2seg.app.segment.session import EditSession, find, open_image
from text2seg.app.segment.view import NOT_RECORDED, view_of, why
from text2seg.app.settings import AppSettings
from text2seg.cli import main
from text2seg.coco.dataset import read_dataset, write_dataset
from text2seg.coco.marks import Mark, Marks, identity, read_marks, write_marks
from text2seg.coco.rle import encode, mask_of
from text2seg.config import LabelSettings
from text2seg.errors import DatasetError, ImageError, OutputError, QueryError, Text2SegError
from text2seg.grids import iou
from text2seg.labelling.job import label_folder
from text2seg.model_card import card_of
from text2seg.ontology import ontology_of_queries
from text2seg.ontology.read import parse
from text2seg.vocabulary import ClosedVocabulary

ROOM = UploadLimit(images=9, total=1_000_000)
DEMO = SimpleNamespace(closed_vocabulary=card_of("demo").closed_vocabulary)
DEMO.known_queries = DEMO.closed_vocabulary.split


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


@pytest.fixture
def uploads(tmp_path):
    """Makes uploads: images, zips of images, or what is neither."""

    def upload(*names):
        made = []
        for number, name in enumerate(names):
            path = tmp_path / "uploads" / str(number) / name
            path.parent.mkdir(parents=True)
            if name.endswith(".zip"):
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("a.jpg", b"x")
                    archive.writestr("front/b.jpg", b"y")
            else:
                path.write_bytes(b"z")
            made.append(Upload(path, name))
        return made

    return upload


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_a_single_zip_keeps_its_layout(uploads, into):
    assert copy_uploads(uploads("photos.zip"), into, ROOM) == ()
    assert written(into) == ["a.jpg", "front/b.jpg"]


def test_several_uploads_get_separate_names(uploads, into):
    notes = copy_uploads(uploads("photos.zip", "Photos.zip", "a.jpg", "A.JPG", ".c.jpg", "notes.txt"), into, ROOM)
    assert written(into) == [
        "A_2.JPG",
        "Photos_2/a.jpg",
        "Photos_2/front/b.jpg",
        "a.jpg",
        "c.jpg",
        "photos/a.jpg",
        "photos/front/b.jpg",
    ]
    assert notes == ("several files of one name: A.JPG is now A_2.JPG", "neither image nor zip: notes.txt")


def test_images_of_a_folder_keep_their_places_in_it(uploads, into):
    files = [
        Upload(each.path, f"photos/{place}")
        for each, place in zip(
            uploads("one.jpg", "one.jpg", "b.png"), ("front/one.jpg", "back/one.jpg", "b.png"), strict=True
        )
    ]
    assert copy_uploads(files, into, ROOM) == ()
    assert written(into) == ["b.png", "back/one.jpg", "front/one.jpg"]


def test_images_of_several_folders_keep_their_folders(uploads, into):
    one, two, alone = uploads("one.jpg", "one.jpg", "one.jpg")
    files = [Upload(one.path, "a/one.jpg"), Upload(two.path, "b/one.jpg"), alone]
    assert copy_uploads(files, into, ROOM) == ()
    assert written(into) == ["a/one.jpg", "b/one.jpg", "one.jpg"]


@pytest.mark.parametrize("name", ["../one.jpg", "photos/../../one.jpg", "C:/one.jpg", "a/con/one.jpg"])
def test_places_that_lead_out_of_the_folder_are_refused(uploads, into, name):
    (upload, other) = uploads("one.jpg", "two.jpg")
    with pytest.raises(Text2SegError, match=r"leads out|absolute|not valid"):
        copy_uploads([other, Upload(upload.path, name)], into, ROOM)
    assert written(into.parent / "into") in ([], ["two.jpg"])


def test_the_examples_can_be_labelled(into):
    assert copy_uploads([Upload(path, path.name) for path in EXAMPLES], into, ROOM) == ()
    assert len(written(into)) == len(EXAMPLES) == 6


@pytest.mark.parametrize(("count", "room"), [(3, UploadLimit(2, 1000)), (3, UploadLimit(9, 2))])
def test_uploads_have_limits(uploads, into, count, room):
    with pytest.raises(Text2SegError, match="at most"):
        copy_uploads(uploads(*(f"{n}.jpg" for n in range(count))), into, room)


def test_zips_share_the_limits(uploads, into):
    with pytest.raises(Text2SegError, match="has 2 images; at most 1"):
        copy_uploads(uploads("a.zip", "b.zip"), into, UploadLimit(3, 1000))


@pytest.mark.parametrize("names", [(), ("notes.txt",)])
def test_an_upload_without_images_is_refused(uploads, into, names):
    with pytest.raises(Text2SegError, match="no image in your upload"):
        copy_uploads(uploads(*names), into, ROOM)


@pytest.fixture
def root(tmp_path):
    """A root with images, and links within it and out of it."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "a.jpg", root / "front" / "b.jpg", root / "front" / "deep" / "c.jpg", root / ".git" / "d.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    (root / "front" / "secret.jpg").symlink_to(outside / "secret.jpg")
    (root / "front" / "same.jpg").symlink_to(root / "a.jpg")
    (root / "front" / "out").symlink_to(outside)
    (root / "front" / "notes.txt").write_bytes(b"x")
    (root / "away").symlink_to(outside)
    return root


def test_only_folders_below_the_root_can_be_chosen(root):
    assert folders_in(root) == [".", "front", "front/deep"]


def test_links_out_of_the_folder_are_skipped(root, into):
    notes = link_folder(root, "front", into, ROOM)
    assert written(into) == ["b.jpg", "deep/c.jpg", "same.jpg"]
    assert notes == ("links out of the folder, or not readable: secret.jpg",)
    assert (into / "b.jpg").resolve() == root / "front" / "b.jpg"


@pytest.mark.parametrize("name", ["..", "../outside", "away", "front/out", "/", "front/..", "", ".git", "none"])
def test_other_folders_are_refused(root, into, name):
    with pytest.raises(Text2SegError, match="no folder"):
        link_folder(root, name, into, ROOM)
    assert written(into) == []


def test_a_folder_has_limits(root, into):
    with pytest.raises(Text2SegError, match="at most 2 images"):
        link_folder(root, ".", into, UploadLimit(2, 1000))


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode there")
def test_names_that_are_not_unicode_are_skipped(root, into):
    (root / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    assert link_folder(root, ".", into, ROOM)[-1] == "1 files with names that are not Unicode"


def test_each_ontology_error_names_its_line():
    text = "categories:\n  sheep: {threshold: 3, queris: [lamb]}\n  dog:\n  Sheep: [ewe]\n"
    checked = check(text, DEMO)
    assert checked.ontology is None
    assert [error.line for error in checked.errors] == [2, 2, 4]
    threshold, queris, name = (error.message for error in checked.errors)
    assert threshold.startswith("categories.sheep.threshold: must be a number above 0")
    assert queris.startswith("categories.sheep.queris: is not a key of a category (did you mean 'queries'?)")
    assert name == "categories.Sheep: 'Sheep' is there already, in line 2"


@pytest.mark.parametrize("text", ["", "categories: [", "- a", "a" * (LETTERS + 1), "\x00", "categories: &a [*a]"])
def test_invalid_ontology_text_gives_an_error_message(text):
    errors = check(text, DEMO).errors
    assert errors
    assert all(error.message and "ontology:" not in error.message for error in errors)


def test_unknown_categories_are_left_out_with_a_suggestion():
    checked = check("categories:\n- sheep\n- name: dragon\n  queries: [dragon, wyvern]\n- sheeb\n", DEMO)
    assert checked.errors == ()
    assert checked.ontology.names == ("sheep",)
    assert [(each.line, each.message.split(":")[0]) for each in checked.unknown] == [(3, "dragon"), (5, "sheeb")]
    assert "Did you mean sheep" in checked.unknown[1].message
    assert "fire engine" in checked.known
    shown = layout.checked_html(checked)
    assert "2 categories not looked for" in shown
    assert "1 category:" in shown
    assert 'data-do="models"' in shown


def test_half_known_categories_are_looked_for_with_a_note():
    checked = check("categories:\n- red sheep\n- koala\n", DEMO)
    assert checked.ontology.names == ("red sheep", "koala")
    assert checked.half_known == ("the demo model knows only 'sheep' of 'red sheep'.",)
    assert "The demo model knows only &#39;sheep&#39; of &#39;red sheep&#39;." in layout.checked_html(checked)


def test_an_ontology_without_a_known_category_is_refused():
    checked = check("categories: [dragon, sheeb]", DEMO)
    assert (checked.ontology, checked.errors, len(checked.unknown)) == (None, (), 2)


@pytest.mark.parametrize(
    "text", [WITH_LIMITS, known_things(DEMO.closed_vocabulary), as_yaml("sheep, koala, fire engine")]
)
def test_examples_are_valid(text):
    checked = check(text, DEMO)
    assert checked.errors == ()
    assert len(checked.ontology.categories) >= 3


def test_all_that_a_model_knows_is_an_ontology_of_its_own_vocabulary():
    vocabulary = ClosedVocabulary({"dog": ["dog", "hound"], "yes": ["it: # 'so'"]})
    dog, yes = parse(known_things(vocabulary), "ontology")[0].categories
    assert (dog.name, dog.queries) == ("dog", ("dog", "hound"))
    assert (yes.name, yes.queries) == ("yes", ("yes", "it: # 'so'"))
    scenes = resources.files("text2seg.demo").joinpath("scenes/things.yaml").read_text(encoding="utf-8")
    assert parse(known_things(DEMO.closed_vocabulary), "o")[0].categories == parse(scenes, "o")[0].categories


words = st.text("abc yesno019.#:{}[]'\"%&*!>éß", min_size=1, max_size=8).map(str.strip).filter(bool)
queries = st.lists(st.tuples(words, st.lists(words, max_size=2), st.sampled_from("|+")), min_size=1, max_size=4)


@given(queries)
def test_queries_become_an_equivalent_ontology_file(given_queries):
    texts = [
        sign.join([first, *more]) + (f" -{more[0]}" if more and sign == "|" and more[0] != first else "")
        for first, more, sign in given_queries
    ]
    try:
        ontology = ontology_of_queries(",".join(texts))
        read = parse(as_yaml(",".join(texts)), "ontology")[0]
    except Text2SegError:  # wordings that are there twice, which the editor shows
        return
    assert [each.name for each in read.categories] == [each.name for each in ontology.categories]
    for mine, theirs in zip(read.categories, ontology.categories, strict=True):
        assert (mine.queries, mine.negative_queries) == (theirs.queries, theirs.negative_queries)


@pytest.fixture
def job(tmp_path):
    """A job that is done: 30 images, of which some have segments, one is broken."""
    made = Job(
        "id", "anna", "My photos <b>.zip", tmp_path, labelling_builders.FakeModels(), labelling_builders.ONTOLOGY
    )
    labelling_builders.fill(made.images, 30)
    (made.images / "broken.png").write_bytes(b"\x89PNG")
    made.report = label_folder(made.models, made.images, made.ontology, LabelSettings(output=made.dataset))
    made.failures = [failure.message for failure in made.report.failures]
    made.state, made.total, made.done = "done", 31, 31
    return made


@pytest.fixture
def sheet(job):
    return ContactSheet(job.dataset, job.images)


def place_of(sheet, *, segments):
    return next(n for n, image in enumerate(sheet.contents.images) if len(image.items) == segments)


def test_the_most_uncertain_images_come_first(job, sheet):
    pages = [sheet.page(job.marks, "all", n * PAGE) for n in range(3)]
    uncertainties = [tile["uncertainty"] for page in pages for tile in page.tiles]
    assert len(uncertainties) == 30
    assert uncertainties == sorted(uncertainties, reverse=True)


def test_pages_have_a_fixed_size_and_an_end(job, sheet):
    first = sheet.page(job.marks, "all", 0)
    second = sheet.page(job.marks, "all", first.end)
    last = sheet.page(job.marks, "all", second.end)
    assert (len(first.tiles), first.pages, first.number) == (PAGE, 3, 0)
    assert (len(last.tiles), last.pages, last.number) == (30 - 2 * PAGE, 3, 2)
    assert sheet.page_before(job.marks, "all", last.begin) == second
    assert sheet.page_before(job.marks, "all", 0) == first
    assert sheet.page(job.marks, "all", 99).tiles[-1] == last.tiles[-1]
    for empty in (sheet.page(job.marks, "accepted", 5), sheet.page_before(job.marks, "accepted", 5)):
        assert (empty.tiles, empty.number, empty.pages) == ((), 0, 1)


def test_the_next_page_begins_behind_the_last_image_that_was_shown(job, sheet):
    """Also where images have left the filter since."""
    marks = Marks()
    first = sheet.page(marks, "undecided", 0)
    for decided, number in ((0, 1), (1, 1), (PAGE, 0)):
        for tile in first.tiles[:decided]:
            marks.decide_image(tile["name"], "accepted")
        second = sheet.page(marks, "undecided", first.end)
        assert [tile["place"] for tile in second.tiles] == [*range(PAGE, 2 * PAGE)]
        assert (second.first, second.number, second.pages - second.number) == (PAGE - decided, number, 2)
    first = sheet.page_before(marks, "accepted", PAGE)
    assert [tile["place"] for tile in first.tiles] == [*range(PAGE)]


def test_counts_leave_out_what_was_rejected(job, sheet):
    marks = Marks()
    before = sheet.counts(marks)
    image = next(each for each in sheet.contents.images if len(each.items) > 1)
    marks.decide(image.items[0].annotation["id"], "rejected", None, image.items[0].category)
    assert before - sheet.counts(marks) == Counter([image.items[0].category])
    marks.decide_image(image.file_name, "rejected")
    assert before - sheet.counts(marks) == Counter(item.category for item in image.items)


def test_verdicts_filter_the_sheet(job, sheet):
    sheet.decide(job.marks, {"place": 3, "verdict": "rejected"})
    sheet.decide(job.marks, {"place": 5, "verdict": "accepted"})
    shown = {kind: sheet.page(job.marks, kind, 0).fitting for kind in ("all", "undecided", "accepted", "rejected")}
    assert shown == {"all": 30, "undecided": 28, "accepted": 1, "rejected": 1}
    sheet.decide(job.marks, {"place": 3, "verdict": None})
    assert job.marks.images_with("rejected") == []


@pytest.mark.parametrize(
    "change",
    [
        None,
        [],
        {},
        {"place": 30, "verdict": "accepted"},
        {"place": -1, "verdict": "accepted"},
        {"place": "0", "verdict": "accepted"},
        {"place": 0, "verdict": "deleted"},
        {"place": 0, "verdict": ["accepted"]},
        {"place": 0, "segment": 10_000, "keep": False},
        {"place": 0, "segment": "1", "keep": False},
        {"place": 0, "segment": {}, "keep": False},
        {"place": 0, "segment": 10_000, "category": "ball"},
        {"place": 0, "segment": 1, "category": "unicorn"},
        {"place": 0, "segment": 1, "category": None},
    ],
)
def test_invalid_decisions_are_ignored(job, sheet, change):
    sheet.decide(job.marks, change)
    assert job.marks == Marks()


def test_a_segment_is_rejected_with_its_own_image_only(job, sheet):
    place = place_of(sheet, segments=2)
    other = place_of(sheet, segments=1)
    number = sheet.contents.images[place].items[0].annotation["id"]
    sheet.decide(job.marks, {"place": other, "segment": number, "keep": False})
    assert job.marks.rejected == []
    sheet.decide(job.marks, {"place": place, "segment": number, "keep": False})
    assert job.marks.rejected == [number]
    sheet.decide(job.marks, {"place": place, "segment": number, "keep": True})
    assert job.marks.rejected == []


def test_rejected_items_are_not_in_the_download(job, sheet, tmp_path):
    two, one = place_of(sheet, segments=2), place_of(sheet, segments=1)
    dropped = sheet.contents.images[two].items[1].annotation["id"]
    gone = sheet.contents.images[one].file_name
    sheet.decide(job.marks, {"place": two, "segment": dropped, "keep": False})
    sheet.decide(job.marks, {"place": two, "verdict": "accepted"})
    sheet.decide(job.marks, {"place": one, "verdict": "rejected"})
    path = dataset_zip(job, sheet, images=True)
    assert path.name == "My-photos--b-coco-with-images.zip"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "home")
    dataset = json.loads((tmp_path / "home" / "dataset.json").read_bytes())
    before = sheet.content
    assert len(dataset["images"]) == len(before["images"]) - 1 == 29
    assert len(dataset["annotations"]) == len(before["annotations"]) - 2
    assert dataset["info"]["review"] == {
        "accepted": [sheet.contents.images[two].file_name],
        "rejected": [gone],
        "rejected_annotations": [dropped],
        "edited_annotations": [],
        "added_annotations": [],
        "corrected_categories": {},
    }
    names = {image["file_name"] for image in dataset["images"]}
    assert gone not in names
    assert set(written(tmp_path / "home" / "images")) == names
    coco = COCO(tmp_path / "home" / "dataset.json")
    assert all(coco.annToMask(each).sum() == each["area"] for each in coco.dataset["annotations"])
    assert (tmp_path / "home" / "failures.txt").read_text().startswith("broken.png")
    assert b"review" not in job.dataset.read_bytes()


def test_a_corrected_category_is_in_the_download(job, sheet, tmp_path):
    place = place_of(sheet, segments=2)
    item = next(each for each in sheet.contents.images[place].items if each.category == "ball")
    number = item.annotation["id"]
    sheet.decide(job.marks, {"place": place, "segment": number, "category": "red car"})
    (tile,) = [each for each in sheet.page(job.marks, "all", 0).tiles if each["place"] == place]
    assert {each["id"]: each["name"] for each in tile["segments"]}[number] == "red car"
    dataset = downloaded(job, sheet, tmp_path)
    names = {each["id"]: each["name"] for each in dataset["categories"]}
    assert names[annotation_of(dataset, number)["category_id"]] == "red car"
    assert dataset["info"]["review"]["corrected_categories"] == {str(number): "ball"}
    sheet.decide(job.marks, {"place": place, "segment": number, "category": "ball"})
    assert job.marks.categories == {}
    dataset = downloaded(job, sheet, tmp_path)
    assert names[annotation_of(dataset, number)["category_id"]] == "ball"


class TestMarks:
    """Marks go from the app to `merge` and `report` and back."""

    @pytest.fixture
    def marked(self, job, sheet):
        """The decisions of a visitor: ids of a corrected and a rejected segment, and the names of two images."""
        two, one = place_of(sheet, segments=2), place_of(sheet, segments=1)
        items = sheet.contents.images[two].items
        ball = next(each.annotation["id"] for each in items if each.category == "ball")
        other = next(each.annotation["id"] for each in items if each.category != "ball")
        sheet.decide(job.marks, {"place": two, "segment": ball, "category": "red car"})
        sheet.decide(job.marks, {"place": two, "segment": other, "keep": False})
        sheet.decide(job.marks, {"place": two, "verdict": "accepted"})
        sheet.decide(job.marks, {"place": one, "verdict": "rejected"})
        return ball, other, sheet.contents.images[two].file_name, sheet.contents.images[one].file_name

    def test_merge_makes_the_dataset_of_the_download(self, job, sheet, marked, tmp_path, capsys):
        ours, home = downloaded(job, sheet, tmp_path), tmp_path / "download"
        merged = tmp_path / "merged.json"
        command = ["merge", str(home / "unreviewed.json"), "--marks", str(home / "marks.json"), "--output", str(merged)]
        assert main(command) == 0
        assert "0 accepted, 1 corrected, 1 rejected; of whole images 2" in capsys.readouterr().out
        assert [each["id"] for each in read_dataset(merged)["images"]] == [each["id"] for each in ours["images"]]

        def told(dataset):
            return [
                (each["image_id"], each["category_id"], each["segmentation"], each["attributes"].get("review"))
                for each in dataset["annotations"]
            ]

        assert told(read_dataset(merged)) == told(ours)

    def test_they_come_back_into_another_review_of_the_job(self, job, sheet, marked):
        path = marks_file(job, sheet)
        assert read_marks(path).dataset.sha256 == identity(read_dataset(job.dataset))
        again = Marks()
        words = ContactSheet(job.dataset, job.images).open_marks(again, path)
        assert again == job.marks
        assert words == job.marks.count()

    def test_marks_of_a_download_count_for_the_job(self, job, sheet, marked, tmp_path):
        """Who accepts an annotation in the reviewed dataset accepts the category that it has there."""
        ball, other, *names = marked
        reviewed = read_dataset(write_dataset(downloaded(job, sheet, tmp_path), tmp_path / "home.json"))
        assert identity(reviewed) != identity(sheet.content)
        image = next(each for each in sheet.contents.images if len(each.items) == 1 and each.file_name not in names)
        entries = [
            Mark(image=names[0], annotation=ball, verdict="accepted"),
            Mark(image=image.file_name, annotation=image.items[0].annotation["id"], verdict="rejected"),
        ]
        path = write_marks(tmp_path / "later.json", "home.json", identity(reviewed), entries)
        assert sheet.open_marks(job.marks, path) == "0 accepted, 1 corrected, 1 rejected"
        assert job.marks.categories == {ball: "red car"}
        assert set(job.marks.rejected) == {other, image.items[0].annotation["id"]}
        back = [Mark(image=names[0], annotation=ball, verdict="accepted", category="ball")]
        sheet.open_marks(job.marks, write_marks(tmp_path / "back.json", "home.json", identity(reviewed), back))
        assert (job.marks.categories, job.marks.annotations[ball]) == ({}, "accepted")

    def test_marks_of_another_dataset_and_other_files_are_refused(self, job, sheet, marked, tmp_path):
        before, path = deepcopy(job.marks), tmp_path / "secret" / "x.json"
        path.parent.mkdir()
        for content, words in (
            ({"text2seg_marks": 1, "dataset": {"name": "o.json", "sha256": "0" * 64}, "marks": []}, "another dataset"),
            ({"marks": []}, "x.json is not a file of marks"),
        ):
            path.write_text(json.dumps(content))
            with pytest.raises(DatasetError, match=words) as told:
                sheet.open_marks(job.marks, path)
            assert "secret" not in str(told.value)
        wrong = [Mark(image=marked[2], annotation=99_999, verdict="rejected")]
        write_marks(path, "o.json", identity(sheet.content), wrong)
        with pytest.raises(DatasetError, match=r"x\.json: this job has no annotation 99999"):
            sheet.open_marks(job.marks, path)
        assert job.marks == before

    def test_a_rejected_segment_has_its_first_category_again(self, job, sheet, marked):
        ball, *_ = marked
        place = place_of(sheet, segments=2)
        sheet.decide(job.marks, {"place": place, "segment": ball, "keep": False})
        sheet.decide(job.marks, {"place": place, "segment": ball, "keep": True})
        (tile,) = [each for each in sheet.page(job.marks, "all", 0).tiles if each["place"] == place]
        found = next(each for each in tile["segments"] if each["id"] == ball)
        assert (found["name"], found["is_kept"], found["verdict"]) == ("ball", True, "")


def test_the_large_image_has_the_segments(job, sheet):
    place = place_of(sheet, segments=1)
    large = sheet.picture(job.marks, place, is_large=True)
    assert max(large.width, large.height) == LARGE
    assert large.url.startswith("data:image/jpeg")
    assert sheet.picture(job.marks, -1) is sheet.picture(job.marks, 99) is None


def test_counts_of_categories_are_sorted(job):
    counts = [int(count) for count in re.findall(r"<li><b>(\d+)</b>", layout.status_html(job, 0))]
    assert len(counts) > 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("done", "says"), [(0, "no image is done yet"), (2, "finished images are kept")])
def test_a_stopped_job_says_whether_anything_is_kept(job, done, says):
    stopped = replace(job, state="stopped", done=done, failures=[], report=None, sheet=None)
    assert says in layout.status_html(stopped, 0)


def test_a_rejected_segment_is_not_drawn_as_one_that_counts(sheet):
    place = place_of(sheet, segments=1)
    (item,) = sheet.contents.images[place].items
    kept, rejected = Marks(), Marks(annotations={item.annotation["id"]: "rejected"})
    for is_large in (False, True):
        urls = {sheet.picture(marks, place, is_large=is_large).url for marks in (kept, rejected)}
        assert len(urls) == 2
    tile = next(each for each in sheet.page(rejected, "all", 0).tiles if each["place"] == place)
    assert tile["url"] == sheet.picture(rejected, place).url


class TestEditing:
    """An image of a job in the editor, with the demo model."""

    @pytest.fixture
    def labelled(self, demo, tmp_path):
        """A job of one scene that is done, and a pool with its models."""
        ontology = ontology_of_queries("sheep|lamb, fire engine, koala")
        job = Job("id", "anna", "photos.zip", tmp_path, demo, ontology)
        job.images.mkdir()
        shutil.copy(SCENE, job.images)
        job.report = label_folder(demo, job.images, ontology, LabelSettings(output=job.dataset))
        job.state = "done"
        return job, ContactSheet(job.dataset, job.images), ModelPool(demo, AppSettings())

    def test_what_is_not_edited_does_not_change(self, labelled):
        job, sheet, pool = labelled
        before = deepcopy(sheet.content["annotations"])
        held = EditSession(texts=("before",))
        session, number = editing.begin(pool, job, sheet, 0, before[1]["id"], held)
        opened = session.editing
        assert not opened.is_unsaved(session)
        assert opened.numbers[number] == before[1]["id"]
        assert len(session.document.pieces) == len(before)
        editing.finish(opened, session, job, sheet)
        assert sheet.content["annotations"] == before
        assert job.marks == Marks()
        assert opened.before is held

    def test_edited_added_and_deleted_segments_reach_the_dataset(self, labelled, tmp_path):
        job, sheet, pool = labelled
        items = sheet.contents.images[0].items
        sheep = [each.annotation["id"] for each in items if each.category == "sheep|lamb"]
        engine = next(each.annotation for each in items if each.category == "fire engine")
        session, number = editing.begin(pool, job, sheet, 0, engine["id"], EditSession())
        opened = session.editing
        xy = tuple(float(value) for value in session.document.piece(number).segment.points.xy[0])
        session = add_point(session, number, "", (xy[0] + 9, xy[1] + 9), positive=False)
        changed = session.document.piece(number).segment.mask
        session = add_point(session, 0, "koala", (20.0, 20.0), positive=True)
        gone = next(each for each, annotation in opened.numbers.items() if annotation == sheep[0])
        assert opened.is_unsaved(session)
        undone = replace(session, history=session.history.undo().undo())
        assert not opened.is_unsaved(undone)
        assert opened.is_unsaved(replace(undone, history=undone.history.step(undone.document.deleted(gone))))
        session = replace(session, history=session.history.step(session.document.deleted(gone)))
        editing.finish(opened, session, job, sheet)
        dataset = downloaded(job, sheet, tmp_path)
        edited = annotation_of(dataset, engine["id"])
        assert (mask_of(edited, changed.shape) == changed).all()
        assert edited["category_id"] == engine["category_id"]
        assert edited["attributes"]["by_hand"] is True
        (added,) = [each for each in dataset["annotations"] if each["id"] not in {*sheep, engine["id"]}]
        assert added["category_id"] == next(each["id"] for each in dataset["categories"] if each["name"] == "koala")
        assert sheep[0] not in {each["id"] for each in dataset["annotations"]}
        review = dataset["info"]["review"]
        assert (review["edited_annotations"], review["added_annotations"]) == ([engine["id"]], [added["id"]])
        assert review["rejected_annotations"] == [sheep[0]]
        COCO(tmp_path / "download" / "dataset.json")

    def test_an_edit_is_saved_once(self, labelled):
        """Not by two windows that hold the same edit, nor by one that began before the other saved."""
        job, sheet, pool = labelled
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        other, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        session = add_point(session, 0, "koala", (20.0, 20.0), positive=True)
        editing.finish(session.editing, session, job, sheet)
        saved = list(sheet.content["annotations"])
        for late in (session, add_point(other, 0, "koala", (20.0, 20.0), positive=True)):
            with pytest.raises(Text2SegError, match="another window has saved this image since"):
                editing.finish(late.editing, late, job, sheet)
        assert sheet.content["annotations"] == saved
        assert len(sheet.added) == 1
        again, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        editing.finish(again.editing, again, job, sheet)

    def test_another_image_in_the_editor_is_refused(self, labelled):
        job, sheet, pool = labelled
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        same_name = open_image(pool, read_image(SCENE, pool.settings))
        for other in (EditSession(), replace(same_name, found=session.found, history=session.history)):
            with pytest.raises(Text2SegError, match="the editor does not show"):
                editing.finish(session.editing, other, job, sheet)

    def test_a_second_image_is_refused_while_one_is_edited(self, labelled):
        job, sheet, pool = labelled
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        with pytest.raises(Text2SegError, match=r"still holds scene_0019\.jpg; first save it there"):
            editing.begin(pool, job, sheet, 0, 0, session)

    def test_a_reloaded_page_goes_on_with_what_it_edits(self, labelled):
        job, sheet, pool = labelled
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession(texts=("before",)))
        kept = KeptSessions()
        again = kept.find(kept.keep(session).token)
        assert view_of(again)["isLabelled"]
        assert (again.editing.job, again.editing.name) == ("id", "scene_0019.jpg")
        assert again.editing.before.texts == ("before",)

    @pytest.mark.parametrize(("threshold", "presence"), [(None, None), (0.5, None), (None, 1.0)])
    def test_a_search_changes_no_segment_of_the_dataset(self, labelled, threshold, presence):
        job, sheet, pool = labelled
        before = deepcopy(sheet.content["annotations"])
        rejected = before[0]["id"]
        sheet.decide(job.marks, {"place": 0, "segment": rejected, "keep": False})
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        opened = session.document.pieces
        session = find(session, pool, session.texts, threshold=threshold, presence=presence)
        assert [piece for piece in session.document.pieces if piece.is_labelled] == [*opened]
        mask = mask_of(before[0], session.image_session.image.hw)
        assert all(iou(piece.segment.mask, mask) < 0.5 for piece in session.document.pieces)
        editing.finish(session.editing, session, job, sheet)
        assert sheet.content["annotations"][: len(before)] == before
        assert job.marks.rejected == [rejected]
        added = sheet.content["annotations"][len(before) :]
        assert not any(each["attributes"].get("by_hand") for each in added)

    def test_words_that_are_left_out_and_come_back_change_no_segment(self, labelled):
        job, sheet, pool = labelled
        before = deepcopy(sheet.content["annotations"])
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        texts, opened = session.texts, session.editing
        without = find(session, pool, texts[1:], threshold=None, presence=None)
        assert not opened.is_unsaved(without)
        editing.finish(opened, without, job, sheet)
        assert (sheet.content["annotations"], job.marks) == (before, Marks())
        none = find(without, pool, (), threshold=None, presence=None)
        session = find(none, pool, texts, threshold=None, presence=None)
        assert not {piece.number for piece in session.document.pieces} & {*opened.numbers}
        editing.finish(opened, session, job, sheet)
        assert (sheet.content["annotations"], job.marks) == (before, Marks())

    def test_a_mask_that_is_not_found_again_gets_no_invented_reason(self, labelled):
        job, sheet, pool = labelled
        elsewhere = np.zeros(sheet.contents.images[0].items[0].hw, bool)
        elsewhere[:9, :9] = True
        number = sheet.content["annotations"][0]["id"]
        annotation = {**sheet.content["annotations"][0], "segmentation": encode(elsewhere), "area": 81}
        sheet.correct(job.marks, 0, 0, {number: annotation}, [], [])
        session, chosen = editing.begin(pool, job, sheet, 0, number, EditSession())
        explanation, _ = why(session, chosen)
        assert explanation["candidates"] == []
        assert explanation["reason"] == NOT_RECORDED
        other = next(piece for piece in session.document.pieces if piece.number != chosen)
        assert len(why(session, other.number)[0]["candidates"]) == 3

    def test_a_mask_made_by_hand_has_its_own_scores_beside_one_that_is_found_again(self, labelled):
        job, sheet, pool = labelled
        first = sheet.content["annotations"][0]
        own = {**first["attributes"], "by_hand": True, "sam_score": 0.625, "presence": 1.0}
        own.pop("region_presence", None)
        sheet.correct(job.marks, 0, 0, {first["id"]: {**first, "attributes": own}}, [], [])
        session, chosen = editing.begin(pool, job, sheet, 0, first["id"], EditSession())
        segment = session.document.piece(chosen).segment
        assert (segment.sam_score, segment.presence, segment.region_presence) == (0.625, 1.0, None)

    def test_a_search_does_not_find_a_segment_again_whose_category_was_corrected(self, labelled):
        job, sheet, pool = labelled
        before = deepcopy(sheet.content["annotations"])
        names = {each["id"]: each["name"] for each in sheet.content["categories"]}
        engine = next(each["id"] for each in before if names[each["category_id"]] == "fire engine")
        sheet.decide(job.marks, {"place": 0, "segment": engine, "category": "koala"})
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        again = find(session, pool, session.texts, threshold=None, presence=None)
        assert [piece.segment.query for piece in again.document.pieces].count("fire engine") == 0
        assert len(again.document.pieces) == len(before)
        editing.finish(again.editing, again, job, sheet)
        assert len(sheet.content["annotations"]) == len(before)

    def test_a_word_that_is_no_category_is_refused_when_it_is_typed(self, labelled):
        job, sheet, pool = labelled
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        wrong = "“bomb” is not a category of this job; its categories are .*koala\\. To find “bomb” too, start"
        searched = find(session, pool, (*session.texts, "bomb"), threshold=None, presence=None)
        (refused,) = searched.refused
        assert (refused.text, searched.texts) == ("bomb", session.texts)
        assert re.match(wrong, refused.reason)
        drawn = draw_box(session, (10, 10, 120, 120), "")
        with pytest.raises(Text2SegError, match=wrong):
            give_name(drawn, drawn.document.last, "bomb")
        assert give_name(drawn, drawn.document.last, "Koala").document.pieces[-1].segment.query == "koala"
        lamb = find(session, pool, ("Sheep|Lamb",), threshold=None, presence=None)  # still with its wordings
        assert lamb.given == tuple(each for each in session.given if each.name == "sheep|lamb")

    def test_no_other_image_replaces_one_that_is_edited(self, labelled):
        job, sheet, pool = labelled
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        with pytest.raises(Text2SegError, match=r"you edit scene_0019\.jpg of a job; save it and go back"):
            read_request({"do": "example", "number": 1}).answer(session, pool)

    def test_what_is_in_the_image_comes_first(self, labelled):
        job, sheet, pool = labelled
        job.ontology = ontology_of_queries("koala, frog, fire engine, sheep|lamb")
        session, _ = editing.begin(pool, job, sheet, 0, 0, EditSession())
        assert session.texts == ("fire engine", "sheep|lamb", "koala", "frog")

    def test_models_that_do_not_know_the_categories_are_refused(self, labelled):
        job, sheet, pool = labelled
        job.ontology = ontology_of_queries("dragon")
        with pytest.raises(QueryError, match="dragon"):
            editing.begin(pool, job, sheet, 0, 0, EditSession())


def downloaded(job, sheet, tmp_path):
    """The dataset in the download."""
    with zipfile.ZipFile(dataset_zip(job, sheet, images=False)) as archive:
        archive.extractall(tmp_path / "download")
    return json.loads((tmp_path / "download" / "dataset.json").read_bytes())


def annotation_of(dataset, number):
    return next(each for each in dataset["annotations"] if each["id"] == number)


def test_other_downloads(job, sheet):
    with zipfile.ZipFile(dataset_zip(job, sheet, images=False)) as archive:
        assert sorted(archive.namelist()) == ["README.txt", "dataset.json", "failures.txt"]
    assert "text2seg replay dataset.json --annotation" in review_page(job, sheet).read_text()
    with pytest.raises(OutputError, match="nothing is marked yet"):
        marks_file(job, sheet)
    gone = sheet.contents.images[0].file_name
    sheet.decide(job.marks, {"place": 0, "verdict": "rejected"})
    with zipfile.ZipFile(dataset_zip(job, sheet, images=False)) as archive:
        assert {"unreviewed.json", "marks.json"} < set(archive.namelist())
    page = review_page(job, sheet).read_text()
    assert page.count("<article") == 30
    assert "text2seg replay unreviewed.json --annotation" in page
    assert "<title>Review of My-photos" in page
    assert json.dumps({"image": gone, "verdict": "rejected"}) in page  # it begins with the marks
    assert str(job.folder) not in page
    assert failures_text(job).read_text().count("\n") == 1


def test_names_are_escaped_on_the_page(tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    job = Job("id", "anna", name, tmp_path, labelling_builders.FakeModels(), labelling_builders.ONTOLOGY)
    job.state, job.failures, job.notes, job.message = "failed", [name], (name,), name
    job.unknown, job.unfamiliar = (name,), {name}
    job.images.mkdir()
    PillowImage.new("RGB", (8, 6)).save(job.images / name)
    dataset = {
        "info": {},
        "images": [{"id": 1, "file_name": name, "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "<i>"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "segmentation": []}],
    }
    sheet = ContactSheet(write_dataset(dataset, job.dataset), job.images)
    pieces = [
        layout.status_html(job, 0),
        layout.sheet_html(sheet.page(job.marks, "all", 0), sheet.colours, job),
        layout.return_html(name, name),
        layout.checked_html(check(f"categories: {{a: {{'{name}': 1}}}}", DEMO)),
        layout.checked_html(Checked(ontology_of_queries([name]), ())),
    ]
    for piece in pieces:
        assert "&lt;img src=x" in piece
        assert "<img src=x" not in piece
        assert "<i>" not in piece


@pytest.fixture
def visits(tmp_path):
    models = labelling_builders.FakeModels()
    models.closed_vocabulary = None
    made = VisitorJobs(SimpleNamespace(models=models, settings=AppSettings(root=tmp_path, megapixels=1)))
    yield made
    made.jobs.close()


@pytest.mark.parametrize("kept", [None, "", [], {}, {"visitor": "", "job": ""}, {"visitor": "short", "job": "x"}, 7])
def test_a_new_browser_gets_a_token(visits, kept):
    first, second = visits.known(kept), visits.known(kept)
    assert first["job"] == ""
    assert len(first["visitor"]) == 32
    assert first["visitor"] != second["visitor"]
    assert visits.known(first) == first


def test_requests_of_one_page_get_one_token(visits):
    """Two requests may come before the browser knows its token; a job of a lost token could not be seen."""
    first, second, other = visits.known(None, "page"), visits.known({}, "page"), visits.known(None, "other")
    assert first == second
    assert first["visitor"] != other["visitor"]
    visits.forget("page")
    assert visits.known(None, "page")["visitor"] != first["visitor"]


def test_a_request_that_comes_twice_starts_one_job(visits, uploads):
    (upload,) = uploads("a.png")
    PillowImage.new("RGB", (8, 6)).save(upload.path)
    anna, bert = visits.known(None), visits.known(None)
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda _: visits.upload(anna, [upload], "categories: [ball]"), range(4)))
    assert len({job.id for job in jobs}) == len(visits.jobs_of(anna)) == 1
    assert visits.upload(bert, [upload], "categories: [ball]") is not jobs[0]
    assert visits.upload(anna, [upload], "categories: [red car]") is not jobs[0]
    visits.jobs.remove(jobs[0])
    assert visits.upload(anna, [upload], "categories: [ball]") is not jobs[0]


def test_jobs_of_the_same_files_have_names_of_their_own(visits, uploads):
    (upload,) = uploads("a.png")
    PillowImage.new("RGB", (8, 6)).save(upload.path)
    anna = visits.known(None)
    for thing in ("ball", "red car", "bus"):
        visits.upload(anna, [upload], f"categories: [{thing}]")
    assert [job.name for job in visits.jobs_of(anna)] == ["a.png", "a.png (2)", "a.png (3)"]
    assert visits.upload(visits.known(None), [upload], "categories: [ball]").name == "a.png"


def test_counts_of_the_review_come_from_one_queue(demo):
    """A page that was made before a decision may arrive after its answer, so no page brings counts."""
    with gr.Blocks() as page:
        tabs, back = gr.Tabs(), lay_out_return()
        pool = ModelPool(demo, AppSettings())
        jobs = VisitorJobs(pool)
        build(jobs, tabs, build_editor(pool), back)
    (tally,) = (each for each in page.blocks.values() if each.elem_id == "folder-tally")
    writers = [each for each in page.fns.values() if tally in each.outputs]
    jobs.jobs.close()
    assert len(writers) >= 6
    assert {(each.concurrency_id, each.concurrency_limit) for each in writers} == {("review", 1)}


def test_a_start_keeps_neither_its_job_nor_what_was_asked_long_ago(visits, uploads, monkeypatch):
    (upload,) = uploads("a.png")
    PillowImage.new("RGB", (8, 6)).save(upload.path)
    anna, bert = visits.known(None), visits.known(None)
    job = visits.upload(anna, [upload], "categories: [ball]")
    assert len(visits._starting) == 0
    visits.jobs.remove(job)
    visits.jobs.close()
    held, job = weakref.ref(job.stop), None  # the job itself has slots
    gc.collect()
    assert held() is None
    monkeypatch.setattr("text2seg.app.folder.visitors.AGAIN", 0.0)
    visits.jobs = Jobs()
    visits.upload(bert, [upload], "categories: [ball]")
    assert [*visits._starts] == [bert["visitor"]]


def test_visitors_do_not_reach_each_others_jobs(visits, uploads, tmp_path):
    (upload,) = uploads("a.png")
    PillowImage.new("RGB", (8, 6)).save(upload.path)
    anna, bert = visits.known(None), visits.known(None)
    job = visits.upload(anna, [upload], "categories: [ball]")
    assert visits.job({**anna, "job": job.id}) is job
    assert visits.job({**bert, "job": job.id}) is None
    assert visits.job({"visitor": "", "job": job.id}) is None
    assert visits.jobs_of(bert) == []
    assert visits.jobs_of(anna) == [job]


def test_a_job_of_a_chosen_folder_has_its_name(visits, uploads):
    files = [Upload(each.path, f"holiday/{each.name}") for each in uploads("a.png", "b.png")]
    for each in files:
        PillowImage.new("RGB", (8, 6)).save(each.path)
    assert visits.upload(visits.known(None), files, "categories: [ball]").name == "holiday"


def test_a_job_does_not_start_with_an_invalid_ontology(visits, uploads):
    with pytest.raises(Text2SegError, match=r"ontology, line 1: .*expected"):
        visits.upload(visits.known(None), uploads("a.png"), "categories: ]")


def test_a_job_without_images_or_ontology_is_refused(visits, uploads):
    with pytest.raises(Text2SegError, match="choose images or a zip file first"):
        visits.upload(visits.known(None), [], "categories: [ball]")
    with pytest.raises(Text2SegError, match="nothing to find yet"):
        visits.upload(visits.known(None), uploads("a.png"), " ")


def test_a_job_has_the_name_of_its_folder(visits, tmp_path):
    (tmp_path / "front").mkdir()
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "front" / "a.png")
    assert visits.choose(visits.known(None), "front", "categories: [ball]").name == "front"


def test_without_a_root_no_folder_can_be_chosen():
    models = labelling_builders.FakeModels()
    visits = VisitorJobs(SimpleNamespace(models=models, settings=AppSettings()))
    with pytest.raises(Text2SegError, match="upload the images"):
        visits.choose(visits.known(None), ".", "categories: [ball]")


def test_too_large_images_are_refused_by_their_header(visits, tmp_path):
    PillowImage.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="2000 x 1000"):
        visits._load(tmp_path / "a.png", "front/a.png")
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.png")
    assert visits._load(Path(tmp_path / "a.png"), "front/a.png").file_name == "front/a.png"
