"""What an image shows: labels for the whole image (multi-label recognition) and for every pixel (segmentation).

Sources: CLIP Surgery (arXiv 2304.05653); label correction by region: CorrCLIP (arXiv 2411.10086).

Recognition uses the cosines of CLS, from the original path, with feature surgery over the labels. Segmentation uses
architecture surgery without feature surgery: feature surgery would subtract the same value from all labels of a pixel,
so it would only favour those that CLIP sees in the image as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind, check_architecture
from text2seg.config import Architecture, MapSettings
from text2seg.errors import MissingTextError, QueryError, SettingsError
from text2seg.explain.estimate import Work
from text2seg.explain.tool import (
    InputSettings,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    backdrop,
    freeze_typed,
    image_name,
    is_calibrated,
)
from text2seg.records import Image, calibration_note
from text2seg.settings_fields import freeze_names
from text2seg.templates import DISTRACTORS

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import ImageTokens
    from text2seg.pipeline import Text2Seg
    from text2seg.render.drawing import Colour

BARS = 12
"""Number of labels shown as bars; the tables have all."""


@dataclass(frozen=True, slots=True)
class RecognitionSettings(InputSettings):
    """The labels that an image may show."""

    label: tuple[str, ...] = ()
    """A label that the image may show; repeat for more. Default: the vocabulary of a model that has one; for other
    models, common things."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        freeze_names(self, "label")

    def all_texts(self) -> tuple[str, ...]:
        return self.label

    def check_given(self) -> None:
        if self.label:
            check_several(self.label)


def multilabel(models: Text2Seg, images: Sequence[Image], settings: RecognitionSettings, progress: Progress) -> Result:
    """Rank the labels by their score, and show the plain cosines and the patch presence beside it.

    Raises:
        QueryError: there is only one label, or one is empty or unknown to the models.
    """
    from text2seg.render.charts import Bar, bars
    from text2seg.render.drawing import colour_of

    (image,) = images
    labels = labels_of(models, settings.label)
    texts = models.clip.encode_texts(labels)
    (tokens,) = models.clip.encode_images([image])
    plain = recognise(tokens.features[0], texts, surgery=False).tolist()
    scores = recognise(tokens.features[0], texts, surgery=True).tolist()
    presence = models.clip.patch_presence(tokens, labels).max((1, 2)).tolist()
    note = calibration_note(is_calibrated(models))
    order = sorted(range(len(labels)), key=lambda at: -scores[at])
    longest = max(scores[order[0]], 1e-9)
    lines = [Bar(labels[at], scores[at] / longest, f"{scores[at]:.3f}", colour_of(labels[at])) for at in order[:BARS]]
    rows = tuple((labels[at], scores[at], plain[at], presence[at]) for at in order)
    return Result(
        f"{image_name(image)}: which of {len(labels)} labels it shows",
        (
            Panel("the image", backdrop(image)),
            Panel(
                "score of each label" if len(lines) == len(labels) else f"score of the first {len(lines)} labels",
                bars(lines),
            ),
        ),
        (Table("labels, highest score first", ("label", "score", "cosine", f"presence{note}"), rows),),
        (
            "score: the image's cosine with the label after feature surgery over all labels. Surgery subtracts what "
            "all labels share, which makes scores of different images comparable; within an image it keeps the order "
            "of the cosines. presence: the patch presence that text2seg uses elsewhere.",
        ),
    )


MULTILABEL = Tool(
    "multilabel",
    "Multi-label recognition",
    "Which labels fit the image, ranked by CLIP's score for the whole image after feature surgery.",
    RecognitionSettings,
    multilabel,
)


def recognise(features: Tensor, texts: Tensor, *, surgery: bool) -> Tensor:
    """Return the score of each label for a whole image, float32 [n].

    With surgery, a score is f(c) minus the mean of f over the labels, where f(c) = c·exp(2c) times a factor common to
    all labels of the image. f increases with the cosine c for c > −½, so the order within an image hardly ever changes.

    Args:
        features: unit features of CLS [C].
        texts: unit features of the labels [n, C]; surgery needs two or more.
        surgery: subtract the features common to all labels.
    """
    from text2seg.clip.maps import cosines, without_label_set

    cls = features[None]
    return (without_label_set(cls, texts) if surgery else cosines(cls, texts))[0]


