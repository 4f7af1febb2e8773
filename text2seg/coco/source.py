"""A COCO dataset as converters want it: each picture with its own annotations, and a name that no other one has."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from text2seg.coco import polygon
from text2seg.coco.lookup import find_picture
from text2seg.coco.reader import check_dataset, check_references, size_of
from text2seg.coco.results import mask_of
from text2seg.errors import ImageError, Text2SegError
from text2seg.files import write_atomically


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotation: the number of its class, counted from 0, and its mask in either form."""

    label: int
    annotation: Mapping[str, Any]
    hw: tuple[int, int]
    dataset: str = ""
    """What the dataset is called in messages."""

    def mask(self) -> NDArray[np.bool_]:
        """bool[H, W]. Raises `Text2SegError`, naming the annotation, where it has none."""
        return mask_of(self.annotation, self.hw, self.dataset)

    def polygons(self) -> Sequence[Sequence[float]]:
        """The annotation's own polygons [x1, y1, …], or those that give its RLE back exactly. Raises as `mask`."""
        mask = self.mask()  # also checks the polygons
        own = self.annotation["segmentation"]
        return own if isinstance(own, list) else polygon.encode(mask)


@dataclass(frozen=True, slots=True)
class Picture:
    """One image: where its pixels are, if asked for, and `stem`, its name in the output (POSIX, without suffix)."""

    file_name: str
    stem: str
    hw: tuple[int, int]
    things: tuple[Thing, ...]
    pixels: Path | None

    @property
    def suffix(self) -> str:
        """.jpg, .png, …"""
        return PurePosixPath(self.file_name).suffix

    def copy_to(self, folder: Path) -> None:
        """Copy the pixels as they are to `folder`, under the name in the output. Raises `ImageError` where they cannot
        be read, `OutputError` where they cannot be written."""
        if self.pixels is not None:
            write_atomically(folder / f"{self.stem}{self.suffix}", _chunks(self.pixels))


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset to convert. `names` are its classes, each once; `crowds` counts the annotations left out, because they
    are crowds: regions that scoring ignores, for which the other formats have no word."""

    names: tuple[str, ...]
    pictures: tuple[Picture, ...]
    crowds: int

    @property
    def things(self) -> int:
        """Annotations in all pictures."""
        return sum(len(picture.things) for picture in self.pictures)


def source_of(dataset: Mapping[str, Any], images: Path | None = None, *, reserved: Collection[str] = ()) -> Source:
    """Sort a dataset by pictures.

    Output names are the file names without what leads out of the output folder and without the folders that all share;
    of two that would still be the same the later gets a number.

    Args:
        dataset: as `read_dataset` gives it.
        images: the folder that the file names start from; pictures must be there. Without it there are no pixels.
        reserved: folder names that may not be in output names.

    Raises:
        ImageError: a picture is not in `images`.
        Text2SegError: something in the dataset is missing or belongs to nothing.
    """
    checked = check_dataset(dataset, "the dataset")
    check_references(checked)
    names = tuple(dict.fromkeys(category["name"] for category in checked["categories"]))
    places = {name: place for place, name in enumerate(names)}
    labels = {category["id"]: places[category["name"]] for category in checked["categories"]}
    entries = {entry["id"]: (entry["file_name"], size_of(entry, checked.name)) for entry in checked["images"]}
    things: dict[int, list[Thing]] = {number: [] for number in entries}
    crowds = 0
    for annotation in checked["annotations"]:
        number = annotation["image_id"]
        if annotation.get("iscrowd"):
            crowds += 1
        else:
            things[number].append(
                Thing(labels[annotation["category_id"]], annotation, entries[number][1], checked.name)
            )
    stems = _stems([file_name for file_name, _ in entries.values()], reserved)
    pictures = tuple(
        Picture(file_name, stem, hw, tuple(things[number]), images and find_picture(file_name, images=images))
        for (number, (file_name, hw)), stem in zip(entries.items(), stems, strict=True)
    )
    return Source(names, pictures, crowds)


def _stems(file_names: Sequence[str], reserved: Collection[str]) -> list[str]:
    paths = [
        [
            f"{part}_" if part in reserved else part
            for part in PurePosixPath(name).parts
            if part not in ("/", "//", "..")
        ]
        for name in file_names
    ]
    shared = _shared([path[:-1] for path in paths])
    taken: set[str] = set()
    stems = []
    for name, path in zip(file_names, paths, strict=True):
        if not path:
            raise Text2SegError(f"an image has the file name {name!r}, which is none")
        wanted = PurePosixPath(*path[shared:-1], PurePosixPath(path[-1]).stem).as_posix()
        stem, number = wanted, 1
        while stem.casefold() in taken:  # there are disks to which A.txt and a.txt are the same
            number += 1
            stem = f"{wanted}_{number}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _shared(folders: Sequence[Sequence[str]]) -> int:
    """How many folders all paths begin with."""
    return next(
        (at for at, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1),
        min(map(len, folders), default=0),
    )


def _chunks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error
