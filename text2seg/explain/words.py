"""Word by word: what a text loses with each of its words, in the score and in the picture.

Words are left out as the tokens that they are, so "a cat" without "a" is "cat" and not "ct".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from text2seg.explain.catalogue.inside import WordsSettings
from text2seg.explain.exhibit import Exhibit, Panel, Table
from text2seg.explain.ground import ground, method_or_usual, named
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.saliency.targets import Target, text_target
from text2seg.explain.show_saliency import image_score, laid_over
from text2seg.explain.tokens import tokens_of, words_of
from text2seg.explain.watch import Watch
from text2seg.explain.word_picture import word_picture
from text2seg.maps.clip import Clip
from text2seg.maps.text import encode_tokens
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.runtime import autocast

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


def words(models: Text2Seg, images: Sequence[Image], settings: WordsSettings, watch: Watch) -> Exhibit:
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
    for left_out in watch.each(leave_out(clip, settings.text), method):
        without = _target(clip, left_out)
        rest = image_score(models, image, without, settings.size)
        turned = 1 - float(full.features @ without.features)
        rows.append((left_out.word, rest, whole - rest, turned))
        panels.append(panel(f"{left_out.word} · {whole - rest:+.3f}", share_of(left_out.word, full, without)))
    columns = ("word", "score of the text without it", "what it adds", "how far it turns the text (1 − cosine)")
    first = (Panel("the picture", pixels), *_line(rows))
    return Exhibit(
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
    pixels = word_picture([f"{row[0]} " for row in rows], turned / max(float(turned.max()), 1e-6), values)
    return (Panel("how far each word turns the text, and what it adds", pixels),)
