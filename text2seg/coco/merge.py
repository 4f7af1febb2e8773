"""Several COCO dataset files as one: the shards of a labelling job, or jobs over different folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from text2seg.coco.dataset import Json, read_dataset, write_dataset
from text2seg.coco.reader import check_dataset, check_references
from text2seg.errors import DatasetError
from text2seg.io.names import identity


def merge_files(paths: Sequence[Path], output: Path) -> Json:
    """Merge dataset files and write the result; gives it back. Raises `DatasetError` as `merge` does."""
    merged = merge([read_dataset(path) for path in paths], names=[str(path) for path in paths])
    write_dataset(merged, output)
    return merged


def merge(datasets: Sequence[Mapping[str, Any]], *, names: Sequence[str]) -> Json:
    """One dataset of all images and annotations, sorted by image id; annotations are numbered anew from 1.

    The categories must be the same in all, ids included. `info` is the first one's, with the failures of all.

    Raises:
        DatasetError: categories differ, or an image id or file name, in any spelling, is in two of them; `names` says
            in which. Within one of them images may share a name, but no id.
    """
    checked = [check_dataset(dataset, name) for name, dataset in zip(names, datasets, strict=True)]
    first = checked[0]
    images: dict[int, Json] = {}
    origin: dict[object, str] = {}
    annotations: list[Json] = []
    failures: list[Any] = []
    for name, dataset in zip(names, checked, strict=True):
        if dataset["categories"] != first["categories"]:
            raise DatasetError(f"{name} has other categories than {names[0]}; label both with one ontology")
        check_references(dataset)
        own: set[object] = set()  # of this file, which may hold several images of one name
        for image in dataset["images"]:
            for key in (("id", image["id"]), ("name", identity(image["file_name"]))):
                if key in origin:
                    shown = image["id"] if key[0] == "id" else image["file_name"]
                    raise DatasetError(
                        f"image {shown!r} is in {origin[key]} and in {name}; merge the shards of one job, or number "
                        "the images apart"
                    )
                own.add(key)
            images[image["id"]] = image
        origin |= dict.fromkeys(own, name)
        annotations += dataset["annotations"]
        failed = dataset["info"].get("failures")
        failures += failed if isinstance(failed, list) else []
    annotations.sort(key=lambda annotation: (annotation["image_id"], annotation["id"]))
    info = dict(first["info"])
    if failures:
        info["failures"] = sorted(failures, key=_file_name)
    licenses = first.get("licenses")
    return {
        "info": info,
        "licenses": licenses if isinstance(licenses, list) else [],
        "images": [images[number] for number in sorted(images)],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)],
        "categories": first["categories"],
    }


def _file_name(failure: Any) -> str:
    return str(failure.get("file_name")) if isinstance(failure, Mapping) else ""
