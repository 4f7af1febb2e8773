"""The similarity board, which compares one image with many descriptions, and the typographic attack.

Source of the attack: Goh et al., "Multimodal Neurons in Artificial Neural Networks" (Distill, 2021).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.clip.shape import ClipKind
from text2seg.errors import MissingTextError, SettingsError
from text2seg.explain.saliency.methods import METHODS, MethodName, ScoreKind, method_or_default, saliency
from text2seg.explain.saliency_maps import overlay_map
from text2seg.explain.tool import (
    Cell,
    InputSettings,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    backdrop,
    image_name,
)
from text2seg.records import Image
from text2seg.settings_fields import check_alpha

if TYPE_CHECKING:
    import torch

    from text2seg.explain.saliency.targets import Target
    from text2seg.pipeline import Text2Seg

Score = Literal["cosine", "logit", "softmax"]


@dataclass(frozen=True, slots=True)
class DescriptionSettings(InputSettings):
    """The descriptions that an image is compared with, and how the comparison is shown."""

    text: tuple[str, ...] = ()
    """A description, used unchanged, without templates; repeat for more."""
    texts: str = ""
    """Several descriptions separated by ;, such as "a sheep; a koala"."""
    prefix: str = "an image of"
    """Words before each description; may be empty."""
    score: Score = "cosine"
    """Score shown with the maps. logit: cosine times CLIP's scale; softmax: of the logits, over all descriptions."""
    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""
    layer: str | None = None
    """Layer of a ResNet for class activation maps, such as layer4.2.relu3. Default: the last ReLU."""
    alpha: float = 0.85
    """Opacity of the maps over the image, from 0 to 1."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        if isinstance(self.text, str):
            raise SettingsError(f"text must be a sequence of texts, got the one text {self.text!r}")
        check_alpha(self.alpha)

    def all_texts(self) -> tuple[str, ...]:
        return self.descriptions()

    def check_given(self) -> None:
        self.descriptions()

    def check_clip(self, clip: ClipKind) -> None:
        InputSettings.check_clip(self, clip)
        method_or_default(clip, self.method, self.layer)

    def descriptions(self) -> tuple[str, ...]:
        """Return all descriptions without duplicates. Raises `MissingTextError` if there is none."""
        listed = (text.strip() for text in re.split(r"[;；؛\n]", self.texts))
        together = tuple(dict.fromkeys((*self.text, *(text for text in listed if text))))
        if not together:
            raise MissingTextError(
                'nothing to compare: give --text at least once, or --texts "a sheep; a koala"',
                on_page="nothing to compare; fill in “Text”",
            )
        return together


@dataclass(frozen=True, slots=True)
class BoardSettings(DescriptionSettings):
    """The descriptions that an image is compared with, and how the comparison is shown."""

    prefix_comparison: bool = False
    """Show every description without and with the prefix, and the change of the scores."""

    def __post_init__(self) -> None:
        DescriptionSettings.__post_init__(self)
        if self.prefix_comparison and not self.prefix.strip():
            raise SettingsError(
                'there is no prefix to compare: give one, such as --prefix "an image of"',
                on_page="there is no prefix to compare; fill in “Prefix”",
            )


NO_TEMPLATE = ("{}",)
MOST_COLUMNS = 6
"""With more descriptions than this, each description gets a row of the sheet instead of a column."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """An image compared with D descriptions after one prefix: a target for each description, and scores float32 [D]."""

    name: str
    image: Image
    prefix: str
    targets: tuple[Target, ...]
    scores: dict[Score, NDArray[np.float32]]

    @classmethod
    def of(cls, models: Text2Seg, name: str, image: Image, descriptions: Sequence[str], prefix: str) -> View:
        """Compare. Raises `QueryError` if a description is empty, too long or unknown to the models."""
        import torch

        from text2seg.explain.saliency.targets import image_target, text_target

        full = [f"{prefix} {text}".strip() if text.strip() else text for text in descriptions]
        targets = tuple(text_target(models.clip, text, NO_TEMPLATE) for text in full)
        if models.closed_vocabulary:
            for text in descriptions:  # without the prefix, so that the message quotes what the user typed
                models.closed_vocabulary.check(text)
        cosines = torch.stack([target.features for target in targets]) @ image_target(models.clip, image).features
        logits = cosines * models.clip.logit_scale
        scores: dict[Score, torch.Tensor] = {"cosine": cosines, "logit": logits, "softmax": logits.softmax(0)}
        return cls(name, image, prefix, targets, {kind: values.cpu().numpy() for kind, values in scores.items()})

    def score(self, kind: Score, at: int) -> float:
        return float(self.scores[kind][at])


def board(models: Text2Seg, images: Sequence[Image], settings: BoardSettings, progress: Progress) -> Result:
    """Show the image, the map of its own features, and a map and scores for every description.

    Raises:
        QueryError: there is no description, or one is empty, too long or unknown to the models.
        SettingsError: this CLIP does not support the method or the layer.
    """
    from text2seg.explain.saliency.targets import image_target

    (image,) = images
    descriptions, prefix = settings.descriptions(), settings.prefix.strip()
    _method(models, settings)
    view = View.of(models, f"with “{prefix}”", image, descriptions, prefix)
    if settings.prefix_comparison:
        views = [View.of(models, "without prefix", image, descriptions, ""), view]
        return side_by_side(models, views, descriptions, settings, progress, change="change")
    panels = [Panel("the image", backdrop(image))]
    cells = [("map of the image itself", image_target(models.clip, image))]
    cells += [(_caption(text, view, at, settings), view.targets[at]) for at, text in enumerate(descriptions)]
    by_gradient = METHODS[_method(models, settings)].score
    for number, (caption, target) in enumerate(progress.each(cells)):
        needs_dot = number == 0 and bool(by_gradient)  # the cosine of an image with itself has no gradient
        panels.append(Panel(caption, _draw(models, image, target, settings, "dot" if needs_dot else None)))
    rows: list[tuple[Cell, ...]] = [
        (text, *(view.score(kind, at) for kind in view.scores)) for at, text in enumerate(descriptions)
    ]
    table = Table("scores", ("description", *view.scores), tuple(rows))
    return Result(_title(models, image, settings), tuple(panels), (table,), _prefix_notes([view], models))


BOARD = Tool(
    "board",
    "Similarity maps",
    "Many descriptions of one image: their scores, and where in the image each score comes from.",
    BoardSettings,
    board,
)


def side_by_side(
    models: Text2Seg,
    views: Sequence[View],
    descriptions: Sequence[str],
    settings: DescriptionSettings,
    progress: Progress,
    *,
    change: str,
) -> Result:
    """Show every description in all views. `change` is the title of the last column of the table, which holds the
    difference of the scores of the last two views."""
    in_columns = len(descriptions) <= MOST_COLUMNS
    shown = range(-1, len(descriptions))  # −1: the view's image
    cells = (
        [(view, at) for view in views for at in shown] if in_columns else [(view, at) for at in shown for view in views]
    )
    panels = []
    for view, at in progress.each(cells):
        if at < 0:
            panels.append(Panel(view.name, backdrop(view.image)))
        else:
            pixels = _draw(models, view.image, view.targets[at], settings)
            panels.append(Panel(_caption(descriptions[at], view, at, settings), pixels))
    rows: list[tuple[Cell, ...]] = []
    for at, text in enumerate(descriptions):
        values = [view.score(settings.score, at) for view in views]
        rows.append((text, *values, values[-1] - values[-2]))
    table = Table(settings.score, ("description", *(view.name for view in views), change), tuple(rows))
    return Result(
        _title(models, views[0].image, settings),
        tuple(panels),
        (table,),
        _prefix_notes(views, models),
        columns=len(shown) if in_columns else len(views),
    )


def _draw(
    models: Text2Seg,
    image: Image,
    target: Target,
    settings: DescriptionSettings,
    differentiated: ScoreKind | None = None,
) -> Pixels:
    """Draw the map of a target over the image, uint8[h, w, 3]."""
    found = saliency(models.clip, image, target, _method(models, settings), layer=settings.layer, score=differentiated)
    return overlay_map(found, backdrop(image), settings.alpha)


def _method(models: Text2Seg, settings: DescriptionSettings) -> str:
    """Return the saliency method. Raises `SettingsError` if this CLIP does not support it or the layer."""
    return method_or_default(models.clip, settings.method, settings.layer)


def _prefix_notes(views: Sequence[View], models: Text2Seg) -> tuple[str, ...]:
    """Return the note of the model card on texts without a prefix."""
    return () if all(view.prefix for view in views) else models.card.notes_on("no prefix")


def _title(models: Text2Seg, image: Image, settings: DescriptionSettings) -> str:
    prefix = settings.prefix.strip()
    described = f", “{prefix} …”" if prefix else ""
    return f"{image_name(image)}{described}: {settings.score} and {_method(models, settings)}"


def _caption(text: str, view: View, at: int, settings: DescriptionSettings) -> str:
    value = view.score(settings.score, at)
    return f"{value:.1%}  {text}" if settings.score == "softmax" else f"{value:.3f}  {text}"


@dataclass(frozen=True, slots=True)
class AttackSettings(DescriptionSettings):
    """The descriptions that an image is compared with, and the word that is written on it."""

    word: str = ""
    """The word to write on the image. Default: the description that fits the image least."""


LABEL_WIDTH, LABEL_HEIGHT = 0.9, 0.26
"""Size of the label, as shares of the image's width and height."""
LETTER_HEIGHT = 0.7
"""Height of the letters as a share of the label's height."""
SMALLEST_LETTERS = 6
"""Smallest font size in pixels."""


