"""How each mask came about, in one row of panels: the map and its points, SAM's candidates, the mask."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.records import PointPrompts, Segment, Segmentation
from text2seg.render.colours import (
    FAINT,
    FRAME,
    INK,
    NEGATIVE,
    PAPER,
    POSITIVE,
    Colour,
    blend,
    colour_of,
    heat,
    outline,
)
from text2seg.render.lettering import draw_text

Pixels = NDArray[np.uint8]

LARGEST, SMALLEST = 420, 260
"""The long side of a panel: smaller images are enlarged, larger ones reduced."""
CELL = 220
"""The least width of a panel's column, so that the words above it can be read."""
LEAST_WIDTH = 480
GAP, ARROW, HEADER, CAPTION = 12, 40, 44, 30
DIM = 0.5


@dataclass(frozen=True)
class _Panel:
    pixels: Pixels
    caption: str
    frame: Colour | None = None


@dataclass(frozen=True)
class _Row:
    """A line of words and below it panels, in groups with an arrow from each to the next."""

    query: str
    note: str
    colour: Colour
    groups: list[list[_Panel]]

    def width(self, cell_width: int) -> int:
        return sum(len(group) * (cell_width + GAP) - GAP for group in self.groups) + ARROW * (len(self.groups) - 1)


def maps_with_points(segmentation: Segmentation) -> Pixels:
    """A row for each segment, in the order of the queries: the map with its points (green: positive, red: negative),
    SAM's candidates with their scores, the chosen one framed, and the mask. RGB uint8[h, w, 3].

    A query that was not found has a row with its map only. Panels are 260 to 420 pixels on their long side. Without
    any query it is the image alone, as large as a panel.
    """
    image, maps = _reduced(segmentation.image.pixels), segmentation.maps
    rows: list[_Row] = []
    for query, scores, presence in zip(maps.queries, maps.scores, maps.presence, strict=True):
        found = segmentation.of(query)
        heated, note = heat(scores, image), f"presence {presence:.2f}"
        for segment in found:
            rows.append(_Row(query, note, colour_of(query), _stages(segment, heated, image, segmentation.image.pixels)))
        if not found:
            rows.append(_Row(query, segmentation.verdict(query), FRAME, [[_Panel(heated, "similarity map")]]))
    return _drawn(rows, image.shape[0], max(image.shape[1], CELL)) if rows else image


def _stages(segment: Segment, heated: Pixels, image: Pixels, original: Pixels) -> list[list[_Panel]]:
    """The panels of one segment: where it is, what SAM made of the points, what came of it. Of one that was seen in a
    tile, only the first shows the whole image."""
    colour, points, candidates = colour_of(segment.query), segment.points, segment.candidates
    positive = int(np.count_nonzero(points.labels))
    where = _Panel(
        _with_points(heated, points, segment.mask.shape), f"map, {positive} positive, {len(points) - positive} negative"
    )
    mask = segment.mask
    if segment.view_xywh is not None:
        x, y, width, height = segment.view_xywh
        image, mask = (
            _fitted(original[y : y + height, x : x + width], image.shape[:2]),
            mask[y : y + height, x : x + width],
        )
    choices = []
    for index, (logits, score) in enumerate(zip(candidates.logits, candidates.scores, strict=True)):
        chosen = index == segment.chosen
        pixels = _on_dimmed(image, _candidate(logits, image.shape[:2]), colour, outlined=chosen)
        choices.append(_Panel(pixels, f"candidate {index + 1}: SAM {score:.2f}", colour if chosen else None))
    mask = _resized(mask, image.shape[:2])
    final = blend(image, mask, colour, 0.5)
    outline(final, mask, colour, 2)
    return [[where], choices, [_Panel(final, f"mask: SAM {segment.sam_score:.2f}, map {segment.map_score:.2f}")]]


