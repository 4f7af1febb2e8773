"""Experiments: what CLIP says of an image that is greyed out, noisy, or resized in another way.

The changed image is compared with a text and with the untouched image. Each experiment returns diagrams and their
numbers. The same seed gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.errors import ImageError, SettingsError
from text2seg.explain.estimate import Work
from text2seg.explain.tool import (
    InputSettings,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    check_text,
    fitted_pixels,
    image_name,
    mean_colour,
)
from text2seg.io.images import PIXEL_LIMIT
from text2seg.records import Image
from text2seg.settings_fields import check_count, check_seed

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip
    from text2seg.explain.saliency.targets import Target
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class TextSettings(InputSettings):
    """The text that the image is compared with."""

    text: str = ""
    """The text that the image is compared with, for instance sheep; put into CLIP Surgery's 85 templates."""

    def check_given(self) -> None:
        check_text(self.text)


@dataclass(frozen=True, slots=True)
class RepeatedSettings(TextSettings):
    """The text that the image is compared with, and the number of random runs."""

    seed: int = 0
    """Random seed; the same seed gives the same numbers."""
    repeats: int = 3
    """Number of random runs; curves show their mean and range."""
    steps: int = 10
    """Number of points of a curve after its start."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        check_seed(self.seed)
        for name in ("repeats", "steps"):
            check_count(name, getattr(self, name))


def _work(settings: RepeatedSettings, kinds: int) -> Work:
    return Work(clip_images=settings.repeats * kinds * (settings.steps + 1))


PARTNERS = ("cosine with the text", "cosine with the untouched image")
"""What the cosines of an experiment compare the changed image with."""
BATCH = 16
"""Number of images that CLIP encodes at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A CLIP, an image uint8 [h, w, 3] squashed to its input size, and a text as a target."""

    clip: Clip
    pixels: Pixels
    target: Target

    @classmethod
    def of(cls, models: Text2Seg, image: Image, text: str) -> Subject:
        """Prepare. Raises `QueryError` if the text is empty, too long or unknown to the models."""
        from text2seg.explain.saliency.targets import text_target

        check_text(text)
        target = text_target(models.clip, text.strip(), closed_vocabulary=models.closed_vocabulary)
        return cls(models.clip, squashed(models.clip, image), target)

    @property
    def hw(self) -> tuple[int, int]:
        """Rows and columns of CLIP's input."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def cosines(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """Return the cosines float32 [2, N] of images uint8 [h, w, 3] of CLIP's input size: with the text, and with the
        untouched image (see `PARTNERS`)."""
        import torch

        found = features(self.clip, [self.pixels, *images])
        partners = torch.stack([self.target.features, found[0]])
        return (partners @ found[1:].T).cpu().numpy()


def squashed(clip: Clip, image: Image) -> Pixels:
    """Resize the image to CLIP's input, uint8 [h, w, 3]."""
    return squash(image.pixels, clip.input_hw(None), "bicubic")


def features(clip: Clip, changed: Sequence[Pixels]) -> Tensor:
    """Return unit features float32 [N, C] of images uint8 [h, w, 3], which all have the size of CLIP's input."""
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(changed), BATCH):
            images = [Image(pixels) for pixels in changed[start : start + BATCH]]
            found += clip.encode_images(images, size=images[0].hw, architecture="raw")
        return torch.stack([tokens.features[0] for tokens in found])


