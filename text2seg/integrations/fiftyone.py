"""FiftyOne: label a dataset in place.

Format: https://docs.voxel51.com, labels of the type Detections with instance masks.
"""

from __future__ import annotations

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
        x, y, columns, rows = segment.box_xywh
        if not segment.area:
            continue
        found.append(
            fiftyone.Detection(
                label=segment.query,
                bounding_box=[x / width, y / height, columns / width, rows / height],
                mask=segment.mask[y : y + rows, x : x + columns].copy(),
                confidence=float(segment_score(segment, segmentation)),
                sam_score=float(segment.sam_score),
                presence=float(segment.presence),
            )
        )
    return fiftyone.Detections(detections=found)


def _fiftyone() -> Any:
    try:
        import fiftyone
    except ImportError as error:
        raise SettingsError("this needs the package fiftyone: pip install fiftyone") from error
    return fiftyone
