"""What lies on a visitor's table: the segments of one picture, and every step that they took to where they are.

Nothing here changes; each act gives a new document, so that undo is to look at an older one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.app.segment.outline import Outline, outline_of, parts_of
from text2seg.errors import Text2SegError
from text2seg.grids import iou, minmax
from text2seg.records import PointPrompts, Segment

MOST_STEPS = 50
"""So many steps can be undone; each may hold a mask as large as the picture."""
SAME = 0.5
"""Masks of one query whose IoU is above this show the same thing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A segment with what a person did to it. `number` stays the same through all corrections."""

    number: int
    segment: Segment
    outline: Outline
    by_hand: bool = False
    accepted: bool = False

    @property
    def is_touched(self) -> bool:
        return self.by_hand or self.accepted


@dataclass(frozen=True, slots=True)
class Document:
    """The pieces in the order in which they are shown. `removed` are segments that a person does not want to see
    again; `last` is the highest number that was ever given."""

    pieces: tuple[Piece, ...] = ()
    removed: tuple[Segment, ...] = ()
    last: int = 0

    def piece(self, number: int) -> Piece:
        """Raises `Text2SegError` where there is none of this number."""
        for piece in self.pieces:
            if piece.number == number:
                return piece
        raise Text2SegError("this segment is not there any more; choose another")

    def found(self, segments: Iterable[Segment], queries: Sequence[str]) -> Document:
        """After another look: what the models found now, beside what a person has corrected or accepted.

        Of the latter what belongs to a query that is still asked stays, and a find that shows the same thing as one of
        them, or as one that was removed, is left out. What was removed of a query is forgotten with the query.
        """
        kept = tuple(piece for piece in self.pieces if piece.is_touched and piece.segment.query in queries)
        removed = tuple(segment for segment in self.removed if segment.query in queries)
        known = [*(piece.segment for piece in kept), *removed]
        fresh = [segment for segment in segments if not any(_show_the_same(segment, other) for other in known)]
        new = tuple(_piece(self.last + place, segment) for place, segment in enumerate(fresh, start=1))
        order = {query: place for place, query in enumerate(queries)}
        pieces = sorted((*kept, *new), key=lambda piece: order[piece.segment.query])
        return Document(tuple(pieces), removed, self.last + len(new))

    def corrected(self, number: int, segment: Segment) -> Document:
        """A piece with another segment in its place, made by hand; it waits to be accepted again."""
        self.piece(number)
        return self._with(number, _piece(number, segment, by_hand=True))

    def added(self, segment: Segment) -> Document:
        """One more piece, made by hand."""
        number = self.last + 1
        return replace(self, pieces=(*self.pieces, _piece(number, segment, by_hand=True)), last=number)

    def deleted(self, number: int) -> Document:
        return replace(self._with(number), removed=(*self.removed, self.piece(number).segment))

    def accepted(self, number: int) -> Document:
        """Accept a piece, or take that back."""
        piece = self.piece(number)
        return self._with(number, replace(piece, accepted=not piece.accepted))

    def split(self, number: int) -> Document:
        """Each connected part of a piece as a piece of its own; the largest keeps the number.

        Raises:
            Text2SegError: it is in one part.
        """
        segment = self.piece(number).segment
        masks = parts_of(segment.mask)
        if len(masks) < 2:
            raise Text2SegError(f"this segment of {segment.query!r} is in one part; there is nothing to split")
        parts = [replace(segment, mask=mask, points=_points_on(mask, segment.points)) for mask in masks]
        numbers = (number, *range(self.last + 1, self.last + len(parts)))
        pieces = [_piece(own, part, by_hand=True) for own, part in zip(numbers, parts, strict=True)]
        return replace(self._with(number, *pieces), last=self.last + len(parts) - 1)

    def segments(self, numbers: Collection[int] | None = None) -> tuple[Segment, ...]:
        """All segments, or those of these numbers."""
        return tuple(piece.segment for piece in self.pieces if numbers is None or piece.number in numbers)

    def _with(self, number: int, *instead: Piece) -> Document:
        """Others in the place of one piece."""
        at = self.pieces.index(self.piece(number))
        return replace(self, pieces=(*self.pieces[:at], *instead, *self.pieces[at + 1 :]))


@dataclass(frozen=True, slots=True)
class History:
    """A document with those before it and those that undo has left behind."""

    present: Document = field(default_factory=Document)
    past: tuple[Document, ...] = ()
    future: tuple[Document, ...] = ()

    def step(self, document: Document) -> History:
        """Go on to another document; what was undone before is gone."""
        return History(document, (*self.past, self.present)[-MOST_STEPS:])

    def undo(self) -> History:
        """One step back, if there is one."""
        if not self.past:
            return self
        return History(self.past[-1], self.past[:-1], (self.present, *self.future))

    def redo(self) -> History:
        """One step that was undone, if there is one."""
        if not self.future:
            return self
        return History(self.future[0], (*self.past, self.present), self.future[1:])


NO_POINTS = PointPrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.float32))


def with_point(
    points: PointPrompts, xy: tuple[float, float], *, positive: bool, scores: NDArray[np.float32], hw: tuple[int, int]
) -> PointPrompts:
    """The points and one more, at `xy` in pixels of the image; its similarity is that of the cell of the map
    [gh, gw] that it lies in. A rough mask is left behind, because it says what the point is to change.

    Raises:
        Text2SegError: the point lies outside of the image.
    """
    (x, y), (height, width) = xy, hw
    if not (0 <= x <= width and 0 <= y <= height):
        raise Text2SegError("this point lies outside of the picture")
    rows, columns = scores.shape
    cell = min(int(y / height * rows), rows - 1), min(int(x / width * columns), columns - 1)
    return PointPrompts(
        np.concatenate([points.xy, np.array([xy], np.float32)]),
        np.append(points.labels, np.int8(positive)),
        np.append(points.similarity, minmax(scores)[cell]),
        points.boxes_xyxy,
    )


def _piece(number: int, segment: Segment, *, by_hand: bool = False) -> Piece:
    return Piece(number, segment, outline_of(segment), by_hand)


def _show_the_same(one: Segment, other: Segment) -> bool:
    return one.query == other.query and iou(one.mask, other.mask) > SAME


def _points_on(mask: NDArray[np.bool_], points: PointPrompts) -> PointPrompts:
    """Of the positive points those on the mask, or its innermost pixel if there is none; and all negative ones."""
    columns, rows = points.xy.astype(np.intp).T
    inside = mask[rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1)]
    kept = (points.labels == 0) | inside
    xy, labels, similarity = points.xy[kept], points.labels[kept], points.similarity[kept]
    if not labels.any():
        depth = cv2.distanceTransform(np.pad(mask, 1).view(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        row, column = np.unravel_index(int(depth.argmax()), mask.shape)
        xy = np.concatenate([xy, np.array([[column + 0.5, row + 0.5]], np.float32)])
        labels, similarity = np.append(labels, np.int8(1)), np.append(similarity, np.float32(0))
    return PointPrompts(xy, labels, similarity)
