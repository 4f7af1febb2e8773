"""COCO dataset files: entries made from records, and files written piece by piece, so that memory does not grow
with the images and annotations in them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, cast

import numpy as np

from text2seg.coco import polygon, rle
from text2seg.coco.reader import read_dataset, read_json
from text2seg.errors import OutputError
from text2seg.io.files import write_atomically
from text2seg.records import Image, Segment, Segmentation

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def write_stream(
    path: str | os.PathLike[str],
    *,
    info: Mapping[str, Any],
    categories: Iterable[Mapping[str, Any]],
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    licenses: Sequence[Mapping[str, Any]] = (),
    before: Callable[[Path], None] | None = None,
) -> Path:
    """`write_dataset` for what need not be held in memory: the same bytes as for the same dataset in one dict.

    Everything may come from generators. They are read in the order info, licenses, images, annotations, categories,
    each to its end before the next, so categories may be known only once all annotations are. Errors that a generator
    raises go on as they are, and the old file stays. `before` is as for `write_atomically`. Raises `OutputError` as
    `write_dataset` does.
    """
    return write_json(
        path,
        {
            "info": dict(info),
            "licenses": list(licenses),
            "images": iter(images),
            "annotations": iter(annotations),
            "categories": iter(categories),
        },
        before=before,
    )


def write_json(
    path: str | os.PathLike[str], content: Mapping[str, Any], *, before: Callable[[Path], None] | None = None
) -> Path:
    """Write an object as UTF-8 JSON in one line and return where; iterators among its values are written as lists, an
    item at a time. The same content gives the same bytes. Raises `OutputError` where it is no JSON or the file cannot
    be written. `before` as for `write_atomically`.
    """
    return write_atomically(path, json_chunks(Path(path), content), before=before)


def json_chunks(path: Path, content: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of `write_json`, piece by piece."""
    yield b"{"
    for position, (key, value) in enumerate(content.items()):
        yield (b", " if position else b"") + _json(path, str(key)) + b": "
        if isinstance(value, (list, tuple, Iterator)):
            yield b"["
            for number, item in enumerate(value):
                yield (b", " if number else b"") + _json(path, item)
            yield b"]"
        else:
            yield _json(path, value)
    yield b"}\n"


def _json(path: Path, value: Any) -> bytes:
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise OutputError(f"{path}: the dataset is not JSON: {error}") from error
    # File names that are no Unicode reach Python as lone surrogates; the escape of one is JSON and reads back the same.
    return text.encode("utf-8", "backslashreplace")


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


__all__ = [
    "DESCRIPTION",
    "DatasetBuilder",
    "Encoding",
    "Json",
    "annotations_of",
    "build_dataset",
    "image_entry",
    "read_dataset",
    "read_json",
    "write_dataset",
]


def build_dataset(
    segmentations: Iterable[Segmentation],
    *,
    queries: Sequence[str] | None = None,
    encoding: Encoding = "rle",
    supercategory: str = "thing",
    provenance: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Json:
    """A COCO dataset, all of it plain numbers, text, lists and dicts, one image entry for each segmentation.

    Category ids are 1..N in the order of `queries`, by default the order in which the segmentations asked for them.
    Annotation ids count from 1, `iscrowd` is 0, `bbox` is tight. Images in which nothing was found stay, empty masks
    are dropped. The `score` is SAM's, times presence where that is used. Each annotation's `attributes` say how its
    mask came about: query, points as [x, y, label, similarity] in pixels of the original image, SAM's score of each
    candidate and the one chosen, map score, presence, and `provenance` (models and their hashes, version, settings:
    whatever it takes to do it again).
    `info` is added to the file's own. Segmentations may come from a generator; only what is written is kept of them.

    Raises `OutputError` where two images share an id or a file name, an image has no file name, a mask is not of its
    image's size, a query is not among `queries` or something is no JSON.
    """
    builder = DatasetBuilder(
        queries=queries, encoding=encoding, supercategory=supercategory, provenance=provenance, info=info
    )
    for segmentation in segmentations:
        builder.add(segmentation)
    return builder.build()


class DatasetBuilder:
    """`build_dataset` step by step, for runs that may be stopped: `add` what was found, `build` at any time. Only what
    is written is kept, so the memory of a long run does not grow with its images. Not for several threads."""

    def __init__(
        self,
        *,
        queries: Sequence[str] | None = None,
        encoding: Encoding = "rle",
        supercategory: str = "thing",
        provenance: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """As for `build_dataset`."""
        check_encoding(encoding)
        self._encoding, self._supercategory = encoding, supercategory
        self._categories = {query: number for number, query in enumerate(dict.fromkeys(queries or ()), start=1)}
        self._is_closed = queries is not None
        self._origin = plain_json("provenance", provenance) if provenance else None
        self._info = dataset_info(info)
        self._images: dict[int, Json] = {}
        self._names: set[str] = set()
        self._annotations: list[Json] = []

    def add(self, segmentation: Segmentation) -> None:
        """Take in one image and what was found in it, all of it or, where an `OutputError` is raised, nothing."""
        entry = image_entry(segmentation.image)
        if entry["id"] in self._images or entry["file_name"] in self._names:
            raise OutputError(
                f"two images have the id {entry['id']} or the file name {entry['file_name']!r}; give each its own, "
                f"as in load_image(path, image_id=2, file_name='b/one.png')"
            )
        categories = dict(self._categories)
        if not self._is_closed:
            for query in segmentation.maps.queries:
                categories.setdefault(query, len(categories) + 1)
        found = annotations_of(segmentation, categories, encoding=self._encoding, provenance=self._origin)
        self._annotations += numbered(found, first=len(self._annotations) + 1, image_id=entry["id"])
        self._categories, self._images[entry["id"]] = categories, entry
        self._names.add(entry["file_name"])

    def build(self) -> Json:
        """The dataset of what was added so far."""
        return {
            "info": dict(self._info),
            "licenses": [],
            "images": list(self._images.values()),
            "annotations": list(self._annotations),
            "categories": category_entries(self._categories, self._supercategory),
        }


def write_dataset(dataset: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a dataset as UTF-8 JSON and return where. The same dataset gives the same bytes.

    Whoever reads the file meanwhile sees the old one or the new one, never half of it. The folder is made if missing.
    Raises `OutputError` where it cannot be written. `stream.write_stream` does the same for what is not in memory.
    """
    return write_json(path, dataset)
