"""Cosine against kinds and strengths of noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from text2seg.explain.backdrop import named
from text2seg.explain.catalogue.experiments import RepeatedSettings
from text2seg.explain.experiments.common import Curves, Pixels, Subject
from text2seg.explain.tool import Panel, Progress, Result
from text2seg.pipeline import Text2Seg
from text2seg.records import Image

Noise = Callable[[Pixels, float, np.random.Generator], np.ndarray]

CHANGE = "change of the pixels, root mean square of 255 levels"


def run(models: Text2Seg, images: Sequence[Image], settings: RepeatedSettings, progress: Progress) -> Result:
    """A curve for each kind of noise, over how much it really changes the image, so that kinds can be compared.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text, settings.size)
    strengths = np.linspace(0, 1, settings.steps + 1)
    curves = Curves(tuple(KINDS), strengths)
    jobs = [(kind, repeat) for repeat in range(settings.repeats) for kind in KINDS]
    for kind, repeat in progress.each(jobs, "curves"):
        changed = [noisy(subject.pixels, kind, strength, (settings.seed, repeat)) for strength in strengths]
        changes = np.array([change(subject.pixels, each) for each in changed])
        curves.add(kind, subject.cosines(changed), changes)
    shown = [(kind, noisy(subject.pixels, kind, 0.5, (settings.seed, 0))) for kind in KINDS]
    return Result(
        f"{named(image)}: “{subject.target.name}” under noise",
        (Panel("mean and range of the runs; changed at half strength", curves.drawn(shown, CHANGE)),),
        curves.tables("strength", CHANGE),
    )


def noisy(pixels: Pixels, kind: str, strength: float, seed: tuple[int, ...]) -> Pixels:
    """The image uint8 [h, w, 3] with noise of that kind; `strength` from 0, none, to 1. The same seed draws the same
    noise, only stronger or weaker."""
    if not strength:
        return pixels
    changed = KINDS[kind](pixels, strength, np.random.default_rng(seed))
    return np.rint(changed.clip(0, 255)).astype(np.uint8)


def change(pixels: Pixels, other: Pixels) -> float:
    """Root mean square difference of two images, in levels from 0 to 255."""
    return float(np.sqrt(np.square(pixels.astype(np.float64) - other).mean()))


def _gaussian(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    return pixels + 128 * strength * chance.standard_normal(pixels.shape)


def _uniform(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    return pixels + 128 * strength * chance.uniform(-(3**0.5), 3**0.5, pixels.shape)


def _speckle(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    """The brighter, the more of it."""
    return pixels * (1 + strength * chance.standard_normal(pixels.shape))


def _salt_and_pepper(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Single pixels, at most half of all, become black or white."""
    when = chance.random(pixels.shape[:2])[..., None]
    return np.where(when < strength / 2, np.where(chance.random(when.shape) < 0.5, 0, 255), pixels)


def _shot(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Few photons: white is 100 of them at the least strength, 1 at the most."""
    white = 100.0 ** (1 - strength)
    return chance.poisson(pixels / 255 * white) / white * 255


KINDS: Mapping[str, Noise] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "speckle": _speckle,
    "salt and pepper": _salt_and_pepper,
    "shot": _shot,
}