def labels_of(models: Text2Seg, given: Sequence[str]) -> tuple[str, ...]:
    """Return the given labels without duplicates. Default: everything the models know, or common things.

    Raises:
        QueryError: there is only one label, or one is empty or unknown to the models.
    """
    default = models.closed_vocabulary.names if models.closed_vocabulary else DISTRACTORS
    labels = tuple(dict.fromkeys(label.strip() for label in given or default))
    check_several(labels)
    check_labels(models, labels)
    return labels


def check_several(labels: Sequence[str]) -> None:
    """Raise `MissingTextError` if there is only one label."""
    if len({label.strip() for label in labels}) < 2:
        raise MissingTextError(f"one label cannot be ranked: give two or more, got {labels[0]!r}")


def check_labels(models: Text2Seg, labels: Sequence[str]) -> None:
    """Raise `QueryError` if a label is empty or unknown to the models."""
    for label in labels:
        if not label:
            raise QueryError("a label must not be empty")
        if models.closed_vocabulary:
            models.closed_vocabulary.check(label)


@dataclass(frozen=True, slots=True)
class SemanticSettings(RecognitionSettings):
    """The labels that a pixel may get, and those that count as background."""

    background: tuple[str, ...] = ()
    """A label that counts as background, such as sky or wall; "" is the empty text; repeat for more. Default: the empty
    text for a model whose card says that it was trained that way; otherwise none, so every pixel gets a label."""
    architecture: Architecture = "surgery"
    """Attention rule of CLIP's patches."""
    by_region: bool = False
    """Give all pixels of a region the label that most of them have (label correction). SAM cuts out the regions, which
    takes longer; pixels outside them keep their label."""

    def __post_init__(self) -> None:
        RecognitionSettings.__post_init__(self)
        MapSettings(self.architecture)  # for its checks
        freeze_typed(self, "background")

    def check_clip(self, clip: ClipKind) -> None:
        RecognitionSettings.check_clip(self, clip)
        check_architecture(clip, self.architecture)


def semantic(models: Text2Seg, images: Sequence[Image], settings: SemanticSettings, progress: Progress) -> Result:
    """Paint every label in its colour and show the share of the image that each label covers.

    Raises:
        QueryError: there is only one label, or one is empty or unknown to the models.
        SettingsError: this CLIP does not support the attention rule, a label is also background, or regions are needed
            and there is no SAM.
    """
    from text2seg.evaluation.protocols import BACKGROUND
    from text2seg.render.charts import Bar, bars
    from text2seg.render.drawing import FAINT, colours_of

    (image,) = images
    labels = labels_of(models, settings.label)
    texts = label_texts(models, labels, settings.background)
    session = models.open(image)
    maps = MapSettings(settings.architecture, input_size=models.clip.default_size)
    (tokens,) = models.encode([session], maps)
    found = label_map(tokens, texts, len(labels))
    if settings.by_region:
        found = corrected(found, models.owners(session), len(labels))
    shares = np.bincount(found.ravel(), minlength=len(labels) + 1) / found.size
    names = (*labels, BACKGROUND)
    order = [int(at) for at in np.argsort(-shares, kind="stable") if shares[at]]
    colours = colours_of(names[at] for at in order) | {BACKGROUND: FAINT}
    legend = [
        Bar(names[at], float(shares[at] / shares.max()), f"{shares[at]:.1%}", colours[names[at]]) for at in order[:BARS]
    ]
    rows = tuple((names[at], float(shares[at]), round(shares[at] * found.size)) for at in order)
    rest = len(order) - len(legend)
    return Result(
        f"{image_name(image)}: the highest of {len(labels)} labels at every pixel, {settings.architecture}",
        (
            Panel(
                "every label in its colour" + ", by region" * settings.by_region, painted(image, found, names, colours)
            ),
            Panel("share of the image" + (f", {rest} more in the table" if rest else ""), bars(legend)),
        ),
        (Table("shares of the image", ("label", "share", "pixels"), rows),),
    )


