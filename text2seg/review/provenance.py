"""What an annotation records of how it was made, read back. What is missing is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from text2seg.coco.lookup import find_image
from text2seg.coco.reader import attributes_of, short
from text2seg.coco.rle import is_number
from text2seg.config import Settings, settings_from_dict
from text2seg.errors import CheckpointError, ImageError, OntologyError, SettingsError, Text2SegError
from text2seg.io.images import load_image
from text2seg.onnx.manifest import read_manifest
from text2seg.ontology import Category, Ontology, queries_of
from text2seg.ontology.schema import check_entry
from text2seg.queries import Query, parse_query
from text2seg.records import Box, Image, PointPrompts
from text2seg.runtime import PrecisionName

Json = Mapping[str, Any]

MOST_POINTS = 1000
"""The time and memory of SAM's decoder grow with the square of the number of points."""
OTHER_GRAPHS = "find those that made it, or label anew"


def annotation_with(dataset: Json, annotation_id: int) -> Json:
    ids = [annotation["id"] for annotation in dataset["annotations"]]
    if annotation_id in ids:
        return cast(Json, dataset["annotations"][ids.index(annotation_id)])
    there = f"its ids go from {min(ids)} to {max(ids)}" if ids else "it has none"
    raise Text2SegError(f"there is no annotation {annotation_id} in the dataset; {there}")


def points_of(annotation: Json) -> PointPrompts:
    """The recorded points, and the box if there is one, to the bit: JSON has the shortest number that is the same
    float32. A rough mask is not recorded."""
    attributes = attributes_of(annotation)
    rows, box = attributes.get("points"), attributes.get("box_prompt", [])
    if not isinstance(rows, list) or not rows:
        raise Text2SegError(
            f"annotation {annotation['id']} records no points, so it cannot be made again; only those that text2seg "
            "found can"
        )
    if len(rows) > MOST_POINTS or not all(_are_numbers(row, 4) and row[2] in (0, 1) for row in rows):
        raise Text2SegError(
            f"the points of annotation {annotation['id']} cannot be read: at most {MOST_POINTS} of four numbers each, "
            "x, y, 1 or 0, and similarity"
        )
    if box != [] and not _are_numbers(box, 4):
        raise Text2SegError(
            f"the box of annotation {annotation['id']} cannot be read: {short(box)} is not four numbers"
        )
    table = np.array(rows, np.float64)
    return PointPrompts(
        table[:, :2].astype(np.float32),
        table[:, 2].astype(np.int8),
        table[:, 3].astype(np.float32),
        np.array(box, np.float32).reshape(-1, 4),
    )


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(is_number, values))


def chosen_of(annotation: Json) -> int:
    chosen = annotation["attributes"].get("chosen_candidate")
    if type(chosen) is not int or chosen < 0:
        raise Text2SegError(f"annotation {annotation['id']} does not record which of SAM's candidates it is")
    return chosen


def view_of(annotation: Json, image_hw: tuple[int, int]) -> Box | None:
    """The tile that it was seen in, none where that was the whole image."""
    recorded = annotation["attributes"].get("view_xywh")
    if recorded is None:
        return None
    if not _are_numbers(recorded, 4):
        raise Text2SegError(f"the tile of annotation {annotation['id']} cannot be read: {short(recorded)}")
    x, y, width, height = (int(side) for side in recorded)
    if min(x, y) < 0 or min(width, height) < 1 or x + width > image_hw[1] or y + height > image_hw[0]:
        raise Text2SegError(f"the tile of annotation {annotation['id']} is not in the image: {recorded!r}")
    return x, y, width, height


def query_of(annotation: Json, dataset: Json) -> Query:
    """What the annotation was asked for: in the words of the ontology in the dataset's info, else its own."""
    name = str(annotation["attributes"].get("query", ""))
    return next((query for query in ontology_queries(dataset) if query.name == name), None) or parse_query(name)


def ontology_queries(dataset: Json) -> tuple[Query, ...]:
    """The categories in the dataset's info as queries; none where it has none. Raises `OntologyError` where they are
    not as text2seg writes them."""
    recorded = dataset["info"].get("ontology")
    if not isinstance(recorded, Mapping):
        return ()
    entries = recorded.get("categories")
    if not isinstance(entries, list):
        raise OntologyError("the ontology in the dataset's info has no list of categories")
    categories = []
    for number, values in enumerate(entries, start=1):
        known = {key: value for key, value in values.items() if key != "id"} if isinstance(values, Mapping) else {}
        entry, faults = check_entry(known)
        if entry is None or not entry.queries:
            (way, words), *_ = [*faults, (("queries",), "is missing")]
            raise OntologyError(f"category {number} of the ontology in the dataset's info: {way[0]} {words}")
        categories.append(
            Category(
                entry.name,
                number,
                entry.supercategory,
                tuple(entry.queries),
                tuple(entry.negative_queries),
                entry.threshold,
                entry.presence,
                entry.min_area,
                entry.colour or None,
            )
        )
    return queries_of(Ontology(tuple(categories))) if categories else ()


def settings_of(annotation_id: int, origin: Json) -> Settings:
    recorded = origin.get("settings")
    if not isinstance(recorded, Mapping):
        raise Text2SegError(f"annotation {annotation_id} does not record how it was made, so it cannot be made again")
    return settings_from_dict(recorded)


def precision_of(origin: Json, graphs: str | os.PathLike[str] | None) -> PrecisionName:
    """What precision to load the models in.

    Raises:
        SettingsError: it or the runtime is not known, or graphs are given and none were used, or the other way round.
        CheckpointError: other graphs are given.
    """
    runtime = origin.get("runtime", "torch")
    if runtime not in ("torch", "onnx"):
        raise SettingsError(f"the annotation records no runtime that is known: {short(runtime)}; torch and onnx are")
    if runtime == "onnx":
        if graphs is None:
            raise SettingsError("the annotation was made by ONNX graphs; say with --graphs FOLDER where they lie")
        if dict(read_manifest(Path(graphs)).files) != origin.get("graphs"):
            raise CheckpointError(
                f"the annotation was made by other ONNX graphs than those in {graphs}; {OTHER_GRAPHS}"
            )
        return "auto"  # graphs have one, which their hashes stand for
    if graphs is not None:
        raise SettingsError("the annotation was not made by ONNX graphs; leave out --graphs")
    precision = origin.get("precision")
    if precision not in get_args(PrecisionName):
        raise SettingsError(f"the annotation records no precision that is known: {short(precision)}")
    return cast(PrecisionName, precision)


def compiled_of(origin: Json) -> bool:
    """Whether SAM was compiled; raises `SettingsError` where something else is recorded than yes or no."""
    compiled = origin.get("compiled", False)
    if not isinstance(compiled, bool):
        raise SettingsError(f"the annotation must record compiled as true or false, got {short(compiled)}")
    return compiled


def image_of(annotation: Json, dataset: Json, file: Path | None, images: str | os.PathLike[str] | None) -> Image:
    entry = next(each for each in dataset["images"] if each["id"] == annotation["image_id"])
    path = find_image(entry["file_name"], file, images, dataset["info"])
    image = load_image(path, image_id=entry["id"], file_name=entry["file_name"])
    height, width = image.hw
    if (entry.get("height"), entry.get("width")) != image.hw:
        theirs = f"{entry.get('width')} x {entry.get('height')}"
        raise ImageError(f"{path} is {width} x {height} pixels, the dataset says {theirs}: not the same image")
    return image
