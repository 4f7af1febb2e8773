"""Recognition and segmentation scored over COCO datasets: raw CLIP against surgery, by `text2seg.evaluation`.

Predictions are COCO files like any other's: `attributes.presence` of an image holds the score of each category, an
annotation is the pixels of one label. Written to a folder, `text2seg evaluate` gives the same numbers for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from text2seg.coco import rle
from text2seg.coco.dataset import dataset_info, numbered, read_dataset, write_dataset
from text2seg.errors import OutputError
from text2seg.evaluation import align, score_multilabel, score_semantic
from text2seg.explain.catalogue.recognition import ScoresSettings
from text2seg.explain.labelled import Labelled, labelled_sets
from text2seg.explain.multilabel import labels_of, recognise
from text2seg.explain.semantic import label_map, label_texts
from text2seg.explain.tool import Cell, Panel, Progress, Result, Table
from text2seg.io.files import check_writable, exists
from text2seg.io.images import load_image
from text2seg.pipeline import Text2Seg
from text2seg.render.bars import Bar, bars
from text2seg.render.colours import colour_of

Json = dict[str, Any]
Row = tuple[Cell, ...]

RULES = ("raw", "surgery", "presence")
COLUMNS = ("rule", "mAP", "mIoU", "mIoU without background", "pixel accuracy")
NOTE = (
    "mAP: recognition, images ranked for each label by the cosines of CLS (raw), by these after feature surgery over "
    "all labels (surgery), by text2seg's own measure from the patches (presence). mIoU: the highest label at every "
    "pixel, by CLIP's own patches (raw) and by those of architecture surgery, without feature surgery (surgery)."
)


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """A dataset: what to call it, its ground truth, and the features of its categories' texts and of the background,
    float32 [categories + backgrounds, C]."""

    name: str
    labelled: Labelled
    truth: Json
    texts: Tensor

    @property
    def categories(self) -> Mapping[int, str]:
        return self.labelled.categories


@dataclass(slots=True)
class Predictions:
    """What one rule says of a dataset, image by image."""

    images: list[Json] = field(default_factory=list)
    annotations: list[Json] = field(default_factory=list)

    def add(self, entry: Json, scores: Mapping[str, float], labels: NDArray[np.int64], ids: Sequence[int]) -> None:
        """Take in one image: the score of each category, and `labels` int64 [H, W], the place in `ids` of each
        pixel's category; all beyond are background."""
        self.images.append({**entry, "attributes": {"presence": dict(scores)}})
        found = [
            {"category_id": ids[at], "segmentation": rle.encode(labels == at), "iscrowd": 0, "score": 1.0}
            for at in np.unique(labels).tolist()
            if at < len(ids)
        ]
        self.annotations += numbered(found, first=len(self.annotations) + 1, image_id=entry["id"])

    def dataset(self, truth: Json, rule: str) -> Json:
        return {
            "info": dataset_info({"rule": rule}),
            "licenses": [],
            "images": self.images,
            "annotations": self.annotations,
            "categories": truth["categories"],
        }


def run(models: Text2Seg, images: Sequence[Any], settings: ScoresSettings, progress: Progress) -> Result:
    """A table for each dataset, a row for each rule. Stopped early, it scores the images that were done.

    Raises:
        DatasetError: a ground truth cannot be read or is empty.
        ImageError: an image of it is not where it should be.
        QueryError: it has but one category, or one that the models do not know.
        OutputError: predictions are there already, or cannot be written.
    """
    grounds = _grounds(models, settings)
    _check_folder(settings.predictions, grounds)
    said = [{rule: Predictions() for rule in RULES} for _ in grounds]
    jobs = [(number, entry) for number, ground in enumerate(grounds) for entry in ground.truth["images"]]
    for number, entry in progress.each(jobs, "images"):
        _look(models, grounds[number], entry, settings.size, said[number])
    panels, tables, notes = [], [], [NOTE]
    for ground, by_rule in zip(grounds, said, strict=True):
        seen = [entry["id"] for entry in by_rule["raw"].images]
        if len(seen) < len(ground.truth["images"]):
            notes.append(f"{ground.name}: stopped after {len(seen)} of {len(ground.truth['images'])} images")
        if not seen:
            continue
        datasets = {rule: found.dataset(ground.truth, rule) for rule, found in by_rule.items()}
        truth = _restricted(ground.truth, seen)
        rows = tuple(_scored(truth, dataset, rule) for rule, dataset in datasets.items())
        title = f"{ground.name}: {len(seen)} image{'s' * (len(seen) != 1)}, {len(ground.categories)} labels"
        tables.append(Table(title, COLUMNS, rows))
        panels.append(Panel(title, bars(_bars(rows))))
        if settings.predictions is not None:
            for rule, dataset in datasets.items():
                write_dataset(dataset, _file(settings.predictions, ground, rule))
    return Result("Recognition and segmentation: raw CLIP against surgery", tuple(panels), tuple(tables), tuple(notes))


