"""What a dataset of anyone holds, read for review: entries checked, annotations sorted to their images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from text2seg.coco.lookup import provenance_of
from text2seg.coco.reader import attributes_of, check_dataset, check_references, score_of
from text2seg.render import colour_of
from text2seg.render.colours import Colour
from text2seg.review.uncertainty import NEARLY, Uncertainty, nearness, number_in, uncertainty_of

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One annotation, with the name of its category, and what its doubt is measured with. `doubt` is the value of its
    uncertainty, whose words are made when they are shown: a large dataset has many annotations and shows few."""

    annotation: Json
    category: str
    score: float | None
    hw: tuple[int, int] | None
    threshold: float | None
    doubt: float | None

    @classmethod
    def of(cls, annotation: Json, category: str, hw: tuple[int, int] | None, threshold: float | None) -> Item:
        doubt = uncertainty_of(annotation, hw=hw, threshold=threshold).value
        return cls(annotation, category, score_of(annotation), hw, threshold, doubt)

    @property
    def uncertainty(self) -> Uncertainty:
        return uncertainty_of(self.annotation, hw=self.hw, threshold=self.threshold)


@dataclass(frozen=True, slots=True)
class Near:
    """A category that was not found in an image, though its presence comes close to the threshold."""

    category: str
    presence: float
    threshold: float


@dataclass(slots=True)
class ReviewImage:
    """One image with what was found in it and what nearly was. `hw` is `None` where the dataset does not say."""

    file_name: str
    hw: tuple[int, int] | None
    items: list[Item] = field(default_factory=list)
    near: list[Near] = field(default_factory=list)

    @property
    def uncertainty(self) -> float | None:
        """That of its most doubtful annotation or, where there is none, of what was nearly found; `None`: unknown."""
        if not self.items:
            return max((nearness(each.presence, each.threshold) for each in self.near), default=0.0)
        return max((item.doubt for item in self.items if item.doubt is not None), default=None)


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """One line of the table of categories; `None` where there is nothing to take a mean of."""

    name: str
    images: int
    annotations: int
    area_share: float | None
    score: float | None
    presence: float | None


@dataclass(frozen=True, slots=True)
class Contents:
    """A dataset's images, most doubtful first, those of unknown doubt last; `orphans` are annotations of no image."""

    images: tuple[ReviewImage, ...]
    categories: tuple[CategoryRow, ...]
    colours: Mapping[str, Colour]
    scores: tuple[float, ...]
    failures: tuple[Json, ...]
    orphans: int


def contents_of(dataset: Json) -> Contents:
    """Sort a COCO dataset of anyone. Raises `DatasetError` where an entry is damaged."""
    checked = check_dataset(dataset, "the dataset")
    check_references(checked, ["category_id"])
    names, colours = _categories(checked)
    thresholds = _Thresholds(checked)
    images = {entry["id"]: _review_image(entry) for entry in checked["images"]}
    orphans = 0
    for annotation in checked["annotations"]:
        image = images.get(annotation["image_id"])
        if image is None:
            orphans += 1
            continue
        category = names[annotation["category_id"]]
        threshold = thresholds.of(category, provenance_of(annotation, checked))
        image.items.append(Item.of(annotation, category, image.hw, threshold))
    for entry in checked["images"]:
        _add_near(images[entry["id"]], entry, thresholds, provenance_of({}, checked))
    for image in images.values():
        image.items.sort(key=lambda item: -_or_least(item.doubt))
    failures = checked["info"].get("failures")
    return Contents(
        tuple(sorted(images.values(), key=lambda each: (-_or_least(each.uncertainty), each.file_name))),
        _rows(tuple(dict.fromkeys(names.values())), images.values()),
        {name: colours.get(name) or colour_of(name) for name in names.values()},
        tuple(item.score for image in images.values() for item in image.items if item.score is not None),
        tuple(each for each in failures if isinstance(each, Mapping)) if isinstance(failures, list) else (),
        orphans,
    )


class _Thresholds:
    """The presence below which a category counted as absent, as far as the dataset says."""

    def __init__(self, dataset: Json) -> None:
        entries = _object(dataset["info"].get("ontology")).get("categories")
        self._own = {
            str(entry.get("name")): own
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, Mapping) and (own := number_in(entry, "presence")) is not None
        }

    def of(self, category: str, provenance: Json) -> float | None:
        """The category's own threshold, else that of the run, else the model's; `None` where there was none."""
        if category in self._own:
            return self._own[category]
        stages = _object(provenance.get("settings"))
        asked = number_in(_object(stages.get("presence")), "presence")
        if asked is not None:
            return asked
        maps, clip = _object(stages.get("maps")), _object(provenance.get("clip"))
        usual = maps.get("architecture") == "surgery" and maps.get("input_size") is None
        if not usual or clip.get("name") != "demo":
            return None
        from text2seg.clip.maps import PresenceModel

        return PresenceModel.of_demo(()).threshold


def _object(value: Any) -> Json:
    """A value that should be an object; an empty one where it is none."""
    return value if isinstance(value, Mapping) else {}


def _categories(dataset: Json) -> tuple[dict[int, str], dict[str, Colour]]:
    names: dict[int, str] = {}
    colours: dict[str, Colour] = {}
    for entry in dataset["categories"]:
        name = names[entry["id"]] = entry["name"]
        given = entry.get("color")
        if isinstance(given, list) and len(given) == 3 and all(type(c) is int and 0 <= c <= 255 for c in given):
            colours[name] = (given[0], given[1], given[2])
    return names, colours


def _review_image(entry: Json) -> ReviewImage:
    height, width = entry.get("height"), entry.get("width")
    return ReviewImage(entry["file_name"], (height, width) if height and width else None)


def _add_near(image: ReviewImage, entry: Json, thresholds: _Thresholds, provenance: Json) -> None:
    """What the image's own attributes say of categories that it has no annotation of, the nearest first."""
    presence = attributes_of(entry).get("presence")
    if not isinstance(presence, Mapping):
        return
    found = {item.category for item in image.items}
    for category in presence:
        value, threshold = number_in(presence, category), thresholds.of(category, provenance)
        if category not in found and value is not None and threshold and value >= NEARLY * threshold:
            image.near.append(Near(category, value, threshold))
    image.near.sort(key=lambda each: -nearness(each.presence, each.threshold))


def _rows(names: tuple[str, ...], images: Iterable[ReviewImage]) -> tuple[CategoryRow, ...]:
    """A row for each name, from one walk over all annotations."""
    image_counts, counts = Counter[str](), Counter[str]()
    scores, areas, presences = (defaultdict[str, list[float]](list) for _ in range(3))
    for image in images:
        image_counts.update({item.category for item in image.items})
        for item in image.items:
            counts[item.category] += 1
            if item.score is not None:
                scores[item.category].append(item.score)
            if image.hw and (area := number_in(item.annotation, "area")) is not None:
                areas[item.category].append(area / (image.hw[0] * image.hw[1]))
            if (presence := number_in(attributes_of(item.annotation), "presence")) is not None:
                presences[item.category].append(presence)
    return tuple(
        CategoryRow(
            name,
            image_counts[name],
            counts[name],
            median(areas[name]) if areas[name] else None,
            fmean(scores[name]) if scores[name] else None,
            fmean(presences[name]) if presences[name] else None,
        )
        for name in names
    )


def _or_least(value: float | None) -> float:
    return -1.0 if value is None else value
