"""The mosaic of an image: CLIP's own words, what makes CLIP say each of them, and the segments of what they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from text2seg.clip.shape import ClipKind
from text2seg.errors import QueryError
from text2seg.explain.opinion import Opinion, OpinionSettings, counted_texts, words_panel
from text2seg.explain.saliency.methods import MethodName, method_or_default, saliency
from text2seg.explain.tool import EMPTY, Panel, Pixels, Progress, Result, Table, backdrop, image_name
from text2seg.io.names import safe_file_name, unique_names
from text2seg.queries import Query
from text2seg.records import Image, Segmentation, SimilarityMaps, calibration_note

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class MosaicSettings(OpinionSettings):
    """Settings of the search for CLIP's own words, and of what is shown of them."""

    words: int = 5
    """Number of words of an image that get maps and segments, the most frequent first."""
    min_count: int = 1
    """Leave out words that occur less often than this in the counted texts of an image, also from the table."""
    method: MethodName | None = None
    """Saliency method. Default: legrad, for ResNets gradcam."""

    def check_clip(self, clip: ClipKind) -> None:
        OpinionSettings.check_clip(self, clip)
        method_or_default(clip, self.method)


MOST_EARLIER = 50
"""Number of rows in the table of words of earlier images."""
SIDE = 400
"""Largest side of the panels of a mosaic, pixels."""
FADED = 0.6
"""Share of white in an image without segments, from 0 to 1."""


