"""Find a threshold for each category of an ontology: try many on some images and choose one by a rule."""

from __future__ import annotations

import io
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from text2seg.coco import rle
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.reader import Dataset, Entry, check_dataset, check_references, kept_categories
from text2seg.coco.rle import union
from text2seg.coco.truth import TruthImage, category_names, iou_outside, regions_of
from text2seg.config import Settings
from text2seg.errors import SettingsError, Text2SegError
from text2seg.grids import iou
from text2seg.io.images import load_image
from text2seg.io.names import counted
from text2seg.io.writing import write_atomically
from text2seg.ontology import Ontology, queries_of
from text2seg.queries import Query
from text2seg.records import Failure
from text2seg.render.drawing import fitted, text_width
from text2seg.session import Pipeline, Session

THRESHOLDS: tuple[float, ...] = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))
"""0.3 to 0.95: the thresholds tried with ground truth."""

STABLE_THRESHOLDS = THRESHOLDS[6:]
"""0.6 to 0.95: the thresholds tried without ground truth. Below 0.6 masks grow until they cover the image, which is
stable but wrong. On the bundled scenes (one segment per query; held-out, new scenes) the mean IoU is 0.65 and 0.67 at
0.8, 0.59 and 0.54 if chosen from all `THRESHOLDS`, and 0.64 and 0.65 if chosen from these."""

EQUAL = 0.005
"""Mean IoUs that differ by no more than this count as equal."""

TOLERANCE = 0.05
"""Largest difference between the values of a plateau and the highest value of the stability curve."""

LEAST_STABILITY = 0.5
"""No threshold is chosen if all neighbours agree less than this (IoU)."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The scores of one category: `scores[k]`, in [0, 1], is the score at `at[k]`, the mean over `images`. Empty
    without images."""

    at: tuple[float, ...]
    scores: tuple[float, ...]
    images: int


def curve(at: Sequence[float], rows: Sequence[Sequence[float]]) -> Curve:
    """Average rows of scores, one row for each image."""
    means = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else ()
    return Curve(tuple(at), means, len(rows))


def best(of: Curve, current: float) -> float | None:
    """Return the threshold with the best score, or None if all scores are 0.

    Scores within `EQUAL` of the best count as equal, so that a few pixels do not change the result. Of equal ones the
    nearest to the current threshold is chosen, then the lower.

    >>> best(Curve((0.3, 0.4, 0.5), (0.1, 0.8, 0.8), 2), current=0.9)
    0.5
    """
    if not of.scores or max(of.scores) == 0:
        return None
    highest = max(of.scores)
    equal = [at for at, score in zip(of.at, of.scores, strict=True) if highest - score <= EQUAL]
    return min(equal, key=lambda at: (round(abs(at - current), 9), at))


