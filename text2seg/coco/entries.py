"""The entries of a COCO file, made from records: images, annotations, categories and the file's own info."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Literal, cast

import numpy as np

from text2seg.coco import polygon, rle
from text2seg.errors import OutputError
from text2seg.records import Image, Segment, Segmentation

Encoding = Literal["rle", "polygon"]
Json = dict[str, Any]

DESCRIPTION = "Found by text2seg"

_log = logging.getLogger(__name__)


def image_entry(image: Image) -> Json:
    """`id`, `file_name` (POSIX slashes), `width` and `height` of an image. Raises `OutputError` without a name."""
    if not image.file_name:
        raise OutputError(
            f"image {image.image_id} has no file name, and a COCO file lists images by it; "
            "give it one, as in load_image(pixels, file_name='one.png')"
        )
    height, width = image.hw
    name = PurePath(image.file_name).as_posix()
    return {"id": int(image.image_id), "file_name": name, "width": width, "height": height}


def annotations_of(
    segmentation: Segmentation,
    categories: Mapping[str, int],
    *,
    encoding: Encoding = "rle",
    provenance: Mapping[str, Any] | None = None,
) -> list[Json]:
    """What was found in one image as annotations without `id` and `image_id`, which the caller gives (see `numbered`).

    Args:
        segmentation: one image; empty masks are dropped.
        categories: the category id of each query.
        encoding: how masks are written.
        provenance: goes into `attributes` as it is, not copied; `plain_json` makes anything else JSON first.

    Raises:
        OutputError: a mask is not of the image's size, a query is not among the categories, or the encoding is none.
    """
    check_encoding(encoding)
    encode = rle.encode if encoding == "rle" else polygon.encode
    name = segmentation.image.file_name
    annotations = []
    for segment in segmentation.segments:
        if segment.query not in categories:
            raise OutputError(f"{segment.query!r} is not one of the queries {list(categories)}")
        if segment.mask.shape != segmentation.image.hw:
            raise OutputError(
                f"{name}: the mask of {segment.query!r} is {list(segment.mask.shape)}, "
                f"the image {list(segmentation.image.hw)}"
            )
        if not segment.mask.any():
            _log.info("%s: an empty mask of %r is left out", name, segment.query)
            continue
        attributes = _attributes(segment, _score(segment, segmentation)) | (
            {"provenance": provenance} if provenance else {}
        )
        annotations.append(
            {
                "category_id": int(categories[segment.query]),
                "segmentation": encode(segment.mask),
                "area": segment.area,
                "bbox": list(segment.box_xywh),
                "iscrowd": 0,
                "score": attributes["score"],
                "attributes": attributes,
            }
        )
    return annotations


def numbered(annotations: list[Json], *, first: int, image_id: int) -> list[Json]:
    """Annotations with their `id`, counted from `first`, and the `image_id` in front of what they hold."""
    return [{"id": number, "image_id": image_id, **each} for number, each in enumerate(annotations, start=first)]


def category_entries(categories: Mapping[str, int], supercategory: str = "thing") -> list[Json]:
    """The file's list of categories, from the id of each name."""
    return [{"id": number, "name": name, "supercategory": supercategory} for name, number in categories.items()]


def dataset_info(info: Mapping[str, Any] | None = None) -> Json:
    """The file's `info`: what made it and in which frame its masks are, then what is given. Raises `OutputError` where
    that is no JSON."""
    return {"description": DESCRIPTION, "exif_orientation": "applied", **plain_json("info", info or {})}


def check_encoding(encoding: str) -> None:
    """Raises `OutputError` unless it is one that masks are written in."""
    if encoding not in ("rle", "polygon"):
        raise OutputError(f"masks are written as rle or polygon, got {encoding!r}")


def plain_json(what: str, value: Mapping[str, Any]) -> Json:
    """A copy that is nothing but JSON: settings become dicts, paths text, numpy scalars numbers. Raises `OutputError`,
    naming `what`, where something else is in it."""

    def convert(thing: object) -> object:
        if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            return dataclasses.asdict(thing)
        if isinstance(thing, PurePath):
            return thing.as_posix()
        if isinstance(thing, (np.generic, np.ndarray)):
            return thing.tolist()
        raise TypeError(f"{type(thing).__name__} is not JSON")

    try:
        return cast(Json, json.loads(json.dumps(dict(value), default=convert, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise OutputError(f"the {what} cannot be written: {error}") from error


def _score(segment: Segment, segmentation: Segmentation) -> float:
    """How sure we are of a segment: SAM's score, times presence where presence is used at all. SAM alone knows how good
    a mask is, but not of what."""
    threshold = dict(zip(segmentation.maps.queries, segmentation.thresholds, strict=False)).get(segment.query, 0)
    return segment.sam_score * segment.presence if threshold > 0 else segment.sam_score


def _attributes(segment: Segment, score: float) -> Json:
    points = segment.points
    attributes: Json = {
        "query": segment.query,
        "score": plain_number(score),
        "sam_score": plain_number(segment.sam_score),
        "map_score": plain_number(segment.map_score),
        "presence": plain_number(segment.presence),
        "points": [
            [plain_number(x), plain_number(y), int(label), plain_number(similarity)]
            for (x, y), label, similarity in zip(points.xy, points.labels, points.similarity, strict=True)
        ],
        **({"box_prompt": [plain_number(side) for side in points.boxes_xyxy[0]]} if len(points.boxes_xyxy) else {}),
        "chosen_candidate": int(segment.chosen),
        "candidate_scores": [plain_number(score) for score in segment.candidates.scores],
    }
    if segment.view_xywh is not None:
        attributes["view_xywh"] = list(segment.view_xywh)
    return attributes


def plain_number(value: float | np.floating) -> float:
    """The shortest plain number that is the same float32: 0.9, not 0.8999999761581421."""
    return float(str(np.float32(value)))
