"""Faithfulness of saliency methods, measured on images with known objects: deletion and insertion (RISE,
arXiv 1806.07421) and the pointing game (arXiv 1608.00507)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.model import Clip, preprocess
from text2seg.errors import ImageError
from text2seg.explain.catalogue.faithfulness import FaithfulnessSettings, Fill
from text2seg.explain.labelled import Labelled, labelled_sets, mask_of
from text2seg.explain.saliency.methods import check_method, methods_for, saliency
from text2seg.explain.saliency.targets import Target, score, text_target
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.grids import minmax
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.plot import COLOURS, DPI, WIDTH, pixels_of

Scorer = Callable[[Tensor], Tensor]
"""Normalised pixels float32 [B, 3, H, W] to scores float32 [B]."""

BLUR = 0.1
"""Standard deviation of the blur as a share of the image's shorter side: so much that nothing can be told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """The score, float32 [steps + 1], while the share of cells that is gone (`deletion`) or back (`insertion`) grows
    from 0 to 1 in equal steps. Of a faithful map the one falls early and the other rises early."""

    deletion: NDArray[np.float32]
    insertion: NDArray[np.float32]

    @property
    def deleted(self) -> float:
        """Area under the deletion curve: the mean score on the way; lower is better."""
        return area(self.deletion)

    @property
    def inserted(self) -> float:
        """Area under the insertion curve; higher is better."""
        return area(self.insertion)

    @property
    def gap(self) -> float:
        """How much more the score is with what the map calls important than without it."""
        return self.inserted - self.deleted


def area(curve: NDArray[np.float32]) -> float:
    """Under a curve of equal steps over [0, 1], by trapezes.

    >>> area(np.array([1, 0, 0], np.float32))
    0.25
    """
    return float((curve[:-1] + curve[1:]).mean() / 2)


def ranks(saliency: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of every cell of a map [gh, gw] in its order, 0 for the most salient; int64 [gh, gw].

    Cells that are alike come in an order of chance, the same every time: many methods give 0 to most cells, and any
    other order would favour a side of the image.
    """
    values = minmax(saliency).ravel()
    chance = np.random.default_rng(0).permutation(values.size)
    places = np.empty(values.size, np.int64)
    places[np.lexsort((chance, -values))] = np.arange(values.size)
    return places.reshape(saliency.shape)


def filling(pixels: Tensor, fill: Fill) -> Tensor:
    """What stands where cells are gone, of the shape of `pixels` float32 [3, H, W]: the image blurred beyond
    recognition, or the mean colour of what CLIP was trained on (0 in its pixels)."""
    if fill == "mean":
        return torch.zeros_like(pixels)
    planes = pixels.permute(1, 2, 0).cpu().numpy()
    blurred = cv2.GaussianBlur(planes, (0, 0), BLUR * min(planes.shape[:2]))
    return torch.from_numpy(blurred).permute(2, 0, 1).contiguous()


def curves(
    score: Scorer,
    pixels: Tensor,
    filled: Tensor,
    saliency: NDArray[np.float32],
    *,
    steps: int,
    ends: tuple[float, float] | None = None,
) -> Curves:
    """Deletion and insertion by a map, all images between in one call of `score`.

    Args:
        pixels: float32 [3, H, W], normalised.
        filled: of the same shape, see `filling`.
        saliency: float32 [gh, gw], covers the image.
        steps: equal shares of the cells, at least 2.
        ends: the scores of `pixels` and of `filled` where they are known: they are the same for all maps.
    """
    places = torch.from_numpy(ranks(saliency))
    shares = torch.arange(1, steps, dtype=torch.float64, device="cpu") / steps * places.numel()
    first = (places[None] < shares[:, None, None]).float()
    first = F.interpolate(first[:, None], size=pixels.shape[1:], mode="nearest")  # [steps − 1, 1, H, W]
    between = torch.cat([torch.where(first > 0, filled, pixels), torch.where(first > 0, pixels, filled)])
    full, blank = ends or score(torch.stack([pixels, filled])).tolist()
    without, with_first = score(between).float().cpu().numpy().reshape(2, -1)
    return Curves(
        np.concatenate([[full], without, [blank]]).astype(np.float32),
        np.concatenate([[blank], with_first, [full]]).astype(np.float32),
    )


