"""The scores: instances (COCO's AP), semantic (mean IoU of pixels), category-given and multilabel."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from text2seg.coco import rle
from text2seg.coco.rle import Rle, area, union
from text2seg.coco.truth import Region, iou_outside
from text2seg.errors import DatasetError
from text2seg.evaluation.alignment import Aligned, Scene, align

BACKGROUND = "background"
IGNORED = -1  # label of pixels that do not count
AT_ONCE = 1 << 22  # pixels counted in one step


@dataclass(frozen=True, slots=True)
class Instances:
    """COCOeval's twelve numbers, in its order, and AP by category. None: the ground truth has no such objects.

    `ap` is the mean over categories, IoU thresholds 0.50 to 0.95 and 101 recalls; `ap_50` and `ap_75` are at one
    threshold. Small is below 32² pixels, large above 96². `ar_10` is the recall with 10 predictions per image.
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
    """Score masks with pycocotools' COCOeval, iouType segm, default parameters.

    Crowds follow COCO's rule: a prediction that matches a crowd is neither right nor wrong.
    """
    truth, predicted = _coco(aligned, predicted=False), _coco(aligned, predicted=True)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, predicted, "segm")
        # Categories without true annotations have no score, and each would take 100 kB of tables.
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
    """Return the annotations as pycocotools' `COCO` object. (`loadRes` fails on an empty list.)"""
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


@dataclass(frozen=True, slots=True, eq=False)
class Semantic:
    """Scores of label maps. Label 0 is the background, which no annotation covers. None: the label occurs nowhere.

    `miou` is the mean IoU of all labels in ground truth or predictions, with the background. `confusion` int64
    [labels, labels] counts pixels by true label (rows) and predicted label (columns). `ignored` counts pixels of
    crowds, which are left out.
    """

    miou: float
    miou_without_background: float | None
    pixel_accuracy: float
    background: float | None
    by_category: dict[str, float | None]
    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    ignored: int


