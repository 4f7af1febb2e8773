"""Everything for a folder of images: CLIP's own words, what makes it say them, and segments of what they name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from text2seg.errors import OutputError, QueryError, Text2SegError
from text2seg.explain.backdrop import ground, method_or_usual, named
from text2seg.explain.catalogue.opinion import RunAllSettings
from text2seg.explain.opinion import Opinion, framed, opine, words_panel
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.saliency.targets import text_target
from text2seg.explain.tool import Panel, Progress, Result, Table, save_result
from text2seg.io.files import check_folder, entries, is_left_over, make_folder
from text2seg.io.outputs import RECORD, OutputFolder
from text2seg.pipeline import Text2Seg
from text2seg.queries import Query
from text2seg.records import Image, Segmentation
from text2seg.render import overlay
from text2seg.render.colours import PAPER, blend, heat

log = logging.getLogger(__name__)

WORDS_FILE = "run-all_words"
MOST_SHOWN, LONGEST, LONGEST_NAME = 12, 20, 100
FADED = 0.6
"""How white an image is in which nothing was found."""


@dataclass(slots=True)
class _Tally:
    """What is known of all images until now."""

    counts: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    done: int = 0

    def add(self, opinion: Opinion) -> None:
        self.counts.update(dict(opinion.words))
        self.images.update(word for word, _ in opinion.words)
        self.done += 1

    def result(self, total: int) -> Result:
        often = sorted(self.counts, key=lambda word: (-self.counts[word], word))
        longest = sorted(self.counts, key=lambda word: (-len(word), word))[:LONGEST]
        missing = total - self.done - len(self.failures)
        notes = (f"{missing} of {total} images are not done.",) if missing else ()
        return Result(
            f"CLIP's own words for {self.done} image{'' if self.done == 1 else 's'}",
            tables=()
            if not self.counts
            else (
                Table(
                    "Words",
                    ("word", "count", "images"),
                    tuple((word, self.counts[word], self.images[word]) for word in often),
                ),
                Table("The longest words", ("word", "letters"), tuple((word, len(word)) for word in longest)),
            ),
            notes=(*notes, *self.failures),
        )


def run(models: Text2Seg, images: Sequence[Image], settings: RunAllSettings, progress: Progress) -> Result:
    """The tool `run-all`: a mosaic for each image and one table of words over all.

    With a folder in the settings, `<number>_<name>.png` and `.json` are written there for each image when it is done,
    and the table over those until then; nothing else is written, and no file that lies there otherwise. An image that
    cannot be done is a line in the notes. A stop leaves out the image that it comes in.

    Raises:
        QueryError: the prompt is too long.
        OutputError: the folder cannot be written to, or has files in it that no earlier run wrote.
    """
    framed(models.clip, settings.prompt)  # for its checks, before any image
    total, tally, shown = len(images), _Tally(), list[Panel]()
    results = _ready(settings.folder) if settings.folder is not None else None
    if results is not None:
        save_result(tally.result(total), results, WORDS_FILE)
    for number in range(total):
        if progress.stopped:
            break
        try:
            image = images[number]
            opinion = _opinion(models, image, settings, progress, number, total)
            if progress.stopped:
                break
            mosaic = explained(models, image, opinion, settings.words)
        except (Text2SegError, MemoryError, RuntimeError) as error:  # torch is out of memory with a RuntimeError
            log.info("image %d", number + 1, exc_info=error)
            tally.failures.append(f"Image {number + 1}: {error}")
            continue
        tally.add(opinion)
        if results is not None:
            name = f"{number + 1:04d}_{Path(image.file_name).stem[:LONGEST_NAME]}".rstrip("_")
            save_result(mosaic, results, name)
            save_result(tally.result(total), results, WORDS_FILE)
        panel = replace(mosaic, title="").image()
        if panel is not None and len(shown) < MOST_SHOWN:
            shown.append(Panel(mosaic.title, panel))
    if not progress.stopped:
        progress.step(total * settings.steps, total * settings.steps)
    found = tally.result(total)
    where = (f"The mosaics lie in {settings.folder}.",) if settings.folder is not None and tally.done else ()
    return replace(found, panels=tuple(shown), notes=(*found.notes, *where), columns=1)


def explained(models: Text2Seg, image: Image, opinion: Opinion, most: int) -> Result:
    """The mosaic of an image, three rows: what makes CLIP say each of the `most` most frequent words (relevance),
    where the similarity maps see it, and its segments. Words that the models do not know have no segments."""
    clip, maps, pixels = models.clip, models.settings.maps, ground(image)
    counts = dict(opinion.words[:most])
    words = list(counts)
    best, cosine = opinion.texts[0]
    title = f"{named(image)}: {best} ({cosine:.2f})"
    texts = Table("The best texts", ("text", "cosine"), opinion.texts)
    if not words:
        return Result(title, (Panel("the image", pixels), words_panel(opinion)), (texts,))
    method = method_or_usual(clip, None)
    size = maps.input_size or models.input_size
    (tokens,) = clip.encode_images([image], size=size, architecture=maps.architecture)
    similar = clip.similarity(tokens, words, maps)
    asked = [Query(word, ((word,),)) for word in words if _knows(models, word)]
    found = models.segment(image, asked) if asked else Segmentation(image, (), similar)
    columns = [(Panel("the image", pixels), words_panel(opinion), Panel("all segments", _painted(found, pixels)))]
    rows = []
    for word, presence, scores in zip(words, similar.presence.tolist(), similar.scores, strict=True):
        said = found.verdict(word) if _knows(models, word) else "not known"
        salient = saliency(clip, image, text_target(clip, word), method)
        segments = _painted(replace(found, segments=found.of(word)), pixels)
        columns.append(
            (
                Panel(f"{word}: {method}", heat(salient, pixels)),
                Panel(f"{word}: map, presence {presence:.2f}", heat(scores, pixels)),
                Panel(f"{word}: {said}", segments),
            )
        )
        rows.append((word, counts[word], presence, said))
    return Result(
        title,
        tuple(panel for row in zip(*columns, strict=True) for panel in row),
        (texts, Table("Words", ("word", "count", "presence", "segments"), tuple(rows))),
        columns=len(columns),
    )


def _painted(found: Segmentation, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with its segments, as large as a sheet shows it; `pixels`, faded, where there is none."""
    if not found.segments:
        return blend(pixels, np.ones(pixels.shape[:2], np.bool_), PAPER, FADED)
    return ground(Image(overlay(found, legend=False)))


def _opinion(
    models: Text2Seg, image: Image, settings: RunAllSettings, progress: Progress, number: int, total: int
) -> Opinion:
    """CLIP's words for the image of this number, with progress over all images."""

    def going(step: int, best: str) -> bool:
        progress.step(number * settings.steps + step, total * settings.steps, f"{named(image)}: {best}")
        return not progress.stopped

    return opine(models.clip, image, settings, going)


def _knows(models: Text2Seg, word: str) -> bool:
    try:
        models.check([Query(word, ((word,),))])
    except QueryError:
        return False
    return True


def _ready(folder: Path) -> OutputFolder:
    """The folder, made; one with files of others in it is refused before any work is done."""
    check_folder(folder)
    make_folder(folder)
    ours = {f"{WORDS_FILE}.json", RECORD}
    there = [each for each in entries(folder, OutputError) if not is_left_over(each)]
    if there and not any(each.name in ours for each in there):
        raise OutputError(f"{folder} has files in it that run-all did not write; choose a new or empty folder")
    return OutputFolder(folder)
