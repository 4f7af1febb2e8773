"""Masks as COCO's run-length encoding (RLE), and checks of masks from files before pycocotools' C code reads them.

pycocotools accesses invalid memory on runs that do not fill a mask, and has no limit of memory and time for large
numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeGuard

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from text2seg.errors import DatasetError
from text2seg.grids import iou_of_areas, tight_box
from text2seg.io.images import PIXEL_LIMIT


class Rle(TypedDict):
    """Compressed RLE of a mask: `size` is [rows, columns]; the runs go down the columns."""

    size: list[int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Return the RLE of a mask bool[H, W]. Raises `ValueError` on another dtype or number of axes."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask must be bool[H, W], got {mask.dtype}{list(mask.shape)}")
    (height, width), box = mask.shape, tight_box(mask)
    if box is None:
        return _compressed([mask.size], (height, width))
    # Only the box is searched, with a row above and below it. So a run goes on in the next column only if the box is as
    # high as the image.
    left, top = box[0], max(box[1] - 1, 0)
    part = np.ascontiguousarray(mask[top : box[1] + box[3] + 1, left : left + box[2]])
    pixels = _transposed(part.view(np.uint8)).ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0] * bool(pixels[0]), changes, [pixels.size] * bool(pixels[-1])]).astype(np.int64)
    first, last = (
        (left + places // len(part)) * height + top + places % len(part) for places in (edges[::2], edges[1::2] - 1)
    )
    edges = np.stack([first, last + 1], 1).ravel()
    runs = np.diff(edges, prepend=0, append=[mask.size] * bool(edges[-1] < mask.size)).tolist()
    return _compressed(runs, (height, width))


def decode(rle: Rle | Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask bool[H, W] of an RLE, compressed (text or bytes) or a plain list of runs as in crowd annotations.

    Raises:
        ValueError: the runs do not fill the mask.
    """
    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, (list, tuple)):
        if sum(counts) != height * width or any(run < 0 for run in counts):
            raise ValueError(f"the runs add up to {sum(counts)}, not to the {height} x {width} pixels of the mask")
        rle = of_runs(np.array(counts, np.int64), (height, width))
    return _transposed(coco_mask.decode(dict(rle)).T).view(np.bool_)


def of_runs(runs: NDArray[np.int64], hw: tuple[int, int]) -> Rle:
    """Return the compressed RLE of plain runs, which must be 0 or more and fill the mask.

    Runs around an empty run are joined: pycocotools writes to invalid memory if there are many more runs than pixels.
    """
    inside = np.arange(len(runs)) % 2 == 1
    runs, inside = runs[runs > 0], inside[runs > 0]
    starts = np.flatnonzero(np.concatenate([[True], inside[1:] != inside[:-1]]))
    counts = np.add.reduceat(runs, starts).tolist()
    return _compressed([0] * bool(inside[0]) + counts, hw)


def _compressed(counts: list[int], hw: tuple[int, int]) -> Rle:
    """Return the compressed RLE of runs that fill the mask, none of them empty but the first."""
    return as_text(coco_mask.frPyObjects({"size": list(hw), "counts": counts}, *hw))


def union(masks: Sequence[Mapping[str, Any]]) -> Rle:
    """Return the union of one or more masks of one size. They are joined in groups of 16, because the time of a join
    grows with the runs joined before."""
    parts = [dict(mask) for mask in masks]
    while len(parts) > 1:
        parts = [coco_mask.merge(parts[start : start + 16]) for start in range(0, len(parts), 16)]
    return as_text(parts[0])


def intersection(one: Rle, other: Rle) -> Rle:
    """Return the pixels that two masks share."""
    return as_text(coco_mask.merge([dict(one), dict(other)], True))


