"""Panels that explain each mask: the map with points, SAM's candidates, the mask. Also sheets and comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw

from text2seg.records import Image, PointPrompts, Segment, Segmentation
from text2seg.render.drawing import (
    FAINT,
    FRAME,
    INK,
    NEGATIVE,
    PAPER,
    POSITIVE,
    Colour,
    blend,
    colour_of,
    colours_of,
    draw_text,
    heat,
    outline,
)

Pixels = NDArray[np.uint8]

LARGEST, SMALLEST = 420, 260
"""Limits of a panel's long side, pixels: smaller images are enlarged, larger ones reduced."""
CELL = 220
MOST_ABSENT = 20
"""Of more queries, only those that were found are drawn: the others would make images of many megabytes."""
"""Smallest width of a column, pixels, so that its caption can be read."""
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
    """A header line and the panels below it, in groups with arrows between them."""

    query: str
    note: str
    colour: Colour
    groups: list[list[_Panel]]

    def width(self, cell_width: int) -> int:
        return sum(len(group) * (cell_width + GAP) - GAP for group in self.groups) + ARROW * (len(self.groups) - 1)


def maps_with_points(segmentation: Segmentation) -> Pixels:
    """Draw a row for each segment, in the order of the queries. Returns RGB uint8[h, w, 3].

    A row shows the map with its points (green: positive, red: negative), SAM's candidates with their scores, the chosen
    one framed, and the mask. A query that was not found has a row with its map only, if there are at most
    `MOST_ABSENT` queries. The long side of a panel is 260 to 420 pixels. Without any row, the result is the image alone
    in the size of a panel.
    """
    image, maps = _reduced(segmentation.image.pixels), segmentation.maps
    rows: list[_Row] = []
    colours = colours_of(maps.queries)
    for query, scores in zip(maps.queries, maps.scores, strict=True):
        found = segmentation.of(query)
        heated, note = heat(scores, image), maps.presence_of(query)
        for segment in found:
            stages = _stages(segment, colours[query], heated, image, segmentation.image.pixels)
            rows.append(_Row(query, note, colours[query], stages))
        if not found and len(maps.queries) <= MOST_ABSENT:
            rows.append(_Row(query, segmentation.verdict(query), FRAME, [[_Panel(heated, "similarity map")]]))
    return _drawn(rows, image.shape[0], max(image.shape[1], CELL)) if rows else image


def _stages(segment: Segment, colour: Colour, heated: Pixels, image: Pixels, original: Pixels) -> list[list[_Panel]]:
    """Return the panels of one segment: map with points, SAM's candidates, mask. For a segment found in a tile, only
    the first shows the whole image."""
    points, candidates = segment.points, segment.candidates
    positive = int(np.count_nonzero(points.labels))
    where = _Panel(
        with_points(heated, points, segment.mask.shape), f"map, {positive} positive, {len(points) - positive} negative"
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
    """Resize an image to fit into a panel of `hw` (rows, columns)."""
    scale = min(hw[0] / pixels.shape[0], hw[1] / pixels.shape[1])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _resized(mask: NDArray[np.bool_], hw: tuple[int, ...]) -> NDArray[np.bool_]:
    how = cv2.INTER_AREA if hw[0] < mask.shape[0] else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(mask.view(np.uint8) * 255, hw[::-1], interpolation=how) >= 128)


def with_points(panel: Pixels, points: PointPrompts, image_hw: tuple[int, ...]) -> Pixels:
    """Draw points of the original image as discs with a white rim, the positive ones on top, and the box if any."""
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
    """Resize SAM's square low-resolution mask to a panel: the side of the square becomes the panel's long side, then
    the padding is cut off."""
    side = max(hw)
    return cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)[: hw[0], : hw[1]] > 0


def _on_dimmed(panel: Pixels, mask: NDArray[np.bool_], colour: Colour, *, outlined: bool) -> Pixels:
    """Draw the mask in colour, with the rest of the image darker and greyer."""
    grey = cv2.cvtColor(panel, cv2.COLOR_RGB2GRAY)[:, :, None]
    dimmed = np.rint((panel * 0.4 + grey * 0.6) * DIM).astype(np.uint8)
    painted = blend(np.where(mask[:, :, None], panel, dimmed), mask, colour, 0.4)
    if outlined:
        outline(painted, mask, colour, 2)
    return painted


# --- captioned images on one sheet ---


SHEET_CELL = 300
"""Long side of the images on a sheet, pixels, unless all are larger."""
SHEET_LARGEST = 900
SHEET_PIXELS = 60e6
"""Largest number of pixels of all images on a sheet of full size."""
SHEET_GAP, SHEET_CAPTION, TITLE = 14, 28, 40


