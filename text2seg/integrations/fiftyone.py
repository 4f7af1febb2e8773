"""FiftyOne: label a dataset in place.

Format: https://docs.voxel51.com, labels of the type Detections with instance masks.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from text2seg.coco.dataset import segment_score
from text2seg.errors import SettingsError, Text2SegError
from text2seg.records import Failure, Segmentation

if TYPE_CHECKING:
    from text2seg.session import Pipeline, Queries


def label_dataset(samples: Any, models: Pipeline, queries: Queries, *, field: str = "text2seg") -> list[Failure]:
    """Segment the image of each sample, and save the masks as detections in a field of the sample.

    A sample whose image cannot be read keeps what the field had; with that exception, the field is replaced.

    Args:
        samples: a FiftyOne dataset or view of images.
        models: the pipeline.
        queries: what to look for; see `Pipeline.segment`.
        field: the field of the samples; it is made if the dataset has none.

    Returns:
        The images that could not be segmented, with the reasons.

    Raises:
        QueryError: the queries cannot be used.
        SettingsError: fiftyone is not installed.
    """
    _fiftyone()
    parsed = models.check(queries)
    failures = []
    for sample in samples.iter_samples(progress=True, autosave=True):
        try:
            sample[field] = detections_of(models.segment(Path(sample.filepath), parsed))
        except Text2SegError as error:
            failures.append(Failure.from_error(sample.filepath, "segment", error, sample.filepath))
    return failures


def detections_of(segmentation: Segmentation) -> Any:
    """Return the segments as `fiftyone.Detections`: label, box, mask in the box, confidence (the score of the COCO
    file), `sam_score` and `presence`. Empty masks are left out. Raises `SettingsError` without fiftyone."""
    fiftyone = _fiftyone()
    height, width = segmentation.image.hw
    found = []
    for segment in segmentation.segments:
        if not segment.area:
            continue
        x, y, columns, rows = segment.box_xywh
        (left, across), (top, down) = relative_side(x, columns, width), relative_side(y, rows, height)
        found.append(
            fiftyone.Detection(
                label=segment.query,
                bounding_box=[left, top, across, down],
                mask=segment.mask[y : y + rows, x : x + columns].copy(),
                confidence=float(segment_score(segment, segmentation)),
                sam_score=float(segment.sam_score),
                presence=float(segment.presence),
            )
        )
    return fiftyone.Detections(detections=found)


def relative_side(start: int, length: int, size: int) -> tuple[float, float]:
    """Start and length of a side of a box, as fractions of the image's size that FiftyOne turns back into these pixels.

    It rounds down where it draws and exports (`int(size * fraction)`), so a quotient such as 29 / 50, which times 50 is
    less than 29, moves a mask by a pixel. A fraction here is the quotient, or up to a few floating-point numbers above.
    """
    first, part = _fraction(start, size), _fraction(length, size)
    while int(size * (first + part)) < start + length:
        part = math.nextafter(part, 2)
    return first, part


def _fraction(pixels: int, size: int) -> float:
    fraction = pixels / size
    while int(size * fraction) < pixels:
        fraction = math.nextafter(fraction, 2)
    return fraction


def _fiftyone() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise SettingsError("this needs the package fiftyone: pip install fiftyone") from error
    return fiftyone