class Curves:
    """Cosines of several kinds of change of an image over the strengths [N] of the change, for repeated runs.

    Diagrams and tables leave out a kind without a finished run.
    """

    def __init__(self, kinds: Sequence[str], strengths: NDArray[np.floating]) -> None:
        self.strengths = strengths
        self._runs: dict[str, list[NDArray[np.floating]]] = {kind: [] for kind in kinds}

    def add(self, kind: str, cosines: NDArray[np.float32], at: NDArray[np.floating] | None = None) -> None:
        """Add a run: the cosines [2, N] and their positions [N] on the axis of the diagram; default: the strengths."""
        self._runs[kind].append(np.stack([self.strengths if at is None else at, *cosines]))

    def draw(self, cells: Sequence[tuple[str, Pixels]], at: str) -> Pixels:
        """Draw a diagram for each of `PARTNERS` below captioned images; `at` is the label of the axis."""
        from text2seg.render.charts import COLOURS, draw_legend, draw_spread, pixels_of, strip_and_panels

        figure, diagrams = strip_and_panels(cells, len(PARTNERS))
        for place, (axes, partner) in enumerate(zip(diagrams, PARTNERS, strict=True), start=1):
            for colour, (kind, runs) in zip(COLOURS, self._finished(), strict=False):
                draw_spread(axes, runs[:, 0].mean(0), runs[:, place], kind, colour)
            axes.set_xlabel(at)
            axes.set_ylabel(partner)
            draw_legend(axes)
        return pixels_of(figure)

    def tables(self, strength: str, at: str = "") -> tuple[Table, ...]:
        """Return tables with a row for each strength: for each of `PARTNERS` the mean cosine of each kind and the range
        of its runs, and the mean position on the axis if `at` names the axis. `strength` is the title of the first
        column."""
        finished = self._finished()
        shown = []
        for place, partner in enumerate(PARTNERS, start=1):
            shown.append((f"{partner}, mean of the runs", [runs[:, place].mean(0) for _, runs in finished]))
            spread = [np.ptp(runs[:, place], axis=0) for _, runs in finished]
            shown.append((f"{partner}, range of the runs: highest minus lowest", spread))
        if at:
            shown.append((at, [runs[:, 0].mean(0) for _, runs in finished]))
        columns = (strength, *(kind for kind, _ in finished))
        return tuple(
            Table(
                title,
                columns,
                tuple(tuple(float(value) for value in row) for row in zip(self.strengths, *values, strict=True)),
            )
            for title, values in shown
        )

    def _finished(self) -> list[tuple[str, NDArray[np.floating]]]:
        """Return each kind with its finished runs [runs, 3, N]: position on the axis and the two cosines."""
        return [(kind, np.stack(runs)) for kind, runs in self._runs.items() if runs]


GREY_PIXELS, GREY_CELLS, NO_COLOUR = "pixels grey", "cells grey", "pixels without colour"
GREYINGS = (GREY_PIXELS, GREY_CELLS, NO_COLOUR)


