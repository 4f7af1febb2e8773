"""`text2seg calibrate`: the fits in plain numbers, and a card of the demo model from bundled scenes that a server on
this machine offers as COCO val2017."""

from __future__ import annotations

import copy
import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_builders import serving
from sklearn.linear_model import LogisticRegression

from text2seg.calibration import card as calibration
from text2seg.calibration.card import calibrate, single_quality
from text2seg.calibration.fit import equal_error, far_below, fit_choice, fit_presence, interval, sigmoid
from text2seg.cli import main
from text2seg.coco.dataset import read_dataset
from text2seg.coco.download import ARCHIVE, MEMBER, SERVER_VARIABLE
from text2seg.coco.truth import TruthImage, sha256_of_truth
from text2seg.errors import DatasetError, ImageError
from text2seg.evaluation.benchmark import benchmark_coco
from text2seg.model_card import find_card, read_card

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes"
COUNT = 12


@pytest.fixture
def truth() -> dict:
    return copy.deepcopy(read_dataset(SCENES / "dataset.json"))


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The card, page and messages of `calibrate coco` on bundled scenes."""
    folder = tmp_path_factory.mktemp("calibration")
    truth = read_dataset(SCENES / "dataset.json")
    images = [
        {**entry, "file_name": Path(entry["file_name"]).name, "coco_url": f"http://coco/val2017/{number}.jpg"}
        for number, entry in enumerate(truth["images"])
    ]
    crowd = next(each for each in truth["annotations"] if each["image_id"] == images[0]["id"])
    annotations = [{**each, "iscrowd": int(each is crowd)} for each in truth["annotations"]]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(MEMBER, json.dumps({**truth, "images": images, "annotations": annotations}))
    files = {
        f"/val2017/{number}.jpg": (SCENES / entry["file_name"]).read_bytes()
        for number, entry in enumerate(truth["images"])
    }
    with pytest.MonkeyPatch.context() as patch, serving(b"") as server:
        patch.setenv("NO_PROXY", "*")
        patch.setenv("TEXT2SEG_CHECKPOINTS", str(folder / "checkpoints"))
        patch.setenv(SERVER_VARIABLE, server.url.removesuffix("/weights.pt"))
        patch.chdir(folder)
        server.files = {f"/{ARCHIVE}": buffer.getvalue(), **files}
        command = ["calibrate", "coco", "--images", str(COUNT), "--model", "demo"]
        assert main(command) == 0
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


class TestFailures:
    def test_images_that_fail_are_counted_in_every_pass_and_left_out(self, demo, truth, monkeypatch):
        """One image has another size than its truth says. Another one is gone after the first pass, a third one after
        the second."""
        names = [each["file_name"] for each in truth["images"][:13]]
        truth["images"] = truth["images"][:13]
        truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] <= 13]
        opened, load = Counter(), TruthImage.load

        def load_or_fail(shown, path):
            opened[shown.file_name] += 1
            if opened[shown.file_name] > {names[1]: 1, names[2]: 2}.get(shown.file_name, 9):
                raise ImageError(f"{path} is gone")
            if shown.file_name == names[0]:
                shown = replace(shown, hw=(shown.hw[0] + 1, shown.hw[1]))
            return load(shown, path)

        monkeypatch.setattr(TruthImage, "load", load_or_fail)
        models = demo.with_card(demo.card.model_copy(update={"name": "another pair"}))
        result = calibrate(models, truth, SCENES, data="x")
        assert [each.file_name for each in result.failures] == names[:3]
        assert "rows and columns, but its dataset says" in result.failures[0].message
        assert result.failures[1].message == f"{names[1]} is gone"
        assert result.card.calibrated_on.images == 12
        assert {len(rows) for rows in result.scores.values()} == {result.images} == {10}
        assert result.card.name == "demo"

    def test_an_image_of_another_size_is_a_failure_of_the_benchmark(self, demo, truth):
        truth["images"] = [entry | {"width": entry["width"] + (entry["id"] == 1)} for entry in truth["images"][:2]]
        kept = [each for each in truth["annotations"] if each["image_id"] <= 2]
        truth["annotations"] = [
            each | {"segmentation": [[1, 1, 50, 1, 50, 50]]} if each["image_id"] == 1 else each for each in kept
        ]
        (failure,) = benchmark_coco(demo, truth, SCENES).failures
        assert "rows and columns, but its dataset says" in failure.message


class TestErrors:
    def test_a_truth_without_a_known_category(self, demo, truth):
        truth["categories"] = [{"id": 1, "name": "zebra"}, {"id": 2, "name": "unicorn"}]
        truth["annotations"] = []
        with pytest.raises(DatasetError, match="no category that these models know; its categories are unicorn, zebra"):
            calibrate(demo, truth, SCENES, data="x")

    def test_a_folder_without_the_images(self, demo, truth, tmp_path):
        with pytest.raises(DatasetError, match=f"{tmp_path}: none of the 24 images of the ground truth is there"):
            calibrate(demo, truth, tmp_path, data="x")

    def test_too_few_images_are_counted(self, demo, truth):
        truth["images"] = truth["images"][:3]
        truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] <= 3]
        with pytest.raises(DatasetError, match="only 3 images show a thing that the models know, and 10 are needed"):
            calibrate(demo, truth, SCENES, data="x")

    def test_crowds_alone_count_neither_as_present_nor_as_absent(self, demo, truth, monkeypatch):
        shown = {each["category_id"] for each in truth["annotations"] if each["image_id"] == 1}
        truth["images"] = truth["images"][:2]
        kept = [each for each in truth["annotations"] if each["image_id"] <= 2]
        truth["annotations"] = [{**each, "iscrowd": int(each["image_id"] == 1)} for each in kept]
        gathered = []
        keep = calibration._gather_one
        monkeypatch.setattr(calibration, "_gather_one", lambda *a, **k: gathered.append(keep(*a, **k)) or gathered[-1])
        with pytest.raises(DatasetError, match="only 1 image shows"):
            calibrate(demo, truth, SCENES, data="x")
        assert len(gathered[0].logits) == len(demo.closed_vocabulary.names) - len(shown)
        assert not gathered[0].present.any()

    @pytest.mark.parametrize(
        ("arguments", "says", "status"),
        [
            (["coco", "--images", "photos"], "with coco, --images is the number of images to download", 2),
            (["coco", "--images", "0"], "with coco, --images is the number of images to download", 2),
            (["nowhere.json", "--images", "."], "nowhere.json", 1),
            ([str(SCENES / "dataset.json")], "dataset.json? Add --images FOLDER", 2),
            ([str(SCENES / "dataset.json"), "--images", "500"], "500, given as --images, is not an existing folder", 1),
            ([str(SCENES / "dataset.json"), "--images", "."], "none of the 24 images of the ground truth is there", 1),
        ],
    )
    def test_bad_input_is_one_line_and_nothing_is_written(self, arguments, says, status, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert main(["calibrate", *arguments, "--model", "demo"]) == status
        assert says in capsys.readouterr().err.splitlines()[-1]
        assert not list(tmp_path.rglob("*.html"))
        assert not list(tmp_path.rglob("*card.json"))

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
        assert main(["benchmark", "coco", *arguments]) == 2
        assert says in capsys.readouterr().err
