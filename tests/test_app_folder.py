"""The tab without a browser: where pictures come from, the ontology, decisions, what is taken home, whose is whose."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from types import SimpleNamespace

import labelling_builders
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pycocotools.coco import COCO

from text2seg.app.archives import Room
from text2seg.app.folder import download, views
from text2seg.app.folder.decisions import Decisions
from text2seg.app.folder.editor import LETTERS, WITH_LIMITS, Checked, as_yaml, check, demo_things
from text2seg.app.folder.jobs import Job
from text2seg.app.folder.session import Visits
from text2seg.app.folder.sheet import PAGE, ContactSheet
from text2seg.app.folder.sources import folders_in, take_folder, take_uploads
from text2seg.app.settings import AppSettings
from text2seg.coco.dataset import write_dataset
from text2seg.config import LabelSettings
from text2seg.errors import ImageError, Text2SegError
from text2seg.labelling.job import label_folder
from text2seg.ontology import ontology_of_queries
from text2seg.ontology.read import parse
from text2seg.queries import Things

ROOM = Room(pictures=9, total=1_000_000)
DEMO = SimpleNamespace(things=Things.of_demo())
DEMO.check = lambda queries: [DEMO.things.check(each) for query in queries for part in query.parts for each in part]


@pytest.fixture
def into(tmp_path):
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


@pytest.fixture
def uploads(tmp_path):
    """Makes uploads: pictures, zips of pictures, or what is neither."""

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
            made.append(path)
        return made

    return upload


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_a_single_zip_lies_as_it_was_packed(uploads, into):
    assert take_uploads(uploads("photos.zip"), into, ROOM) == ()
    assert written(into) == ["a.jpg", "front/b.jpg"]


def test_several_uploads_keep_apart(uploads, into):
    notes = take_uploads(uploads("photos.zip", "Photos.zip", "a.jpg", "A.JPG", ".c.jpg", "notes.txt"), into, ROOM)
    assert written(into) == [
        "A_2.JPG",
        "Photos_2/a.jpg",
        "Photos_2/front/b.jpg",
        "a.jpg",
        "c.jpg",
        "photos/a.jpg",
        "photos/front/b.jpg",
    ]
    assert notes == ("left out what is neither picture nor zip: notes.txt",)


@pytest.mark.parametrize(("count", "room"), [(3, Room(2, 1000)), (3, Room(9, 2))])
def test_uploads_have_so_much_room(uploads, into, count, room):
    with pytest.raises(Text2SegError, match="at most"):
        take_uploads(uploads(*(f"{n}.jpg" for n in range(count))), into, room)


def test_zips_share_the_room(uploads, into):
    with pytest.raises(Text2SegError, match="holds 2 pictures; at most 1"):
        take_uploads(uploads("a.zip", "b.zip"), into, Room(3, 1000))


@pytest.mark.parametrize("names", [(), ("notes.txt",)])
def test_no_picture_is_said_so(uploads, into, names):
    with pytest.raises(Text2SegError, match="no image in what you uploaded"):
        take_uploads(uploads(*names), into, ROOM)


@pytest.fixture
def root(tmp_path):
    """A root with pictures, and links within it and out of it."""
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


def test_a_folder_is_labelled_in_place_without_what_leads_out(root, into):
    notes = take_folder(root, "front", into, ROOM)
    assert written(into) == ["b.jpg", "deep/c.jpg", "same.jpg"]
    assert notes == ("left out what leads out of the folder or may not be read: secret.jpg",)
    assert (into / "b.jpg").resolve() == root / "front" / "b.jpg"


@pytest.mark.parametrize("name", ["..", "../outside", "away", "front/out", "/", "front/..", "", ".git", "none"])
def test_what_is_no_folder_of_the_root_is_refused(root, into, name):
    with pytest.raises(Text2SegError, match="no folder"):
        take_folder(root, name, into, ROOM)
    assert written(into) == []


def test_a_folder_has_so_much_room(root, into):
    with pytest.raises(Text2SegError, match="at most 2 pictures"):
        take_folder(root, ".", into, Room(2, 1000))


@pytest.mark.skipif(os.name != "posix", reason="names are Unicode there")
def test_names_that_are_no_text_are_left_out(root, into):
    (root / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    assert take_folder(root, ".", into, ROOM)[-1] == "left out 1 files whose names are no Unicode"


def test_every_fault_of_an_ontology_has_its_line():
    text = "categories:\n  sheep: {threshold: 3, queris: [lamb]}\n  dog:\n  Sheep: [ewe]\n"
    checked = check(text, DEMO)
    assert checked.ontology is None
    assert [fault.line for fault in checked.faults] == [2, 2, 4]
    threshold, queris, name = (fault.words for fault in checked.faults)
    assert threshold.startswith("categories.sheep.threshold: must be a number above 0")
    assert queris.startswith("categories.sheep.queris: is not a key of a category (did you mean 'queries'?)")
    assert name == "categories.Sheep: 'Sheep' is there already, in line 2"


@pytest.mark.parametrize("text", ["", "categories: [", "- a", "a" * (LETTERS + 1), "\x00", "categories: &a [*a]"])
def test_whatever_is_typed_has_a_fault_in_words(text):
    faults = check(text, DEMO).faults
    assert faults
    assert all(fault.words and "ontology:" not in fault.words for fault in faults)


def test_things_that_the_models_do_not_know_are_faults_with_a_hint():
    checked = check("categories:\n- sheep\n- name: dragon\n  queries: [dragon, koala]\n- sheeb\n", DEMO)
    assert [(fault.line, fault.words.split(":")[0]) for fault in checked.faults] == [(3, "dragon"), (5, "sheeb")]
    assert "Did you mean sheep" in checked.faults[1].words
    assert "fire engine" in checked.known


@pytest.mark.parametrize("text", [WITH_LIMITS, demo_things(), as_yaml("sheep, koala, fire engine")])
def test_examples_are_fine(text):
    checked = check(text, DEMO)
    assert checked.faults == ()
    assert len(checked.ontology.categories) >= 3


words = st.text("abc yesno019.#:{}[]'\"%&*!>éß", min_size=1, max_size=8).map(str.strip).filter(bool)
queries = st.lists(st.tuples(words, st.lists(words, max_size=2), st.sampled_from("|+")), min_size=1, max_size=4)


@given(queries)
def test_a_list_of_queries_becomes_a_file_that_means_the_same(given_queries):
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
    """A job that is done: 30 pictures, of which some have segments, one is broken."""
    made = Job(
        "id", "anna", "My photos <b>.zip", tmp_path, labelling_builders.FakeModels(), labelling_builders.ONTOLOGY
    )
    labelling_builders.fill(made.pictures, 30)
    (made.pictures / "broken.png").write_bytes(b"\x89PNG")
    made.report = label_folder(made.models, made.pictures, made.ontology, LabelSettings(output=made.dataset))
    made.failures = [failure.message for failure in made.report.failures]
    made.state, made.total, made.done = "done", 31, 31
    return made


@pytest.fixture
def sheet(job):
    return ContactSheet(job.dataset, job.pictures)


def place_of(sheet, *, segments):
    return next(n for n, picture in enumerate(sheet.contents.images) if len(picture.items) == segments)


def test_the_most_doubtful_pictures_come_first(job, sheet):
    doubts = [tile["doubt"] for n in range(3) for tile in sheet.page(job.decisions, "all", n).tiles]
    assert len(doubts) == 30
    assert doubts == sorted(doubts, reverse=True)


def test_pages_hold_so_many_and_end(job, sheet):
    first, last = sheet.page(job.decisions, "all", 0), sheet.page(job.decisions, "all", 99)
    assert (len(first.tiles), first.pages, first.number) == (PAGE, 3, 0)
    assert (len(last.tiles), last.number) == (30 - 2 * PAGE, 2)
    assert sheet.page(job.decisions, "all", -1).number == 0
    assert sheet.page(job.decisions, "accepted", 5).tiles == ()


def test_verdicts_sort_the_sheet(job, sheet):
    sheet.decide(job.decisions, {"place": 3, "verdict": "rejected"})
    sheet.decide(job.decisions, {"place": 5, "verdict": "accepted"})
    shown = {kind: sheet.page(job.decisions, kind, 0).fitting for kind in ("all", "undecided", "accepted", "rejected")}
    assert shown == {"all": 30, "undecided": 28, "accepted": 1, "rejected": 1}
    sheet.decide(job.decisions, {"place": 3, "verdict": None})
    assert job.decisions.count("rejected") == 0


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
    ],
)
def test_what_comes_from_no_page_of_ours_changes_nothing(job, sheet, change):
    sheet.decide(job.decisions, change)
    assert job.decisions == Decisions()


def test_a_segment_is_rejected_with_its_own_picture_only(job, sheet):
    place = place_of(sheet, segments=2)
    other = place_of(sheet, segments=1)
    number = sheet.contents.images[place].items[0].annotation["id"]
    sheet.decide(job.decisions, {"place": other, "segment": number, "keep": False})
    assert job.decisions.segments == set()
    sheet.decide(job.decisions, {"place": place, "segment": number, "keep": False})
    assert job.decisions.segments == {number}
    sheet.decide(job.decisions, {"place": place, "segment": number, "keep": True})
    assert job.decisions.segments == set()


def test_what_is_rejected_is_not_taken_home(job, sheet, tmp_path):
    two, one = place_of(sheet, segments=2), place_of(sheet, segments=1)
    dropped = sheet.contents.images[two].items[1].annotation["id"]
    gone = sheet.contents.images[one].file_name
    sheet.decide(job.decisions, {"place": two, "segment": dropped, "keep": False})
    sheet.decide(job.decisions, {"place": two, "verdict": "accepted"})
    sheet.decide(job.decisions, {"place": one, "verdict": "rejected"})
    path = download.dataset_zip(job, sheet, pictures=True)
    assert path.name == "My-photos--b-with-pictures.zip"
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
    }
    names = {image["file_name"] for image in dataset["images"]}
    assert gone not in names
    assert set(written(tmp_path / "home" / "pictures")) == names
    coco = COCO(tmp_path / "home" / "dataset.json")
    assert all(coco.annToMask(each).sum() == each["area"] for each in coco.dataset["annotations"])
    assert (tmp_path / "home" / "failures.txt").read_text().startswith("broken.png")
    assert b"review" not in job.dataset.read_bytes()


def test_a_dataset_without_pictures_the_page_and_the_failures(job, sheet):
    with zipfile.ZipFile(download.dataset_zip(job, sheet, pictures=False)) as archive:
        assert sorted(archive.namelist()) == ["README.txt", "dataset.json", "failures.txt"]
    gone = sheet.contents.images[0].file_name
    sheet.decide(job.decisions, {"place": 0, "verdict": "rejected"})
    page = download.review_page(job, sheet).read_text()
    assert page.count("<article") == 29
    assert f'data-name="{gone}"' not in page
    assert str(job.folder) not in page
    assert download.failures_text(job).read_text().count("\n") == 1


def test_nothing_of_a_file_becomes_a_part_of_the_page(tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    job = Job("id", "anna", name, tmp_path, labelling_builders.FakeModels(), labelling_builders.ONTOLOGY)
    job.state, job.failures, job.notes, job.message = "failed", [name], (name,), name
    job.pictures.mkdir()
    PillowImage.new("RGB", (8, 6)).save(job.pictures / name)
    dataset = {
        "info": {},
        "images": [{"id": 1, "file_name": name, "width": 8, "height": 6}],
        "categories": [{"id": 1, "name": "<i>"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "segmentation": []}],
    }
    sheet = ContactSheet(write_dataset(dataset, job.dataset), job.pictures)
    pieces = [
        views.status_html(job, 0),
        views.sheet_html(sheet.page(job.decisions, "all", 0)),
        views.checked_html(check(f"categories: {{a: {{'{name}': 1}}}}", DEMO)),
        views.checked_html(Checked(ontology_of_queries([name]), ())),
    ]
    for piece in pieces:
        assert "&lt;img src=x" in piece
        assert "<img src=x" not in piece
        assert "<i>" not in piece


@pytest.fixture
def visits(tmp_path):
    models = labelling_builders.FakeModels()
    models.things = None
    made = Visits(SimpleNamespace(models=models, settings=AppSettings(root=tmp_path, megapixels=1)))
    yield made
    made.jobs.close()


@pytest.mark.parametrize("kept", [None, "", [], {}, {"visitor": "", "job": ""}, {"visitor": "short", "job": "x"}, 7])
def test_a_browser_that_kept_nothing_of_ours_gets_a_token(visits, kept):
    first, second = visits.known(kept), visits.known(kept)
    assert first["job"] == ""
    assert len(first["visitor"]) == 32
    assert first["visitor"] != second["visitor"]
    assert visits.known(first) == first


def test_visitors_do_not_reach_each_others_jobs(visits, uploads, tmp_path):
    (upload,) = uploads("a.png")
    PillowImage.new("RGB", (8, 6)).save(upload)
    anna, bert = visits.known(None), visits.known(None)
    job = visits.upload(anna, [upload], "categories: [ball]")
    assert visits.job({**anna, "job": job.id}) is job
    assert visits.job({**bert, "job": job.id}) is None
    assert visits.job({"visitor": "", "job": job.id}) is None
    assert visits.jobs_of(bert) == []
    assert visits.jobs_of(anna) == [job]


def test_a_job_does_not_begin_with_a_faulty_ontology(visits, uploads):
    with pytest.raises(Text2SegError, match="the ontology has 1 fault to mend first"):
        visits.upload(visits.known(None), uploads("a.png"), "categories: ]")


def test_what_a_job_lacks_is_said(visits, uploads):
    with pytest.raises(Text2SegError, match="choose pictures first"):
        visits.upload(visits.known(None), [], "categories: [ball]")
    with pytest.raises(Text2SegError, match="say what to look for"):
        visits.upload(visits.known(None), uploads("a.png"), " ")


def test_a_folder_is_called_by_its_name(visits, tmp_path):
    (tmp_path / "front").mkdir()
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "front" / "a.png")
    assert visits.choose(visits.known(None), "front", "categories: [ball]").name == "front"


def test_without_a_root_there_is_no_folder_to_choose():
    models = labelling_builders.FakeModels()
    visits = Visits(SimpleNamespace(models=models, settings=AppSettings()))
    with pytest.raises(Text2SegError, match="upload the pictures"):
        visits.choose(visits.known(None), ".", "categories: [ball]")


def test_pictures_over_the_limit_are_refused_by_their_header(visits, tmp_path):
    PillowImage.new("RGB", (2000, 1000)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="2000 x 1000"):
        visits._load(tmp_path / "a.png", "front/a.png")
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.png")
    assert visits._load(Path(tmp_path / "a.png"), "front/a.png").file_name == "front/a.png"
