"""Thresholds for the categories of an ontology: many are tried on some images, and a rule chooses one for each."""

from __future__ import annotations

import io
import logging
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
from text2seg.coco.truth import Shown, iou_outside, names_of, regions_of
from text2seg.config import Settings
from text2seg.errors import SettingsError, Text2SegError
from text2seg.io.files import write_atomically
from text2seg.io.images import load_image
from text2seg.ontology import Ontology, queries_of
from text2seg.pipeline import Session, Text2Seg
from text2seg.queries import Query
from text2seg.records import Failure
from text2seg.render.lettering import fitted, text_width

THRESHOLDS: tuple[float, ...] = tuple(round(0.3 + 0.05 * step, 2) for step in range(14))
"""0.3 to 0.95, what a sweep with ground truth tries."""

STABLE_THRESHOLDS = THRESHOLDS[6:]
"""0.6 to 0.95, what a sweep without it tries: below, masks grow until they cover the image, stable and wrong. With
all of `THRESHOLDS` the mean IoU on the bundled scenes, one segment per kind, fell from 0.65 and 0.67 (at 0.8) to 0.59
and 0.54 (held-out, new scenes); with these it is 0.64 and 0.65."""

EQUAL = 0.005
"""Mean IoUs that differ by no more are the same."""

TOLERANCE = 0.05
"""A stretch of the stability curve that stays this close to its highest value counts as a plateau."""

LEAST_STABILITY = 0.5
"""Where no two neighbours agree better than this, there is nothing to choose from."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One category's scores: `scores[k]`, in [0, 1], belongs to the threshold `at[k]`. `images` were averaged; where
    there were none, there are no scores."""

    at: tuple[float, ...]
    scores: tuple[float, ...]
    images: int


def curve(at: Sequence[float], rows: Sequence[Sequence[float]]) -> Curve:
    """The mean of one row of scores per image."""
    means = tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) if rows else ()
    return Curve(tuple(at), means, len(rows))


def best(of: Curve, current: float) -> float | None:
    """The threshold that scores best; of several, the one nearest to the current one, and then the lower. Scores within
    `EQUAL` of the best count as equal, so that a few pixels do not move a threshold. `None` where all are 0.

    >>> best(Curve((0.3, 0.4, 0.5), (0.1, 0.8, 0.8), 2), current=0.9)
    0.5
    """
    if not of.scores or max(of.scores) == 0:
        return None
    highest = max(of.scores)
    equal = [at for at, score in zip(of.at, of.scores, strict=True) if highest - score <= EQUAL]
    return min(equal, key=lambda at: (round(abs(at - current), 9), at))


def most_stable(of: Curve, thresholds: Sequence[float]) -> float | None:
    """The middle of the longest plateau: where the mask changes least while the threshold moves.

    A plateau is a run of neighbours whose masks agree within `TOLERANCE` of the best agreement there is; of several
    of one length the one that agrees best, then the lowest. `None` where nothing agrees (`LEAST_STABILITY`).

    Args:
        of: `scores[k]` is how well the masks at `thresholds[k]` and `thresholds[k + 1]` agree.

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
        folder: where the images of the truth are, by their file names as `text2seg.io.names` understands them.
        truth: a COCO dataset; categories are matched by name.
        limit: use the first so many images that have something to look for.

    Raises:
        Text2SegError: the truth has none of the categories, or none of its images is in the folder.
        QueryError: the models cannot look for a wording.
    """
    settings = settings or models.settings
    queries = {query.name: query for query in queries_of(ontology)}
    models.check(queries.values(), settings)
    checked = check_dataset(truth, "the ground truth")
    entries, annotations = _wanted(checked, ontology)
    images = ImageFinder(images=folder)
    paths = {entry["id"]: path for entry in entries if (path := images.look(entry["file_name"]))}
    if not paths:
        name = entries[0]["file_name"]
        raise Text2SegError(f"{folder}: none of the {len(entries)} images of the ground truth is there, such as {name}")
    if len(set(paths.values())) < len(paths):
        raise Text2SegError(
            f"{folder}: images of the ground truth have one name in several folders or spellings; name those above it"
        )
    of_path = {path: annotations[number] for number, path in list(paths.items())[:limit]}
    kept, names = kept_categories(checked), names_of(checked)
    all_at_once = settings.maps.redundancy == "label-set"  # then every query changes the maps of the others

    def score(session: Session) -> Scores:
        file = session.image.file_name
        hw = session.image.hw
        shown = Shown(0, file, hw, regions_of(of_path[Path(file)], hw, kept, checked.name))
        true = {names[number]: (union(shown.true_of(number)), shown.crowds_of(number)) for number in shown.present()}
        asked = list(queries.values()) if all_at_once else [queries[name] for name in true]
        rows: Scores = {name: [] for name in true}
        for threshold in THRESHOLDS:
            found = _found(session, asked, threshold, settings) if asked else {}
            for name, row in rows.items():
                mask, crowds = true[name]
                ignored = union(crowds) if crowds else None
                row.append(iou_outside(rle.encode(found[name]), mask, ignored) if name in found else 0.0)
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
    little and the masks stay. It needs no truth, and knows none: a mask may be stable and wrong. A guess for images
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