def score_semantic(aligned: Aligned) -> Semantic:
    """Paint the true and predicted label maps of each image and count pixels.

    Where annotations overlap, the smaller one wins in the ground truth. In the predictions the higher score wins, then
    the smaller area. Pixels of a crowd that no other true annotation covers are ignored.
    """
    places = {number: place for place, number in enumerate(aligned.categories, start=1)}
    confusion = np.zeros((len(places) + 1, len(places) + 1), np.int64)
    ignored = 0
    for scene in aligned.scenes:
        used = sorted({each.category for each in (*scene.truth, *scene.predicted)})
        local = {number: label for label, number in enumerate(used, start=1)}
        true, predicted = label_maps(scene, local)
        at = np.array([0, *(places[number] for number in used)])
        rows = max(1, AT_ONCE // true.shape[1])
        for top in range(0, len(true), rows):
            part, found = true[top : top + rows], predicted[top : top + rows]
            valid = part != IGNORED
            pairs = part[valid].astype(np.int64) * (len(used) + 1) + found[valid]
            if len(at) ** 2 <= AT_ONCE:
                counts = np.bincount(pairs)
                cells = np.flatnonzero(counts)
                counts = counts[cells]
            else:
                cells, counts = np.unique(pairs, return_counts=True)
            confusion[at[cells // (len(used) + 1)], at[cells % (len(used) + 1)]] += counts
            ignored += int(valid.size - np.count_nonzero(valid))
    return _pixel_scores(tuple(aligned.categories.values()), confusion, ignored)


def label_maps(scene: Scene, labels: dict[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the true and the predicted label of each pixel, int32 [H, W]; `labels` gives the label of a category
    id."""
    crowds = [each for each in scene.truth if each.crowd]
    things = [each for each in scene.truth if not each.crowd]
    things.sort(key=lambda each: (-area(each.rle), -each.category))
    true = np.zeros(scene.hw, np.int32)
    _paint(true, crowds, [IGNORED] * len(crowds))
    _paint(true, things, [labels[each.category] for each in things])
    found = sorted(scene.predicted, key=lambda each: (each.score, -area(each.rle), -each.category))
    predicted = np.zeros(scene.hw, np.int32)
    _paint(predicted, found, [labels[each.category] for each in found])
    return true, predicted


def _paint(canvas: NDArray[np.int32], regions: Sequence[Region], labels: Sequence[int]) -> None:
    for region, label in zip(regions, labels, strict=True):
        canvas[rle.decode(region.rle)] = label


def _pixel_scores(names: tuple[str, ...], confusion: NDArray[np.int64], ignored: int) -> Semantic:
    hits = np.diag(confusion)
    unions = confusion.sum(0) + confusion.sum(1) - hits
    ious = [int(hit) / int(both) if both else None for hit, both in zip(hits, unions, strict=True)]
    known = [iou for iou in ious if iou is not None]
    things = [iou for iou in ious[1:] if iou is not None]
    total = int(confusion.sum())
    return Semantic(
        miou=sum(known) / len(known) if known else 0.0,
        miou_without_background=sum(things) / len(things) if things else None,
        pixel_accuracy=int(hits.sum()) / total if total else 0.0,
        background=ious[0],
        by_category=dict(zip(names, ious[1:], strict=True)),
        labels=(BACKGROUND, *names),
        confusion=confusion,
        ignored=ignored,
    )


@dataclass(frozen=True, slots=True)
class CategoryGiven:
    """Scores with the categories given: every (image, category present) pair counts once.

    `mean_iou` is the mean over pairs of the IoU between the union of the true masks and the union of the predicted
    masks; 0 if nothing was predicted. `by_category` is the same for each category that is present.
    """

    mean_iou: float
    pairs: int
    by_category: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A category that is present in an image: the union of its true masks, its crowds and its predictions."""

    scene: Scene
    category: int
    truth: Rle
    ignored: Rle | None
    predicted: tuple[Region, ...]

    @property
    def iou(self) -> float:
        """IoU of the unions. Pixels of crowds do not count unless they are in the truth as well."""
        return self.iou_of([each.rle for each in self.predicted])

    def iou_of(self, masks: list[Rle]) -> float:
        """Return the IoU for given masks instead of the predicted ones."""
        return iou_outside(union(masks), self.truth, self.ignored) if masks else 0.0


def category_given(truth: Mapping[str, Any], predicted: Mapping[str, Any]) -> CategoryGiven:
    """Score datasets by the protocol of the 0.500 of CLIP Surgery with SAM on COCO, which a third party measured.

    Args:
        truth, predicted: COCO datasets with RLE or polygon masks, matched by image file name and category name.

    Raises:
        DatasetError: They do not match, or the truth has no annotations.
    """
    return score_pairs(align(truth, predicted, match="file-name"))


def score_pairs(aligned: Aligned) -> CategoryGiven:
    """Return the mean IoU over all pairs and by category, in the order of category names."""
    scores: dict[str, list[float]] = defaultdict(list)
    for pair in pairs_of(aligned):
        scores[aligned.categories[pair.category]].append(pair.iou)
    every = [iou for ious in scores.values() for iou in ious]
    if not every:
        raise DatasetError("the ground truth has no annotations, so there is nothing to score")
    means = {category: sum(ious) / len(ious) for category, ious in sorted(scores.items())}
    return CategoryGiven(sum(every) / len(every), len(every), means)


def pairs_of(aligned: Aligned) -> Iterator[Pair]:
    """Yield every (image, category present), by image and then category id. Crowds alone do not count as present."""
    for scene in aligned.scenes:
        for category in scene.present():
            crowds = scene.crowds_of(category)
            yield Pair(
                scene,
                category,
                union(scene.true_of(category)),
                union(crowds) if crowds else None,
                tuple(scene.predicted_of(category)),
            )


@dataclass(frozen=True, slots=True)
class Multilabel:
    """How well images are ranked by category.

    `mean_ap` is the mean over the categories that are in any image; `by_category` is their average precision (None: in
    no image). `ranked_by` tells whether images were ranked by their own presence or by the scores of annotations.
    """

    mean_ap: float
    by_category: dict[str, float | None]
    ranked_by: Literal["presence", "scores"]


def score_multilabel(aligned: Aligned) -> Multilabel:
    """Rank the images for each category by presence if the predictions record it, else by the best annotation.

    Images without a score for a category are never retrieved, so no prediction scores 0. An image that shows a
    category only as a crowd is left out of its ranking.
    """
    by_presence = any(scene.presence is not None for scene in aligned.scenes)
    present = [set(scene.present()) for scene in aligned.scenes]
    scores = [_presence_scores(scene, by_presence=by_presence) for scene in aligned.scenes]
    crowded = [
        {each.category for each in scene.truth if each.crowd} - has
        for scene, has in zip(aligned.scenes, present, strict=True)
    ]
    by_category: dict[str, float | None] = {}
    for number, name in aligned.categories.items():
        kept = [place for place, crowds in enumerate(crowded) if number not in crowds]
        by_category[name] = average_precision(
            np.array([number in present[place] for place in kept], np.bool_),
            np.array([scores[place].get(number, -np.inf) for place in kept], np.float64),
        )
    known = [ap for ap in by_category.values() if ap is not None]
    mean = sum(known) / len(known) if known else 0.0
    return Multilabel(mean, by_category, "presence" if by_presence else "scores")


def average_precision(present: NDArray[np.bool_], scores: NDArray[np.float64]) -> float | None:
    """Return the sum over thresholds of (recall gained) × precision, without interpolation, like scikit-learn.

    Args:
        present: bool [N], the truth.
        scores: float64 [N]. Equal scores share a threshold; -inf is never retrieved.

    Returns:
        None if nothing is present.
    """
    positives = int(present.sum())
    if not positives:
        return None
    ranked = scores > -np.inf
    present, scores = present[ranked], scores[ranked]
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(present[order])
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last image of each threshold
    gained = np.diff(hits[last], prepend=0) / positives
    return float((gained * (hits[last] / (last + 1))).sum())


def _presence_scores(scene: Scene, *, by_presence: bool) -> dict[int, float]:
    if by_presence:
        return dict(scene.presence or {})
    best: dict[int, float] = {}
    for each in scene.predicted:
        best[each.category] = max(each.score, best.get(each.category, -np.inf))
    return best
