"""Which images need not be looked at: those that, by a vector index of the folder, show none of the queries.

It is decided before any engine runs, and stands in the journal like any other result. So engines know nothing of it,
and a batch is made up of the images that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from text2seg.config import LabelSettings
from text2seg.errors import SettingsError
from text2seg.labelling.record import Json, Task, skip_record
from text2seg.labelling.state import JobState
from text2seg.queries import Query

if TYPE_CHECKING:
    from text2seg.labelling.engines.local import Delivery
    from text2seg.pipeline import Text2Seg

AT_ONCE = 256  # images that are asked about, and whose records are written, together


def check_prefilter(models: Text2Seg) -> None:
    """Raise `SettingsError` where images cannot be left out: the index sees an image as a whole, so it would lose
    what only tiles show; or FAISS is not installed, or the weights' hash is not known."""
    from text2seg.search.fill import index_key
    from text2seg.search.index import import_faiss

    import_faiss()
    index_key(models)
    if models.settings.tiles.tile:
        raise SettingsError(
            "--only-if-present looks at whole images and would leave out those that show something in a tile only; "
            "leave out one of --only-if-present and --tile"
        )


def skipped(
    models: Text2Seg,
    state: JobState,
    queries: Sequence[Query],
    settings: LabelSettings,
    stopping: Callable[[], bool],
    *,
    progress: bool,
) -> Iterator[Delivery]:
    """The records of images that nothing is known of yet and that are skipped, once all are in the index; nothing if
    it is stopped before that. Images that cannot be read are left to the engine, which says why.

    Raises as `filled_index` does.
    """
    from text2seg.search.fill import filled_index, indexed_images
    from text2seg.search.rank import presence_in

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
        # As with batches, what is computed together is a function of the scan, for rounding depends on it.
        for start in range(0, len(images), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(images)))
            if unknown.isdisjoint(numbers):
                continue
            there = [(n, images[n], entry.hw) for n in numbers if (entry := index.entry(images[n].file))]
            presence = presence_in(models, index, [image.file for _, image, _ in there], queries)
            records: list[tuple[int, Json]] = []
            for (number, image, hw), row in zip(there, presence, strict=True):
                if number in unknown and row.max() < settings.skip_below:
                    of_query = {query.name: float(score) for query, score in zip(queries, row, strict=True)}
                    records.append((number, skip_record(Task(number, image.file, image.stamp), hw, of_query)))
            yield records
