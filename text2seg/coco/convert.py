"""COCO datasets in the formats of other tools."""

from __future__ import annotations

import filecmp
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from text2seg.coco import labelme, voc, yolo
from text2seg.coco.reader import Dataset
from text2seg.coco.source import Source, SourceImage, source_of
from text2seg.errors import ImageError, OutputError
from text2seg.io.files import (
    check_folder,
    check_not_input,
    entries,
    exists,
    folder_aside,
    is_dir,
    is_left_over,
    resolved,
)
from text2seg.io.images import measure

Format = Literal["yolo-seg", "voc-png", "labelme"]

WRITERS: dict[str, Callable[[Source, Path], list[str]]] = {
    "yolo-seg": yolo.write_yolo,
    "voc-png": voc.write_voc,
    "labelme": labelme.write_labelme,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written, and in `notes` what the format could not keep, a sentence each."""

    images: int
    annotations: int
    notes: tuple[str, ...]


def convert(
    dataset: Mapping[str, Any],
    to: Format,
    output: Path,
    *,
    images: Path | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write a COCO dataset in another format.

    Sub-folders of the file names are kept. The dataset may be anyone's; its crowds are left out, and what lies beyond
    the images is cut off.

    Args:
        dataset: as `read_dataset` gives it.
        to: yolo-seg, voc-png or labelme.
        output: a folder, new or empty.
        images: the folder that the file names start from; the images are then copied too.
        overwrite: write into a folder that is not empty: files of the same names are replaced, others stay.

    Raises:
        ImageError: an image is not there, or of another size than the dataset says.
        OutputError: the folder is not empty, cannot be written to, or the format cannot hold the dataset.
        Text2SegError: the dataset is not a whole one.
    """
    if to not in WRITERS:
        raise OutputError(f"there is no format {to!r}; there are {', '.join(WRITERS)}")
    suffix = {"yolo-seg": ".txt", "voc-png": ".png", "labelme": ".json"}[to]
    source = source_of(dataset, images, reserved=yolo.RESERVED if to == "yolo-seg" else (), suffix=suffix)
    for image in source.images:
        _check_pixels(image)
    _check_folder(output, overwrite=overwrite)
    with folder_aside(output) as folder:
        notes = [*source.outside, *WRITERS[to](source, folder)]
        _check_inputs(folder, output, dataset, source)
    if source.crowds:
        notes.append(f"{source.crowds} crowd annotations are left out")
    return Conversion(len(source.images), source.things, tuple(notes))


def _check_pixels(image: SourceImage) -> None:
    """Masks lie on images as they are when upright, so the sizes must agree there."""
    path = image.pixels
    if path is None:
        return
    (height, width), orientation = measure(path)
    if (height, width) != image.hw:
        raise ImageError(
            f"{path} is {width} x {height} pixels, the dataset says {image.hw[1]} x {image.hw[0]}; "
            "is it another image of the same name?"
        )
    if orientation != 1:
        _log.warning("%s is turned by its EXIF tag; the masks fit it upright, so use tools that heed the tag", path)


def _check_inputs(folder: Path, output: Path, dataset: Mapping[str, Any], source: Source) -> None:
    """Nothing that is read is written over, but an image may be copied onto itself."""
    inputs = [Path(dataset.name)] if isinstance(dataset, Dataset) else []
    taken = {resolved(each) for each in (*inputs, *(image.pixels for image in source.images)) if each is not None}
    for path in sorted(folder.rglob("*")):
        place = output / path.relative_to(folder)
        if path.is_file() and resolved(place) in taken and not filecmp.cmp(path, place, shallow=False):
            check_not_input(place, [place])


def _check_folder(output: Path, *, overwrite: bool) -> None:
    if exists(output, OutputError) and not is_dir(output, OutputError):
        raise OutputError(f"{output} is a file, not a folder; choose another --output")
    check_folder(output)
    occupied = is_dir(output, OutputError) and not all(map(is_left_over, entries(output, OutputError)))
    if occupied and not overwrite:
        raise OutputError(f"{output} is not empty; choose another --output, or --overwrite to write into it")
