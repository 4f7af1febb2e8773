"""A dry run: what a job would do, and what is wrong with it, without a model and without writing anything."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from text2seg import weights
from text2seg.config import LabelSettings, ModelSettings
from text2seg.errors import CheckpointError, ImageError, OutputError
from text2seg.io.files import exists, is_file
from text2seg.io.images import PIXEL_LIMIT, check_file, open_image
from text2seg.io.storage import Place, Url, opened
from text2seg.labelling.job import scan_of, take_ids
from text2seg.labelling.journal import read_records
from text2seg.labelling.output import check_output, journal_path
from text2seg.labelling.record import stamp_in
from text2seg.loading import find
from text2seg.ontology import Ontology, queries_of
from text2seg.queries import Things
from text2seg.records import Failure
from text2seg.runtime import choose_device, choose_precision


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a job would do: label so many `images`, of which the journal has `done`; `failures` are files whose header
    already says that they cannot be read; `download` are weights that are not here yet."""

    ontology: Ontology
    images: int
    done: int
    pixels: int
    failures: tuple[Failure, ...]
    download: tuple[str, ...]


def dry_run(folder: Place, ontology: Ontology, model: ModelSettings, settings: LabelSettings) -> DryRun:
    """Check queries, files, models' names, device and output, as `label_folder` would before its first image, and
    open each file as far as its header. Raises what `label_folder` and `Text2Seg.load` raise."""
    clip, sam = weights.pair(model.model, clip=model.clip, sam=model.sam)
    found = [find(clip, "clip"), find(sam, "sam")]
    choose_precision(choose_device(model.device), model.precision)
    queries = queries_of(ontology)
    if clip == "demo":
        things = Things.of_demo()
        for query in queries:
            for wording in [*query.negatives, *(wording for part in query.parts for wording in part)]:
                things.check(wording)
    scan = scan_of(folder, settings)
    ontology, _ = take_ids(ontology, scan, settings.categories_from)
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.categories_from])
    journal, done = journal_path(settings.output), 0
    if is_file(journal, OutputError) and not settings.restart:
        stamps = {record["file"]: stamp_in(record) for _, record in read_records(journal) if "file" in record}
        done = sum(stamps.get(file) == scan.stamp(index) for index, file in enumerate(scan.files))
    failures, pixels = [], 0
    for index, file in enumerate(scan.files):
        try:
            pixels += _pixels(scan.path(index))
        except ImageError as error:
            failures.append(Failure(file, "read", f"{file}: {error}"))
    missing = tuple(each.name for each in found if not exists(weights.path_of(each), CheckpointError))
    return DryRun(ontology, len(scan), done, pixels, tuple(failures), missing)


def _pixels(path: Place) -> int:
    """The size that an image's header gives, once Pillow has found nothing wrong with the file."""
    if isinstance(path, Url):
        with opened(path) as file:
            return _pixels_in(file, path)
    check_file(path)
    return _pixels_in(path, path)


def _pixels_in(source: Path | BinaryIO, path: Place) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(source, "it") as image:
                width, height = image.size
                image.verify()
    except ImageError:
        raise
    except Exception as error:  # decoders let anything out
        raise ImageError(" ".join(f"cannot be read: {error}".replace(str(path), path.name).split())) from error
    if not 0 < width * height <= PIXEL_LIMIT:
        raise ImageError(f"{width} x {height} pixels; at least one and at most {PIXEL_LIMIT:,} can be read")
    return width * height
