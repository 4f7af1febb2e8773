"""COCO dataset files: built from what was found, written so that every tool opens them, read back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from text2seg.coco.entries import (
    DESCRIPTION,
    Encoding,
    Json,
    annotations_of,
    category_entries,
    check_encoding,
    dataset_info,
    image_entry,
    numbered,
    plain_json,
)
from text2seg.coco.stream import write_json
from text2seg.errors import DatasetError, OutputError
from text2seg.files import read_file
from text2seg.records import Segmentation
from text2seg.storage import Url, read_bytes

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


def read_dataset(path: str | os.PathLike[str] | Url) -> Json:
    """A COCO dataset file as a dict with at least `images`, `annotations` and `categories`, all lists.

    Raises `DatasetError`, naming the file, where it is missing, may not be read, is no JSON or no COCO dataset.
    """
    dataset = read_json(path)
    if not isinstance(dataset, dict):
        raise DatasetError(f"{path} is not a COCO dataset: it should hold an object, not a {type(dataset).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(dataset.get(key), list):
            raise DatasetError(f"{path} is not a COCO dataset: it has no list of {key}")
    return dataset


def read_json(path: str | os.PathLike[str] | Url) -> Any:
    """What a JSON file holds. Raises `DatasetError`, naming the file, where it is missing, may not be read or is no
    JSON."""
    try:
        content = read_bytes(path, DatasetError) if isinstance(path, Url) else read_file(path, DatasetError)
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # broken UTF-8 and broken JSON are both ValueErrors
        raise DatasetError(f"{path} is not a JSON file: {error}") from error
