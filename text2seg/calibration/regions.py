"""Last pass of `text2seg calibrate`: how the feature of a region says which query it shows.

It uses up to `MOST_IMAGES` images, because SAM cuts out everything in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.calibration.fit import QUALITIES, RIGHT, Bools, Floats, equal_error, fit_presence
from text2seg.clip.maps import on_grid
from text2seg.clip.model import ImageTokens
from text2seg.clip.regions import has_values, soft_masks
from text2seg.config import RegionFeatures, Settings
from text2seg.grids import iou, minmax
from text2seg.model_card import RegionChoice, RegionClassification
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.regions import RegionClassifier, region_features
from text2seg.sam.candidates import separation
from text2seg.session import Session

MOST_IMAGES = 100
KEPT_THINGS = 0.98
"""Share of the true things on which `RegionClassification.something` leaves SAM a point."""
MOST_SOMETHING = 0.5
COMPARED_SIDE = 256
"""Largest side of the masks that are compared with true ones, in pixels."""

Things = dict[str, list[NDArray[np.bool_]]]
"""The true masks of each category that an image shows."""


@dataclass(frozen=True, slots=True, eq=False)
class RegionRows:
    """What one image says about its regions.

    `odds` float [C] is the highest evidence of any region for each category that counts, `present` whether the image
    shows it. `rows` float [N, 4] are SAM's score, separation, evidence and IoU with the best true mask of each region
    for each category that is present.
    """

    odds: Floats
    present: Bools
    rows: Floats

    def values(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {"odds": self.odds.tolist(), "present": self.present.tolist(), "rows": self.rows.tolist()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RegionRows:
        """Return the rows that `values` gave."""
        odds, present = np.array(values["odds"], np.float64), np.array(values["present"], np.bool_)
        return cls(odds, present, np.array(values["rows"], np.float64).reshape(-1, 4))


def most_shown(models: Text2Seg, tokens: ImageTokens, masks: Sequence[NDArray[np.bool_]]) -> list[float]:
    """Return for each true mask of an image the highest probability of something on its patches."""
    shown = models.clip.something(tokens)
    return [float(shown[each >= min(0.5, each.max())].max()) for each in soft_masks(masks, tokens.grid_hw).numpy()]


def least_something(highest: Sequence[float]) -> float:
    """Return the lowest probability of something at which SAM gets points, from `most_shown` of all images."""
    return round(min(float(np.quantile(highest, 1 - KEPT_THINGS)), MOST_SOMETHING), 3) if len(highest) else 0.0


def kinds_of(models: Text2Seg) -> tuple[RegionFeatures, ...]:
    """Return the features of regions that these models have."""
    return ("patches", "values") if has_values(models.clip) else ("patches",)


def gather_rows(
    models: Text2Seg, session: Session, things: Things, names: Sequence[str], something: float
) -> dict[RegionFeatures, RegionRows]:
    """Return the rows of one image for each kind of features; `names` are the categories that count."""
    image = session.image
    card = models.card.model_copy(update={"region_classification": RegionClassification(something=something)})
    classifier = RegionClassifier.of(models.clip, models.sam, card, Settings())
    tokens = session.tokens.get((models.clip.input_hw(models.input_size), "surgery"))
    if tokens is None:
        (tokens,) = models.clip.encode_images([image], size=models.input_size)
    embedding = session.embedding
    if embedding is None:
        (embedding,) = models.sam.embed([image])
    found = classifier.found(embedding, session, tokens)
    session.regions.clear()  # they are used here only, and the session may be kept
    kinds = {kind: region_features(models.clip, image, tokens, found.regions, kind) for kind in kinds_of(models)}
    queries = [Query(name, ((name,),)) for name in names]
    present = np.array([name in things for name in names], np.bool_)
    if not found.regions:
        return {kind: RegionRows(np.full(len(names), -np.inf), present, np.zeros((0, 4))) for kind in kinds}
    maps = models.clip.scores(tokens, [query.parts[0] for query in queries], Settings().maps)
    stretched = minmax(on_grid(maps, tokens.grid_hw))
    scores = np.array([region.predicted_iou for region in found.regions])
    scale = COMPARED_SIDE / max(image.hw)
    small = [_smaller(region.in_image(image.hw), scale) for region in found.regions]
    shown = np.flatnonzero(present).tolist()
    true = {column: [_smaller(mask, scale) for mask in things[names[column]]] for column in shown}
    ious = {column: [max(iou(mask, each) for each in true[column]) for mask in small] for column in shown}
    apart = {column: separation(found.shares, stretched[column]) for column in shown}
    gathered: dict[RegionFeatures, RegionRows] = {}
    for kind, features in kinds.items():
        evidence = models.clip.evidence(features, queries).astype(np.float64)
        rows = [np.column_stack([scores, apart[c], evidence[:, c], ious[c]]) for c in shown]
        gathered[kind] = RegionRows(evidence.max(0), present, np.concatenate([np.zeros((0, 4)), *rows]))
    return gathered


def _smaller(mask: NDArray[np.bool_], scale: float) -> NDArray[np.bool_]:
    if scale >= 1:
        return mask
    size = [max(round(side * scale), 1) for side in mask.shape[::-1]]
    smaller: NDArray[np.bool_] = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
    return smaller


def fit_regions(
    gathered: Sequence[Mapping[RegionFeatures, RegionRows]], something: float
) -> RegionClassification | None:
    """Fit to the rows of images with the features that tell present and absent pairs apart best; None if the images
    show nothing or everything."""
    fits = [fit for kind in (gathered[0] if gathered else ()) if (fit := _fit(gathered, kind, something))]
    return min(fits, key=lambda fit: fit[0])[1] if fits else None


def _fit(
    gathered: Sequence[Mapping[RegionFeatures, RegionRows]], kind: RegionFeatures, something: float
) -> tuple[float, RegionClassification] | None:
    """Return the equal error of the features, and presence and choice fitted to the rows.

    Presence is 0.5 where the pairs that are found and present have the best F2. Most queries of a long list are absent,
    so equal shares of lost and found pairs would be many wrong segments. The slope is that of `fit_presence`. The
    choice is fitted by least squares to the regions that are found.
    """
    odds = np.concatenate([each[kind].odds for each in gathered])
    present = np.concatenate([each[kind].present for each in gathered])
    known = np.isfinite(odds)
    if not (present & known).any() or present[known].all():
        return None
    slope, _ = fit_presence(odds[known], present[known])
    middle = best_f2(odds, present)
    rows = np.concatenate([each[kind].rows for each in gathered])
    rows = rows[rows[:, 2] >= middle]
    _, error = equal_error(odds[known], present[known])
    return error, RegionClassification(
        features=kind,
        slope=round(slope, 4),
        offset=round(-slope * middle, 4),
        threshold=0.5,
        something=something,
        choice=fit_region_choice(rows) if len(rows) else None,
    )


def best_f2(odds: Floats, present: Bools) -> float:
    """Return the evidence from which "present" has the best F2: a lost thing counts as much as four wrong ones."""
    values = np.unique(odds[present & np.isfinite(odds)])
    f2 = [5 * (present & (odds >= at)).sum() / max((odds >= at).sum() + 4 * present.sum(), 1) for at in values]
    return float(values[int(np.argmax(f2))])


def fit_region_choice(rows: Floats) -> RegionChoice:
    """Fit how the IoU of a region follows from SAM's score, separation and evidence, rows [N, 4] with the IoU last.

    `quality` is the expected IoU with the best F1 of "right", as in `fit.fit_choice`.
    """
    design = np.column_stack([rows[:, :3], np.ones(len(rows))])
    sam, apart, evidence, constant = np.linalg.lstsq(design, rows[:, 3], rcond=None)[0]
    expected, right = design @ (sam, apart, evidence, constant), rows[:, 3] >= RIGHT
    scores = [2 * (right & (expected >= at)).sum() / max((expected >= at).sum() + right.sum(), 1) for at in QUALITIES]
    return RegionChoice(
        sam=round(float(sam), 4),
        separation=round(float(apart), 4),
        evidence=round(float(evidence), 4),
        constant=round(float(constant), 4),
        quality=QUALITIES[int(np.argmax(scores))],
    )
