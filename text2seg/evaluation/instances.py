"""Instances: COCO's average precision and recall of masks, computed by pycocotools itself."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from text2seg.coco.truth import Region
from text2seg.evaluation.alignment import Aligned


@dataclass(frozen=True, slots=True)
class Instances:
    """COCOeval's twelve numbers, in its order, and AP by category. `None`: the ground truth has nothing of the kind.

    `ap` is the mean over categories, IoU thresholds 0.50 to 0.95 and 101 recalls; `ap_50` and `ap_75` at one threshold;
    small is below 32² pixels of area, large above 96²; `ar_10` is the recall with 10 predictions an image.
    """

    ap: float | None
    ap_50: float | None
    ap_75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    by_category: dict[str, float | None]
    by_category_50: dict[str, float | None]


HEADLINES = tuple(field.name for field in fields(Instances))[:12]


def score_instances(aligned: Aligned) -> Instances:
    """pycocotools' COCOeval, iouType segm, default parameters. Crowds follow COCO's rule: a prediction that matches one
    is neither right nor wrong."""
    truth, predicted = _coco(aligned, predicted=False), _coco(aligned, predicted=True)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, predicted, "segm")
        # The others have no score, and each would take 100 kB of tables.
        evaluation.params.catIds = sorted({each.category for scene in aligned.scenes for each in scene.truth})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # [IoU thresholds, recalls, categories, area ranges, most predictions]
    places = {number: place for place, number in enumerate(evaluation.params.catIds)}
    scored = [(name, places.get(number)) for number, name in aligned.categories.items()]
    headlines = [None if stat == -1 else float(stat) for stat in evaluation.stats]
    return Instances(
        **dict(zip(HEADLINES, headlines, strict=True)),
        by_category={name: None if k is None else _mean(precision[:, :, k, 0, -1]) for name, k in scored},
        by_category_50={name: None if k is None else _mean(precision[:1, :, k, 0, -1]) for name, k in scored},
    )


def _coco(aligned: Aligned, *, predicted: bool) -> COCO:
    """What pycocotools' `COCO` and `loadRes` make of the files: ids from 1, areas of predictions in pixels. `loadRes`
    itself cannot take an empty list."""
    coco = COCO()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for scene in aligned.scenes:
        height, width = scene.hw
        images.append({"id": scene.image_id, "height": height, "width": width})
        for region in scene.predicted if predicted else scene.truth:
            annotations.append(_annotation(region, len(annotations) + 1, scene.image_id))
    categories = [{"id": number, "name": name} for number, name in aligned.categories.items()]
    coco.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _annotation(region: Region, number: int, image_id: int) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": region.category,
        "segmentation": dict(region.rle),
        "area": region.area,
        "iscrowd": int(region.crowd),
        "score": region.score,
    }


def _mean(precision: NDArray[np.float64]) -> float | None:
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else None
