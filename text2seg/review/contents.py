"""What a dataset of anyone holds, read for review: entries checked, annotations sorted to their images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from text2seg.coco.lookup import provenance_of
from text2seg.errors import Text2SegError
from text2seg.render import colour_of
from text2seg.render.colours import Colour
from text2seg.review.uncertainty import NEARLY, Uncertainty, nearness, number_in, score_of, uncertainty_of

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One annotation, with the name of its category and how doubtful it is."""

    annotation: Json
    category: str
    score: float | None
    uncertainty: Uncertainty


@dataclass(frozen=True, slots=True)
class Near:
    """A category that was not found in an image, though its presence comes close to the threshold."""

    category: str
    presence: float
    threshold: float


@dataclass(slots=True)
class Picture:
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
        return max((value for item in self.items if (value := item.uncertainty.value) is not None), default=None)


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
    """A dataset's pictures, most doubtful first, those of unknown doubt last; `orphans` are annotations of no image."""

    pictures: tuple[Picture, ...]
    categories: tuple[CategoryRow, ...]
    colours: Mapping[str, Colour]
    scores: tuple[float, ...]
    failures: tuple[Json, ...]
    orphans: int


def contents_of(dataset: Json) -> Contents:
    """Sort a COCO dataset of anyone. Raises `Text2SegError` where an image has no id or file name, an annotation no
    category, or an entry is none."""
    names, colours = _categories(dataset)
    thresholds = _Thresholds(dataset)
    pictures = {entry["id"]: _picture(entry) for entry in map(_image, dataset["images"])}
    orphans = 0
    for annotation in dataset["annotations"]:
        if not isinstance(annotation, Mapping) or "category_id" not in annotation:
            raise Text2SegError(f"not an annotation, for it has no category_id: {_short(annotation)}")
        picture = pictures.get(annotation.get("image_id"))
        if picture is None:
            orphans += 1
            continue
        category = names.setdefault(annotation["category_id"], f"category {annotation['category_id']}")
        threshold = thresholds.of(category, provenance_of(annotation, dataset))
        uncertainty = uncertainty_of(annotation, hw=picture.hw, threshold=threshold)
        picture.items.append(Item(annotation, category, score_of(annotation), uncertainty))
    for entry in dataset["images"]:
        _add_near(pictures[entry["id"]], entry, thresholds, provenance_of({}, dataset))
    for picture in pictures.values():
        picture.items.sort(key=lambda item: -_or_least(item.uncertainty.value))
    failures = (dataset.get("info") or {}).get("failures")
    return Contents(
        tuple(sorted(pictures.values(), key=lambda each: (-_or_least(each.uncertainty), each.file_name))),
        tuple(_row(name, pictures.values()) for name in dict.fromkeys(names.values())),
        {name: colours.get(name) or colour_of(name) for name in names.values()},
        tuple(item.score for picture in pictures.values() for item in picture.items if item.score is not None),
        tuple(each for each in failures if isinstance(each, Mapping)) if isinstance(failures, list) else (),
        orphans,
    )


class _Thresholds:
    """The presence below which a category counted as absent, as far as the dataset says."""

    def __init__(self, dataset: Json) -> None:
        ontology = (dataset.get("info") or {}).get("ontology")
        entries = ontology.get("categories", ()) if isinstance(ontology, Mapping) else ()
        self._own = {
            entry["name"]: own
            for entry in entries
            if isinstance(entry, Mapping) and "name" in entry and (own := number_in(entry, "presence")) is not None
        }

    def of(self, category: str, provenance: Json) -> float | None:
        """The category's own threshold, else that of the run, else the model's; `None` where there was none."""
        if category in self._own:
            return self._own[category]
        settings = provenance.get("settings")
        stages = settings if isinstance(settings, Mapping) else {}
        asked = number_in(stages.get("presence") or {}, "presence")
        if asked is not None:
            return asked
        maps, clip = stages.get("maps") or {}, provenance.get("clip") or {}
        usual = maps.get("architecture") == "surgery" and maps.get("input_size") is None
        if not usual or clip.get("name") != "demo":
            return None
        from text2seg.maps.presence import PresenceModel  # with torch, which other datasets need not wait for

        return PresenceModel.of_demo(()).threshold


def _categories(dataset: Json) -> tuple[dict[Any, str], dict[str, Colour]]:
    names: dict[Any, str] = {}
    colours: dict[str, Colour] = {}
    for entry in dataset["categories"]:
        if not isinstance(entry, Mapping) or "id" not in entry:
            raise Text2SegError(f"not a category, for it has no id: {_short(entry)}")
        name = names[entry["id"]] = str(entry.get("name", f"category {entry['id']}"))
        given = entry.get("color")
        if isinstance(given, list) and len(given) == 3 and all(isinstance(c, int) and 0 <= c <= 255 for c in given):
            colours[name] = (given[0], given[1], given[2])
    return names, colours


def _image(entry: Any) -> Json:
    if not isinstance(entry, Mapping) or "id" not in entry or not isinstance(entry.get("file_name"), str):
        raise Text2SegError(f"not an image, for it has no id or file_name: {_short(entry)}")
    return entry


def _picture(entry: Json) -> Picture:
    height, width = entry.get("height"), entry.get("width")
    known = isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0
    return Picture(entry["file_name"], (height, width) if known else None)  # type: ignore[arg-type]


def _add_near(picture: Picture, entry: Json, thresholds: _Thresholds, provenance: Json) -> None:
    """What the image's own attributes say of categories that it has no annotation of, the nearest first."""
    attributes = entry.get("attributes")
    presence = attributes.get("presence") if isinstance(attributes, Mapping) else None
    if not isinstance(presence, Mapping):
        return
    found = {item.category for item in picture.items}
    for category in presence:
        value, threshold = number_in(presence, category), thresholds.of(category, provenance)
        if category not in found and value is not None and threshold and value >= NEARLY * threshold:
            picture.near.append(Near(category, value, threshold))
    picture.near.sort(key=lambda each: -nearness(each.presence, each.threshold))


def _row(name: str, pictures: Any) -> CategoryRow:
    found = [(item, picture) for picture in pictures for item in picture.items if item.category == name]
    scores = [item.score for item, _ in found if item.score is not None]
    areas = [
        area / (picture.hw[0] * picture.hw[1])
        for item, picture in found
        if picture.hw and (area := number_in(item.annotation, "area")) is not None
    ]
    attributes = [known for item, _ in found if isinstance(known := item.annotation.get("attributes"), Mapping)]
    presences = [value for known in attributes if (value := number_in(known, "presence")) is not None]
    return CategoryRow(
        name,
        len({id(picture) for _, picture in found}),
        len(found),
        median(areas) if areas else None,
        fmean(scores) if scores else None,
        fmean(presences) if presences else None,
    )


def _or_least(value: float | None) -> float:
    return -1.0 if value is None else value


def _short(entry: object) -> str:
    text = repr(entry)
    return text if len(text) <= 80 else f"{text[:79]}…"
