"""The segments a visitor edits, with undo, and their outlines for the browser."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.errors import Text2SegError
from text2seg.grids import check_inside, depth_of, highest, iou, minmax
from text2seg.records import PointPrompts, Segment

if TYPE_CHECKING:
    from text2seg.app.segment.session import Search

MOST_STEPS = 50
"""Number of edits that can be undone. Each may hold a mask of the size of the image."""
SAME = 0.5
"""Two masks of one query above this IoU show the same object."""

Place = tuple[float, float]
"""Place of a point, x and y in pixels of the image, as float32 holds them."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment and its edits. Edits do not change its `number`. `placed` are the points that the visitor set.

    `is_labelled`: it is an annotation of a dataset. `is_explained`: how its mask was chosen is known. `is_named`: the
    visitor gave its name, and it stays when that is no query; `found_as` is then the query that led to it, if one did.
    `region` is the number of the region of "everything" that it was, or 0.
    """

    number: int
    segment: Segment
    outline: Outline
    by_hand: bool = False
    accepted: bool = False
    placed: frozenset[Place] = frozenset()
    is_labelled: bool = False
    is_explained: bool = True
    is_named: bool = False
    found_as: str = ""
    region: int = 0

    @property
    def outlasts_searches(self) -> bool:
        return self.by_hand or self.accepted or self.is_labelled


@dataclass(frozen=True, slots=True)
class Document:
    """The segments in display order. `removed` are deleted segments, `changed` those that were renamed or got another
    mask, as they were found: later searches must not add them again. `last` is the highest number so far, `search` the
    search before the edits. Immutable: each edit returns a new document."""

    pieces: tuple[Piece, ...] = ()
    removed: tuple[Segment, ...] = ()
    changed: tuple[Segment, ...] = ()
    last: int = 0
    search: Search | None = None

    def piece(self, number: int) -> Piece:
        """Return the segment with this number. Raises `Text2SegError` if there is none."""
        for piece in self.pieces:
            if piece.number == number:
                return piece
        raise Text2SegError("this segment no longer exists; choose another")

    def found(self, segments: Iterable[Segment], queries: Sequence[str]) -> Document:
        """Return the document after a new search.

        Edited and accepted segments, and those of a dataset, are kept if their query is still there, and those that the
        visitor named in any case. New segments are added unless they show the same object as a kept, a deleted or a
        changed one. One that shows the same object as another earlier segment takes its place and number, so that an
        edit which was asked for during the search still finds it; both may show the same object as a kept one, beside
        which the visitor has seen them. Deleted and changed segments are forgotten with their query.
        """
        kept = tuple(
            piece
            for piece in self.pieces
            if piece.is_named or (piece.outlasts_searches and piece.segment.query in queries)
        )
        removed, changed = (
            tuple(segment for segment in gone if segment.query in queries) for gone in (self.removed, self.changed)
        )
        known = [*(piece.segment for piece in kept), *removed, *changed]
        others = {-place: segment for place, segment in enumerate(known, start=1)}  # below 0: not to be added again
        numbers = {piece.number for piece in kept}
        others |= {piece.number: piece.segment for piece in self.pieces if piece.number not in numbers}
        new, last = list[Piece](), self.last
        for segment in segments:
            number = _same_object(segment, others) or last + 1
            if number > 0:
                others.pop(number, None)
                last = max(last, number)
                new.append(_piece(number, segment))
        order = {query: place for place, query in enumerate(queries)}
        places = {piece.number: place for place, piece in enumerate(self.pieces)}
        edited = {piece.segment.query for piece in kept}  # beside these, a search changes no order
        pieces = sorted(
            (*kept, *new),
            key=lambda piece: (
                order.get(piece.segment.query, len(order)),
                places.get(piece.number, len(places)) if piece.segment.query in edited else 0,
            ),
        )
        return replace(self, pieces=tuple(pieces), removed=removed, changed=changed, last=last)

    def corrected(self, number: int, segment: Segment, *placed: Place) -> Document:
        """Replace a segment by an edited one, which is not accepted yet. `placed` are new points of the visitor."""
        before = self.piece(number)
        piece = _piece(number, segment, by_hand=True, placed=before.placed | {*placed})
        return self._changed(before, _named_as(before, piece))

    def added(self, segment: Segment, *placed: Place, is_named: bool = False, region: int = 0) -> Document:
        """Add a segment made by hand, with the points that the visitor set."""
        number = self.last + 1
        piece = _piece(number, segment, by_hand=True, placed=frozenset(placed))
        return replace(self, pieces=(*self.pieces, replace(piece, is_named=is_named, region=region)), last=number)

    def named(self, number: int, name: str) -> Document:
        """Give a segment another name. Later searches for its query do not add it again."""
        before = self.piece(number)
        led = before.found_as if before.is_named else before.segment.query
        segment = replace(before.segment, query=name)
        piece = replace(before, segment=segment, by_hand=True, is_named=True, found_as=led)
        return self._changed(before, piece)

    def deleted(self, number: int) -> Document:
        return replace(self._with(number), removed=(*self.removed, self.piece(number).segment))

    def accepted(self, number: int) -> Document:
        """Accept a segment, or undo its acceptance."""
        piece = self.piece(number)
        return self._with(number, replace(piece, accepted=not piece.accepted))

    def split(self, number: int) -> Document:
        """Split a segment into its connected parts. The largest keeps the number.

        Raises:
            Text2SegError: it has one part only.
        """
        before = self.piece(number)
        segment = before.segment
        masks = parts_of(segment.mask)
        if len(masks) < 2:
            raise Text2SegError(f"this segment of {segment.query!r} has one part only; there is nothing to split")
        parts = [replace(segment, mask=mask, points=_points_on(mask, segment.points)) for mask in masks]
        numbers = (number, *range(self.last + 1, self.last + len(parts)))
        pieces = [
            _named_as(before, _piece(each, part, by_hand=True, placed=before.placed))
            for each, part in zip(numbers, parts, strict=True)
        ]
        return replace(self._changed(before, *pieces), last=self.last + len(parts) - 1)

    def segments(self, numbers: Collection[int] | None = None) -> tuple[Segment, ...]:
        """Return all segments, or those with these numbers."""
        return tuple(piece.segment for piece in self.pieces if numbers is None or piece.number in numbers)

    def of(self, query: str) -> tuple[Piece, ...]:
        """Return the segments of one query."""
        return tuple(piece for piece in self.pieces if piece.segment.query == query)

    def had(self, query: str) -> bool:
        """Return whether a query has segments, or had some that were deleted, renamed or got another mask."""
        gone = (segment.query == query for segment in (*self.removed, *self.changed))
        return bool(self.of(query)) or any(gone)

    def _changed(self, before: Piece, *instead: Piece) -> Document:
        """Replace a segment by changed ones. A search finds the first one again, whatever has become of it."""
        changed = self.changed if before.by_hand else (*self.changed, before.segment)
        return replace(self._with(before.number, *instead), changed=changed)

    def _with(self, number: int, *instead: Piece) -> Document:
        """Replace one segment by others."""
        at = self.pieces.index(self.piece(number))
        return replace(self, pieces=(*self.pieces[:at], *instead, *self.pieces[at + 1 :]))


@dataclass(frozen=True, slots=True)
class History:
    """The current document, those before it, and those after it that were undone. `searched` is the result of the last
    search; it is current until the next edit."""

    present: Document = field(default_factory=Document)
    past: tuple[Document, ...] = ()
    future: tuple[Document, ...] = ()
    searched: Document | None = None

    def step(self, document: Document) -> History:
        """Make another document current. Redo is then impossible."""
        return History(document, (*self.past, self.present)[-MOST_STEPS:])

    def search(self, document: Document, *, is_again: bool) -> History:
        """Make the result of a search current. One for the same words, while the same slider moves, is a step together
        with the search just before it. The first search in an image is where its history begins.

        Args:
            is_again: the words are those of the search before, and no other slider has moved.
        """
        is_first = not self.past and self.present == Document()
        if is_first or (is_again and self.present is self.searched):
            return History(document, self.past, searched=document)
        return replace(self.step(document), searched=document)

    def undo(self) -> History:
        """Undo one edit, if there is one."""
        if not self.past:
            return self
        return History(self.past[-1], self.past[:-1], (self.present, *self.future))

    def redo(self) -> History:
        """Redo one edit, if there is one."""
        if not self.future:
            return self
        return History(self.future[0], (*self.past, self.present), self.future[1:])


NO_POINTS = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))


def with_point(
    points: PointPrompts, xy: tuple[float, float], *, positive: bool, scores: NDArray[np.float32], hw: tuple[int, int]
) -> PointPrompts:
    """Add a point at `xy`, in pixels of the image. Its similarity is that of its cell in the map float32[gh, gw].

    The rough mask prompt is dropped, because it describes the mask before this point.

    Raises:
        SettingsError: the point is outside the image.
    """
    (x, y), (height, width) = xy, hw
    check_inside(x, y, hw)
    rows, columns = scores.shape
    cell = min(int(y / height * rows), rows - 1), min(int(x / width * columns), columns - 1)
    return PointPrompts(
        np.concatenate([points.xy, np.array([xy], np.float32)]),
        np.append(points.labels, np.int8(positive)),
        np.append(points.similarity, minmax(scores)[cell]),
        points.boxes_xyxy,
    )


def _piece(number: int, segment: Segment, *, by_hand: bool = False, placed: frozenset[Place] = frozenset()) -> Piece:
    return Piece(number, segment, outline_of(segment.mask), by_hand, placed=placed)


def _named_as(before: Piece, piece: Piece) -> Piece:
    """Return a piece with what is known of the name of the one that it was."""
    return replace(piece, is_named=before.is_named, found_as=before.found_as, region=before.region)


def show_the_same(one: Segment, other: Segment) -> bool:
    """Return whether two segments of one query show the same object."""
    return one.query == other.query and iou(one.mask, other.mask) > SAME


def _same_object(segment: Segment, others: Mapping[int, Segment]) -> int:
    """Return the key of the segment that shows the same object, of several the closest one, or 0."""
    alike = {key: iou(segment.mask, other.mask) for key, other in others.items() if other.query == segment.query}
    closest = max(alike, key=alike.__getitem__, default=0)
    return closest if alike.get(closest, 0) > SAME else 0


def _points_on(mask: NDArray[np.bool_], points: PointPrompts) -> PointPrompts:
    """Return the negative points and the positive ones on the mask, or its innermost pixel if none is on it."""
    columns, rows = points.xy.astype(np.intp).T
    inside = mask[rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1)]
    kept = (points.labels == 0) | inside
    xy, labels, similarity = points.xy[kept], points.labels[kept], points.similarity[kept]
    if not labels.any():
        column, row = highest(depth_of(mask))
        xy = np.concatenate([xy, np.array([[column + 0.5, row + 0.5]], np.float32)])
        labels, similarity = np.append(labels, np.int8(1)), np.append(similarity, np.float32(0))
    return PointPrompts(xy, labels, similarity)


DETAIL = 1400
"""Longest side of the mask on which outlines are traced, in pixels. Large masks lose details that no screen shows;
small ones get smooth edges."""
TOLERANCE = 0.6
"""Largest distance between a straight line and the outline, in pixels of that mask."""
SPECK = 0.01
"""A part smaller than this share of a segment counts as a speck of its largest part."""


@dataclass(frozen=True, slots=True)
class Outline:
    """Outline of a mask. `path` is an SVG path in pixels of the image, for the even-odd rule; `parts` is the number of
    connected parts without specks; `area` is in pixels."""

    path: str
    parts: int
    area: int


def outline_of(mask: NDArray[np.bool_]) -> Outline:
    """Return the outline of a mask bool[H, W] for display. It is off by about one pixel at most."""
    height, width = mask.shape
    scale = DETAIL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    small = np.asarray(cv2.resize(mask.view(np.uint8) * 255, size, interpolation=how) >= 128)
    loops, _ = cv2.findContours(small.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    to_image = np.array([width / size[0], height / size[1]])
    path = "".join(_loop(cv2.approxPolyDP(loop, TOLERANCE, True)[:, 0], to_image) for loop in loops)
    return Outline(path, len(parts_of(small)), int(mask.sum()))


def parts_of(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Return the connected parts of a mask bool[H, W], the largest first. Specks belong to the largest part."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count == 1:
        return []
    order = np.argsort(-areas, kind="stable") + 1
    large = [int(label) for label in order if areas[label - 1] >= SPECK * areas.sum()]
    specks = np.isin(labels, [int(label) for label in order if label not in large])
    return [(labels == large[0]) | specks, *(labels == label for label in large[1:])]


def _loop(corners: NDArray[Any], to_image: NDArray[np.float64]) -> str:
    """Return one loop of the path. The corners are centres of pixels."""
    points = (corners + 0.5) * to_image
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