def _drawn(rows: list[_Row], cell_height: int, cell_width: int) -> Pixels:
    row_height = HEADER + CAPTION + cell_height + GAP
    width = 2 * GAP + max(LEAST_WIDTH, *(row.width(cell_width) for row in rows))
    image = PillowImage.new("RGB", (width, row_height * len(rows)), PAPER)
    pen = ImageDraw.Draw(image)
    for number, row in enumerate(rows):
        top, x = row_height * number, GAP
        _draw_header(pen, row, top + HEADER // 2 + 4, width)
        for index, group in enumerate(row.groups):
            if index:
                middle = top + HEADER + CAPTION + cell_height / 2
                at = x - GAP + ARROW / 2
                pen.polygon([(at - 6, middle - 11), (at + 7, middle), (at - 6, middle + 11)], fill=FAINT)
                x += ARROW - GAP
            for panel in group:
                _draw_panel(image, pen, panel, x, top + HEADER, cell_width)
                x += cell_width + GAP
    return np.asarray(image)


def _draw_header(pen: ImageDraw.ImageDraw, row: _Row, middle: int, width: int) -> None:
    pen.rounded_rectangle((GAP, middle - 10, GAP + 20, middle + 10), 4, fill=row.colour)
    x = GAP * 2 + 20
    end = draw_text(pen, (x, middle), row.query, size=22, colour=INK, width=width - x - 230) + 16
    draw_text(pen, (end, middle), row.note, size=16, colour=FAINT, width=width - end)


def _draw_panel(
    image: PillowImage.Image, pen: ImageDraw.ImageDraw, panel: _Panel, x: int, top: int, cell_width: int
) -> None:
    height, width = panel.pixels.shape[:2]
    left, thick = x + (cell_width - width) // 2, 5 if panel.frame else 1
    colour = INK if panel.frame else FAINT
    draw_text(pen, (x, top + CAPTION / 2 - 1), panel.caption, size=16, colour=colour, width=cell_width)
    top += CAPTION
    box = (left - thick, top - thick, left + width + thick - 1, top + height + thick - 1)
    pen.rectangle(box, outline=panel.frame or FRAME, width=thick)
    image.paste(PillowImage.fromarray(panel.pixels), (left, top))


def _reduced(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = min(max(max(height, width), SMALLEST), LARGEST) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(pixels, size, interpolation=how), dtype=np.uint8)


def _fitted(pixels: Pixels, hw: tuple[int, ...]) -> Pixels:
    """As large as a panel of height and width can hold it."""
    scale = min(hw[0] / pixels.shape[0], hw[1] / pixels.shape[1])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _resized(mask: NDArray[np.bool_], hw: tuple[int, ...]) -> NDArray[np.bool_]:
    how = cv2.INTER_AREA if hw[0] < mask.shape[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(mask.view(np.uint8) * 255, hw[::-1], interpolation=how) >= 128)


def _with_points(panel: Pixels, points: PointPrompts, image_hw: tuple[int, ...]) -> Pixels:
    """Points of the original image as discs with a white rim, the positive ones on top, and the box if there is one."""
    panel = panel.copy()
    scale = np.array([panel.shape[1] / image_hw[1], panel.shape[0] / image_hw[0]])
    radius = min(6, max(2, min(panel.shape[:2]) // 10))
    for box in points.boxes_xyxy:
        left, top, right, bottom = (int(at) for at in np.rint(box * np.tile(scale, 2)))
        cv2.rectangle(panel, (left, top), (right - 1, bottom - 1), PAPER, 4)
        cv2.rectangle(panel, (left, top), (right - 1, bottom - 1), POSITIVE, 2)
    for index in np.argsort(points.labels, kind="stable"):
        x, y = (int(at) for at in np.rint(points.xy[index] * scale * 16 - 8))  # sixteenths of a pixel, for cv2's shift
        colour = POSITIVE if points.labels[index] else NEGATIVE
        cv2.circle(panel, (x, y), (radius + 2) * 16, PAPER, -1, cv2.LINE_AA, 4)
        cv2.circle(panel, (x, y), radius * 16, colour, -1, cv2.LINE_AA, 4)
    return panel


def _candidate(logits: NDArray[np.float32], hw: tuple[int, ...]) -> NDArray[np.bool_]:
    """SAM's square low-resolution mask at the size of a panel: enlarged until its side is the panel's long side, then
    cut to the panel, which is the image's share of the square."""
    side = max(hw)
    return cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)[: hw[0], : hw[1]] > 0


def _on_dimmed(panel: Pixels, mask: NDArray[np.bool_], colour: Colour, *, outlined: bool) -> Pixels:
    """The mask in colour, all around it darker and grey."""
    grey = cv2.cvtColor(panel, cv2.COLOR_RGB2GRAY)[:, :, None]
    dimmed = np.rint((panel * 0.4 + grey * 0.6) * DIM).astype(np.uint8)
    painted = blend(np.where(mask[:, :, None], panel, dimmed), mask, colour, 0.4)
    if outlined:
        outline(painted, mask, colour, 2)
    return painted
