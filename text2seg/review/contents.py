"""Contents of any COCO dataset for review: images, annotations and their uncertainty, and counts by category."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from text2seg.coco import rle
from text2seg.coco.provenance import calibration_in, models_in, provenance_of
from text2seg.coco.reader import attributes_of, check_dataset, check_references, score_of
from text2seg.coco.rle import is_number, rle_of
from text2seg.config import PresenceSettings
from text2seg.errors import Text2SegError
from text2seg.labelling.summary import CategorySummary, SegmentValues, SummaryTally
from text2seg.model_card import ModelCard, find_card
from text2seg.records import told_apart
from text2seg.render import colours_of
from text2seg.render.drawing import Colour

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """One annotation with the name of its category and the value of its uncertainty.

    `hw` and `threshold` are what the uncertainty depends on. Its explanation is made only when it is shown: a large
    dataset has many annotations and shows few.
    """

    annotation: Json
    category: str
    score: float | None
    hw: tuple[int, int] | None
    threshold: float | None
    uncertainty_value: float | None

    @classmethod
    def of(cls, annotation: Json, category: str, hw: tuple[int, int] | None, threshold: float | None) -> Item:
        """Make an item; arguments as for `uncertainty_of`."""
        value = uncertainty_of(annotation, hw=hw, threshold=threshold).value
        return cls(annotation, category, score_of(annotation), hw, threshold, value)

    @property
    def uncertainty(self) -> Uncertainty:
        """The uncertainty with its parts and their explanations."""
        return uncertainty_of(self.annotation, hw=self.hw, threshold=self.threshold)


@dataclass(frozen=True, slots=True)
class Near:
    """A category that was not found in an image, but has a presence close to the threshold, or above it without a mask
    that was sure enough."""

    category: str
    presence: float
    threshold: float

    @property
    def told(self) -> str:
        """The presence for people, and why the category was not found."""
        if self.presence >= self.threshold:
            return f"presence {self.presence:.2f}, no sure mask"
        presence, threshold = told_apart(self.presence, self.threshold)
        return f"presence {presence}, threshold {threshold}"


@dataclass(slots=True)
class ReviewImage:
    """One image with its annotations and nearly found categories. `hw` is (rows, columns), None if unknown."""

    file_name: str
    hw: tuple[int, int] | None
    items: list[Item] = field(default_factory=list)
    near: list[Near] = field(default_factory=list)

    @property
    def uncertainty(self) -> float | None:
        """Uncertainty of the most uncertain annotation or, without any, nearly found category; None if unknown."""
        if not self.items:
            return max((nearness(each.presence, each.threshold) for each in self.near), default=0.0)
        return max((item.uncertainty_value for item in self.items if item.uncertainty_value is not None), default=None)


@dataclass(frozen=True, slots=True)
class Contents:
    """A dataset's images, the most uncertain first, and counts. `orphans` counts annotations without an image. `models`
    made the dataset, as far as it says."""

    images: tuple[ReviewImage, ...]
    categories: tuple[CategorySummary, ...]
    colours: Mapping[str, Colour]
    scores: tuple[float, ...]
    failures: tuple[Json, ...]
    orphans: int
    models: str = ""
    calibrated: bool = True


def contents_of(dataset: Json) -> Contents:
    """Read the contents of any COCO dataset. Raises `DatasetError` if an entry is damaged."""
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
        image.items.sort(key=lambda item: -_unknown_last(item.uncertainty_value))
    failures = checked["info"].get("failures")
    return Contents(
        tuple(sorted(images.values(), key=lambda each: (-_unknown_last(each.uncertainty), each.file_name))),
        _summaries(dict.fromkeys(names.values()), images.values()),
        colours_of(names.values(), colours),
        tuple(item.score for image in images.values() for item in image.items if item.score is not None),
        tuple(each for each in failures if isinstance(each, Mapping)) if isinstance(failures, list) else (),
        orphans,
        models_in(checked),
        calibration_in(checked) is not False,
    )


class _Thresholds:
    """The presence thresholds of categories, as far as the dataset records them."""

    def __init__(self, dataset: Json) -> None:
        entries = _object(dataset["info"].get("ontology")).get("categories")
        self._of_categories = {
            str(entry.get("name")): value
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, Mapping) and (value := number_in(entry, "presence")) is not None
        }
        self._cards: dict[str, ModelCard] = {}

    def of(self, category: str, provenance: Json) -> float | None:
        """Return the threshold of the category, else of the run, else of the model; None if there was none."""
        return PresenceSettings().threshold(self._of_categories.get(category), self._of_run(provenance))

    def _of_run(self, provenance: Json) -> float | None:
        """Return the threshold that a run records; files before 0.6.0 record only one that the user set."""
        recorded = number_in(_object(provenance.get("presence")), "threshold")
        if recorded is not None:
            return recorded or None
        stages = _object(provenance.get("settings"))
        of_user = number_in(_object(stages.get("presence")), "presence")
        if of_user is not None:
            return of_user
        maps, sha256 = _object(stages.get("maps")), str(_object(provenance.get("clip")).get("sha256"))
        if sha256 not in self._cards:
            self._cards[sha256] = find_card(sha256)
        return self._cards[sha256].default_presence(maps.get("architecture"), maps.get("input_size"))


def _object(value: Any) -> Json:
    """Return a value that should be an object, or an empty dict if it is not one."""
    return value if isinstance(value, Mapping) else {}


def _categories(dataset: Json) -> tuple[dict[int, str], dict[str, Colour]]:
    names: dict[int, str] = {}
    colours: dict[str, Colour] = {}
    for entry in dataset["categories"]:
        name = names[entry["id"]] = entry["name"]
        colour = entry.get("color")
        if isinstance(colour, list) and len(colour) == 3 and all(type(c) is int and 0 <= c <= 255 for c in colour):
            colours[name] = (colour[0], colour[1], colour[2])
    return names, colours


def _review_image(entry: Json) -> ReviewImage:
    height, width = entry.get("height"), entry.get("width")
    return ReviewImage(entry["file_name"], (height, width) if height and width else None)


def _add_near(image: ReviewImage, entry: Json, thresholds: _Thresholds, provenance: Json) -> None:
    """Add the nearly found categories that the image's attributes record, the closest to the threshold first."""
    presence = attributes_of(entry).get("presence")
    if not isinstance(presence, Mapping):
        return
    found = {item.category for item in image.items}
    for category in presence:
        value, threshold = number_in(presence, category), thresholds.of(category, provenance)
        if category not in found and value is not None and threshold and value >= NEARLY * threshold:
            image.near.append(Near(category, value, threshold))
    image.near.sort(key=lambda each: -nearness(each.presence, each.threshold))


