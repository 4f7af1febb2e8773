"""Shared parts of the experiments: an image at CLIP's input size, a text, and curves over several runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from torch import Tensor

from text2seg.clip.model import Clip
from text2seg.errors import QueryError
from text2seg.explain.saliency.targets import Target, text_target
from text2seg.explain.tool import Table
from text2seg.pipeline import Text2Seg
from text2seg.queries import CLIP_MEAN
from text2seg.records import Image
from text2seg.render.plot import COLOURS, draw_legend, draw_spread, pixels_of, strip_and_panels

Pixels = NDArray[np.uint8]

BATCH = 16
GREY = np.rint(np.array(CLIP_MEAN) * 255).astype(np.uint8)
"""The mean colour of what CLIP was trained on: 0 in its normalised pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A CLIP, an image uint8 [h, w, 3] squashed to its input, and the target that a text is."""

    clip: Clip
    pixels: Pixels
    target: Target

    @classmethod
    def of(cls, models: Text2Seg, image: Image, text: str, size: int | None) -> Subject:
        """Raises `QueryError` where the text is empty, too long or unknown to the models."""
        if not text.strip():
            raise QueryError("nothing to compare the image with: give a text, as --text sheep")
        target = text_target(models.clip, text.strip(), things=models.things)
        return cls(models.clip, squashed(models.clip, image, size), target)

    @property
    def hw(self) -> tuple[int, int]:
        """CLIP's input: rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def cosines(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Of images uint8 [h, w, 3] of CLIP's input size with the text, float32 [N]."""
        return (features(self.clip, images) @ self.target.features).cpu().numpy()


def squashed(clip: Clip, image: Image, size: int | None) -> Pixels:
    """The image as CLIP sees it, uint8 [h, w, 3]."""
    resized = PillowImage.fromarray(image.pixels).resize(clip.input_hw(size)[::-1], PillowImage.Resampling.BICUBIC)
    return np.asarray(resized)


@torch.inference_mode()
def features(clip: Clip, changed: Sequence[Pixels]) -> Tensor:
    """CLIP's answer for each whole image uint8 [h, w, 3], all of one size and already as CLIP should see them: unit
    features float32 [N, C]."""
    found = []
    for start in range(0, len(changed), BATCH):
        images = [Image(pixels) for pixels in changed[start : start + BATCH]]
        found += clip.encode_images(images, size=images[0].hw, architecture="raw")
    return torch.stack([tokens.features[0] for tokens in found])


class Curves:
    """The cosines of some ways to change an image, run by run, over the strengths [N] of the change. A way of which
    no run is done yet is left out of all that is shown."""

    def __init__(self, ways: Sequence[str], strengths: NDArray[np.floating]) -> None:
        self.strengths = strengths
        self._runs: dict[str, list[NDArray[np.floating]]] = {way: [] for way in ways}

    def add(self, way: str, cosines: NDArray[np.float32], at: NDArray[np.floating] | None = None) -> None:
        """One run: the cosines [N], and where on the diagram's axis they stand [N]; default: at the strengths."""
        self._runs[way].append(np.stack([self.strengths if at is None else at, cosines]))

    def drawn(self, cells: Sequence[tuple[str, Pixels]], at: str) -> Pixels:
        """A diagram below captioned changed; `at` names its axis."""
        figure, (axes,) = strip_and_panels(cells, 1)
        for colour, (way, runs) in zip(COLOURS, self._done(), strict=False):
            draw_spread(axes, runs[:, 0].mean(0), runs[:, 1], way, colour)
        axes.set_xlabel(at)
        axes.set_ylabel("cosine with the text")
        draw_legend(axes)
        return pixels_of(figure)

    def tables(self, strength: str, at: str = "") -> tuple[Table, ...]:
        """The mean cosine of each way, how far apart its runs are at most, and, where `at` names it, the mean place on
        the axis; a row for each strength, which is what `strength` calls it."""
        done = self._done()
        shown = [("cosine with the text, mean of the runs", [runs[:, 1].mean(0) for _, runs in done])]
        shown.append(("range of the runs: highest less lowest", [np.ptp(runs[:, 1], axis=0) for _, runs in done]))
        if at:
            shown.append((at, [runs[:, 0].mean(0) for _, runs in done]))
        columns = (strength, *(way for way, _ in done))
        return tuple(
            Table(
                title,
                columns,
                tuple(tuple(float(value) for value in row) for row in zip(self.strengths, *values, strict=True)),
            )
            for title, values in shown
        )

    def _done(self) -> list[tuple[str, NDArray[np.floating]]]:
        """Each way with its runs [runs, 2, N]: place on the axis and cosine."""
        return [(way, np.stack(runs)) for way, runs in self._runs.items() if runs]
