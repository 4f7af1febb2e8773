"""Pascal VOC's segmentation format: palette images that hold the class, or the object, of each pixel."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.coco import rle
from text2seg.coco.source import ExportFormat, Source, SourceImage
from text2seg.errors import OutputError
from text2seg.io.writing import write_atomically

MAX_LABELS = 254
"""Limit of classes, and of objects in an image: a palette has 256 numbers; 0 is background, 255 is ignored in VOC."""


def write_voc(source: Source, output: Path) -> tuple[list[str], int]:
    """Write `SegmentationClass/`, `SegmentationObject/`, `labelmap.txt`, the list of images and, if images are copied,
    `JPEGImages/`; return notes about losses, and the number of lost masks.

    A pixel has one class. Where masks overlap, the smaller one is on top.

    Raises:
        OutputError: there are more than `MAX_LABELS` classes, or objects in an image; a class name cannot be written;
            or as `write_atomically`.
    """
    _check_names(source.names)
    hidden, gone = 0, 0
    for image in source.images:
        classes, objects, covered = _label_images(image)
        hidden += covered
        gone += len(image.instances) - len(np.setdiff1d(objects, 0))
        write_atomically(output / "SegmentationClass" / f"{image.stem}.png", [_png(classes)])
        write_atomically(output / "SegmentationObject" / f"{image.stem}.png", [_png(objects)])
        image.copy_to(output / "JPEGImages")
    colours = zip(("background", *source.names), palette().tolist(), strict=False)
    lines = ["# label:color_rgb:parts:actions", *(f"{name}:{r},{g},{b}::" for name, (r, g, b) in colours)]
    write_atomically(output / "labelmap.txt", [_lines(lines)])
    stems = [image.stem for image in source.images]
    write_atomically(output / "ImageSets" / "Segmentation" / "train.txt", [_lines(stems)])
    notes = []
    if hidden:
        notes.append(f"{hidden} pixels belong to several masks; the smallest mask has them")
    if gone:
        notes.append(f"{gone} of {source.count} masks are completely covered by smaller ones and are lost")
    return notes, gone


def palette() -> NDArray[np.uint8]:
    """Return VOC's colours uint8[256, 3]: bits of the number, in turn for red, green and blue, highest first."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[(numbers >> (3 * bit + channel)) & 1 == 1, channel] += 128 >> bit
    return colours


def _label_images(image: SourceImage) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Return class and object of each pixel, both uint8[H, W], and the number of pixels in several masks."""
    if len(image.instances) > MAX_LABELS:
        raise OutputError(
            f"{image.file_name} has {len(image.instances)} masks, a palette only {MAX_LABELS} numbers; "
            "convert to yolo-seg or labelme"
        )
    classes, objects = np.zeros(image.hw, np.uint8), np.zeros(image.hw, np.uint8)
    contested = np.zeros(image.hw, np.bool_)
    # Areas come from the RLE, so that only one mask at a time is decoded.
    largest_first = sorted(range(len(image.instances)), key=lambda number: -rle.area(image.instances[number].rle))
    for number in largest_first:
        mask = image.instances[number].mask()
        contested |= mask & (objects > 0)
        classes[mask] = image.instances[number].label + 1
        objects[mask] = number + 1
    return classes, objects, int(contested.sum())


def _png(numbers: NDArray[np.uint8]) -> bytes:
    image = PillowImage.fromarray(numbers).convert("L")
    image.putpalette(palette().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) > MAX_LABELS:
        raise OutputError(
            f"{len(names)} categories, a palette has only {MAX_LABELS} numbers; convert to yolo-seg or labelme"
        )
    for name in names:
        if ":" in name or "\n" in name or name.startswith("#") or name != name.strip() or name in ("", "background"):
            raise OutputError(
                f"a labelmap.txt cannot hold the category {name!r}: use a name other than background, without a colon, "
                "a leading # or spaces at its ends, or convert to yolo-seg or labelme"
            )


def _lines(lines: list[str]) -> bytes:
    """Return the lines as bytes; file names that are not Unicode keep their bytes."""
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


FORMAT = ExportFormat(
    name="voc-png",
    writes="Pascal VOC's images of classes and objects (`SegmentationClass/`, `SegmentationObject/`, `JPEGImages/`, …)",
    loses="overlaps (the smallest mask wins); more than 254 classes or masks; colons in names",
    write=write_voc,
    suffix=".png",
)