def experiment_grey(
    models: Text2Seg, images: Sequence[Image], settings: RepeatedSettings, progress: Progress
) -> Result:
    """Draw a curve for each kind of greying.

    Single pixels or whole cells of CLIP's grid get the mean colour of CLIP's training images; a third kind removes the
    colour of pixels and keeps their brightness.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text)
    shares = np.linspace(0, 1, settings.steps + 1)
    curves = Curves(GREYINGS, shares)
    jobs = [(kind, repeat) for repeat in range(settings.repeats) for kind in GREYINGS]
    for kind, repeat in progress.each(jobs, "curves"):
        places = grey_order(subject, kind, np.random.default_rng((settings.seed, repeat)))
        changed = [greyed(subject.pixels, places < share, kind) for share in shares]
        curves.add(kind, subject.cosines(changed))
    half = [
        (kind, greyed(subject.pixels, grey_order(subject, kind, np.random.default_rng((settings.seed, 0))) < 0.5, kind))
        for kind in GREYINGS
    ]
    cells = [("unchanged", subject.pixels), *((f"half of all {kind}", pixels) for kind, pixels in half)]
    return Result(
        f"{image_name(image)}: “{subject.target.name}” while the image turns grey",
        (Panel("mean and range of the runs", curves.draw(cells, "share of the image")),),
        curves.tables("share"),
        (
            f"Grey is {tuple(mean_colour().tolist())}, the mean colour of CLIP's training images. A cell is "
            f"{subject.clip.stride} pixels wide.",
        ),
    )


EXPERIMENT_GREY = Tool(
    "experiment-grey",
    "Greying out",
    "The cosines with a text and with the untouched image while more and more of the image is greyed out.",
    RepeatedSettings,
    experiment_grey,
    work=lambda models, images, settings: _work(settings, len(GREYINGS)),
)


def grey_order(subject: Subject, kind: str, chance: np.random.Generator) -> NDArray[np.float64]:
    """Return the share [h, w] in [0, 1) at which each pixel turns grey: random pixels, or random cells as a whole."""
    height, width = subject.pixels.shape[:2]
    side = subject.clip.stride if kind == GREY_CELLS else 1
    rows, columns = height // side, width // side
    places = chance.permutation(rows * columns).reshape(rows, columns) / (rows * columns)
    return places.repeat(side, axis=0).repeat(side, axis=1)


def greyed(pixels: Pixels, where: NDArray[np.bool_], kind: str) -> Pixels:
    """Grey the image uint8 [h, w, 3] where the mask bool [h, w] is true."""
    brightness = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)
    return np.where(where[..., None], brightness if kind == NO_COLOUR else mean_colour(), pixels)


Noise = Callable[[Pixels, float, np.random.Generator], np.ndarray]

RMS_CHANGE = "change of the pixels, root mean square of 255 levels"


def experiment_noise(
    models: Text2Seg, images: Sequence[Image], settings: RepeatedSettings, progress: Progress
) -> Result:
    """Draw a curve for each kind of noise. The axis is the measured change of the pixels, so kinds can be compared.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
    """
    (image,) = images
    subject = Subject.of(models, image, settings.text)
    strengths = np.linspace(0, 1, settings.steps + 1)
    curves = Curves(tuple(KINDS), strengths)
    jobs = [(kind, repeat) for repeat in range(settings.repeats) for kind in KINDS]
    for kind, repeat in progress.each(jobs, "curves"):
        changed = [noisy(subject.pixels, kind, strength, (settings.seed, repeat)) for strength in strengths]
        changes = np.array([rms_change(subject.pixels, each) for each in changed])
        curves.add(kind, subject.cosines(changed), changes)
    shown = [(kind, noisy(subject.pixels, kind, 0.5, (settings.seed, 0))) for kind in KINDS]
    return Result(
        f"{image_name(image)}: “{subject.target.name}” under noise",
        (Panel("mean and range of the runs; the images have noise of half strength", curves.draw(shown, RMS_CHANGE)),),
        curves.tables("strength", RMS_CHANGE),
    )


EXPERIMENT_NOISE = Tool(
    "experiment-noise",
    "Robustness to noise",
    "The cosines with a text and with the untouched image under noise of several kinds and strengths.",
    RepeatedSettings,
    experiment_noise,
    work=lambda models, images, settings: _work(settings, len(KINDS)),
)


def noisy(pixels: Pixels, kind: str, strength: float, seed: tuple[int, ...]) -> Pixels:
    """Add noise to the image uint8 [h, w, 3], with a strength from 0 (none) to 1.

    The same seed gives the same noise. Gaussian noise, uniform noise and speckle at two strengths differ by a factor;
    of the places of salt and pepper, those of the lower strength are among those of the higher one.
    """
    if not strength:
        return pixels
    changed = KINDS[kind](pixels, strength, np.random.default_rng(seed))
    return np.rint(changed.clip(0, 255)).astype(np.uint8)


def rms_change(pixels: Pixels, other: Pixels) -> float:
    """Return the root mean square difference of two images, in levels from 0 to 255."""
    return float(np.sqrt(np.square(pixels.astype(np.float64) - other).mean()))


def _gaussian(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    return pixels + 128 * strength * chance.standard_normal(pixels.shape)


def _uniform(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    return pixels + 128 * strength * chance.uniform(-(3**0.5), 3**0.5, pixels.shape)


def _speckle(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Noise in proportion to the brightness."""
    return pixels * (1 + strength * chance.standard_normal(pixels.shape))


