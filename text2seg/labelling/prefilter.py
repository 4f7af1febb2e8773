"""The prefilter of a labelling job: skip images that show none of the queries, by a vector index of the folder.

It decides before any engine runs, and its decisions are records in the journal. So engines do not know of it, and
batches consist of the images that are left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from text2seg.config import LabelSettings
from text2seg.errors import SettingsError
from text2seg.labelling.engine import Delivery, Task, skip_record
from text2seg.labelling.journal import JobState
from text2seg.model_card import CALIBRATE
from text2seg.queries import Query

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.session import Pipeline

_log = logging.getLogger(__name__)

AT_ONCE = 256  # images that are compared with the queries, and whose records are written, together


def check_prefilter(models: Pipeline) -> Text2Seg:
    """Return the models if they can skip images.

    Raises:
        SettingsError: FAISS is not installed, the pipeline has no CLIP, the hash of its weights is unknown, or tiles
            are on: the index sees whole images and would miss what only a tile shows.
    """
    from text2seg.pipeline import Text2Seg
    from text2seg.search.fill import index_key
    from text2seg.search.index import import_faiss

    import_faiss()
    if not isinstance(models, Text2Seg):
        raise SettingsError("--only-if-present needs CLIP; leave it out")
    index_key(models)
    if models.settings.tiles.tile:
        raise SettingsError(
            "--only-if-present compares whole images and would skip those that show something in a tile only; leave "
            "out --only-if-present or --tile"
        )
    if models.default_presence(models.settings) is None:
        _log.warning(
            "--only-if-present skips images by presence, which is not calibrated for these weights and settings, so it "
            "may skip images that show a category; %s coco calibrates it",
            CALIBRATE,
        )
    return models


def skipped(
    models: Text2Seg,
    state: JobState,
    queries: Sequence[Query],
    settings: LabelSettings,
    stopping: Callable[[], bool],
    *,
    progress: bool,
) -> Iterator[Delivery]:
    """Yield the records of skipped images, once all images are in the index.

    Only images without a record are considered. Images that cannot be read are left to the engine, which reports them.
    Yields nothing if the job is stopped while the index is filled. Raises as `filled_index`.
    """
    from text2seg.search.fill import filled_index, indexed_images
    from text2seg.search.index import presence_in

    scan, unknown = state.scan, set(state.open())
    if not unknown:
        return
    images = indexed_images(scan.files, scan.stamp)
    with filled_index(
        models,
        scan.folder,
        images,
        where=settings.index,
        workers=settings.workers,
        stopping=stopping,
        progress=progress,
    ) as (index, filled):
        if filled.stopped:
            return
        # The groups depend only on the scan, as batches do, because rounding depends on what is computed together.
        for start in range(0, len(images), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(images)))
            if unknown.isdisjoint(numbers):
                continue
            known = [(n, images[n], entry.hw) for n in numbers if (entry := index.entry(images[n].file))]
            presence = presence_in(models, index, [image.file for _, image, _ in known], queries)
            records: Delivery = []
            for (number, image, hw), row in zip(known, presence, strict=True):
                if number in unknown and row.max() < settings.skip_below:
                    by_query = {query.name: float(score) for query, score in zip(queries, row, strict=True)}
                    records.append((number, skip_record(Task(number, image.file, image.stamp), hw, by_query)))
            yield records
