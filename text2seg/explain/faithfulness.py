"""Saliency methods measured on pictures whose things are known, in one table: which of them to trust.

Beside the methods stand three orders that need no model: the thing's own mask, the middle of the picture first, and
chance. A method that is no better than the last two explains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2seg.errors import ImageError
from text2seg.explain.catalogue.faithfulness import FaithfulnessSettings
from text2seg.explain.curves import Curves, curves, filling, points_at
from text2seg.explain.curves_plot import plot_curves
from text2seg.explain.exhibit import Exhibit, Panel, Table
from text2seg.explain.labelled import Labelled, labelled_sets, mask_of
from text2seg.explain.saliency.methods import check_method, methods_for, saliency
from text2seg.explain.saliency.targets import Target, score, text_target
from text2seg.explain.watch import Watch
from text2seg.maps.clip import Clip, preprocess
from text2seg.pipeline import Text2Seg
from text2seg.records import Image

MASK, MIDDLE, CHANCE = "(the thing's mask)", "(the middle first)", "(chance)"
COLUMNS = ("method", "deletion", "insertion", "gap", "±", "pointing")
OF_DEMO = (
    "The demo CLIP was trained through the surgery path: that surgery finds its things says nothing about other CLIPs. "
    "Measure yours with --model or --clip, on pictures of yours with --dataset."
)


@dataclass(slots=True)
class Tally:
    """What one method did on every pair until now."""

    curves: list[Curves] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)

    def add(self, curve: Curves, hit: bool) -> None:
        self.curves.append(curve)
        self.hits.append(hit)

    @property
    def mean(self) -> Curves:
        """The mean curves; their areas are the means of the areas."""
        return Curves(
            np.mean([each.deletion for each in self.curves], axis=0),
            np.mean([each.insertion for each in self.curves], axis=0),
        )

    @property
    def error(self) -> float | None:
        """Standard error of the mean gap; none for a single pair."""
        gaps = [each.gap for each in self.curves]
        return float(np.std(gaps, ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else None

    @property
    def pointing(self) -> float:
        """Share of pairs in which the map's peak lies on the thing."""
        return float(np.mean(self.hits))


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One thing in one picture: the picture as CLIP gets it, `pixels` float32 [3, H, W], and with all cells `filled`;
    the thing as a target and as a `mask` bool of the picture's size; `number` counts the cases."""

    number: int
    image: Image
    pixels: Tensor
    filled: Tensor
    target: Target
    mask: NDArray[np.bool_]


def faithfulness(models: Text2Seg, images: Sequence[Image], settings: FaithfulnessSettings, watch: Watch) -> Exhibit:
    """A table and a plot of curves for each dataset, the most faithful method first; every (picture, thing in it)
    counts once. Stopped early, it shows what is done.

    Raises:
        DatasetError: a dataset is missing, damaged or without masks.
        SettingsError: a method is nothing for this CLIP.
        QueryError: the models do not know a category.
    """
    clip = models.clip
    methods = [check_method(clip, name).name for name in settings.method or methods_for(clip)]
    sets = labelled_sets(settings.dataset, settings.images, settings.limit)
    things = dict.fromkeys(each.thing(pair) for each in sets for pair in each.pairs)
    targets = {thing: text_target(clip, thing, things=models.things) for thing in things}
    failures: list[str] = []
    tallies: list[dict[str, Tally]] = [{} for _ in sets]
    cases = (
        (tally, case)
        for each, tally in zip(sets, tallies, strict=True)
        for case in _cases(each, clip, targets, settings, failures)
    )
    total = sum(len(each.pairs) for each in sets)
    for tally, case in watch.each(cases, "pictures and things", total):
        for name, curve, hit in measured(clip, case, methods, settings):
            tally.setdefault(name, Tally()).add(curve, hit)
    done = [(each, _ranked(tally)) for each, tally in zip(sets, tallies, strict=True) if tally]
    return Exhibit(
        "Faithfulness of saliency methods",
        tuple(Panel(each.name, plot_curves({name: of.mean for name, of in ranked.items()})) for each, ranked in done),
        tuple(_table(each, ranked) for each, ranked in done),
        (*_notes(models, settings), *failures),
        columns=1,
    )


def measured(
    clip: Clip, case: Case, methods: Sequence[str], settings: FaithfulnessSettings
) -> Iterator[tuple[str, Curves, bool]]:
    """The curves of each order, and whether its peak lies on the thing; the methods first."""

    @torch.inference_mode()
    def scores(pixels: Tensor) -> Tensor:
        return score(clip, pixels, case.target)

    full, blank = scores(torch.stack([case.pixels, case.filled])).tolist()
    maps = ((name, saliency(clip, case.image, case.target, name, size=settings.size)) for name in methods)
    rows, columns = (side // clip.stride for side in case.pixels.shape[1:])
    for name, found in (*maps, *_without_model(case.mask, (rows, columns), case.number).items()):
        curve = curves(scores, case.pixels, case.filled, found, steps=settings.steps, ends=(full, blank))
        yield name, curve, points_at(found, case.mask)


def _without_model(mask: NDArray[np.bool_], grid_hw: tuple[int, int], number: int) -> dict[str, NDArray[np.float32]]:
    """Maps float32 [gh, gw] that no model is needed for."""
    rows, columns = grid_hw
    down, right = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    covered = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    return {
        MASK: np.asarray(covered, np.float32),
        MIDDLE: -np.hypot(down, right).astype(np.float32),
        CHANCE: np.random.default_rng(number).random(grid_hw, np.float32),
    }


def _cases(
    labelled: Labelled,
    clip: Clip,
    targets: Mapping[str, Target],
    settings: FaithfulnessSettings,
    failures: list[str],
) -> Iterator[Case]:
    """Everything to measure in a dataset; pictures that cannot be used go to `failures`."""
    number = 0
    for _, pairs in groupby(labelled.pairs, key=lambda pair: pair.scene.image_id):
        first, *others = pairs
        try:
            image = labelled.picture(first)
        except ImageError as error:
            failures.append(str(error))
            continue
        pixels = preprocess(image, clip.input_hw(settings.size))
        filled = filling(pixels, settings.fill)
        for pair in (first, *others):
            yield Case(number, image, pixels, filled, targets[labelled.thing(pair)], mask_of(pair))
            number += 1


def _ranked(tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    """The most faithful first."""
    return dict(sorted(tallies.items(), key=lambda item: -item[1].mean.gap))


def _table(labelled: Labelled, ranked: Mapping[str, Tally]) -> Table:
    rows = []
    for name, tally in ranked.items():
        mean = tally.mean
        rows.append((name, mean.deleted, mean.inserted, mean.gap, tally.error, tally.pointing))
    count = len(next(iter(ranked.values())).curves)
    return Table(f"{labelled.name}: {count} of {len(labelled.pairs)} things in pictures", COLUMNS, tuple(rows))


def _notes(models: Text2Seg, settings: FaithfulnessSettings) -> tuple[str, ...]:
    filling = "the blurred picture" if settings.fill == "blur" else "CLIP's mean colour"
    notes = (
        f"Deletion: mean score of the thing's text while the cells that a map calls salient give way to {filling}, in "
        f"{settings.steps} steps, the most salient first; lower is better. Insertion: while they come back into it; "
        "higher is better. Gap: insertion less deletion, with its standard error (±). Pointing: how often the highest "
        "cell's middle lies on the thing (the pointing game).",
        "A method that is no better than chance or the middle first explains nothing.",
    )
    return (*notes, OF_DEMO) if models.things else notes
