"""YOLO's segmentation format: a text file per image, a line per polygon, corners relative to the image size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from text2seg.coco.source import ExportFormat, Source, SourceImage
from text2seg.io.writing import write_atomically


def write_yolo(source: Source, output: Path) -> tuple[list[str], int]:
    """Write `data.yaml`, `labels/` and, if images are copied, `images/`; return notes about losses. No mask is lost.

    A line is `class x1 y1 x2 y2 …`. YOLO has one polygon per object, so each part of a mask takes a line of its own.
    An image without objects has an empty file. Raises as `write_atomically`.
    """
    split = 0
    for image in source.images:
        lines = []
        for instance in image.instances:
            polygons = instance.polygons()
            split += len(polygons) > 1
            lines += [f"{instance.label} {_shares(polygon, image)}\n" for polygon in polygons]
        write_atomically(output / "labels" / f"{image.stem}.txt", [line.encode() for line in lines])
        image.copy_to(output / "images")
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"  # a JSON string is valid YAML
        for number, name in enumerate(source.names)
    )
    text = f"train: images\nval: images\nnames:{'' if names else ' {}'}\n{names}"
    write_atomically(output / "data.yaml", [text.encode("utf-8", "backslashreplace")])
    notes = []
    if split:
        notes.append(f"{split} of {source.count} masks have several parts or holes; each part becomes a line")
    if not any(image.pixels for image in source.images):
        notes.append("data.yaml names the folder images/, which is missing; give --images, or put the images there")
    notes.append(
        "data.yaml names the same images for training and validation; divide them before you train, or the scores say "
        "nothing about new images"
    )
    return notes, 0


def _shares(polygon: Sequence[float], image: SourceImage) -> str:
    """Return the corners divided by width and height; eight digits are exact to a thousandth of a pixel."""
    height, width = image.hw
    return " ".join(f"{number / (height if at % 2 else width):.8g}" for at, number in enumerate(polygon))


FORMAT = ExportFormat(
    name="yolo-seg",
    writes="a text file of polygons for each image (`data.yaml`, `labels/`, `images/`)",
    loses="parts of one mask: each becomes an object",
    write=write_yolo,
    suffix=".txt",
    # Readers find the labels of an image by replacing the last folder `images` of its path with `labels`.
    reserved=("images", "labels"),
)
