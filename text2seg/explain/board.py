"""The similarity board: how well descriptions fit an image, and where in it each score comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from text2seg.explain.backdrop import ground, method_or_usual, named
from text2seg.explain.catalogue.board import BoardSettings, DescriptionSettings, Score
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.saliency.targets import Target, image_target, text_target
from text2seg.explain.show_saliency import laid_over
from text2seg.explain.tool import Cell, Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.records import Image

AS_IT_IS = ("{}",)
MOST_ACROSS = 6
"""More descriptions than this stand below one another."""
FIRST_WORD = (
    "The demo CLIP does not read a text's first word: without a prefix, begin each description with “a” or “the”."
)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One way to put the descriptions to CLIP, and what comes of it: an image, what stands before each description,
    and the scores float32 [D]."""

    name: str
    image: Image
    prefix: str
    targets: tuple[Target, ...]
    scores: dict[Score, NDArray[np.float32]]

    @classmethod
    def of(cls, models: Text2Seg, name: str, image: Image, descriptions: Sequence[str], prefix: str) -> View:
        """Raises `QueryError` where a description is empty, too long or unknown to the models."""
        full = [f"{prefix} {text}".strip() if text.strip() else text for text in descriptions]
        targets = tuple(text_target(models.clip, text, AS_IT_IS) for text in full)
        if models.things:
            for text in descriptions:
                models.things.check(text)  # without the prefix, so that the message is about what was given
        cosines = torch.stack([target.features for target in targets]) @ image_target(models.clip, image).features
        logits = cosines * models.clip.model.logit_scale.exp()
        scores: dict[Score, torch.Tensor] = {"cosine": cosines, "logit": logits, "softmax": logits.softmax(0)}
        return cls(name, image, prefix, targets, {kind: values.cpu().numpy() for kind, values in scores.items()})

    def score(self, kind: Score, at: int) -> float:
        return float(self.scores[kind][at])


def board(models: Text2Seg, images: Sequence[Image], settings: BoardSettings, progress: Progress) -> Result:
    """The image, where its own features come from, and a map and scores for every description.

    Raises:
        QueryError: no description, or one that is empty, too long or unknown to the models.
        SettingsError: the method or the layer is nothing for this CLIP.
    """
    (image,) = images
    descriptions, prefix = settings.descriptions(), settings.prefix.strip()
    usable_method(models, settings)
    view = View.of(models, f"with “{prefix}”", image, descriptions, prefix)
    if settings.prefix_comparison:
        views = [View.of(models, "without prefix", image, descriptions, ""), view]
        return side_by_side(models, views, descriptions, settings, progress, shift="shift")
    panels = [Panel("the image", ground(image))]
    cells = [("its own map", image_target(models.clip, image))]
    cells += [(_caption(text, view, at, settings), view.targets[at]) for at, text in enumerate(descriptions)]
    for caption, target in progress.each(cells):
        panels.append(Panel(caption, overlaid(models, image, target, settings)))
    rows: list[tuple[Cell, ...]] = [
        (text, *(view.score(kind, at) for kind in view.scores)) for at, text in enumerate(descriptions)
    ]
    table = Table("scores", ("description", *view.scores), tuple(rows))
    return Result(_title(models, image, settings), tuple(panels), (table,), notes_on([view], models))


def side_by_side(
    models: Text2Seg,
    views: Sequence[View],
    descriptions: Sequence[str],
    settings: DescriptionSettings,
    progress: Progress,
    *,
    shift: str,
) -> Result:
    """Every description in all views. `shift` names the table's last column: how much the score changes from the last
    view but one to the last."""
    across = len(descriptions) <= MOST_ACROSS
    shown = range(-1, len(descriptions))  # −1: the view's image
    cells = [(view, at) for view in views for at in shown] if across else [(view, at) for at in shown for view in views]
    panels = []
    for view, at in progress.each(cells):
        if at < 0:
            panels.append(Panel(view.name, ground(view.image)))
        else:
            pixels = overlaid(models, view.image, view.targets[at], settings)
            panels.append(Panel(_caption(descriptions[at], view, at, settings), pixels))
    rows: list[tuple[Cell, ...]] = []
    for at, text in enumerate(descriptions):
        values = [view.score(settings.score, at) for view in views]
        rows.append((text, *values, values[-1] - values[-2]))
    table = Table(settings.score, ("description", *(view.name for view in views), shift), tuple(rows))
    return Result(
        _title(models, views[0].image, settings),
        tuple(panels),
        (table,),
        notes_on(views, models),
        columns=len(shown) if across else len(views),
    )


def overlaid(models: Text2Seg, image: Image, target: Target, settings: DescriptionSettings) -> NDArray[np.uint8]:
    """The map of a target over the image, uint8[h, w, 3]."""
    found = saliency(models.clip, image, target, usable_method(models, settings), layer=settings.layer)
    return laid_over(found, ground(image), settings.alpha)


def usable_method(models: Text2Seg, settings: DescriptionSettings) -> str:
    """The saliency method. Raises `SettingsError` where it or the layer is nothing for this CLIP."""
    return method_or_usual(models.clip, settings.method, settings.layer)


def notes_on(views: Sequence[View], models: Text2Seg) -> tuple[str, ...]:
    """What to know of the demo model, which reads texts of the form that it was trained on."""
    return (FIRST_WORD,) if models.things and not all(view.prefix for view in views) else ()


def _title(models: Text2Seg, image: Image, settings: DescriptionSettings) -> str:
    prefix = settings.prefix.strip()
    described = f", “{prefix} …”" if prefix else ""
    return f"{named(image)}{described}: {settings.score} and {usable_method(models, settings)}"


def _caption(text: str, view: View, at: int, settings: DescriptionSettings) -> str:
    value = view.score(settings.score, at)
    return f"{value:.1%}  {text}" if settings.score == "softmax" else f"{value:.3f}  {text}"