def _wanted(truth: Dataset, ontology: Ontology) -> tuple[list[Entry], Mapping[int, list[Entry]]]:
    """The images with something of the ontology in them, and for each its annotations of these categories, crowds
    among them."""
    check_references(truth)
    wanted = {entry["id"] for entry in truth["categories"] if entry["name"] in ontology.names}
    annotations: defaultdict[int, list[Entry]] = defaultdict(list)
    for annotation in truth["annotations"]:
        if annotation["category_id"] in wanted:
            annotations[annotation["image_id"]].append(annotation)
    shows = {number for number, found in annotations.items() if not all(each.get("iscrowd") for each in found)}
    entries = [image for image in truth["images"] if image["id"] in shows]
    if not entries:
        theirs = ", ".join(sorted(entry["name"] for entry in truth["categories"])[:10]) or "none"
        raise Text2SegError(
            f"the ground truth has no image with {', '.join(ontology.names)}; its own categories are {theirs}, and "
            "names must be the same to the letter"
        )
    return entries, annotations


_COLUMNS, _WIDTH, _HEIGHT, _TITLE = 4, 2.9, 2.3, 9  # panels side by side; inches of one; points of its title
_USED, _CHOSEN, _LINE = "#888888", "#d95f02", "#1f5fa8"


def check_plot(path: Path) -> None:
    """Raises `SettingsError` where the name is not one of a PNG file."""
    if path.suffix.lower() != ".png":
        raise SettingsError(f"the curves are drawn as PNG, so the name must end in .png, got {path}")


def plot(tuning: Tuning, path: Path) -> Path:
    """Draw the curve of every category, the threshold used now (dashed) and the one chosen (full); gives the path.

    Raises:
        SettingsError: the name is not one of a PNG file.
        OutputError: it cannot be written.
    """
    check_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from text2seg.render.plot import letter

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
    for panel in panels.flat[max(count - columns, 0) : count]:  # the lowest that shows in each column
        panel.tick_params(labelbottom=True)
    what = "mean IoU with the truth" if tuning.by_truth else "agreement of neighbouring thresholds (IoU)"
    figure.supxlabel("threshold", fontsize=9)
    figure.supylabel(what, fontsize=9)
    figure.suptitle("dashed: used now, orange: chosen", fontsize=9)
    buffer = io.BytesIO()
    letter(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})  # so that the same curves give the same bytes
    return write_atomically(path, [buffer.getvalue()])


def _draw(panel, tuned: Tuned) -> None:  # type: ignore[no-untyped-def]
    of = tuned.curve
    count = f" ({of.images} image{'s' * (of.images != 1)})"
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
