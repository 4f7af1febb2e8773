"""Pixel attack: how few changed pixels make CLIP rank another label first.

Two greedy searches change one pixel at a time. The margin is the text's cosine minus that of its best rival. The guided
search uses the gradient of the margin to propose `tries` pixels and the extreme colours of their channels; it tries
them all and keeps the one that lowers the margin most. The random search tries as many random pixels and colours. The
difference shows what the gradient knows. (The one-pixel attack of arXiv 1710.08864 searches without a gradient.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import QueryError
from text2seg.explain.estimate import GRADIENT, Work
from text2seg.explain.experiments import Subject, TextSettings, features
from text2seg.explain.recognition import labels_of
from text2seg.explain.tool import Panel, Pixels, Progress, Result, Table, Tool, image_name
from text2seg.records import Image
from text2seg.settings_fields import check_count, check_seed, freeze_names

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class PixelSettings(TextSettings):
    """The ranking that is attacked, and the effort of the attack."""

    label: tuple[str, ...] = ()
    """A label that the text is ranked among; repeat for more. Default: the vocabulary of a model that has one; for
    other
    models, common things."""
    pixels: int = 60
    """Largest number of changed pixels."""
    tries: int = 16
    """Number of changes tried for each pixel; the best is kept."""
    seed: int = 0
    """Random seed; the same seed gives the same random search."""

    def __post_init__(self) -> None:
        TextSettings.__post_init__(self)
        freeze_names(self, "label")
        check_seed(self.seed)
        for name in ("pixels", "tries"):
            check_count(name, getattr(self, name))


Proposals = tuple[NDArray[np.int64], Pixels]
"""Rows and columns [K, 2] of pixels to change, and their new colours uint8 [K, 3]."""
DRAWN_SIDE = 512
"""Side in pixels up to which an image is enlarged to draw rings around its changed pixels."""


@dataclass(slots=True)
class Search:
    """State of one search: the image, its changed pixels, the margin before and after each change, the first label."""

    pixels: Pixels
    first: str
    margins: list[float]
    changed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.margins[-1] < 0

    def end(self, most: int) -> str:
        """Return how the search ended, if `most` pixels could be changed: found, failed, or stopped before."""
        if self.done:
            return "found"
        return "failed" if len(self.changed) >= most else "stopped"


class Ranking:
    """Ranks the attacked text and its rivals by their cosines with an image."""

    def __init__(self, subject: Subject, labels: Sequence[str], texts: Tensor) -> None:
        self.subject, self.labels, self._texts = subject, tuple(labels), texts

    def margins(self, images: Sequence[Pixels]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the text's cosine minus that of its best rival, float32 [N], and the index [N] of that rival."""
        cosines = features(self.subject.clip, images) @ self._texts.T
        rivals, which = cosines[:, 1:].max(1)
        return (cosines[:, 0] - rivals).cpu().numpy(), (which + 1).cpu().numpy()

    def gradient(self, pixels: Pixels, rival: int) -> NDArray[np.float32]:
        """Return the change of the margin to a rival per level of each channel, float32 [h, w, 3]."""
        import torch

        from text2seg.clip.model import CLIP_STD
        from text2seg.explain.saliency.targets import Target, score

        clip = self.subject.clip
        inputs = clip.preprocess(Image(pixels), self.subject.hw)[None].to(clip.device).requires_grad_()
        margin = score(clip, inputs, Target("margin", self._texts[0] - self._texts[rival]))
        (found,) = torch.autograd.grad(margin.sum(), inputs)
        levels: NDArray[np.float32] = found[0].permute(1, 2, 0).float().cpu().numpy()
        return levels / (255 * np.array(CLIP_STD, np.float32))


