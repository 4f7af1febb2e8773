"""Cosine against how the image is brought to CLIP's input: what becomes of its shape, and how it is resized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.explain.backdrop import named
from text2seg.explain.catalogue.experiments import TextSettings
from text2seg.explain.experiments.common import GREY, Pixels, Subject
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.plot import COLOURS, draw_legend, pixels_of, strip_and_panels

NO_ANTIALIASING = "bilinear, no antialiasing"
FILTERS = {
    "nearest": PillowImage.Resampling.NEAREST,
    "box": PillowImage.Resampling.BOX,
    "bilinear": PillowImage.Resampling.BILINEAR,
    "bicubic": PillowImage.Resampling.BICUBIC,
    "lanczos": PillowImage.Resampling.LANCZOS,
}
WAYS = (*FILTERS, NO_ANTIALIASING)


def run(models: Text2Seg, images: Sequence[Image], settings: TextSettings, progress: Progress) -> Result:
    """The cosine for each way to fit the image into CLIP's input and each way to resize it.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text, settings.size)
    hw = subject.hw
    cosines: dict[str, NDArray[np.float32]] = {}
    for fit in progress.each(FITS, "ways to fit"):
        cosines[fit] = subject.cosines([FITS[fit](image.pixels, hw, way) for way in WAYS])
    height, width = image.hw
    return Result(
        f"{named(image)}: “{subject.target.name}” and the way to CLIP's input",
        (Panel("what CLIP sees, and the cosine", _drawn(image, hw, cosines)),),
        (
            Table(
                "cosine with the text",
                ("fit", *WAYS),
                tuple((fit, *(float(value) for value in values)) for fit, values in cosines.items()),
            ),
        ),
        (f"The image is {width} x {height} pixels, CLIP's input {hw[1]} x {hw[0]}. CLIP itself crops, bicubic.",),
    )


def squash(pixels: Pixels, hw: tuple[int, int], way: str) -> Pixels:
    """All of the image, its sides stretched."""
    return resized(pixels, hw, way)


def crop(pixels: Pixels, hw: tuple[int, int], way: str) -> Pixels:
    """The middle of the image, unstretched: the input is full, the ends of the longer side are lost."""
    height, width = _scaled(pixels, hw, max)
    top, left = (height - hw[0]) // 2, (width - hw[1]) // 2
    return resized(pixels, (height, width), way)[top : top + hw[0], left : left + hw[1]]


def pad(pixels: Pixels, hw: tuple[int, int], way: str) -> Pixels:
    """All of the image, unstretched, on grey."""
    height, width = _scaled(pixels, hw, min)
    top, left = (hw[0] - height) // 2, (hw[1] - width) // 2
    whole = np.broadcast_to(GREY, (*hw, 3)).copy()
    whole[top : top + height, left : left + width] = resized(pixels, (height, width), way)
    return whole


FITS: Mapping[str, Callable[[Pixels, tuple[int, int], str], Pixels]] = {"squash": squash, "crop": crop, "pad": pad}


def resized(pixels: Pixels, hw: tuple[int, int], way: str) -> Pixels:
    """The image at another size. Pillow's filters grow with the image's, which keeps fine patterns from becoming
    coarse ones; `NO_ANTIALIASING` is what OpenCV and torch do unless told otherwise."""
    if way == NO_ANTIALIASING:
        return np.asarray(cv2.resize(pixels, hw[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return np.asarray(PillowImage.fromarray(pixels).resize(hw[::-1], FILTERS[way]))


def _scaled(pixels: Pixels, hw: tuple[int, int], choose: Callable[..., float]) -> tuple[int, int]:
    """The image's size at the larger (`max`) or smaller scale of those that its sides ask for."""
    height, width = pixels.shape[:2]
    scale = choose(hw[0] / height, hw[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _drawn(image: Image, hw: tuple[int, int], cosines: Mapping[str, NDArray[np.float32]]) -> Pixels:
    cells = [("the image", image.pixels), *((name, fit(image.pixels, hw, "bicubic")) for name, fit in FITS.items())]
    figure, (axes,) = strip_and_panels(cells, 1)
    for colour, (fit, values) in zip(COLOURS, cosines.items(), strict=False):
        axes.plot(
            [way.replace(", ", ",\n") for way in WAYS], values, color=colour, marker="o", linewidth=0.8, label=fit
        )
    axes.set_xlabel("interpolation")
    axes.set_ylabel("cosine with the text")
    draw_legend(axes)
    return pixels_of(figure)