def points_at(saliency: NDArray[np.float32], mask: NDArray[np.bool_]) -> bool:
    """Whether the middle of the map's highest cell lies on the mask bool [H, W]. A map that is the same everywhere
    points nowhere."""
    stretched = minmax(saliency)
    if not stretched.any():
        return False
    row, column = np.unravel_index(stretched.argmax(), stretched.shape)
    (rows, columns), (height, width) = stretched.shape, mask.shape
    return bool(mask[int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)])


ACROSS, HEIGHT = 5, 1.75  # diagrams side by side; inches of one
INSERTED, DELETED = COLOURS[:2]


def plot_curves(methods: Mapping[str, Curves]) -> NDArray[np.uint8]:
    """Both curves of each method and the area between them, uint8[h, w, 3], in the order given, all on one scale."""
    rows = -(-len(methods) // ACROSS)
    figure = Figure(figsize=(WIDTH, rows * HEIGHT + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, ACROSS, squeeze=False, sharex=True, sharey=True)
    for axes, (name, curves) in zip(panels.flat, methods.items(), strict=False):
        _draw(axes, name, curves)
    for axes in panels.flat[len(methods) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(len(methods) - ACROSS, 0) : len(methods)]:  # the lowest that shows in each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("share of the cells", fontsize=9)
    figure.supylabel("score", fontsize=9)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9)
    return pixels_of(figure)


def _draw(axes: Any, name: str, curves: Curves) -> None:
    shares = np.linspace(0, 1, len(curves.deletion))
    axes.plot(shares, curves.insertion, color=INSERTED, linewidth=1.5, label="put back, most salient first")
    axes.plot(shares, curves.deletion, color=DELETED, linewidth=1.5, label="taken away, most salient first")
    higher = curves.insertion >= curves.deletion
    for colour, where in ((INSERTED, higher), (DELETED, ~higher)):
        axes.fill_between(
            shares, curves.deletion, curves.insertion, where, interpolate=True, color=colour, alpha=0.14, linewidth=0
        )
    axes.set_title(f"{name}  {curves.gap:+.3f}", fontsize=8.5, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


MASK, MIDDLE, CHANCE = "(the thing's mask)", "(the middle first)", "(chance)"
COLUMNS = ("method", "deletion", "insertion", "gap", "±", "pointing")
OF_DEMO = (
    "The demo CLIP was trained through the surgery path: that surgery finds its things says nothing about other CLIPs. "
    "Measure yours with --model or --clip, on images of yours with --dataset."
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
    """One thing in one image: the image as CLIP gets it, `pixels` float32 [3, H, W], and with all cells `filled`;
    the thing as a target and as a `mask` bool of the image's size; `number` counts the cases."""

    number: int
    image: Image
    pixels: Tensor
    filled: Tensor
    target: Target
    mask: NDArray[np.bool_]


def faithfulness(
    models: Text2Seg, images: Sequence[Image], settings: FaithfulnessSettings, progress: Progress
) -> Result:
    """A table and a plot of curves for each dataset, the most faithful method first; every (image, thing in it)
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
    for tally, case in progress.each(cases, "images and things", total):
        for name, curve, hit in measured(clip, case, methods, settings):
            tally.setdefault(name, Tally()).add(curve, hit)
    done = [(each, _ranked(tally)) for each, tally in zip(sets, tallies, strict=True) if tally]
    return Result(
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
    """Everything to measure in a dataset; images that cannot be used go to `failures`."""
    number = 0
    for _, pairs in groupby(labelled.pairs, key=lambda pair: pair.scene.image_id):
        first, *others = pairs
        try:
            image = labelled.image_of(first)
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
    return Table(f"{labelled.name}: {count} of {len(labelled.pairs)} things in images", COLUMNS, tuple(rows))


def _notes(models: Text2Seg, settings: FaithfulnessSettings) -> tuple[str, ...]:
    filling = "the blurred image" if settings.fill == "blur" else "CLIP's mean colour"
    notes = (
        f"Deletion: mean score of the thing's text while the cells that a map calls salient give way to {filling}, in "
        f"{settings.steps} steps, the most salient first; lower is better. Insertion: while they come back into it; "
        "higher is better. Gap: insertion less deletion, with its standard error (±). Pointing: how often the highest "
        "cell's middle lies on the thing (the pointing game).",
        "A method that is no better than chance or the middle first explains nothing.",
    )
    return (*notes, OF_DEMO) if models.things else notes
