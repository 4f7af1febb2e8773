"""YOLO's segmentation format: a text file for each image, a line for each polygon, corners as shares of the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from text2seg.coco.source import Source, SourceImage
from text2seg.io.files import write_atomically

RESERVED = ("images", "labels")
"""Readers find the labels of an image by turning the last folder `images` of its path into `labels`."""


def write_yolo(source: Source, output: Path) -> list[str]:
    """Write `data.yaml`, `labels/` and, where there are pixels, `images/`; gives what the format could not keep.

    A line is `class x1 y1 x2 y2 …`. YOLO has one polygon for a thing, so a mask of several parts takes several lines.
    An image without things has an empty file. Raises as `write_atomically`.
    """
    split = 0
    for image in source.images:
        lines = []
        for thing in image.things:
            polygons = thing.polygons()
            split += len(polygons) > 1
            lines += [f"{thing.label} {_shares(polygon, image)}\n" for polygon in polygons]
        write_atomically(output / "labels" / f"{image.stem}.txt", [line.encode() for line in lines])
        image.copy_to(output / "images")
    names = "".join(
        f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"  # YAML takes JSON's texts
        for number, name in enumerate(source.names)
    )
    text = f"train: images\nval: images\nnames:{'' if names else ' {}'}\n{names}"
    write_atomically(output / "data.yaml", [text.encode("utf-8", "backslashreplace")])
    if not split:
        return []
    return [f"{split} of {source.things} masks have several parts or holes; each of their parts is a line of its own"]


def _shares(polygon: Sequence[float], image: SourceImage) -> str:
    """The corners as shares of width and height; eight digits are less than a thousandth of a pixel."""
    height, width = image.hw
    return " ".join(f"{number / (height if at % 2 else width):.8g}" for at, number in enumerate(polygon))