def _summaries(names: Iterable[str], images: Iterable[ReviewImage]) -> tuple[CategorySummary, ...]:
    """Return one row for each category."""
    tally = SummaryTally(names)
    for image in images:
        tally.add_image(_segment_values(item, image.hw) for item in image.items)
    return tally.summaries()


def _segment_values(item: Item, hw: tuple[int, int] | None) -> SegmentValues:
    area = number_in(item.annotation, "area") if hw else None
    return SegmentValues(
        category=item.category,
        area_share=area / (hw[0] * hw[1]) if hw and area is not None else None,
        score=item.score,
        presence=number_in(attributes_of(item.annotation), "presence"),
    )


def _unknown_last(value: float | None) -> float:
    return -1.0 if value is None else value


# ---- uncertainty of an annotation, from 0 (certain) to 1, and the reason for it
#
# It has up to four parts, each from 0 to 1; a part is left out if the dataset does not record what it needs:
#
# - presence: 1 if the presence equals its threshold, falling linearly to 0 at presence 0 and 1;
# - candidates: SAM's candidates disagree. For each candidate that was not chosen: how close its score is to that of the
#   chosen one (1 if equal, 0 if lower by `SCORE_GAP` or more) times 1 - IoU of the two masks; the largest value counts.
#   It needs the masks of the candidates (`--keep-candidates`), because scores are usually nearly equal, often for
#   nearly equal masks;
# - map: the mask misses what the map highlights: 1 at a map score of 0 or less, 0 at `GOOD_MAP_SCORE` or more;
# - score: 1 - score, where the score is SAM's estimate of the IoU, or the score of the file.
#
# A mask that a person made or corrected (the attribute `by_hand`) is certain.
#
# The parts combine to 1 - (1 - presence)(1 - candidates)(1 - map)(1 - score), so one high part is enough.
# docs/measurements/experiments.md measures how well this finds wrong masks.

