"""Everything for a folder of images: CLIP's own words, what makes CLIP say them, and segments of what they name."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from text2seg._version import __version__
from text2seg.errors import OutputError, Text2SegError
from text2seg.explain.estimate import GRADIENT, Work
from text2seg.explain.mosaic import MosaicSettings, drawn, make_mosaic, untitled, word_images
from text2seg.explain.opinion import (
    Opinion,
    frame_of,
    opine,
    work_of_opinion,
)
from text2seg.explain.saliency.methods import method_or_default
from text2seg.explain.tool import (
    COMMAND_LINE_ONLY,
    EMPTY,
    Panel,
    Pixels,
    Progress,
    Result,
    Table,
    Tool,
    cell_text,
    failure_note,
    image_name,
    result_json,
    save_result,
    unprocessed_note,
)
from text2seg.io.files import exists, list_folder, read_file, sha256_of
from text2seg.io.images import load_image
from text2seg.io.names import fit_file_name
from text2seg.io.output_folder import RECORD, OutputFolder
from text2seg.io.writing import check_folder, is_leftover
from text2seg.records import Image

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunAllSettings(MosaicSettings):
    """Settings of the mosaics, and of the files written for each image."""

    accumulate: bool = False
    """Compare each image also with the words found in the images before it, in the order of their paths. Besides the
    image's own words, as many of these words get maps and segments: those that fit the image best."""
    save_words: bool = field(default=False, metadata=COMMAND_LINE_ONLY)
    """Write an image for each word too, into a subfolder for each image."""
    folder: Path | None = None
    """Folder for the mosaics, an HTML page with all of them, and a table of the words so far, written as soon as each
    image is done. It must be new, empty or from an earlier run; images that are done there with the same settings and
    models are not computed again. Default: on the command line a folder in the output folder; elsewhere nothing is
    written before the end."""


WORDS_FILE = "run-all_words"
"""Name of the file with the table of words, without its suffix."""
PAGE_FILE = "run-all.html"
"""Name of the page with all mosaics and the table of words."""
MOST_SHOWN = 12
"""Largest number of mosaics in the result if a folder has all of them."""
LONGEST_WORDS = 20
"""Number of rows in the table of the longest words."""
LONGEST_NAME = 100
"""Largest number of characters of an image's name in the names of its files."""


@dataclass(frozen=True, slots=True, eq=False)
class _Done:
    """An image that is done: the start of its file names, its mosaic, and all of CLIP's own words with their counts."""

    stem: str
    title: str
    tables: tuple[Table, ...]
    words: tuple[tuple[str, int], ...]
    mosaic: Pixels
    """Without the title; empty if the result does not show it."""


@dataclass(slots=True)
class _Tally:
    """Images done so far, their words, and failures."""

    counts: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    done: list[_Done] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, image: _Done) -> None:
        self.counts.update(dict(image.words))
        self.images.update(word for word, _ in image.words)
        self.done.append(image)

    def result(self, total: int) -> Result:
        count = len(self.done)
        often = sorted(self.counts, key=lambda word: (-self.counts[word], word))
        longest = sorted(self.counts, key=lambda word: (-len(word), word))[:LONGEST_WORDS]
        missing = total - count - len(self.failures)
        return Result(
            f"CLIP's own words for {count} image{'' if count == 1 else 's'}",
            tables=()
            if not self.counts
            else (
                Table(
                    "Words",
                    ("word", "count", "images"),
                    tuple((word, self.counts[word], self.images[word]) for word in often),
                ),
                Table("Longest words", ("word", "letters"), tuple((word, len(word)) for word in longest)),
            ),
            notes=(*unprocessed_note(missing, total), *self.failures),
            left_out=len(self.failures),
        )


