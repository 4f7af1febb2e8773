"""Recognition and segmentation scored on COCO datasets: raw CLIP against surgery, by `text2seg.evaluation`.

Predictions are ordinary COCO files: `attributes.presence` of an image holds the score of each category, and an
annotation holds all pixels of one label. `text2seg evaluate` gives the same numbers for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import OutputError
from text2seg.explain.estimate import Work
from text2seg.explain.recognition import label_map, label_texts, labels_of, recognise
from text2seg.explain.tool import (
    Cell,
    Fit,
    InputSettings,
    Panel,
    Progress,
    Result,
    Table,
    Tool,
    check_sets,
    fitted,
    freeze_typed,
    unfitted_pixels,
)
from text2seg.io.files import exists
from text2seg.io.images import load_image
from text2seg.io.names import counted
from text2seg.io.writing import check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.explain.labelled import Labelled
    from text2seg.pipeline import Text2Seg
    from text2seg.render.charts import Bar

Json = dict[str, Any]
Row = tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class ScoresSettings(InputSettings):
    """The datasets to score on."""

    dataset: tuple[Path, ...] = ()
    """A COCO ground truth with masks; repeat for more. Default: the demo scenes that come with text2seg."""
    images: Path | None = None
    """Folder of the images. Default: the paths in the dataset, relative to its own folder."""
    background: tuple[str, ...] = ()
    """A label that counts as background, as in `semantic`."""
    predictions: Path | None = None
    """Folder to write the predictions to, as COCO files for `text2seg evaluate`."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        freeze_typed(self, "background")

    def check_given(self) -> None:
        check_sets(self.dataset, self.images)


RULES = ("raw", "surgery", "presence")
COLUMNS = ("rule", "mAP", "mIoU", "mIoU without background", "pixel accuracy")
NOTE = (
    "mAP: for each label, images ranked by the cosines of CLS (raw), by the same cosines after feature surgery over "
    "all labels (surgery), or by patch presence (presence). mIoU: the best label at every pixel, from CLIP's unchanged "
    "patches (raw) or from those of architecture surgery, without feature surgery (surgery). "
    "What a crop cuts off counts as background."
)


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """A dataset to score on.

    `data` is its COCO file, `texts` float32 [categories + backgrounds, C] the features of its categories and of the
    background labels.
    """

    name: str
    labelled: Labelled
    data: Json
    texts: Tensor

    @property
    def categories(self) -> Mapping[int, str]:
        return self.labelled.categories


@dataclass(slots=True)
class Predictions:
    """Predictions of one rule for the images of a dataset."""

    images: list[Json] = field(default_factory=list)
    annotations: list[Json] = field(default_factory=list)

    def add(self, entry: Json, scores: Mapping[str, float], labels: NDArray[np.int64], ids: Sequence[int]) -> None:
        """Add an image.

        Args:
            entry: the image in the COCO file.
            scores: the score of each category.
            labels: int64 [H, W], the index in `ids` of each pixel's category; higher numbers are background.
            ids: the ids of the categories.
        """
        from text2seg.coco import rle
        from text2seg.coco.dataset import numbered

        self.images.append({**entry, "attributes": {"presence": dict(scores)}})
        found = [
            {"category_id": ids[at], "segmentation": rle.encode(labels == at), "iscrowd": 0, "score": 1.0}
            for at in np.unique(labels).tolist()
            if at < len(ids)
        ]
        self.annotations += numbered(found, first=len(self.annotations) + 1, image_id=entry["id"])

    def dataset(self, truth: Json, rule: str) -> Json:
        """Return the predictions as a COCO file with the categories of the truth."""
        from text2seg.coco.dataset import dataset_info

        return {
            "info": dataset_info({"rule": rule}),
            "licenses": [],
            "images": self.images,
            "annotations": self.annotations,
            "categories": truth["categories"],
        }


def recognition_scores(models: Text2Seg, images: Sequence[Any], settings: ScoresSettings, progress: Progress) -> Result:
    """Show a table for each dataset with a row for each rule. If stopped, score the images done so far.

    Raises:
        DatasetError: a ground truth cannot be read or is empty.
        ImageError: an image of a dataset is missing or cannot be read.
        QueryError: a dataset has only one category, or one that the models do not know.
        OutputError: a file of predictions exists already or cannot be written.
    """
    from text2seg.coco.dataset import write_dataset
    from text2seg.render.charts import bars

    truths = _ground_truths(models, settings)
    _check_folder(settings.predictions, truths)
    predictions = [{rule: Predictions() for rule in RULES} for _ in truths]
    jobs = [(number, entry) for number, truth in enumerate(truths) for entry in truth.data["images"]]
    for number, entry in progress.each(jobs, "images"):
        _predict(models, truths[number], entry, settings.fit, predictions[number])
    panels, tables, notes = [], [], [NOTE]
    for truth, by_rule in zip(truths, predictions, strict=True):
        done = [entry["id"] for entry in by_rule["raw"].images]
        if len(done) < len(truth.data["images"]):
            notes.append(f"{truth.name}: stopped after {len(done)} of {len(truth.data['images'])} images")
        if not done:
            continue
        datasets = {rule: found.dataset(truth.data, rule) for rule, found in by_rule.items()}
        restricted = _restricted(truth.data, done)
        rows = tuple(_scored(restricted, dataset, rule) for rule, dataset in datasets.items())
        title = f"{truth.name}: {counted(len(done), 'image')}, {counted(len(truth.categories), 'label')}"
        tables.append(Table(title, COLUMNS, rows))
        panels.append(Panel(title, bars(_bars(rows))))
        if settings.predictions is not None:
            for rule, dataset in datasets.items():
                write_dataset(dataset, _file(settings.predictions, truth, rule))
    return Result("Recognition and segmentation: raw CLIP against surgery", tuple(panels), tuple(tables), tuple(notes))


