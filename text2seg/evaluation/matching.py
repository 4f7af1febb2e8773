"""Which image and which category of the predictions is which of the ground truth's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from text2seg.errors import DatasetError
from text2seg.names import folded, pair_names, parts_of

Json = Mapping[str, Any]
Match = Literal["id", "file-name"]


def match_images(truth: Mapping[int, Json], predicted: Mapping[int, Json], match: Match) -> dict[int, int]:
    """The ground truth's image id for each image of the predictions that is known to it.

    Raises `DatasetError` where two that belong together differ in size or, by id, in file name, or where a file name
    could be of several images.
    """
    if match == "id":
        pairs = {number: number for number in predicted if number in truth}
    else:
        pairs = _by_file_name(truth, predicted)
    for number, true_number in pairs.items():
        ours, theirs = predicted[number], truth[true_number]
        for side in ("height", "width"):
            if ours.get(side) is not None and ours[side] != theirs[side]:
                raise DatasetError(
                    f"image {number}: its {side} is {ours[side]} in the predictions and {theirs[side]} in the ground "
                    "truth; predictions must be made on the pictures that were annotated, unscaled"
                )
        if match == "id" and _differ(ours.get("file_name"), theirs.get("file_name")):
            raise DatasetError(
                f"image {number} is {ours['file_name']!r} in the predictions and {theirs['file_name']!r} in the ground "
                "truth; if the files number their images differently, match by file name (--match file-name)"
            )
    return pairs


def match_categories(truth: Mapping[int, str], predicted: Mapping[int, str], match: Match) -> dict[int, int]:
    """The ground truth's category id for each category of the predictions that is known to it.

    Raises `DatasetError` where two of the same id have different names, unless matched by name.
    """
    if match == "file-name":
        ids = {name: number for number, name in truth.items()}
        return {number: ids[name] for number, name in predicted.items() if name in ids}
    pairs = {number: number for number in predicted if number in truth}
    for number in pairs:
        if predicted[number] != truth[number]:
            raise DatasetError(
                f"category {number} is {predicted[number]!r} in the predictions and {truth[number]!r} in the ground "
                "truth; match by file name and category name instead (--match file-name)"
            )
    return pairs


def _by_file_name(truth: Mapping[int, Json], predicted: Mapping[int, Json]) -> dict[int, int]:
    """By the rule of `text2seg.names`."""
    ours, theirs = list(predicted), list(truth)
    pairs = pair_names(
        [_name(predicted[number], number) for number in ours],
        [_name(truth[number], number) for number in theirs],
        ours="the predictions",
        theirs="the ground truth's images",
    )
    return {ours[place]: theirs[other] for place, other in pairs.items()}


def _name(entry: Json, number: int) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"image {number} has no file name, so it cannot be matched by it")
    return name


def _differ(one: Any, other: Any) -> bool:
    """Whether two file names have different last parts; a missing name differs from nothing."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return [folded(part) for part in parts_of(one)[-1:]] != [folded(part) for part in parts_of(other)[-1:]]
