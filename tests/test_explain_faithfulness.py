"""Deletion, insertion and the pointing game: the measures against loops and known areas, and the tool's table."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import builders
import numpy as np
import pytest
import torch
from closeness import about, assert_close

import text2seg
from text2seg.errors import DatasetError, QueryError, SettingsError
from text2seg.explain import TOOLS, Progress, run_tool
from text2seg.explain.faithfulness import (
    CENTRE,
    COLUMNS,
    MASK,
    RANDOM,
    FaithfulnessSettings,
    area,
    curves,
    filling,
    points_at,
    ranks,
)
from text2seg.explain.labelled import demo_splits, labelled_sets

SCENES = Path(text2seg.__file__).parent / "demo/scenes/new-scenes"
GRID, HW = (4, 6), (8, 12)  # each cell is 2 by 2 pixels
PIXELS = 3 * 8 * 12


def distinct(seed=0):
    return np.random.default_rng(seed).permutation(GRID[0] * GRID[1]).reshape(GRID).astype(np.float32)


def mean(pixels):
    return pixels.mean((1, 2, 3))


class TestCurves:
    def test_score_that_counts_pixels_gives_straight_curves(self):
        ones, zeros = torch.ones(3, *HW), torch.zeros(3, *HW)
        found = curves(mean, ones, zeros, distinct(), steps=6)
        assert_close(found.deletion, np.linspace(1, 0, 7), terms=PIXELS)
        assert_close(found.insertion, np.linspace(0, 1, 7), terms=PIXELS)
        assert found.gap == about(0, terms=PIXELS)

    def test_perfect_map_gives_triangular_areas(self):
        """The object covers a quarter of the cells, so the score is gone, or back, after a quarter of the steps."""
        thing = np.zeros(GRID, np.float32)
        thing[1:3, 1:4] = 1
        pixels = torch.from_numpy(np.kron(thing, np.ones((2, 2), np.float32))).expand(3, *HW)
        found = curves(mean, pixels, torch.zeros_like(pixels), thing, steps=8)
        assert found.deleted == about(0.25 * 0.25 / 2, terms=PIXELS)
        assert found.inserted == about(0.25 - 0.25 * 0.25 / 2, terms=PIXELS)
        worst = curves(mean, pixels, torch.zeros_like(pixels), -thing, steps=8)
        assert worst.gap == about(-found.gap, terms=PIXELS)

    @pytest.mark.parametrize("steps", [2, 5, 24])
    def test_curves_equal_a_loop_over_cells(self, steps):
        generator = torch.Generator().manual_seed(1)
        pixels, filled = torch.randn(2, 3, *HW, generator=generator)
        weights = torch.randn(3, *HW, generator=generator)

        def score(batch):
            return (batch * weights).sum((1, 2, 3)).tanh()

        saliency = distinct(2)
        order = sorted(np.ndindex(GRID), key=lambda cell: -saliency[cell])
        for name, start, other in (("deletion", pixels, filled), ("insertion", filled, pixels)):
            expected = []
            for step in range(steps + 1):
                image = start.clone()
                for place, (row, column) in enumerate(order):
                    if place < step / steps * len(order):
                        cell = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
                        image[:, cell[0], cell[1]] = other[:, cell[0], cell[1]]
                expected.append(float(score(image[None])))
            found = curves(score, pixels, filled, saliency, steps=steps)
            assert_close(getattr(found, name), expected, terms=PIXELS)

    def test_all_steps_use_one_model_call_and_known_ends_are_not_scored_again(self):
        sizes = []

        def score(batch):
            sizes.append(len(batch))
            return mean(batch)

        found = curves(score, torch.ones(3, *HW), torch.zeros(3, *HW), distinct(), steps=5, ends=(9.0, 7.0))
        assert sizes == [8]
        assert found.deletion[[0, -1]].tolist() == found.insertion[[-1, 0]].tolist() == [9, 7]

    def test_area_of_a_straight_line_is_its_mean(self):
        assert area(np.linspace(3, 1, 5).astype(np.float32)) == pytest.approx(2)

    def test_equal_cells_are_ranked_at_random_but_reproducibly(self):
        flat = np.zeros((6, 8), np.float32)
        flat[2, 3] = 1
        places = ranks(flat)
        assert places[2, 3] == 0
        assert sorted(places.ravel().tolist()) == list(range(48))
        assert np.array_equal(places, ranks(flat))
        assert abs(places[:3].mean() - places[3:].mean()) < 12  # neither side first

    @pytest.mark.parametrize("fill", ["blur", "mean"])
    def test_filling_hides_the_image(self, fill):
        pixels = torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(3))
        filled = filling(pixels, fill)
        assert filled.shape == pixels.shape
        assert filled.std() < 0.1 * pixels.std()

    def test_blur_keeps_the_mean_colour(self):
        plain = torch.tensor([0.5, -1, 2])[:, None, None].expand(3, 40, 60)
        assert_close(filling(plain, "blur"), plain, terms=PIXELS)


class TestPointing:
    MASK = builders.box_mask(left=16, top=4, width=8, height=8)  # of 24 by 32 pixels

    @pytest.mark.parametrize(("cell", "hit"), [((1, 4), True), ((4, 1), False), ((0, 4), False), ((1, 7), False)])
    def test_centre_of_the_highest_cell_decides(self, cell, hit):
        saliency = np.random.default_rng(0).random((6, 8), np.float32)
        saliency[cell] = 2
        assert points_at(saliency, self.MASK) is hit

    @pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
    def test_constant_or_broken_map_points_nowhere(self, value):
        assert points_at(np.full((6, 8), value, np.float32), np.ones((24, 32), bool)) is False


@pytest.fixture(scope="module")
def measured(demo):
    """Results for four categories in one image."""
    settings = FaithfulnessSettings(
        dataset=(SCENES / "dataset.json",), limit=1, steps=4, method=("surgery", "gradcam", "raw")
    )
    return run_tool(TOOLS["faithfulness"], demo, [], settings)


class TestTool:
    def test_surgery_beats_random_order_and_the_mask_always_hits(self, measured):
        (table,) = measured.tables
        assert table.columns == COLUMNS
        rows = {row[0]: dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in table.rows}
        assert set(rows) == {"surgery", "gradcam", "raw", MASK, CENTRE, RANDOM}
        gaps = [row["gap"] for row in rows.values()]
        assert gaps == sorted(gaps, reverse=True)
        for row in rows.values():
            assert row["gap"] == about(row["insertion"] - row["deletion"], terms=2)
        for name in ("surgery", "gradcam"):
            assert rows[name]["deletion"] < rows[RANDOM]["deletion"] - 0.1
            assert rows[name]["insertion"] > rows[RANDOM]["insertion"]
            assert rows[name]["pointing"] >= 0.75
        assert rows[MASK]["pointing"] == 1
        assert "4 of 4 categories" in table.title

    def test_result_has_curves_and_notes(self, measured):
        (panel,) = measured.panels
        assert panel.caption == "new-scenes"
        assert panel.pixels.shape[1] == 900
        assert len(np.unique(panel.pixels.reshape(-1, 3), axis=0)) > 20
        assert any("blurred image" in note and "4 steps" in note for note in measured.notes)
        assert any("trained through the surgery path" in note for note in measured.notes)

    def test_stopped_run_shows_partial_results(self, demo):
        stop = threading.Event()
        progress = Progress(lambda done, total, note: done == 2 and stop.set(), stop)
        settings = FaithfulnessSettings(dataset=(SCENES / "dataset.json",), limit=1, steps=2, method=("attention",))
        result = run_tool(TOOLS["faithfulness"], demo, [], settings, progress)
        assert "2 of 4 categories" in result.tables[0].title

    def test_run_stopped_at_the_start_shows_only_notes(self, demo):
        stop = threading.Event()
        stop.set()
        result = run_tool(TOOLS["faithfulness"], demo, [], FaithfulnessSettings(limit=1), Progress(stop=stop))
        assert result.tables == result.panels == ()

    def test_missing_image_becomes_a_note(self, demo, tmp_path):
        path = two_scenes(tmp_path)
        (tmp_path / "images/scene_0001.jpg").unlink()
        settings = FaithfulnessSettings(dataset=(path,), steps=2, method=("attention",), fill="mean")
        result = run_tool(TOOLS["faithfulness"], demo, [], settings)
        assert any("scene_0001.jpg" in note for note in result.notes)
        assert any("mean colour" in note for note in result.notes)
        assert result.tables[0].title == f"{tmp_path.name}: 1 of 2 categories in images"
        assert result.tables[0].rows[0][4] is None  # one thing has no standard error

    def test_unknown_category_raises_before_any_measurement(self, demo, tmp_path):
        path = two_scenes(tmp_path, name="xylophone")
        with pytest.raises(QueryError, match="xylophone"):
            run_tool(TOOLS["faithfulness"], demo, [], FaithfulnessSettings(dataset=(path,)))

    def test_images_raise(self, demo):
        with pytest.raises(SettingsError, match="takes no images, got 1"):
            run_tool(TOOLS["faithfulness"], demo, [builders.image()])

    def test_method_for_other_clips_raises_and_lists_supported_methods(self, demo):
        with pytest.raises(SettingsError, match=r"layercam.*supports .*relevance"):
            run_tool(TOOLS["faithfulness"], demo, [], FaithfulnessSettings(method=("layercam",)))


def two_scenes(folder, name=None):
    """Write a dataset of two images with one category each; `name` renames the second category."""
    whole = json.loads((SCENES / "dataset.json").read_text())
    kept = [next(a for a in whole["annotations"] if a["image_id"] == number) for number in (1, 2)]
    whole["images"] = whole["images"][:2]
    whole["annotations"] = kept
    used = {annotation["category_id"] for annotation in kept}
    whole["categories"] = [category for category in whole["categories"] if category["id"] in used]
    if name:
        whole["categories"][-1]["name"] = name
    (folder / "images").mkdir()
    for image in whole["images"]:
        shutil.copy(SCENES / image["file_name"], folder / image["file_name"])
    path = folder / "dataset.json"
    path.write_text(json.dumps(whole))
    return path


class TestLabelled:
    def test_default_datasets_are_both_splits_of_the_demo_scenes(self):
        sets = labelled_sets(())
        assert [each.name for each in sets] == ["new-scenes", "held-out"]
        assert [each.file for each in sets] == list(demo_splits())
        assert [len(each.pairs) for each in sets] == [81, 66]

    def test_limit_counts_images(self):
        (few,) = labelled_sets([SCENES / "dataset.json"], limit=2)
        assert len({pair.scene.image_id for pair in few.pairs}) == 2
        assert few.image_of(few.pairs[0]).hw == few.pairs[0].scene.hw

    def test_images_without_dataset_raise(self, tmp_path):
        with pytest.raises(DatasetError, match="needs a dataset: give --dataset"):
            labelled_sets((), images=tmp_path)

    def test_image_of_another_size_raises(self, tmp_path):
        path = two_scenes(tmp_path)
        shutil.copy(SCENES / "images/scene_0005.jpg", tmp_path / "images/scene_0001.jpg")
        (each,) = labelled_sets([path])
        with pytest.raises(text2seg.errors.ImageError, match="its dataset says"):
            each.image_of(each.pairs[0])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"steps": 1}, "steps"),
        ({"steps": 101}, "steps"),
        ({"limit": 0}, "limit"),
        ({"fill": "black"}, "fill must be one of blur, mean"),
        ({"size": 0}, "input size"),
    ],
)
def test_bad_settings_raise(given, says):
    with pytest.raises(SettingsError, match=says):
        FaithfulnessSettings(**given)
