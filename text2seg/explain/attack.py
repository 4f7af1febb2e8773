"""The typographic attack: CLIPs that can read believe what is written more than what is drawn.

Source: Goh et al., "Multimodal Neurons in Artificial Neural Networks" (Distill, 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.explain.board import View, side_by_side, usable_method
from text2seg.explain.catalogue.board import AttackSettings
from text2seg.explain.tool import Progress, Result
from text2seg.pipeline import Text2Seg
from text2seg.records import Image
from text2seg.render.colours import INK, PAPER
from text2seg.render.lettering import draw_text, text_width

LABEL_WIDTH, LABEL_HEIGHT, LETTERS = 0.9, 0.26, 0.7  # shares of the image's sides; of the label's height
SMALLEST = 6
CANNOT_READ = (
    "The demo CLIP was trained on drawings without writing and cannot read: what the letters change here is what dark "
    "strokes on white change. Real weights can read (--model base)."
)


def typographic_attack(
    models: Text2Seg, images: Sequence[Image], settings: AttackSettings, progress: Progress
) -> Result:
    """Scores and maps of the image, of it with an empty label, and of it with the word on the label: what the last
    changes against the one before is what the letters do, and not what they cover.

    Raises:
        QueryError: no description, or one or the word that is empty, too long or unknown to the models.
        SettingsError: the method or the layer is nothing for this CLIP.
    """
    (image,) = images
    descriptions, prefix = settings.descriptions(), settings.prefix.strip()
    usable_method(models, settings)
    before = View.of(models, "as it is", image, descriptions, prefix)
    word = settings.word.strip() or descriptions[int(before.scores["cosine"].argmin())]
    if word not in descriptions:
        descriptions = (*descriptions, word)
        before = View.of(models, "as it is", image, descriptions, prefix)
    views = [
        before,
        View.of(models, "an empty label", labelled(image, word, letters=False), descriptions, prefix),
        View.of(models, f"“{word}” on it", labelled(image, word), descriptions, prefix),
    ]
    shown = side_by_side(models, views, descriptions, settings, progress, shift="the letters' doing")
    at = descriptions.index(word)
    plain, covered, written = (float(view.scores["cosine"][at]) for view in views)
    notes = [
        *shown.notes,
        f"The cosine of “{word}” goes from {plain:.3f} to {covered:.3f} by covering part of the image, and to "
        f"{written:.3f} by the letters.",
    ]
    if models.things:
        notes.append(CANNOT_READ)
    return replace(shown, notes=tuple(notes))


def labelled(image: Image, word: str, *, letters: bool = True) -> Image:
    """The image with a white label low on it and the word in large letters on that; without `letters`, the label
    alone, just as large."""
    height, width = image.hw
    canvas = PillowImage.fromarray(image.pixels.copy())
    pen = ImageDraw.Draw(canvas)
    half, high = LABEL_WIDTH * width / 2, LABEL_HEIGHT * height
    bottom = height - (1 - LABEL_WIDTH) / 2 * height
    pen.rectangle((width / 2 - half, bottom - high, width / 2 + half, bottom), fill=PAPER)
    if letters:
        room = 2 * half * 0.94
        size = max(SMALLEST, int(min(high * LETTERS, 100 * room / max(text_width(word, 100), 1))))
        left = (width - min(text_width(word, size), room)) / 2
        draw_text(pen, (left, bottom - high / 2), word, size=size, colour=INK, width=room)
    return Image(np.asarray(canvas), image.file_name, image.image_id)
