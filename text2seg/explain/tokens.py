"""A text as CLIP's tokens: split, spelled, traced through the text tower, and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw
from torch import Tensor

from text2seg.clip.model import Clip
from text2seg.clip.text import tokenize, tokenizer
from text2seg.errors import QueryError
from text2seg.explain.saliency.trace import TextTrace, trace_text
from text2seg.explain.tool import Pixels
from text2seg.render.drawing import FAINT, INK, PAPER, Colour, draw_text, text_width


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Tokens of one text.

    `ids` int64 [1, 2 + n] include the start and end token. `spelled` is the spelling of the other n tokens; a token at
    the end of a word ends with a space.
    """

    ids: Tensor
    spelled: tuple[str, ...]

    @property
    def end(self) -> int:
        """Position of the end token, whose features CLIP uses for the whole text."""
        return self.ids.shape[1] - 1

    def trace(self, model: Any, *, first: int = 0) -> TextTrace:
        """Run the text tower over the tokens; `first` as in `trace_text`."""
        return trace_text(
            model,
            model.token_embedding(self.ids),
            torch.tensor([self.end], dtype=torch.int64, device=self.ids.device),
            first=first,
        )


def tokens_of(clip: Clip, text: str) -> Tokens:
    """Split a text into tokens, without a template.

    Raises:
        QueryError: the text has no token, or is longer than CLIP reads.
    """
    context = clip.model.positional_embedding.shape[0]
    ids, over = tokenize([text], context)
    if over > 0:
        raise too_long(text, over, context)
    ids = ids[:, : int(ids.argmax()) + 1]
    if ids.shape[1] == 2:
        raise QueryError(f"a text must not be empty, and {text!r} has no token")
    return Tokens(ids.to(clip.device), tuple(decode([token]) for token in ids[0, 1:-1].tolist()))


def decode(tokens: Iterable[int]) -> str:
    """Return the text that tokens spell, with a space after each word. A character split by tokens becomes �.

    >>> decode([320, 9629])
    'a sheep '
    """
    text: str = tokenizer().decode(list(tokens))
    return text


def words_of(text: str) -> list[str]:
    """Return the words of a decoded text, without punctuation and broken characters.

    >>> words_of("fire-engine !! sheep� ) ")
    ['fire-engine', 'sheep']
    """
    stripped = (word.strip("�.,;:!?\"'`()[]{}<>|") for word in text.split())
    return [word for word in stripped if any(letter.isalnum() for letter in word)]


def too_long(text: str, over: int, context: int) -> QueryError:
    """Return the error for a text that is `over` tokens longer than the `context` that CLIP reads."""
    return QueryError(f"{shortened(text)!r} is too long: CLIP reads {context} tokens; shorten it by {over}")


def shortened(text: str, most: int = 60) -> str:
    """Cut a text to `most` characters, with … at the end."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def joined(spelled: Sequence[str], number: int) -> str:
    """Return the whole word that token `number` is part of.

    >>> joined(("a ", "xylo", "phone "), 1)
    'xylophone'
    """
    first = number
    while first and not spelled[first - 1].endswith(" "):
        first -= 1
    last = number
    while last + 1 < len(spelled) and not spelled[last].endswith(" "):
        last += 1
    return "".join(spelled[first : last + 1]).strip()


# Sizes of a drawn text in pixels: the image, the two fonts, a line, the box of a word, its padding, the space between.
WIDTH, MARGIN = 560, 20
SIZE, SMALL = 30, 18
LINE, BOX, PAD, GAP = 92, 46, 8, 10
ORANGE: Colour = (255, 146, 43)


def word_image(
    words: Sequence[str], weights: NDArray[np.float32], values: Sequence[str], colours: Sequence[Colour] = ()
) -> Pixels:
    """Draw words in lines, each on a coloured box with a value below it: uint8[h, 560, 3] RGB.

    Args:
        words: the words; a word that does not end with a space is joined to the next.
        weights: float32 [n], strength of each colour, from 0 to 1.
        values: text below each word.
        colours: colour of each word at weight 1; default: orange.
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
    full = colours or [ORANGE] * len(words)
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
    """Mix the colour with white: nearly white at weight 0, the colour at weight 1."""
    share = 0.06 + 0.94 * min(max(weight, 0.0), 1.0)
    red, green, blue = (round(255 + (channel - 255) * share) for channel in colour)
    return red, green, blue
