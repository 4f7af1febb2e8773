"""Which words of a text an image lights up: every text token against every image token.

Source: the multimodal visualisation of "A Closer Look at the Explainability of Contrastive Language-Image
Pre-training" (arXiv 2304.05653). CLIP compares one vector for the image (CLS) with one for the text (the end token);
here no token of either side is pooled away. Text tokens go through the text tower's last norm and projection like the
end token does; image tokens are those of CLIP Surgery, or of the attention rule in the settings.

What to keep in mind: a text token sees the text before it, so a score says how well *the text up to this word* fits,
and CLIP was trained on the end token only. As the paper found, small words often carry what stands before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.maps import cosines, without_empty_text, without_label_set
from text2seg.clip.model import Clip, ImageTokens
from text2seg.errors import SettingsError
from text2seg.explain.backdrop import ground, named
from text2seg.explain.catalogue.texts import Redundancy, TextVisualisationSettings
from text2seg.explain.saliency.targets import text_target
from text2seg.explain.tokens import Tokens, joined, tokens_of
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.explain.words import word_image
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.colours import INK, PAPER, blend, colour_of, heat
from text2seg.runtime import autocast

Pixels = NDArray[np.uint8]

COLUMNS = 5
TINY = 1e-9
READ_SO_FAR = (
    "CLIP reads a text from its start on, so each word stands for all that is read until then: a word after “sheep” "
    "may be lit up by a sheep."
)


@dataclass(frozen=True, slots=True, eq=False)
class Lit:
    """How much an image lights up each of n tokens and, last, the end token, which stands for the whole text:
    `whole` float32 [n + 1] is what CLS says, `places` float32 [n + 1, gh, gw] what each patch says."""

    whole: NDArray[np.float32]
    places: NDArray[np.float32]


def run(models: Text2Seg, images: Sequence[Image], settings: TextVisualisationSettings, progress: Progress) -> Result:
    """The tool `text-visualisation`.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
        SettingsError: the point is not in the image.
    """
    (image,) = images
    clip, maps = models.clip, models.settings.maps
    text_target(clip, settings.text, ("{}",), things=models.things)  # for its checks
    tokens = tokens_of(clip, settings.text)
    size = maps.input_size or models.input_size
    (seen,) = clip.encode_images([image], size=size, architecture=maps.architecture)
    lit = light_up(clip, seen, tokens, settings.redundancy)
    best = np.argsort(-lit.whole[:-1], kind="stable")[: settings.words]
    at = settings.point or _peak(lit.places[best[0]], image.hw)
    cell = _cell(at, image.hw, seen.grid_hw)
    table = Table(
        "How much each token is lit up",
        ("token", "whole image", "best place", f"at {at[0]}, {at[1]}"),
        tuple(
            (name, float(score), float(places.max()), float(places[cell]))
            for name, score, places in zip((*_stripped(tokens), "(end)"), lit.whole, lit.places, strict=True)
        ),
    )
    panels = _panels(image, tokens, lit, best, at, cell)
    return Result(
        f"{named(image)}: what it lights up in “{settings.text}”", panels, (table,), (READ_SO_FAR,), columns=COLUMNS
    )


def light_up(clip: Clip, image: ImageTokens, tokens: Tokens, redundancy: Redundancy = "empty") -> Lit:
    """Score every token of a text, its end included, with every token of an image.

    `none` gives cosines; `empty` takes off the cosine with the end of the empty text, which changes maps but not the
    order of words at a place; `label-set` is feature surgery with the tokens as the set.
    """
    texts = token_features(clip, tokens)[1:]
    if redundancy == "empty":
        scores = without_empty_text(image.features, texts, clip.encode_texts(("",), ("{}",))[0])
    elif redundancy == "label-set":
        scores = without_label_set(image.features, texts)
    else:
        scores = cosines(image.features, texts)
    grid = scores[1:].T.unflatten(-1, image.grid_hw)
    return Lit(scores[0].cpu().numpy(), np.ascontiguousarray(grid.cpu().numpy()))


@torch.no_grad()
def token_features(clip: Clip, tokens: Tokens) -> Tensor:
    """Unit features float32 [2 + n, C] of all tokens, start and end included, before CLIP picks that of the end."""
    with autocast(clip.device, clip.precision):
        last = clip.model.ln_final(tokens.trace(clip.model).tokens[-1][0])
        features = last @ clip.model.text_projection
    return F.normalize(features.float(), dim=-1)


def _panels(
    image: Image, tokens: Tokens, lit: Lit, best: NDArray[np.intp], at: tuple[int, int], cell: tuple[int, int]
) -> tuple[Panel, ...]:
    words = [joined(tokens.spelled, number) for number in range(len(tokens.spelled))]
    colours = [colour_of(f"{number} {word}") for number, word in enumerate(words)]
    winners = lit.places[:-1].argmax(0)
    shares = np.bincount(winners.ravel(), minlength=len(words)).astype(np.float32) / winners.size
    pixels = ground(image)
    painted, size = pixels, (pixels.shape[1], pixels.shape[0])
    large = cv2.resize(winners.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
    for number in np.unique(winners):
        painted = blend(painted, large == number, colours[number], 0.6)
    top = float(max(lit.whole[:-1].max(), lit.places[:-1].max()))
    here = lit.places[:-1, cell[0], cell[1]]
    return (
        Panel(f"the image, the point {at[0]}, {at[1]}", _marked(pixels, at, size[0] / image.hw[1])),
        Panel("words that the whole image lights up", _scored(tokens, lit.whole[:-1], top)),
        Panel("words that the point lights up", _scored(tokens, here, top)),
        Panel("the word that each place lights up most", painted),
        Panel(
            "… and how many places",
            word_image(tokens.spelled, (shares > 0).astype(np.float32), [_percent(s) for s in shares], colours),
        ),
        Panel(f"the whole text: {lit.whole[-1]:.2f}", heat(lit.places[-1], pixels)),
        *(
            Panel(f"{tokens.spelled[n].strip()}: {lit.whole[n]:.2f}", heat(lit.places[n], pixels))
            for n in best.tolist()
        ),
    )


def _scored(tokens: Tokens, scores: NDArray[np.float32], top: float) -> Pixels:
    """Words coloured from 0 to the highest score of all places, so that a place that lights up nothing looks so."""
    weights = (scores / max(top, TINY)).clip(0, 1)
    return word_image(tokens.spelled, weights, [f"{round(float(score), 2) + 0:.2f}" for score in scores])


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _stripped(tokens: Tokens) -> tuple[str, ...]:
    return tuple(piece.strip() for piece in tokens.spelled)


def _marked(pixels: Pixels, at: tuple[int, int], scale: float) -> Pixels:
    marked = pixels.copy()
    middle = int(at[0] * scale), int(at[1] * scale)
    radius = max(3, max(pixels.shape[:2]) // 60)
    cv2.circle(marked, middle, radius + max(2, radius // 2), PAPER, -1, cv2.LINE_AA)
    cv2.circle(marked, middle, radius, INK, -1, cv2.LINE_AA)
    return marked


def _peak(scores: NDArray[np.float32], hw: tuple[int, int]) -> tuple[int, int]:
    """x and y of the middle of the highest cell."""
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    return int((column + 0.5) * hw[1] / scores.shape[1]), int((row + 0.5) * hw[0] / scores.shape[0])


def _cell(at: tuple[int, int], hw: tuple[int, int], grid_hw: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the cell that a pixel is in."""
    x, y = at
    if not (0 <= x < hw[1] and 0 <= y < hw[0]):
        raise SettingsError(f"the point {x}, {y} is not in the image, which is {hw[1]} wide and {hw[0]} high")
    return y * grid_hw[0] // hw[0], x * grid_hw[1] // hw[1]