def _work(models: Text2Seg, images: int, settings: SemanticSettings) -> Work:
    from text2seg.clip.encoders import RULES

    needs_regions = settings.by_region or RULES[settings.architecture].regions
    return Work(regions=float(needs_regions and models.sam is not None))  # the run raises without a SAM


SEMANTIC = Tool(
    "semantic",
    "Semantic segmentation",
    "One label for every pixel: the label with the highest map there. Needs no training.",
    SemanticSettings,
    semantic,
    work=_work,
)

MAPS_AT_ONCE = 16
"""Number of maps held in memory at the size of the image."""
OPACITY = 0.55
"""Opacity of the colours of labels, from 0 to 1."""


def label_texts(models: Text2Seg, labels: Sequence[str], background: Sequence[str]) -> Tensor:
    """Return unit features float32 [labels + background labels, C].

    The default background is that of the model card.

    Raises:
        QueryError: a background label is unknown to the models.
        SettingsError: a label is also background.
    """
    background = tuple(text.strip() for text in background) or models.card.background
    both = set(labels) & set(background)
    if both:
        raise SettingsError(f"{', '.join(sorted(both))} cannot be both a label and background")
    check_labels(models, [text for text in background if text])
    return models.clip.encode_texts((*labels, *background))


def label_map(tokens: ImageTokens, texts: Tensor, count: int) -> NDArray[np.int64]:
    """Return the index of the best label at every pixel of the image, int64 [H, W]; background is `count`.

    Cosines are resized to the size of the image (bilinear) before they are compared.

    Args:
        tokens: CLIP's tokens of the image.
        texts: unit features [count + background labels, C].
        count: number of labels that are not background.
    """
    import torch
    from torch.nn import functional as F

    from text2seg.clip.maps import cosines

    with torch.inference_mode():
        maps = cosines(tokens.features[1:], texts).T.unflatten(-1, tokens.grid_hw).float()
        best = torch.full(tokens.image_hw, -torch.inf, dtype=torch.float32, device=maps.device)
        label = torch.zeros(tokens.image_hw, dtype=torch.int64, device=maps.device)
        for start in range(0, len(texts), MAPS_AT_ONCE):
            part = F.interpolate(maps[None, start : start + MAPS_AT_ONCE], size=tokens.image_hw, mode="bilinear")[0]
            highest, which = part.max(0)
            higher = highest > best
            best = torch.where(higher, highest, best)
            label = torch.where(higher, which + start, label)
        return np.asarray(label.clamp(max=count).cpu().numpy())


def corrected(found: NDArray[np.int64], owner: NDArray[np.int32], count: int) -> NDArray[np.int64]:
    """Return labels in which all pixels of a region have its most frequent label; of several the first.

    Args:
        found: int64 [H, W], labels from 0 to `count`.
        owner: the region of each pixel, int32 [H, W]; pixels with -1 keep their label.
    """
    inside = owner >= 0
    numbers = owner[inside].astype(np.int64)
    pixels = np.bincount(numbers * (count + 1) + found[inside], minlength=(owner.max(initial=-1) + 1) * (count + 1))
    result = found.copy()
    result[inside] = pixels.reshape(-1, count + 1).argmax(1)[numbers]
    return result


def painted(image: Image, found: NDArray[np.int64], names: Sequence[str], colours: Mapping[str, Colour]) -> Pixels:
    """Paint the labels of `found` int64 [H, W] over the image in the colours of their names, on a backdrop.

    The background, which is the last name, stays unpainted.
    """
    from text2seg.render.drawing import blend, outline

    pixels = backdrop(image)
    rows, columns = (np.arange(side) * whole // side for side, whole in zip(pixels.shape[:2], image.hw, strict=True))
    small = found[rows][:, columns]
    width = max(1, max(pixels.shape[:2]) // 300)
    labels = [int(at) for at in np.unique(small) if at < len(names) - 1]
    coloured = pixels
    for at in labels:
        coloured = blend(coloured, small == at, colours[names[at]], OPACITY)
    coloured = np.ascontiguousarray(coloured)
    for at in labels:
        outline(coloured, small == at, colours[names[at]], width)
    return coloured