def _work(models: Text2Seg, images: int, settings: ScoresSettings) -> Work:
    from text2seg.explain.labelled import labelled_sets

    sets = labelled_sets(settings.dataset, settings.images)
    return Work(clip_images=2 * sum(len({pair.scene.image_id for pair in each.pairs}) for each in sets))  # both rules


RECOGNITION_SCORES = Tool(
    "recognition-scores",
    "Recognition scores",
    "Multi-label recognition and semantic segmentation scored on COCO datasets, raw CLIP against surgery.",
    ScoresSettings,
    recognition_scores,
    "none",
    _work,
)


def _ground_truths(models: Text2Seg, settings: ScoresSettings) -> list[GroundTruth]:
    """Read and check the datasets before any image is predicted. Datasets of the same name get a number."""
    from text2seg.coco.dataset import read_dataset
    from text2seg.explain.labelled import labelled_sets

    truths: list[GroundTruth] = []
    for labelled in labelled_sets(settings.dataset, settings.images):
        before = sum(each.labelled.name == labelled.name for each in truths)
        name = f"{labelled.name}_{before + 1}" if before else labelled.name
        names = tuple(labelled.categories.values())
        labels_of(models, names)  # for its checks
        texts = label_texts(models, names, settings.background)
        truths.append(GroundTruth(name, labelled, read_dataset(labelled.file), texts))
    return truths


def _predict(
    models: Text2Seg, truth: GroundTruth, entry: Json, fit: Fit, predictions: Mapping[str, Predictions]
) -> None:
    """Predict one image by all rules and add it to their predictions."""
    image = load_image(truth.labelled.finder.find(str(entry.get("file_name", ""))))
    names, ids = tuple(truth.categories.values()), tuple(truth.categories)
    texts, texts_of_labels = truth.texts, truth.texts[: len(truth.categories)]
    seen = fitted(image, fit)
    nothing = np.full(image.hw, len(names), np.int64)
    for rule in ("raw", "surgery"):
        (tokens,) = models.clip.encode_images([seen], architecture=rule)
        scores = recognise(tokens.features[0], texts_of_labels, surgery=rule == "surgery").tolist()
        labels = unfitted_pixels(label_map(tokens, texts, len(names)), fit, image.hw, len(names))
        predictions[rule].add(entry, dict(zip(names, scores, strict=True)), labels, ids)
    presence = models.clip.patch_presence(tokens, names).max((1, 2)).tolist()
    predictions["presence"].add(entry, dict(zip(names, presence, strict=True)), nothing, ids)


def _restricted(truth: Json, done: Sequence[int]) -> Json:
    """Return the ground truth of these images only."""
    kept = set(done)
    return {
        **truth,
        "images": [entry for entry in truth["images"] if entry["id"] in kept],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in kept],
    }


def _scored(truth: Json, predicted: Json, rule: str) -> Row:
    from text2seg.evaluation import align, score_multilabel, score_semantic

    aligned = align(truth, predicted)
    recognition = score_multilabel(aligned).mean_ap
    if rule == "presence":
        return rule, recognition, None, None, None
    of_pixels = score_semantic(aligned)
    return rule, recognition, of_pixels.miou, of_pixels.miou_without_background, of_pixels.pixel_accuracy


def _bars(rows: Sequence[Row]) -> list[Bar]:
    from text2seg.render.charts import Bar
    from text2seg.render.drawing import colour_of

    lines = []
    for place, what in ((1, "mAP"), (2, "mIoU")):
        for row in rows:
            rule, value = str(row[0]), row[place]
            if isinstance(value, float):
                lines.append(Bar(f"{what}, {rule}", value, f"{value:.3f}", colour_of(rule)))
    return lines


def _file(folder: Path, truth: GroundTruth, rule: str) -> Path:
    return folder / f"{truth.name}_{rule}.json"


def _check_folder(folder: Path | None, truths: Sequence[GroundTruth]) -> None:
    """Raise `OutputError` before the first image if the predictions cannot be written after the last."""
    for path in [_file(folder, truth, rule) for truth in truths for rule in RULES] if folder else ():
        if exists(path, OutputError):
            raise OutputError(f"{path} exists already; choose another folder for the predictions")
        check_writable(path, flag="--predictions")
