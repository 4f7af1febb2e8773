"""Word by word: what each word of a text adds to the score and where, and words drawn in a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw
from torch import Tensor
from torch.nn import functional as F

from text2seg.clip.model import Clip
from text2seg.clip.text import encode_tokens
from text2seg.explain.backdrop import ground, method_or_usual, named
from text2seg.explain.catalogue.inside import WordsSettings
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.saliency.targets import Target, text_target
from text2seg.explain.show_saliency import image_score, laid_over
from text2seg.explain.tokens import tokens_of, words_of
from text2seg.explain.tool import Panel, Progress, Result, Table
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.colours import FAINT, INK, PAPER, Colour
from text2seg.render.lettering import draw_text, text_width
from text2seg.runtime import autocast

WIDTH, MARGIN = 560, 20
SIZE, SMALL = 30, 18
LINE, BOX, PAD, GAP = 92, 46, 8, 10
STRONG: Colour = (255, 146, 43)


def word_image(
    words: Sequence[str], weights: NDArray[np.float32], values: Sequence[str], colours: Sequence[Colour] = ()
) -> NDArray[np.uint8]:
    """Words in the order of reading on a ground of colour, a value below each: uint8[h, 560, 3] RGB.

    Args:
        words: what stands there; one that does not end with a blank belongs together with the next.
        weights: float32 [n], how strong each colour is, from 0 to 1.
        values: what stands below each.
        colours: of each word at full weight; default: all orange.
    """
    placed, x, line = [], float(MARGIN), 0
    for word, value in zip(words, values, strict=True):
        width = min(max(text_width(word.strip(), SIZE), text_width(value, SMALL)) + 2 * PAD, WIDTH - 2 * MARGIN)
        if x + width > WIDTH - MARGIN and x > MARGIN:
            x, line = float(MARGIN), line + 1
        placed.append((x, line, width))
        x += width + (GAP if word.endswith(" ") else 2)
    image = PillowImage.new("RGB", (WIDTH, LINE * (line + 1) + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    full = colours or [STRONG] * len(words)
    for (x, line, width), word, weight, value, colour in zip(placed, words, weights, values, full, strict=True):
        top = MARGIN + line * LINE
        pen.rounded_rectangle((x, top, x + width, top + BOX), 6, fill=_towards(colour, float(weight)))
        _centred(pen, x, top + BOX / 2, width, word.strip(), SIZE, INK)
        _centred(pen, x, top + BOX + SMALL * 0.8, width, value, SMALL, FAINT)
    return np.asarray(image)


def _centred(
    pen: ImageDraw.ImageDraw, x: float, middle: float, width: float, text: str, size: int, colour: Colour
) -> None:
    inset = max((width - text_width(text, size)) / 2, 2)
    draw_text(pen, (x + inset, middle), text, size=size, colour=colour, width=width - 2)


def _towards(colour: Colour, weight: float) -> Colour:
    """From nearly white to the colour."""
    share = 0.06 + 0.94 * min(max(weight, 0.0), 1.0)
    red, green, blue = (round(255 + (channel - 255) * share) for channel in colour)
    return red, green, blue


FAINT_WORDS = (
    "Maps are stretched from lowest to highest: that of a word that hardly turns the text shows next to nothing in "
    "bright colours."
)
FIRST_WORD = (
    "The demo CLIP does not read a text's first word: what that adds is that the next word, first without it, is read."
)


@dataclass(frozen=True, slots=True, eq=False)
class LeftOut:
    """A word of a text, and `rest` int64 [1, 2 + n], the tokens of the text without it."""

    word: str
    rest: Tensor


def words(models: Text2Seg, images: Sequence[Image], settings: WordsSettings, progress: Progress) -> Result:
    """The map of the whole text, and one of each word's share in it: of the direction from the text without the word to
    the text with it.

    Raises:
        QueryError: the text is empty, too long or unknown to the models.
        SettingsError: the method or the layer is nothing for this CLIP.
    """
    (image,) = images
    clip, pixels = models.clip, ground(image)
    method = method_or_usual(clip, settings.method, settings.layer)
    full = text_target(clip, settings.text, ("{}",), things=models.things)
    whole = image_score(models, image, full, settings.size)

    def panel(caption: str, target: Target) -> Panel:
        found = saliency(clip, image, target, method, size=settings.size, layer=settings.layer)
        return Panel(caption, laid_over(found, pixels, settings.alpha))

    panels = [panel(f"the whole text · {whole:.3f}", full)]
    rows = []
    for left_out in progress.each(leave_out(clip, settings.text), method):
        without = _target(clip, left_out)
        rest = image_score(models, image, without, settings.size)
        turned = 1 - float(full.features @ without.features)
        rows.append((left_out.word, rest, whole - rest, turned))
        panels.append(panel(f"{left_out.word} · {whole - rest:+.3f}", share_of(left_out.word, full, without)))
    columns = ("word", "score of the text without it", "what it adds", "how far it turns the text (1 − cosine)")
    first = (Panel("the image", pixels), *_line(rows))
    return Result(
        f"{named(image)}: “{settings.text}” word by word, {method}",
        (*first, *panels),
        (Table(f"score of the whole text: {whole:.3f}", columns, tuple(rows)),),
        (FAINT_WORDS, *((FIRST_WORD,) if models.things else ())),
    )


def leave_out(clip: Clip, text: str) -> tuple[LeftOut, ...]:
    """Each word of a text, in its order, and the text's tokens without those of the word; punctuation is no word.

    Raises:
        QueryError: there is no token in the text, or it is longer than CLIP reads.
    """
    tokens = tokens_of(clip, text)
    found, first = [], 0
    for last, spelled in enumerate(tokens.spelled):
        if spelled.endswith(" "):
            word = "".join(tokens.spelled[first : last + 1]).strip()
            if words_of(word):
                # the start token stands before the first
                found.append(LeftOut(word, torch.cat([tokens.ids[:, : first + 1], tokens.ids[:, last + 2 :]], dim=1)))
            first = last + 1
    return tuple(found)


def share_of(word: str, full: Target, without: Target) -> Target:
    """The direction from a text without a word to the text with it."""
    return Target(word, F.normalize(full.features - without.features, dim=0))


def _target(clip: Clip, left_out: LeftOut) -> Target:
    with torch.inference_mode(False), torch.no_grad(), autocast(clip.device, clip.precision):
        return Target(f"without {left_out.word}", encode_tokens(clip.model, left_out.rest)[0])


def _line(rows: Sequence[tuple[str, float, float, float]]) -> tuple[Panel, ...]:
    """The text in a line, the more coloured a word the further it turns the text."""
    if not rows:
        return ()
    turned = np.array([row[3] for row in rows], np.float32)
    values = [f"{row[2]:+.3f}" for row in rows]
    pixels = word_image([f"{row[0]} " for row in rows], turned / max(float(turned.max()), 1e-6), values)
    return (Panel("how far each word turns the text, and what it adds", pixels),)
