"""The labelling job with fake models: the dataset it writes, how it resumes, the errors it raises."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import subprocess
import sys
import threading
from pathlib import Path

import builders
import labelling_builders as jobs
import numpy as np
import pytest
from PIL import Image as PillowImage
from pycocotools.coco import COCO

from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.errors import ImageError, OntologyError, OutputError, SettingsError
from text2seg.io.images import load_image
from text2seg.io.output_folder import RECORD
from text2seg.labelling.engine import LocalEngine
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


def stop_after(count, models):
    """Stop signal that is set while the models work on batch number `count`."""
    stop, run = threading.Event(), models.segment_sessions

    def counted(sessions, queries):
        if len(models.batches) + 1 >= count:
            stop.set()
        return run(sessions, queries)

    models.segment_sessions = counted
    return stop


def test_every_image_is_in_the_coco_file_and_pycocotools_reads_it(folder, output):
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
    assert report.categories[0].values["images"] == report.categories[0].segments == len(balls)
    assert report.categories[0].values["score"] == pytest.approx(sum(a["score"] for a in balls) / len(balls))
    assert report.categories[0].values["area_share"] == pytest.approx(72 / (24 * 32))


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_a_job_stopped_after_each_batch_writes_the_same_bytes(folder, tmp_path, encoding):
    whole, pieces = tmp_path / "whole.json", tmp_path / "pieces.json"
    jobs.run(folder, whole, segmentation=encoding, batch=3)
    for expected in (3, 6, 9, 12):
        models = jobs.FakeModels()
        report = jobs.run(folder, pieces, models=models, stop=stop_after(1, models), segmentation=encoding, batch=3)
        assert report.interrupted
        assert report.done == expected
        assert not pieces.exists()
    report = jobs.run(folder, pieces, segmentation=encoding, batch=3)
    assert not report.interrupted
    assert pieces.read_bytes() == whole.read_bytes()


def test_a_journal_truncated_anywhere_gives_the_same_bytes(folder, output):
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


def test_a_damaged_journal_line_is_reported_and_its_image_is_labelled_again(folder, output, caplog):
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
        ({"models": jobs.FakeModels(settings="other")}, "settings.points.threshold: none → other"),
        ({"batch": 5}, "batch: 4 → 5"),
        ({"segmentation": "polygon"}, "segmentation: rle → polygon"),
        (
            {"ontology": ontology_of_queries("ball, blue car")},
            "ontology.categories.red car: id 2, supercategory thing, queries red car, min_area 0 → none",
        ),
        ({"ontology": ontology_of_queries("red car, ball")}, "ontology.categories.ball.id: 1 → 2"),
        ({"shard": "1/2"}, "shard: none → 1/2"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_names_the_difference(folder, output, changed, says):
    jobs.run(folder, output)
    before = journal_path(output).read_bytes()
    with pytest.raises(OutputError) as refused:
        jobs.run(folder, output, **changed)
    assert says in str(refused.value)
    assert "--restart" in str(refused.value)
    assert journal_path(output).read_bytes() == before
    jobs.run(folder, output, **changed, restart=True)
    assert len([line for line in lines(output) if b'"file"' in line]) == len(read_dataset(output)["images"])


def test_changed_and_added_files_are_labelled(folder, output):
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


def test_a_removed_file_is_removed_from_the_dataset(folder, output):
    files = jobs.fill(folder, 13)
    jobs.run(folder, output)
    (folder / files[2]).unlink()
    jobs.run(folder, output)
    assert names(read_dataset(output)) == [*files[:2], *files[3:]]


def add_bad_files(folder):
    files = jobs.fill(folder, 13)
    whole = (folder / files[0]).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image", encoding="utf-8")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    return files, ["cut.png", "empty.jpg", "gone.png", "text.jpg"]


def test_each_unreadable_file_is_one_failure_and_the_others_are_labelled(folder, output):
    good, bad = add_bad_files(folder)
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


def test_failures_are_retried_only_on_request(folder, output):
    good, bad = add_bad_files(folder)
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


def test_out_of_memory_fails_only_the_image_that_caused_it(folder, output):
    files = jobs.fill(folder, 13)
    models = jobs.FakeModels(raises={files[5]: MemoryError()})
    report = jobs.run(folder, output, models=models)
    assert [failure.file_name for failure in report.failures] == [files[5]]
    assert models.batches[1:6] == [files[4:8], [files[4]], [files[5]], [files[6]], [files[7]]]


def test_a_result_that_cannot_be_encoded_is_a_failure_of_its_image(folder, output):
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


def test_merged_shards_equal_the_whole_dataset(folder, tmp_path):
    jobs.run(folder, tmp_path / "whole.json", batch=1)
    whole = read_dataset(tmp_path / "whole.json")
    images, annotations = [], []
    for part in (1, 2, 3):
        path = tmp_path / f"part{part}.json"
        jobs.run(folder, path, batch=1, shard=f"{part}/3")
        images += read_dataset(path)["images"]
        annotations += read_dataset(path)["annotations"]
        assert read_dataset(path)["info"]["shards"] == [f"{part}/3"]
    assert sorted(images, key=lambda image: image["id"]) == whole["images"]
    annotations.sort(key=lambda each: (each["image_id"], each["category_id"]))
    assert [{**each, "id": n} for n, each in enumerate(annotations, start=1)] == whole["annotations"]


def test_category_and_image_ids_come_from_another_dataset(folder, output, tmp_path):
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


def test_a_foreign_output_is_not_overwritten(folder, output):
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


class SimulatedKill(BaseException):
    """Exception that stands for the sudden end of the process."""


def kill_at(folder, output, monkeypatch, at):
    """Run a job that dies at a journal record: the first record of images, or the record of the output."""
    whole = Journal.append

    def dying(self, records):
        records = list(records)
        if at in (records[0].get("output"), "image"):
            raise SimulatedKill
        return whole(self, records)

    monkeypatch.setattr(Journal, "append", dying)
    with pytest.raises(SimulatedKill):
        jobs.run(folder, output)
    monkeypatch.setattr(Journal, "append", whole)


def add_images(folder):
    names = [f"new-{number}.png" for number in range(6)]
    for name in names:
        (folder / name).write_bytes(next(folder.rglob("0*.png")).read_bytes())


@pytest.mark.parametrize("at", ["image", "writing", "written"])
def test_a_corrected_output_is_kept_however_the_last_run_ended(folder, output, monkeypatch, at):
    jobs.run(folder, output)
    add_images(folder)
    kill_at(folder, output, monkeypatch, at)
    first = output.read_bytes()
    output.write_bytes(mended := first.replace(b"ball", b"BALL"))
    with pytest.raises(OutputError, match="was changed since this job wrote it; replace it with --overwrite"):
        jobs.run(folder, output)
    assert output.read_bytes() == mended
    output.write_bytes(first)
    jobs.run(folder, output)
    assert len(read_dataset(output)["images"]) == sum(1 for _ in folder.rglob("*.png"))


@pytest.mark.parametrize("lines", [1, 2])
@pytest.mark.parametrize("torn", [True, False], ids=["torn", "damaged"])
def test_a_damaged_end_of_the_journal_keeps_the_output(folder, output, lines, torn):
    jobs.run(folder, output)
    first, journal = output.read_bytes(), journal_path(output)
    *kept, last = journal.read_bytes().splitlines(keepends=True)[: None if lines == 1 else -1]
    journal.write_bytes(b"".join(kept) + (last[:20] if torn else last.replace(b"sha256", b"sha257")))
    if lines == 2:  # then nothing says whose the output is
        with pytest.raises(OutputError, match="the journal does not say that this job wrote it"):
            jobs.run(folder, output)
    else:
        jobs.run(folder, output)
    output.write_bytes(mended := first.replace(b"ball", b"BALL"))
    with pytest.raises(OutputError, match="--overwrite"):
        jobs.run(folder, output)
    assert output.read_bytes() == mended


def test_a_restart_replaces_only_the_output_of_the_job(folder, output, monkeypatch):
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


def test_an_output_changed_during_the_job_is_kept(folder, output):
    jobs.run(folder, output)
    add_images(folder)

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


def test_an_output_that_is_a_symbolic_link_stays_a_link(folder, output, tmp_path):
    (tmp_path / "large").mkdir()
    output.parent.mkdir()
    output.symlink_to(tmp_path / "large" / "d.json")
    jobs.run(folder, output)
    add_images(folder)
    jobs.run(folder, output)
    assert output.is_symlink()
    assert len(read_dataset(tmp_path / "large" / "d.json")["images"]) == sum(1 for _ in folder.rglob("*.png"))


def test_a_full_disk_is_one_error_and_the_lock_is_released(folder, output):
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(OutputError, match=r"journal cannot be written: .*run the same command again"):
            jobs.run(folder, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert journal_path(output).read_bytes().endswith(b"}\n")  # no half line is left
    jobs.run(folder, output)
    other = output.with_name("other.json")
    jobs.run(folder, other)
    assert output.read_bytes() == other.read_bytes()


def test_an_error_is_kept_when_closing_the_journal_fails(output, monkeypatch):
    class Broken:
        def close(self):
            raise OSError(5, "Input/output error")

    journal = Journal.open(journal_path(output), {})
    journal._file.close()
    monkeypatch.setattr(journal, "_file", Broken())
    with pytest.raises(ValueError, match="the first error"), journal:
        raise ValueError("the first error")
    Journal.open(journal_path(output), {}).close()  # the lock is free


def test_a_file_that_is_no_journal_is_refused_and_kept(folder, output):
    output.parent.mkdir()
    journal_path(output).write_text("my diary\n", encoding="utf-8")
    for restart in (False, True):
        with pytest.raises(OutputError, match="is not a journal of text2seg"):
            jobs.run(folder, output, restart=restart)
    assert journal_path(output).read_text(encoding="utf-8") == "my diary\n"


def test_two_jobs_cannot_share_a_journal(folder, output):
    with Journal.open(journal_path(output), {}), pytest.raises(OutputError, match="another process is writing"):
        jobs.run(folder, output)
    journal_path(output).unlink()
    jobs.run(folder, output)


def test_a_full_disk_stops_the_job_and_finished_images_are_kept(folder, output, monkeypatch):
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


def test_keep_candidates_records_the_candidates_not_chosen(folder, output):
    jobs.run(folder, output, keep_candidates=True)
    for annotation in read_dataset(output)["annotations"]:
        kept = annotation["attributes"]["candidates"]
        assert len(kept) == len(annotation["attributes"]["candidate_scores"]) - 1
        assert rle.decode(kept[1])[:, 1].any()
        assert not rle.decode(kept[1])[:, 0].any()  # candidate 1 begins at column 1


SAVED = {"save": "overlay,why,masks,cutouts"}


def saved(output):
    """Return the content of each file that `--save` wrote, by its name."""
    folder = output.with_name(f"{output.stem}_images")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_save_writes_files_for_each_image_and_does_not_change_the_dataset(folder, output, tmp_path):
    jobs.run(folder, output, **SAVED)
    dataset, files = read_dataset(output), saved(output)
    jobs.run(folder, tmp_path / "plain.json")
    assert read_dataset(tmp_path / "plain.json")["annotations"] == dataset["annotations"]
    for image in dataset["images"]:
        assert {f"{image['file_name']}_overlay.png", f"{image['file_name']}_why.png"} <= set(files)
    assert sum(name.startswith("masks/") for name in files) == len(dataset["annotations"])
    assert sum(name.startswith("cutouts/") for name in files) == len(dataset["annotations"])
    first = dataset["annotations"][0]
    name = next(image["file_name"] for image in dataset["images"] if image["id"] == first["image_id"])
    mask = np.asarray(PillowImage.open(output.with_name("dataset_images") / "masks" / f"{name}_ball_1.png"))
    assert (mask == rle.decode(first["segmentation"]) * 255).all()


def test_a_resumed_job_saves_the_same_bytes(folder, tmp_path):
    whole, pieces = tmp_path / "a" / "d.json", tmp_path / "b" / "d.json"
    jobs.run(folder, whole, **SAVED)
    for _ in range(3):
        models = jobs.FakeModels()
        jobs.run(folder, pieces, models=models, stop=stop_after(1, models), **SAVED)
        done = [json.loads(line)["file"] for line in lines(pieces) if b'"file"' in line]
        assert all(f"{name}_overlay.png" in saved(pieces) for name in done)
    jobs.run(folder, pieces, **SAVED)
    assert saved(pieces) == saved(whole)
    assert pieces.read_bytes() == whole.read_bytes()


def test_files_saved_before_a_crash_are_written_again(folder, output, monkeypatch):
    append = Journal.append
    monkeypatch.setattr(Journal, "append", lambda *_: (_ for _ in ()).throw(SimulatedKill))
    with pytest.raises(SimulatedKill):
        jobs.run(folder, output, **SAVED)
    monkeypatch.setattr(Journal, "append", append)
    before = saved(output)
    assert before
    jobs.run(folder, output, **SAVED)
    after = saved(output)
    before.pop(RECORD)
    assert before.items() <= after.items()


def test_save_refuses_to_overwrite_files_or_to_label_its_own_output(folder, output):
    (output.with_name("dataset_images")).mkdir(parents=True)
    (output.with_name("dataset_images") / "mine.png").write_bytes(b"x")
    with pytest.raises(OutputError, match="dataset_images has files"):
        jobs.run(folder, output, **SAVED)
    jobs.run(folder, output, overwrite=True, **SAVED)
    assert saved(output)["mine.png"] == b"x"
    with pytest.raises(SettingsError, match="inside the folder of images"):
        jobs.run(folder, folder / "dataset.json", **SAVED)
    with pytest.raises(SettingsError, match="must be a path, not a URL"):
        jobs.run(folder, "memory://dataset.json", **SAVED)
    with pytest.raises(OutputError, match="save: overlay, why, masks, cutouts → none"):
        jobs.run(folder, output)


def test_invalid_settings_are_refused_before_an_image_is_read(folder, output):
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


def test_few_decoded_images_are_in_memory_at_once(folder, output):
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
def test_a_file_name_that_is_not_unicode_is_kept(folder, output):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes((folder / "0002.png").read_bytes())
    jobs.run(folder, output)
    first = output.read_bytes()
    jobs.run(folder, output)
    assert name in names(read_dataset(output))
    assert output.read_bytes() == first


def test_the_engine_gets_no_finished_files(folder, output):
    class Nothing:
        def run(self, work, batches, deliver, stopping):
            assert list(batches) == []

    jobs.run(folder, output)
    jobs.run(folder, output, engine=Nothing())
    with pytest.raises(RuntimeError, match="13 of 13"):
        jobs.run(folder, output.with_name("b.json"), engine=type("Idle", (), {"run": lambda *_: None})())


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "jobs.py"
BYTES_PER_IMAGE = 1_500  # a record has more than this in the journal, and parsed several times as much


def peak(count: int) -> float:
    """Peak bytes of Python's allocators in a process that labels `count` images."""
    command = [sys.executable, str(SCRIPT), "memory", "--one", str(count), "--trace"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert told["journal"] * 1e6 > 1500 * count
    return told["traced"] * 1e6


def test_one_more_image_needs_less_memory_than_its_record():
    few, many = peak(100), peak(1500)
    assert many - few < BYTES_PER_IMAGE * (1500 - 100), (few, many)
