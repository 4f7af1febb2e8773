"""Pascal VOC's segmentation format: images whose palette numbers are the classes, or the things, of their pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from text2seg.coco import rle
from text2seg.coco.source import Source, SourceImage
from text2seg.errors import OutputError
from text2seg.io.files import write_atomically

MOST = 254
"""Numbers in a palette beside 0, which is background, and 255, which VOC keeps for pixels to be ignored."""


def write_voc(source: Source, output: Path) -> list[str]:
    """Write `SegmentationClass/`, `SegmentationObject/`, `labelmap.txt`, the list of images and, where there are
    pixels, `JPEGImages/`; gives what the format could not keep.

    A pixel has one class here. Where masks overlap, the smaller one lies on top. Raises as
    `write_atomically`, and `OutputError` for more classes, or things in an image, than a palette has numbers.
    """
    _check_names(source.names)
    hidden, gone = 0, 0
    for image in source.images:
        classes, things, covered = _painted(image)
        hidden += covered
        gone += len(image.things) - len(np.setdiff1d(things, 0))
        write_atomically(output / "SegmentationClass" / f"{image.stem}.png", [_png(classes)])
        write_atomically(output / "SegmentationObject" / f"{image.stem}.png", [_png(things)])
        image.copy_to(output / "JPEGImages")
    colours = zip(("background", *source.names), palette().tolist(), strict=False)
    lines = ["# label:color_rgb:parts:actions", *(f"{name}:{r},{g},{b}::" for name, (r, g, b) in colours)]
    write_atomically(output / "labelmap.txt", [_lines(lines)])
    stems = [image.stem for image in source.images]
    write_atomically(output / "ImageSets" / "Segmentation" / "train.txt", [_lines(stems)])
    notes = []
    if hidden:
        notes.append(f"{hidden} pixels belong to several masks; they went to the smallest")
    if gone:
        notes.append(f"{gone} of {source.things} masks lie wholly under smaller ones and are gone")
    return notes


def palette() -> NDArray[np.uint8]:
    """VOC's own colours, uint8[256, 3]: the bits of a number, dealt in turn to red, green and blue, highest first."""
    numbers = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[(numbers >> (3 * bit + channel)) & 1 == 1, channel] += 128 >> bit
    return colours


def _painted(image: SourceImage) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Class and thing of each pixel, uint8[H, W] each, and how many pixels several masks wanted."""
    if len(image.things) > MOST:
        raise OutputError(
            f"{image.file_name} has {len(image.things)} masks, a palette only {MOST} numbers; "
            "convert to yolo-seg or labelme"
        )
    classes, things = np.zeros(image.hw, np.uint8), np.zeros(image.hw, np.uint8)
    contested = np.zeros(image.hw, np.bool_)
    # Areas come from the run lengths, so that only one mask at a time is held in pixels.
    largest_first = sorted(range(len(image.things)), key=lambda number: -rle.area(image.things[number].rle))
    for number in largest_first:
        mask = image.things[number].mask()
        contested |= mask & (things > 0)
        classes[mask] = image.things[number].label + 1
        things[mask] = number + 1
    return classes, things, int(contested.sum())


def _png(numbers: NDArray[np.uint8]) -> bytes:
    image = PillowImage.fromarray(numbers).convert("L")
    image.putpalette(palette().tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _check_names(names: tuple[str, ...]) -> None:
    if len(names) > MOST:
        raise OutputError(f"{len(names)} categories, a palette has only {MOST} numbers; convert to yolo-seg or labelme")
    for name in names:
        if ":" in name or "\n" in name or name.startswith("#") or name != name.strip() or name in ("", "background"):
            raise OutputError(
                f"a labelmap.txt cannot hold the category {name!r}: give it a name that is not empty nor background, "
                "without : in it, # or spaces around it, or convert to yolo-seg or labelme"
            )


def _lines(lines: list[str]) -> bytes:
    """Names of files that are no Unicode keep the bytes that they have on disk."""
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
