"""How annotations were made: recorded in a dataset by `segment` and `label`, read back by `report` and `replay`.

A dataset's `info` records the run: version, models and settings (`provenance`), image folder and ontology. The
`attributes` of an annotation record its query, points and candidate, and its own `provenance` if it differs from that
of the dataset or the dataset has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from text2seg._version import __version__
from text2seg.coco.json_file import plain_number, short
from text2seg.coco.lookup import relative_folder
from text2seg.coco.reader import attributes_of
from text2seg.coco.rle import is_number
from text2seg.config import Encoding, Settings, settings_from_dict
from text2seg.errors import OntologyError, SettingsError, Text2SegError
from text2seg.io.storage import Place
from text2seg.ontology import Ontology, ontology_from_dict, queries_of
from text2seg.queries import Query, parse_query
from text2seg.records import Box, PointPrompts, Segment

Json = Mapping[str, Any]

LONGEST_NAME = 120
"""Longest recorded name that is shown."""

MAX_POINTS = 1000
"""Limit of points per annotation: time and memory of SAM's decoder grow with the square of their number."""


# ---- writing


def run_info(
    provenance: Mapping[str, Any], *, folder: Place, dataset: Place, ontology: Ontology, **more: Any
) -> dict[str, Any]:
    """Return what a dataset's `info` records of the run that made it.

    Args:
        provenance: models and settings, as `Text2Seg.provenance` returns them.
        folder: folder of the images; recorded relative to the dataset file.
        dataset: the dataset file that is written.
        ontology: categories with the wordings that were searched for.
        more: further entries.
    """
    return {
        "version": __version__,
        "folder": relative_folder(folder, dataset),
        "provenance": provenance,
        "ontology": ontology.to_dict(),
        **more,
    }


def encoding_entry(encoding: Encoding, polygon_tolerance: float) -> dict[str, float]:
    """Return what a dataset's `info` records of how masks are written: nothing if they are exact."""
    return {"polygon_tolerance": polygon_tolerance} if encoding == "polygon" and polygon_tolerance else {}


