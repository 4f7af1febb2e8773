"""Which image and which category of the predictions is which of the ground truth's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from text2seg.errors import DatasetError

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
    """Equal names first; else one name must be the other with more folders in front."""
    exact: dict[str, list[int]] = {}
    last: dict[str, list[int]] = {}
    for number, entry in truth.items():
        path = _path(entry, number)
        exact.setdefault(path.as_posix(), []).append(number)
        last.setdefault(path.name, []).append(number)
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for number, entry in predicted.items():
        path = _path(entry, number)
        found = exact.get(path.as_posix()) or [
            other for other in last.get(path.name, []) if _is_tail(path, _path(truth[other], other))
        ]
        if len(found) > 1:
            raise DatasetError(f"{path.as_posix()!r} could be any of the ground truth's images {found}")
        if taken.intersection(found):
            raise DatasetError(f"two images of the predictions go by the name {path.as_posix()!r}")
        if found:
            pairs[number] = found[0]
            taken.add(found[0])
    return pairs


def _path(entry: Json, number: int) -> PurePosixPath:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise DatasetError(f"image {number} has no file name, so it cannot be matched by it")
    return PurePosixPath(name.replace("\\", "/"))


def _is_tail(one: PurePosixPath, other: PurePosixPath) -> bool:
    short, long = sorted((one.parts, other.parts), key=len)
    return long[-len(short) :] == short


def _differ(one: Any, other: Any) -> bool:
    """Whether two file names have different last parts; a missing name differs from nothing."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return PurePosixPath(one).name != PurePosixPath(other).name
