"""Try thresholds on pictures. Each picture is encoded once; only points and masks are made anew."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg.coco.lookup import inside
from text2seg.coco.results import mask_of
from text2seg.config import Settings
from text2seg.errors import Text2SegError
from text2seg.images import load_image
from text2seg.ontology import Ontology, queries_of
from text2seg.pipeline import Session, Text2Seg
from text2seg.records import Failure, Image
from text2seg.tuning.choice import STABLE_THRESHOLDS, THRESHOLDS, Curve, best, curve, most_stable
from text2seg.vocabulary import Query

Mask = NDArray[np.bool_]
Masks = dict[str, Mask]  # by the name of the category
Scores = dict[str, list[float]]  # one image's row of scores for each category that counts in it

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a sweep says of one category. `used` is the threshold that runs now, its own or the settings'; `chosen` is
    `None` where no image had anything to say, or nothing was stable."""

    category: str
    used: float
    chosen: float | None
    curve: Curve

    def score(self, threshold: float | None) -> float | None:
        """The curve's value there; `None` off its grid."""
        return dict(zip(self.curve.at, self.curve.scores, strict=False)).get(-1.0 if threshold is None else threshold)


@dataclass(frozen=True, slots=True)
class Tuning:
    """A sweep: one entry per category, in the order of the ontology. `by_truth`: the curves are mean IoU with the
    truth, otherwise how well the masks of neighbouring thresholds agree. `missing` images of the truth had no file."""

    categories: tuple[Tuned, ...]
    images: int
    by_truth: bool
    failures: tuple[Failure, ...]
    missing: int = 0

    def changes(self) -> dict[str, float]:
        """The thresholds chosen that are not the ones used, by the name of the category."""
        chosen = {each.category: each.chosen for each in self.categories if each.chosen != each.used}
        return {name: threshold for name, threshold in chosen.items() if threshold is not None}

    def never_found(self) -> tuple[str, ...]:
        """Categories that the truth shows and no threshold found."""
        shown = [each for each in self.categories if self.by_truth and each.curve.scores]
        return tuple(each.category for each in shown if max(each.curve.scores) == 0)


def tune_by_truth(
    models: Text2Seg,
    ontology: Ontology,
    folder: Path,
    truth: Mapping[str, Any],
    *,
    limit: int | None = None,
    settings: Settings | None = None,
    progress: bool = False,
) -> Tuning:
    """For each category the threshold with the best mean IoU, over the (image, category present) pairs, between the
    union of its true masks and the union of those found. Presence and smallest area apply, as they will in the job:
    what they keep out scores 0 at every threshold.

    Args:
        folder: where the images of the truth are, by their file names or the last part of these.
        truth: a COCO dataset; categories are matched by name.
        limit: use the first so many images that have something to look for.

    Raises:
        Text2SegError: the truth has none of the categories, or none of its images is in the folder.
        QueryError: the models cannot look for a wording.
    """
    settings = settings or models.settings
    queries = {query.name: query for query in queries_of(ontology)}
    models.check(queries.values(), settings)
    entries, annotations = _wanted(truth, ontology)
    paths = {entry["id"]: path for entry in entries if (path := _find(folder, str(entry["file_name"])))}
    if not paths:
        name = entries[0]["file_name"]
        raise Text2SegError(f"{folder}: none of the {len(entries)} images of the ground truth is there, such as {name}")
    if len(set(paths.values())) < len(paths):
        raise Text2SegError(
            f"{folder}: images of the ground truth have one name in several folders; name those above it"
        )
    of_path = {path: annotations[number] for number, path in list(paths.items())[:limit]}
    all_at_once = settings.maps.redundancy == "label-set"  # then every query changes the maps of the others

    def score(session: Session) -> Scores:
        true = _true_masks(of_path[Path(session.image.file_name)], session.image)
        asked = list(queries.values()) if all_at_once else [queries[name] for name in true]
        rows: Scores = {name: [] for name in true}
        for threshold in THRESHOLDS:
            found = _found(session, asked, threshold, settings)
            for name, row in rows.items():
                row.append(_iou(found.get(name), true[name]))
        return rows

    rows, failures = _sweep(models, list(of_path), score, progress=progress)
    tuned = []
    for category in ontology.categories:
        of = curve(THRESHOLDS, rows[category.name])
        used = category.threshold or settings.points.threshold
        tuned.append(Tuned(category.name, used, best(of, used), of))
    return Tuning(tuple(tuned), len(of_path), True, failures, missing=len(entries) - len(paths))