def experiment_pixels(models: Text2Seg, images: Sequence[Image], settings: PixelSettings, progress: Progress) -> Result:
    """Run both searches until another label ranks first or the largest number of pixels is changed.

    Raises:
        QueryError: the text is empty, too long or unknown to the models, or CLIP does not rank it first.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text)
    name = subject.target.name
    labels = tuple(dict.fromkeys((name, *labels_of(models, (*settings.label, name) if settings.label else ()))))
    # clone: tensors made in inference mode allow no gradients
    ranking = Ranking(subject, labels, models.clip.encode_texts(labels).clone())
    (before,), (rival,) = ranking.margins([subject.pixels])
    if before < 0:
        raise QueryError(
            f"CLIP already ranks {labels[rival]!r} before {name!r}; give --text {labels[rival]!r}",
            on_page=f"CLIP already ranks {labels[rival]!r} before {name!r}; use {labels[rival]!r} as “Text”",
        )
    searches = {
        "guided": Search(subject.pixels, name, [float(before)]),
        "random": Search(subject.pixels, name, [float(before)]),
    }
    chance = np.random.default_rng(settings.seed)
    propose: dict[str, Callable[[Search], Proposals]] = {
        "guided": lambda search: propose_by_gradient(ranking, search, settings.tries),
        "random": lambda search: propose_at_random(search, settings.tries, chance),
    }
    area = subject.pixels.shape[0] * subject.pixels.shape[1]
    jobs = [way for way in searches for _ in range(min(settings.pixels, area))]
    for way in progress.each(jobs, "pixels"):
        if not searches[way].done:
            advance(ranking, searches[way], propose[way](searches[way]))
    most = min(settings.pixels, area)
    rows = tuple(
        (way, len(each.changed), each.margins[-1], each.first, each.end(most)) for way, each in searches.items()
    )
    return Result(
        f"{image_name(image)}: pixels until “{name}” is no longer first of {len(labels)}",
        (Panel("changed pixels, marked by rings", _drawn(subject.pixels, searches)),),
        (Table("Searches", ("search", "pixels changed", "margin", "ranked first", "end"), rows),),
        (
            f"At the start, “{labels[rival]}” ranks second, with a margin of {before:.3f}. The image has {area:,} "
            f"pixels; {settings.tries} changes are tried for each changed pixel. A search fails if {most} changed "
            "pixels leave the margin above 0.",
        ),
    )


def _work(models: Text2Seg, images: int, settings: PixelSettings) -> Work:
    """Return the most work that is possible: a search that finds its pixels ends earlier."""
    return Work(clip_images=settings.pixels * (2 * settings.tries + 1 + GRADIENT))


EXPERIMENT_PIXELS = Tool(
    "experiment-pixels",
    "Pixel attack",
    "How few changed pixels make CLIP rank another label first.",
    PixelSettings,
    experiment_pixels,
    work=_work,
)


def propose_by_gradient(ranking: Ranking, search: Search, tries: int) -> Proposals:
    """Propose the pixels that lower the margin most, by the gradient, when their channels become 0 or 255."""
    _, (rival,) = ranking.margins([search.pixels])
    gradient = ranking.gradient(search.pixels, int(rival))
    extremes = np.where(gradient > 0, 0, 255).astype(np.uint8)
    gain = -(gradient * (extremes.astype(np.float32) - search.pixels)).sum(-1)
    for row, column in search.changed:
        gain[row, column] = -np.inf
    best = np.argsort(-gain, axis=None, kind="stable")[:tries]
    where = np.stack(np.unravel_index(best, gain.shape), axis=1)
    return where, extremes[where[:, 0], where[:, 1]]


def propose_at_random(search: Search, tries: int, chance: np.random.Generator) -> Proposals:
    """Propose random unchanged pixels with random channels of 0 or 255."""
    height, width = search.pixels.shape[:2]
    taken = {row * width + column for row, column in search.changed}
    drawn = [at for at in chance.permutation(height * width)[: tries + len(taken)].tolist() if at not in taken][:tries]
    where = np.stack(np.divmod(np.array(drawn), width), axis=1)
    return where, (chance.integers(0, 2, (len(where), 3)) * 255).astype(np.uint8)


def advance(ranking: Ranking, search: Search, proposals: Proposals) -> None:
    """Make the proposed change with the lowest margin, even if it raises the margin."""
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
    from text2seg.render.charts import COLOURS, draw_legend, pixels_of, strip_and_panels

    cells = [("unchanged", before)]
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
    import cv2

    from text2seg.render.drawing import NEGATIVE, PAPER

    factor = max(1, DRAWN_SIDE // max(search.pixels.shape[:2]))
    shown = np.ascontiguousarray(search.pixels.repeat(factor, axis=0).repeat(factor, axis=1))
    for row, column in search.changed:
        middle = (int((column + 0.5) * factor), int((row + 0.5) * factor))
        cv2.circle(shown, middle, 9, PAPER, 4, cv2.LINE_AA)
        cv2.circle(shown, middle, 9, NEGATIVE, 2, cv2.LINE_AA)
    return shown
