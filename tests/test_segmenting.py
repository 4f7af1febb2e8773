"""A run over files, with a model that finds a ball in every image."""

from __future__ import annotations

import weakref
from pathlib import Path

import builders
import pytest
from PIL import Image

from text2seg.coco.dataset import read_dataset
from text2seg.config import OutputSettings
from text2seg.errors import OutputError, QueryError
from text2seg.queries import parse_queries
from text2seg.records import Segmentation
from text2seg.segmenting import segment_files


class Watched(Segmentation):
    """One that can be referred to weakly, so that a test sees whether it is still held."""


class FakeModels:
    """Raises what stands in `raises` under the name of an image."""

    def __init__(self, raises=None):
        self.raises = raises or {}
        self.seen, self.made, self.alive = [], [], []

    def check(self, queries):
        return parse_queries(queries)

    def provenance(self):
        return {"text2seg": "test"}

    def segment(self, image, queries):
        name = Path(image.file_name).name
        self.seen.append(name)
        self.alive.append(sum(made() is not None for made in self.made))
        if name in self.raises:
            raise self.raises[name]
        found = Watched(image, (builders.segment(),), builders.maps([query.name for query in queries]))
        self.made.append(weakref.ref(found))
        return found


def images(folder: Path, count: int = 5) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(builders.pixels()).save(path)
    return paths


def no_images(folder: Path) -> OutputSettings:
    return OutputSettings(folder / "out", overlay=False, explain=False)


@pytest.mark.parametrize(("overlay", "explain", "names"), [(True, False, "overlay"), (False, True, "maps")])
def test_each_kind_of_image_is_written_where_it_is_asked_for(tmp_path, overlay, explain, names):
    output = OutputSettings(tmp_path / "out", overlay=overlay, explain=explain)
    report = segment_files(FakeModels(), images(tmp_path, 1), "ball", output)
    assert [path.name for path in report.written] == [f"0_{names}.png"]
    assert [path.name for path in output.output.glob("*.png")] == [f"0_{names}.png"]


def test_interrupted_the_file_holds_what_was_done(tmp_path):
    models = FakeModels({"3.png": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        segment_files(models, images(tmp_path), "ball", OutputSettings(tmp_path / "out"))
    names = [Path(image["file_name"]).name for image in read_dataset(tmp_path / "out" / "dataset.json")["images"]]
    assert names == ["0.png", "1.png", "2.png"]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    models = FakeModels()
    report = segment_files(models, images(tmp_path, 6), "ball", no_images(tmp_path))
    assert report.found == {"ball": 6}
    assert max(models.alive) <= 1


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of\nmemory"), MemoryError(), QueryError("without the name of a file")]
)
def test_one_image_too_many_for_the_machine_is_not_the_end_of_the_run(tmp_path, error):
    models = FakeModels({"1.png": error})
    paths = images(tmp_path, 3)
    report = segment_files(models, paths, "ball", no_images(tmp_path))
    assert (report.images, report.found) == (2, {"ball": 2})
    (failure,) = report.failures
    assert str(paths[1]) in failure.message
    assert len(failure.message.splitlines()) == 1


def test_an_image_named_twice_is_done_once(tmp_path):
    models = FakeModels()
    (path,) = images(tmp_path, 1)
    assert segment_files(models, [path, path], "ball", OutputSettings(tmp_path / "out")).images == 1
    assert models.seen == ["0.png"]


def test_a_file_that_cannot_be_written_is_known_before_the_first_image(tmp_path):
    models = FakeModels()
    (tmp_path / "out" / "dataset.json").mkdir(parents=True)
    with pytest.raises(OutputError, match="--output"):
        segment_files(models, images(tmp_path), "ball", no_images(tmp_path))
    assert models.seen == []


def test_only_what_was_written_here_and_left_as_it_was_is_written_over(tmp_path):
    files, out, models = images(tmp_path, 1), OutputSettings(tmp_path / "out", explain=False), FakeModels()
    dataset = segment_files(models, files, "ball", out).dataset
    made = dataset.read_bytes()
    segment_files(models, files, "ball", out)
    assert dataset.read_bytes() == made
    for content in (made.replace(b"ball", b"BALL"), b'{"images": [], "annotations": [], "categories": []}'):
        dataset.write_bytes(content)
        with pytest.raises(OutputError, match=r"changed since text2seg wrote it, or text2seg did not make it; move it"):
            segment_files(models, files, "ball", out)
        assert dataset.read_bytes() == content
    assert models.seen == ["0.png"] * 2  # it is known before the first image


def test_an_image_that_cannot_be_written_is_one_line_and_the_rest_goes_on(tmp_path):
    out = OutputSettings(tmp_path / "out", explain=False)
    (tmp_path / "out" / "1_overlay.png").mkdir(parents=True)
    (tmp_path / "out" / "2_overlay.png").write_bytes(b"drawn on by hand")
    report = segment_files(FakeModels(), images(tmp_path, 4), "ball", out)
    assert (report.images, [path.name for path in report.written]) == (4, ["0_overlay.png", "3_overlay.png"])
    first, second = report.failures
    assert "1_overlay.png: it is not a file but a folder" in first.message
    assert "2_overlay.png was changed" in second.message
    assert (tmp_path / "out" / "2_overlay.png").read_bytes() == b"drawn on by hand"


def test_names_as_long_as_disks_take_are_cut_in_what_is_written(tmp_path):
    paths = [tmp_path / f"{'M' * 250}{end}.png" for end in "ab"]
    for path in paths:
        Image.fromarray(builders.pixels()).save(tmp_path / "short.png")
        (tmp_path / "short.png").rename(path)
    report = segment_files(FakeModels(), paths, "ball", OutputSettings(tmp_path / "out"))
    assert (report.images, report.failures, len(set(report.written))) == (2, (), 4)
    assert all(path.is_file() for path in report.written)
    assert [image["file_name"] for image in read_dataset(report.dataset)["images"]] == [path.name for path in paths]


def test_a_full_disk_is_told_and_not_what_came_of_it(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("text2seg.io.files.os.fsync", full)
    with pytest.raises(OutputError, match=r"0_overlay\.png cannot be written: No space left on device; make room"):
        segment_files(FakeModels(), images(tmp_path, 2), "ball", OutputSettings(tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        segment_files(FakeModels({"0.png": KeyboardInterrupt()}), images(tmp_path, 2), "ball", no_images(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] in ([], [".text2seg-written"])