def sheet(cells: Sequence[tuple[str, Pixels]], *, title: str = "", columns: int = 0, full_size: bool = False) -> Pixels:
    """Arrange images uint8[h, w, 3] in rows, with a caption above each. Returns uint8[H, W, 3].

    Args:
        cells: caption and image; at least one has pixels. The place of an image without pixels stays empty.
        title: a line above all.
        columns: number of images per row; 0: as many as fit into about 1600 pixels.
        full_size: keep the sizes of the images, unless all together have more than `SHEET_PIXELS`. Otherwise all get
            the same long side.
    """
    if full_size:
        scale = min(1.0, (SHEET_PIXELS / sum(pixels[..., 0].size for _, pixels in cells)) ** 0.5)
        sized = [(caption, _brought_to(pixels, max(pixels.shape[:2]) * scale)) for caption, pixels in cells]
    else:
        sides = [max(pixels.shape[:2]) for _, pixels in cells if pixels.size]
        long_side = min(max(SHEET_CELL, min(sides)), SHEET_LARGEST)
        sized = [(caption, _brought_to(pixels, long_side)) for caption, pixels in cells]
    width = max(max(pixels.shape[1] for _, pixels in sized), SHEET_CELL)
    columns = columns or min(len(cells), max(1, 1600 // (width + SHEET_GAP)))
    rows = [sized[first : first + columns] for first in range(0, len(sized), columns)]
    heights = [max(pixels.shape[0] for _, pixels in row) for row in rows]
    top = TITLE if title else 0
    size = (
        columns * (width + SHEET_GAP) + SHEET_GAP,
        top + sum(heights) + len(rows) * (SHEET_CAPTION + SHEET_GAP) + SHEET_GAP,
    )
    whole = PillowImage.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(whole)
    if title:
        draw_text(pen, (SHEET_GAP, TITLE / 2 + 4), title, size=22, colour=INK, width=whole.width - 2 * SHEET_GAP)
    for number, (caption, pixels) in enumerate(sized):
        row, column = divmod(number, columns)
        if not pixels.size:
            continue
        left = SHEET_GAP + column * (width + SHEET_GAP)
        upper = top + sum(heights[:row]) + row * (SHEET_CAPTION + SHEET_GAP)
        draw_text(pen, (left, upper + SHEET_CAPTION / 2 + 4), caption, size=15, colour=INK, width=width)
        upper += SHEET_CAPTION + 4
        pen.rectangle((left - 1, upper - 1, left + pixels.shape[1], upper + pixels.shape[0]), outline=FRAME)
        whole.paste(PillowImage.fromarray(pixels), (left, upper))
    return np.asarray(whole)


def _brought_to(pixels: Pixels, long_side: float) -> Pixels:
    height, width = pixels.shape[:2]
    if not pixels.size or max(height, width) == long_side:
        return pixels
    scale = long_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=how), dtype=np.uint8)


# --- two masks side by side ---


COMPARED_SIDE, COMPARED_HEADER, COMPARED_TEXT = 520, 34, 16
ONLY_RECORDED: Colour = (230, 80, 30)
ONLY_REBUILT: Colour = (40, 110, 240)

Side = tuple[NDArray[np.bool_], PointPrompts | None]


def compared(image: Image, query: str, recorded: Side, rebuilt: Side) -> Pixels:
    """Draw three panels: the recorded mask, the rebuilt one, and their differences on grey. Returns RGB uint8[h, w, 3].

    `recorded` and `rebuilt` are a mask bool[H, W] of the size of the image and its points (green: positive, red:
    negative). Raises `ValueError` if a mask has another size.
    """
    for mask, _ in (recorded, rebuilt):
        if mask.shape != image.hw:
            raise ValueError(f"the mask must have the image size {list(image.hw)}, got {list(mask.shape)}")
    differing = int(np.count_nonzero(recorded[0] != rebuilt[0]))
    panels = [
        (f"recorded: {query}", _painted(image, query, *recorded)),
        (
            "rebuilt, points as found now" if rebuilt[1] is not None else "rebuilt, points not found again",
            _painted(image, query, *rebuilt),
        ),
        (
            f"{differing:,} pixels differ" if differing else "no pixel differs",
            _difference(image, recorded[0], rebuilt[0]),
        ),
    ]
    height, width = panels[0][1].shape[:2]
    step = max(width, 260) + GAP
    canvas = PillowImage.new("RGB", (GAP + step * len(panels), height + COMPARED_HEADER + GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    for place, (words, pixels) in enumerate(panels):
        left = GAP + step * place
        draw_text(draw, (left, COMPARED_HEADER / 2), words, size=COMPARED_TEXT, colour=INK, width=step - GAP)
        canvas.paste(PillowImage.fromarray(pixels), (left, COMPARED_HEADER))
    return np.asarray(canvas)


def _painted(image: Image, query: str, mask: NDArray[np.bool_], points: PointPrompts | None) -> Pixels:
    small, covered = _sized(image.pixels), _sized(mask.view(np.uint8) * 255) > 127
    painted = np.ascontiguousarray(blend(small, covered, colour_of(query), 0.5))
    outline(painted, covered, colour_of(query), 2)
    if points is None:
        return painted
    scale = np.array([small.shape[1] / image.hw[1], small.shape[0] / image.hw[0]])
    for index in np.argsort(points.labels, kind="stable"):
        x, y = (int(at) for at in np.rint(points.xy[index] * scale * 16 - 8))
        cv2.circle(painted, (x, y), 6 * 16, PAPER, -1, cv2.LINE_AA, 4)
        cv2.circle(painted, (x, y), 4 * 16, POSITIVE if points.labels[index] else NEGATIVE, -1, cv2.LINE_AA, 4)
    return painted


def _difference(image: Image, recorded: NDArray[np.bool_], rebuilt: NDArray[np.bool_]) -> Pixels:
    """Draw the differences. Each differing pixel is visible, however much the image is reduced."""
    grey = cv2.cvtColor(_sized(image.pixels), cv2.COLOR_RGB2GRAY) // 2 + 96
    painted = np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)
    for only, colour in ((recorded & ~rebuilt, ONLY_RECORDED), (rebuilt & ~recorded, ONLY_REBUILT)):
        painted[_sized(only.view(np.uint8) * 255) > 0] = colour
    return painted


def _sized(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = COMPARED_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(np.ascontiguousarray(pixels), size, interpolation=how), dtype=np.uint8)


def shrunk(pixels: Pixels, largest: int) -> Pixels:
    """Return an image uint8[h, w, 3] whose long side has at most `largest` pixels."""
    scale = largest / max(pixels.shape[:2])
    if scale >= 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)