def _salt_and_pepper(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Single pixels become black or white; at strength 1 half of all pixels."""
    when = chance.random(pixels.shape[:2])[..., None]
    return np.where(when < strength / 2, np.where(chance.random(when.shape) < 0.5, 0, 255), pixels)


def _shot(pixels: Pixels, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Noise of few photons: white is nearly 100 photons at the lowest strengths and 1 photon at strength 1."""
    white = 100.0 ** (1 - strength)
    return chance.poisson(pixels / 255 * white) / white * 255


KINDS: Mapping[str, Noise] = {
    "gaussian": _gaussian,
    "uniform": _uniform,
    "speckle": _speckle,
    "salt and pepper": _salt_and_pepper,
    "shot": _shot,
}


NO_ANTIALIASING = "bilinear, no antialiasing"
FILTERS = {
    "nearest": PillowImage.Resampling.NEAREST,
    "box": PillowImage.Resampling.BOX,
    "bilinear": PillowImage.Resampling.BILINEAR,
    "bicubic": PillowImage.Resampling.BICUBIC,
    "lanczos": PillowImage.Resampling.LANCZOS,
}
RESIZINGS = (*FILTERS, NO_ANTIALIASING)


def experiment_preprocessing(
    models: Text2Seg, images: Sequence[Image], settings: TextSettings, progress: Progress
) -> Result:
    """Draw the cosines for each way to fit the image into CLIP's input and each interpolation.

    "The untouched image" is the squashed, bicubic input, the default of all other tools.

    Raises:
        SettingsError: `fit` is set, although the experiment goes through all ways to fit.
        QueryError: the text is empty, too long or unknown to the models.
    """
    if settings.fit != "squash":
        raise SettingsError(
            f"this experiment compares the ways to fit an image: leave out fit, got {settings.fit!r}",
            on_page="this experiment compares the ways to fit an image; choose “squash”",
        )
    (image,) = images
    subject = Subject.of(models, image, settings.text)
    hw = subject.hw
    cosines: dict[str, NDArray[np.float32]] = {}
    for fit in progress.each(FITS, "ways to fit"):
        cosines[fit] = subject.cosines([FITS[fit](image.pixels, hw, resizing) for resizing in RESIZINGS])
    height, width = image.hw
    return Result(
        f"{image_name(image)}: “{subject.target.name}” after several kinds of preprocessing",
        (Panel("input of CLIP, and the cosine", _draw_fits(image, hw, cosines)),),
        tuple(
            Table(
                partner,
                ("fit", *RESIZINGS),
                tuple((fit, *(float(value) for value in values[place])) for fit, values in cosines.items()),
            )
            for place, partner in enumerate(PARTNERS)
        ),
        (
            f"The image is {width} x {height} pixels, CLIP's input {hw[1]} x {hw[0]}. CLIP's own "
            "preprocessing is crop, bicubic. The untouched image is squash, bicubic, the input of the other tools.",
        ),
    )


EXPERIMENT_PREPROCESSING = Tool(
    "experiment-preprocessing",
    "Effect of preprocessing",
    "The cosines with a text and with the untouched image when the image is squashed, cropped or padded, with several "
    "kinds of interpolation.",
    TextSettings,
    experiment_preprocessing,
)


def squash(pixels: Pixels, hw: tuple[int, int], resizing: str) -> Pixels:
    """Stretch the whole image to the input, which is square in all ways to fit."""
    return resize(pixels, hw, resizing)


def crop(pixels: Pixels, hw: tuple[int, int], resizing: str) -> Pixels:
    """Cut the middle out of the image, without stretching; the ends of the longer side are lost.

    Raises:
        ImageError: the resized image would have more pixels than any image may have.
    """
    height, width = _scaled(pixels, hw, max)
    if height * width > PIXEL_LIMIT:
        raise ImageError(
            f"the image is {pixels.shape[1]} x {pixels.shape[0]}: too long and narrow to be resized and then cropped"
        )
    return fitted_pixels(resize(pixels, (height, width), resizing), "crop", mean_colour())


def pad(pixels: Pixels, hw: tuple[int, int], resizing: str) -> Pixels:
    """Fit the whole image into the input, without stretching, on grey."""
    return fitted_pixels(resize(pixels, _scaled(pixels, hw, min), resizing), "pad", mean_colour())


FITS: Mapping[str, Callable[[Pixels, tuple[int, int], str], Pixels]] = {"squash": squash, "crop": crop, "pad": pad}


def resize(pixels: Pixels, hw: tuple[int, int], resizing: str) -> Pixels:
    """Resize the image.

    Pillow's filters grow with the scale, which prevents aliasing. `NO_ANTIALIASING` is the default of OpenCV and torch.
    """
    if resizing == NO_ANTIALIASING:
        import cv2

        return np.asarray(cv2.resize(pixels, hw[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return np.asarray(PillowImage.fromarray(pixels).resize(hw[::-1], FILTERS[resizing]))


def _scaled(pixels: Pixels, hw: tuple[int, int], choose: Callable[..., float]) -> tuple[int, int]:
    """Return the size at which the image fills the input (`choose=max`) or fits into it (`choose=min`)."""
    height, width = pixels.shape[:2]
    scale = choose(hw[0] / height, hw[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _draw_fits(image: Image, hw: tuple[int, int], cosines: Mapping[str, NDArray[np.float32]]) -> Pixels:
    from text2seg.render.charts import COLOURS, draw_legend, pixels_of, strip_and_panels

    cells = [("the image", image.pixels), *((name, fit(image.pixels, hw, "bicubic")) for name, fit in FITS.items())]
    figure, diagrams = strip_and_panels(cells, len(PARTNERS))
    names = [resizing.replace(", ", ",\n").replace(" anti", "\nanti") for resizing in RESIZINGS]
    for place, (axes, partner) in enumerate(zip(diagrams, PARTNERS, strict=True)):
        for colour, (fit, values) in zip(COLOURS, cosines.items(), strict=False):
            axes.plot(names, values[place], color=colour, marker="o", linewidth=0.8, label=fit)
        axes.set_xlabel("interpolation")
        axes.set_ylabel(partner)
        draw_legend(axes)
    return pixels_of(figure)
