"""COCO dataset files: built from what was found, written so that every tool opens them, read back."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, cast

import numpy as np

from text2seg.coco import polygon, rle
from text2seg.errors import OutputError, Text2SegError
from text2seg.records import Image, Segment, Segmentation

Encoding = Literal["rle", "polygon"]
Json = dict[str, Any]

DESCRIPTION = "Found by text2seg"

_log = logging.getLogger(__name__)


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
    are dropped. The `score` is SAM's. Each annotation's `attributes` say how its mask came about: query, points as
    [x, y, label, similarity] in pixels of the original image, SAM's score of each candidate and the one chosen, map
    score, presence, and `provenance` (models and their hashes, version, settings: whatever it takes to do it again).
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
    is written is kept, so the memory of a long run does not grow with its pictures. Not for several threads."""

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
        if encoding not in ("rle", "polygon"):
            raise OutputError(f"masks are written as rle or polygon, got {encoding!r}")
        self._encoding, self._supercategory = encoding, supercategory
        self._categories = {query: number for number, query in enumerate(dict.fromkeys(queries or ()), start=1)}
        self._is_closed = queries is not None
        self._origin = _plain("provenance", provenance) if provenance else None
        self._info = _plain("info", info or {})
        self._images: dict[int, Json] = {}
        self._names: set[str] = set()
        self._annotations: list[Json] = []

    def add(self, segmentation: Segmentation) -> None:
        """Take in one image and what was found in it, all of it or, where an `OutputError` is raised, nothing."""
        entry = _image_entry(segmentation.image)
        if entry["id"] in self._images or entry["file_name"] in self._names:
            raise OutputError(
                f"two images have the id {entry['id']} or the file name {entry['file_name']!r}; give each its own, "
                f"as in load_image(path, image_id=2, file_name='b/one.png')"
            )
        categories = dict(self._categories)
        if not self._is_closed:
            for query in segmentation.maps.queries:
                categories.setdefault(query, len(categories) + 1)
        annotations: list[Json] = []
        for segment in segmentation.segments:
            if segment.query not in categories:
                raise OutputError(f"{segment.query!r} is not one of the queries {list(categories)}")
            if segment.mask.shape != segmentation.image.hw:
                raise OutputError(
                    f"{entry['file_name']}: the mask of {segment.query!r} is {list(segment.mask.shape)}, "
                    f"the image {list(segmentation.image.hw)}"
                )
            if not segment.mask.any():
                _log.info("%s: an empty mask of %r is left out", entry["file_name"], segment.query)
                continue
            number = len(self._annotations) + len(annotations) + 1
            annotations.append(self._annotation(segment, number, entry["id"], categories[segment.query]))
        self._categories, self._images[entry["id"]] = categories, entry
        self._names.add(entry["file_name"])
        self._annotations += annotations

    def _annotation(self, segment: Segment, number: int, image_id: int, category_id: int) -> Json:
        attributes = _attributes(segment) | ({"provenance": self._origin} if self._origin else {})
        encode = rle.encode if self._encoding == "rle" else polygon.encode
        return {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": encode(segment.mask),
            "area": segment.area,
            "bbox": list(segment.box_xywh),
            "iscrowd": 0,
            "score": attributes["score"],
            "attributes": attributes,
        }

    def build(self) -> Json:
        """The dataset of what was added so far."""
        return {
            "info": {"description": DESCRIPTION, "exif_orientation": "applied", **self._info},
            "licenses": [],
            "images": list(self._images.values()),
            "annotations": list(self._annotations),
            "categories": [
                {"id": number, "name": query, "supercategory": self._supercategory}
                for query, number in self._categories.items()
            ],
        }


def write_dataset(dataset: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a dataset as UTF-8 JSON and return where. The same dataset gives the same bytes.

    Whoever reads the file meanwhile sees the old one or the new one, never half of it. The folder is made if missing.
    Raises `OutputError` where it cannot be written.
    """
    path = Path(path)
    try:
        text = json.dumps(dataset, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OutputError(f"{path}: the dataset is not JSON: {error}") from error
    # File names that are no Unicode reach Python as lone surrogates; the escape of one is JSON and reads back the same.
    _replace(path, text.encode("utf-8", "backslashreplace") + b"\n")
    return path


def read_dataset(path: str | os.PathLike[str]) -> Json:
    """A COCO dataset file as a dict with at least `images`, `annotations` and `categories`, all lists.

    Raises `Text2SegError`, naming the file, where it is missing, may not be read, is no JSON or no COCO dataset.
    """
    path = Path(path)
    try:
        dataset = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Text2SegError(f"{path}: there is no such file") from None
    except OSError as error:
        raise Text2SegError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # broken UTF-8 and broken JSON are both ValueErrors
        raise Text2SegError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(dataset, dict):
        raise Text2SegError(f"{path} is not a COCO dataset: it should hold an object, not a {type(dataset).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset.get(key), list):
            raise Text2SegError(f"{path} is not a COCO dataset: it has no list of {key}")
    return dataset


def _image_entry(image: Image) -> Json:
    if not image.file_name:
        raise OutputError(
            f"image {image.image_id} has no file name, and a COCO file lists images by it; "
            "give it one, as in load_image(pixels, file_name='one.png')"
        )
    height, width = image.hw
    name = PurePath(image.file_name).as_posix()
    return {"id": int(image.image_id), "file_name": name, "width": width, "height": height}


def _attributes(segment: Segment) -> Json:
    points = segment.points
    return {
        "query": segment.query,
        "score": _number(segment.sam_score),
        "sam_score": _number(segment.sam_score),
        "map_score": _number(segment.map_score),
        "presence": _number(segment.presence),
        "points": [
            [_number(x), _number(y), int(label), _number(similarity)]
            for (x, y), label, similarity in zip(points.xy, points.labels, points.similarity, strict=True)
        ],
        "chosen_candidate": int(segment.chosen),
        "candidate_scores": [_number(score) for score in segment.candidates.scores],
    }


def _number(value: float | np.floating) -> float:
    """The shortest plain number that is the same float32: 0.9, not 0.8999999761581421."""
    return float(str(np.float32(value)))


def _plain(what: str, value: Mapping[str, Any]) -> Json:
    """A copy that is nothing but JSON: settings become dicts, paths text, numpy scalars numbers."""

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


def _replace(path: Path, content: bytes) -> None:
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a file, so it cannot be written over")
    temporary = path.with_name(f".text2seg-{secrets.token_hex(8)}.tmp")  # same folder, so that the move is atomic
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except PermissionError as error:
        raise OutputError(f"{path}: no permission to write in {path.parent}") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"{path} cannot be written: {path.parent} is not a folder") from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error