def attributes_for(segment: Segment, score: float) -> dict[str, Any]:
    """Return the `attributes` of a segment's annotation: everything that `replay` needs to reproduce its mask."""
    points = segment.points
    attributes: dict[str, Any] = {
        "query": segment.query,
        "score": plain_number(score),
        "sam_score": plain_number(segment.sam_score),
        "map_score": plain_number(segment.map_score),
        "presence": plain_number(segment.presence),
        **({} if segment.region_presence is None else {"region_presence": plain_number(segment.region_presence)}),
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


# ---- reading


def provenance_of(annotation: Json, dataset: Json) -> Json:
    """Return the provenance of an annotation: its own or else the dataset's; empty if neither is recorded."""
    for holder in (annotation.get("attributes"), dataset.get("info")):
        found = holder.get("provenance") if isinstance(holder, Mapping) else None
        if isinstance(found, Mapping):
            return found
    return {}


def models_in(dataset: Json) -> str:
    """Return for people which models made a dataset, such as "CLIP ViT-B/16 with SAM vit_b; presence not calibrated";
    empty if it records none."""
    recorded = provenance_of({}, dataset)
    parts = [(label, recorded.get(kind)) for kind, label in (("clip", "CLIP"), ("sam", "SAM"), ("sam3", "SAM 3"))]
    named = [(label, part.get("name")) for label, part in parts if isinstance(part, Mapping)]
    models = " with ".join(f"{label} {name[:LONGEST_NAME]}" for label, name in named if isinstance(name, str))
    calibrated = calibration_in(dataset)
    if not models or calibrated is None:
        return models
    return f"{models}; presence {'calibrated' if calibrated else 'not calibrated'}"


def calibration_in(dataset: Json) -> bool | None:
    """Return whether the presence in a dataset is calibrated; None if it does not say."""
    presence = provenance_of({}, dataset).get("presence")
    calibrated = presence.get("calibrated") if isinstance(presence, Mapping) else None
    return calibrated if isinstance(calibrated, bool) else None


def annotation_with_id(dataset: Json, annotation_id: int) -> Json:
    """Return the annotation with an id. Raises `Text2SegError` if the dataset has no such annotation."""
    ids = [annotation["id"] for annotation in dataset["annotations"]]
    if annotation_id in ids:
        return cast(Json, dataset["annotations"][ids.index(annotation_id)])
    there = f"its ids are {min(ids)} to {max(ids)}" if ids else "it has none"
    raise Text2SegError(f"there is no annotation {annotation_id} in the dataset; {there}")


def points_of(annotation: Json) -> PointPrompts:
    """Return the recorded points, and the box if there is one, equal to the bit. Rough masks are not recorded.

    Raises:
        Text2SegError: neither points nor a box are recorded, there are over `MAX_POINTS`, or points or box cannot be
            read.
    """
    attributes = attributes_of(annotation)
    rows, box = attributes.get("points"), attributes.get("box_prompt", [])
    if not isinstance(rows, list) or not (rows or box):
        raise Text2SegError(
            f"annotation {annotation['id']} records no points, so it cannot be reproduced; only annotations of "
            "text2seg can"
        )
    if len(rows) > MAX_POINTS or not all(_are_numbers(row, 4) and row[2] in (0, 1) for row in rows):
        raise Text2SegError(
            f"the points of annotation {annotation['id']} cannot be read: at most {MAX_POINTS} of four numbers each, "
            "x, y, 1 or 0, and similarity"
        )
    if box != [] and not _are_numbers(box, 4):
        raise Text2SegError(
            f"the box of annotation {annotation['id']} cannot be read: {short(box)} is not four numbers"
        )
    table = np.array(rows, np.float64).reshape(-1, 4)
    return PointPrompts(
        table[:, :2].astype(np.float32),
        table[:, 2].astype(np.int8),
        table[:, 3].astype(np.float32),
        np.array(box, np.float32).reshape(-1, 4),
    )


def chosen_of(annotation: Json) -> int:
    """Return the index of the chosen candidate. Raises `Text2SegError` if it is not recorded."""
    chosen = attributes_of(annotation).get("chosen_candidate")
    if type(chosen) is not int or chosen < 0:
        raise Text2SegError(f"annotation {annotation['id']} does not record which of SAM's candidates it is")
    return chosen


def view_of(annotation: Json, image_hw: tuple[int, int]) -> Box | None:
    """Return the tile (x, y, width, height) in which the segment was found, or None if it was the whole image.

    Raises:
        Text2SegError: the tile cannot be read or is not inside the image.
    """
    recorded = attributes_of(annotation).get("view_xywh")
    if recorded is None:
        return None
    if not _are_numbers(recorded, 4):
        raise Text2SegError(f"the tile of annotation {annotation['id']} cannot be read: {short(recorded)}")
    x, y, width, height = (int(side) for side in recorded)
    if min(x, y) < 0 or min(width, height) < 1 or x + width > image_hw[1] or y + height > image_hw[0]:
        raise Text2SegError(f"the tile of annotation {annotation['id']} is not in the image: {recorded!r}")
    return x, y, width, height


def query_of(annotation: Json, dataset: Json) -> Query:
    """Return the query of an annotation: with the wordings of the dataset's ontology, or else the text of the query."""
    name = str(attributes_of(annotation).get("query", ""))
    return next((query for query in recorded_queries(dataset) if query.name == name), None) or parse_query(name)


def recorded_queries(dataset: Json) -> tuple[Query, ...]:
    """Return the queries of the ontology in a dataset's `info`; empty if it has none.

    Raises:
        OntologyError: the ontology is damaged.
    """
    recorded = dataset["info"].get("ontology")
    if not isinstance(recorded, Mapping) or recorded.get("categories") == []:
        return ()
    try:
        return queries_of(ontology_from_dict(recorded))
    except OntologyError as error:
        raise OntologyError(f"the ontology in the dataset's info cannot be read: {error}") from error


def settings_of(annotation_id: int, provenance: Json) -> Settings:
    """Return the recorded settings. Raises `Text2SegError` if there are none, `SettingsError` if they are unknown."""
    recorded = provenance.get("settings")
    if not isinstance(recorded, Mapping):
        raise Text2SegError(f"annotation {annotation_id} does not record how it was made, so it cannot be reproduced")
    return settings_from_dict(recorded)


def compiled_of(provenance: Json) -> bool:
    """Return whether SAM was compiled. Raises `SettingsError` if the recorded value is not true or false."""
    compiled = provenance.get("compiled", False)
    if not isinstance(compiled, bool):
        raise SettingsError(f"the annotation must record compiled as true or false, got {short(compiled)}")
    return compiled


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(is_number, values))