def most_stable(of: Curve, thresholds: Sequence[float]) -> float | None:
    """Return the middle of the longest plateau, where masks change least with the threshold.

    A plateau is a run of neighbouring thresholds with an agreement within `TOLERANCE` of the best. Of plateaus of equal
    length the one with the best agreement is chosen, then the lowest. None if no neighbours agree (`LEAST_STABILITY`).

    Args:
        of: `scores[k]` is the agreement (IoU) of the masks at `thresholds[k]` and `thresholds[k + 1]`.

    >>> most_stable(Curve((0.35, 0.45, 0.55, 0.65), (0.2, 0.9, 0.9, 0.3), 1), (0.3, 0.4, 0.5, 0.6, 0.7))
    0.5
    """
    if not of.scores or max(of.scores) < LEAST_STABILITY:
        return None
    level = max(of.scores) - TOLERANCE
    runs = [list(run) for stable, run in groupby(range(len(of.scores)), lambda k: of.scores[k] >= level) if stable]
    longest = max(runs, key=lambda run: (len(run), sum(of.scores[k] for k in run), -run[0]))
    return thresholds[(longest[0] + longest[-1] + 1) // 2]


Mask = NDArray[np.bool_]
Masks = dict[str, Mask]  # by the name of the category
Scores = dict[str, list[float]]  # scores of one image at all thresholds, by category

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuned:
    """Result of a sweep for one category. `used` is the current threshold, from the category or the settings. `chosen`
    is None if no image shows the category or no threshold is stable."""

    category: str
    used: float
    chosen: float | None
    curve: Curve

    def score(self, threshold: float | None) -> float | None:
        """Return the score at a threshold, or None if the curve has no such point."""
        return dict(zip(self.curve.at, self.curve.scores, strict=False)).get(-1.0 if threshold is None else threshold)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Result of a sweep: one entry per category, in the order of the ontology.

    If `by_truth`, the curves are the mean IoU with the ground truth, otherwise the agreement of neighbouring
    thresholds. `missing` counts images of the ground truth without a file. A sweep that was stopped has seen only the
    first `images` of `given`.
    """

    categories: tuple[Tuned, ...]
    images: int
    by_truth: bool
    failures: tuple[Failure, ...]
    given: int
    missing: int = 0

    def changes(self) -> dict[str, float]:
        """Return the chosen thresholds that differ from the used ones, by category."""
        chosen = {each.category: each.chosen for each in self.categories if each.chosen != each.used}
        return {name: threshold for name, threshold in chosen.items() if threshold is not None}

    def never_found(self) -> tuple[str, ...]:
        """Return the categories that the truth shows and no threshold found."""
        shown = [each for each in self.categories if self.by_truth and each.curve.scores]
        return tuple(each.category for each in shown if max(each.curve.scores) == 0)

    def not_shown(self) -> tuple[str, ...]:
        """Return the categories that no image of the ground truth shows."""
        return tuple(each.category for each in self.categories if self.by_truth and not each.curve.images)


def tune_by_truth(
    models: Pipeline,
    ontology: Ontology,
    folder: Path,
    truth: Mapping[str, Any],
    *,
    limit: int | None = None,
    settings: Settings | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> Tuning:
    """Choose for each category the threshold with the best mean IoU over the (image, category present) pairs.

    The IoU is between the union of the true masks and the union of the found masks. Presence and smallest area apply as
    in a labelling job; segments that they reject score 0 at every threshold.

    Args:
        folder: The folder of the images, matched by file name as in `text2seg.io.names`.
        truth: A COCO dataset; categories are matched by name.
        limit: Use only the first `limit` images that show a category.
        stop: If it is set, stop after the current image.

    Raises:
        Text2SegError: The ground truth has none of the categories, or the folder has none of its images.
        QueryError: The models do not know a wording.
    """
    settings = settings or models.settings
    queries = {query.name: query for query in queries_of(ontology)}
    models.check(queries.values(), settings)
    checked = check_dataset(truth, "the ground truth")
    entries, annotations = _relevant(checked, ontology)
    images = ImageFinder(images=folder)
    paths = {entry["id"]: path for entry in entries if (path := images.find_or_none(entry["file_name"]))}
    if not paths:
        name = entries[0]["file_name"]
        raise Text2SegError(f"{folder}: no image of the ground truth is there, such as {name}")
    if len(set(paths.values())) < len(paths):
        raise Text2SegError(
            f"{folder}: several images of the ground truth match one file; add the folder to their file names"
        )
    of_path = {path: annotations[number] for number, path in list(paths.items())[:limit]}
    kept, names = kept_categories(checked), category_names(checked)
    all_at_once = settings.maps.redundancy == "label-set"  # then every query changes the maps of the others

    def score(session: Session) -> Scores:
        file = session.image.file_name
        hw = session.image.hw
        shown = TruthImage(0, file, hw, regions_of(of_path[Path(file)], hw, kept, checked.name))
        true = {names[number]: (union(shown.true_of(number)), shown.crowds_of(number)) for number in shown.present()}
        searched = list(queries.values()) if all_at_once else [queries[name] for name in true]
        rows: Scores = {name: [] for name in true}
        for threshold in THRESHOLDS:
            found = _found(session, searched, threshold, settings) if searched else {}
            for name, row in rows.items():
                mask, crowds = true[name]
                ignored = union(crowds) if crowds else None
                row.append(iou_outside(rle.encode(found[name]), mask, ignored) if name in found else 0.0)
        return rows

    images_done, rows, failures = _sweep(models, list(of_path), score, progress=progress, stop=stop)
    tuned = []
    for category in ontology.categories:
        of = curve(THRESHOLDS, rows[category.name])
        used = category.threshold or settings.points.threshold
        tuned.append(Tuned(category.name, used, best(of, used), of))
    return Tuning(tuple(tuned), images_done, True, failures, len(of_path), missing=len(entries) - len(paths))


def tune_by_stability(
    models: Pipeline,
    ontology: Ontology,
    paths: Sequence[Path],
    *,
    settings: Settings | None = None,
    progress: bool = False,
    stop: threading.Event | None = None,
) -> Tuning:
    """Choose for each category the threshold in the middle of the longest plateau; see `most_stable`.

    This needs no ground truth, but it is a guess: stable masks may be wrong. It may help for images unlike those that
    the default threshold was chosen on; see `STABLE_THRESHOLDS` for the loss on others. An image counts for the
    categories found in it at any threshold; presence and smallest area apply. If `stop` is set, stop after the current
    image.

    Raises `QueryError` if the models do not know a wording.
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

    images_done, rows, failures = _sweep(models, paths, score, progress=progress, stop=stop)
    between = [round((low + high) / 2, 4) for low, high in pairwise(STABLE_THRESHOLDS)]
    tuned = []
    for category in ontology.categories:
        of = curve(between, rows[category.name])
        used = category.threshold or settings.points.threshold
        tuned.append(Tuned(category.name, used, most_stable(of, STABLE_THRESHOLDS), of))
    return Tuning(tuple(tuned), images_done, False, failures, len(paths))


def _sweep(
    models: Pipeline,
    paths: Sequence[Path],
    score: Callable[[Session], Scores],
    *,
    progress: bool,
    stop: threading.Event | None,
) -> tuple[int, defaultdict[str, list[list[float]]], tuple[Failure, ...]]:
    """Return the number of images that were tried, and the rows of scores of each category, one per image. Images that
    fail are skipped and listed."""
    rows: defaultdict[str, list[list[float]]] = defaultdict(list)
    failures = []
    tried = 0
    for path in tqdm(paths, unit="image", disable=not progress):
        if stop is not None and stop.is_set():
            break
        tried += 1
        try:
            scores = score(models.open(load_image(path, file_name=str(path))))
        except (Text2SegError, MemoryError, RuntimeError) as error:  # torch raises RuntimeError if out of memory
            _log.info("%s", path, exc_info=error)
            reason = " ".join(str(error).split()) or type(error).__name__
            failures.append(Failure(str(path), "segment", reason if str(path) in reason else f"{path}: {reason}"))
            continue
        for name, row in scores.items():
            rows[name].append(row)
    return tried, rows, tuple(failures)


def _found(session: Session, queries: Iterable[Query], threshold: float, settings: Settings) -> Masks:
    """Return the union of the segments of each query at a threshold."""
    result = session.segment([replace(query, threshold=threshold) for query in queries], settings)
    masks: Masks = {}
    for segment in result.segments:
        masks[segment.query] = masks[segment.query] | segment.mask if segment.query in masks else segment.mask
    return masks


def _iou(one: Mask | None, other: Mask | None) -> float:
    """Return the IoU of two masks; 0 if one is missing."""
    if one is None or other is None:
        return 0.0
    return iou(one, other)


def _relevant(truth: Dataset, ontology: Ontology) -> tuple[list[Entry], Mapping[int, list[Entry]]]:
    """Return the images that show a category of the ontology, and by image the annotations of these categories, with
    crowds."""
    check_references(truth)
    category_ids = {entry["id"] for entry in truth["categories"] if entry["name"] in ontology.names}
    annotations: defaultdict[int, list[Entry]] = defaultdict(list)
    for annotation in truth["annotations"]:
        if annotation["category_id"] in category_ids:
            annotations[annotation["image_id"]].append(annotation)
    shows = {number for number, found in annotations.items() if not all(each.get("iscrowd") for each in found)}
    entries = [image for image in truth["images"] if image["id"] in shows]
    if not entries:
        message = f"the ground truth has no image with {', '.join(ontology.names)}"
        if not category_ids:
            theirs = ", ".join(sorted(entry["name"] for entry in truth["categories"])[:10]) or "none"
            message += f"; its own categories are {theirs}, and names must be the same to the letter"
        raise Text2SegError(message)
    return entries, annotations


_COLUMNS, _WIDTH, _HEIGHT, _TITLE = 4, 2.9, 2.3, 9  # panels per row; inches of a panel; points of its title
_USED, _CHOSEN, _LINE = "#888888", "#d95f02", "#1f5fa8"


def plot(tuning: Tuning, path: Path) -> Path:
    """Draw the curve of every category, the threshold used now (dashed) and the one chosen (full); gives the path.

    Raises:
        SettingsError: the name is not one of a PNG file.
        OutputError: it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise SettingsError(f"the curves are drawn as PNG, so the name must end in .png, got {path}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from text2seg.render.charts import letter

    count = len(tuning.categories)
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(columns, 2) * _WIDTH, rows * _HEIGHT + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for panel, tuned in zip(panels.flat, tuning.categories, strict=False):
        _draw(panel, tuned)
    for panel in panels.flat[count:]:
        panel.set_visible(False)
    for panel in panels.flat[max(count - columns, 0) : count]:  # the lowest visible panel of each column
        panel.tick_params(labelbottom=True)
    what = "mean IoU with the truth" if tuning.by_truth else "agreement of neighbouring thresholds (IoU)"
    figure.supxlabel("threshold", fontsize=9)
    figure.supylabel(what, fontsize=9)
    figure.suptitle("dashed: used now, orange: chosen", fontsize=9)
    buffer = io.BytesIO()
    letter(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the same curves give the same bytes
    return write_atomically(path, [buffer.getvalue()])


def _draw(panel, tuned: Tuned) -> None:  # type: ignore[no-untyped-def]
    of = tuned.curve
    count = f" ({counted(of.images, 'image')})"
    name = fitted(tuned.category, _TITLE, _WIDTH * 72 - text_width(count, _TITLE) - 4 * _TITLE)  # 72 points an inch
    panel.set_title(f"{name}{count}", fontsize=_TITLE, parse_math=False)
    panel.set_xlim(THRESHOLDS[0] - 0.03, 1.0)
    panel.set_ylim(-0.03, 1.03)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.axvline(tuned.used, color=_USED, linestyle="--", linewidth=1.2)
    if tuned.chosen is not None:
        panel.axvline(tuned.chosen, color=_CHOSEN, linewidth=1.6)
    if of.scores:
        panel.plot(of.at, of.scores, color=_LINE, marker=".", markersize=5, linewidth=1.4)
    else:
        panel.text(0.5, 0.5, "not seen", transform=panel.transAxes, ha="center", va="center", color=_USED)
