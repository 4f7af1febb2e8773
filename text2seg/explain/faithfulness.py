"""Faithfulness of saliency methods, measured on images with known objects: deletion and insertion (RISE,
arXiv 1806.07421) and the pointing game (arXiv 1608.00507)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind
from text2seg.errors import ImageError, SettingsError
from text2seg.explain.estimate import GRADIENT, Work
from text2seg.explain.saliency.methods import MethodName, check_method, methods_for, saliency
from text2seg.explain.tool import (
    InputSettings,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    check_sets,
    fitted,
    fitted_pixels,
)
from text2seg.records import Image
from text2seg.settings_fields import check_count

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.explain.labelled import Labelled
    from text2seg.explain.saliency.targets import Target
    from text2seg.pipeline import Text2Seg

    Scorer = Callable[[Tensor], Tensor]  # normalised pixels float32 [B, 3, H, W] to scores float32 [B]

Fill = Literal["blur", "mean"]
MOST_STEPS = 100
"""Largest number of steps of a curve."""


@dataclass(frozen=True, slots=True)
class FaithfulnessSettings(InputSettings):
    """The datasets and methods to measure, and the details of the measurement."""

    dataset: tuple[Path, ...] = ()
    """A COCO dataset with masks; repeat for more. Default: both splits of the demo scenes that come with text2seg."""
    images: Path | None = None
    """Folder of the images. Default: the paths in the dataset, relative to its own folder."""
    limit: int | None = None
    """Use only the first images of each dataset, up to this number."""
    method: tuple[MethodName, ...] = ()
    """A saliency method to measure; repeat for more. Default: all methods that this CLIP supports, except scorecam and
    ablationcam, which are slow."""
    steps: int = 8
    """Number of equal steps in which the cells of an image are deleted and inserted. More steps take longer."""
    fill: Fill = "blur"
    """Content of deleted cells. blur: the image, blurred beyond recognition; mean: CLIP's mean colour."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        if not 2 <= self.steps <= MOST_STEPS:
            raise SettingsError(f"steps must be from 2 to {MOST_STEPS}, got {self.steps}")
        check_count("limit", self.limit)

    def check_given(self) -> None:
        check_sets(self.dataset, self.images)

    def check_clip(self, clip: ClipKind) -> None:
        InputSettings.check_clip(self, clip)
        for name in self.method:
            check_method(clip, name)


BLUR = 0.1
"""Standard deviation of the blur as a share of the shorter side: nothing can be recognised."""


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """Scores float32 [steps + 1] while the share of deleted or inserted cells grows from 0 to 1 in equal steps.

    For a faithful map the deletion curve falls early and the insertion curve rises early.
    """

    deletion: NDArray[np.float32]
    insertion: NDArray[np.float32]

    @property
    def deleted(self) -> float:
        """Area under the deletion curve, which is the mean score; lower is better."""
        return area(self.deletion)

    @property
    def inserted(self) -> float:
        """Area under the insertion curve; higher is better."""
        return area(self.insertion)

    @property
    def gap(self) -> float:
        """Area under the insertion curve minus area under the deletion curve; higher is better."""
        return self.inserted - self.deleted


def area(curve: NDArray[np.float32]) -> float:
    """Return the area under a curve of equal steps over [0, 1], by the trapezoidal rule.

    >>> area(np.array([1, 0, 0], np.float32))
    0.25
    """
    return float((curve[:-1] + curve[1:]).mean() / 2)


