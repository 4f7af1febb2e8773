"""Rendered scenes with their ground truth, and the agreement of results with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg import Settings, Text2Seg
from text2seg.coco import rle
from text2seg.coco.dataset import read_dataset
from text2seg.coco.reader import check_dataset
from text2seg.coco.truth import category_names, truth_images
from text2seg.grids import iou, minmax, resize
from text2seg.io.images import load_image
from text2seg.records import Segment, Segmentation
from text2seg.session import Session

Mask = NDArray[np.bool_]
Scene = tuple[Session, dict[str, list[Mask]]]

SHOWS_SOMETHING, SLACK = 0.3, 0.05
"""A choice among candidates counts only if one of them has at least the first IoU. It is right if no other candidate's
IoU is higher by more than the second."""


def read_truth(folder: Path, limit: int | None = None) -> dict[str, Any]:
    """Read the dataset of a rendered split; with `limit`, only its first images."""
    truth = read_dataset(folder / "dataset.json")
    return of_images(truth, {image["id"] for image in truth["images"][:limit]})


def of_images(truth: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """Return the part of a dataset with these images."""
    return truth | {
        "images": [each for each in truth["images"] if each["id"] in ids],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in ids],
    }


def scenes_of(models: Text2Seg, folder: Path, limit: int | None = None) -> Iterator[Scene]:
    """Yield a session for each scene with things, and the true masks of the things by name."""
    truth = check_dataset(read_truth(folder, limit), str(folder))
    names = category_names(truth)
    for shown in tqdm(list(truth_images(truth)), desc=folder.name, unit="scene"):
        things = {names[number]: list(map(rle.decode, shown.true_of(number))) for number in shown.present()}
        if things:
            image = load_image(folder / shown.file_name, image_id=shown.image_id, file_name=shown.file_name)
            yield models.open(image), dict(sorted(things.items()))


def read_presence(folder: Path, names: Sequence[str]) -> tuple[list[str], Mask]:
    """Return the files of a rendered split and which of the named things each image shows, bool [images, things]."""
    truth = check_dataset(read_dataset(folder / "dataset.json"), str(folder))
    column = {number: list(names).index(name) for number, name in category_names(truth).items()}
    shown = list(truth_images(truth))
    present = np.zeros((len(shown), len(names)), np.bool_)
    for row, each in enumerate(shown):
        present[row, [column[number] for number in each.present()]] = True
    return [each.file_name for each in shown], present


@dataclass
class Agreement:
    """Agreement of results with the truth over all scenes so far; the queries are the things in each scene.

    Attributes:
        levels: thresholds for `of_map`.
        ious: for each pair of a scene and a thing in it, the IoU of the unions of segments and of true masks.
        of_map: for the same pairs, float64 [1 + levels], the IoU of the map above its mean and above each level.
        found: for each true thing, whether a segment of its query covers it with an IoU of 0.5.
        matched: for each segment, whether it covers a true thing in this way.
        right: for each segment whose candidates show something, whether the right candidate was chosen.
    """

    levels: Sequence[float] = ()
    ious: list[float] = field(default_factory=list)
    of_map: list[NDArray[np.float64]] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    matched: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, models: Text2Seg, scene: Scene, settings: Settings) -> Segmentation:
        """Segment a scene with the things in it as queries, and add its agreement."""
        session, things = scene
        (answer,) = models.segment_sessions([session], list(things), settings)
        for name, truths in things.items():
            true, segments = np.any(truths, axis=0), answer.of(name)
            self.ious.append(iou(np.any([np.zeros_like(true), *(each.mask for each in segments)], axis=0), true))
            hits = [[iou(mask, segment.mask) >= 0.5 for segment in segments] for mask in truths]
            table = np.array(hits, bool).reshape(len(truths), len(segments))
            self.found += table.any(1).tolist()
            self.matched += table.any(0).tolist()
            for segment in segments:
                ious = candidate_ious(models, session, segment, truths)
                if ious.max() >= SHOWS_SOMETHING and segment.chosen < len(ious):
                    self.right.append(bool(ious[segment.chosen] >= ious.max() - SLACK))
        self.of_map += map_ious(answer, things, self.levels)
        return answer


def agreement(models: Text2Seg, scenes: Iterable[Scene], settings: Settings) -> Agreement:
    """Return the agreement over scenes."""
    found = Agreement()
    for scene in scenes:
        found.add(models, scene, settings)
    return found


def candidate_ious(models: Text2Seg, session: Session, segment: Segment, truths: Sequence[Mask]) -> NDArray[np.float64]:
    """Return the IoU of each of SAM's candidates with the true thing that fits it best, at the resolution of SAM's
    low-resolution masks."""
    masks = models.sam.coarse_masks(session.embedding, segment.candidates)
    hw = masks.shape[1:]
    coarse = [cv2.resize(each.astype(np.float32), hw[::-1], interpolation=cv2.INTER_AREA) > 0.5 for each in truths]
    return np.array([max(iou(mask, each) for each in coarse) for mask in masks])


def map_ious(found: Segmentation, things: dict[str, list[Mask]], levels: Sequence[float]) -> list[NDArray[np.float64]]:
    """Return, for each thing, the IoU of its min-max map above its mean and above each level, float64 [1 + levels]."""
    scores = minmax(found.maps.scores)
    full = resize(scores, found.image.hw)
    rows = []
    for name, truths in things.items():
        number = found.maps.queries.index(name)
        true, floor = np.any(truths, axis=0), scores[number].mean()
        rows.append(np.array([iou(full[number] > level, true) for level in (floor, *levels)]))
    return rows
