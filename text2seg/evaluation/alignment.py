"""Match the images and categories of ground truth and predictions, once for all protocols."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from text2seg.coco.json_file import short
from text2seg.coco.reader import Dataset, attributes_of, check_dataset, check_results, kept_categories, score_of
from text2seg.coco.rle import area, is_number, rle_of
from text2seg.coco.truth import Region, TruthImage, category_names, truth_images
from text2seg.errors import DatasetError
from text2seg.io.names import counted, folded, listed, pair_names, parts_of

Json = Mapping[str, Any]
Match = Literal["id", "file-name"]


def match_images(truth: Mapping[int, Json], predicted: Mapping[int, Json], match: Match) -> dict[int, int]:
    """Return the id in the ground truth of each predicted image that the ground truth has.

    Raises `DatasetError` if matched images differ in size or (by id) in file name, or if a file name is ambiguous.
    """
    if match == "id":
        pairs = {number: number for number in predicted if number in truth}
    else:
        pairs = _by_file_name(truth, predicted)
    for number, true_number in pairs.items():
        ours, theirs = predicted[number], truth[true_number]
        if match == "id" and _differ(ours.get("file_name"), theirs.get("file_name")):
            raise DatasetError(
                f"image {number} is {ours['file_name']!r} in the predictions and {theirs['file_name']!r} in the ground "
                "truth; if the files number their images differently, match by file name (--match file-name)"
            )
        for side in ("height", "width"):
            if ours.get(side) is not None and ours[side] != theirs[side]:
                raise DatasetError(
                    f"image {number}: its {side} is {ours[side]} in the predictions and {theirs[side]} in the ground "
                    "truth; predictions must be made on the images that were annotated, unscaled"
                )
    return pairs


def match_categories(truth: Mapping[int, str], predicted: Mapping[int, str], match: Match) -> dict[int, int]:
    """Return the id in the ground truth of each predicted category that the ground truth has.

    Raises `DatasetError` if two categories with the same id have different names, unless matched by name.
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
    """Match images by the rule of `text2seg.io.names`."""
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
    """Return whether the last parts of two file names differ; a missing name differs from nothing."""
    if not isinstance(one, str) or not isinstance(other, str):
        return False
    return [folded(part) for part in parts_of(one)[-1:]] != [folded(part) for part in parts_of(other)[-1:]]


TRUTH, PREDICTED = "ground truth", "predictions"
MOST_CATEGORIES = 16_384
"""Largest number of categories; the semantic confusion matrix grows with its square."""
NUMBERED_DIFFERENTLY = "; if the files number theirs differently, match by names (--match file-name)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Scene(TruthImage):
    """One image of the ground truth with its predictions, in the order of the files.

    `presence` is the score of each category in this image, None if the predictions have none.
    """

    predicted: tuple[Region, ...] = ()
    presence: Mapping[int, float] | None = None

    def predicted_of(self, category: int) -> list[Region]:
        """Return the predictions of a category that are not empty."""
        return [each for each in self.predicted if each.category == category and area(each.rle)]


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """Ground truth and predictions under the ids of the ground truth. Categories (names by id) and images are in
    ascending order. `not_predicted` are the categories present that the dataset of predictions does not list."""

    categories: Mapping[int, str]
    scenes: tuple[Scene, ...]
    not_predicted: tuple[str, ...] = ()


