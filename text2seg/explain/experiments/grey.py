"""Cosine against the share of the image that is greyed out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from text2seg.explain.backdrop import named
from text2seg.explain.catalogue.experiments import RepeatedSettings
from text2seg.explain.experiments.common import GREY, Curves, Pixels, Subject
from text2seg.explain.tool import Panel, Progress, Result
from text2seg.pipeline import Text2Seg
from text2seg.records import Image

PIXELS, CELLS, COLOUR = "pixels grey", "cells grey", "pixels lose their colour"
WAYS = (PIXELS, CELLS, COLOUR)


def run(models: Text2Seg, images: Sequence[Image], settings: RepeatedSettings, progress: Progress) -> Result:
    """A curve for each way to grey: single pixels and whole cells of CLIP's grid, both to the mean colour of CLIP's
    training, and pixels that keep their brightness and lose their colour.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text, settings.size)
    shares = np.linspace(0, 1, settings.steps + 1)
    curves = Curves(WAYS, shares)
    jobs = [(way, repeat) for repeat in range(settings.repeats) for way in WAYS]
    for way, repeat in progress.each(jobs, "curves"):
        places = order(subject, way, np.random.default_rng((settings.seed, repeat)))
        changed = [greyed(subject.pixels, places < share, way) for share in shares]
        curves.add(way, subject.cosines(changed))
    half = [
        (way, greyed(subject.pixels, order(subject, way, np.random.default_rng((settings.seed, 0))) < 0.5, way))
        for way in WAYS
    ]
    cells = [("as it is", subject.pixels), *((f"half of all {way}", pixels) for way, pixels in half)]
    return Result(
        f"{named(image)}: “{subject.target.name}” while the image turns grey",
        (Panel("mean and range of the runs", curves.drawn(cells, "share of the image")),),
        curves.tables("share"),
        (f"Grey is {tuple(GREY.tolist())}, the mean of CLIP's training; a cell is {subject.clip.stride} pixels wide.",),
    )


def order(subject: Subject, way: str, chance: np.random.Generator) -> NDArray[np.float64]:
    """When each pixel turns grey, [h, w] in [0, 1): pixels by chance, or all pixels of a cell together."""
    height, width = subject.pixels.shape[:2]
    side = subject.clip.stride if way == CELLS else 1
    rows, columns = height // side, width // side
    places = chance.permutation(rows * columns).reshape(rows, columns) / (rows * columns)
    return places.repeat(side, axis=0).repeat(side, axis=1)


def greyed(pixels: Pixels, where: NDArray[np.bool_], way: str) -> Pixels:
    """The image uint8 [h, w, 3], grey where bool [h, w] says."""
    brightness = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)
    return np.where(where[..., None], brightness if way == COLOUR else GREY, pixels)
