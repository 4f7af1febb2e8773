"""Segment the images of a COCO ground truth and score the result: the protocol of the published numbers.

Every image is queried with the categories that are in it. The IoU of the map alone and of the best of SAM's candidates
show which stage loses accuracy.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg.coco import rle
from text2seg.coco.dataset import DatasetBuilder, write_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.reader import Dataset, check_dataset, kept_categories
from text2seg.config import PresenceSettings
from text2seg.errors import DatasetError, Text2SegError
from text2seg.evaluation import category_given
from text2seg.evaluation.alignment import align
from text2seg.evaluation.protocols import Pair, pairs_of
from text2seg.grids import minmax, resize
from text2seg.records import Failure, Segmentation
from text2seg.session import Pipeline, Session


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Means over (image, category present) pairs of the `images` that could be used; `failures` are the others.
    A benchmark that was `stopped` has not seen all images.

    `mean_iou` is the IoU of `evaluation.category_given`. `map_iou` is the IoU of the map alone, where it is above its
    mean. `best_iou` is the IoU of the best candidate of each segment, or of the segments if that is higher.
    `worse_than_map` is the share of pairs whose segments are worse than the map.
    """

    pairs: int
    images: int
    mean_iou: float
    map_iou: float
    best_iou: float
    worse_than_map: float
    seconds: float
    failures: tuple[Failure, ...]
    stopped: bool = False


def benchmark_coco(
    models: Pipeline,
    truth: Mapping[str, Any],
    images: Path,
    *,
    targets: int | None = None,
    seed: int = 0,
    output: Path | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> Benchmark:
    """Segment the categories that each image shows according to the ground truth, and score the masks.

    The presence threshold is 0 unless the settings of the models set one.

    Args:
        models: The models, with the settings to measure.
        truth: A COCO dataset.
        images: The folder of its images.
        targets: Number of (image, category) pairs, from images drawn at random with `seed`. Default: all.
        output: Where to write the predictions as a COCO dataset, unless the benchmark was stopped.
        stop: If it is set, stop after the current image.

    Raises:
        DatasetError: The ground truth is damaged or empty, or no image could be read.
        KeyboardInterrupt: It was stopped before an image was done.
        QueryError: The models do not know a category.
    """
    checked = check_dataset(truth, "the ground truth")
    aligned = align(checked, [])
    chosen = _draw(list(pairs_of(aligned)), targets, seed)
    names = aligned.categories
    settings = models.settings
    if settings.presence.presence is None:
        settings = replace(settings, presence=PresenceSettings(0))
    models.check(sorted({names[pair.category] for pairs in chosen for pair in pairs}), settings)
    builder = DatasetBuilder(queries=list(names.values()), provenance=models.provenance(settings))
    failures: list[Failure] = []
    rows: list[tuple[float, float, float]] = []
    used: list[Sequence[Pair]] = []
    finder = ImageFinder(images=images)
    stopped = False
    start = time.perf_counter()
    for pairs in tqdm(chosen, unit="image", disable=not progress):
        if stopped := stop is not None and stop.is_set():
            break
        scene = pairs[0].scene
        path = None
        try:
            path = finder.find(scene.file_name)
            session = models.open(scene.load(path))
            found = session.segment([names[pair.category] for pair in pairs], settings)
            scores = [_scores(session, found, names[pair.category], pair) for pair in pairs]
        except (Text2SegError, OSError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError without memory
            failures.append(Failure.from_error(scene.file_name, "segment", error, path or images))
            continue
        builder.add(found)
        used.append(pairs)
        rows += scores
    seconds = time.perf_counter() - start
    if not rows and stopped:
        raise KeyboardInterrupt
    if not rows:
        raise DatasetError(f"no image could be used. The first: {failures[0].message}")
    predicted = builder.build()
    if output is not None and not stopped:
        write_dataset(predicted, output)
    of_map, of_segments, of_best = (np.array(column) for column in zip(*rows, strict=True))
    return Benchmark(
        pairs=len(rows),
        images=len(used),
        mean_iou=category_given(_restricted(checked, used), predicted).mean_iou,
        map_iou=float(of_map.mean()),
        best_iou=float(of_best.mean()),
        worse_than_map=float((of_segments < of_map).mean()),
        seconds=seconds,
        failures=tuple(failures),
        stopped=stopped,
    )


def _draw(pairs: Sequence[Pair], targets: int | None, seed: int) -> list[list[Pair]]:
    """Group the pairs by image; with `targets`, only that many pairs, from images in random order."""
    by_image: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_image.setdefault(pair.scene.image_id, []).append(pair)
    if targets is None:
        return list(by_image.values())
    order = list(by_image)
    random.Random(seed).shuffle(order)
    chosen, left = [], targets
    for number in order:
        if left <= 0:
            break
        chosen.append(by_image[number][:left])
        left -= len(chosen[-1])
    return chosen


def _restricted(truth: Dataset, chosen: Sequence[Sequence[Pair]]) -> Dataset:
    """Return the ground truth with only the chosen images and categories."""
    shown_pairs = {(pair.scene.image_id, pair.category) for pairs in chosen for pair in pairs}
    images = {number for number, _ in shown_pairs}
    kept = kept_categories(truth)
    annotations = [a for a in truth["annotations"] if (a["image_id"], kept[a["category_id"]]) in shown_pairs]
    shown = [image for image in truth["images"] if image["id"] in images]
    return Dataset({**truth, "images": shown, "annotations": annotations}, truth.name)


def _scores(session: Session, found: Segmentation, query: str, pair: Pair) -> tuple[float, float, float]:
    """Return the IoU of the map alone, of the segments, and of the best candidates."""
    scores = minmax(found.maps.scores[[found.maps.queries.index(query)]])
    of_map = resize(scores, found.image.hw)[0]
    segments = [segment for segment in found.segments if segment.query == query]
    best = []
    for segment in segments:
        masks = [session.candidate_mask(segment, k) for k in range(len(segment.candidates))]
        best.append(max(masks, key=lambda mask: _iou(pair, [mask])))
    of_segments = _iou(pair, [segment.mask for segment in segments])
    return _iou(pair, [of_map > scores.mean()]), of_segments, max(_iou(pair, best), of_segments)


def _iou(pair: Pair, masks: Sequence[NDArray[np.bool_]]) -> float:
    return pair.iou_of([rle.encode(mask) for mask in masks])
