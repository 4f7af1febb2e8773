"""COCO datasets of text2seg's results: entries made from records, whole datasets, their files, and merging."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import rle, simplify
from text2seg.coco.json_file import Json, plain_json, write_json
from text2seg.coco.lookup import common_folder
from text2seg.coco.marks import Marks, Verdict, find_marked, read_marks
from text2seg.coco.provenance import attributes_for, encoding_entry, provenance_of
from text2seg.coco.reader import (
    Dataset,
    attributes_of,
    check_dataset,
    check_references,
    read_dataset,
    score_of,
    size_of,
)
from text2seg.coco.shards import KEY as SHARDS
from text2seg.coco.shards import missing_shards, shards_in
from text2seg.config import POLYGON_TOLERANCE, Encoding
from text2seg.errors import DatasetError, OutputError, Text2SegError
from text2seg.io.names import canonical_name
from text2seg.records import Image, Segment, Segmentation

__all__ = [
    "DESCRIPTION",
    "DatasetBuilder",
    "annotations_of",
    "build_dataset",
    "read_dataset",
    "write_dataset",
]

ENCODERS: Mapping[Encoding, Callable[[NDArray[np.bool_], float], Any]] = {
    "rle": lambda mask, _: rle.encode(mask),
    "polygon": simplify.encode,
}
"""Functions that encode a mask bool[H, W] with a tolerance in pixels, for each value of `--segmentation`. A new
encoding needs a file like `polygon.py`, a row here and its name in `text2seg.config.Encoding`."""

DESCRIPTION = "Found by text2seg"
"""`info.description` of all files."""

_log = logging.getLogger(__name__)


def image_entry(image: Image) -> Json:
    """Return `id`, `file_name` (with POSIX slashes), `width` and `height` of an image.

    Raises:
        OutputError: the image has no file name.
    """
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
    polygon_tolerance: float = POLYGON_TOLERANCE,
    provenance: Mapping[str, Any] | None = None,
) -> list[Json]:
    """Return the segments of an image as annotations without `id` and `image_id`, which `numbered` adds.

    Args:
        segmentation: result of one image; empty masks are dropped.
        categories: category id of each query.
        encoding: how masks are written.
        polygon_tolerance: see `simplify.encode`.
        provenance: put into `attributes` without a copy; must be plain JSON (see `plain_json`).

    Raises:
        OutputError: a mask has another size than the image, a query is not among the categories, or the encoding is
            unknown.
    """
    check_encoding(encoding)
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
        if not segment.area:
            _log.info("%s: an empty mask of %r is left out", name, segment.query)
            continue
        attributes = attributes_for(segment, segment_score(segment, segmentation)) | (
            {"provenance": provenance} if provenance else {}
        )
        annotations.append(
            {
                "category_id": int(categories[segment.query]),
                "segmentation": ENCODERS[encoding](segment.mask, polygon_tolerance),
                "area": segment.area,
                "bbox": list(segment.box_xywh),
                "iscrowd": 0,
                "score": attributes["score"],
                "attributes": attributes,
            }
        )
    return annotations


def numbered(annotations: list[Json], *, first: int, image_id: int) -> list[Json]:
    """Return annotations with their `id`, counted from `first`, and `image_id` as first keys."""
    return [{"id": number, "image_id": image_id, **each} for number, each in enumerate(annotations, start=first)]


def category_entries(categories: Mapping[str, int], supercategory: str = "thing") -> list[Json]:
    """Return the file's list of categories from the id of each name."""
    return [{"id": number, "name": name, "supercategory": supercategory} for name, number in categories.items()]


def dataset_info(info: Mapping[str, Any] | None = None) -> Json:
    """Return the file's `info`: description, EXIF orientation, and the given entries (see `provenance.run_info`).

    Raises:
        OutputError: an entry is not JSON.
    """
    return {"description": DESCRIPTION, "exif_orientation": "applied", **plain_json("info", info or {})}


