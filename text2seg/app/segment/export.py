"""What a visitor takes home: a COCO file, masks, cut-outs and an overlay, alone or together in a zip."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from text2seg.app.segment.pictures import encoded
from text2seg.app.segment.session import Visit
from text2seg.coco.dataset import build_dataset, json_chunks
from text2seg.errors import Text2SegError
from text2seg.ontology import ontology_of_queries
from text2seg.records import Segment
from text2seg.render import cut_out, overlay

Kind = Literal["coco", "masks", "cutouts", "overlay", "all"]
Numbers = frozenset[int]
File = tuple[str, bytes]
"""A name, in a zip with folders, and what is in the file."""


def exported(visit: Visit, kind: Kind, numbers: Numbers) -> File:
    """One file: a JSON, a PNG, or a zip where there are several.

    Args:
        numbers: the pieces that are wanted; where they are none, only a COCO file and an overlay can be had.

    Raises:
        Text2SegError: nothing was looked for yet, or there is nothing to export.
    """
    files = list(_MAKERS[kind](visit, numbers))
    if not files:
        raise Text2SegError("there is no segment to export; show at least one")
    if len(files) == 1:
        name, content = files[0]
        return f"{_stem(visit)}_{name.rpartition('/')[2]}", content
    folder, packed = f"{_stem(visit)}_{kind if kind != 'all' else 'text2seg'}", io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            how = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED  # a PNG is packed already
            archive.writestr(f"{folder}/{name}", content, how)
    return f"{folder}.zip", packed.getvalue()


def dataset_of(visit: Visit, numbers: Numbers) -> dict[str, Any]:
    """A COCO dataset of these pieces. Attributes of an annotation say if a person made or corrected it (`by_hand`) or
    accepted it (`accepted`)."""
    segmentation = visit.segmentation(numbers)
    dataset = build_dataset(
        [segmentation],
        queries=list(segmentation.maps.queries),
        provenance=visit.models.provenance(visit.settings) if visit.models else None,
        info={"ontology": ontology_of_queries(visit.queries).to_dict()},
    )
    pieces = [piece for piece in visit.document.pieces if piece.number in numbers and piece.segment.area]
    for annotation, piece in zip(dataset["annotations"], pieces, strict=True):
        annotation["attributes"] |= {"by_hand": piece.by_hand, "accepted": piece.accepted}
    return dataset


def _coco(visit: Visit, numbers: Numbers) -> Iterator[File]:
    yield "dataset.json", b"".join(json_chunks(Path("dataset.json"), dataset_of(visit, numbers)))


def _overlay(visit: Visit, numbers: Numbers) -> Iterator[File]:
    yield "overlay.png", encoded(overlay(visit.segmentation(numbers)))


def _masks(visit: Visit, numbers: Numbers) -> Iterator[File]:
    for name, segment in _named(visit, numbers):
        yield f"masks/{name}_mask.png", encoded(segment.mask.view(np.uint8) * 255)


def _cutouts(visit: Visit, numbers: Numbers) -> Iterator[File]:
    image = visit.segmentation().image
    for name, segment in _named(visit, numbers):
        yield f"cutouts/{name}_cutout.png", encoded(cut_out(segment, image, crop=True))


def _all(visit: Visit, numbers: Numbers) -> Iterator[File]:
    for make in (_coco, _overlay, _masks, _cutouts):
        yield from make(visit, numbers)


_MAKERS: dict[Kind, Callable[[Visit, Numbers], Iterator[File]]] = {
    "coco": _coco,
    "masks": _masks,
    "cutouts": _cutouts,
    "overlay": _overlay,
    "all": _all,
}


def _named(visit: Visit, numbers: Numbers) -> Iterator[tuple[str, Segment]]:
    """Segments, each with a name of its own that any disk can hold: "red-car-2"."""
    counts: dict[str, int] = {}
    for segment in visit.document.segments(numbers):
        name = _plain(segment.query) or "segment"
        counts[name] = counts.get(name, 0) + 1
        yield f"{name}-{counts[name]}", segment


def _stem(visit: Visit) -> str:
    return _plain(Path(visit.segmentation().image.file_name).stem) or "picture"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")[:60]
