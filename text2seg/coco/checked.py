"""Masks out of anyone's COCO files, checked before pycocotools sees them: it reads past its memory on broken ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from text2seg.coco.rle import Rle, as_text


def checked_rle(segmentation: Any, hw: tuple[int, int]) -> Rle:
    """The mask as compressed RLE, from any of the three forms that COCO knows: polygons, compressed RLE, plain runs.

    pycocotools reads past its memory on runs that do not fill the mask, so they are added up here first. Nothing of
    what is given is changed. Raises `ValueError`, saying what is wrong, where it is no mask of an image of `hw`.
    """
    if isinstance(segmentation, Mapping):
        return _checked_runs(segmentation, hw)
    if not isinstance(segmentation, list):
        raise ValueError("it has no mask: segmentation should be polygons or RLE")
    if not segmentation:
        raise ValueError("it has no mask: its list of polygons is empty")
    for polygon in segmentation:
        if not isinstance(polygon, list):
            raise ValueError("each of its polygons should be a list [x1, y1, x2, y2, …]")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs an even count of at least 6 numbers, got {len(polygon)}")
        if not all(is_number(value) for value in polygon):
            raise ValueError("a polygon holds something that is no finite number")
    return as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, *hw)))


def is_number(value: object) -> bool:
    """A finite int or float; True and False are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def run_lengths(counts: str | bytes) -> NDArray[np.int64]:
    """The runs of a compressed RLE. Raises `ValueError` where it is no such text.

    COCO's code (maskApi.c, rleFrString): five bits a character, lowest first, the sixth says that more follow; from
    the fourth run on what is written is the difference to the last run of the same kind.
    """
    raw = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
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


def _checked_runs(segmentation: Mapping[str, Any], hw: tuple[int, int]) -> Rle:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != list(hw):
        raise ValueError(f"its RLE is of size {size}, the image is {list(hw)} (rows, columns)")
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(run, int) and not isinstance(run, bool) for run in counts):
            raise ValueError("its RLE holds runs that are no whole numbers")
        runs = np.array(counts, np.int64)
    elif isinstance(counts, (str, bytes)):
        runs = run_lengths(counts)
    else:
        raise ValueError("its RLE has no counts")
    if (runs < 0).any() or runs.sum() != hw[0] * hw[1]:
        raise ValueError(
            f"the runs of its RLE add up to {runs.sum()}, not to the {hw[0]} x {hw[1]} pixels of the image"
        )
    if isinstance(counts, (list, tuple)):
        return as_text(coco_mask.frPyObjects({"size": list(hw), "counts": list(counts)}, *hw))
    return as_text({"size": hw, "counts": counts})