SCORE_GAP = 0.2
"""Difference of scores from which another candidate is no reason for doubt."""
GOOD_MAP_SCORE = 0.6
"""Map score from which the map is no reason for doubt."""
NEARLY = 0.8
"""A category is nearly found if its presence is at least this share of the threshold."""

PARTS = ("presence", "candidates", "map", "score", "hand")


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """The known parts by name, and an explanation of each."""

    parts: Mapping[str, float]
    words: Mapping[str, str]

    @property
    def value(self) -> float | None:
        """All parts combined, in [0, 1]; None if no part is known."""
        return 1 - prod(1 - part for part in self.parts.values()) if self.parts else None

    @property
    def reason(self) -> str | None:
        """Name of the largest part (the first of equal ones); None if no part is known."""
        return max(self.parts, key=lambda name: self.parts[name]) if self.parts else None


def uncertainty_of(
    annotation: Mapping[str, Any], *, hw: tuple[int, int] | None = None, threshold: float | None = None
) -> Uncertainty:
    """Return the uncertainty of an annotation. Values that are missing or not as text2seg writes them are ignored.

    Args:
        annotation: a checked annotation.
        hw: size of the image (rows, columns); without it, candidates are not compared.
        threshold: presence below which the category counts as absent; None or 0 if there was no threshold.
    """
    known = attributes_of(annotation)
    if known.get("by_hand") is True:
        return Uncertainty({"hand": 0.0}, {"hand": "mask made or corrected by hand"})
    parts: dict[str, float] = {}
    words: dict[str, str] = {}
    presence, map_score = number_in(known, "presence"), number_in(known, "map_score")
    if presence is not None and threshold:
        parts["presence"] = nearness(presence, threshold)
        words["presence"] = f"presence {presence:.2f}, threshold {threshold:.2f}"
    if (overlap := _disagreement(annotation, known, hw)) is not None:
        parts["candidates"], other = overlap
        words["candidates"] = f"another candidate with nearly the same score has an IoU of only {other:.2f}"
    if map_score is not None:
        parts["map"] = _clipped(1 - map_score / GOOD_MAP_SCORE)
        words["map"] = f"map score {map_score:.2f}: how much of the highlighted map the mask covers"
    sam_score = number_in(known, "sam_score")  # the annotation's score may include the presence
    if (score := score_of(annotation) if sam_score is None else sam_score) is not None:
        parts["score"] = _clipped(1 - score)
        words["score"] = f"score {score:.2f}"
    return Uncertainty(parts, words)


def nearness(presence: float, threshold: float) -> float:
    """Return 1 if a presence equals its threshold in (0, 1], falling linearly to 0 at presence 0 and 1."""
    room = threshold if presence < threshold else 1 - threshold
    return _clipped(1 - abs(presence - threshold) / room) if room > 0 else 1.0


def number_in(values: Mapping[str, Any], key: str) -> float | None:
    """Return the number under a key, or None if there is no number."""
    value = values.get(key)
    return float(value) if is_number(value) else None


def _disagreement(
    annotation: Mapping[str, Any], known: Mapping[str, Any], hw: tuple[int, int] | None
) -> tuple[float, float] | None:
    """Return the part of the candidates, and the IoU of the decisive candidate with the chosen one."""
    scores, chosen, masks = (known.get(key) for key in ("candidate_scores", "chosen_candidate", "candidates"))
    if hw is None or not isinstance(scores, Sequence) or not isinstance(masks, Sequence) or not masks:
        return None
    if not isinstance(chosen, int) or not 0 <= chosen < len(scores) or len(masks) != len(scores) - 1:
        return None
    if not all(map(is_number, scores)):
        return None
    others = [score for place, score in enumerate(scores) if place != chosen]
    try:
        mine = rle_of(annotation, hw)
        overlaps = [rle.iou(mine, rle_of({"segmentation": mask}, hw)) for mask in masks]
        doubts = [
            _clipped(1 - max(scores[chosen] - score, 0) / SCORE_GAP) * (1 - overlap)
            for score, overlap in zip(others, overlaps, strict=True)
        ]
    except Text2SegError:  # the thumbnail reports masks that cannot be read
        return None
    return max(zip(doubts, overlaps, strict=True), key=lambda pair: pair[0])


def _clipped(value: float) -> float:
    return min(max(value, 0.0), 1.0)
