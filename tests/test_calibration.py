"""`text2seg calibrate`: the fits in plain numbers, and a card of the demo model from bundled scenes that a server on
this machine offers as COCO val2017."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from checkpoint_builders import serving
from coco_builders import SCENES, coco_of_scenes
from sklearn.linear_model import LogisticRegression

from text2seg import Text2Seg
from text2seg.calibration import card as calibration
from text2seg.calibration import measure
from text2seg.calibration.card import calibrate, is_worse
from text2seg.calibration.fit import (
    equal_error,
    far_below,
    fit_choice,
    fit_presence,
    interval,
    sigmoid,
    single_quality,
)
from text2seg.calibration.regions import MOST_SOMETHING, RegionRows, best_f2, fit_regions, least_something
from text2seg.cli import main
from text2seg.cli.terminal import FAILED, PARTLY, WRONG_FLAGS
from text2seg.coco.dataset import read_dataset
from text2seg.coco.download import SERVER_VARIABLE
from text2seg.coco.reader import check_dataset
from text2seg.coco.truth import TruthImage, category_names, sha256_of_truth, truth_images
from text2seg.errors import DatasetError, ImageError
from text2seg.evaluation.benchmark import benchmark_coco
from text2seg.model_card import ModelCard, Score, find_card, read_card
from text2seg.regions import GRID
from text2seg.sam.automatic import FEW_POINTS

COUNT = 12
SAMPLED = 4  # images in which bounds of regions are compared


@pytest.fixture
def truth() -> dict:
    return copy.deepcopy(read_dataset(SCENES / "dataset.json"))


def first_images(truth: dict, count: int) -> dict:
    kept = [each for each in truth["annotations"] if each["image_id"] <= count]
    return truth | {"images": truth["images"][:count], "annotations": kept}


class TestFit:
    def pairs(self, seed: int = 0, count: int = 4000):
        rng = np.random.default_rng(seed)
        present = rng.random(count) < 0.2
        return rng.normal(np.where(present, 3.0, -5.0), 3.0), present

    def test_presence_is_one_half_where_as_many_are_lost_as_found(self):
        logits, present = self.pairs()
        slope, offset = fit_presence(logits, present)
        presence = sigmoid(slope * logits + offset)
        lost, found = (presence[present] < 0.5).mean(), (presence[~present] >= 0.5).mean()
        assert lost == pytest.approx(found, abs=0.01)
        assert equal_error(logits, present)[1] == pytest.approx((lost + found) / 2, abs=0.01)

    def test_the_slope_is_that_of_a_logistic_regression_with_equal_weights(self):
        logits, present = self.pairs(1)
        middle, _ = equal_error(logits, present)
        reference = LogisticRegression(C=1e9, class_weight="balanced", fit_intercept=False)
        reference.fit((logits - middle)[:, None], present)
        assert fit_presence(logits, present)[0] == pytest.approx(float(reference.coef_[0, 0]), rel=1e-3)

    def test_presence_that_separates_both_kinds_has_a_finite_slope(self):
        slope, offset = fit_presence(np.array([-3.0, -2.0, 4.0, 5.0]), np.array([False, False, True, True]))
        assert 0 < slope <= 10
        assert np.isfinite(offset)

    def test_choice_finds_the_weights_that_made_the_ious(self):
        rng = np.random.default_rng(0)
        rows = rng.random((500, 3, 3))
        rows[:, :, 2] = 0.6 * rows[:, :, 0] + 0.3 * rows[:, :, 1] - 0.1
        choice = fit_choice(rows)
        assert (choice.sam, choice.separation, choice.constant) == pytest.approx((0.6, 0.3, -0.1), abs=1e-3)
        assert choice.quality == pytest.approx(0.5)  # the expected IoU is the IoU, and 0.5 is right

    def test_far_below_keeps_most_regions_that_show_a_thing(self):
        gaps = np.linspace(0, 4, 101)
        ratio = far_below(gaps, slope=0.5)
        assert np.mean(np.exp(0.5 * gaps) <= ratio) == pytest.approx(0.95, abs=0.02)
        assert far_below(np.zeros(0), slope=1) == 2

    def test_the_interval_is_that_of_the_mean_over_images(self):
        rng = np.random.default_rng(0)
        rows = [rng.normal(0.5, 0.2, (1, 1)) for _ in range(200)]
        low, high = interval(rows, lambda values: float(values.mean()))
        assert high - low == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(200), rel=0.15)

    def test_the_quality_of_single_masks_counts_missing_and_additional_ones(self):
        one, two = np.zeros((4, 8), bool), np.zeros((4, 8), bool)
        one[:, :4], two[:, 4:] = True, True
        assert single_quality([one, two], [two, one]) == 1
        assert single_quality([one], [one, two]) == pytest.approx(1 / 1.5)
        assert single_quality([one | two], [one, two]) == pytest.approx(0.5 / 1.5)
        assert single_quality([], [one]) == 0


class TestRegions:
    def rows(self, odds, present, rows=()):
        return RegionRows(np.array(odds, float), np.array(present), np.array(rows, float).reshape(-1, 4))

    def test_presence_is_one_half_at_the_best_f2(self):
        """A lost thing counts as much as four wrong ones: three of four absent pairs below the lowest present one are
        worth it, the others are not."""
        odds = [5, 4, 1, *[2] * 3, *[-3] * 40]
        present = [True] * 3 + [False] * 43
        assert best_f2(np.array(odds, float), np.array(present)) == 1
        odds[3:6] = [-4] * 3
        odds[2], odds[6:26] = -5, [-3] * 20  # keeping it would add 43 wrong ones
        assert best_f2(np.array(odds, float), np.array(present)) == 4

    def test_the_features_with_the_lower_equal_error_are_taken(self):
        rng = np.random.default_rng(0)
        present = rng.random(400) < 0.2
        sharp, blurred = np.where(present, 3.0, -5.0), rng.normal(0, 3, 400)
        weights = rng.random((50, 3))
        ious = weights @ (0.6, 0.3, 0.05)
        for odds, kind in ((blurred, "values"), (sharp, "patches")):
            both = {"patches": sharp, kind: odds}
            gathered = [
                {name: self.rows(each, present, np.column_stack([weights, ious])) for name, each in both.items()}
            ]
            fitted = fit_regions(gathered, 0.25)
            assert (fitted.features, fitted.something, fitted.threshold) == ("patches", 0.25, 0.5)
        assert fitted.presence_of(np.array([3.0, -5.0], np.float32)) == pytest.approx([0.5, 0], abs=0.01)

    def test_images_that_show_nothing_calibrate_no_regions(self):
        assert fit_regions([], 0.1) is None
        assert fit_regions([{"patches": self.rows([-np.inf, 1], [True, False])}], 0.1) is None

    def test_points_stay_on_nearly_all_things(self):
        highest = np.linspace(0, 1, 1001)
        least = least_something(highest * 0.4)
        assert (highest * 0.4 >= least).mean() == pytest.approx(0.98, abs=0.005)
        assert least_something(highest[500:]) == MOST_SOMETHING  # never more
        assert least_something([]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The card, page and messages of `calibrate coco` on bundled scenes."""
    folder = tmp_path_factory.mktemp("calibration")
    with pytest.MonkeyPatch.context() as patch, serving(b"") as server:
        patch.setenv("NO_PROXY", "*")
        patch.setenv("TEXT2SEG_CHECKPOINTS", str(folder / "checkpoints"))
        patch.setenv(SERVER_VARIABLE, server.url.removesuffix("/weights.pt"))
        patch.chdir(folder)
        patch.setattr(measure, "BOUNDS_IMAGES", SAMPLED)
        server.files = coco_of_scenes()
        command = ["calibrate", "coco", "--images", str(COUNT), "--model", "demo"]
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main(command) == 0
        (announced,) = re.findall(r"(\d+) images, four passes\. In the last, SAM cuts .* in (\d+) of", said.getvalue())
        assert announced == (str(COUNT), str(COUNT))
        yield folder, command, server


