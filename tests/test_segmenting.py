"""`segment_files` with a model that finds a ball in every image."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import builders
import numpy as np
import pytest
from PIL import Image

from text2seg.coco.dataset import read_dataset
from text2seg.config import OutputSettings, SaveKind
from text2seg.errors import OutputError, QueryError
from text2seg.io.output_folder import LOCK, OutputFolder
from text2seg.queries import parse_queries
from text2seg.records import Segmentation
from text2seg.render.saving import WRITERS
from text2seg.segmenting import STOPPED, segment_files


class Watched(Segmentation):
    """One that can be referred to weakly, so that a test sees whether it is still held."""


class FakeModels:
    """Raises what stands in `raises` under the name of an image."""

    def __init__(self, query="ball", raises=None):
        self.query, self.raises = query, raises or {}
        self.seen, self.made, self.alive = [], [], []

    def check(self, queries):
        return parse_queries(queries)

    def provenance(self):
        return {"text2seg": "test"}

    def open(self, image):
        return SimpleNamespace(image=image)

    def segment_sessions(self, sessions, queries):
        return [self.segment(sessions[0].image, queries)]

    def segment(self, image, queries):
        name = Path(image.file_name).name
        self.seen.append(name)
        self.alive.append(sum(made() is not None for made in self.made))
        if name in self.raises:
            raise self.raises[name]
        found = Watched(image, (builders.segment(self.query),), builders.maps([query.name for query in queries]))
        self.made.append(weakref.ref(found))
        return found


def images(folder: Path, count: int = 5) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(builders.pixels()).save(path)
    return paths


def no_images(folder: Path) -> OutputSettings:
    return OutputSettings(folder / "out", save="none")


@pytest.mark.parametrize(
    ("save", "names"),
    [
        ("overlay", ["0_overlay.png"]),
        ("why", ["0_why.png"]),
        ("masks", ["masks/0_red-ball_1.png"]),
        ("cutouts", ["cutouts/0_red-ball_1.png"]),
        (("overlay", "masks"), ["0_overlay.png", "masks/0_red-ball_1.png"]),
        ("overlay,why", ["0_overlay.png", "0_why.png"]),
        ("none", []),
    ],
)
def test_save_writes_the_kinds_of_files_it_names(tmp_path, save, names):
    output = OutputSettings(tmp_path / "out", save=save)
    report = segment_files(FakeModels("red ball"), images(tmp_path, 1), "red ball", output)
    written = [path.relative_to(output.output).as_posix() for path in report.written]
    assert written == names
    assert sorted(path.relative_to(output.output).as_posix() for path in output.output.rglob("*.png")) == names


def test_saved_masks_are_255_inside_and_cutouts_are_cropped_and_transparent(tmp_path):
    output = OutputSettings(tmp_path / "out", save="masks,cutouts")
    (path,) = images(tmp_path, 1)
    segment_files(FakeModels(), [path], "ball", output)
    segment = builders.segment()
    mask = np.asarray(Image.open(output.output / "masks" / "0_ball_1.png"))
    assert mask.dtype == np.uint8
    assert (mask == segment.mask * 255).all()
    x, y, width, height = segment.box_xywh
    cutout = np.asarray(Image.open(output.output / "cutouts" / "0_ball_1.png"))
    box = np.s_[y : y + height, x : x + width]
    assert (cutout[..., 3] == segment.mask[box] * 255).all()
    assert (cutout[..., :3] == np.asarray(Image.open(path))[box] * segment.mask[box][..., None]).all()


def test_every_kind_of_file_has_a_writer():
    assert tuple(WRITERS) == get_args(SaveKind)


def test_an_interrupted_run_writes_the_finished_images(tmp_path):
    models = FakeModels(raises={"3.png": KeyboardInterrupt()})
    report = segment_files(models, images(tmp_path), "ball", OutputSettings(tmp_path / "out"))
    assert (report.interrupted, report.images) == (True, 3)
    names = [Path(image["file_name"]).name for image in read_dataset(tmp_path / "out" / "dataset.json")["images"]]
    assert names == ["0.png", "1.png", "2.png"]


def test_overwrite_replaces_the_whole_earlier_result_and_nothing_else(tmp_path):
    out, paths = OutputSettings(tmp_path / "out", save="overlay,masks"), images(tmp_path, 3)
    segment_files(FakeModels("red ball"), paths, "red ball", out)
    (out.output / "masks" / "mine.png").write_bytes(b"mine")
    (out.output / "1_overlay.png").write_bytes(b"drawn on by hand")
    report = segment_files(FakeModels(), paths[:1], "ball", replace(out, overwrite=True))
    found = sorted(path.relative_to(out.output).as_posix() for path in out.output.rglob("*.png"))
    assert found == ["0_overlay.png", "1_overlay.png", "masks/0_ball_1.png", "masks/mine.png"]
    assert len(report.written) == 2
    assert {path.name for path in report.deleted} == {"0_red-ball_1.png", "1_red-ball_1.png", "2_overlay.png"} | {
        "2_red-ball_1.png"
    }


def test_a_stopped_run_goes_on_with_the_images_that_are_missing_or_changed(tmp_path):
    paths, out, whole = images(tmp_path), OutputSettings(tmp_path / "out"), OutputSettings(tmp_path / "whole")
    for stop in ("3.png", "4.png"):
        segment_files(FakeModels(raises={stop: KeyboardInterrupt()}), paths, "ball", out)
    Image.fromarray(builders.pixels()).save(paths[1])  # another time of change
    models = FakeModels()
    report = segment_files(models, paths, "ball", out)
    assert models.seen == ["1.png", "4.png"]
    assert (report.images, report.earlier, report.found, report.interrupted) == (5, 3, {"ball": 5}, False)
    assert report.dataset.read_bytes() == segment_files(models, paths, "ball", whole).dataset.read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        segment_files(models, paths, "ball", out)


def test_a_stopped_run_that_is_stopped_again_keeps_all_images(tmp_path):
    paths, out = images(tmp_path), no_images(tmp_path)
    segment_files(FakeModels(raises={"3.png": KeyboardInterrupt()}), paths, "ball", out)
    Image.fromarray(builders.pixels()).save(paths[0])  # another time of change, so it is first in line
    report = segment_files(FakeModels(raises={"0.png": KeyboardInterrupt()}), paths, "ball", out)
    assert (report.images, report.earlier, report.kept_earlier) == (2, 2, False)
    names = [image["file_name"] for image in read_dataset(report.dataset)["images"]]
    assert names == ["1.png", "2.png"]
    assert [each["image_id"] for each in read_dataset(report.dataset)["annotations"]] == [1, 2]


OTHERS = {
    "queries": lambda paths, out: (paths, "red ball", out),
    "images": lambda paths, out: (paths[3:], "ball", out),
    "an order": lambda paths, out: (paths[::-1], "ball", out),
    "files": lambda paths, out: (paths, "ball", replace(out, save="overlay,masks")),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_stopped_run_with_other_images_or_settings_is_not_continued(tmp_path, other):
    paths, out = images(tmp_path), OutputSettings(tmp_path / "out", save="overlay")
    segment_files(FakeModels(raises={"3.png": KeyboardInterrupt()}), paths, "ball", out)
    before = {path: path.read_bytes() for path in out.output.iterdir()}
    again = OTHERS[other](paths, out)
    with pytest.raises(OutputError, match="of a stopped run with other"):
        segment_files(FakeModels(again[1]), *again)
    assert {path: path.read_bytes() for path in out.output.iterdir()} == before
    paths, queries, out = again
    report = segment_files(FakeModels(queries), paths, queries, replace(out, overwrite=True))
    assert report.images == len(paths)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutputError("a name that the disk refuses")])
def test_an_image_is_done_when_its_files_are_written(tmp_path, monkeypatch, error):
    paths, out = images(tmp_path, 4), OutputSettings(tmp_path / "out", save="overlay")
    written = OutputFolder.write

    def write(folder, files):
        if any(name == "1_overlay.png" for name, _ in files):
            raise error
        return written(folder, files)

    monkeypatch.setattr(OutputFolder, "write", write)
    segment_files(FakeModels(raises={"3.png": KeyboardInterrupt()}), paths, "ball", out)
    monkeypatch.undo()
    (out.output / "0_overlay.png").unlink()
    report = segment_files(FakeModels(), paths, "ball", out)
    assert (report.images, report.failures) == (4, [])
    assert sorted(path.name for path in out.output.glob("*.png")) == [f"{n}_overlay.png" for n in range(4)]
    assert STOPPED not in read_dataset(report.dataset)["info"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_run_that_stops_keeps_what_an_earlier_run_wrote(tmp_path, stop):
    out, paths = OutputSettings(tmp_path / "out", save="overlay,masks", overwrite=True), images(tmp_path, 3)
    segment_files(FakeModels(), paths, "ball", out)
    before = {path: path.read_bytes() for path in out.output.rglob("*.*")}
    models = FakeModels("red ball", raises={"1.png": stop})
    if isinstance(stop, KeyboardInterrupt):
        report = segment_files(models, paths, "red ball", out)
        assert (report.interrupted, report.kept_earlier, report.images) == (True, True, 1)
    else:
        with pytest.raises(OSError, match="No space left"):
            segment_files(models, paths, "red ball", out)
    after = {path: path.read_bytes() for path in out.output.rglob("*.*")}
    replaced = {out.output / "0_overlay.png", out.output / ".text2seg-written"}
    assert {path: after[path] for path in before if path not in replaced} == {
        path: content for path, content in before.items() if path not in replaced
    }
    assert {path.name for path in after if path not in before} == {"0_red-ball_1.png"}
    report = segment_files(FakeModels("red ball"), paths, "red ball", out)
    assert not report.kept_earlier
    assert {path.name for path in (out.output / "masks").iterdir()} == {f"{n}_red-ball_1.png" for n in range(3)}


def test_a_dataset_of_another_program_is_not_replaced_even_with_overwrite(tmp_path):
    out = OutputSettings(tmp_path / "out", overwrite=True)
    out.output.mkdir()
    out.dataset.write_text("{}")
    models = FakeModels()
    with pytest.raises(OutputError, match="was not written by text2seg"):
        segment_files(models, images(tmp_path, 1), "ball", out)
    assert (models.seen, out.dataset.read_text()) == ([], "{}")


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    models = FakeModels()
    report = segment_files(models, images(tmp_path, 6), "ball", no_images(tmp_path))
    assert report.found == {"ball": 6}
    assert max(models.alive) <= 1


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of\nmemory"), MemoryError(), QueryError("without the name of a file")]
)
def test_out_of_memory_fails_one_image_and_not_the_run(tmp_path, error):
    models = FakeModels(raises={"1.png": error})
    paths = images(tmp_path, 3)
    report = segment_files(models, paths, "ball", no_images(tmp_path))
    assert (report.images, report.found) == (2, {"ball": 2})
    (failure,) = report.failures
    assert str(paths[1]) in failure.message
    assert len(failure.message.splitlines()) == 1


def test_an_image_given_twice_is_segmented_once(tmp_path):
    models = FakeModels()
    (path,) = images(tmp_path, 1)
    assert segment_files(models, [path, path], "ball", OutputSettings(tmp_path / "out")).images == 1
    assert models.seen == ["0.png"]


def test_an_unwritable_output_is_reported_before_the_first_image(tmp_path):
    models = FakeModels()
    (tmp_path / "out" / "dataset.json").mkdir(parents=True)
    with pytest.raises(OutputError, match="--output"):
        segment_files(models, images(tmp_path), "ball", no_images(tmp_path))
    assert models.seen == []


def test_results_of_an_earlier_run_are_replaced_with_overwrite_only(tmp_path):
    files, out, models = images(tmp_path, 1), OutputSettings(tmp_path / "out", save="overlay"), FakeModels()
    dataset = segment_files(models, files, "ball", out).dataset
    before = {path: path.read_bytes() for path in out.output.iterdir()}
    with pytest.raises(OutputError, match=r"dataset\.json already exists; choose another --output or add --overwrite"):
        segment_files(models, files, "ball", out)
    assert models.seen == ["0.png"]  # it is known before the first image
    assert {path: path.read_bytes() for path in out.output.iterdir()} == before
    dataset.write_bytes(before[dataset].replace(b"ball", b"BALL"))
    (out.output / "0_overlay.png").write_bytes(b"drawn on by hand")
    segment_files(models, files, "ball", replace(out, overwrite=True))
    assert {path: path.read_bytes() for path in out.output.iterdir() if path.suffix} == {
        path: content for path, content in before.items() if path.suffix
    }


def test_not_even_overwrite_replaces_an_image_that_is_read(tmp_path):
    files = [tmp_path / "a.png", tmp_path / "a_overlay.png"]
    for path in files:
        Image.fromarray(builders.pixels()).save(path)
    before = files[1].read_bytes()
    report = segment_files(FakeModels(), files, "ball", OutputSettings(tmp_path, save="overlay", overwrite=True))
    assert "a_overlay.png is an input of this command" in report.failures[0].message
    assert files[1].read_bytes() == before


def test_nothing_is_written_if_no_image_can_be_segmented(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    out = OutputSettings(tmp_path / "out")
    report = segment_files(FakeModels(), [tmp_path / "broken.png", tmp_path / "nowhere.png"], "ball", out)
    assert (report.images, len(report.failures)) == (0, 2)
    assert not out.output.exists()
    stopped = FakeModels(raises={"0.png": KeyboardInterrupt()})
    assert segment_files(stopped, images(tmp_path, 1), "ball", out).interrupted
    assert not out.output.exists()


def test_an_image_that_cannot_be_saved_is_one_failure_and_the_others_are_saved(tmp_path):
    out = OutputSettings(tmp_path / "out", save="overlay")
    (tmp_path / "out" / "1_overlay.png").mkdir(parents=True)
    (tmp_path / "out" / "2_overlay.png").write_bytes(b"drawn on by hand")
    report = segment_files(FakeModels(), images(tmp_path, 4), "ball", out)
    assert (report.images, [path.name for path in report.written]) == (4, ["0_overlay.png", "3_overlay.png"])
    first, second = report.failures
    assert "1_overlay.png: it is not a file but a folder" in first.message
    assert "2_overlay.png was not written by text2seg" in second.message
    assert (tmp_path / "out" / "2_overlay.png").read_bytes() == b"drawn on by hand"


def test_the_longest_file_names_are_shortened_in_outputs(tmp_path):
    paths = [tmp_path / f"{'M' * 250}{end}.png" for end in "ab"]
    for path in paths:
        Image.fromarray(builders.pixels()).save(tmp_path / "short.png")
        (tmp_path / "short.png").rename(path)
    report = segment_files(FakeModels(), paths, "ball", OutputSettings(tmp_path / "out"))
    assert (report.images, report.failures, len(set(report.written))) == (2, [], 4)
    assert all(path.is_file() for path in report.written)
    assert [image["file_name"] for image in read_dataset(report.dataset)["images"]] == [path.name for path in paths]


def test_a_full_disk_is_reported_and_not_its_consequences(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("text2seg.io.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"0_overlay\.png cannot be written: No space left on device; make room"):
        segment_files(FakeModels(), images(tmp_path, 2), "ball", OutputSettings(tmp_path / "out"))
    stopped = FakeModels(raises={"0.png": KeyboardInterrupt()})
    assert segment_files(stopped, images(tmp_path, 2), "ball", no_images(tmp_path)).interrupted
    assert [path.name for path in tmp_path.glob("out/*")] in ([], [".text2seg-written"])


def test_two_runs_into_one_folder_are_not_mixed(tmp_path):
    out, (first, second) = no_images(tmp_path), images(tmp_path, 2)

    class Meanwhile(FakeModels):
        def segment(self, *given):
            with pytest.raises(OutputError, match="another process is writing into"):
                segment_files(FakeModels(), [second], "ball", out)
            return super().segment(*given)

    assert segment_files(Meanwhile(), [first], "ball", out).images == 1
    with pytest.raises(OutputError, match="exists"):
        segment_files(FakeModels(), [second], "ball", out)
    assert not (out.output / LOCK).exists()
