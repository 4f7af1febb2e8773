"""Ground truth and predictions, checked and laid side by side once, for all protocols."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from text2seg.coco.checked import checked_rle, is_number
from text2seg.coco.rle import Rle, area
from text2seg.errors import DatasetError
from text2seg.evaluation.matching import Match, category_names, image_entries, match_categories, match_images, size_of

Json = Mapping[str, Any]
TRUTH, PREDICTED = "ground truth", "predictions"
NUMBERED_DIFFERENTLY = "; if the files number theirs differently, match by names (--match file-name)"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One annotation: `category` is the ground truth's id, `area` what the file says or else pixels (always pixels for
    predictions), `attributes` as in the file."""

    category: int
    rle: Rle
    area: float
    crowd: bool = False
    score: float = 1.0
    attributes: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One image of the ground truth: what is there and what was predicted, in the order of the files.

    `hw` is (rows, columns); `presence` scores categories in this image, `None` where the predictions do not say.
    """

    image_id: int
    file_name: str
    hw: tuple[int, int]
    truth: tuple[Region, ...]
    predicted: tuple[Region, ...]
    presence: Mapping[int, float] | None = None

    def true_of(self, category: int) -> list[Rle]:
        """True masks of a category that are neither crowds nor empty."""
        return [each.rle for each in self.truth if each.category == category and not each.crowd and area(each.rle)]

    def crowds_of(self, category: int) -> list[Rle]:
        """Crowd regions of a category."""
        return [each.rle for each in self.truth if each.category == category and each.crowd]

    def predicted_of(self, category: int) -> list[Region]:
        """Predictions of a category that are not empty."""
        return [each for each in self.predicted if each.category == category and area(each.rle)]

    def present(self) -> list[int]:
        """Categories with at least one true pixel outside of crowds, ascending."""
        return sorted({each.category for each in self.truth if not each.crowd and area(each.rle)})


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """Both datasets in the ids of the ground truth: names of its categories by id, and its images, both ascending."""

    categories: Mapping[int, str]
    scenes: tuple[Scene, ...]


def align(truth: Json, predicted: Json | Sequence[Json], *, match: Match = "id") -> Aligned:
    """Check two datasets and sort their annotations by the images of the ground truth. Neither is changed.

    Args:
        truth: a COCO dataset.
        predicted: a COCO dataset, or a flat list of results {image_id, category_id, segmentation, score}.
        match: `id`: images and categories of the same id belong together; `file-name`: images of the same file name
            (one may have more folders in front) and categories of the same name.

    Raises:
        DatasetError: an entry is damaged or belongs to nothing in the ground truth; names it.
    """
    if match not in get_args(Match):
        raise DatasetError(f"images are matched by {' or '.join(get_args(Match))}, got {match!r}")
    categories = category_names(truth, TRUTH)
    images = image_entries(truth, TRUTH)
    sizes = {number: size_of(entry, TRUTH) for number, entry in images.items()}
    true_regions = _truth(truth, categories, sizes)
    if isinstance(predicted, Mapping):
        image_ids = match_images(images, image_entries(predicted, PREDICTED), match)
        category_ids = match_categories(categories, category_names(predicted, PREDICTED), match)
        presence = _presences(predicted, image_ids, categories)
        annotations = _listed(predicted, "annotations", PREDICTED)
    elif match == "file-name":
        raise DatasetError("a flat list of results has no file names: match it by id")
    else:
        image_ids, category_ids = {number: number for number in images}, {number: number for number in categories}
        presence, annotations = {}, list(predicted)
    hint = "" if match == "file-name" else NUMBERED_DIFFERENTLY
    regions = _predicted(annotations, image_ids, category_ids, sizes, hint)
    scenes = tuple(
        Scene(
            number,
            str(images[number].get("file_name", "")),
            sizes[number],
            tuple(true_regions.get(number, ())),
            tuple(regions.get(number, ())),
            presence.get(number),
        )
        for number in sorted(images)
    )
    if not any(scene.present() for scene in scenes):
        raise DatasetError("the ground truth has no annotations, so there is nothing to score")
    return Aligned({number: categories[number] for number in sorted(categories)}, scenes)


def _truth(truth: Json, categories: Mapping[int, str], sizes: Mapping[int, tuple[int, int]]) -> dict[int, list[Region]]:
    regions: dict[int, list[Region]] = defaultdict(list)
    seen: set[Any] = set()
    unnumbered = 0
    for place, annotation in _entries(_listed(truth, "annotations", TRUTH)):
        number = annotation.get("id")
        where = f"{TRUTH}: annotation {place if number is None else number}"
        if number in (None, 0):
            unnumbered += 1
        if number is not None:
            if not isinstance(number, (int, str)):
                raise DatasetError(f"{where}: its id is no number")
            if number in seen:
                raise DatasetError(f"{where}: the id is there twice; give each annotation its own")
            seen.add(number)
        image_id = _known(annotation, "image_id", sizes, where, "the images of its own file")
        category = _known(annotation, "category_id", categories, where, "the categories of its own file")
        rle = _mask(annotation, sizes[image_id], where)
        given = annotation.get("area")
        regions[image_id].append(
            Region(
                category,
                rle,
                given if is_number(given) else area(rle),  # type: ignore[arg-type]
                bool(annotation.get("iscrowd", 0)),
            )
        )
    if unnumbered:
        _log.warning(
            "%s: %d annotation%s with the id 0 or none; COCO's scoring takes such a one for missed, so they are "
            "numbered anew (the file is not changed)",
            TRUTH,
            unnumbered,
            "s" * (unnumbered > 1),
        )
    return regions


def _predicted(
    annotations: Sequence[Json],
    image_ids: Mapping[int, int],
    category_ids: Mapping[int, int],
    sizes: Mapping[int, tuple[int, int]],
    hint: str,
) -> dict[int, list[Region]]:
    regions: dict[int, list[Region]] = defaultdict(list)
    unscored = 0
    for place, annotation in _entries(annotations):
        where = f"{PREDICTED}: annotation {annotation.get('id', place)}"
        ours = _known(annotation, "image_id", image_ids, where, f"the ground truth's images{hint}")
        image_id = image_ids[ours]
        ours = _known(annotation, "category_id", category_ids, where, f"the ground truth's categories{hint}")
        category = category_ids[ours]
        rle = _mask(annotation, sizes[image_id], where)
        attributes = annotation.get("attributes")
        attributes = attributes if isinstance(attributes, Mapping) else {}
        score = annotation.get("score", attributes.get("score"))
        unscored += score is None
        if score is not None and not is_number(score):
            raise DatasetError(f"{where}: its score {score!r} is no finite number")
        regions[image_id].append(
            Region(category, rle, area(rle), score=1.0 if score is None else float(score), attributes=attributes)
        )
    if unscored:
        _log.warning("%s: %d annotations without a score count as sure (score 1)", PREDICTED, unscored)
    return regions


def _entries(annotations: Sequence[Json]) -> Iterator[tuple[str, Json]]:
    """Annotations with their place in the list, for those that have no id."""
    for place, annotation in enumerate(annotations, start=1):
        if not isinstance(annotation, Mapping):
            raise DatasetError(f"annotation no. {place} in the list is no object")
        yield f"no. {place} in the list", annotation


def _known(annotation: Json, key: str, known: Mapping[int, Any], where: str, among: str) -> int:
    """The id under `key`, which must be one of those known."""
    number = annotation.get(key)
    if not isinstance(number, int) or number not in known:
        raise DatasetError(f"{where}: its {key} {number!r} is not among {among}")
    return number


def _mask(annotation: Json, hw: tuple[int, int], where: str) -> Rle:
    try:
        return checked_rle(annotation.get("segmentation"), hw)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}") from error


def _presences(
    predicted: Json, image_ids: Mapping[int, int], categories: Mapping[int, str]
) -> dict[int, dict[int, float]]:
    """Presence by image and category, if every image says it: it does not compare with the scores of annotations."""
    ids = {name: number for number, name in categories.items()}
    found: dict[int, dict[int, float]] = {}
    entries = image_entries(predicted, PREDICTED)
    for number, entry in entries.items():
        attributes = entry.get("attributes")
        presence = attributes.get("presence") if isinstance(attributes, Mapping) else None
        if not isinstance(presence, Mapping):
            continue
        for name, value in presence.items():
            if not is_number(value):
                raise DatasetError(f"{PREDICTED}: image {number}: the presence of {name!r} is no finite number")
        if number in image_ids:
            found[image_ids[number]] = {ids[name]: float(value) for name, value in presence.items() if name in ids}
    if found and len(found) < len(image_ids):
        _log.warning("%s: only some images say what is present, so scores of annotations rank them all", PREDICTED)
        return {}
    return found


def _listed(dataset: Json, key: str, what: str) -> list[Json]:
    entries = dataset.get(key)
    if not isinstance(entries, list):
        raise DatasetError(f"{what}: it has no list of {key}")
    return entries
