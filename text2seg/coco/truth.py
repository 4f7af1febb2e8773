"""What is truly in an image: the one opinion on which annotations are things and which are crowds.

Whatever is scored, tuned or explained against a COCO file asks here. A crowd (`iscrowd` 1) is a region that shows a
category without telling its things apart: it makes no category present, and its pixels count neither for nor against a
prediction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from text2seg.coco.reader import Dataset, Entry, check_references, kept_categories, size_of
from text2seg.coco.rle import Rle, area, checked_rle, intersection
from text2seg.errors import DatasetError


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One annotation: `category` is the ground truth's id, `area` what the file says or else pixels (always pixels for
    predictions), `attributes` as in the file."""

    category: int
    rle: Rle
    area: float
    crowd: bool = False
    score: float = 1.0
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """One image of a ground truth and what is there, in the order of the file. `hw` is (rows, columns)."""

    image_id: int
    file_name: str
    hw: tuple[int, int]
    truth: tuple[Region, ...]

    def true_of(self, category: int) -> list[Rle]:
        """True masks of a category that are neither crowds nor empty."""
        return [each.rle for each in self.truth if each.category == category and not each.crowd and area(each.rle)]

    def crowds_of(self, category: int) -> list[Rle]:
        """Crowd regions of a category."""
        return [each.rle for each in self.truth if each.category == category and each.crowd]

    def present(self) -> list[int]:
        """Categories with at least one true pixel outside of crowds, ascending."""
        return sorted({each.category for each in self.truth if not each.crowd and area(each.rle)})


def names_of(truth: Dataset) -> dict[int, str]:
    """The names of the categories by id, ascending, each name once."""
    kept = set(kept_categories(truth).values())
    return {entry["id"]: entry["name"] for entry in sorted(truth["categories"], key=_id) if entry["id"] in kept}


def shown_in(truth: Dataset) -> Iterator[Shown]:
    """The images of a ground truth, by id.

    Raises:
        DatasetError: an image has no size, a mask cannot be read, or an annotation is of nothing in the file.
    """
    check_references(truth)
    kept = kept_categories(truth)
    annotations: dict[int, list[Entry]] = {}
    for annotation in truth["annotations"]:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    for entry in sorted(truth["images"], key=_id):
        hw = size_of(entry, truth.name)
        regions = regions_of(annotations.get(entry["id"], ()), hw, kept, truth.name)
        yield Shown(entry["id"], entry["file_name"], hw, regions)


def regions_of(
    annotations: Iterable[Entry], hw: tuple[int, int], kept: Mapping[int, int], name: str
) -> tuple[Region, ...]:
    """Checked annotations of one image of `hw`; `kept` as `kept_categories` gives it. Raises `DatasetError`, naming
    the file (`name`) and the annotation, where a mask cannot be read."""
    regions = []
    for annotation in annotations:
        rle = mask_in(annotation, hw, f"{name}: annotation {annotation['id']}")
        given = annotation.get("area")
        pixels = area(rle) if given is None else given
        regions.append(Region(kept[annotation["category_id"]], rle, pixels, annotation.get("iscrowd") == 1))
    return tuple(regions)


def mask_in(annotation: Entry, hw: tuple[int, int], where: str) -> Rle:
    """The mask of an annotation. Raises `DatasetError`, which begins with `where`, if it has none that can be read."""
    try:
        return checked_rle(annotation.get("segmentation"), hw)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error


def common(one: Rle, other: Rle) -> int:
    """Pixels that two masks share."""
    return area(intersection(one, other))


def iou_outside(predicted: Rle, truth: Rle, ignored: Rle | None) -> float:
    """IoU of two masks where pixels of `ignored`, which is crowds, that are not in the truth do not count; 0 where both
    are empty."""
    shared, predicted_area = common(predicted, truth), area(predicted)
    if ignored is not None:
        inside = intersection(predicted, ignored)
        predicted_area -= area(inside) - common(inside, truth)
    together = predicted_area + area(truth) - shared
    return shared / together if together else 0.0


def _id(entry: Entry) -> int:
    number: int = entry["id"]
    return number
