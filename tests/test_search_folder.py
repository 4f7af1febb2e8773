"""Search of a folder, and labelling with the prefilter, with the demo model."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image as PillowImage

from text2seg import Settings, Text2Seg
from text2seg.cli import main
from text2seg.coco.dataset import read_dataset
from text2seg.config import LabelSettings, TileSettings
from text2seg.errors import SettingsError
from text2seg.io.images import load_image
from text2seg.io.scan import list_images
from text2seg.labelling.engine import LocalEngine
from text2seg.labelling.job import label_folder
from text2seg.labelling.journal import read_records
from text2seg.ontology import ontology_of_queries
from text2seg.search.fill import filled_index, indexed_images
from text2seg.search.index import best_images, presence_in

SCENES = Path("text2seg/demo/scenes/new-scenes/images")
HORSES = {"scene_0002.jpg", "scene_0003.jpg", "scene_0004.jpg"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (1, 2, 3, 4, 7):
        shutil.copy(SCENES / f"scene_{number:04}.jpg", folder)
    return folder


def fill(demo, folder, where, **more):
    scan = list_images(folder, **more.pop("listed", {}))
    with filled_index(demo, folder, indexed_images(scan.files, scan.stamp), where=where, **more) as (index, filled):
        return index, filled


def test_presence_from_the_index_is_at_most_that_of_the_image(demo, folder, tmp_path):
    index, filled = fill(demo, folder, tmp_path / "index")
    assert (filled.encoded, filled.held, filled.failures, filled.stopped) == (5, 0, [], False)
    queries = demo.check(["horse", "pig|hog", "bell+horse"])
    by_index = presence_in(demo, index, index.files(), queries)
    for file, row in zip(index.files(), by_index, strict=True):
        exact = demo.segment(folder / file, queries).maps.presence
        assert (row <= exact + 0.01).all()  # float16 rounds
        assert ((row >= 0.3) | (exact < 0.5)).all()  # and what a patch was sure of is not lost
    best = best_images(demo, index, queries[0], 3, set(index.files()))
    assert {hit.file for hit in best} == HORSES
    assert best[0].presence >= best[1].presence >= best[2].presence > 0.3
    together = best_images(demo, index, queries[2], 1, set(index.files()))
    assert [hit.file for hit in together] == ["scene_0002.jpg"]
    assert best_images(demo, index, queries[0], 3, {"scene_0001.jpg"})[0].file == "scene_0001.jpg"


def test_only_new_and_changed_images_are_encoded_and_removed_ones_are_dropped(demo, folder, tmp_path):
    for number in (4, 7):
        (folder / f"scene_{number:04}.jpg").unlink()
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    index, filled = fill(demo, folder, tmp_path / "index")
    before = index.vectors(["scene_0002.jpg"])
    assert (filled.encoded, filled.held) == (3, 0)
    assert [(each.file_name, each.stage) for each in filled.failures] == [("broken.jpg", "read")]
    assert "\n" not in filled.failures[0].message
    assert str(folder) not in filled.failures[0].message
    assert index.entry("scene_0001.jpg").hw == (288, 512)

    shutil.copy(SCENES / "scene_0008.jpg", folder / "scene_0001.jpg")  # changed
    (folder / "scene_0003.jpg").unlink()  # gone
    shutil.copy(SCENES / "scene_0010.jpg", folder)  # new
    _, filled = fill(demo, folder, tmp_path / "index", listed={"globs": ["*_0002*"]})
    assert (filled.encoded, filled.held, filled.dropped) == (0, 1, 1)
    index, filled = fill(demo, folder, tmp_path / "index")
    assert (filled.encoded, filled.held, filled.dropped) == (2, 1, 0)
    assert sorted(index.files()) == ["scene_0001.jpg", "scene_0002.jpg", "scene_0010.jpg"]
    assert index.entry("scene_0001.jpg").hw == (256, 384)
    assert (index.vectors(["scene_0002.jpg"]) == before).all()


def test_vectors_encoded_before_a_stop_or_an_error_are_kept(demo, folder, tmp_path, monkeypatch):
    asked = iter([False] * 3 + [True] * 9)
    index, filled = fill(demo, folder, tmp_path / "index", stopping=lambda: next(asked))
    assert filled.stopped
    assert 1 <= filled.encoded <= 3

    held = len(index)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo.clip, "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill(demo, folder, tmp_path / "index")
    monkeypatch.undo()
    assert fill(demo, folder, tmp_path / "index")[1].held == held


def test_fill_waits_for_another_process_that_fills_the_index(demo, folder, tmp_path, caplog):
    index, _ = fill(demo, folder, tmp_path / "index", listed={"limit": 1})
    stop = threading.Event()
    with FileLock(f"{index.path}.lock"):
        threading.Timer(0.2, stop.set).start()
        _, filled = fill(demo, folder, tmp_path / "index", stopping=stop.is_set)
    assert filled.stopped
    assert filled.encoded == 0
    assert "another process" in caplog.text


def label(demo, folder, output, **more):
    ontology = ontology_of_queries(more.pop("queries", "bell, pig"))
    engine, stop = more.pop("engine", None), more.pop("stop", None)
    settings = LabelSettings(output=output, batch=2, only_if_present=True, index=output.parent / "index", **more)
    return label_folder(demo, folder, ontology, settings, engine=engine, stop=stop)


class RecordingEngine(LocalEngine):
    """Engine that records the files it gets, and sets `stop` once it has begun `batches` batches."""

    def __init__(self, models, stop=None, batches=99):
        super().__init__(models)
        self.stop, self.left, self.seen = stop, batches, []

    def run(self, work, batches, deliver, stopping):
        def given():
            for batch in batches:
                self.seen.append([task.file for task in batch])
                yield batch

        def asked():
            self.left -= 1
            if self.left < 0:
                self.stop.set()
            return stopping()

        super().run(work, given(), deliver, asked)


def test_the_prefilter_skips_images_without_the_queries_and_a_stop_changes_no_byte(demo, folder, tmp_path):
    (folder / "scene_0005x.jpg").write_bytes(b"no image")
    whole = tmp_path / "whole.json"
    everything = label_folder(demo, folder, ontology_of_queries("bell, pig"), LabelSettings(output=whole, batch=2))
    engine = RecordingEngine(demo)
    report = label(demo, folder, tmp_path / "only.json", engine=engine)
    looked_at = {file for batch in engine.seen for file in batch}
    assert looked_at == {"scene_0001.jpg", "scene_0002.jpg", "scene_0005x.jpg"}
    assert report.skipped == 3
    assert report.found == everything.found == 2
    assert report.failed == 1
    assert report.empty == everything.empty
    assert [len(batch) for batch in engine.seen] == [2, 1]

    dataset, truth = read_dataset(tmp_path / "only.json"), read_dataset(whole)
    key = lambda each: (each["image_id"], each["category_id"])  # noqa: E731
    assert sorted(map(key, dataset["annotations"])) == sorted(map(key, truth["annotations"]))
    assert dataset["info"]["only_if_present"] == {"skip_below": 0.1}
    for image, exact in zip(dataset["images"], truth["images"], strict=True):
        assert {name: image[name] for name in ("id", "file_name", "width", "height")} == {
            name: exact[name] for name in ("id", "file_name", "width", "height")
        }
        assert image["attributes"].get("skipped", False) == (image["file_name"] not in looked_at)
        assert set(image["attributes"]["presence"]) == {"bell", "pig"}

    (tmp_path / "again").mkdir()
    again, stop = tmp_path / "again" / "only.json", threading.Event()
    assert label(demo, folder, again, engine=RecordingEngine(demo, stop, 1), stop=stop).interrupted
    shutil.rmtree(again.parent / "index")  # what is skipped does not hang on when an image was encoded
    assert label(demo, folder, again).skipped == report.skipped
    assert without_folder(again) == without_folder(tmp_path / "only.json")


def without_folder(path):
    """Bytes of the file without the path from it to the images."""
    content = path.read_bytes()
    folder = json.dumps(read_dataset(path)["info"]["folder"]).encode()
    assert content.count(folder) == 1
    return content.replace(folder, b"FOLDER")


def test_a_job_killed_between_skipped_images_resumes_with_the_same_bytes(demo, folder, tmp_path):
    output = tmp_path / "only.json"
    label(demo, folder, output)
    before = output.read_bytes()
    journal = Path(f"{output}.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    assert [bool(record.get("skipped")) for _, record in read_records(journal)][:2] == [True, True]
    journal.write_bytes(b"".join(lines[:2]) + lines[2][:30])  # one was written, and a part of the next
    output.unlink()
    label(demo, folder, output)
    assert output.read_bytes() == before


def test_resuming_with_other_prefilter_settings_is_refused(demo, folder, tmp_path):
    from text2seg.errors import OutputError

    output = tmp_path / "only.json"
    label(demo, folder, output, limit=1)
    with pytest.raises(OutputError, match=r"only_if_present\.skip_below: 0\.1 → 0\.3"):
        label(demo, folder, output, limit=1, skip_below=0.3)
    with pytest.raises(OutputError, match="only_if_present"):
        label_folder(demo, folder, ontology_of_queries("bell, pig"), LabelSettings(output=output, batch=2, limit=1))


def test_tiles_and_prefilter_together_are_refused(demo, folder, tmp_path):
    tiled = Text2Seg(demo.clip, demo.sam, settings=Settings(tiles=TileSettings(256)), provenance=demo._provenance)
    with pytest.raises(SettingsError, match="--tile"):
        label(tiled, folder, tmp_path / "only.json")
    with pytest.raises(SettingsError, match="skip below"):
        LabelSettings(skip_below=2)


def test_search_and_label_commands(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"\x89PNG")
    where = ["--index", str(tmp_path / "index"), "--device", "cpu"]
    command = ["search", str(folder), "horse", "fire engine", "--top", "3", *where]
    assert main([*command, "--output", str(tmp_path / "out")]) == 3
    text, errors = capsys.readouterr()
    assert errors.count("failed: broken.png") == 1
    assert "5 images, 5 of them encoded now; index: " in text
    found = json.loads((tmp_path / "out" / "search.json").read_text(encoding="utf-8"))["queries"]
    assert {hit["file"] for hit in found["horse"]} == HORSES
    assert found["fire engine"][0]["file"] == "scene_0007.jpg"
    with PillowImage.open(tmp_path / "out" / "02-fire-engine.png") as sheet:
        assert sheet.size[0] > 900
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    assert "search.json already exists; choose another --output or add --overwrite" in capsys.readouterr().err
    again = ["search", str(folder), "--query", "horse", *where, "--output", str(tmp_path / "out"), "--overwrite"]
    assert main(again) == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*g")) == ["01-horse.png"]
    capsys.readouterr()
    output = tmp_path / "only.json"
    flags = ["--output", str(output), "--query", "horse", "--only-if-present", *where]
    assert main(["label", str(folder), *flags]) == 3
    assert "of them skipped" in capsys.readouterr().out
    skipped = {image["file_name"] for image in read_dataset(output)["images"] if image["attributes"].get("skipped")}
    assert skipped
    assert not skipped & HORSES
    assert main(["search", str(folder), "unicorn", *where]) == 1
    assert main(["search", str(folder), "horse", "--top", "0", *where]) == 2


def test_a_search_among_photographs_with_the_demo_model_says_so_each_time(tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), np.uint8)
    PillowImage.fromarray(noise).save(tmp_path / "photos" / "noise.png")
    for _ in range(2):  # the second finds it in the index
        assert main(["search", str(tmp_path / "photos"), "horse", "--index", str(tmp_path), "--device", "cpu"]) == 0
        assert caplog.text.count("noise.png looks like a photograph") == 1
        caplog.clear()


def test_an_unreadable_index_folder_raises_output_error(demo, folder, tmp_path):
    from text2seg.errors import OutputError

    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="--index"):
        fill(demo, folder, tmp_path / "file")


def test_vectors_of_a_file_do_not_depend_on_the_other_files(demo, folder, tmp_path):
    index, _ = fill(demo, folder, tmp_path / "one", listed={"globs": ["*_0003*"]})
    other, _ = fill(demo, folder, tmp_path / "other", listed={"limit": 4})
    assert (index.vectors(["scene_0003.jpg"]) == other.vectors(["scene_0003.jpg"])).all()
    assert os.stat(folder / "scene_0003.jpg").st_size == index.entry("scene_0003.jpg").stamp[0]
    assert load_image(folder / "scene_0003.jpg").hw == index.entry("scene_0003.jpg").hw