def typographic_attack(
    models: Text2Seg, images: Sequence[Image], settings: AttackSettings, progress: Progress
) -> Result:
    """Show scores and maps of the image unchanged, with an empty label, and with the word on the label.

    The difference between the last two is the effect of the letters alone, without that of the covered area.

    Raises:
        QueryError: there is no description, or the word or a description is empty, too long or unknown to the models.
        SettingsError: this CLIP does not support the method or the layer.
    """
    (image,) = images
    descriptions, prefix = settings.descriptions(), settings.prefix.strip()
    _method(models, settings)
    before = View.of(models, "unchanged", image, descriptions, prefix)
    word = settings.word.strip() or descriptions[int(before.scores["cosine"].argmin())]
    if word not in descriptions:
        descriptions = (*descriptions, word)
        before = View.of(models, "unchanged", image, descriptions, prefix)
    views = [
        before,
        View.of(models, "empty label", with_label(image, word, letters=False), descriptions, prefix),
        View.of(models, f"“{word}” on the label", with_label(image, word), descriptions, prefix),
    ]
    shown = side_by_side(models, views, descriptions, settings, progress, change="effect of the letters")
    at = descriptions.index(word)
    plain, covered, written = (float(view.scores["cosine"][at]) for view in views)
    notes = [
        *shown.notes,
        f"The empty label changes the cosine of “{word}” from {plain:.3f} to {covered:.3f}; the letters change it to "
        f"{written:.3f}.",
    ]
    return replace(shown, notes=(*notes, *models.card.notes_on("writing")))


