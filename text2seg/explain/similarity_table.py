"""The similarities of many images with many targets, as one table and as a CSV file."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from text2seg.errors import Text2SegError
from text2seg.explain.saliency_maps import ComparisonSettings, targets_of, templates_note
from text2seg.explain.tool import Cell, Progress, Result, Table, Tool, failure_note, unprocessed_note
from text2seg.io.images import decode_ahead
from text2seg.io.output_folder import OutputFolder
from text2seg.io.scan import names_of
from text2seg.records import Image

if TYPE_CHECKING:
    from text2seg.explain.saliency.targets import Target
    from text2seg.pipeline import Text2Seg

log = logging.getLogger(__name__)

CSV_FILE = "similarity.csv"
BATCH = 8
"""Images that CLIP encodes together. The pixels of two batches are in memory at the same time, at their full size."""
THREADS = 2
"""Threads that decode the next batch."""


@dataclass(frozen=True, slots=True)
class SimilarityTableSettings(ComparisonSettings):
    """The targets that the images are compared with, and where the table is written."""

    folder: Path | None = None
    """Folder for the table, similarity.csv. Default: on the command line a folder in the output folder; elsewhere no
    CSV file is written."""


@dataclass(slots=True)
class _Rows:
    """Rows of the table, made batch by batch: the numbers are kept, the pixels are not."""

    models: Text2Seg
    images: Sequence[Image]
    targets: tuple[Target, ...]
    progress: Progress
    done: list[tuple[Cell, ...]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("file", *(column for target in self.targets for column in _columns(target)))

    def each(self) -> Iterator[tuple[Cell, ...]]:
        """Yield the row of each image that can be read, until stopped."""
        names, total = names_of(self.images), len(self.images)
        batches = (range(first, min(first + BATCH, total)) for first in range(0, total, BATCH))
        decoded = decode_ahead(
            batches, self.images.__getitem__, threads=THREADS, ahead=2, stopping=lambda: self.progress.stopped
        )
        self.progress.step(0, total)
        for numbers, futures in decoded:
            read = self._read(numbers, names, futures)
            rows = self._of_batch(read)
            self.done += rows
            self.progress.step(numbers[-1] + 1, total, names[numbers[-1]])
            yield from rows

    def _read(
        self, numbers: Sequence[int], names: Sequence[str], futures: list[Future[Image]]
    ) -> list[tuple[str, Image]]:
        """Return the images of a batch with their names; note those that cannot be read."""
        read = []
        for number, future in zip(numbers, futures, strict=True):
            try:
                read.append((names[number], future.result()))
            except (Text2SegError, MemoryError) as error:
                log.info("%s", names[number], exc_info=error)
                self.failures.append(failure_note(self.images, number, error))
        return read

    def _of_batch(self, read: Sequence[tuple[str, Image]]) -> list[tuple[Cell, ...]]:
        """Return the rows of a batch: the name, then the columns of each target."""
        import torch

        if not read:
            return []
        tokens = self.models.clip.encode_images([image for _, image in read], architecture="raw")
        features, values = torch.stack([each.features[0] for each in tokens]), list[list[float]]()
        for target in self.targets:
            scores = target.score(features)
            values.append(scores.tolist())
            if _has_logit(target):
                values.append((scores * self.models.clip.logit_scale).tolist())
        return [(name, *row) for (name, _), row in zip(read, zip(*values, strict=True), strict=True)]


def similarity_table(
    models: Text2Seg, images: Sequence[Image], settings: SimilarityTableSettings, progress: Progress
) -> Result:
    """Compare every image with every target.

    The table has a row for each image, named by its path relative to the folder that was given. A target has two
    columns: the cosine, from -1 to 1, and the logit, which is the cosine times CLIP's scale. Weighted words have one
    column, their score: minus the Kullback-Leibler divergence in nats (`WordsTarget`). With `settings.folder` the table
    is also written there as CSV (RFC 4180, UTF-8, with a header). An image that cannot be read becomes a line in the
    notes. A stop keeps the rows so far, also in the CSV file. The pixels of two batches are in memory at a time.

    Raises:
        QueryError: there is no target, or one cannot be used.
        OutputError: the folder is not writable, or somebody changed the CSV file since it was written.
    """
    results = OutputFolder(settings.folder, flag="--folder") if settings.folder is not None else None
    if results is not None:
        results.check(CSV_FILE)
    rows = _Rows(models, images, targets_of(models, settings), progress)
    where: tuple[str, ...] = ()
    each = rows.each()
    first = next(each, None)  # before the file is begun: without a row, nothing is written
    if results is None:
        for _ in each:
            pass
    elif first is not None:
        (path,) = results.write([(CSV_FILE, _csv(rows.columns, chain([first], each)))])
        where = (f"The table is in {path}.",)
    missing = len(images) - len(rows.done) - len(rows.failures)
    count = len(rows.done)
    return Result(
        f"Similarity of {count} image{'' if count == 1 else 's'} with {len(rows.targets)} "
        f"target{'' if len(rows.targets) == 1 else 's'}",
        tables=(Table("Similarity", rows.columns, tuple(rows.done)),) if rows.done else (),
        notes=(*unprocessed_note(missing, len(images)), *rows.failures, templates_note(settings), *where),
        left_out=len(rows.failures),
    )


SIMILARITY_TABLE = Tool(
    "similarity-table",
    "Table of similarities",
    "Many images compared with many targets: cosines and logits as one table and as a CSV file.",
    SimilarityTableSettings,
    similarity_table,
    "many",
)


def _csv(columns: Sequence[Cell], rows: Iterable[Sequence[Cell]]) -> Iterator[bytes]:
    """Yield the table line by line while it is made."""
    yield _line(columns)
    for row in rows:
        yield _line(row)


def _line(cells: Sequence[Cell]) -> bytes:
    text = io.StringIO(newline="")
    # the shortest digits that give the same float32
    csv.writer(text).writerow([np.float32(cell) if isinstance(cell, float) else cell for cell in cells])
    return text.getvalue().encode("utf-8", "backslashreplace")  # file names need not be Unicode


def _columns(target: Target) -> tuple[str, ...]:
    return (f"{target.name} cosine", f"{target.name} logit") if _has_logit(target) else (f"{target.name} score",)


def _has_logit(target: Target) -> bool:
    from text2seg.explain.saliency.targets import WordsTarget

    return not isinstance(target, WordsTarget)