@pytest.fixture
def at_home(made, monkeypatch):
    folder, _, server = made
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(folder / "checkpoints"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv(SERVER_VARIABLE, server.url.removesuffix("/weights.pt"))
    monkeypatch.chdir(folder)
    return folder


class TestCard:
    def test_the_card_is_found_by_hash_from_then_on(self, at_home, demo):
        (path,) = (at_home / "checkpoints" / "cards").iterdir()
        card = read_card(path)
        assert find_card(demo.card.clip.sha256, demo.card.sam.sha256) == card
        assert card.presence != demo.card.presence
        assert card.presence.threshold == 0.5
        assert card.calibrated_on.images == COUNT
        assert card.calibrated_on.data == f"COCO val2017, {COUNT} images drawn at random"
        assert card.name == "demo"

    def test_the_card_keeps_what_was_known_besides_the_calibration(self, at_home, demo):
        card = find_card(demo.card.clip.sha256, demo.card.sam.sha256)
        for name in ("vocabulary", "things", "notes", "input_size", "background", "licence"):
            assert getattr(card, name) == getattr(demo.card, name)

    def test_scores_of_all_methods_have_intervals_and_calibration_helps(self, at_home, demo):
        scores = {
            (score.method, score.measure): score
            for score in find_card(demo.card.clip.sha256, demo.card.sam.sha256).scores
        }
        assert {method for method, _ in scores} == {"reference", "uncalibrated", "calibrated"}
        assert all(score.low <= score.value <= score.high for score in scores.values())
        quality = {m: scores[m, calibration.QUALITY].value for m in ("reference", "calibrated")}
        assert quality["calibrated"] > quality["reference"]
        assert scores["calibrated", calibration.FOUND].value < 0.1

    def test_region_classification_is_calibrated_with_the_better_features(self, at_home, demo):
        fitted = find_card(demo.card.clip.sha256, demo.card.sam.sha256).region_classification
        assert fitted.features in ("patches", "values")
        assert fitted.threshold == 0.5
        assert 0 < fitted.something <= MOST_SOMETHING
        assert fitted.choice.sam > 0

    def test_the_page_has_the_table_and_the_diagrams_and_needs_nothing_from_elsewhere(self, at_home):
        page = (at_home / "outputs" / "calibration.html").read_text()
        for words in ("Lost against found", "Reliability of presence", "IoU before and after", "cross-validated"):
            assert words in page
        assert page.count("nothing is “not found”") == 4
        assert "few images" in page
        assert not re.search(r"(src|href)=", page)

    def test_a_card_that_exists_is_found_before_anything_is_downloaded(self, made, at_home, tmp_path, capsys):
        before = len(made[2].paths)
        command = [*made[1], "--report", str(tmp_path / "page.html"), "--coco-folder", str(tmp_path / "coco")]
        assert main(command) == 1
        assert "card.json already exists" in capsys.readouterr().err
        assert len(made[2].paths) == before
        assert list(tmp_path.iterdir()) == []

    def test_a_second_calibration_replaces_nothing_without_overwrite(self, made, at_home, capsys):
        before = (at_home / "outputs" / "calibration.html").read_bytes()
        assert main(made[1]) == 1
        assert "calibration.html already exists; choose another --report or add --overwrite" in capsys.readouterr().err
        assert (at_home / "outputs" / "calibration.html").read_bytes() == before

    def test_the_benchmark_puts_the_methods_side_by_side(self, at_home, capsys):
        assert (
            main(["benchmark", "coco", "--download", "--count", str(COUNT), "--targets", "6", "--model", "demo"]) == 0
        )
        text, errors = capsys.readouterr()
        for method in ("reference", "uncalibrated", "calibrated"):
            assert re.search(rf"^\s*{method} +0\.\d{{3}} +0\.\d{{3}}", text, re.MULTILINE)
        assert "6 pairs" in text
        assert f"up to {COUNT} images" in errors
        assert "too good" not in errors

    def test_the_benchmark_says_if_the_card_was_fitted_to_its_images(self, at_home, demo, truth, tmp_path, capsys):
        card = find_card(demo.card.clip.sha256, demo.card.sam.sha256)
        on = card.calibrated_on.model_copy(update={"sha256": sha256_of_truth(truth)})
        (tmp_path / "card.json").write_bytes(card.model_copy(update={"calibrated_on": on}).to_json())
        command = ["benchmark", "coco", "--images", str(SCENES), "--annotations", str(SCENES / "dataset.json")]
        command += ["--targets", "1", "--model", "demo"]
        assert main([*command, "--card", str(tmp_path / "card.json")]) == 0
        assert "the card of these weights was fitted to these images" in capsys.readouterr().err
        assert main(command) == 0
        assert "fitted to these images" not in capsys.readouterr().err


@pytest.fixture
def five_are_enough(monkeypatch):
    """Five images make a card, one of each fold."""
    monkeypatch.setattr(calibration, "FEWEST_IMAGES", 5)
    monkeypatch.setattr(measure, "BOUNDS_IMAGES", 1)
    monkeypatch.setattr(measure, "MOST_IMAGES", 1)


class TestFailures:
    def test_images_that_fail_are_counted_in_both_passes_and_left_out(self, demo, truth, five_are_enough, monkeypatch):
        """One image has another size than its truth says. Another one is gone after the first pass. There is no memory
        to keep sessions, so the second pass opens the images again."""
        monkeypatch.setattr(measure, "KEPT_SHARE", 0)
        truth = first_images(truth, 7)
        names = [each["file_name"] for each in truth["images"]]
        opened, load = Counter(), TruthImage.load

        def load_or_fail(shown, path):
            opened[shown.file_name] += 1
            if opened[shown.file_name] > {names[1]: 1}.get(shown.file_name, 9):
                raise ImageError(f"{path} is gone")
            if shown.file_name == names[0]:
                shown = replace(shown, hw=(shown.hw[0] + 1, shown.hw[1]))
            return load(shown, path)

        monkeypatch.setattr(TruthImage, "load", load_or_fail)
        models = demo.with_card(demo.card.model_copy(update={"name": "another pair"}))
        result = calibrate(models, truth, SCENES, data="x")
        assert [each.file_name for each in result.failures] == names[:2]
        assert max(opened.values()) == 2
        assert "rows and columns, but its dataset says" in result.failures[0].message
        assert result.failures[1].message == f"{names[1]} is gone"
        assert result.card.calibrated_on.images == 6
        assert {len(rows) for rows in result.scores.values()} == {result.images} == {5}
        assert result.card.name == "demo"

    def test_the_effort_is_said_before_the_first_pass_and_measured_on_the_first_image_that_opens(
        self, demo, truth, tmp_path, monkeypatch
    ):
        """Three of the thirteen images are damaged. The last pass uses every third image."""
        monkeypatch.setattr(measure, "MOST_IMAGES", 5)
        truth = first_images(truth, 13)
        for place, image in enumerate(truth["images"]):
            path = tmp_path / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"no image" if place < 3 else (SCENES / image["file_name"]).read_bytes())
        heard, cut = [], []
        regions = Text2Seg.automatic_regions

        def counted(models, session, settings):
            cut.append((session.image.file_name, settings))
            return regions(models, session, settings)

        monkeypatch.setattr(Text2Seg, "automatic_regions", counted)

        def stop(*said):
            heard.append(said)
            raise InterruptedError

        with pytest.raises(InterruptedError):
            calibrate(demo, truth, tmp_path, data="x", announce=stop)
        ((images, used, seconds),) = heard
        assert (images, used) == (13, 5)
        assert seconds > 0
        assert {Path(name).name for name, _ in cut} == {Path(truth["images"][3]["file_name"]).name}
        few = [replace(GRID, points_per_side=side) for side in (1, 1, FEW_POINTS)]  # encodes, and then a smaller grid
        assert [settings for _, settings in cut] == few

    def test_each_image_is_encoded_once(self, demo, truth, five_are_enough, monkeypatch):
        counts = Counter()
        models = copy.copy(demo)
        for kind, name in (("clip", "encode_images"), ("sam", "embed")):
            part = copy.copy(getattr(demo, kind))
            keep = getattr(part, name)

            def counted(images, *args, keep=keep, kind=kind, **more):
                counts[kind] += len(images)
                return keep(images, *args, **more)

            monkeypatch.setattr(part, name, counted, raising=True)
            setattr(models, kind, part)
        result = calibrate(models, first_images(truth, 5), SCENES, data="x")
        assert result.images == 5
        assert counts == {"clip": 5, "sam": 5}

    def test_a_calibration_that_was_stopped_goes_on_and_gives_the_same_card(
        self, demo, truth, five_are_enough, tmp_path, monkeypatch
    ):
        """It computes 5 images in the first pass, 1 in the second, 5 in the third, where it is stopped, and 1."""
        truth = first_images(truth, 5)
        kept, computed, of = tmp_path / "card.json.partial", [], measure.PartialResults.of

        def stopping(partial, made_from, compute):
            def counted():
                if len(computed) == 8:
                    raise KeyboardInterrupt
                computed.append(made_from[0])
                return compute()

            return of(partial, made_from, counted)

        with monkeypatch.context() as patch:
            patch.setattr(measure.PartialResults, "of", stopping)
            with pytest.raises(KeyboardInterrupt):
                calibrate(demo, truth, SCENES, data="x", partial_results=kept)
            kept.write_bytes(kept.read_bytes() + b'\n17\n[1]\n{"half a line\n' + b"[" * 100_000)
            computed[:] = []
            result = calibrate(demo, truth, SCENES, data="x", partial_results=kept)
        assert computed == ["compare"] * 3 + ["regions"]
        assert result.card == calibrate(demo, truth, SCENES, data="x").card

    def test_damaged_partial_results_are_computed_again(self, tmp_path):
        kept = tmp_path / "card.json.partial"
        assert [measure.PartialResults(kept, "x").of(name, lambda: {"gaps": [2.5]}) for name in "ab"] == [
            {"gaps": [2.5]}
        ] * 2
        assert len(measure.PartialResults(kept, "x")) == 2
        kept.write_bytes(kept.read_bytes().replace(b"2.5", b"2.7", 1))  # still JSON of the same form
        again = measure.PartialResults(kept, "x")
        assert len(again) == 1
        assert [again.of(name, lambda: "again") for name in "ab"] == ["again", {"gaps": [2.5]}]

    def test_bounds_are_the_usual_ones_unless_others_are_clearly_better(self, demo):
        def chosen(quality):
            regions = calibration._with_bounds(demo.card, quality).regions
            assert regions.far_below == demo.card.regions.far_below
            return regions.floor, regions.prominence

        quality = np.full((20, len(measure.BOUNDS)), 0.5)
        quality[:10, 0], quality[10:, 1] = 0.9, 0.8
        assert (chosen(quality[:10]), chosen(quality[10:])) == (measure.BOUNDS[0], measure.BOUNDS[1])
        quality[:, 0] = quality[:, measure.BOUNDS.index(calibration.USUAL_BOUNDS)] + calibration.CLEARLY_BETTER / 2
        quality[10:, 1] = np.nan
        assert chosen(quality) == calibration.USUAL_BOUNDS

    def test_no_card_is_scored_on_images_that_chose_its_bounds_or_were_fitted(self, demo, truth, monkeypatch):
        """Each image is scored with the bounds of a fold that it is not in, and its own quality is judged with a card
        that was fitted without the images that this card is scored on."""
        monkeypatch.setattr(measure, "MOST_IMAGES", 1)
        judged, given = {}, {}
        fitted, with_bounds = calibration._fitted, calibration._with_bounds

        def remembered(models, gathered):
            card = fitted(models, gathered)
            judged[card.model_dump_json()] = {each.shown.file_name for each in gathered}
            return card

        def compared(images, gathered, models):
            given["images"] = [each.shown.file_name for each in gathered]
            given["seen"] = [judged[each.card.model_dump_json()] for each in models]
            return np.arange(len(gathered))[:, None] * np.ones(len(measure.BOUNDS))

        def chosen(card, quality):
            given.setdefault("of_card", []).append((judged[card.model_dump_json()], quality[:, 0].astype(int).tolist()))
            return with_bounds(card, quality)

        monkeypatch.setattr(calibration, "_fitted", remembered)
        monkeypatch.setattr(calibration, "_with_bounds", chosen)
        monkeypatch.setattr(measure.Images, "compare_bounds", compared)
        calibrate(demo, first_images(truth, 10), SCENES, data="x")
        *folds, (_, every) = given["of_card"]
        assert every == list(range(len(given["images"])))
        for seen, rows in folds:
            scored = set(given["images"]) - seen
            assert scored
            for row in rows:
                assert given["images"][row] in seen
                assert not given["seen"][row] & scored

    def test_an_image_of_another_size_is_a_failure_of_the_benchmark(self, demo, truth):
        truth["images"] = [entry | {"width": entry["width"] + (entry["id"] == 1)} for entry in truth["images"][:2]]
        kept = [each for each in truth["annotations"] if each["image_id"] <= 2]
        truth["annotations"] = [
            each | {"segmentation": [[1, 1, 50, 1, 50, 50]]} if each["image_id"] == 1 else each for each in kept
        ]
        found = benchmark_coco(demo, truth, SCENES)
        assert "rows and columns, but its dataset says" in found.failures[0].message
        assert len(found.failures) == found.images == 1
        assert found.pairs == len({each["category_id"] for each in truth["annotations"] if each["image_id"] == 2})

    def test_the_benchmark_names_unknown_categories_in_one_line_and_scores_the_others(self, truth, tmp_path, capsys):
        truth["images"] = truth["images"][:4]
        truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] <= 4]
        used = sorted({each["category_id"] for each in truth["annotations"]})
        truth["categories"] = [each for each in truth["categories"] if each["id"] in used]
        truth["categories"][0]["name"], truth["categories"][1]["name"] = "xylophone", "theremin"
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        command = ["benchmark", "coco", "--images", str(SCENES), "--annotations", str(tmp_path / "truth.json")]
        assert main([*command, "--model", "demo"]) == PARTLY
        said = capsys.readouterr()
        line = "left out: the models do not know 2 categories: theremin, xylophone"
        assert [each for each in said.err.splitlines() if each.startswith("left out")] == [line]
        kept = {(each["image_id"], each["category_id"]) for each in truth["annotations"]}
        pairs = sum(category not in used[:2] for _, category in kept)
        assert f"{pairs} pairs in " in said.out
        assert main([*command, "--model", "demo", "--compare"]) == PARTLY
        said = capsys.readouterr()
        assert line in said.err
        assert f"{pairs} pairs of an image" in said.out

    def test_any_fault_of_an_image_is_one_line_of_the_benchmark(self, demo, truth, tmp_path, monkeypatch, capsys):
        """One file is damaged, one cannot be read, and the features of one do not fit into memory. The scores are those
        of the other images."""
        truth = first_images(truth, 5)
        names = [each["file_name"] for each in truth["images"]]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes((SCENES / name).read_bytes() if name != names[0] else b"not an image")
        load = TruthImage.load

        def load_or_fail(shown, path):
            if shown.file_name == names[1]:
                raise PermissionError(13, "Permission denied", str(path))
            if shown.file_name == names[2]:
                raise RuntimeError("out of memory")
            return load(shown, path)

        monkeypatch.setattr(TruthImage, "load", load_or_fail)
        found = benchmark_coco(demo, truth, tmp_path)
        assert [each.file_name for each in found.failures] == names[:3]
        assert f"Permission denied: '{names[1]}'" in found.failures[1].message
        others = truth | {"images": truth["images"][3:]}
        others["annotations"] = [each for each in truth["annotations"] if each["image_id"] > 3]
        alone = benchmark_coco(demo, others, tmp_path)
        assert (found.images, found.pairs, found.mean_iou) == (2, alone.pairs, alone.mean_iou)
        (tmp_path / "truth.json").write_text(json.dumps(truth))
        command = ["benchmark", "coco", "--images", str(tmp_path), "--annotations", str(tmp_path / "truth.json")]
        assert main([*command, "--model", "demo"]) == PARTLY
        text, errors = capsys.readouterr()
        assert errors.count("failed: ") == 3
        assert f"{alone.pairs} pairs in 2 images" in text


