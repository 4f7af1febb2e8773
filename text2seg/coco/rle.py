"""Masks as COCO's run lengths, and masks of other tools' files, checked before C code sees them.

pycocotools reads and writes past its memory on runs that do not fill a mask, and takes whatever memory and time a wild
number asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, TypeGuard

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from text2seg.io.images import PIXEL_LIMIT


class Rle(TypedDict):
    """Compressed run lengths of a mask: `size` is [rows, columns], the runs go down the columns."""

    size: list[int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Run lengths of a mask bool[H, W]. Raises `ValueError` on another type or shape."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise ValueError(f"a mask must be bool[H, W], got {mask.dtype}{list(mask.shape)}")
    encoded = coco_mask.encode(_transposed(np.ascontiguousarray(mask).view(np.uint8)).T)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode(rle: Rle | Mapping[str, Any]) -> NDArray[np.bool_]:
    """The mask bool[H, W] of run lengths, compressed (text or bytes) or a plain list of runs as in crowd annotations.

    Raises `ValueError` where the runs do not fill the size.
    """
    counts, (height, width) = rle["counts"], rle["size"]
    if isinstance(counts, (list, tuple)):
        if sum(counts) != height * width or any(run < 0 for run in counts):
            raise ValueError(f"the runs add up to {sum(counts)}, not to the {height} x {width} pixels of the mask")
        rle = of_runs(np.array(counts, np.int64), (height, width))
    return _transposed(coco_mask.decode(dict(rle)).T).view(np.bool_)


def of_runs(runs: NDArray[np.int64], hw: tuple[int, int]) -> Rle:
    """Compressed run lengths of plain runs that fill the mask, none below 0. The runs around one of no pixel are one,
    so that there are at most as many as pixels, and one more: pycocotools writes past its memory where there are many.
    """
    inside = np.arange(len(runs)) % 2 == 1
    runs, inside = runs[runs > 0], inside[runs > 0]
    starts = np.flatnonzero(np.concatenate([[True], inside[1:] != inside[:-1]]))
    counts = np.add.reduceat(runs, starts).tolist()
    return as_text(coco_mask.frPyObjects({"size": list(hw), "counts": [0] * bool(inside[0]) + counts}, *hw))


def union(masks: Sequence[Mapping[str, Any]]) -> Rle:
    """All pixels of one or more masks of one size. Few are joined at a time: the time for each join grows with what
    there is already."""
    parts = [dict(mask) for mask in masks]
    while len(parts) > 1:
        parts = [coco_mask.merge(parts[start : start + 16]) for start in range(0, len(parts), 16)]
    return as_text(parts[0])


def intersection(one: Rle, other: Rle) -> Rle:
    """The pixels that two masks share."""
    return as_text(coco_mask.merge([dict(one), dict(other)], True))


def _transposed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A contiguous copy of uint8 [H, W] as [W, H]. Of a large photo's mask numpy's own copy takes four times as long as
    finding the runs; OpenCV goes through memory in blocks, but not through an array without pixels."""
    return np.asarray(cv2.transpose(pixels)) if pixels.size else np.ascontiguousarray(pixels.T)


def area(rle: Rle) -> int:
    """Pixels in the mask, without decoding it."""
    return int(coco_mask.area(dict(rle)))


def iou(one: Rle, other: Rle) -> float:
    """Intersection over union of two masks of one size, without decoding them; 0 where both are empty."""
    return float(coco_mask.iou([dict(one)], [dict(other)], [0])[0, 0])


def as_text(rle: Mapping[str, Any]) -> Rle:
    """Compressed run lengths as JSON takes them: `counts` as text, `size` as a list of plain numbers."""
    counts = rle["counts"]
    size = [int(side) for side in rle["size"]]
    return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


LARGEST = 1e12
"""Numbers beyond are refused: no score, box or point is so large, and sums of them leave the range of floats."""
MOST_PIXELS = PIXEL_LIMIT
MOST_SIDE = 1_000_000
MOST_BOUNDARY = 2_000_000
"""How long the outlines of one annotation's polygons may be together, in pixels; each takes pycocotools about 120 bytes
while it draws them."""
FAR = 10
"""Corners may lie so many times the image's longer side outside of it, and 1,000 pixels more."""

_AT_ONCE = 1000  # polygons


def checked_rle(segmentation: Any, hw: tuple[int, int]) -> Rle:
    """The mask as compressed RLE, from any of the three forms that COCO knows: polygons, compressed RLE, plain runs.

    Nothing of what is given is changed; runs of no pixel are joined with their neighbours. Raises `ValueError`, saying
    what is wrong, where it is no mask of an image of `hw`, or the image or the outlines are too large.
    """
    if min(hw) < 1 or max(hw) > MOST_SIDE or hw[0] * hw[1] > MOST_PIXELS:
        raise ValueError(f"an image of {hw[1]} x {hw[0]} pixels has no mask that can be held in memory")
    if isinstance(segmentation, Mapping):
        return _checked_runs(segmentation, hw)
    if not isinstance(segmentation, list):
        raise ValueError("it has no mask: segmentation should be polygons or RLE")
    if not segmentation:
        raise ValueError("it has no mask: its list of polygons is empty")
    length = sum(_checked_polygon(polygon, hw) for polygon in segmentation)
    if length > MOST_BOUNDARY:
        raise ValueError(f"its outlines are {length:,.0f} pixels long, over the limit of {MOST_BOUNDARY:,}")
    parts = []
    for start in range(0, len(segmentation), _AT_ONCE):
        parts.append(union(coco_mask.frPyObjects(segmentation[start : start + _AT_ONCE], *hw)))
    return union(parts)


def is_number(value: object) -> TypeGuard[int | float]:
    """A finite int or float of at most `LARGEST`; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def run_lengths(counts: str | bytes) -> NDArray[np.int64]:
    """The runs of a compressed RLE. Raises `ValueError` where it is no such text.

    COCO's code (maskApi.c, rleFrString): five bits a character, lowest first, the sixth says that more follow; from
    the fourth run on what is written is the difference to the last run of the same kind.
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
    """How many points pycocotools puts on its outline, in pixels."""
    if not isinstance(polygon, list):
        raise ValueError("each of its polygons should be a list [x1, y1, x2, y2, …]")
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f"a polygon needs an even count of at least 6 numbers, got {len(polygon)}")
    if not all(issubclass(kind, (int, float)) and kind is not bool for kind in set(map(type, polygon))):
        raise ValueError("a polygon holds something that is no finite number")
    try:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError:
        raise ValueError(_far(hw)) from None
    if not np.isfinite(corners).all():
        raise ValueError("a polygon holds something that is no finite number")
    if np.abs(corners).max() > FAR * max(hw) + 1000:
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
        raise ValueError("its RLE holds runs that are no whole numbers")
    if not all(isinstance(run, int) or run.is_integer() for run in counts):
        raise ValueError("its RLE holds runs that are no whole numbers")
    if counts and (min(counts) < 0 or max(counts) > pixels):
        raise ValueError(f"its RLE holds a run that is below 0 or longer than the {pixels} pixels of the image")
    return np.array(counts, np.int64)


def _short(value: Any) -> str:
    text = str(value) if not isinstance(value, (list, tuple)) or len(value) < 5 else f"{len(value)} values"
    return text if len(text) < 60 else f"{text[:59]}…"