def align(truth: Json, predicted: Json | Sequence[Json], *, match: Match = "id") -> Aligned:
    """Check two datasets and group their annotations by image. Neither is changed.

    Args:
        truth: A COCO dataset.
        predicted: A COCO dataset, or a flat list of results {image_id, category_id, segmentation, score}.
        match: `id` matches images and categories by id. `file-name` matches images by file name (one name may have
            more folders in front) and categories by name.

    Raises:
        DatasetError: An entry is damaged or has no counterpart in the ground truth; the message names it. Annotations
            of categories with names that the ground truth lacks are left out with a warning.
    """
    if match not in get_args(Match):
        raise DatasetError(f"images are matched by {' or '.join(get_args(Match))}, got {match!r}")
    truth = check_dataset(truth, TRUTH)
    categories, kept = category_names(truth), kept_categories(truth)
    if len(categories) > MOST_CATEGORIES:
        raise DatasetError(f"{truth.name} has {len(categories):,} categories; up to {MOST_CATEGORIES:,} can be scored")
    shown = tuple(truth_images(truth))
    sizes = {each.image_id: each.hw for each in shown}
    if isinstance(predicted, Mapping):
        predicted = check_dataset(predicted, PREDICTED)
        name, annotations = predicted.name, predicted["annotations"]
        image_ids = match_images(_by_id(truth, "images"), _by_id(predicted, "images"), match)
        theirs, ours = ({each["id"]: each["name"] for each in data["categories"]} for data in (truth, predicted))
        category_ids = {
            number: kept[true_number] for number, true_number in match_categories(theirs, ours, match).items()
        }
        if predicted["images"] and not image_ids:
            first, other = (data["images"][0]["file_name"] for data in (predicted, truth))
            raise DatasetError(
                f"no image of {name} is in {truth.name}: the first ones are {first} and {other}"
                f"{NUMBERED_DIFFERENTLY if match == 'id' else ''}"
            )
        if ours and not category_ids:
            raise DatasetError(
                f"no category of {name} is in {truth.name}: the first ones are {listed([*ours.values()][:1])} and "
                f"{listed([*theirs.values()][:1])}{NUMBERED_DIFFERENTLY if match == 'id' else ''}"
            )
        unmatched = {number: category for number, category in ours.items() if number not in category_ids}
        own = {number: category for number, category in unmatched.items() if category not in theirs.values()}
        annotations = _without_own(annotations, own, name)
        presence = _presences(predicted, image_ids, categories)
        if lacking := len(shown) - len(set(image_ids.values())):
            _log.warning(
                "%d of %d images of the ground truth are not in %s; what they show counts as not found",
                lacking,
                len(shown),
                name,
            )
    elif match == "file-name":
        raise DatasetError("a flat list of results has no file names: match it by id")
    else:
        name, annotations = PREDICTED, check_results(predicted, PREDICTED)
        image_ids, category_ids, presence = {number: number for number in sizes}, kept, {}
    hint = "" if match == "file-name" else NUMBERED_DIFFERENTLY
    among = {"image_id": f"the ground truth's images{hint}", "category_id": f"the ground truth's categories{hint}"}
    images = predicted["images"] if isinstance(predicted, Mapping) else ()
    if outside := [entry["file_name"] for entry in images if entry["id"] not in image_ids]:
        among["image_id"] += f". Leave these images out of {name}: {listed(outside)}"
    regions = _predicted(annotations, image_ids, category_ids, sizes, name, among)
    scenes = tuple(
        Scene(
            each.image_id,
            each.file_name,
            each.hw,
            each.truth,
            tuple(regions.get(each.image_id, ())),
            presence.get(each.image_id),
        )
        for each in shown
    )
    present = {category for scene in scenes for category in scene.present()}
    if not present:
        raise DatasetError(f"{truth.name} has no annotations{_but_crowds(scenes)}, so there is nothing to score")
    listed_ids = set(category_ids.values())
    return Aligned(categories, scenes, tuple(categories[each] for each in categories if each in present - listed_ids))


def _without_own(annotations: Sequence[Json], own: Mapping[int, str], name: str) -> Sequence[Json]:
    """Return the annotations without those of the categories `own` (names by id), which the ground truth lacks."""
    kept = [each for each in annotations if each["category_id"] not in own]
    if left_out := len(annotations) - len(kept):
        _log.warning(
            "%s of %s left out of the scores: the ground truth does not have the categories (%s)",
            counted(left_out, "annotation"),
            name,
            listed([*own.values()]),
        )
    return kept


def _by_id(dataset: Dataset, key: str) -> dict[int, Json]:
    return {entry["id"]: entry for entry in dataset[key]}


def _but_crowds(scenes: Sequence[Scene]) -> str:
    return " but crowds and empty masks" if any(scene.truth for scene in scenes) else ""


def _predicted(
    annotations: Sequence[Json],
    image_ids: Mapping[int, int],
    category_ids: Mapping[int, int],
    sizes: Mapping[int, tuple[int, int]],
    name: str,
    among: Mapping[str, str],
) -> dict[int, list[Region]]:
    """Return the predictions by image, under the ids of the ground truth. `among` says for each key of an annotation
    where an unknown id should have been. Raises `DatasetError`."""
    regions: dict[int, list[Region]] = defaultdict(list)
    unscored = 0
    for place, annotation in enumerate(annotations, start=1):
        label = f"annotation {annotation.get('id', f'no. {place} in the list')}"
        where = f"{name}: {label}"
        image_id = _known(annotation, "image_id", image_ids, where, among)
        category = _known(annotation, "category_id", category_ids, where, among)
        rle = rle_of(annotation, sizes[image_id], name, label=label)
        score = score_of(annotation)
        unscored += score is None
        regions[image_id].append(
            Region(
                category, rle, area(rle), score=1.0 if score is None else score, attributes=attributes_of(annotation)
            )
        )
    if unscored:
        _log.warning("%s: %d annotations without a score count as sure (score 1)", name, unscored)
    return regions


def _known(annotation: Json, key: str, known: Mapping[int, int], where: str, among: Mapping[str, str]) -> int:
    """Return the ground truth's id of the entry under `key`. Raises `DatasetError` if there is none."""
    if annotation[key] not in known:
        raise DatasetError(f"{where}: its {key} {annotation[key]} is not among {among[key]}")
    return known[annotation[key]]


def _presences(
    predicted: Dataset, image_ids: Mapping[int, int], categories: Mapping[int, str]
) -> dict[int, dict[int, float]]:
    """Return presence by image and category if every image records it, else an empty dict."""
    ids = {name: number for number, name in categories.items()}
    found: dict[int, dict[int, float]] = {}
    for entry in predicted["images"]:
        number, presence = entry["id"], attributes_of(entry).get("presence")
        if not isinstance(presence, Mapping):
            continue
        for name, value in presence.items():
            if not is_number(value):
                raise DatasetError(
                    f"{predicted.name}: image {number}: the presence of {name!r} is no finite number: {short(value)}"
                )
        if number in image_ids:
            found[image_ids[number]] = {ids[name]: float(value) for name, value in presence.items() if name in ids}
    if found and len(found) < len(image_ids):
        _log.warning("%s: only some images say what is present, so scores of annotations rank them all", predicted.name)
        return {}
    return found