def _transposed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a contiguous copy of uint8[H, W] as [W, H].

    OpenCV copies in blocks; on large masks numpy's copy takes four times as long as finding the runs. OpenCV refuses
    an array without pixels.
    """
    import cv2  # imported here to keep the start-up fast

    return np.asarray(cv2.transpose(pixels)) if pixels.size else np.ascontiguousarray(pixels.T)


def area(rle: Rle) -> int:
    """Return the number of pixels in a mask, without decoding it."""
    return int(coco_mask.area(dict(rle)))


def iou(one: Rle, other: Rle) -> float:
    """Return the intersection over union of two masks of one size, without decoding them; 1 if both are empty."""
    return iou_of_areas(area(intersection(one, other)), area(one), area(other))


def as_text(rle: Mapping[str, Any]) -> Rle:
    """Return a compressed RLE with JSON types: `counts` as text, `size` as a list of ints."""
    counts = rle["counts"]
    size = [int(side) for side in rle["size"]]
    return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


MAX_NUMBER = 1e12
"""Limit of numbers in a file: no score, box or point is larger, and sums of larger ones overflow."""
MAX_PIXELS = PIXEL_LIMIT
"""Limit of an image's area, pixels."""
MAX_SIDE = 1_000_000
"""Limit of an image's width and height, pixels."""
MAX_BOUNDARY = 2_000_000
"""Limit of the total length of an annotation's polygons, pixels; pycocotools takes about 120 bytes for each."""
MAX_DISTANCE = 10
"""Limit of a corner's distance from the image, in longer sides of the image; 1,000 pixels are added."""

_BATCH = 1000  # polygons that pycocotools draws at once


def checked_rle(segmentation: Any, hw: tuple[int, int]) -> Rle:
    """Return a mask as compressed RLE, from any of COCO's three forms: polygons, compressed RLE, plain runs.

    Args:
        segmentation: the value of the key in the file; it is not changed.
        hw: size of the image (rows, columns).

    Raises:
        ValueError: it is not a mask of an image of this size, or the image or the polygons are over a limit.
    """
    if min(hw) < 1 or max(hw) > MAX_SIDE or hw[0] * hw[1] > MAX_PIXELS:
        raise ValueError(f"an image of {hw[1]} x {hw[0]} pixels has no mask that can be held in memory")
    if isinstance(segmentation, Mapping):
        return _checked_runs(segmentation, hw)
    if not isinstance(segmentation, list):
        raise ValueError("it has no mask: segmentation should be polygons or RLE")
    if not segmentation:
        raise ValueError("it has no mask: its list of polygons is empty")
    length = sum(_checked_polygon(polygon, hw) for polygon in segmentation)
    if length > MAX_BOUNDARY:
        raise ValueError(f"its outlines are {length:,.0f} pixels long, over the limit of {MAX_BOUNDARY:,}")
    parts = []
    for start in range(0, len(segmentation), _BATCH):
        parts.append(union(coco_mask.frPyObjects(segmentation[start : start + _BATCH], *hw)))
    return union(parts)


def rle_of(annotation: Mapping[str, Any], hw: tuple[int, int], dataset: str = "", *, label: str = "") -> Rle:
    """Return the mask of an annotation as compressed RLE, checked by `checked_rle`.

    Args:
        hw: size of the image (rows, columns).
        dataset: name of the dataset, for messages.
        label: name of the annotation in messages. Default: its id.

    Raises:
        DatasetError: the annotation has no mask, or the mask is damaged or does not fit the image.
    """
    try:
        return checked_rle(annotation.get("segmentation"), hw)
    except ValueError as error:
        file, label = f"{dataset}: " if dataset else "", label or f"annotation {annotation.get('id')}"
        raise DatasetError(f"{file}{label}: its mask cannot be read: {error}") from error


def mask_of(annotation: Mapping[str, Any], hw: tuple[int, int], dataset: str = "") -> NDArray[np.bool_]:
    """Return the mask of an annotation as bool[H, W]. Arguments and errors as for `rle_of`."""
    return decode(rle_of(annotation, hw, dataset))


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is an int or float (not a bool) of at most `MAX_NUMBER`."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MAX_NUMBER <= value <= MAX_NUMBER


