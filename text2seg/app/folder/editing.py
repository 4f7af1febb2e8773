"""A labelled image in the editor of the Segment tab, and what was edited there as annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from text2seg.app.checks import read_image
from text2seg.app.folder.review import ContactSheet
from text2seg.app.model_pool import ModelPool
from text2seg.app.segment.document import NO_POINTS, SAME, Document, History, Piece, outline_of, show_the_same
from text2seg.app.segment.session import EditSession, Refused, Search, open_image
from text2seg.coco.dataset import annotations_of
from text2seg.coco.provenance import points_of
from text2seg.coco.reader import attributes_of
from text2seg.coco.rle import mask_of
from text2seg.errors import Text2SegError
from text2seg.grids import iou
from text2seg.ontology import queries_of
from text2seg.queries import Query
from text2seg.records import Candidates, Image, Segment, Segmentation
from text2seg.review.contents import Item, number_in

if TYPE_CHECKING:
    from text2seg.app.folder.jobs import Job

MOST_NAMED = 8
"""Categories that a message lists."""


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What differs in the editor from the annotations of an image: `edited` segments by the ids of their annotations,
    `added` ones, and the ids of `removed` annotations."""

    edited: Mapping[int, Piece]
    added: tuple[Piece, ...]
    removed: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Editing:
    """An image of a job, and of its `owner`, while it is edited. `numbers` are the annotations' ids by the numbers of
    their segments in the editor, `segments` these segments before. `version` is that of the image in the review,
    `before` what the editor held before. `queries` are those of the job's categories, by name."""

    job: str = ""
    owner: str = ""
    job_name: str = ""
    place: int = 0
    image: Image | None = None
    numbers: Mapping[int, int] = field(default_factory=dict)
    segments: Mapping[int, Segment] = field(default_factory=dict)
    version: int = 0
    before: EditSession = field(default_factory=EditSession)
    queries: Mapping[str, Query] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name of the image."""
        return self.image.file_name if self.image else ""

    def changes(self, session: EditSession) -> Changes:
        """Return what was changed.

        A segment that a search lost with its word is still an annotation of the job, as it was. If another search found
        it again, it is this annotation.
        """
        pieces = session.document.pieces
        there = {piece.number for piece in pieces}
        lost = {number: segment for number, segment in self.segments.items() if number not in there}
        edited: dict[int, Piece] = {}
        added: list[Piece] = []
        for piece in pieces:
            number = piece.number
            if number not in self.segments and not piece.by_hand:
                number = next((each for each, segment in lost.items() if show_the_same(segment, piece.segment)), number)
                lost.pop(number, None)
            before, now = self.segments.get(number), piece.segment
            is_same = before is not None and (before.mask is now.mask or np.array_equal(before.mask, now.mask))
            if is_same or not now.area:
                continue
            if before is None:
                added.append(piece)
            else:
                edited[self.numbers[number]] = piece
        searched = {*(session.found.maps.queries if session.found else ()), *session.names}
        removed = (self.numbers[number] for number, each in lost.items() if each.query in searched)
        return Changes(edited, tuple(added), tuple(removed))

    def is_unsaved(self, session: EditSession) -> bool:
        """Return whether something was changed."""
        changes = self.changes(session)
        return bool(changes.edited or changes.added or changes.removed)

    def category(self, name: str) -> str:
        """Return the category with this name, in upper or lower case. Raises `Text2SegError` if there is none."""
        if name in self.queries:
            return name
        same = next((each for each in self.queries if each.casefold() == name.casefold()), None)
        if same is None:
            names = ", ".join([*self.queries][:MOST_NAMED])
            more = f" and {len(self.queries) - MOST_NAMED} more" if len(self.queries) > MOST_NAMED else ""
            raise Text2SegError(
                f"“{name}” is not a category of this job; its categories are {names}{more}. "
                f"To find “{name}” too, start a new job with it."
            )
        return same

    def categories_of(self, texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[Refused, ...], tuple[Query, ...]]:
        """Return the categories in the texts, the texts that are none, and the queries of the categories."""
        asked: list[str] = []
        refused: list[Refused] = []
        for text in texts:
            try:
                asked.append(self.category(text))
            except Text2SegError as error:
                asked.append(text)
                refused.append(Refused(text, str(error)))
        asked = list(dict.fromkeys(asked))
        return tuple(asked), tuple(refused), tuple(self.queries[name] for name in asked if name in self.queries)


def begin(
    model_pool: ModelPool, job: Job, sheet: ContactSheet, place: int, annotation: int, before: EditSession
) -> tuple[EditSession, int]:
    """Open an image of a job in the editor. Return also the number of the segment of an annotation; 0 if it has none.

    The models search the image again for all categories of the job, so that its segments can be corrected by points
    and explained. The segments are those of the dataset, without rejected ones, which later searches do not add again.

    Raises:
        Text2SegError: there is no such image, it cannot be read, or the editor still holds an image of a job.
        QueryError: the models of the app do not know a category.
    """
    if before.editing:
        raise Text2SegError(
            f"the editor still holds {before.editing.name}; first save it there, or go back without saving"
        )
    version, entry = sheet.version(place), sheet.image(job.marks, place)
    if entry is None:
        raise Text2SegError("there is no such image; reload the page")
    image = read_image(job.images / entry.file_name, model_pool.settings)
    image = replace(image, file_name=entry.file_name)
    shown = {item.category for item in entry.items}
    queries = tuple(sorted(queries_of(job.ontology), key=lambda query: query.name not in shown))  # the found ones first
    model_pool.models.check(queries)
    session = open_image(model_pool, image)
    if session.image_session is None:
        raise Text2SegError("the image cannot be opened")
    found = session.image_session.segment(queries)
    order = {query.name: at for at, query in enumerate(queries)}
    items = sorted((item for item in entry.items if item.category in order), key=lambda item: order[item.category])
    pieces: list[Piece] = []
    rejected: list[Segment] = []
    corrected: list[Segment] = []
    numbers: dict[int, int] = {}
    for item in items:
        by_hand = _is_by_hand(item)
        again = None if by_hand else _found_again(item, found)
        segment = _segment_of(item, found, again)
        if first := job.marks.before.get(item.annotation["id"]):  # a search finds it again under this name
            corrected.append(replace(segment, query=first))
        if job.marks.annotations.get(item.annotation["id"]) == "rejected":
            rejected.append(segment)
            continue
        number = len(pieces) + 1
        is_explained = again is not None
        outline = outline_of(segment.mask)
        pieces.append(Piece(number, segment, outline, by_hand, is_labelled=True, is_explained=is_explained))
        numbers[number] = int(item.annotation["id"])
    search = Search(asked=tuple(order), texts=tuple(order), found=found, given=queries)
    document = Document(tuple(pieces), tuple(rejected), tuple(corrected), len(pieces), search)
    segments = {piece.number: piece.segment for piece in pieces}
    edited = replace(
        session,
        editing=Editing(
            job=job.id,
            owner=job.owner,
            job_name=job.name,
            place=place,
            image=image,
            numbers=numbers,
            segments=segments,
            version=version,
            before=before,
            queries={query.name: query for query in queries},
        ),
    ).at(History(document))
    chosen = next((number for number, each in numbers.items() if each == annotation), 0)
    return edited, chosen


def finish(editing: Editing, session: EditSession, job: Job, sheet: ContactSheet) -> None:
    """Take over what was changed in the editor as annotations of the job.

    Raises:
        Text2SegError: the editor holds another image by now, or a segment of something that is no category; or another
            window has saved this image since.
    """
    shown = session.image_session
    if shown is None or shown.image is not editing.image:
        raise Text2SegError(f"the editor does not show {editing.name} any more; edit it again from the review")
    categories = {name: number for number, name in enumerate(sheet.categories, start=1)}
    ids = {each["name"]: each["id"] for each in sheet.content["categories"]}
    result, changes = session.segmentation(), editing.changes(session)
    other = sorted({piece.segment.query for piece in session.document.pieces} - set(categories))
    if other:
        raise Text2SegError(
            f"{', '.join(other)}: not a category of this job; name these segments otherwise, or delete them"
        )

    def annotation_of(piece: Piece) -> dict[str, Any]:
        (annotation,) = annotations_of(replace(result, segments=(piece.segment,)), ids)
        if piece.by_hand:
            annotation["attributes"] |= {"by_hand": True}
        return annotation

    edited = {number: annotation_of(piece) for number, piece in changes.edited.items()}
    added = [annotation_of(piece) for piece in changes.added]
    sheet.correct(job.marks, editing.place, editing.version, edited, added, changes.removed)


def _found_again(item: Item, found: Segmentation) -> Segment | None:
    """Return what was found that shows the same object as an annotation, or None."""
    mask = mask_of(item.annotation, found.image.hw)
    again = max(found.of(item.category), key=lambda each: iou(each.mask, mask), default=None)
    return again if again is not None and iou(again.mask, mask) > SAME else None


def _segment_of(item: Item, found: Segmentation, again: Segment | None) -> Segment:
    """Return the segment of an annotation: as it was found `again`, with the mask of the annotation, or made from what
    the annotation records."""
    annotation = item.annotation
    mask = mask_of(annotation, found.image.hw)
    known = attributes_of(annotation)
    try:
        points = points_of(annotation)
    except Text2SegError:  # a file of another program, or a segment that was split by hand
        points = NO_POINTS
    if again is not None:
        return replace(again, mask=mask, points=points if len(points) else again.points)
    score = number_in(known, "sam_score") or item.score or 0.0
    side = 256  # SAM's resolution; the candidates of this segment are not known
    candidates = Candidates(np.zeros((1, side, side), np.float32), np.array([score], np.float32))
    values = (number_in(known, "map_score") or 0.0, number_in(known, "presence") or 0.0)
    region_presence = number_in(known, "region_presence")
    return Segment(item.category, mask, score, *values, points, candidates, 0, region_presence=region_presence)


def _is_by_hand(item: Item) -> bool:
    return attributes_of(item.annotation).get("by_hand") is True
