"""Which pictures need not be looked at: those that, by a vector index of the folder, show none of the queries.

It is decided before any engine runs, and stands in the journal like any other result. So engines know nothing of it,
and a batch is made up of the pictures that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from text2seg.errors import SettingsError
from text2seg.label_config import LabelSettings
from text2seg.labelling.ledger import Ledger
from text2seg.labelling.record import Json, Task, skip_record
from text2seg.vocabulary import Query

if TYPE_CHECKING:
    from text2seg.labelling.engine import Delivery
    from text2seg.pipeline import Text2Seg

AT_ONCE = 256  # pictures that are asked about, and whose records are written, together


def check_sifting(models: Text2Seg) -> None:
    """Raise `SettingsError` where pictures cannot be left out: the index sees a picture as a whole, so it would lose
    what only tiles show; or FAISS is not installed, or the weights' hash is not known."""
    from text2seg.search.fill import index_key
    from text2seg.search.index import import_faiss

    import_faiss()
    index_key(models)
    if models.settings.tiles.tile:
        raise SettingsError(
            "--only-if-present looks at whole pictures and would leave out those that show something in a tile only; "
            "leave out one of --only-if-present and --tile"
        )


def skipped(
    models: Text2Seg,
    ledger: Ledger,
    queries: Sequence[Query],
    settings: LabelSettings,
    stopping: Callable[[], bool],
    *,
    progress: bool,
) -> Iterator[Delivery]:
    """The records of pictures that nothing is known of yet and that are skipped, once all are in the index; nothing if
    it is stopped before that. Pictures that cannot be read are left to the engine, which says why.

    Raises as `filled_index` does.
    """
    from text2seg.search.fill import filled_index, pictures_of
    from text2seg.search.rank import presence_in

    listing, unknown = ledger.listing, set(ledger.open())
    if not unknown:
        return
    pictures = pictures_of(listing.files, listing.stamp)
    with filled_index(
        models,
        listing.folder,
        pictures,
        where=settings.index,
        workers=settings.workers,
        stopping=stopping,
        progress=progress,
    ) as (index, filled):
        if filled.stopped:
            return
        # As with batches, what is computed together is a function of the listing, for rounding depends on it.
        for start in range(0, len(pictures), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(pictures)))
            if unknown.isdisjoint(numbers):
                continue
            there = [(n, pictures[n], entry.hw) for n in numbers if (entry := index.entry(pictures[n].file))]
            presence = presence_in(models, index, [picture.file for _, picture, _ in there], queries)
            records: list[tuple[int, Json]] = []
            for (number, picture, hw), row in zip(there, presence, strict=True):
                if number in unknown and row.max() < settings.skip_below:
                    of_query = {query.name: float(score) for query, score in zip(queries, row, strict=True)}
                    records.append((number, skip_record(Task(number, picture.file, picture.stamp), hw, of_query)))
            yield records