TYPOGRAPHIC_ATTACK = Tool(
    "typographic-attack",
    "Typographic attack",
    "The change of scores and maps when a word is written on the image, apart from the effect of the empty label.",
    AttackSettings,
    typographic_attack,
)


def with_label(image: Image, word: str, *, letters: bool = True) -> Image:
    """Draw a white label with the word in large letters at the bottom of the image; without `letters`, an empty label
    of the same size."""
    from text2seg.render.drawing import INK, PAPER, draw_text, text_width

    height, width = image.hw
    canvas = PillowImage.fromarray(image.pixels.copy())
    pen = ImageDraw.Draw(canvas)
    half, high = LABEL_WIDTH * width / 2, LABEL_HEIGHT * height
    bottom = height - (1 - LABEL_WIDTH) / 2 * height
    pen.rectangle((width / 2 - half, bottom - high, width / 2 + half, bottom), fill=PAPER)
    if letters:
        room = 2 * half * 0.94
        size = max(SMALLEST_LETTERS, int(min(high * LETTER_HEIGHT, 100 * room / max(text_width(word, 100), 1))))
        left = (width - min(text_width(word, size), room)) / 2
        draw_text(pen, (left, bottom - high / 2), word, size=size, colour=INK, width=room)
    return Image(np.asarray(canvas), image.file_name, image.image_id)
