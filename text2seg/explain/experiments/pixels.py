"""How few changed pixels make CLIP rank something else first.

Two greedy searches, pixel by pixel. Guided: the gradient of the margin (the text's cosine less that of its best rival)
says which pixels promise most and to which extreme their channels should go; the best `tries` of these are really
tried, and the one stays that lowers the margin most. Random: as many random pixels and extremes are tried. What the
first needs less is what the gradient knows. (The one-pixel attack of arXiv 1710.08864 searches without a gradient.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from text2seg.clip.model import preprocess
from text2seg.errors import QueryError
from text2seg.explain.backdrop import named
from text2seg.explain.catalogue.experiments import PixelSettings
from text2seg.explain.experiments.common import Pixels, Subject, features
from text2seg.explain.multilabel import labels_of
from text2seg.explain.saliency.targets import Target, score
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.queries import CLIP_STD
from text2seg.records import Image
from text2seg.render.colours import NEGATIVE, PAPER
from text2seg.render.plot import COLOURS, draw_legend, pixels_of, strip_and_panels

Proposals = tuple[NDArray[np.int64], Pixels]
"""Where pixels are to be changed, rows and columns [K, 2], and to which colours, uint8 [K, 3]."""
SHOWN = 512  # pixels of the images in which the changed ones are ringed


@dataclass(slots=True)
class Search:
    """An image under attack: which pixels were changed, the margin before and after each, who ranks first."""

    pixels: Pixels
    first: str
    margins: list[float]
    changed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.margins[-1] < 0


class Ranking:
    """Cosines of images with the attacked text and its rivals."""

    def __init__(self, subject: Subject, labels: Sequence[str], texts: Tensor) -> None:
        self.subject, self.labels, self._texts = subject, tuple(labels), texts

    def margins(self, images: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The text's cosine less that of its best rival, float32 [N], and which of the labels that is [N]."""
        cosines = features(self.subject.clip, images) @ self._texts.T
        rivals, which = cosines[:, 1:].max(1)
        return (cosines[:, 0] - rivals).cpu().numpy(), (which + 1).cpu().numpy()

    def gradient(self, pixels: Pixels, rival: int) -> NDArray[np.float32]:
        """How the margin to this rival changes with each level of each channel, float32 [h, w, 3]."""
        clip = self.subject.clip
        inputs = preprocess(Image(pixels), self.subject.hw)[None].to(clip.device).requires_grad_()
        margin = score(clip, inputs, Target("margin", self._texts[0] - self._texts[rival]))
        (found,) = torch.autograd.grad(margin.sum(), inputs)
        levels: NDArray[np.float32] = found[0].permute(1, 2, 0).float().cpu().numpy()
        return levels / (255 * np.array(CLIP_STD, np.float32))


