"""Saliency maps as images: one method for several targets, all methods for one target, and evidence for and against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind
from text2seg.config import MapSettings
from text2seg.errors import MissingTextError, QueryError, SettingsError
from text2seg.explain.estimate import GRADIENT, Work
from text2seg.explain.saliency.methods import (
    METHODS,
    Method,
    MethodName,
    ScoreKind,
    check_map,
    check_method,
    check_score,
    check_weights,
    method_or_default,
    methods_for,
    saliency,
    score_of,
)
from text2seg.explain.tool import (
    InputSettings,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    backdrop,
    fitted,
    freeze_typed,
    image_name,
)
from text2seg.io.files import open_file
from text2seg.io.images import check_file, load_image
from text2seg.records import Image
from text2seg.settings_fields import check_alpha

if TYPE_CHECKING:
    from text2seg.clip.model import Clip
    from text2seg.explain.saliency.targets import Target
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class ComparisonSettings(InputSettings):
    """The targets that an image is compared with."""

    text: tuple[str, ...] = ()
    """A text to compare the image with; repeat for more."""
    target_image: Path | None = None
    """Another image to compare with, of any size: where is something similar?"""
    word: tuple[str, ...] = ()
    """A word and its weight, such as "joy=0.7"; repeat for more. All words together are one target: a distribution that
    CLIP's own distribution over these words is compared with."""
    vector: tuple[Path, ...] = ()
    """A file of stored vectors, each a target: .npy with an array [C] or [N, C], or .npz with several; C is the number
    of CLIP's joint features. Repeat for more files."""
    templates: tuple[str, ...] = ()
    """Sentences with a {} for texts and words; "{}" uses them unchanged. Default: CLIP Surgery's 85."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        MapSettings(templates=self.templates)  # for its checks
        freeze_typed(self, "text")
        freeze_typed(self, "word")
        if isinstance(self.vector, (str, Path)):
            raise SettingsError(f"vector must be a sequence of paths, got the one path {self.vector}")

    def all_texts(self) -> tuple[str, ...]:
        return (*self.text, *parse_weights(self.word))

    def check_given(self) -> None:
        if not (self.text or self.word or self.vector or self.target_image):
            without_files = "no target: give a text, a target image, or words with weights"
            raise MissingTextError(
                "no target: give --text, --target-image, --word or --vector",
                on_page=without_files,
                in_api=without_files,
            )
        if self.word:
            check_weights(parse_weights(self.word))
        if self.target_image is not None:
            check_file(self.target_image)
        for path in self.vector:
            open_file(path, QueryError).close()


@dataclass(frozen=True, slots=True)
class TargetSettings(ComparisonSettings):
    """The targets that an image is compared with, and how the maps are drawn."""

    alpha: float = 0.85
    """Opacity of the maps over the image, from 0 to 1."""

    def __post_init__(self) -> None:
        ComparisonSettings.__post_init__(self)
        check_alpha(self.alpha)


@dataclass(frozen=True, slots=True)
class SaliencySettings(TargetSettings):
    """The targets that an image is compared with, and the method."""

    method: MethodName = "surgery"
    """Saliency method; the tool "Compare saliency methods" shows all. ResNets support gradcam, raw, surgery and the
    methods from gradcam++ on; vision transformers support gradcam, raw, surgery and the others. scorecam and
    ablationcam are slow: one forward for each channel of the layer."""
    layer: str | None = None
    """Layer of a ResNet for class activation maps, such as layer4.2.relu3. Default: the last ReLU."""
    score: ScoreKind | None = None
    """Score that is differentiated (scorecam, ablationcam: compared): cosine, logit (cosine times CLIP's scale) or dot
    (features without normalisation). Default: what the method's authors use."""
    start_block: int | None = None
    """First block of relevance and relevance-last-grad, from 0; -1 is the last block. Default: all blocks."""
    negative: bool = False
    """Show what lowers the score."""

    def check_clip(self, clip: ClipKind) -> None:
        TargetSettings.check_clip(self, clip)
        method = check_map(clip, self.method, layer=self.layer, negative=self.negative, start_block=self.start_block)
        if self.score is not None:
            check_score(clip, method, self.score, of_words=bool(self.word))


def show_saliency(models: Text2Seg, images: Sequence[Image], settings: SaliencySettings, progress: Progress) -> Result:
    """Show the map of one method for every target.

    Raises:
        QueryError: there is no target, or one is empty, too long or unknown to the models.
        SettingsError: this CLIP does not support the method or the layer.
    """
    method = check_method(models.clip, settings.method, settings.layer)
    (image,) = images
    targets = targets_of(models, settings)
    pixels = backdrop(image)
    panels, scores = [Panel("the image", pixels)], []
    for target in progress.each(targets, method.name):
        found = map_of(models.clip, image, target, settings)
        scores.append(image_score(models, image, target))
        shown = target.negated().name if settings.negative else target.name
        panels.append(Panel(f"{shown} · score {scores[-1]:.3f}", overlay_map(found, pixels, settings.alpha)))
    rows = tuple((target.name, value) for target, value in zip(targets, scores, strict=False))
    return Result(
        f"{image_name(image)}: saliency by {method.name}",
        tuple(panels),
        (Table("Score", ("target", "score"), rows), *_word_tables(models, image, targets, settings)),
        (
            description_of(method),
            _differentiated(models.clip, method, targets, settings.score),
            templates_note(settings),
        ),
    )


def map_of(clip: Clip, image: Image, target: Target, settings: SaliencySettings) -> NDArray[np.float32]:
    """Return the map float32 [gh, gw] of a target by the method and its settings; see `saliency`."""
    return saliency(
        clip,
        image,
        target,
        settings.method,
        negative=settings.negative,
        layer=settings.layer,
        score=settings.score,
        start_block=settings.start_block,
    )


SALIENCY = Tool(
    "saliency",
    "Saliency map",
    "Where in an image CLIP's score for texts, another image or weighted words comes from.",
    SaliencySettings,
    show_saliency,
)


@dataclass(frozen=True, slots=True)
class CompareSettings(TargetSettings):
    """The target that an image is compared with, and the methods."""

    text: tuple[str, ...] = ()
    """The text to compare the image with, such as "sheep"; only one, unless another kind of target is given."""
    method: tuple[MethodName, ...] = ()
    """A saliency method to show; repeat for more. Default: all methods that this CLIP supports, except scorecam and
    ablationcam, which are slow."""

    def check_given(self) -> None:
        TargetSettings.check_given(self)
        files = [path.name for path in (self.target_image, *self.vector) if path is not None]
        _check_one([*self.text, *([", ".join(self.word)] if self.word else []), *files])

    def check_clip(self, clip: ClipKind) -> None:
        TargetSettings.check_clip(self, clip)
        for name in self.method:
            check_method(clip, name)


def _check_one(names: Sequence[str]) -> None:
    if len(names) > 1:
        raise QueryError(f"methods are compared on one target, got {len(names)}: {', '.join(names)}")


def compare(models: Text2Seg, images: Sequence[Image], settings: CompareSettings, progress: Progress) -> Result:
    """Show the maps of several methods for one target.

    Raises:
        QueryError: there is no target or more than one, or it is empty, too long or unknown to the models.
        SettingsError: this CLIP does not support a method.
    """
    (image,) = images
    chosen = [check_method(models.clip, name).name for name in settings.method or methods_for(models.clip, slow=False)]
    targets = targets_of(models, settings)
    _check_one([target.name for target in targets])  # a file may have several vectors
    (target,) = targets
    value = image_score(models, image, target)
    pixels = backdrop(image)
    panels, notes = [Panel("the image", pixels)], []
    for name in progress.each(tuple(dict.fromkeys(chosen)), target.name):
        found = saliency(models.clip, image, target, name)
        panels.append(Panel(name, overlay_map(found, pixels, settings.alpha)))
        notes.append(description_of(METHODS[name]))
    return Result(
        f"{image_name(image)}: {target.name} · score {value:.3f}",
        tuple(panels),
        (Table("Score", ("target", "score"), ((target.name, value),)), *_word_tables(models, image, targets, settings)),
        tuple(notes),
    )


def _work(models: Text2Seg, images: int, settings: CompareSettings) -> Work:
    methods = len(settings.method or methods_for(models.clip, slow=False))
    return Work(clip_images=methods * GRADIENT)


COMPARE = Tool(
    "compare",
    "Compare saliency methods",
    "All saliency methods side by side for one target.",
    CompareSettings,
    compare,
    work=_work,
)


@dataclass(frozen=True, slots=True)
class SignedSettings(TargetSettings):
    """The targets that an image is compared with, and the method."""

    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""
    layer: str | None = None
    """Layer of a ResNet for class activation maps, such as layer4.2.relu3. Default: the last ReLU."""

    def check_clip(self, clip: ClipKind) -> None:
        TargetSettings.check_clip(self, clip)
        check_map(clip, method_or_default(clip, self.method), layer=self.layer, negative=True)


def signed(models: Text2Seg, images: Sequence[Image], settings: SignedSettings, progress: Progress) -> Result:
    """Show, for each target, the image, what raises the score, what lowers it, and both.

    The maps of one target share a scale, so a small negative part also looks small.

    Raises:
        QueryError: there is no target, or one is empty, too long or unknown to the models.
        SettingsError: this CLIP does not support the method or the layer, or the method ignores the target.
    """
    from text2seg.render.drawing import signed_heat

    (image,) = images
    method = method_or_default(models.clip, settings.method, settings.layer)
    pixels, panels, rows = backdrop(image), [], []
    nothing: NDArray[np.float32] = np.zeros((1, 1), np.float32)
    for target in progress.each(targets_of(models, settings), method):
        both = [
            saliency(models.clip, image, target, method, negative=negative, layer=settings.layer).clip(
                min=0
            )  # in the maps of all methods 0 means neither for nor against
            for negative in (False, True)
        ]
        highest = max(float(each.max()) for each in both) or 1.0
        pro, contra = (np.asarray(each / highest, np.float32) for each in both)
        panels += [
            Panel("the image", pixels),
            Panel(f"for {target.name}", signed_heat(pro, nothing, pixels)),
            Panel(f"against {target.name}", signed_heat(nothing, contra, pixels)),
            Panel(f"for {target.name} (orange) and against it (blue)", signed_heat(pro, contra, pixels)),
        ]
        total = float(pro.sum() + contra.sum())
        share = float(contra.sum()) / total if total else None
        rows.append((target.name, image_score(models, image, target), share))
    table = Table("for and against", ("target", "score", "share of all saliency that is against"), tuple(rows))
    return Result(f"{image_name(image)}: for and against, {method}", tuple(panels), (table,), columns=4)


SIGNED = Tool(
    "signed",
    "For and against",
    "What in the image raises the score of a target and what lowers it, in two colours.",
    SignedSettings,
    signed,
)


def targets_of(models: Text2Seg, settings: ComparisonSettings) -> tuple[Target, ...]:
    """Return the targets of the settings: texts, the other image, weighted words and vectors, in this order.

    Raises:
        QueryError: there is no target, a text or word is empty, too long or unknown to the models, or a file of
            vectors cannot be used.
        ImageError: the other image cannot be read.
    """
    from text2seg.explain.saliency.targets import image_target, text_target, vector_targets, words_target

    clip, vocabulary = models.clip, models.closed_vocabulary
    targets = [text_target(clip, text, settings.templates, closed_vocabulary=vocabulary) for text in settings.text]
    if settings.target_image is not None:
        targets.append(image_target(clip, fitted(load_image(settings.target_image), settings.fit)))
    if settings.word:
        targets.append(
            words_target(clip, parse_weights(settings.word), settings.templates, closed_vocabulary=vocabulary)
        )
    for path in settings.vector:
        targets += vector_targets(clip, path)
    return tuple(targets)


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """Parse "word=weight" into words and weights.

    >>> parse_weights(["sheep=0.7", "fire engine = 3"])
    {'sheep': 0.7, 'fire engine': 3.0}

    Raises:
        QueryError: an item does not have this form, or a word occurs twice.
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
            raise QueryError(f'a weighted word has the form "word=number", got {given!r}')
        if word in weights:
            raise QueryError(f"the word {word!r} has two weights; give it once")
        weights[word] = value
    return weights


def image_score(models: Text2Seg, image: Image, target: Target) -> float:
    """Return the target's score of the whole image, from CLIP's unchanged forward."""
    import torch

    from text2seg.explain.saliency.targets import score

    clip = models.clip
    with torch.inference_mode():
        return float(score(clip, clip.preprocess(image)[None], target))


def overlay_map(
    found: NDArray[np.float32], pixels: Pixels, alpha: float, limits: tuple[float, float] | None = None
) -> Pixels:
    """Draw a map float32 [gh, gw] in colours over an image uint8 [h, w, 3], with an opacity from 0 to 1.

    `limits` are the values of the lowest and the highest colour; default: those of the map.
    """
    import cv2

    from text2seg.render.drawing import heat

    return np.asarray(
        cv2.addWeighted(heat(found, pixels, limits), alpha, np.ascontiguousarray(pixels), 1 - alpha, 0), np.uint8
    )


def description_of(method: Method) -> str:
    return f"{method.name}: {method.summary} ({method.source})."


def _differentiated(clip: Clip, method: Method, targets: Sequence[Target], score: ScoreKind | None) -> str:
    """Return a note on the scores that the method differentiates for the targets."""
    if not method.score:
        return f"{method.name} takes no gradient."
    kinds = dict.fromkeys(score_of(clip, method, target, score) for target in targets)
    # the slow methods compare scores of changed images
    return f"{'Scores are those' if method.slow else 'Gradients are'} of the {' and the '.join(kinds)}."


def templates_note(settings: ComparisonSettings) -> str:
    """Return a note on the sentences that texts and words were put into."""
    templates = settings.templates
    if not templates:
        return "Texts are put into CLIP Surgery's 85 templates; with the template {} they are used unchanged."
    return "Texts are used unchanged." if templates == ("{}",) else f"Templates: {'; '.join(templates)}"


def _word_tables(models: Text2Seg, image: Image, targets: Sequence[Target], settings: TargetSettings) -> list[Table]:
    """Return a table for each target of weighted words: the given shares and those of CLIP."""
    from text2seg.explain.saliency.targets import WordsTarget

    tables = []
    for target in targets:
        if isinstance(target, WordsTarget):
            (tokens,) = models.clip.encode_images([image], architecture="raw")
            shares = target.probabilities(tokens.features[0])
            rows = zip(target.words, target.shares.tolist(), shares.tolist(), strict=True)
            tables.append(Table("Words", ("word", "given share", "CLIP's share"), tuple(rows)))
    return tables
