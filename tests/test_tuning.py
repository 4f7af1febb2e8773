"""Choosing thresholds: the rules on curves made by hand, the sweep with a fake that is right at one threshold only,
and the whole with the demo model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import builders
import numpy as np
import pytest
from PIL import Image as PilImage

from text2seg.calibration.thresholds import (
    STABLE_THRESHOLDS,
    THRESHOLDS,
    Curve,
    Tuned,
    Tuning,
    best,
    most_stable,
    plot,
    tune_by_stability,
    tune_by_truth,
)
from text2seg.cli import main
from text2seg.cli.tune import _show
from text2seg.coco import polygon, rle
from text2seg.coco.dataset import read_dataset
from text2seg.config import Settings
from text2seg.errors import OutputError, SettingsError, Text2SegError
from text2seg.io.names import MOST_LISTED
from text2seg.ontology import Ontology, ontology_of_queries, read_ontology
from text2seg.records import Segmentation

SCENES = Path("text2seg/demo/scenes/new-scenes")


def curve_of(*scores: float, at: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)) -> Curve:
    return Curve(at[: len(scores)], scores, 3)


@pytest.mark.parametrize(
    ("scores", "current", "chosen"),
    [
        ((0.1, 0.2, 0.9, 0.2, 0.1), 0.8, 0.5),
        ((0.1, 0.9, 0.9, 0.9, 0.1), 0.8, 0.6),  # of equals the nearest to the one in use
        ((0.9, 0.1, 0.1, 0.1, 0.9), 0.5, 0.3),  # as near: the lower
        ((0.1, 0.903, 0.2, 0.9, 0.1), 0.8, 0.6),  # a few pixels do not count
        ((0.1, 0.91, 0.2, 0.9, 0.1), 0.8, 0.4),
        ((0.0, 0.0, 0.0, 0.0, 0.0), 0.8, None),
        ((), 0.8, None),
    ],
)
def test_best_takes_the_threshold_of_the_highest_score(scores, current, chosen):
    assert best(curve_of(*scores), current) == chosen


STEPS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ((0.2, 0.9, 0.9, 0.3, 0.2), 0.5),  # 0.4 to 0.6
        ((0.9, 0.2, 0.9, 0.9, 0.9), 0.6),  # the longer of two: 0.5 to 0.8
        ((0.86, 0.86, 0.2, 0.9, 0.9), 0.7),  # as long: the one that agrees better
        ((0.9, 0.9, 0.2, 0.9, 0.9), 0.4),  # as good: the lower
        ((0.2, 0.9, 0.84, 0.2, 0.2), 0.4),  # 0.84 is too far from the best
        ((0.3, 0.4, 0.49, 0.4, 0.3), None),
        ((), None),
    ],
)
def test_most_stable_takes_the_middle_of_the_plateau(scores, chosen):
    assert most_stable(curve_of(*scores, at=(0.35, 0.45, 0.55, 0.65, 0.75)), STEPS) == chosen


class FakeModels:
    """Models that find a box, as much too wide as the threshold is far from `right[name]`, but nothing for a query in
    `absent`. They count the images that they encode."""

    def __init__(self, right, absent=()):
        self.right, self.absent, self.opened, self.asked = right, set(absent), 0, []
        self.settings = Settings()

    def check(self, queries, settings):
        self.checked = [query.name for query in queries]

    def open(self, image):
        self.opened += 1
        return SimpleNamespace(image=image, segment=lambda queries, settings: self.found(image, queries))

    def found(self, image, queries):
        self.asked.append([query.name for query in queries])
        segments = [
            builders.segment(query.name, self.mask(query, half))
            for query in queries
            if query.name not in self.absent
            for half in (0, 1)
        ]
        return Segmentation(image, tuple(segments), builders.maps(self.asked[-1]))

    def mask(self, query, half):
        """One half of the true box, as much too wide as the threshold is off."""
        off = round(abs(query.threshold - self.right[query.name]) * 20)
        return builders.box_mask(left=10 + 6 * half, width=6 + off * half)


def folder(tmp_path: Path, count: int = 3) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    for number in range(count):
        PilImage.fromarray(builders.pixels(seed=number)).save(made / f"{number}.png")
    return made


def truth(names: tuple[str, ...], shows: list[tuple[int, str]], count: int = 3) -> dict:
    """Dataset with two annotations for each object, the halves of a box, one of them a polygon."""
    halves = (builders.box_mask(left=10, width=6), builders.box_mask(left=16, width=6))
    return {
        "images": [{"id": n + 1, "file_name": f"elsewhere/{n}.png", "height": 24, "width": 32} for n in range(count)],
        "annotations": [
            {"id": 1, "image_id": n + 1, "category_id": names.index(name) + 7, "segmentation": mask}
            for n, name in shows
            for mask in (rle.encode(halves[0]), polygon.encode(halves[1]))
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=7)],
    }


def test_tuning_by_truth_finds_the_best_threshold_of_each_category_and_encodes_images_once(tmp_path):
    models = FakeModels({"dog": 0.45, "cat": 0.9, "cow": 0.5})
    dataset = truth(("car", "dog", "cat"), [(0, "dog"), (0, "cat"), (1, "dog"), (2, "car")])
    tuning = tune_by_truth(models, ontology_of_queries("dog, cat, cow"), folder(tmp_path), dataset)
    dog, cat, cow = tuning.categories
    assert (dog.chosen, dog.curve.images, dog.score(0.45)) == (0.45, 2, 1)
    assert (cat.chosen, cat.curve.images, cat.score(0.9)) == (0.9, 1, 1)
    assert (cow.chosen, cow.curve.images, cow.curve.scores) == (None, 0, ())
    assert dog.used == 0.8
    assert dog.score(0.8) == pytest.approx(12 / 19)  # seven columns too many
    assert tuning.changes() == {"dog": 0.45, "cat": 0.9}
    assert (models.opened, tuning.images, tuning.failures) == (2, 2, ())  # the third image shows nothing wanted
    assert models.asked == [["dog", "cat"]] * len(THRESHOLDS) + [["dog"]] * len(THRESHOLDS)


def test_the_current_threshold_of_a_category_is_the_one_in_use(tmp_path):
    (category,) = ontology_of_queries("dog").categories
    ontology = Ontology((replace(category, threshold=0.45),))
    dataset = truth(("dog",), [(0, "dog")])
    tuning = tune_by_truth(FakeModels({"dog": 0.45}), ontology, folder(tmp_path), dataset)
    assert tuning.categories[0].used == 0.45
    assert tuning.changes() == {}


def test_a_category_that_is_never_found_is_named_and_keeps_its_threshold(tmp_path):
    dataset = truth(("dog",), [(0, "dog")])
    models = FakeModels({"dog": 0.5}, absent=["dog"])
    tuning = tune_by_truth(models, ontology_of_queries("dog"), folder(tmp_path), dataset)
    assert (tuning.never_found(), tuning.changes()) == (("dog",), {})


def test_each_damaged_image_is_one_failure_and_missing_images_are_counted(tmp_path):
    images = folder(tmp_path)
    (images / "0.png").write_bytes(b"broken")
    (images / "1.png").unlink()
    dataset = truth(("dog",), [(0, "dog"), (1, "dog"), (2, "dog")])
    tuning = tune_by_truth(FakeModels({"dog": 0.5}), ontology_of_queries("dog"), images, dataset)
    (failure,) = tuning.failures
    assert failure.message.count("0.png") == 1
    assert len(failure.message.splitlines()) == 1
    assert (tuning.missing, tuning.images, tuning.categories[0].curve.images) == (1, 2, 1)


def test_limit_takes_the_first_images(tmp_path):
    dataset = truth(("dog",), [(0, "dog"), (1, "dog"), (2, "dog")])
    models = FakeModels({"dog": 0.5})
    assert tune_by_truth(models, ontology_of_queries("dog"), folder(tmp_path), dataset, limit=2).images == 2
    assert models.opened == 2


def test_a_truth_that_does_not_fit_raises(tmp_path):
    models, ontology, images = FakeModels({"dog": 0.5}), ontology_of_queries("dog"), folder(tmp_path)
    with pytest.raises(Text2SegError, match="no image with dog; its own categories are Dog"):
        tune_by_truth(models, ontology, images, truth(("Dog",), [(0, "Dog")]))
    with pytest.raises(Text2SegError, match=r"no image with dog$"):
        tune_by_truth(models, ontology, images, truth(("dog", "cat"), [(0, "cat")]))
    dataset = truth(("dog",), [(0, "dog"), (1, "dog")])
    with pytest.raises(Text2SegError, match=r"no image of the ground truth is there, such as elsewhere/0\.png"):
        tune_by_truth(models, ontology, tmp_path, dataset)
    dataset["images"][1]["file_name"] = "other/0.png"
    with pytest.raises(Text2SegError, match="match one file"):
        tune_by_truth(models, ontology, images, dataset)
    del dataset["images"][0]["file_name"]
    with pytest.raises(Text2SegError, match="file_name"):
        tune_by_truth(models, ontology, images, dataset)


class Plateau(FakeModels):
    """Models that give one mask from `low` to `high`, and another mask at each other threshold."""

    def mask(self, query, half):
        low, high = self.right[query.name]
        at = query.threshold
        width = 8 if low <= at <= high else 1 + round(at * 20) % 2 * 20
        return builders.box_mask(left=5, width=width)


def test_tuning_by_stability_chooses_the_middle_of_the_plateau(tmp_path):
    models = Plateau({"dog": (0.65, 0.75), "cat": (0.8, 0.95), "cow": (0.6, 0.95), "pig": (0, 0)}, absent=["cow"])
    images = sorted(folder(tmp_path).iterdir())
    tuning = tune_by_stability(models, ontology_of_queries("dog, cat, cow, pig"), images)
    assert [each.chosen for each in tuning.categories] == [0.7, 0.85, None, None]
    assert [each.curve.images for each in tuning.categories] == [3, 3, 0, 3]
    assert tuning.categories[0].curve.at[:2] == (0.625, 0.675)
    assert models.opened == 3
    assert len(models.asked) == 3 * len(STABLE_THRESHOLDS)
    assert not tuning.by_truth
    assert tuning.never_found() == ()


def tuning_of(*names: str) -> Tuning:
    curves = [curve_of(0.1, 0.5, 0.9, 0.4, 0.2), Curve((), (), 0)]
    tuned = [Tuned(name, 0.8, 0.5 if k % 2 == 0 else None, curves[k % 2]) for k, name in enumerate(names)]
    return Tuning(tuple(tuned), 3, True, (), 3)


def test_the_command_shows_the_categories_whose_thresholds_change_most(capsys):
    names = [f"thing {number}" for number in range(60)]
    tuning = tuning_of(*names)
    unchanged = tuning.categories[1:20:2]
    tuned = replace(tuning, categories=(*tuning.categories[::2], *unchanged, never_found("ghost")))
    _show(tuned, verbose=False)
    said, errors = capsys.readouterr()
    assert [line.split()[2] for line in said.splitlines() if "│ thing" in line] == [str(n) for n in range(0, 40, 2)]
    assert "21 more categories; --verbose shows all" in said
    assert "no image of the ground truth shows thing 1, thing 3, thing 5 and 7 more, so nothing was chosen" in errors
    assert errors.endswith("\nnot found at any threshold: ghost; check the wordings and the presence\n")
    _show(replace(tuned, categories=tuple(never_found(name) for name in names)), verbose=False)
    assert f"and {60 - MOST_LISTED} more; check" in capsys.readouterr().err
    _show(tuned, verbose=True)
    said = capsys.readouterr().out
    assert said.count("│ thing") == 40
    assert "more" not in said


def never_found(name: str) -> Tuned:
    return Tuned(name, 0.8, None, curve_of(0, 0, 0))


@pytest.mark.parametrize("count", [1, 5, 8])
def test_the_plot_shows_each_category_and_is_deterministic(tmp_path, count):
    names = ["a $x_1 & \\frac", "größe", *map(str, range(count))][:count]
    first = plot(tuning_of(*names), tmp_path / "a" / "curves.png").read_bytes()
    assert plot(tuning_of(*names), tmp_path / "b.PNG").read_bytes() == first
    pixels = np.asarray(PilImage.open(tmp_path / "b.PNG").convert("RGB")).astype(int)
    orange = (abs(pixels - (0xD9, 0x5F, 0x02)).max(-1) < 40).sum(0) > pixels.shape[0] // 12
    lines = np.flatnonzero(np.diff(orange.astype(int), prepend=0) == 1)
    assert len(lines) == len({k % 4 for k in range(0, count, 2)})  # one in each column with a choice


def test_a_plot_in_another_file_format_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"must end in \.png"):
        plot(tuning_of("dog"), tmp_path / "curves.pdf")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"curves\.png"):
        plot(tuning_of("dog"), tmp_path / "file" / "curves.png")


@pytest.fixture
def job(tmp_path):
    """Ontology of the objects in the first scenes, and the folder of the scenes."""
    dataset = read_dataset(SCENES / "dataset.json")
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    shown = list(dict.fromkeys(names[a["category_id"]] for a in dataset["annotations"] if a["image_id"] in (1, 2)))
    lines = "".join(f"  - name: {name}  # a drawing\n    threshold: 0.31\n\n" for name in shown)
    path = tmp_path / "things.yaml"
    path.write_text(f"# mine\ncategories:\n{lines}", encoding="utf-8")
    images = tmp_path / "images"
    images.mkdir()
    for image in sorted((SCENES / "images").iterdir())[:2]:
        shutil.copy(image, images)
    return path, images


def test_the_command_with_truth_writes_better_thresholds(job, tmp_path, capsys):
    path, images = job
    before = path.read_text(encoding="utf-8")
    image = tmp_path / "curves.png"
    command = ["tune", "--ontology", str(path), str(images), "--truth", str(SCENES / "dataset.json")]
    command += ["--device", "cpu", "--limit", "2"]
    assert main([*command, "--plot", str(image)]) == 0
    assert "not written yet" in capsys.readouterr().out
    assert PilImage.open(image).format == "PNG"
    assert path.read_text(encoding="utf-8") == before
    assert main([*command, "--write"]) == 0
    assert "written to" in capsys.readouterr().out
    after = path.read_text(encoding="utf-8")
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert changed
    assert all(line.startswith("    threshold: ") for line in changed)
    assert len(after.splitlines()) == len(before.splitlines())
    assert after.count("# a drawing") == before.count("# a drawing")


def test_the_command_without_truth_skips_damaged_images(job, capsys):
    path, images = job
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    assert main(["tune", "--ontology", str(path), str(images), "--device", "cpu", "--write"]) == 3
    text, errors = capsys.readouterr()
    assert [line for line in errors.splitlines() if line.startswith("failed:")] == [
        next(line for line in errors.splitlines() if "broken.jpg" in line)
    ]
    assert "written to" in text
    assert any(category.threshold != 0.31 for category in read_ontology(path).categories)


def test_usage_errors_are_reported_before_a_model_is_loaded(job, tmp_path, capsys):
    path, images = job
    (tmp_path / "empty").mkdir()
    (tmp_path / "gt.json").write_text(json.dumps([]), encoding="utf-8")
    for arguments, says in [
        ([str(images), "--ontology", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        ([str(images), "--ontology", str(path), "--plot", "curves.pdf"], "must end in .png"),
        ([str(images), "--ontology", str(path), "--limit", "0"], "limit must be 1 or more"),
        ([str(images), "--ontology", str(path), "--truth", str(tmp_path / "gt.json")], "not a COCO dataset"),
        ([str(tmp_path / "empty"), "--ontology", str(path)], "no file in it"),
    ]:
        assert main(["tune", *arguments]) == (2 if {"--limit", "--plot"} & {*arguments} else 1)
        assert says in capsys.readouterr().err
