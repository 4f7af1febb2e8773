"""The labelling job: a folder and an ontology in, one COCO file out, however often it is stopped in between."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from text2seg._version import __version__
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import relative_folder
from text2seg.coco.reader import check_references, kept_categories
from text2seg.config import LabelSettings
from text2seg.errors import ImageError
from text2seg.io.files import resolved
from text2seg.io.names import listed, pair_names
from text2seg.io.scan import Scan, list_images
from text2seg.io.storage import Place, Url, check_writable, place_of
from text2seg.labelling.engines.local import Delivery, Engine, LocalEngine, Work, described
from text2seg.labelling.journal import Journal, lock_file
from text2seg.labelling.output import CategorySummary, check_output, journal_path, write_output
from text2seg.labelling.prefilter import check_prefilter, skipped
from text2seg.labelling.state import JobState
from text2seg.ontology import Ontology, queries_of, with_ids_from
from text2seg.records import Failure

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg


@dataclass(frozen=True, slots=True)
class LabelReport:
    """What a job came to. `found` counts images with a segment, `empty` those without, of which so many were `skipped`
    with `--only-if-present`, `failures` the others; while a job is `interrupted` there is no dataset yet, `failed`
    counts only, and `categories` is empty."""

    dataset: Place
    images: int
    found: int
    empty: int
    failed: int
    skipped: int = 0
    failures: tuple[Failure, ...] = ()
    categories: tuple[CategorySummary, ...] = ()
    interrupted: bool = False

    @classmethod
    def of(cls, dataset: Place, state: JobState) -> LabelReport:
        """How far a job has come."""
        found, empty, failed, *skipped = state.counts().values()
        return cls(dataset, len(state.scan), found, empty, failed, sum(skipped), interrupted=state.missing > 0)

    @property
    def done(self) -> int:
        return self.found + self.empty + self.failed


def label_folder(
    models: Text2Seg,
    folder: Place | str,
    ontology: Ontology,
    settings: LabelSettings | None = None,
    *,
    progress: bool = False,
    stop: threading.Event | None = None,
    engine: Engine | None = None,
) -> LabelReport:
    """Label every image of a folder and write one COCO file.

    What is done stands in `<output>.journal` at once. A job that was stopped, in whatever way, goes on there when it
    is called again, and ends with the same bytes as one that never was.

    Args:
        models: with the settings of maps, points and presence that hold for all images.
        folder: its path, or a URL such as `s3://bucket/photos`.
        stop: once it is set, the batch at work is finished and the report says `interrupted`.
        engine: what runs the batches, by default `LocalEngine` on `models`.

    Raises:
        QueryError, OntologyError, SettingsError, ImageError, OutputError: the job cannot be begun; no image has been
            read by then. `OutputError` also where the disk fails or is full later on.
    """
    settings, folder = settings or LabelSettings(), place_of(folder)
    queries = models.check(queries_of(ontology))
    if settings.only_if_present:
        check_prefilter(models)
    scan = scan_of(folder, settings)
    ontology, image_id = take_ids(ontology, scan, settings.categories_from)
    numbers = {category.name: category.id for category in ontology.categories}
    work = Work(folder, queries, numbers, settings.segmentation, settings.keep_candidates, described(models))
    check_output(settings.output, overwrite=settings.overwrite, inputs=[settings.categories_from])
    if isinstance(settings.output, Url):
        check_writable(settings.output)
    job = fingerprint(models, folder, ontology, settings)
    with Journal.open(journal_path(settings.output), job, restart=settings.restart) as journal:
        state = JobState(scan)
        state.take_up(journal, retry_failures=settings.retry_failures)
        run = engine or LocalEngine(models, workers=settings.workers)
        stopping = stop.is_set if stop else lambda: False
        with tqdm(total=len(scan), initial=state.done, unit="image", disable=not progress) as bar:
            deliver = _delivery(journal, state, bar)
            if settings.only_if_present:
                for records in skipped(models, state, queries, settings, stopping, progress=progress):
                    deliver(records)
            run.run(work, state.batches(settings.batch), deliver, stopping)
        if state.missing:
            if not stopping():
                raise RuntimeError(f"the engine left {state.missing} of {len(scan)} images undone")
            return LabelReport.of(settings.output, state)
        info = {
            "version": __version__,
            "folder": relative_folder(folder, settings.output),
            "provenance": models.provenance(),
            "ontology": ontology.to_dict(),
            **_prefilter(settings),
        }
        failures, summaries = write_output(
            settings.output,
            journal,
            state,
            ontology,
            image_id=image_id,
            info=info,
            overwrite=settings.overwrite,
        )
        return replace(LabelReport.of(settings.output, state), failures=failures, categories=summaries)


def scan_of(folder: Place, settings: LabelSettings) -> Scan:
    """The files that a job is about; raises as `list_images` does."""
    journal = journal_path(settings.output)
    return list_images(
        folder,
        recursive=settings.recursive,
        globs=settings.glob,
        limit=settings.limit,
        shard=settings.shard,
        skip=(settings.output, journal, lock_file(journal)),
    )


def take_ids(ontology: Ontology, scan: Scan, categories_from: Place | None) -> tuple[Ontology, Callable[[int], int]]:
    """The ontology with the ids it is to have, and the id of each image by its index in the scan.

    By default an image's id is its place in the whole folder, from 1, so that shards share no id and an image that
    failed takes its id with it.

    Raises:
        OntologyError: the COCO file lacks a category.
        ImageError: it lacks an image.
        DatasetError: a file could be several of its images, or several files one of them.
    """
    if categories_from is None:
        return ontology, lambda index: scan.place(index) + 1
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
            f"{categories_from} has no image {listed(unknown)}; leave out with --glob what it does not have, or choose "
            "the folder to fit"
        )
    ids = array("q", (entries[pairs[index]]["id"] for index in range(len(scan))))
    return ontology, lambda index: ids[index]


def fingerprint(models: Text2Seg, folder: Place, ontology: Ontology, settings: LabelSettings) -> dict[str, Any]:
    """All that changes results. Which files there are does not belong to it, so that a folder or `--limit` may grow."""
    return {
        "version": __version__,
        "folder": str(folder if isinstance(folder, Url) else resolved(folder)),
        "shard": settings.shard,
        "batch": settings.batch,
        "segmentation": settings.segmentation,
        "keep_candidates": settings.keep_candidates,
        "exif_orientation": "applied",
        "ontology": ontology.to_dict(),
        **_prefilter(settings),
        **described(models),
    }


def _prefilter(settings: LabelSettings) -> dict[str, Any]:
    """What is said of leaving images out, where that is done."""
    return {"only_if_present": {"skip_below": settings.skip_below}} if settings.only_if_present else {}


def _delivery(journal: Journal, state: JobState, bar: Any) -> Callable[[Delivery], None]:
    """What an engine delivers to: the journal first, then the job state, then the progress bar."""

    def deliver(results: Delivery) -> None:
        offsets = journal.append(record for _, record in results)
        for (index, record), offset in zip(results, offsets, strict=True):
            state.note(index, offset, record)
        bar.set_postfix(state.counts(), refresh=False)
        bar.update(len(results))

    bar.set_postfix(state.counts(), refresh=False)
    return deliver
