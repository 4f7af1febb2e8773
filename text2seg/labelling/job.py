"""A labelling job: a folder and an ontology in, one COCO file out. A job that was stopped resumes where it was.

`label_folder` runs a job, `dry_run.dry_run` only checks it. Both start with the same checks in `prepare`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from array import array
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from text2seg._version import __version__
from text2seg.coco.dataset import read_dataset
from text2seg.coco.provenance import calibration_in, encoding_entry, run_info
from text2seg.coco.reader import Dataset, check_references, kept_categories
from text2seg.coco.shards import shards_entry
from text2seg.config import LabelSettings, Settings
from text2seg.errors import ImageError, OutputError
from text2seg.io.files import is_dir, resolve_path
from text2seg.io.names import listed, pair_names
from text2seg.io.output_folder import OutputFolder
from text2seg.io.scan import Scan, list_images
from text2seg.io.storage import Place, Url, check_writable, place_of
from text2seg.io.writing import make_folder
from text2seg.labelling.engine import Delivery, Engine, LocalEngine, Work, model_identity
from text2seg.labelling.journal import (
    JobState,
    Journal,
    check_known,
    is_reviewed,
    lock_file,
)
from text2seg.labelling.output import check_output, image_folder, journal_path, saved_images, write_output
from text2seg.labelling.prefilter import check_prefilter, skipped
from text2seg.labelling.reviewed import Review, read_review
from text2seg.labelling.summary import CategorySummary
from text2seg.ontology import Ontology, queries_of, with_ids_from
from text2seg.records import Failure
from text2seg.segmenting import Stages

if TYPE_CHECKING:
    from text2seg.session import Pipeline


@dataclass(frozen=True, slots=True)
class LabelReport:
    """Result of a labelling job.

    `found` counts images with segments, `empty` those without, `rejected` those that a person rejected, with `--marks`,
    and `failed` the others. `skipped` images are those of the empty ones that `--only-if-present` skipped. `earlier` of
    the images were done by earlier runs of the job. An `interrupted` job has no dataset, `failures` and `categories`
    yet. `calibrated` says whether presence is.
    """

    dataset: Place
    images: int
    found: int
    empty: int
    failed: int
    skipped: int = 0
    rejected: int = 0
    earlier: int = 0
    failures: tuple[Failure, ...] = ()
    categories: tuple[CategorySummary, ...] = ()
    interrupted: bool = False
    calibrated: bool = True

    @property
    def done(self) -> int:
        """Number of images with a record."""
        return self.found + self.empty + self.rejected + self.failed


def label_folder(
    models: Pipeline,
    folder: Place | str,
    ontology: Ontology,
    settings: LabelSettings | None = None,
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
    engine: Engine | None = None,
    plan: Plan | None = None,
) -> LabelReport:
    """Label every image of a folder and write one COCO file.

    Finished images are in `<output>.journal` at once. A job that was stopped, in whatever way, resumes when it is
    called again, and writes the same bytes as a job that was never stopped.

    Args:
        models: with the settings of maps, points and presence for all images.
        folder: its path, or a URL such as `s3://bucket/photos`.
        progress: show a progress bar.
        stop: if set, the current batch is finished, and the report says `interrupted`.
        plan: what `prepare` returned for the same arguments, if it was called before the models were loaded.
        engine: runs the batches; `LocalEngine` on `models` by default.

    Raises:
        QueryError, OntologyError, SettingsError: the job cannot start; no image has been read.
        ImageError: the same, or every image failed; no COCO file is written then.
        OutputError: the output cannot be written.
    """
    settings, folder = settings or LabelSettings(), place_of(folder)
    queries = models.check(queries_of(ontology))
    prefilter_models = check_prefilter(models) if settings.only_if_present else None
    plan = plan or prepare(folder, ontology, settings)
    if isinstance(settings.output, Url):
        check_writable(settings.output)
    images = (
        OutputFolder(plan.image_folder, command="label", overwrite=settings.overwrite) if plan.image_folder else None
    )
    work = Work(
        folder,
        queries,
        categories={category.name: category.id for category in plan.ontology.categories},
        encoding=settings.segmentation,
        polygon_tolerance=settings.polygon_tolerance,
        keep_candidates=settings.keep_candidates,
        models=model_identity(models),
        save=settings.save,
        images=images if settings.save else None,
    )
    stopping = stop.is_set if stop else lambda: False
    job = fingerprint(models, folder, plan.ontology, settings) | source_entry(plan.source)
    with Journal.open(journal_path(settings.output), job, restart=settings.restart) as journal:
        if images and settings.restart and is_dir(images.folder, OutputError):
            images.discard_earlier()
        if work.images:
            make_folder(work.images.folder)
        state = JobState(plan.scan)
        state.resume(journal.path, retry_failures=settings.retry_failures)
        earlier = state.done

        def counts() -> str:
            return ", ".join(f"{name}={count}" for name, count in state.counts().items())

        with (
            tqdm(total=len(plan.scan), initial=state.done, unit="image", disable=not progress) as bar,
            closing(Stages(bar, counts)) as stages,
        ):
            stages.next()

            def deliver(delivery: Delivery) -> None:
                offsets = journal.append(record for _, record in delivery)
                for (index, record), offset in zip(delivery, offsets, strict=True):
                    state.add(index, offset, record)
                stages.next()
                bar.update(len(delivery))

            if prefilter_models:
                for delivery in skipped(prefilter_models, state, queries, settings, stopping, progress=progress):
                    deliver(delivery)
            engine = engine or LocalEngine(models, workers=settings.workers)
            if isinstance(engine, LocalEngine):
                engine.say_stage = stages.say
            engine.run(work, state.batches(settings.batch), deliver, stopping)
        if state.missing and not stopping():
            raise RuntimeError(f"the engine left {state.missing} of {len(plan.scan)} images undone")
        failures: tuple[Failure, ...] = ()
        categories: tuple[CategorySummary, ...] = ()
        numbers = state.counts()
        info = run_info(
            models.provenance(),
            folder=folder,
            dataset=settings.output,
            ontology=plan.ontology,
            **source_entry(plan.source),
            **shards_entry(settings.shard),
            **_prefilter_entry(settings),
            **encoding_entry(settings.segmentation, settings.polygon_tolerance),
        )
        if not state.missing:
            _check_any_done(state, journal, settings.output)
            failures, tally = write_output(
                settings.output,
                journal,
                state,
                plan.ontology,
                image_id=plan.image_id,
                info=info,
                overwrite=settings.overwrite,
                source=plan.source,
                review=plan.review,
            )
            categories = tally.summaries()
            rejected = numbers["found"] + numbers["empty"] - tally.images
            numbers |= {"found": tally.found, "empty": tally.images - tally.found, "rejected": rejected}
            if work.images:
                work.images.discard_earlier(keep=saved_images(journal, state))
        return LabelReport(
            settings.output,
            len(plan.scan),
            **numbers,
            earlier=earlier,
            failures=failures,
            categories=categories,
            interrupted=state.missing > 0,
            calibrated=calibration_in({"info": info}) is not False,
        )


def _check_any_done(state: JobState, journal: Journal, output: Place) -> None:
    """Raise `ImageError` if every image failed."""
    failed = list(state.failed())
    if len(failed) == len(state.scan):
        first = next(iter(journal.read_all(failed)))["failure"]["message"]
        images = "the image could not" if len(failed) == 1 else f"none of the {len(failed):,} images could"
        says = f"{images} be labelled, so "
        without_paths = f"{says}there is no result. The first: {first}"
        raise ImageError(
            f"{says}{output} was not written. The first: {first}. All reasons are in {journal.path}",
            on_page=without_paths,
            in_api=without_paths,
        )


# ---- before the first image


@dataclass(frozen=True, slots=True)
class Plan:
    """The files of a job, the ontology with its category ids, the id of each image by its index in the scan, and the
    folder that `--save` writes to; None if the output is a URL. `source` is the dataset that is refined, if one is, and
    `review` what a person decided on an earlier output, with `--marks`."""

    scan: Scan
    ontology: Ontology
    image_id: Callable[[int], int]
    image_folder: Path | None = None
    source: Dataset | None = None
    review: Review | None = None


def prepare(folder: Place, ontology: Ontology, settings: LabelSettings) -> Plan:
    """List the files, assign the ids, and check that the output may be written.

    Raises:
        ImageError: there is no such folder, or it has no images.
        OntologyError, DatasetError: the ids cannot be taken from the file `categories_from`.
        OutputError, SettingsError: the output may not be written.
        DatasetError, ImageError: the marks do not belong to the output, or to this job; see `read_review`.
    """
    scan = scan_folder(folder, settings)
    plan = assign_ids(ontology, scan, settings.categories_from)
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.categories_from, settings.marks])
    review = None
    if settings.marks or (not settings.overwrite and is_reviewed(journal_path(settings.output))):
        review = read_review(settings.marks, settings.output, plan.ontology, scan)
    return replace(plan, image_folder=image_folder(folder, settings), review=review)


def scan_folder(folder: Place, settings: LabelSettings) -> Scan:
    """List the files of a job. Raises as `list_images`."""
    journal = journal_path(settings.output)
    return list_images(
        folder,
        recursive=settings.recursive,
        globs=settings.glob,
        limit=settings.limit,
        shard=settings.shard,
        skip=(settings.output, journal, lock_file(journal)),
    )


def assign_ids(ontology: Ontology, scan: Scan, categories_from: Place | None) -> Plan:
    """Assign ids to categories and images, by default or from another COCO file.

    By default, the id of an image is its position in the whole folder, from 1. So shards share no id, and a failed
    image keeps its id.

    Raises:
        OntologyError: the COCO file lacks a category.
        ImageError: the COCO file lacks an image.
        DatasetError: a file matches several of its images, or several files match one.
    """
    if categories_from is None:
        return Plan(scan, ontology, lambda index: scan.place(index) + 1)
    truth = read_dataset(categories_from)
    check_references(truth)
    kept = set(kept_categories(truth).values())
    ontology = with_ids_from(ontology, [entry for entry in truth["categories"] if entry["id"] in kept])
    entries = truth["images"]
    pairs = pair_names(
        scan.files,
        [entry["file_name"] for entry in entries],
        ours=str(scan.folder),
        theirs=f"the images of {categories_from}",
    )
    if len(pairs) < len(scan):
        unknown = [file for index, file in enumerate(scan.files) if index not in pairs]
        raise ImageError(
            f"{categories_from} has no image {listed(unknown)}; exclude those files with --glob, or choose the folder "
            "that belongs to the file"
        )
    ids = array("q", (entries[pairs[index]]["id"] for index in range(len(scan))))
    return Plan(scan, ontology, lambda index: ids[index])


def check_same_job(
    folder: Place, ontology: Ontology, settings: LabelSettings, pipeline: Settings | None = None, **more: Any
) -> None:
    """Raise `OutputError` if the journal of the output belongs to another job, as far as that is known before the
    models are loaded. `pipeline` are their settings, if these are in the journal as they are."""
    if not settings.restart:
        known = _job_entries(folder, ontology, settings) | more | ({"settings": asdict(pipeline)} if pipeline else {})
        check_known(journal_path(settings.output), known)


def fingerprint(models: Pipeline, folder: Place, ontology: Ontology, settings: LabelSettings) -> dict[str, Any]:
    """Return everything that changes results. The list of files is not included: a folder or `--limit` may grow."""
    return {**_job_entries(folder, ontology, settings), **model_identity(models)}


def _job_entries(folder: Place, ontology: Ontology, settings: LabelSettings) -> dict[str, Any]:
    """Return the entries of the fingerprint that do not depend on the models."""
    return {
        "version": __version__,
        "folder": str(folder if isinstance(folder, Url) else resolve_path(folder)),
        "shard": settings.shard,
        "batch": settings.batch,
        "segmentation": settings.segmentation,
        **encoding_entry(settings.segmentation, settings.polygon_tolerance),
        "keep_candidates": settings.keep_candidates,
        "exif_orientation": "applied",
        "ontology": ontology.to_dict(),
        **({"save": settings.save} if settings.save else {}),
        **_prefilter_entry(settings),
    }


def _prefilter_entry(settings: LabelSettings) -> dict[str, Any]:
    """Return what journal and dataset record of the prefilter. Empty if it is off."""
    return {"only_if_present": {"skip_below": settings.skip_below}} if settings.only_if_present else {}


def source_entry(source: Dataset | None) -> dict[str, Any]:
    """Return what journal and dataset record of the dataset that is refined: its name, a hash and its info."""
    if source is None:
        return {}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()
    return {"refined": {"dataset": Path(source.name).name, "sha256": digest, "info": source["info"]}}
