"""Dry run of a labelling job: the checks of `job.prepare`, and the size of each image that is to be labelled."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from text2seg.config import LabelSettings, ModelSettings, Settings
from text2seg.errors import CheckpointError, ImageError, OutputError
from text2seg.io.files import exists, is_file
from text2seg.io.images import PIXEL_LIMIT, check_file, open_image
from text2seg.io.storage import Place, Url, opened
from text2seg.labelling.job import check_same_job, prepare
from text2seg.labelling.journal import JobState, check_unlocked
from text2seg.labelling.output import journal_path
from text2seg.ontology import Ontology, queries_of
from text2seg.records import Failure


@dataclass(frozen=True, slots=True)
class DryRun:
    """Result of a dry run.

    `done` of the `images` are in the journal already, and `failed` of these failed. The others together have `pixels`;
    `failures` are those whose header cannot be read. `download` names weights that would be downloaded first.
    """

    ontology: Ontology
    images: int
    done: int
    failed: int
    pixels: int
    failures: tuple[Failure, ...]
    download: tuple[str, ...]


def dry_run(
    folder: Place,
    ontology: Ontology,
    model: ModelSettings,
    settings: LabelSettings,
    pipeline: Settings | None = None,
    *,
    progress: bool = False,
) -> DryRun:
    """Check queries, files, model names, device and output, and read the header of each file that is to be labelled.

    With `pipeline`, the settings of the models, an earlier run of the job must have had the same ones. Loads no model
    and writes nothing. Raises what `label_folder` and `Text2Seg.load` raise before the first image.
    """
    from text2seg import weights
    from text2seg.loading import find, is_here
    from text2seg.model_card import card_of
    from text2seg.runtime import choose_device, choose_precision

    clip, sam = weights.pair(model.model, clip=model.clip, sam=model.sam)
    checkpoints = [find(clip, "clip"), find(sam, "sam")]
    for checkpoint in checkpoints:
        weights.check_intact(checkpoint)
    device = choose_device(model.device)
    choose_precision(device, model.precision)
    if vocabulary := card_of(clip, given=model.card).closed_vocabulary:
        _, unknown = vocabulary.split(queries_of(ontology))
        if unknown:
            raise vocabulary.error(unknown.values())
    journal = journal_path(settings.output)
    check_unlocked(journal)
    plan = prepare(folder, ontology, settings)
    described: dict[str, Any] = {"device": device.type, "runtime": model.runtime, "compiled": model.compile}
    for name, checkpoint in zip((clip, sam), checkpoints, strict=True):
        described[checkpoint.kind] = {"name": name}
        if exists(weights_file := weights.path_of(checkpoint), CheckpointError):
            described[checkpoint.kind]["sha256"] = weights.sha256_of(weights_file)
    check_same_job(folder, plan.ontology, settings, pipeline, **described)
    state = JobState(plan.scan)
    if not settings.restart and is_file(journal, OutputError):
        state.resume(journal, retry_failures=settings.retry_failures)
    failures, pixels = [], 0
    bar = tqdm(state.open(), "reading headers", unit="image", delay=1, disable=not progress)
    for index in bar:
        try:
            pixels += _pixels(plan.scan.path(index))
        except ImageError as error:
            file = plan.scan.files[index]
            failures.append(Failure(file, "read", f"{file}: {error}"))
    missing = tuple(each.name for each in checkpoints if not is_here(each.name, each.kind))
    failed = state.counts()["failed"]
    return DryRun(plan.ontology, len(plan.scan), state.done, failed, pixels, tuple(failures), missing)


def _pixels(path: Place) -> int:
    """Return the number of pixels that an image's header says. Nothing else of the file is read."""
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
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything
        raise ImageError(" ".join(f"cannot be read: {error}".replace(str(path), path.name).split())) from error
    if not 0 < width * height <= PIXEL_LIMIT:
        raise ImageError(f"{width} x {height} pixels; at least one and at most {PIXEL_LIMIT:,} can be read")
    return width * height
