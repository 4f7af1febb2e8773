"""Ground truth of images, with one rule for crowds; scoring, tuning and explanations all read it here.

A crowd (`iscrowd` 1) is a region of many objects of a category that are not told apart. It does not make the category
present, and its pixels count neither for nor against a prediction.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from text2seg.coco.reader import Dataset, Entry, check_references, kept_categories, size_of
from text2seg.coco.rle import Rle, area, intersection, rle_of
from text2seg.errors import ImageError
from text2seg.grids import iou_of_areas
from text2seg.io.images import load_image
from text2seg.records import Image


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One annotation.

    `category` is an id of the ground truth. `area` is that of the file, or else in pixels (for predictions always in
    pixels). `attributes` are those of the file.
    """

    category: int
    rle: Rle
    area: float
    crowd: bool = False
    score: float = 1.0
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class TruthImage:
    """One image of a ground truth with its annotations in the order of the file. `hw` is (rows, columns)."""

    image_id: int
    file_name: str
    hw: tuple[int, int]
    truth: tuple[Region, ...]

    def true_of(self, category: int) -> list[Rle]:
        """Return the masks of a category that are neither crowds nor empty."""
        return [each.rle for each in self.truth if each.category == category and not each.crowd and area(each.rle)]

    def crowds_of(self, category: int) -> list[Rle]:
        """Return the crowd regions of a category."""
        return [each.rle for each in self.truth if each.category == category and each.crowd]

    def present(self) -> list[int]:
        """Return the ids of the categories that have a mask that is neither a crowd nor empty, ascending."""
        return sorted({each.category for each in self.truth if not each.crowd and area(each.rle)})

    def load(self, path: Path) -> Image:
        """Load the image from its file. Raises `ImageError` if it cannot be read or has another size."""
        image = load_image(path, image_id=self.image_id, file_name=self.file_name)
        if image.hw != self.hw:
            raise ImageError(f"{self.file_name} has {image.hw} rows and columns, but its dataset says {self.hw}")
        return image


def sha256_of_truth(truth: Mapping[str, Any]) -> str:
    """Return the hash by which a model card names the ground truth that it was calibrated on."""
    return hashlib.sha256(json.dumps(truth, sort_keys=True).encode()).hexdigest()


def category_names(truth: Dataset) -> dict[int, str]:
    """Return the names of the categories by id, ascending, each name once."""
    kept = set(kept_categories(truth).values())
    return {entry["id"]: entry["name"] for entry in sorted(truth["categories"], key=_id) if entry["id"] in kept}


def truth_images(truth: Dataset) -> Iterator[TruthImage]:
    """Yield the images of a ground truth, by ascending id.

    Raises:
        DatasetError: an image has no size, a mask cannot be read, or an annotation names an image or category that is
            not in the file.
    """
    check_references(truth)
    kept = kept_categories(truth)
    annotations: dict[int, list[Entry]] = {}
    for annotation in truth["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    for entry in sorted(truth["images"], key=_id):
        hw = size_of(entry, truth.name)
        regions = regions_of(annotations.get(entry["id"], ()), hw, kept, truth.name)
        yield TruthImage(entry["id"], entry["file_name"], hw, regions)


def regions_of(
    annotations: Iterable[Entry], hw: tuple[int, int], kept: Mapping[int, int], name: str
) -> tuple[Region, ...]:
    """Return the annotations of one image as regions.

    Args:
        annotations: checked annotations.
        hw: size of the image (rows, columns).
        kept: see `kept_categories`.
        name: name of the file, for messages.

    Raises:
        DatasetError: a mask cannot be read.
    """
    regions = []
    for annotation in annotations:
        rle = rle_of(annotation, hw, name)
        area_in_file = annotation.get("area")
        pixels = area(rle) if area_in_file is None else area_in_file
        regions.append(Region(kept[annotation["category_id"]], rle, pixels, annotation.get("iscrowd") == 1))
    return tuple(regions)


def iou_outside(predicted: Rle, truth: Rle, ignored: Rle | None) -> float:
    """Return the IoU of two masks without the pixels of `ignored` (crowds) that are not in the truth."""
    predicted_area = area(predicted)
    if ignored is not None:
        inside = intersection(predicted, ignored)
        predicted_area -= area(inside) - area(intersection(inside, truth))
    return iou_of_areas(area(intersection(predicted, truth)), predicted_area, area(truth))


def _id(entry: Entry) -> int:
    number: int = entry["id"]
    return number


def with_categories(truth: Mapping[str, Any], names: Container[str]) -> Mapping[str, Any]:
    """Return a ground truth with only the categories of these names and their annotations. All images stay."""
    categories = [entry for entry in truth["categories"] if entry["name"] in names]
    kept = {entry["id"] for entry in categories}
    annotations = [each for each in truth["annotations"] if each["category_id"] in kept]
    subset = {**truth, "categories": categories, "annotations": annotations}
    return Dataset(subset, truth.name) if isinstance(truth, Dataset) else subset
