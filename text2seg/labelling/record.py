"""What came of one image, as plain JSON: the unit that the journal keeps and that may come from another machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import rle
from text2seg.coco.dataset import Encoding, annotations_of, plain_number
from text2seg.errors import Text2SegError
from text2seg.io.storage import Place, Stamp
from text2seg.records import Segmentation

Json = dict[str, Any]
Masks = Sequence[NDArray[np.bool_]]


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """One image of a batch. `stamp` is the file's bytes and time of change when the job looked at it. An image that is
    not `wanted` is computed with its batch, so that the batch is what it always was, and then dropped."""

    index: int
    file: str
    stamp: Stamp
    wanted: bool = True


def stamp_in(record: Mapping[str, Any]) -> Stamp:
    """The stamp of the file that a record is about."""
    return record["bytes"], record["mtime_ns"]


def success_record(
    task: Task,
    segmentation: Segmentation,
    categories: Mapping[str, int],
    *,
    encoding: Encoding,
    others: Sequence[Masks] = (),
) -> Json:
    """The record of an image that was segmented.

    Args:
        categories: the category id of each query.
        others: with `--keep-candidates` the masks that SAM offered for each segment beside the chosen one.

    Raises:
        OutputError: the segmentation cannot stand in a COCO file.
    """
    annotations = annotations_of(segmentation, categories, encoding=encoding)
    if others:
        written = (masks for segment, masks in zip(segmentation.segments, others, strict=True) if segment.area)
        for annotation, masks in zip(annotations, written, strict=True):
            annotation["attributes"]["candidates"] = [dict(rle.encode(mask)) for mask in masks]
    height, width = segmentation.image.hw
    maps = segmentation.maps
    return {
        **_head(task),
        "width": width,
        "height": height,
        "presence": {query: plain_number(score) for query, score in zip(maps.queries, maps.presence, strict=True)},
        "annotations": annotations,
    }


def skip_record(task: Task, hw: tuple[int, int], presence: Mapping[str, float]) -> Json:
    """The record of an image that nothing was looked for in, because by an index none of the queries is there.

    Args:
        hw: of the image as it would have been decoded.
        presence: what the index says of each query.
    """
    return {
        **_head(task),
        "width": hw[1],
        "height": hw[0],
        "presence": {query: plain_number(score) for query, score in presence.items()},
        "annotations": [],
        "skipped": True,
    }


def failure_record(task: Task, stage: str, error: BaseException, path: Place) -> Json:
    """The record of an image that could not be done, its message in one line that does not depend on the folder."""
    if isinstance(error, Text2SegError):
        message = str(error).replace(str(path), task.file)
    else:
        _log.info("%s", path, exc_info=error)
        message = f"not enough memory, or a fault of the machine or of text2seg ({type(error).__name__}: {error})"
    message = " ".join(message.split())
    if task.file not in message:
        message = f"{task.file}: {message}"
    return {**_head(task), "failure": {"stage": stage, "message": message}}


def _head(task: Task) -> Json:
    size, changed = task.stamp
    return {"file": task.file, "bytes": size, "mtime_ns": changed}