def _grounds(models: Text2Seg, settings: ScoresSettings) -> list[Ground]:
    """The datasets, checked before any image is looked at; those whose folders are called the same get numbers."""
    grounds: list[Ground] = []
    for labelled in labelled_sets(settings.dataset, settings.images):
        before = sum(each.labelled.name == labelled.name for each in grounds)
        name = f"{labelled.name}_{before + 1}" if before else labelled.name
        names = tuple(labelled.categories.values())
        labels_of(models, names)
        texts = label_texts(models, names, settings.background)
        grounds.append(Ground(name, labelled, read_dataset(labelled.file), texts))
    return grounds


def _look(models: Text2Seg, ground: Ground, entry: Json, size: int | None, said: dict[str, Predictions]) -> None:
    """One image by all rules. CLS is the same by all, so only patches are computed twice."""
    image = load_image(ground.labelled.finder.find(str(entry.get("file_name", ""))))
    names, ids = tuple(ground.categories.values()), tuple(ground.categories)
    texts, of_labels = ground.texts, ground.texts[: len(ground.categories)]
    nothing = np.full(image.hw, len(names), np.int64)
    for rule in ("raw", "surgery"):
        (tokens,) = models.clip.encode_images([image], size=size, architecture=rule)
        scores = recognise(tokens.features[0], of_labels, surgery=rule == "surgery").tolist()
        said[rule].add(entry, dict(zip(names, scores, strict=True)), label_map(tokens, texts, len(names)), ids)
    presence = models.clip.patch_presence(tokens, names).max((1, 2)).tolist()
    said["presence"].add(entry, dict(zip(names, presence, strict=True)), nothing, ids)


def _restricted(truth: Json, seen: Sequence[int]) -> Json:
    """The ground truth of only these images."""
    kept = set(seen)
    return {
        **truth,
        "images": [entry for entry in truth["images"] if entry["id"] in kept],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in kept],
    }


def _scored(truth: Json, predicted: Json, rule: str) -> Row:
    aligned = align(truth, predicted)
    recognition = score_multilabel(aligned).mean_ap
    if rule == "presence":
        return rule, recognition, None, None, None
    of_pixels = score_semantic(aligned)
    return rule, recognition, of_pixels.miou, of_pixels.miou_without_background, of_pixels.pixel_accuracy


def _bars(rows: Sequence[Row]) -> list[Bar]:
    lines = []
    for place, what in ((1, "mAP"), (2, "mIoU")):
        for row in rows:
            rule, value = str(row[0]), row[place]
            if isinstance(value, float):
                lines.append(Bar(f"{what}, {rule}", value, f"{value:.3f}", colour_of(rule)))
    return lines


def _file(folder: Path, ground: Ground, rule: str) -> Path:
    return folder / f"{ground.name}_{rule}.json"


def _check_folder(folder: Path | None, grounds: Sequence[Ground]) -> None:
    """Find out now, not after the last image."""
    for path in [_file(folder, ground, rule) for ground in grounds for rule in RULES] if folder else ():
        if exists(path, OutputError):
            raise OutputError(f"{path} is there already; choose another folder for the predictions")
        check_writable(path, flag="--predictions")
