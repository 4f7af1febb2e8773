"""Masks as COCO's run lengths: lossless, compressed, with `counts` as text so that JSON takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


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