def run_lengths(counts: str | bytes) -> NDArray[np.int64]:
    """Return the runs of a compressed RLE.

    The format is that of COCO's maskApi.c, rleFrString: five bits per character, lowest first; the sixth bit says that
    more follow. From the fourth run on, the value is the difference to the previous run of the same kind.

    Raises:
        ValueError: the text is not a compressed RLE.
    """
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        raise ValueError("its RLE holds characters that compressed RLE does not have") from None
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("its RLE holds characters that compressed RLE does not have")
    ends = np.flatnonzero(codes & 32 == 0)
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("its RLE is cut short")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:
        raise ValueError("its RLE holds a run longer than any mask")
    shift = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shift, starts)
    runs -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs


def _checked_polygon(polygon: Any, hw: tuple[int, int]) -> float:
    """Return how many points pycocotools puts on the outline. Raises `ValueError` if the polygon is damaged."""
    if not isinstance(polygon, list):
        raise ValueError("each of its polygons should be a list [x1, y1, x2, y2, …]")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon needs an even count of at least 6 numbers, got {len(polygon)}")
    if not all(issubclass(kind, (int, float)) and kind is not bool for kind in set(map(type, polygon))):
        raise ValueError("a polygon holds a value that is not a finite number")
    try:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError:
        raise ValueError(_far(hw)) from None
    if not np.isfinite(corners).all():
        raise ValueError("a polygon holds a value that is not a finite number")
    if np.abs(corners).max() > MAX_DISTANCE * max(hw) + 1000:
        raise ValueError(_far(hw))
    steps = np.abs(corners - np.roll(corners, 1, axis=0)).max(1)
    return float(steps.sum()) + len(corners)


def _far(hw: tuple[int, int]) -> str:
    return f"a polygon has a corner far outside of the image of {hw[1]} x {hw[0]} pixels"


def _checked_runs(segmentation: Mapping[str, Any], hw: tuple[int, int]) -> Rle:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != list(hw):
        raise ValueError(f"its RLE is of size {_short(size)}, the image is {list(hw)} (rows, columns)")
    pixels = hw[0] * hw[1]
    if isinstance(counts, (list, tuple)):
        runs = _plain_runs(counts, pixels)
    elif isinstance(counts, (str, bytes)):
        runs = run_lengths(counts)
    else:
        raise ValueError("its RLE has no counts")
    if len(runs) and runs.min() < 0:
        raise ValueError("its RLE holds a run that is below 0")
    if len(runs) and runs.max() > pixels:
        raise ValueError(f"its RLE holds a run of {runs.max()}, the image has {pixels} pixels")
    if runs.sum() != pixels:
        raise ValueError(
            f"the runs of its RLE add up to {runs.sum()}, not to the {hw[0]} x {hw[1]} pixels of the image"
        )
    if isinstance(counts, (str, bytes)) and runs[1:].all():
        return as_text({"size": hw, "counts": counts})
    return of_runs(runs, hw)


def _plain_runs(counts: Sequence[Any], pixels: int) -> NDArray[np.int64]:
    if not all(issubclass(kind, (int, float)) and kind is not bool for kind in set(map(type, counts))):
        raise ValueError("its RLE holds runs that are not whole numbers")
    if not all(isinstance(run, int) or run.is_integer() for run in counts):
        raise ValueError("its RLE holds runs that are not whole numbers")
    if counts and (min(counts) < 0 or max(counts) > pixels):
        raise ValueError(f"its RLE holds a run that is below 0 or longer than the {pixels} pixels of the image")
    return np.array(counts, np.int64)


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, (list, tuple)) or len(value) < 5 else f"{len(value)} values"
    return text if len(text) < 60 else f"{text[:59]}…"