class TestErrors:
    def test_a_truth_without_a_known_category(self, demo, truth):
        truth["categories"] = [{"id": 1, "name": "zebra"}, {"id": 2, "name": "unicorn"}]
        truth["annotations"] = []
        with pytest.raises(DatasetError, match="no category that these models know; its categories are unicorn, zebra"):
            calibrate(demo, truth, SCENES, data="x")

    def test_a_folder_without_the_images(self, demo, truth, tmp_path):
        with pytest.raises(DatasetError, match=f"{tmp_path}: no image of the ground truth is there"):
            calibrate(demo, truth, tmp_path, data="x")

    def test_too_few_images_are_counted(self, demo, truth):
        truth = first_images(truth, 3)
        with pytest.raises(DatasetError, match="only 3 images show a thing that the models know, and 10 are needed"):
            calibrate(demo, truth, SCENES, data="x")

    def test_crowds_alone_count_neither_as_present_nor_as_absent(self, demo, truth):
        shown = {each["category_id"] for each in truth["annotations"] if each["image_id"] == 1}
        truth["images"] = truth["images"][:2]
        kept = [each for each in truth["annotations"] if each["image_id"] <= 2]
        truth["annotations"] = [{**each, "iscrowd": int(each["image_id"] == 1)} for each in kept]
        checked = check_dataset(truth, "the ground truth")
        found = [(each, SCENES / each.file_name) for each in truth_images(checked)]
        images = measure.Images(demo.with_card(demo.card.uncalibrated()), category_names(checked), found)
        assert images.with_things == [found[1][0].file_name]
        crowded, other = images.gather()
        assert len(crowded.logits) == len(demo.closed_vocabulary.names) - len(shown)
        assert not crowded.present.any()
        assert other.present.any()
        with pytest.raises(DatasetError, match="only 1 image shows"):
            calibrate(demo, truth, SCENES, data="x")

    @pytest.mark.parametrize(
        ("status", "arguments", "says"),
        [
            (WRONG_FLAGS, ["coco", "--images", "photos"], "with coco, --images is the number of images to download"),
            (
                WRONG_FLAGS,
                ["coco", "--images", "9"],
                "the number of images to download, 10 or more, such as 500; got '9'",
            ),
            (FAILED, ["nowhere.json", "--images", "."], "nowhere.json"),
            (WRONG_FLAGS, [str(SCENES / "dataset.json")], "dataset.json? Add --images FOLDER"),
            (
                FAILED,
                [str(SCENES / "dataset.json"), "--images", "500"],
                "500, given as --images, is not an existing folder",
            ),
            (
                FAILED,
                [str(SCENES / "dataset.json"), "--images", "."],
                "no image of the ground truth is there",
            ),
        ],
    )
    def test_bad_input_is_one_line_and_nothing_is_written(self, status, arguments, says, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["calibrate", *arguments, "--model", "demo"]) == status
        assert says in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.rglob("*.html"))
        assert not list(tmp_path.rglob("*card.json"))

    def test_the_card_is_for_the_input_size_given(self, truth, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("text2seg.calibration.card.FEWEST_IMAGES", 3)
        (tmp_path / "truth.json").write_text(json.dumps(first_images(truth, 5)))
        command = ["calibrate", str(tmp_path / "truth.json"), "--images", str(SCENES), "--model", "demo"]
        output = ["--output", str(tmp_path / "card.json"), "--report", str(tmp_path / "page.html")]
        assert main([*command, *output, "--input-size", "3"]) == WRONG_FLAGS
        assert "input size must be at least" in capsys.readouterr().err
        assert main([*command, *output, "--input-size", "192"]) == 0, capsys.readouterr().err
        assert read_card(tmp_path / "card.json").input_size == 192

    def test_coco_is_not_downloaded_for_the_demo_model_that_nobody_chose(self, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path))
        monkeypatch.setenv(SERVER_VARIABLE, "http://127.0.0.1:1")
        assert main(["calibrate", "coco"]) == WRONG_FLAGS
        assert "first run: text2seg checkpoints download base" in capsys.readouterr().err

    def test_a_card_is_worse_if_the_intervals_do_not_overlap(self):
        def card(value: float) -> ModelCard:
            score = partial(Score, measure=calibration.IOU, value=value)
            usual = Score(method="uncalibrated", measure=calibration.IOU, value=0.5, low=0.4, high=0.6)
            return ModelCard(scores=(usual, score(method="calibrated", low=value - 0.1, high=value + 0.1)))

        assert [is_worse(card(value)) for value in (0.2, 0.35, 0.5, 0.9)] == [True, False, False, False]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "give --images and --annotations, or --download"),
            (["--download", "--images", "."], "or --download"),
            (["--images", "."], "need each other"),
            (["--download", "--predictions", "x.json"], "for one method"),
            (["--download", "--count", "0"], "count must be 1 or more"),
        ],
    )
    def test_flags_of_the_benchmark_that_do_not_fit_together(self, arguments, says, capsys):
        assert main(["benchmark", "coco", *arguments]) == WRONG_FLAGS
        assert says in capsys.readouterr().err
