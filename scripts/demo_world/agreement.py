"""Rendered scenes with what is truly in them, and how what was found of it agrees."""

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
from text2seg.coco.truth import names_of, shown_in
from text2seg.grids import iou, minmax, resize
from text2seg.io.images import load_image
from text2seg.pipeline import Session
from text2seg.records import Segment, Segmentation

Mask = NDArray[np.bool_]
Scene = tuple[Session, dict[str, list[Mask]]]

SHOWS_SOMETHING, SLACK = 0.3, 0.05
"""Of a region where no candidate has that IoU nothing can be chosen right; a choice is, if none is so much better."""


def read_truth(folder: Path, limit: int | None = None) -> dict[str, Any]:
    """A rendered split, or its first scenes."""
    truth = read_dataset(folder / "dataset.json")
    return of_images(truth, {image["id"] for image in truth["images"][:limit]})


def of_images(truth: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """The part of a dataset that is of these images."""
    return truth | {
        "images": [each for each in truth["images"] if each["id"] in ids],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in ids],
    }


def scenes_of(models: Text2Seg, folder: Path, limit: int | None = None) -> Iterator[Scene]:
    """A session on each scene that shows something, with the true masks of the things in it, by name."""
    truth = check_dataset(read_truth(folder, limit), str(folder))
    names = names_of(truth)
    for shown in tqdm(list(shown_in(truth)), desc=folder.name, unit="scene"):
        things = {names[number]: list(map(rle.decode, shown.true_of(number))) for number in shown.present()}
        if things:
            image = load_image(folder / shown.file_name, image_id=shown.image_id, file_name=shown.file_name)
            yield models.open(image), dict(sorted(things.items()))


@dataclass
class Agreement:
    """Row by row, over all scenes so far, with what is there being known.

    `ious` of the unions and `of_map`, float[1 + levels], of the map above its mean and above each of `levels`: for each
    (scene, thing present). `found`: for
    each true thing, whether a segment of its query covers it with an IoU of 0.5. `wanted`: for each segment, whether it
    does so. `right`: for each segment whose candidates show something, whether the right one was chosen.
    """

    levels: Sequence[float] = ()
    ious: list[float] = field(default_factory=list)
    of_map: list[NDArray[np.float64]] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    wanted: list[bool] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, models: Text2Seg, scene: Scene, settings: Settings) -> Segmentation:
        """Ask one scene for what it shows."""
        session, things = scene
        answer = session.segment(list(things), settings)
        for name, truths in things.items():
            true, segments = np.any(truths, axis=0), answer.of(name)
            self.ious.append(iou(np.any([np.zeros_like(true), *(each.mask for each in segments)], axis=0), true))
            hits = [[iou(mask, segment.mask) >= 0.5 for segment in segments] for mask in truths]
            table = np.array(hits, bool).reshape(len(truths), len(segments))
            self.found += table.any(1).tolist()
            self.wanted += table.any(0).tolist()
            for segment in segments:
                ious = candidate_ious(models, session, segment, truths)
                if ious.max() >= SHOWS_SOMETHING and segment.chosen < len(ious):
                    self.right.append(bool(ious[segment.chosen] >= ious.max() - SLACK))
        self.of_map += map_ious(answer, things, self.levels)
        return answer


def agreement(models: Text2Seg, scenes: Iterable[Scene], settings: Settings) -> Agreement:
    """`Agreement` over scenes."""
    found = Agreement()
    for scene in scenes:
        found.add(models, scene, settings)
    return found


def candidate_ious(models: Text2Seg, session: Session, segment: Segment, truths: Sequence[Mask]) -> NDArray[np.float64]:
    """For each of SAM's candidates the IoU with the true thing that it fits best, at SAM's own resolution."""
    masks = models.sam.coarse_masks(session.embedding, segment.candidates)
    hw = masks.shape[1:]
    coarse = [cv2.resize(each.astype(np.float32), hw[::-1], interpolation=cv2.INTER_AREA) > 0.5 for each in truths]
    return np.array([max(iou(mask, each) for each in coarse) for mask in masks])


def map_ious(found: Segmentation, things: dict[str, list[Mask]], levels: Sequence[float]) -> list[NDArray[np.float64]]:
    """For each thing the IoU of its min-max map above its mean, and above each level."""
    scores = minmax(found.maps.scores)
    full = resize(scores, found.image.hw)
    rows = []
    for name, truths in things.items():
        number = found.maps.queries.index(name)
        true, floor = np.any(truths, axis=0), scores[number].mean()
        rows.append(np.array([iou(full[number] > level, true) for level in (floor, *levels)]))
    return rows
