"""`run-all` on a folder: mosaics, table of words, unchanged originals, bad images skipped."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
from dataclasses import replace
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from closeness import DEMO_NETWORK, about, assert_close
from PIL import Image as PillowImage

from text2seg.app.fields import shown_settings
from text2seg.errors import OutputError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.mosaic import _maps, make_mosaic
from text2seg.explain.opinion import Opinion
from text2seg.explain.run_all import PAGE_FILE, WORDS_FILE, RunAllSettings
from text2seg.io.images import load_image
from text2seg.io.output_folder import RECORD
from text2seg.io.scan import ImageFiles
from text2seg.render.drawing import POSITIVE

SCENES = resources.files("text2seg.demo") / "scenes" / "new-scenes" / "images"
TOOL = TOOLS["run-all"]
SAID = Opinion((("rocket tiger rocket toleballoon ", 0.4),), (("rocket", 2), ("tiger", 1), ("toleballoon", 1)), 0.1, 3)


@pytest.fixture
def folder(tmp_path):
    """A folder with a good, a bad and a good image."""
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(SCENES / "scene_0003.jpg", images / "a.jpg")
    (images / "b.jpg").write_bytes(b"not an image")
    shutil.copy(SCENES / "scene_0019.jpg", images / "c.jpg")
    return images


@pytest.fixture
def quick(monkeypatch):
    """Replace the search by one that returns the same words for every image, and still reports and stops. Returns the
    names of the images searched."""
    searched = []

    def opine(clip, image, settings, keep_going, *, stopped):
        searched.append(image.file_name)
        for step in range(settings.steps + 1):
            if not keep_going(step, "rocket"):
                break
        return SAID

    monkeypatch.setattr("text2seg.explain.run_all.opine", opine)
    return searched


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def words_in(output):
    return json.loads((output / f"{WORDS_FILE}.json").read_text(encoding="utf-8"))


def test_bad_image_in_a_folder_becomes_a_note(demo, folder, quick, tmp_path):
    before, output, reports = digests(folder), tmp_path / "out", []
    progress = Progress(lambda done, total, note: reports.append((done, total)))
    shown = run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=3, folder=output), progress)
    assert digests(folder) == before
    names = [".text2seg-written", "0001_a.json", "0001_a.png", "0003_c.json", "0003_c.png", PAGE_FILE]
    assert sorted(path.name for path in output.iterdir()) == [*names, f"{WORDS_FILE}.json"]
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


def test_stop_keeps_files_written_so_far(demo, folder, quick, tmp_path):
    output, stop = tmp_path / "out", threading.Event()

    def report(done, total, note):
        if done == 7:  # within the third image
            assert (output / "0001_a.png").exists()
            assert words_in(output)["tables"][0]["rows"] == [["rocket", 2, 1], ["tiger", 1, 1], ["toleballoon", 1, 1]]
            stop.set()

    settings = RunAllSettings(steps=3, folder=output)
    shown = run_tool(TOOL, demo, ImageFiles([folder]), settings, Progress(report, stop))
    assert shown.notes[0] == "1 of 3 images were not processed."
    assert shown.tables[0].rows[0] == ("rocket", 2, 1)
    assert not (output / "0003_c.png").exists()


def test_stop_before_the_first_word_shows_no_empty_table(demo, folder, quick, tmp_path):
    stop = threading.Event()
    stop.set()
    shown = run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(folder=tmp_path / "out"), Progress(stop=stop))
    assert (shown.tables, shown.notes) == ((), ("3 of 3 images were not processed.",))


def test_files_of_an_earlier_run_are_overwritten_but_foreign_folders_raise(demo, folder, quick, tmp_path):
    settings = RunAllSettings(steps=1, folder=tmp_path / "out")
    for _ in range(2):
        run_tool(TOOL, demo, ImageFiles([folder / "a.jpg"]), settings)
    before = digests(folder)
    with pytest.raises(OutputError, match="did not write"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=1, folder=folder))
    with pytest.raises(OutputError, match=r"a\.jpg"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=1, folder=folder / "a.jpg"))
    assert digests(folder) == before


def test_mosaic_shows_five_images_of_each_word_and_segments_known_words(demo):
    scene = load_image(SCENES / "scene_0003.jpg")  # a rocket and no tiger
    shown = make_mosaic(demo, scene, SAID, RunAllSettings(words=3))
    assert len(shown.panels) == 5 + 3 * 5
    assert shown.columns == 5
    rows = {word: rest for word, *rest in shown.tables[1].rows}
    assert list(rows) == ["rocket", "tiger", "toleballoon"]
    assert rows["rocket"][0] == 2
    assert float(rows["rocket"][2]) > 0.5  # SAM's score
    assert "not found" in rows["tiger"][2]
    assert rows["toleballoon"][2] == "unknown to the models"
    one = make_mosaic(demo, scene, SAID, RunAllSettings(words=1, method="raw"))
    assert len(one.panels) == 10
    captions = [panel.caption for panel in one.panels[5:]]
    assert captions[:2] == ["rocket: raw", "rocket: raw CLIP"]
    assert captions[3] == "label set: needs two words"


def test_maps_equal_plain_formulas(demo):
    """Raw CLIP: the cosine of a patch with the text. Label set: each product of a patch and a text is weighted by how
    well the text fits the image, and its mean over the texts is subtracted (CLIP Surgery, section 3.3)."""
    scene, words = load_image(SCENES / "scene_0003.jpg"), ["rocket", "horse", "tiger"]
    maps = _maps(demo, scene, words)
    texts = demo.clip.encode_texts(words).double()
    size = demo.input_size
    (raw,) = demo.clip.encode_images([scene], size=size, architecture="raw")
    (tokens,) = demo.clip.encode_images([scene], size=size)
    expected = (raw.features[1:].double() @ texts.T).T.unflatten(-1, raw.grid_hw)
    assert_close(maps.raw, expected, terms=DEMO_NETWORK, scale=1)
    features = tokens.features.double()
    cosines = features @ texts.T
    weights = (2 * cosines[0]).softmax(-1) * len(words)
    products = features[:, None] * texts * weights[:, None]
    cleaned = (products - products.mean(1, keepdim=True)).sum(-1)
    assert_close(maps.label_set, cleaned[1:].T.unflatten(-1, tokens.grid_hw), terms=DEMO_NETWORK, scale=1)


def test_points_of_the_prompts_are_on_the_similarity_maps(demo):
    scene = load_image(SCENES / "scene_0003.jpg")
    shown = make_mosaic(demo, scene, SAID, RunAllSettings(words=2))
    saliency, *maps, _ = (panel.pixels for panel in shown.panels[5:10])  # of the rocket
    assert not (saliency == POSITIVE).all(-1).any()
    assert all((pixels == POSITIVE).all(-1).any() for pixels in maps)
    assert not any((panel.pixels == POSITIVE).all(-1).any() for panel in shown.panels[10:])  # no tiger, no points


def test_opinion_without_words_has_a_mosaic(demo):
    scene = load_image(SCENES / "scene_0003.jpg")
    shown = make_mosaic(demo, scene, Opinion((("! ! ! ! ", 0.2),), (), 0.1, 1), RunAllSettings())
    assert len(shown.panels) == 2
    assert shown.image() is not None


def test_words_of_earlier_images_are_compared_with_later_ones(demo, folder, monkeypatch, tmp_path):
    """Those that fit best come first and get maps; the first image has none."""
    said = {"a.jpg": "rocket", "c.jpg": "sheep", "d.jpg": "tomato"}
    shutil.copy(SCENES / "scene_0003.jpg", folder / "d.jpg")

    def opine(clip, image, settings, keep_going, *, stopped):
        return Opinion(((said[image.file_name], 0.3),), ((said[image.file_name], 1),), 0.1, 1)

    monkeypatch.setattr("text2seg.explain.run_all.opine", opine)
    settings = RunAllSettings(words=1, accumulate=True, folder=tmp_path / "out")
    run_tool(TOOL, demo, ImageFiles([folder]), settings)
    first, last = (json.loads((tmp_path / "out" / name).read_text()) for name in ("0001_a.json", "0004_d.json"))
    assert len(first["tables"]) == 2
    assert [row[:2] for row in last["tables"][1]["rows"]] == [["tomato", 1], ["rocket", None]]
    assert [row[0] for row in last["tables"][2]["rows"]] == ["rocket", "sheep"]
    scene = load_image(SCENES / "scene_0003.jpg")
    (seen,) = demo.clip.encode_images([scene], architecture="raw")
    for word, cosine in last["tables"][2]["rows"]:
        text = demo.clip.encode_texts([word], ("a photo of a {}.",))[0].double()
        assert cosine == about(float(text @ seen.features[0].double()), terms=DEMO_NETWORK)
    assert last["tables"][1]["rows"][1][3].startswith("0.")  # the rocket of image 1 has a segment in image 4


def test_run_goes_on_after_a_stop_with_the_same_files(demo, folder, quick, tmp_path):
    """Stop within the second of three good images, run again, and compare with a run without a stop."""
    shutil.copy(SCENES / "scene_0022.jpg", folder / "d.jpg")
    stop, settings = threading.Event(), RunAllSettings(steps=3, words=2, save_words=True, accumulate=True)

    def report(done, total, note):
        if done == 7:  # image 1 is done, image 2 is bad
            stop.set()

    parts, whole = (replace(settings, folder=tmp_path / name) for name in ("parts", "whole"))
    shown = run_tool(TOOL, demo, ImageFiles([folder]), parts, Progress(report, stop))
    assert "Run the same command again" in shown.notes[-1]
    quick.clear()
    went_on = run_tool(TOOL, demo, ImageFiles([folder]), parts)
    assert quick == ["c.jpg", "d.jpg"]
    at_once = run_tool(TOOL, demo, ImageFiles([folder]), whole)
    assert went_on.tables == at_once.tables
    assert all(
        np.array_equal(*pair) for pair in zip(*([p.pixels for p in r.panels] for r in (went_on, at_once)), strict=True)
    )
    files = {path.relative_to(whole.folder) for path in whole.folder.rglob("*") if path.is_file()} - {Path(RECORD)}
    assert {Path("0001_a/rocket.png"), Path("0003_c/tiger.png"), Path(PAGE_FILE)} <= files
    assert {path.relative_to(parts.folder) for path in parts.folder.rglob("*") if path.is_file()} == {
        *files,
        Path(RECORD),
    }
    for file in files:
        assert (parts.folder / file).read_bytes() == (whole.folder / file).read_bytes(), file


def test_images_are_computed_again_when_anything_changed(demo, folder, quick, tmp_path):
    images, output = ImageFiles([folder / "a.jpg"]), tmp_path / "out"
    settings = RunAllSettings(steps=1, words=1, folder=output)
    run_tool(TOOL, demo, images, settings)
    quick.clear()
    run_tool(TOOL, demo, images, settings)
    assert quick == []
    (output / "0001_a.png").unlink()
    run_tool(TOOL, demo, images, settings)
    run_tool(TOOL, demo, images, replace(settings, seed=1))
    shutil.copy(SCENES / "scene_0019.jpg", folder / "a.jpg")
    run_tool(TOOL, demo, images, replace(settings, seed=1))
    assert len(quick) == 3
    (output / "0001_a.json").write_text("{}")
    with pytest.raises(OutputError, match="changed"):
        run_tool(TOOL, demo, images, replace(settings, seed=1))


def test_page_shows_all_mosaics_and_escapes_names(demo, folder, quick, tmp_path):
    (folder / "a.jpg").rename(folder / "a&b #1.jpg")
    output = tmp_path / "out"
    run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=1, words=1, folder=output))
    page = (output / PAGE_FILE).read_text(encoding="utf-8")
    assert "a&amp;b #1.jpg: rocket" in page
    places = [unquote(place) for place in re.findall('<img src="([^"]+)"', page)]
    assert places == ["0001_a&b #1.png", "0003_c.png"]
    assert all((output / place).exists() for place in places)
    assert "b.jpg is not an image" in page


def test_mosaics_of_all_images_are_shown_in_full_size_without_a_folder(demo, folder, quick):
    for number in range(13):
        shutil.copy(folder / "a.jpg", folder / f"d{number}.jpg")
    shown = run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(steps=1, words=1))
    assert len(shown.panels) == 15
    sheet = shown.image()
    assert sheet.shape[1] > max(panel.pixels.shape[1] for panel in shown.panels)
    assert sheet.shape[0] > sum(panel.pixels.shape[0] for panel in shown.panels)


def test_visitors_of_the_app_see_no_setting_of_the_folder():
    names = {setting.name for setting in shown_settings(RunAllSettings)}
    assert {"method", "accumulate", "min_count", "tokens"} <= names
    assert not {"folder", "save_words"} & names


def test_special_characters_in_words_are_literal(demo):
    """A + or | in a word does not join queries."""
    said = Opinion((("c++ a|b", 0.2),), (("c++", 1), ("a|b", 1), ("{}", 1)), 0.1, 1)
    shown = make_mosaic(demo, load_image(SCENES / "scene_0003.jpg"), said, RunAllSettings(words=3))
    assert [row[0] for row in shown.tables[1].rows] == ["c++", "a|b", "{}"]


def test_search_and_mosaic_work_together(demo):
    shown = run_tool(TOOL, demo, ImageFiles([SCENES / "scene_0003.jpg"]), RunAllSettings(steps=1, candidates=6))
    assert len(shown.panels) == 1
    assert shown.panels[0].caption.startswith("scene_0003.jpg: ")
    assert not shown.notes


def test_bad_prompt_raises_before_the_first_image(demo, folder, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(QueryError, match="too long"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(prompt="bus " * 80, folder=output))
    assert not output.exists()
    with pytest.raises(SettingsError, match="words"):
        RunAllSettings(words=0)
    with pytest.raises(SettingsError, match="supports"):
        run_tool(TOOL, demo, ImageFiles([folder]), RunAllSettings(method="layercam", folder=output))
    assert not output.exists()
    with pytest.raises(SettingsError, match="steps"):
        RunAllSettings(steps=0)