def run(models: Text2Seg, images: Sequence[Image], settings: PixelSettings, progress: Progress) -> Result:
    """Both searches, until something else ranks first or as many pixels are changed as may be.

    Raises:
        QueryError: the text is empty, too long, unknown to the models, or is not ranked first to begin with.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text, settings.size)
    name = subject.target.name
    labels = tuple(dict.fromkeys((name, *labels_of(models, (*settings.label, name) if settings.label else ()))))
    # A copy, because gradients cannot be taken with what was made without them.
    ranking = Ranking(subject, labels, models.clip.encode_texts(labels).clone())
    (before,), (rival,) = ranking.margins([subject.pixels])
    if before < 0:
        raise QueryError(f"CLIP ranks {labels[rival]!r} before {name!r} here; give --text {labels[rival]!r}")
    searches = {
        "guided": Search(subject.pixels, name, [float(before)]),
        "random": Search(subject.pixels, name, [float(before)]),
    }
    chance = np.random.default_rng(settings.seed)
    propose: dict[str, Callable[[Search], Proposals]] = {
        "guided": lambda search: promising(ranking, search, settings.tries),
        "random": lambda search: by_chance(search, settings.tries, chance),
    }
    area = subject.pixels.shape[0] * subject.pixels.shape[1]
    jobs = [way for way in searches for _ in range(min(settings.pixels, area))]
    for way in progress.each(jobs, "pixels"):
        if not searches[way].done:
            advance(ranking, searches[way], propose[way](searches[way]))
    rows = tuple((way, len(each.changed), each.margins[-1], each.first) for way, each in searches.items())
    return Result(
        f"{named(image)}: pixels until “{name}” is no longer first of {len(labels)}",
        (Panel("changed pixels, each in a ring", _drawn(subject.pixels, searches)),),
        (Table("the searches", ("search", "pixels changed", "margin", "ranked first"), rows),),
        (
            f"Before, “{labels[rival]}” comes second, {before:.3f} behind. Of the image's {area:,} pixels, "
            f"{settings.tries} are tried for each that is changed. A search that ends above 0 was in vain.",
        ),
    )


def promising(ranking: Ranking, search: Search, tries: int) -> Proposals:
    """The pixels that by the gradient lower the margin most when their channels go to 0 or 255."""
    _, (rival,) = ranking.margins([search.pixels])
    gradient = ranking.gradient(search.pixels, int(rival))
    extremes = np.where(gradient > 0, 0, 255).astype(np.uint8)
    gain = -(gradient * (extremes.astype(np.float32) - search.pixels)).sum(-1)
    for row, column in search.changed:
        gain[row, column] = -np.inf
    best = np.argsort(-gain, axis=None, kind="stable")[:tries]
    where = np.stack(np.unravel_index(best, gain.shape), axis=1)
    return where, extremes[where[:, 0], where[:, 1]]


def by_chance(search: Search, tries: int, chance: np.random.Generator) -> Proposals:
    """Random pixels that were not changed yet, their channels 0 or 255."""
    height, width = search.pixels.shape[:2]
    taken = {row * width + column for row, column in search.changed}
    drawn = [at for at in chance.permutation(height * width)[: tries + len(taken)].tolist() if at not in taken][:tries]
    where = np.stack(np.divmod(np.array(drawn), width), axis=1)
    return where, (chance.integers(0, 2, (len(where), 3)) * 255).astype(np.uint8)


def advance(ranking: Ranking, search: Search, proposals: Proposals) -> None:
    """Change the one pixel of those proposed that lowers the margin most, even if it is by less than nothing."""
    where, colours = proposals
    images = []
    for (row, column), colour in zip(where, colours, strict=True):
        changed = search.pixels.copy()
        changed[row, column] = colour
        images.append(changed)
    margins, rivals = ranking.margins(images)
    best = int(margins.argmin())
    search.pixels = images[best]
    search.changed.append((int(where[best, 0]), int(where[best, 1])))
    search.margins.append(float(margins[best]))
    search.first = ranking.labels[int(rivals[best])] if search.done else ranking.labels[0]


def _drawn(before: Pixels, searches: dict[str, Search]) -> Pixels:
    cells = [("as it is", before)]
    cells += [(f"{way}: {len(each.changed)} pixels", _ringed(each)) for way, each in searches.items()]
    figure, (axes,) = strip_and_panels(cells, 1)
    for colour, (way, each) in zip(COLOURS, searches.items(), strict=False):
        axes.plot(each.margins, color=colour, marker=".", linewidth=1.6, label=way)
    axes.axhline(0, color="#888888", linestyle="--", linewidth=1)
    axes.set_xlabel("pixels changed")
    axes.set_ylabel("margin to the best rival")
    draw_legend(axes)
    return pixels_of(figure)


def _ringed(search: Search) -> Pixels:
    factor = max(1, SHOWN // max(search.pixels.shape[:2]))
    shown = np.ascontiguousarray(search.pixels.repeat(factor, axis=0).repeat(factor, axis=1))
    for row, column in search.changed:
        middle = (int((column + 0.5) * factor), int((row + 0.5) * factor))
        cv2.circle(shown, middle, 9, PAPER, 4, cv2.LINE_AA)
        cv2.circle(shown, middle, 9, NEGATIVE, 2, cv2.LINE_AA)
    return shown
