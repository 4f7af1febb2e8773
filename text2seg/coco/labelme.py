"""LabelMe's format: a JSON file beside each image, with a shape per polygon."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from text2seg.coco.json_file import write_json
from text2seg.coco.source import ExportFormat, Source, SourceImage
from text2seg.io.names import parts_of

VERSION = "5.5.0"
"""Version of LabelMe that the files name."""


def write_labelme(source: Source, output: Path) -> tuple[list[str], int]:
    """Write a JSON file per image and, if images are copied, the image beside it. Nothing is lost, so return no notes.

    The parts of one mask share a `group_id`. Raises as `write_json`.
    """
    for image in source.images:
        image.copy_to(output)
        write_json(output / f"{image.stem}.json", _document(image, source.names))
    return [], 0


def _document(image: SourceImage, names: tuple[str, ...]) -> dict[str, Any]:
    height, width = image.hw
    beside = PurePosixPath(image.stem) if image.pixels else PurePosixPath(*parts_of(image.file_name))
    shapes: list[dict[str, Any]] = []
    for number, instance in enumerate(image.instances, start=1):
        polygons = instance.polygons()
        for polygon in polygons:
            shapes.append(
                {
                    "label": names[instance.label],
                    "points": [[float(x), float(y)] for x, y in zip(polygon[::2], polygon[1::2], strict=True)],
                    "group_id": number if len(polygons) > 1 else None,
                    "description": "",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
            )
    return {
        "version": VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": f"{beside.name}{image.suffix}" if image.pixels else beside.name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


FORMAT = ExportFormat(
    name="labelme",
    writes="a JSON file of polygons beside each image",
    loses="– (parts share a `group_id`)",
    write=write_labelme,
    suffix=".json",
)