def make_mosaic(
    models: Text2Seg,
    image: Image,
    opinion: Opinion,
    settings: MosaicSettings,
    earlier: Sequence[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Make the mosaic of an image.

    The first row is the image, CLIP's words and all segments. Each further row belongs to one word: its saliency map,
    the similarity map of raw CLIP (cosines), that of the pipeline, that with the redundancy of the shown words removed
    (`--redundancy label-set`), and its segments. Similarity maps show the points of the SAM prompts. Words that the
    models do not know have no segments.

    Args:
        earlier: words of other images. Those with the highest cosine get rows too, after the image's own.
        progress: asked before each word. If the work is stopped, the mosaic is not complete.
    """
    from text2seg.explain.saliency.targets import text_target
    from text2seg.render.drawing import heat
    from text2seg.render.panels import shrunk

    clip, pixels = models.clip, shrunk(backdrop(image), SIDE)
    counts = dict(opinion.words[: settings.words])
    fits = _fits(models, image, [word for word in earlier if word not in counts])
    words = [*counts, *(word for word, _ in fits[: settings.words])]
    best, cosine = opinion.texts[0]
    title = f"{image_name(image)}: {best} ({cosine:.2f})"
    tables = [Table("Best texts", ("text", "cosine"), opinion.texts)]
    if not words:
        return Result(title, (Panel("the image", pixels), words_panel(opinion)), tuple(tables))
    method = method_or_default(clip, settings.method)
    maps = _maps(models, image, words)
    known = {word for word in words if _knows(models, word)}
    queries = [Query(word, ((word,),)) for word in words if word in known]
    found = models.segment(image, queries) if queries else Segmentation(image, (), maps.pipeline)
    blank = Panel("", EMPTY)
    panels = [
        Panel("the image", pixels),
        words_panel(opinion, settings.words),
        Panel("all segments", _painted(found, pixels)),
        blank,
        blank,
    ]
    rows = []
    for at, word in enumerate(words):
        if progress is not None and progress.stopped:
            break
        presence = float(maps.pipeline.presence[at])
        verdict = found.verdict(word) if word in known else "unknown to the models"
        name = word if word in counts else f"{word} (earlier image)"
        salient = saliency(clip, image, text_target(clip, word), method)
        segmented = replace(found, segments=found.of(word))
        panels += [
            Panel(f"{name}: {method}", heat(salient, pixels)),
            Panel(f"{word}: raw CLIP", _pointed(maps.raw[at], segmented, pixels)),
            Panel(
                f"{word}: {models.settings.maps.architecture}, {maps.pipeline.presence_of(word)}",
                _pointed(maps.pipeline.scores[at], segmented, pixels),
            ),
            Panel(
                f"{word}: label set" if len(words) > 1 else "label set: needs two words",
                _pointed(maps.label_set[at], segmented, pixels),
            ),
            Panel(f"{word}: {verdict}", _painted(segmented, pixels)),
        ]
        rows.append((word, counts.get(word), presence, verdict))
    headings = ("word", "count", f"presence{calibration_note(maps.pipeline.calibrated)}", "segments")
    tables.append(Table(_counted(opinion, settings), headings, tuple(rows)))
    if fits:
        tables.append(Table("Words of earlier images that fit best", ("word", "cosine"), tuple(fits[:MOST_EARLIER])))
    return Result(title, tuple(panels), tuple(tables), columns=5)


def _counted(opinion: Opinion, settings: MosaicSettings) -> str:
    return f"Words in {counted_texts(opinion, settings)}" if opinion.counted else "Words"


def _fits(models: Text2Seg, image: Image, words: Sequence[str]) -> list[tuple[str, float]]:
    """Return words and their cosines with the image, best first."""
    from text2seg.clip.maps import PRESENCE_TEMPLATE
    from text2seg.explain.saliency.targets import image_target

    if not words:
        return []
    texts = models.clip.encode_texts(words, (PRESENCE_TEMPLATE,))
    cosines = (texts @ image_target(models.clip, image).features).tolist()
    return sorted(zip(words, cosines, strict=True), key=lambda pair: (-pair[1], pair[0]))


@dataclass(frozen=True, slots=True, eq=False)
class _Maps:
    """Similarity maps of W words: those of the pipeline, and float32 [W, gh, gw] of raw CLIP and of the label set."""

    pipeline: SimilarityMaps
    raw: NDArray[np.float32]
    label_set: NDArray[np.float32]


def _maps(models: Text2Seg, image: Image, words: Sequence[str]) -> _Maps:
    """Compute the maps of all words. With a single word, the map of the label set is 0."""
    clip, settings = models.clip, models.settings.maps
    size = settings.input_size or models.input_size
    (tokens,) = clip.encode_images([image], size=size, architecture=settings.architecture)
    (raw,) = clip.encode_images([image], size=size, architecture="raw")
    calibrated = models.default_presence(models.settings) is not None
    pipeline = replace(clip.similarity(tokens, words, settings), calibrated=calibrated)
    plain = replace(settings, redundancy="none", refine="none")
    label_set = np.zeros_like(pipeline.scores)
    if len(words) > 1:
        label_set = clip.scores(tokens, words, replace(settings, redundancy="label-set"))
    return _Maps(pipeline, clip.scores(raw, words, plain), label_set)


def _pointed(scores: NDArray[np.float32], found: Segmentation, pixels: Pixels) -> Pixels:
    """Draw a map float32 [gh, gw] and the points of the segments over the image."""
    from text2seg.render.drawing import heat
    from text2seg.render.panels import with_points

    drawn = heat(scores, pixels)
    for segment in found.segments:
        drawn = with_points(drawn, segment.points, found.image.hw)
    return drawn


def _painted(found: Segmentation, pixels: Pixels) -> Pixels:
    """Draw the segments over the image, in the size of a panel; without segments, fade `pixels`."""
    from text2seg.render import overlay
    from text2seg.render.drawing import PAPER, blend
    from text2seg.render.panels import shrunk

    if not found.segments:
        return blend(pixels, np.ones(pixels.shape[:2], np.bool_), PAPER, FADED)
    return shrunk(overlay(found, legend=False), SIDE)


def _knows(models: Text2Seg, word: str) -> bool:
    """Return whether the models know a word."""
    try:
        models.check([Query(word, ((word,),))])
    except QueryError:
        return False
    return True


def word_images(image: Image, made: Result) -> Iterator[tuple[str, Pixels]]:
    """Yield a file name without suffix and an image for each word of a mosaic."""
    if len(made.tables) < 2:
        return
    name_of = unique_names()
    for at, (word, *_) in enumerate(made.tables[1].rows, start=1):
        row = made.panels[at * made.columns : (at + 1) * made.columns]
        pixels = drawn(Result(f"{image_name(image)}: {word}", row, columns=made.columns))
        yield name_of(safe_file_name(str(word)) or "word", ""), pixels


def drawn(result: Result) -> Pixels:
    """Draw the panels of a result that has some."""
    from text2seg.render.panels import sheet

    return sheet([(panel.caption, panel.pixels) for panel in result.panels], title=result.title, columns=result.columns)


def untitled(mosaic: Pixels) -> Pixels:
    """Return a mosaic without its title."""
    from text2seg.render.panels import TITLE

    return np.ascontiguousarray(mosaic[TITLE:])
