"""The labelling job with fake models: what it writes, what it goes on from, what it refuses."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import threading

import builders
import labelling_builders as jobs
import pytest
from PIL import Image as PillowImage
from pycocotools.coco import COCO

from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.errors import ImageError, OntologyError, OutputError, SettingsError
from text2seg.io.images import load_image
from text2seg.labelling.engines.local import LocalEngine
from text2seg.labelling.journal import Journal
from text2seg.labelling.output import journal_path
from text2seg.ontology import ontology_of_queries
from text2seg.records import Segmentation


@pytest.fixture
def folder(tmp_path):
    jobs.fill(tmp_path / "photos", 13)
    return tmp_path / "photos"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "dataset.json"


def lines(output):
    return journal_path(output).read_bytes().splitlines(keepends=True)


def names(dataset):
    return [image["file_name"] for image in dataset["images"]]


def stopping_after(count, models):
    """A stop that is asked for while the models work on batch number `count`."""
    stop, run = threading.Event(), models.segment_sessions

    def counted(sessions, queries):
        if len(models.batches) + 1 >= count:
            stop.set()
        return run(sessions, queries)

    models.segment_sessions = counted
    return stop


def test_every_image_stands_in_a_coco_file_that_pycocotools_reads(folder, output):
    report = jobs.run(folder, output)
    dataset = read_dataset(output)
    coco = COCO(str(output))
    assert names(dataset) == jobs.fill(folder, 13)
    assert [image["id"] for image in dataset["images"]] == list(range(1, 14))
    assert sorted(coco.anns) == list(range(1, len(dataset["annotations"]) + 1))
    for annotation in dataset["annotations"]:
        assert coco.annToMask(annotation).sum() == annotation["area"]
    assert all(0 <= image["attributes"]["presence"]["red car"] <= 1 for image in dataset["images"])
    info = dataset["info"]
    assert info["ontology"]["categories"][1]["name"] == "red car"
    assert info["provenance"]["text2seg"] == "test"
    assert info["exif_orientation"] == "applied"
    assert info["failures"] == []
    assert report.found + report.empty == report.done == 13
    assert 0 < report.empty < 13
    balls = [a for a in dataset["annotations"] if a["category_id"] == 1]
    assert report.categories[0].images == report.categories[0].segments == len(balls)
    assert report.categories[0].score == pytest.approx(sum(a["score"] for a in balls) / len(balls))
    assert report.categories[0].area_share == pytest.approx(72 / (24 * 32))


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_stopped_after_each_batch_the_bytes_are_the_same(folder, tmp_path, encoding):
    whole, pieces = tmp_path / "whole.json", tmp_path / "pieces.json"
    jobs.run(folder, whole, segmentation=encoding, batch=3)
    for expected in (3, 6, 9, 12):
        models = jobs.FakeModels()
        report = jobs.run(folder, pieces, models=models, stop=stopping_after(1, models), segmentation=encoding, batch=3)
        assert report.interrupted
        assert report.done == expected
        assert not pieces.exists()
    report = jobs.run(folder, pieces, segmentation=encoding, batch=3)
    assert not report.interrupted
    assert pieces.read_bytes() == whole.read_bytes()


def test_a_journal_cut_anywhere_gives_the_same_bytes(folder, output):
    jobs.run(folder, output)
    whole, journal = output.read_bytes(), journal_path(output).read_bytes()
    dice = random.Random(1)
    cuts = [0, 1, 20, len(journal) - 1, *(dice.randrange(len(journal)) for _ in range(12))]
    for cut in cuts:
        output.unlink()
        journal_path(output).write_bytes(journal[:cut])
        models = jobs.FakeModels()
        jobs.run(folder, output, models=models)
        assert output.read_bytes() == whole, cut
        assert all(len(batch) == 4 for batch in models.batches[:-1])  # always whole batches, the last one aside


def test_the_order_of_images_in_the_journal_does_not_matter(folder, output):
    jobs.run(folder, output)
    whole = output.read_bytes()
    header, *records = [line for line in lines(output) if b'"output"' not in line]
    random.Random(2).shuffle(records)
    output.unlink()
    journal_path(output).write_bytes(b"".join([header, *records]))
    models = jobs.FakeModels()
    jobs.run(folder, output, models=models)
    assert models.batches == []
    assert output.read_bytes() == whole


def test_a_damaged_line_is_reported_and_only_its_image_is_done_again(folder, output, caplog):
    jobs.run(folder, output)
    whole, journal = output.read_bytes(), lines(output)
    flipped = journal[3].replace(b'"width":32', b'"width":33')  # still JSON: only the checksum tells
    journal_path(output).write_bytes(b"".join([*journal[:3], flipped, *journal[4:]]))
    with caplog.at_level(logging.WARNING):
        jobs.run(folder, output)
    assert "line 4 is damaged" in caplog.text
    assert output.read_bytes() == whole
    again = [json.loads(line)["file"] for line in lines(output)[len(journal) :] if b'"file"' in line]
    assert again == [json.loads(flipped)["file"]]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"models": jobs.FakeModels(settings="other")}, 'settings.points.threshold: "none" → "other"'),
        ({"batch": 5}, "batch: 4 → 5"),
        ({"segmentation": "polygon"}, 'segmentation: "rle" → "polygon"'),
        (
            {"ontology": ontology_of_queries("ball, blue car")},
            'ontology.categories.red car: {"name": "red car", "id": 2',
        ),
        ({"ontology": ontology_of_queries("red car, ball")}, "ontology.categories.ball.id: 1 → 2"),
        ({"shard": "1/2"}, 'shard: "" → "1/2"'),
    ],
)
def test_other_settings_are_refused_with_what_differs(folder, output, changed, says):
    jobs.run(folder, output)
    before = journal_path(output).read_bytes()
    with pytest.raises(OutputError) as refused:
        jobs.run(folder, output, **changed)
    assert says in str(refused.value)
    assert "--restart" in str(refused.value)
    assert journal_path(output).read_bytes() == before
    jobs.run(folder, output, **changed, restart=True)
    assert len([line for line in lines(output) if b'"file"' in line]) == len(read_dataset(output)["images"])


def test_a_changed_file_is_done_again_and_an_added_one_is_labelled(folder, output):
    files = jobs.fill(folder, 13)
    jobs.run(folder, output)
    PillowImage.fromarray(builders.pixels((20, 30), seed=99)).save(folder / files[5])
    PillowImage.fromarray(builders.pixels(seed=50)).save(folder / "zz.png")
    models = jobs.FakeModels()
    jobs.run(folder, output, models=models)
    dataset = read_dataset(output)
    assert names(dataset) == sorted([*files, "zz.png"])
    (changed,) = (image for image in dataset["images"] if image["file_name"] == files[5])
    assert (changed["height"], changed["width"]) == (20, 30)
    assert models.batches == [sorted(files)[4:8], [files[12], "zz.png"]]


def test_a_removed_file_leaves_the_dataset(folder, output):
    files = jobs.fill(folder, 13)
    jobs.run(folder, output)
    (folder / files[2]).unlink()
    jobs.run(folder, output)
    assert names(read_dataset(output)) == [*files[:2], *files[3:]]


def poison(folder):
    files = jobs.fill(folder, 13)
    whole = (folder / files[0]).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image", encoding="utf-8")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return files, ["cut.png", "empty.jpg", "gone.png", "text.jpg"]


def test_files_that_are_no_images_are_one_line_each_and_nothing_else_is_lost(folder, output):
    good, bad = poison(folder)
    report = jobs.run(folder, output)
    dataset = read_dataset(output)
    assert names(dataset) == good
    assert [failure["file_name"] for failure in dataset["info"]["failures"]] == bad
    assert [failure.file_name for failure in report.failures] == bad
    for failure in report.failures:
        assert failure.stage == "read"
        assert failure.file_name in failure.message
        assert "\n" not in failure.message
        assert str(folder) not in failure.message  # so that a moved folder gives the same bytes
    whole, models = output.read_bytes(), jobs.FakeModels()
    jobs.run(folder, output, models=models)
    assert models.batches == []
    assert output.read_bytes() == whole


def test_failures_are_tried_again_only_when_asked(folder, output):
    good, bad = poison(folder)
    name = good[3]
    jobs.run(folder, output, models=jobs.FakeModels(raises={name: RuntimeError("CUDA out of\nmemory")}))
    (failure,) = (each for each in read_dataset(output)["info"]["failures"] if each["file_name"] == name)
    assert failure["stage"] == "segment"
    assert "CUDA out of memory" in failure["message"]
    jobs.run(folder, output)
    assert name not in names(read_dataset(output))
    report = jobs.run(folder, output, retry_failures=True)
    assert names(read_dataset(output)) == good
    assert [failure.file_name for failure in report.failures] == bad


def test_out_of_memory_costs_only_the_image_at_fault(folder, output):
    files = jobs.fill(folder, 13)
    models = jobs.FakeModels(raises={files[5]: MemoryError()})
    report = jobs.run(folder, output, models=models)
    assert [failure.file_name for failure in report.failures] == [files[5]]
    assert models.batches[1:6] == [files[4:8], [files[4]], [files[5]], [files[6]], [files[7]]]


def test_a_result_that_cannot_be_written_is_a_failure_of_its_image(folder, output):
    files, models = jobs.fill(folder, 13), jobs.FakeModels()
    good = models._segmentation

    def sometimes_bad(image, queries, score):
        found = good(image, queries, score)
        bad = (builders.segment(mask=builders.box_mask((9, 9), left=1, top=1)),)  # not of the image's size
        return Segmentation(image, bad, found.maps) if image.file_name == files[6] else found

    models._segmentation = sometimes_bad
    (failure,) = jobs.run(folder, output, models=models).failures
    assert (failure.file_name, failure.stage) == (files[6], "write")
    assert "[9, 9]" in failure.message


def test_shards_are_together_the_whole(folder, tmp_path):
    jobs.run(folder, tmp_path / "whole.json", batch=1)
    whole = read_dataset(tmp_path / "whole.json")
    images, annotations = [], []
    for part in (1, 2, 3):
        path = tmp_path / f"part{part}.json"
        jobs.run(folder, path, batch=1, shard=f"{part}/3")
        images += read_dataset(path)["images"]
        annotations += read_dataset(path)["annotations"]
    assert sorted(images, key=lambda image: image["id"]) == whole["images"]
    annotations.sort(key=lambda each: (each["image_id"], each["category_id"]))
    assert [{**each, "id": n} for n, each in enumerate(annotations, start=1)] == whole["annotations"]


def test_ids_of_categories_and_images_from_another_file(folder, output, tmp_path):
    files = jobs.fill(folder, 13)
    truth = {
        "images": [{"id": 1000 - n, "file_name": file, "width": 32, "height": 24} for n, file in enumerate(files)],
        "annotations": [],
        "categories": [{"id": 40, "name": "red car"}, {"id": 7, "name": "ball"}, {"id": 9, "name": "tree"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth), encoding="utf-8")
    jobs.run(folder, output, categories_from=path)
    dataset = read_dataset(output)
    assert {image["file_name"]: image["id"] for image in dataset["images"]} == {
        image["file_name"]: image["id"] for image in truth["images"]
    }
    assert {category["name"]: category["id"] for category in dataset["categories"]} == {"ball": 7, "red car": 40}
    ids = {image["id"] for image in dataset["images"]}
    assert {each["category_id"] for each in dataset["annotations"]} == {7, 40}
    assert {each["image_id"] for each in dataset["annotations"]} <= ids
    (folder / "new.png").write_bytes((folder / files[0]).read_bytes())
    with pytest.raises(ImageError, match=r"has no image new\.png"):
        jobs.run(folder, output, categories_from=path)
    with pytest.raises(OntologyError, match="bal"):
        jobs.run(folder, output, categories_from=path, ontology=ontology_of_queries("bal"))


def test_an_output_of_somebody_else_is_not_written_over(folder, output):
    output.parent.mkdir()
    output.write_text("{}", encoding="utf-8")
    with pytest.raises(OutputError, match="--overwrite"):
        jobs.run(folder, output)
    assert output.read_text(encoding="utf-8") == "{}"
    jobs.run(folder, output, overwrite=True)
    made = output.read_bytes()
    output.write_bytes(made.replace(b"ball", b"BALL"))  # mended by hand
    with pytest.raises(OutputError, match="was changed since"):
        jobs.run(folder, output)
    jobs.run(folder, output, overwrite=True)
    assert output.read_bytes() == made


class Cut(BaseException):
    """What ends a process in the middle, for a test that goes on."""


def cut_short(folder, output, monkeypatch, at):
    """A run that dies at a record: the first of images, or what the journal says of the output."""
    whole = Journal.append

    def dying(self, records):
        records = list(records)
        if at in (records[0].get("output"), "image"):
            raise Cut
        return whole(self, records)

    monkeypatch.setattr(Journal, "append", dying)
    with pytest.raises(Cut):
        jobs.run(folder, output)
    monkeypatch.setattr(Journal, "append", whole)


def grow(folder):
    names = [f"new-{number}.png" for number in range(6)]
    for name in names:
        (folder / name).write_bytes(next(folder.rglob("0*.png")).read_bytes())


@pytest.mark.parametrize("at", ["image", "writing", "written"])
def test_what_a_person_mended_is_safe_however_the_last_run_ended(folder, output, monkeypatch, at):
    jobs.run(folder, output)
    grow(folder)
    cut_short(folder, output, monkeypatch, at)
    first = output.read_bytes()
    output.write_bytes(mended := first.replace(b"ball", b"BALL"))
    with pytest.raises(OutputError, match="was changed since this job wrote it; --overwrite"):
        jobs.run(folder, output)
    assert output.read_bytes() == mended
    output.write_bytes(first)
    jobs.run(folder, output)
    assert len(read_dataset(output)["images"]) == sum(1 for _ in folder.rglob("*.png"))


@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("torn", [True, False], ids=["torn", "damaged"])
def test_damage_at_the_end_of_the_journal_leaves_the_output_alone(folder, output, lines, torn):
    jobs.run(folder, output)
    first, journal = output.read_bytes(), journal_path(output)
    *kept, last = journal.read_bytes().splitlines(keepends=True)[: None if lines == 1 else -1]
    journal.write_bytes(b"".join(kept) + (last[:20] if torn else last.replace(b"sha256", b"sha257")))
    if lines == 2:  # then nothing says whose the output is
        with pytest.raises(OutputError, match="the journal does not say that this job made it"):
            jobs.run(folder, output)
    else:
        jobs.run(folder, output)
    output.write_bytes(mended := first.replace(b"ball", b"BALL"))
    with pytest.raises(OutputError, match="--overwrite"):
        jobs.run(folder, output)
    assert output.read_bytes() == mended


def test_a_restart_may_still_replace_what_the_job_wrote_and_nothing_else(folder, output, monkeypatch):
    jobs.run(folder, output)
    first = output.read_bytes()
    jobs.run(folder, output, restart=True)
    with pytest.raises(OutputError, match="another process") as _, Journal.open(journal_path(output), {}, restart=True):
        jobs.run(folder, output)
    jobs.run(folder, output, restart=True)
    assert output.read_bytes() == first
    output.write_bytes(first + b" ")
    with pytest.raises(OutputError, match="was changed since"):
        jobs.run(folder, output, restart=True)


def test_an_output_that_is_changed_while_the_job_runs_is_kept(folder, output):
    jobs.run(folder, output)
    grow(folder)

    class Meanwhile(jobs.FakeModels):
        def segment_sessions(self, sessions, queries):
            output.write_bytes(b"mended")
            return super().segment_sessions(sessions, queries)

    with pytest.raises(OutputError, match="was changed since"):
        jobs.run(folder, output, models=Meanwhile())
    assert output.read_bytes() == b"mended"
    models = jobs.FakeModels()
    jobs.run(folder, output, models=models, overwrite=True)
    assert not models.batches  # all was in the journal


def test_an_output_that_is_a_link_stays_one(folder, output, tmp_path):
    (tmp_path / "large").mkdir()
    output.parent.mkdir()
    output.symlink_to(tmp_path / "large" / "d.json")
    jobs.run(folder, output)
    grow(folder)
    jobs.run(folder, output)
    assert output.is_symlink()
    assert len(read_dataset(tmp_path / "large" / "d.json")["images"]) == sum(1 for _ in folder.rglob("*.png"))


def test_a_disk_that_fills_up_is_told_once_and_lets_go_of_the_lock(folder, output):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(OutputError, match=r"journal cannot be written: .*the same command goes on"):
            jobs.run(folder, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal_path(output).read_bytes().endswith(b"}\n")  # no half line is left
    jobs.run(folder, output)
    other = output.with_name("other.json")
    jobs.run(folder, other)
    assert output.read_bytes() == other.read_bytes()


def test_an_error_goes_on_when_the_journal_cannot_be_closed(output, monkeypatch):
    class Broken:
        def close(self):
            raise OSError(5, "Input/output error")

    journal = Journal.open(journal_path(output), {})
    journal._file.close()
    monkeypatch.setattr(journal, "_file", Broken())
    with pytest.raises(ValueError, match="the first error"), journal:
        raise ValueError("the first error")
    Journal.open(journal_path(output), {}).close()  # the lock is free


def test_a_journal_that_is_none_is_left_alone(folder, output):
    output.parent.mkdir()
    journal_path(output).write_text("my diary\n", encoding="utf-8")
    for restart in (False, True):
        with pytest.raises(OutputError, match="no journal of text2seg"):
            jobs.run(folder, output, restart=restart)
    assert journal_path(output).read_text(encoding="utf-8") == "my diary\n"


def test_two_jobs_cannot_share_a_journal(folder, output):
    with Journal.open(journal_path(output), {}), pytest.raises(OutputError, match="another process is writing"):
        jobs.run(folder, output)
    journal_path(output).unlink()
    jobs.run(folder, output)


def test_a_full_disk_stops_the_job_and_what_was_done_counts(folder, output, monkeypatch):
    append, calls = Journal.append, []

    def full(self, records):
        calls.append(1)
        if len(calls) > 2:
            raise OutputError("no space left on device")
        return append(self, records)

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(OutputError, match="no space left"):
        jobs.run(folder, output)
    monkeypatch.setattr(Journal, "append", append)
    models = jobs.FakeModels()
    jobs.run(folder, output, models=models)
    assert len(models.batches) == 2  # of four


def test_candidates_that_were_not_chosen_can_be_kept(folder, output):
    jobs.run(folder, output, keep_candidates=True)
    for annotation in read_dataset(output)["annotations"]:
        kept = annotation["attributes"]["candidates"]
        assert len(kept) == len(annotation["attributes"]["candidate_scores"]) - 1
        assert rle.decode(kept[1])[:, 1].any()
        assert not rle.decode(kept[1])[:, 0].any()  # candidate 1 begins at column 1


def test_nothing_is_read_before_a_fault_in_the_settings_shows(folder, output):
    seen = []
    engine = LocalEngine(jobs.FakeModels(), load=lambda path, name: seen.append(name) or load_image(path))
    for wrong in ({"shard": "3/2"}, {"shard": "x"}, {"glob": ("*.tif",)}):
        with pytest.raises((SettingsError, ImageError)):
            jobs.run(folder, output, engine=engine, **wrong)
    assert seen == []
    assert not output.parent.exists()
    for wrong in ({"batch": 0}, {"workers": 0}, {"limit": 0}):
        with pytest.raises(SettingsError):
            jobs.run(folder, output, **wrong)


def test_few_images_are_held_at_once(folder, output):
    """Decoding runs ahead by a few batches, not by the whole folder."""
    decoded, gaps = [], []
    models = jobs.FakeModels(seconds=0.02)
    run = models.segment_sessions

    def looking(sessions, queries):
        gaps.append(len(decoded) - sum(map(len, models.batches)))
        return run(sessions, queries)

    models.segment_sessions = looking
    engine = LocalEngine(models, load=lambda path, name: decoded.append(name) or load_image(path, file_name=name))
    jobs.run(folder, output, engine=engine, batch=1)
    assert max(gaps) <= 3


@pytest.mark.skipif(os.name != "posix", reason="file names are text there")
def test_a_file_name_that_is_no_unicode_is_kept(folder, output):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes((folder / "0002.png").read_bytes())
    jobs.run(folder, output)
    first = output.read_bytes()
    jobs.run(folder, output)
    assert name in names(read_dataset(output))
    assert output.read_bytes() == first


def test_the_engine_is_told_of_no_file_that_is_done(folder, output):
    class Nothing:
        def run(self, work, batches, deliver, stopping):
            assert list(batches) == []

    jobs.run(folder, output)
    jobs.run(folder, output, engine=Nothing())
    with pytest.raises(RuntimeError, match="13 of 13"):
        jobs.run(folder, output.with_name("b.json"), engine=type("Idle", (), {"run": lambda *_: None})())