def ranks(saliency: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the rank of every cell of a map [gh, gw], int64 [gh, gw], with 0 for the most salient.

    Equal cells are ranked at random, the same in every run: many methods give 0 to most cells, and any other order
    would favour one side of the image.
    """
    from text2seg.grids import minmax

    values = minmax(saliency).ravel()
    tie_breaks = np.random.default_rng(0).permutation(values.size)
    places = np.empty(values.size, np.int64)
    places[np.lexsort((tie_breaks, -values))] = np.arange(values.size)
    return places.reshape(saliency.shape)


def filling(pixels: Tensor, fill: Fill) -> Tensor:
    """Return the content of deleted cells for `pixels` float32 [3, H, W]: the image, blurred beyond recognition, or the
    mean colour of CLIP's training images, which is 0."""
    import cv2
    import torch

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
    """Compute the deletion and insertion curves of a map, with one call of `score` for all steps.

    Args:
        score: the score of images.
        pixels: float32 [3, H, W], normalised.
        filled: content of deleted cells, of the same shape; see `filling`.
        saliency: float32 [gh, gw], a grid that covers the image.
        steps: number of equal shares of the cells, at least 2.
        ends: the scores of `pixels` and `filled` if known; they are the same for all maps.
    """
    import torch
    from torch.nn import functional as F

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
    """Return whether the centre of the map's highest cell is in the mask bool [H, W]. False for a constant map."""
    from text2seg.grids import minmax

    stretched = minmax(saliency)
    if not stretched.any():
        return False
    row, column = np.unravel_index(stretched.argmax(), stretched.shape)
    (rows, columns), (height, width) = stretched.shape, mask.shape
    return bool(mask[int((row + 0.5) * height / rows), int((column + 0.5) * width / columns)])


ACROSS, HEIGHT = 5, 1.75
"""Number of diagrams side by side, and the height of one in inches."""


def plot_curves(methods: Mapping[str, Curves]) -> Pixels:
    """Draw both curves of each method and the area between them, uint8[h, w, 3], in order, on one scale."""
    from matplotlib.figure import Figure

    from text2seg.render.charts import DPI, WIDTH, pixels_of

    rows = -(-len(methods) // ACROSS)
    figure = Figure(figsize=(WIDTH, rows * HEIGHT + 0.5), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, ACROSS, squeeze=False, sharex=True, sharey=True)
    for axes, (name, curves) in zip(panels.flat, methods.items(), strict=False):
        _draw(axes, name, curves)
    for axes in panels.flat[len(methods) :]:
        axes.set_visible(False)
    for axes in panels.flat[max(len(methods) - ACROSS, 0) : len(methods)]:  # the lowest visible diagram of each column
        axes.tick_params(labelbottom=True)
    figure.supxlabel("share of the cells", fontsize=9)
    figure.supylabel("score", fontsize=9)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=9)
    return pixels_of(figure)


def _draw(axes: Any, name: str, curves: Curves) -> None:
    from text2seg.render.charts import COLOURS

    inserted, deleted = COLOURS[:2]
    shares = np.linspace(0, 1, len(curves.deletion))
    axes.plot(shares, curves.insertion, color=inserted, linewidth=1.5, label="insertion, most salient first")
    axes.plot(shares, curves.deletion, color=deleted, linewidth=1.5, label="deletion, most salient first")
    higher = curves.insertion >= curves.deletion
    for colour, where in ((inserted, higher), (deleted, ~higher)):
        axes.fill_between(
            shares, curves.deletion, curves.insertion, where, interpolate=True, color=colour, alpha=0.14, linewidth=0
        )
    axes.set_title(f"{name}  {curves.gap:+.3f}", fontsize=8.5, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


MASK, CENTRE, RANDOM = "(mask of the object)", "(centre first)", "(random)"
"""Maps that need no model, for comparison."""
COLUMNS = ("method", "deletion", "insertion", "gap", "±", "pointing")


@dataclass(slots=True)
class Tally:
    """Curves and hits of one method on the cases measured so far."""

    curves: list[Curves] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)

    def add(self, curve: Curves, hit: bool) -> None:
        self.curves.append(curve)
        self.hits.append(hit)

    @property
    def mean(self) -> Curves:
        """Mean curves; their areas are the mean areas."""
        return Curves(
            np.mean([each.deletion for each in self.curves], axis=0),
            np.mean([each.insertion for each in self.curves], axis=0),
        )

    @property
    def error(self) -> float | None:
        """Standard error of the mean gap; None for a single case."""
        gaps = [each.gap for each in self.curves]
        return float(np.std(gaps, ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else None

    @property
    def pointing(self) -> float:
        """Share of cases in which the map's peak is on the object."""
        return float(np.mean(self.hits))


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A category in an image, measured once.

    Attributes:
        number: index of the case in its dataset.
        image: the image.
        pixels: the input of CLIP, float32 [3, H, W].
        filled: the input with all cells deleted, of the same shape.
        target: the category as a target.
        mask: the objects of the category, bool of the image's size.
    """

    number: int
    image: Image
    pixels: Tensor
    filled: Tensor
    target: Target
    mask: NDArray[np.bool_]


def faithfulness(
    models: Text2Seg, images: Sequence[Image], settings: FaithfulnessSettings, progress: Progress
) -> Result:
    """Show a table and curves for each dataset, the most faithful method first.

    Each pair of an image and a category in it counts once. If stopped, show the results so far.

    Raises:
        DatasetError: a dataset is missing, damaged or without masks.
        SettingsError: this CLIP does not support a method.
        QueryError: the models do not know a category.
    """
    from text2seg.explain.labelled import labelled_sets
    from text2seg.explain.saliency.targets import text_target

    clip = models.clip
    methods = [check_method(clip, name).name for name in settings.method or methods_for(clip, slow=False)]
    sets = labelled_sets(settings.dataset, settings.images, settings.limit)
    names = dict.fromkeys(each.category_name(pair) for each in sets for pair in each.pairs)
    targets = {name: text_target(clip, name, closed_vocabulary=models.closed_vocabulary) for name in names}
    failures: list[str] = []
    tallies: list[dict[str, Tally]] = [{} for _ in sets]
    cases = (
        (tally, case)
        for each, tally in zip(sets, tallies, strict=True)
        for case in _cases(each, clip, targets, settings, failures)
    )
    total = sum(len(each.pairs) for each in sets)
    for tally, case in progress.each(cases, "categories in images", total):
        of_case = []
        for each in measured(clip, case, methods, settings):
            if progress.stopped:  # all methods have the same cases
                break
            of_case.append(each)
        else:
            for name, curve, hit in of_case:
                tally.setdefault(name, Tally()).add(curve, hit)
    done = [(each, _ranked(tally)) for each, tally in zip(sets, tallies, strict=True) if tally]
    return Result(
        "Faithfulness of saliency methods",
        tuple(Panel(each.name, plot_curves({name: of.mean for name, of in ranked.items()})) for each, ranked in done),
        tuple(_table(each, ranked) for each, ranked in done),
        (*_notes(models, settings), *failures),
        columns=1,
        left_out=len(failures),
    )


def _work(models: Text2Seg, images: int, settings: FaithfulnessSettings) -> Work:
    from text2seg.explain.labelled import labelled_sets

    methods = len(settings.method or methods_for(models.clip, slow=False))
    cases = sum(len(each.pairs) for each in labelled_sets(settings.dataset, settings.images, settings.limit))
    curves = (methods + 3) * 2 * (settings.steps - 1)  # three maps need no model
    return Work(clip_images=cases * (methods * GRADIENT + curves))


FAITHFULNESS = Tool(
    "faithfulness",
    "Faithfulness of methods",
    "Deletion and insertion curves and the pointing game for all saliency methods: which of them to trust.",
    FaithfulnessSettings,
    faithfulness,
    "none",
    _work,
)


def measured(
    clip: Clip, case: Case, methods: Sequence[str], settings: FaithfulnessSettings
) -> Iterator[tuple[str, Curves, bool]]:
    """Yield the name and curves of each map, and whether its peak is on the object; the methods come first."""
    import torch

    from text2seg.explain.saliency.targets import score

    @torch.inference_mode()
    def scores(pixels: Tensor) -> Tensor:
        return score(clip, pixels, case.target)

    full, blank = scores(torch.stack([case.pixels, case.filled])).tolist()
    rows, columns = (side // clip.stride for side in case.pixels.shape[1:])
    maps = ((name, _on_cells(saliency(clip, case.image, case.target, name), (rows, columns))) for name in methods)
    for name, found in (*maps, *_maps_without_model(case.mask, (rows, columns), case.number).items()):
        curve = curves(scores, case.pixels, case.filled, found, steps=settings.steps, ends=(full, blank))
        yield name, curve, points_at(found, case.mask)


def _on_cells(found: NDArray[np.float32], grid_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return the means of a map in the cells of CLIP's grid, so that the cells of all methods are of one size."""
    import cv2

    rows, columns = grid_hw
    if found.shape == grid_hw:
        return found
    return np.asarray(cv2.resize(found, (columns, rows), interpolation=cv2.INTER_AREA), np.float32)


def _maps_without_model(
    mask: NDArray[np.bool_], grid_hw: tuple[int, int], number: int
) -> dict[str, NDArray[np.float32]]:
    """Return the maps float32 [gh, gw] that need no model."""
    rows, columns = grid_hw
    down, right = np.linspace(-1, 1, rows)[:, None], np.linspace(-1, 1, columns)[None]
    return {
        MASK: _on_cells(mask.astype(np.float32), grid_hw),
        CENTRE: -np.hypot(down, right).astype(np.float32),
        RANDOM: np.random.default_rng(number).random(grid_hw, np.float32),
    }


def _cases(
    labelled: Labelled,
    clip: Clip,
    targets: Mapping[str, Target],
    settings: FaithfulnessSettings,
    failures: list[str],
) -> Iterator[Case]:
    """Yield the cases of a dataset; add a message to `failures` for each image that cannot be read."""
    from text2seg.explain.labelled import mask_of

    number = 0
    for _, pairs in groupby(labelled.pairs, key=lambda pair: pair.scene.image_id):
        first, *others = pairs
        try:
            image = fitted(labelled.image_of(first), settings.fit)
        except ImageError as error:
            failures.append(str(error))
            continue
        pixels = clip.preprocess(image)
        filled = filling(pixels, settings.fill)
        for pair in (first, *others):
            mask = fitted_pixels(mask_of(pair), settings.fit, False)
            if not mask.any():
                failures.append(f"{pair.scene.file_name}: {labelled.category_name(pair)} is outside the crop")
                continue
            yield Case(number, image, pixels, filled, targets[labelled.category_name(pair)], mask)
            number += 1


def _ranked(tallies: Mapping[str, Tally]) -> dict[str, Tally]:
    """Sort by gap, the most faithful method first."""
    return dict(sorted(tallies.items(), key=lambda item: -item[1].mean.gap))


def _table(labelled: Labelled, ranked: Mapping[str, Tally]) -> Table:
    rows = []
    for name, tally in ranked.items():
        mean = tally.mean
        rows.append((name, mean.deleted, mean.inserted, mean.gap, tally.error, tally.pointing))
    count = len(next(iter(ranked.values())).curves)
    return Table(f"{labelled.name}: {count} of {len(labelled.pairs)} categories in images", COLUMNS, tuple(rows))


def _notes(models: Text2Seg, settings: FaithfulnessSettings) -> tuple[str, ...]:
    filling = "the blurred image" if settings.fill == "blur" else "CLIP's mean colour"
    notes = (
        f"Deletion: mean score of the category's name while the cells of the image are replaced by {filling} in "
        f"{settings.steps} steps, the most salient first; lower is better. Insertion: the same while they are put "
        "back; higher is better. Gap: insertion minus deletion, with its standard error (±). Pointing: share of maps "
        "with the centre of the highest cell on the object (pointing game).",
        "A method explains something only if it is better than the random order and the order from the centre.",
    )
    return (*notes, *models.card.notes_on("attention"))