def tune_by_stability(
    models: Text2Seg,
    ontology: Ontology,
    paths: Sequence[Path],
    *,
    settings: Settings | None = None,
    progress: bool = False,
) -> Tuning:
    """For each category the threshold in the middle of the longest plateau (see `most_stable`): where it can move a
    little and the masks stay. It needs no truth, and knows none: a mask may be stable and wrong. A guess for pictures
    unlike those that the usual threshold was made for; see `STABLE_THRESHOLDS` for what it costs on the others.

    An image counts for the categories that are found in it at any threshold; presence and smallest area apply.

    Raises `QueryError` where the models cannot look for a wording.
    """
    settings = settings or models.settings
    queries = queries_of(ontology)
    models.check(queries, settings)

    def score(session: Session) -> Scores:
        rows: Scores = {query.name: [] for query in queries}
        ever = set()
        below: Masks = {}
        for step, threshold in enumerate(STABLE_THRESHOLDS):
            found = _found(session, queries, threshold, settings)
            ever |= set(found)
            for name, row in rows.items():
                if step:
                    row.append(_iou(below.get(name), found.get(name)))
            below = found
        return {name: row for name, row in rows.items() if name in ever}

    rows, failures = _sweep(models, paths, score, progress=progress)
    between = [round((low + high) / 2, 4) for low, high in pairwise(STABLE_THRESHOLDS)]
    tuned = []
    for category in ontology.categories:
        of = curve(between, rows[category.name])
        used = category.threshold or settings.points.threshold
        tuned.append(Tuned(category.name, used, most_stable(of, STABLE_THRESHOLDS), of))
    return Tuning(tuple(tuned), len(paths), False, failures)


def _sweep(
    models: Text2Seg, paths: Iterable[Path], score: Callable[[Session], Scores], *, progress: bool
) -> tuple[defaultdict[str, list[list[float]]], tuple[Failure, ...]]:
    """The rows of scores of each category, one per image that counts; an image that cannot be done is passed over."""
    rows: defaultdict[str, list[list[float]]] = defaultdict(list)
    failures = []
    for path in tqdm(list(paths), unit="image", disable=not progress):
        try:
            scores = score(models.open(load_image(path, file_name=str(path))))
        except (Text2SegError, MemoryError, RuntimeError) as error:  # torch is out of memory with a RuntimeError
            _log.info("%s", path, exc_info=error)
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(Failure(str(path), "segment", reason if str(path) in reason else f"{path}: {reason}"))
            continue
        for name, row in scores.items():
            rows[name].append(row)
    return rows, tuple(failures)


def _found(session: Session, queries: Iterable[Query], threshold: float, settings: Settings) -> Masks:
    """The union of what each query gives at a threshold."""
    result = session.segment([replace(query, threshold=threshold) for query in queries], settings)
    masks: Masks = {}
    for segment in result.segments:
        masks[segment.query] = masks[segment.query] | segment.mask if segment.query in masks else segment.mask
    return masks


def _iou(one: Mask | None, other: Mask | None) -> float:
    """0 where one is missing: nothing found is no answer to agree upon."""
    if one is None or other is None:
        return 0.0
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def _wanted(
    truth: Mapping[str, Any], ontology: Ontology
) -> tuple[list[Mapping[str, Any]], Mapping[int, list[tuple[str, Mapping[str, Any]]]]]:
    """The images with something of the ontology in them, and for each its annotations with their category's name."""
    wanted = set(ontology.names)
    annotations: defaultdict[int, list[tuple[str, Mapping[str, Any]]]] = defaultdict(list)
    try:
        names = {category["id"]: category["name"] for category in truth["categories"]}
        for annotation in truth["annotations"]:
            name = names.get(annotation["category_id"])
            if name in wanted:
                annotations[annotation["image_id"]].append((name, annotation))
        entries = [image for image in truth["images"] if image["id"] in annotations and image["file_name"]]
    except (KeyError, TypeError) as error:
        raise Text2SegError(f"the ground truth is not a COCO dataset: something in it has no {error}") from error
    if not entries:
        theirs = ", ".join(sorted(map(str, names.values()))[:10]) or "none"
        raise Text2SegError(
            f"the ground truth has no image with {', '.join(ontology.names)}; its own categories are {theirs}, and "
            "names must be the same to the letter"
        )
    return entries, annotations


def _find(folder: Path, name: str) -> Path | None:
    """The file of an image, by its name from the folder or by the last part of it."""
    tried = (inside(folder, name), inside(folder, Path(name).name))
    return next((path for path in tried if path and path.is_file()), None)


def _true_masks(annotations: Iterable[tuple[str, Mapping[str, Any]]], image: Image) -> Masks:
    """The union of each category's masks. Raises `Text2SegError` where they are not of the image's size."""
    masks: Masks = {}
    for name, annotation in annotations:
        mask = mask_of(annotation, image.hw)
        masks[name] = masks[name] | mask if name in masks else mask
    return masks
