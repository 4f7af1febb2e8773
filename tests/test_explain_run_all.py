"""`run-all` over a folder: mosaics as they come, a table of words, originals untouched, bad images passed over."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from importlib import resources

import pytest
from PIL import Image as PillowImage

from text2seg.errors import OutputError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.catalogue.opinion import RunAllSettings
from text2seg.explain.opinion import Opinion
from text2seg.explain.run_all import WORDS_FILE, explained
from text2seg.explain.tool import ImageFiles
from text2seg.io.images import load_image

SCENES = resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images"
TOOL = TOOLS["run-all"]
SAID = Opinion((("rocket tiger rocket toleballoon ", 0.4),), (("rocket", 2), ("tiger", 1), ("toleballoon", 1)), 0.1, 3)


@pytest.fixture
def folder(tmp_path):
    """Two good images and, between them, a bad one."""
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(SCENES / "scene_0003.jpg", images / "a.jpg")
    (images / "b.jpg").write_bytes(b"not an image")
    shutil.copy(SCENES / "scene_0019.jpg", images / "c.jpg")
    return images


@pytest.fixture
def quick(monkeypatch):
    """A search that says the same of every image at once, and still reports and stops."""

    def opine(clip, image, settings, going):
        for step in range(settings.steps + 1):
            if not going(step, "rocket"):
                break
        return SAID

    monkeypatch.setattr("text2seg.explain.run_all.opine", opine)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def words_in(output):
    return json.loads((output / f"{WORDS_FILE}.json").read_text(encoding="utf-8"))


def test_a_folder_with_a_bad_image(demo, folder, quick, tmp_path):
    before, output, reports = digests(folder), tmp_path / "out", []
    progress = Progress(lambda done, total, note: reports.append((done, total)))
    shown = run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=3, folder=output), progress)
    assert digests(folder) == before
    names = [".text2seg-written", "0001_a.json", "0001_a.png", "0003_c.json", "0003_c.png", f"{WORDS_FILE}.json"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert shown.tables[0].rows == (("rocket", 4, 2), ("tiger", 2, 2), ("toleballoon", 2, 2))
    assert shown.tables[1].rows[0] == ("toleballoon", 11)
    bad, where = shown.notes
    assert str(output) in where
    assert "b.jpg" in bad
    assert len(shown.panels) == 2
    assert words_in(output)["notes"] == [bad]
    assert min(PillowImage.open(output / "0001_a.png").size) > 600
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert reports[-1] == (9, 9)


def test_a_stop_keeps_what_is_written(demo, folder, quick, tmp_path):
    output, stop = tmp_path / "out", threading.Event()

    def report(done, total, note):
        if done == 7:  # within the third image
            assert (output / "0001_a.png").exists()
            assert words_in(output)["tables"][0]["rows"] == [["rocket", 2, 1], ["tiger", 1, 1], ["toleballoon", 1, 1]]
            stop.set()

    settings = RunAllSettings(steps=3, folder=output)
    shown = run_tool(TOOL, demo, ImageFiles([folder]), settings, Progress(report, stop))
    assert shown.notes[0] == "1 of 3 images are not done."
    assert shown.tables[0].rows[0] == ("rocket", 2, 1)
    assert not (output / "0003_c.png").exists()


def test_a_stop_before_the_first_word_shows_no_empty_table(demo, folder, quick, tmp_path):
    stop = threading.Event()
    stop.set()
    shown = run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(folder=tmp_path / "out"), Progress(stop=stop))
    assert (shown.tables, shown.notes) == ((), ("3 of 3 images are not done.",))


def test_an_earlier_run_is_written_over_and_a_folder_of_others_is_not(demo, folder, quick, tmp_path):
    settings = RunAllSettings(steps=1, folder=tmp_path / "out")
    for _ in range(2):
        run_tool(TOOL, demo, ImageFiles([folder / "a.jpg"]), settings)
    before = digests(folder)
    with pytest.raises(OutputError, match="did not write"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=1, folder=folder))
    with pytest.raises(OutputError, match=r"a\.jpg"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=1, folder=folder / "a.jpg"))
    assert digests(folder) == before


def test_the_mosaic_shows_each_word_three_times_and_segments_what_is_known(demo):
    scene = load_image(SCENES / "scene_0003.jpg")  # a rocket and no tiger
    shown = explained(demo, scene, SAID, 3)
    assert len(shown.panels) == 12
    assert shown.columns == 4
    rows = {word: rest for word, *rest in shown.tables[1].rows}
    assert list(rows) == ["rocket", "tiger", "toleballoon"]
    assert rows["rocket"][0] == 2
    assert float(rows["rocket"][2]) > 0.5  # SAM's score
    assert "not found" in rows["tiger"][2]
    assert rows["toleballoon"][2] == "not known"
    assert len(explained(demo, scene, SAID, 1).panels) == 6


def test_an_opinion_without_words_has_a_mosaic_too(demo):
    scene = load_image(SCENES / "scene_0003.jpg")
    shown = explained(demo, scene, Opinion((("! ! ! ! ", 0.2),), (), 0.1, 1), 3)
    assert len(shown.panels) == 2
    assert shown.image() is not None


def test_words_are_looked_for_as_they_are(demo):
    """A + or | in a word joins nothing here."""
    said = Opinion((("c++ a|b", 0.2),), (("c++", 1), ("a|b", 1), ("{}", 1)), 0.1, 1)
    shown = explained(demo, load_image(SCENES / "scene_0003.jpg"), said, 3)
    assert [row[0] for row in shown.tables[1].rows] == ["c++", "a|b", "{}"]


def test_from_a_search_to_a_mosaic(demo):
    shown = run_tool(TOOL, demo, ImageFiles([SCENES / "scene_0003.jpg"]), RunAllSettings(steps=1, candidates=6))
    assert len(shown.panels) == 1
    assert shown.panels[0].caption.startswith("scene_0003.jpg: ")
    assert not shown.notes


def test_what_holds_for_all_images_is_refused_before_any(demo, folder, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(QueryError, match="too long"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(prompt="bus " * 80, folder=output))
    assert not output.exists()
    with pytest.raises(SettingsError, match="words"):
        RunAllSettings(words=0)
    with pytest.raises(SettingsError, match="steps"):
        RunAllSettings(steps=0)