def run_all(models: Text2Seg, images: Sequence[Image], settings: RunAllSettings, progress: Progress) -> Result:
    """Make a mosaic for each image and a table of the words of all images.

    With `settings.folder`, write `<number>_<name>.png` and `.json` there as soon as an image is done, and update the
    table of words and the page. Files of other names do not change. An image that fails becomes a line in the notes. A
    stop drops the image in progress; the next run with the same settings, models and images goes on from there, and its
    files are those of a run without a stop.

    Raises:
        QueryError: the prompt is too long.
        SettingsError: there are more free tokens than CLIP reads, or this CLIP does not support the saliency method.
        OutputError: the folder is not writable, or has files that no earlier run wrote.
    """
    frame_of(models.clip, settings.prompt, settings.tokens)  # for its checks, before any image
    method_or_default(models.clip, settings.method)
    total, tally = len(images), _Tally()
    files = _Files(_open_folder(settings.folder), models, settings) if settings.folder is not None else None
    for number in range(total):
        if progress.stopped:
            break
        earlier = sorted(tally.counts) if settings.accumulate else []
        is_shown = files is None or len(tally.done) < MOST_SHOWN
        try:
            image = images[number]
            stem = _stem(number, image)
            done = files.read(stem, image, earlier, with_mosaic=is_shown) if files is not None else None
            if done is None:
                opinion = _opinion(models, image, settings, progress, number, total)
                if progress.stopped:
                    break
                made = make_mosaic(models, image, opinion, settings, earlier, progress)
                if progress.stopped:
                    break
        except OutputError:
            raise
        except (
            Text2SegError,
            MemoryError,
            RuntimeError,
        ) as error:  # torch raises RuntimeError when it is out of memory
            log.info("image %d", number + 1, exc_info=error)
            tally.failures.append(failure_note(images, number, error))
            continue
        if done is None:
            mosaic = drawn(made)
            if files is not None:
                files.write(stem, image, earlier, made, mosaic, opinion.words)
            done = _Done(stem, made.title, made.tables, opinion.words, untitled(mosaic) if is_shown else EMPTY)
        else:
            progress.step((number + 1) * settings.steps, total * settings.steps, f"{image.file_name}: done before")
        tally.add(done)
        if files is not None:
            save_result(tally.result(total), files.folder, WORDS_FILE)
            if len(tally.done) % max(1, len(tally.done) // 10) == 0:  # seldom if it is long: the time stays linear
                files.write_page(tally, total)
    if not progress.stopped:
        progress.step(total * settings.steps, total * settings.steps)
    found, where = tally.result(total), ""
    if files is not None and tally.done:
        save_result(found, files.folder, WORDS_FILE)
        page = files.write_page(tally, total)
        rest = " Run the same command again for the other images." if progress.stopped else ""
        where = f"All mosaics are on the page {page}.{rest}"
    panels = tuple(Panel(done.title, done.mosaic) for done in tally.done if done.mosaic.size)
    notes = (*found.notes, *((where,) if where else ()))
    return replace(found, panels=panels, notes=notes, columns=1, full_size=True)


def _work(models: Text2Seg, images: int, settings: RunAllSettings) -> Work:
    words = settings.words * (2 if settings.accumulate else 1)
    found = work_of_opinion(models, images, settings)
    return replace(found, clip_images=found.clip_images + images * (3 + words * GRADIENT), sam_images=images)


RUN_ALL = Tool(
    "run-all",
    "Full analysis",
    "For every image: CLIP's own words, what makes CLIP say them, and segments of what they name.",
    RunAllSettings,
    run_all,
    "many",
    _work,
)


def _opinion(
    models: Text2Seg, image: Image, settings: RunAllSettings, progress: Progress, number: int, total: int
) -> Opinion:
    """Find CLIP's words for image `number`; report progress over all images."""

    def keep_going(step: int, best: str) -> bool:
        progress.step(number * settings.steps + step, total * settings.steps, f"{image_name(image)}: {best}")
        return not progress.stopped

    return opine(models.clip, image, settings, keep_going, stopped=lambda: progress.stopped)


# ---- files


def _open_folder(folder: Path) -> OutputFolder:
    """Check the folder, which is made with the first file. Raises `OutputError` if it has files that run-all did not
    write."""
    check_folder(folder)
    written = {f"{WORDS_FILE}.json", RECORD}
    there = list_folder(folder, OutputError) if exists(folder, OutputError) else []
    content = [each for each in there if not is_leftover(each)]
    if content and not any(each.name in written for each in content):
        raise OutputError(f"{folder} has files in it that run-all did not write; choose a new or empty folder")
    return OutputFolder(folder)


def _stem(number: int, image: Image) -> str:
    """Return the start of the file names of image `number`, counted from 0."""
    stem = f"{number + 1:04d}_{Path(image.file_name).stem[:LONGEST_NAME]}".rstrip("_")
    return fit_file_name(stem, ".json").removesuffix(".json")


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of each image, and the page.

    The JSON file of an image has what a later run needs: the hash of all that decides the result (`made_from`), and the
    hashes of the image files.
    """

    folder: OutputFolder
    models: Text2Seg
    settings: RunAllSettings

    def write(
        self,
        stem: str,
        image: Image,
        earlier: Sequence[str],
        made: Result,
        mosaic: Pixels,
        words: Sequence[tuple[str, int]],
    ) -> None:
        """Write the files of an image; of the JSON file last, so that the others are complete if it exists."""
        from text2seg.render.saving import png

        images = {f"{stem}.png": png(mosaic)}
        if self.settings.save_words:
            images |= {f"{stem}/{name}.png": png(pixels) for name, pixels in word_images(image, made)}
        more = {
            "words": words,
            "made_from": self._hash(image, earlier),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in images.items()},
        }
        self.folder.write([(name, [content]) for name, content in images.items()])
        self.folder.write([(f"{stem}.json", [result_json(made, more)])])

    def read(self, stem: str, image: Image, earlier: Sequence[str], *, with_mosaic: bool) -> _Done | None:
        """Return the image if an earlier run with the same settings and models did it and its files are unchanged."""
        path = self.folder.folder / f"{stem}.json"
        if not exists(path, OutputError):
            return None
        self.folder.check(path.name)
        known = json.loads(read_file(path, OutputError))
        made_from = self._hash(image, earlier)
        if not made_from or known.get("made_from") != made_from or not self._are_unchanged(known["files"]):
            return None
        tables = tuple(
            Table(each["title"], tuple(each["columns"]), tuple(map(tuple, each["rows"]))) for each in known["tables"]
        )
        words = tuple((word, count) for word, count in known["words"])
        mosaic = untitled(load_image(path.with_suffix(".png")).pixels) if with_mosaic else EMPTY
        return _Done(stem, known["title"], tables, words, mosaic)

    def write_page(self, tally: _Tally, total: int) -> Path:
        """Write the page with all mosaics and the table of words, and return its path."""
        from text2seg.render.saving import render_template

        found = tally.result(total)
        html = render_template(
            "text2seg.explain",
            {"cell": cell_text},
            title=found.title,
            version=__version__,
            tables=found.tables,
            notes=found.notes,
            images=tally.done,
        )
        return self.folder.write([(PAGE_FILE, [html.encode("utf-8", "backslashreplace")])])[0]

    def _hash(self, image: Image, earlier: Sequence[str]) -> str:
        """Return the SHA-256 of all that decides the result for an image; empty if the models have no hashes."""
        models, settings = self.models.provenance(), asdict(self.settings)
        if not models.get("clip"):
            return ""
        settings.pop("folder")
        pixels = hashlib.sha256(image.pixels.tobytes()).hexdigest()
        made_from = [models, str(self.models.clip.device), settings, image.file_name, image.hw, pixels, list(earlier)]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()

    def _are_unchanged(self, files: Mapping[str, str]) -> bool:
        paths = {self.folder.folder / name: digest for name, digest in files.items()}
        return all(exists(path, OutputError) and sha256_of(path, OutputError) == paths[path] for path in paths)