def check_encoding(encoding: str) -> None:
    """Raise `OutputError` unless the encoding is one of `ENCODERS`."""
    if encoding not in tuple(ENCODERS):  # compared, not hashed: a program may send any JSON value
        raise OutputError(f"masks are written as {' or '.join(ENCODERS)}, got {encoding!r}")


def segment_score(segment: Segment, segmentation: Segmentation) -> float:
    """Return the score of a segment: SAM's score, times `mean_presence` if a presence threshold is used. SAM's score
    alone rates the mask, not what it shows."""
    threshold = dict(zip(segmentation.maps.queries, segmentation.thresholds, strict=False)).get(segment.query, 0)
    return segment.sam_score * segment.mean_presence if threshold > 0 else segment.sam_score


def build_dataset(
    segmentations: Iterable[Segmentation],
    *,
    queries: Sequence[str] | None = None,
    encoding: Encoding = "rle",
    polygon_tolerance: float = POLYGON_TOLERANCE,
    supercategory: str = "thing",
    provenance: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Json:
    """Build a COCO dataset of plain numbers, text, lists and dicts, with one image for each segmentation.

    Annotation ids count from 1, `iscrowd` is 0, `bbox` is tight. Images without segments are kept; empty masks are
    dropped. The `score` is SAM's score, times presence if a presence threshold is used. The `attributes` of an
    annotation hold what `replay` needs: query, points as [x, y, label, similarity] in pixels of the original image,
    SAM's score of each candidate, the chosen candidate, map score, presence and `provenance`.

    Args:
        segmentations: results of images, for example from a generator; they are not kept in memory.
        queries: names of the categories, with ids 1..N. Default: queries of the segmentations in order of appearance.
        encoding: how masks are written.
        polygon_tolerance: see `simplify.encode`.
        supercategory: supercategory of all categories.
        provenance: models with hashes, version and settings, as `Text2Seg.provenance` returns them.
        info: further entries of the file's `info`.

    Raises:
        OutputError: two images share an id or a file name, an image has no file name, a mask has another size than its
            image, a query is not among `queries`, or a value is not JSON.
    """
    builder = DatasetBuilder(
        queries=queries,
        encoding=encoding,
        polygon_tolerance=polygon_tolerance,
        supercategory=supercategory,
        provenance=provenance,
        info=info,
    )
    for segmentation in segmentations:
        builder.add(segmentation)
    return builder.build()


class DatasetBuilder:
    """`build_dataset` step by step, for runs that may be stopped: `add` results, `build` at any time.

    Keeps only what is written, so memory grows with annotations, not with pixels. Not safe for several threads.
    """

    def __init__(
        self,
        *,
        queries: Sequence[str] | None = None,
        encoding: Encoding = "rle",
        polygon_tolerance: float = POLYGON_TOLERANCE,
        supercategory: str = "thing",
        provenance: Mapping[str, Any] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """See `build_dataset`."""
        check_encoding(encoding)
        self._encoding, self._tolerance, self._supercategory = encoding, polygon_tolerance, supercategory
        self._categories = {query: number for number, query in enumerate(dict.fromkeys(queries or ()), start=1)}
        self._is_closed = queries is not None
        self._origin = plain_json("provenance", provenance) if provenance else None
        self._info = dataset_info({**(info or {}), **encoding_entry(encoding, polygon_tolerance)})
        self._images: dict[int, Json] = {}
        self._names: set[str] = set()
        self._annotations: list[Json] = []

    def add(self, segmentation: Segmentation) -> None:
        """Add the result of one image. If it raises `OutputError`, nothing is added."""
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
        found = annotations_of(
            segmentation,
            categories,
            encoding=self._encoding,
            polygon_tolerance=self._tolerance,
            provenance=self._origin,
        )
        self._annotations += numbered(found, first=len(self._annotations) + 1, image_id=entry["id"])
        self._categories, self._images[entry["id"]] = categories, entry
        self._names.add(entry["file_name"])

    def add_entries(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> None:
        """Add an image and its annotations as an earlier `build` gave them, with new ids."""
        number = len(self._images) + 1
        plain = [{key: value for key, value in each.items() if key not in ("id", "image_id")} for each in annotations]
        self._annotations += numbered(plain, first=len(self._annotations) + 1, image_id=number)
        self._images[number] = {**image, "id": number}
        self._names.add(image["file_name"])

    def build(self) -> Json:
        """Return the dataset of all results added so far."""
        return {
            "info": dict(self._info),
            "licenses": [],
            "images": list(self._images.values()),
            "annotations": list(self._annotations),
            "categories": category_entries(self._categories, self._supercategory),
        }


def write_dataset(dataset: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write a dataset as UTF-8 JSON and return the path. The same dataset gives the same bytes.

    The file is replaced in one step, so readers never see half of it. A missing folder is created. For datasets that
    do not fit in memory see `write_stream`.

    Raises:
        OutputError: the file cannot be written.
    """
    return write_json(path, dataset)


def write_stream(
    path: str | os.PathLike[str],
    *,
    info: Mapping[str, Any],
    categories: Iterable[Mapping[str, Any]],
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    licenses: Sequence[Mapping[str, Any]] = (),
    before_replacing: Callable[[Path], None] | None = None,
) -> Path:
    """Write a dataset from generators, without holding it in memory. The bytes are those of `write_dataset`.

    The generators are read in the order licenses, images, annotations, categories, each to its end before the next;
    so the categories may depend on the annotations. An error in a generator is passed on, and the old file is kept.

    Args:
        before_replacing: see `write_atomically`.

    Raises:
        OutputError: the file cannot be written.
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
        before_replacing=before_replacing,
    )


def results_of(dataset: Mapping[str, Any]) -> list[Json]:
    """Return a dataset's annotations as COCO results {image_id, category_id, segmentation, score}, in their order.

    Masks become RLE, the only form that pycocotools' `loadRes` reads. Results have no `bbox`: with it, pycocotools
    would use the areas of the boxes, and AP by size would be wrong.

    Raises:
        Text2SegError: an annotation has no score, refers to an image that is not listed, or its mask cannot be read.
    """
    checked = check_dataset(dataset, "the dataset")
    check_references(checked)
    sizes = {image["id"]: size_of(image, checked.name) for image in checked["images"]}
    results = []
    for annotation in checked["annotations"]:
        score = score_of(annotation)
        if score is None:
            raise Text2SegError(
                f"annotation {annotation['id']} has no score, so it is not a prediction; "
                "use a file with predictions of text2seg or another model"
            )
        results.append(
            {
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "segmentation": rle.rle_of(annotation, sizes[annotation["image_id"]], checked.name),
                "score": score,
            }
        )
    return results


# ---- merging: the shards of a labelling job, or jobs over different folders


def merge_files(paths: Sequence[Path], output: Path, *, marks: Sequence[Path] = ()) -> tuple[Json, list[Marks]]:
    """Merge dataset files, each with the marks of a person that belong to it, and write the result.

    The folder of the images is kept, relative to the result, if all files name the same one.

    Returns:
        The merged dataset, and the marks of each file of marks.

    Raises:
        DatasetError: a file cannot be read, the marks belong to none of the datasets, or as `merge`.
        OutputError: the result cannot be written.
    """
    if twice := next((path for place, path in enumerate(paths) if path in paths[:place]), None):
        raise DatasetError(f"{twice} is given twice")
    datasets = [read_dataset(path) for path in paths]
    reviewed: dict[str, Marks] = {}
    found = []
    for path in marks:
        file = read_marks(path)
        dataset = find_marked(file, str(path), datasets)
        found.append(file.marks_of(dataset, str(path)))
        reviewed.setdefault(dataset.name, Marks()).update(found[-1])
    for place, each in enumerate(datasets):
        if each.name in reviewed:
            datasets[place] = Dataset(reviewed[each.name].apply(each), each.name)
    merged = merge(datasets, names=[str(path) for path in paths])
    merged["info"].pop("folder", None)
    if folder := common_folder(paths, [each["info"] for each in datasets], output):
        merged["info"]["folder"] = folder
    write_dataset(merged, output)
    return merged, found


def merge(datasets: Sequence[Mapping[str, Any]], *, names: Sequence[str]) -> Json:
    """Merge datasets with the same categories (ids included) into one.

    Images and annotations are sorted by image id; annotations get new ids from 1. `info` is that of the first dataset,
    with the failures, the reviewed images and, if some are missing, the shards of all.

    Args:
        datasets: the datasets; they are not changed.
        names: name of each in messages.

    Raises:
        DatasetError: categories differ, or two datasets share an image id or a file name in any spelling.
    """
    checked = [check_dataset(dataset, name) for name, dataset in zip(names, datasets, strict=True)]
    first = checked[0]
    images: dict[int, Json] = {}
    origin: dict[object, str] = {}
    annotations: list[Json] = []
    failures: list[Any] = []
    for name, dataset in zip(names, checked, strict=True):
        if dataset["categories"] != first["categories"]:
            raise DatasetError(f"{name} has other categories than {names[0]}; label both with the same ontology")
        check_references(dataset)
        keys: set[object] = set()  # one file may hold several images of one name
        for image in dataset["images"]:
            for key in (("id", image["id"]), ("name", canonical_name(image["file_name"]))):
                if key in origin:
                    shown = image["id"] if key[0] == "id" else image["file_name"]
                    raise DatasetError(
                        f"image {shown!r} is in {origin[key]} and in {name}; only shards of one job can be merged. To "
                        "have several folders in one dataset, label the folder that contains them"
                    )
                keys.add(key)
            images[image["id"]] = image
        origin |= dict.fromkeys(keys, name)
        annotations += _with_provenance(dataset, first)
        failed = dataset["info"].get("failures")
        failures += failed if isinstance(failed, list) else []
    annotations.sort(key=lambda annotation: (annotation["image_id"], annotation["id"]))
    info = dict(first["info"])
    if failures:
        info["failures"] = sorted(failures, key=_file_name)
    if review := _reviewed_images(checked):
        info["review"] = review
    info.pop(SHARDS, None)
    if missing_shards(shards := shards_in(each["info"] for each in checked)):
        info[SHARDS] = shards
    licenses = first.get("licenses")
    return {
        "info": info,
        "licenses": licenses if isinstance(licenses, list) else [],
        "images": [images[number] for number in sorted(images)],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
        "categories": first["categories"],
    }


def _with_provenance(dataset: Dataset, first: Dataset) -> list[Json]:
    """Return the annotations; with the provenance of their own file if it is not that of the first file, whose `info`
    is kept."""
    made_by = dataset["info"].get("provenance")
    if made_by == first["info"].get("provenance") or not isinstance(made_by, Mapping):
        return list(dataset["annotations"])
    return [
        {**each, "attributes": {**attributes_of(each), "provenance": provenance_of(each, dataset)}}
        for each in dataset["annotations"]
    ]


def _reviewed_images(datasets: Sequence[Dataset]) -> Json:
    """Return the names of accepted and rejected images; empty without a review. The ids of a review are left out,
    because merging changes them: reviewed annotations have an attribute."""
    reviews = [each["info"]["review"] for each in datasets if isinstance(each["info"].get("review"), Mapping)]
    found: Json = {}
    for verdict in get_args(Verdict) if reviews else ():
        lists = [review[verdict] for review in reviews if isinstance(review.get(verdict), list)]
        found[verdict] = sorted({str(name) for names in lists for name in names})
    return found


def _file_name(failure: Any) -> str:
    return str(failure.get("file_name")) if isinstance(failure, Mapping) else ""
