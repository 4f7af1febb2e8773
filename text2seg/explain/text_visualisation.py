"""The words of a text that match an image: the similarity of every text token with every image token.

Source: the multimodal visualisation of "A Closer Look at the Explainability of Contrastive Language-Image
Pre-training" (arXiv 2304.05653). CLIP compares one vector of the image (CLS) with one of the text (the end token). This
tool compares all tokens. Text tokens pass through the last norm and projection of the text tower, like the end token.
Image tokens are those of CLIP Surgery, or of the attention rule in the models' settings.

Limits: a text token attends to the text before it, so its score describes the text up to this word. CLIP was trained
on the end token only. As the paper found, small words often carry the meaning of the words before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import SettingsError
from text2seg.explain.tool import (
    InputSettings,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    backdrop,
    check_text,
    image_name,
)
from text2seg.grids import outside_of
from text2seg.records import Image
from text2seg.settings_fields import check_count

if TYPE_CHECKING:
    from torch import Tensor

    from text2seg.clip.model import Clip, ImageTokens
    from text2seg.explain.tokens import Tokens
    from text2seg.pipeline import Text2Seg

Redundancy = Literal["empty", "label-set", "none"]


@dataclass(frozen=True, slots=True)
class TextVisualisationSettings(InputSettings):
    """A text whose tokens are compared with the patches of the image."""

    text: str = ""
    """The text, for instance "a sheep beside a fire engine"; used unchanged, without templates."""
    words: int = 4
    """Number of best words shown with their map."""
    point: tuple[int, int] | None = None
    """x and y of a pixel; the words that fit best there are shown too. Default: the peak of the best word."""
    redundancy: Redundancy = "empty"
    """Redundant features subtracted from the scores: those of the empty text, those common to all tokens, or none."""

    def __post_init__(self) -> None:
        InputSettings.__post_init__(self)
        check_count("words", self.words)

    def check_given(self) -> None:
        check_text(self.text)


TINY = 1e-9
READ_SO_FAR = (
    "CLIP reads a text from left to right, so each word also carries the words before it: a word after “sheep” may "
    "match a sheep."
)


@dataclass(frozen=True, slots=True, eq=False)
class TokenScores:
    """Similarity of an image with the n tokens of a text and, last, with the end token (the whole text).

    `whole` float32 [n + 1] are the scores of CLS, `places` float32 [n + 1, gh, gw] those of each patch.
    """

    whole: NDArray[np.float32]
    places: NDArray[np.float32]


def text_visualisation(
    models: Text2Seg, images: Sequence[Image], settings: TextVisualisationSettings, progress: Progress
) -> Result:
    """Show the tokens that match the whole image and a point, and the maps of the best words.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
        SettingsError: the point is outside the image.
    """
    from text2seg.explain.saliency.targets import text_target
    from text2seg.explain.tokens import tokens_of

    (image,) = images
    clip, maps = models.clip, models.settings.maps
    text_target(clip, settings.text, ("{}",), closed_vocabulary=models.closed_vocabulary)  # for its checks
    tokens = tokens_of(clip, settings.text)
    (seen,) = clip.encode_images([image], architecture=maps.architecture)
    scores = score_tokens(clip, seen, tokens, settings.redundancy)
    best = np.argsort(-scores.whole[:-1], kind="stable")[: settings.words]
    at = settings.point or _peak(scores.places[best[0]], image.hw)
    cell = _cell(at, image.hw, seen.grid_hw)
    table = Table(
        "Similarity of each token",
        ("token", "whole image", "best place", f"at {at[0]}, {at[1]}"),
        tuple(
            (name, float(score), float(places.max()), float(places[cell]))
            for name, score, places in zip((*_stripped(tokens), "(end)"), scores.whole, scores.places, strict=True)
        ),
    )
    panels = _panels(image, tokens, scores, best, at, cell)
    return Result(
        f"{image_name(image)}: words of “{settings.text}” in the image", panels, (table,), (READ_SO_FAR,), columns=5
    )


TEXT_VISUALISATION = Tool(
    "text-visualisation",
    "Tokens in the image",
    "Which words of a text match the image, and where.",
    TextVisualisationSettings,
    text_visualisation,
)


def score_tokens(clip: Clip, image: ImageTokens, tokens: Tokens, redundancy: Redundancy = "empty") -> TokenScores:
    """Score every token of a text, its end token included, with every token of an image.

    With redundancy `none` the scores are cosines. `empty` subtracts the cosine with the end token of the empty text,
    which changes the maps but not the order of the words at a place. `label-set` is feature surgery over the tokens.
    """
    from text2seg.clip.maps import cosines, without_empty_text, without_label_set

    texts = token_features(clip, tokens)[1:]
    if redundancy == "empty":
        scores = without_empty_text(image.features, texts, clip.encode_texts(("",), ("{}",))[0])
    elif redundancy == "label-set":
        scores = without_label_set(image.features, texts)
    else:
        scores = cosines(image.features, texts)
    grid = scores[1:].T.unflatten(-1, image.grid_hw)
    return TokenScores(scores[0].cpu().numpy(), np.ascontiguousarray(grid.cpu().numpy()))


def token_features(clip: Clip, tokens: Tokens) -> Tensor:
    """Return unit features float32 [2 + n, C] of all tokens, start and end token included."""
    import torch
    from torch.nn import functional as F

    from text2seg.runtime import autocast

    with torch.no_grad(), autocast(clip.device, clip.precision):
        last = clip.model.ln_final(tokens.trace(clip.model).tokens[-1][0])
        features = last @ clip.model.text_projection
    return F.normalize(features.float(), dim=-1)


def _panels(
    image: Image,
    tokens: Tokens,
    scores: TokenScores,
    best: NDArray[np.intp],
    at: tuple[int, int],
    cell: tuple[int, int],
) -> tuple[Panel, ...]:
    import cv2

    from text2seg.explain.tokens import joined, word_image
    from text2seg.render.drawing import blend, colour_of, heat

    words = [joined(tokens.spelled, number) for number in range(len(tokens.spelled))]
    colours = [colour_of(f"{number} {word}") for number, word in enumerate(words)]
    winners = scores.places[:-1].argmax(0)
    shares = np.bincount(winners.ravel(), minlength=len(words)).astype(np.float32) / winners.size
    pixels = backdrop(image)
    painted, size = pixels, (pixels.shape[1], pixels.shape[0])
    large = cv2.resize(winners.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    for number in np.unique(winners):
        painted = blend(painted, large == number, colours[number], 0.6)
    top = float(max(scores.whole[:-1].max(), scores.places[:-1].max()))
    here = scores.places[:-1, cell[0], cell[1]]
    return (
        Panel(f"the image and the point {at[0]}, {at[1]}", _marked(pixels, at, size[0] / image.hw[1])),
        Panel("words that match the whole image", _scored(tokens, scores.whole[:-1], top)),
        Panel("words that match the point", _scored(tokens, here, top)),
        Panel("best word at each place", painted),
        Panel(
            "share of the places for each word",
            word_image(tokens.spelled, (shares > 0).astype(np.float32), [_percent(s) for s in shares], colours),
        ),
        Panel(f"the whole text: {scores.whole[-1]:.2f}", heat(scores.places[-1], pixels)),
        *(
            Panel(f"{tokens.spelled[n].strip()}: {scores.whole[n]:.2f}", heat(scores.places[n], pixels))
            for n in best.tolist()
        ),
    )


def _scored(tokens: Tokens, scores: NDArray[np.float32], top: float) -> Pixels:
    """Draw the words coloured by score, on a scale from 0 to the highest score of all places, so that a place without a
    match has pale words."""
    from text2seg.explain.tokens import word_image

    weights = (scores / max(top, TINY)).clip(0, 1)
    return word_image(tokens.spelled, weights, [f"{round(float(score), 2) + 0:.2f}" for score in scores])


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _stripped(tokens: Tokens) -> tuple[str, ...]:
    return tuple(piece.strip() for piece in tokens.spelled)


def _marked(pixels: Pixels, at: tuple[int, int], scale: float) -> Pixels:
    import cv2

    from text2seg.render.drawing import INK, PAPER

    marked = pixels.copy()
    middle = int(at[0] * scale), int(at[1] * scale)
    radius = max(3, max(pixels.shape[:2]) // 60)
    cv2.circle(marked, middle, radius + max(2, radius // 2), PAPER, -1, cv2.LINE_AA)
    cv2.circle(marked, middle, radius, INK, -1, cv2.LINE_AA)
    return marked


def _peak(scores: NDArray[np.float32], hw: tuple[int, int]) -> tuple[int, int]:
    """Return x and y of the centre of the highest cell, in pixels of the image."""
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return int((column + 0.5) * hw[1] / scores.shape[1]), int((row + 0.5) * hw[0] / scores.shape[0])


def _cell(at: tuple[int, int], hw: tuple[int, int], grid_hw: tuple[int, int]) -> tuple[int, int]:
    """Return row and column of the cell that contains a pixel."""
    x, y = at
    if not (0 <= x < hw[1] and 0 <= y < hw[0]):
        raise SettingsError(f"the point {x}, {y} is {outside_of(hw)}")
    return y * grid_hw[0] // hw[0], x * grid_hw[1] // hw[1]
