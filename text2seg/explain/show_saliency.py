"""Saliency maps as images: one method for several targets, or all methods for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from text2seg.clip.model import preprocess
from text2seg.errors import QueryError
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.saliency import SaliencySettings, TargetSettings
from text2seg.explain.saliency.methods import METHODS, Method, check_method, methods_for, saliency
from text2seg.explain.saliency.targets import Target, WordsTarget, image_target, score, text_target, words_target
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.io.images import load_image
from text2seg.records import Image
from text2seg.render.colours import heat

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


def run(models: Text2Seg, images: Sequence[Image], settings: SaliencySettings, progress: Progress) -> Result:
    """One method's map for every target."""
    method = check_method(models.clip, settings.method, settings.layer)
    (image,) = images
    targets = targets_of(models, settings)
    pixels = ground(image)
    panels, scores = [Panel("the image", pixels)], []
    for target in progress.each(targets, method.name):
        found = saliency(
            models.clip,
            image,
            target,
            method.name,
            size=settings.size,
            negative=settings.negative,
            layer=settings.layer,
        )
        scores.append(image_score(models, image, target, settings.size))
        shown = target.negated().name if settings.negative else target.name
        panels.append(Panel(f"{shown} · score {scores[-1]:.3f}", laid_over(found, pixels, settings.alpha)))
    rows = tuple((target.name, value) for target, value in zip(targets, scores, strict=False))
    return Result(
        f"{named(image)}: saliency by {method.name}",
        tuple(panels),
        (Table("Score", ("target", "score"), rows), *_words(models, image, targets, settings)),
        (_about(method),),
    )


def compare(models: Text2Seg, images: Sequence[Image], settings: TargetSettings, progress: Progress) -> Result:
    """Every method that this CLIP can do, for one target."""
    (image,) = images
    targets = targets_of(models, settings)
    if len(targets) > 1:
        names = ", ".join(target.name for target in targets)
        raise QueryError(f"methods are compared on one target, got {len(targets)}: {names}")
    (target,) = targets
    value = image_score(models, image, target, settings.size)
    pixels = ground(image)
    panels, notes = [Panel("the image", pixels)], []
    for name in progress.each(methods_for(models.clip), target.name):
        found = saliency(models.clip, image, target, name, size=settings.size)
        panels.append(Panel(name, laid_over(found, pixels, settings.alpha)))
        notes.append(_about(METHODS[name]))
    return Result(
        f"{named(image)}: {target.name} · score {value:.3f}",
        tuple(panels),
        (Table("Score", ("target", "score"), ((target.name, value),)), *_words(models, image, targets, settings)),
        tuple(notes),
    )


def targets_of(models: Text2Seg, settings: TargetSettings) -> tuple[Target, ...]:
    """The texts, the other image and the weighted words, in this order.

    Raises:
        QueryError: there is none, or a text or word cannot be used.
        ImageError: the other image cannot be read.
    """
    clip, things = models.clip, models.things
    targets = [text_target(clip, text, settings.templates, things=things) for text in settings.text]
    if settings.target_image is not None:
        targets.append(image_target(clip, load_image(settings.target_image), size=settings.size))
    if settings.word:
        targets.append(words_target(clip, weights_of(settings.word), settings.templates, things=things))
    if not targets:
        raise QueryError("nothing to ask the image about: give a text, a target image, or words with weights")
    return tuple(targets)


def weights_of(words: Sequence[str]) -> dict[str, float]:
    """Words and their weights from "word=weight".

    >>> weights_of(["sheep=0.7", "fire engine = 3"])
    {'sheep': 0.7, 'fire engine': 3.0}

    Raises:
        QueryError: one is not of this form, or given twice.
    """
    weights: dict[str, float] = {}
    for given in words:
        word, equals, weight = given.rpartition("=")
        word = word.strip()
        try:
            value = float(weight)
        except ValueError:
            value = None
        if not equals or value is None:
            raise QueryError(f'a weighted word is written "word=number", got {given!r}')
        if word in weights:
            raise QueryError(f"the word {word!r} is weighted twice")
        weights[word] = value
    return weights


def image_score(models: Text2Seg, image: Image, target: Target, size: int | None = None) -> float:
    """What CLIP gives the whole image for the target."""
    clip = models.clip
    with torch.inference_mode():
        return float(score(clip, preprocess(image, clip.input_hw(size))[None], target))


def laid_over(found: NDArray[np.float32], pixels: NDArray[np.uint8], alpha: float) -> NDArray[np.uint8]:
    """A map float32 [gh, gw] in colours over an image uint8 [h, w, 3]; the higher `alpha`, from 0 to 1, the less
    of the image itself shows."""
    return np.asarray(cv2.addWeighted(heat(found, pixels), alpha, np.ascontiguousarray(pixels), 1 - alpha, 0), np.uint8)


def _about(method: Method) -> str:
    return f"{method.name}: {method.summary} ({method.source})."


def _words(models: Text2Seg, image: Image, targets: Sequence[Target], settings: TargetSettings) -> list[Table]:
    """For weighted words, which shares were asked for and which CLIP gives them."""
    tables = []
    for target in targets:
        if isinstance(target, WordsTarget):
            clip = models.clip
            (tokens,) = clip.encode_images([image], size=settings.size, architecture="raw")
            said = target.said(tokens.features[0])
            rows = zip(target.words, target.shares.tolist(), said.tolist(), strict=True)
            tables.append(Table("Words", ("word", "wanted", "CLIP says"), tuple(rows)))
    return tables
