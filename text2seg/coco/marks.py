"""Marks: what a person decided on a dataset's masks in a review, as a JSON file.

docs/review.md describes the format. A file belongs to one dataset, by the hash `identity`. `Marks.apply` gives the
reviewed dataset; `text2seg merge` uses it, and `text2seg.labelling.reviewed` for labelling.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from text2seg.coco.json_file import Json, read_json, short, write_json
from text2seg.coco.reader import Dataset, attributes_of
from text2seg.errors import DatasetError
from text2seg.io.names import did_you_mean
from text2seg.settings_fields import fault

Verdict = Literal["accepted", "rejected"]

REVIEW = "review"
"""Attribute of an annotation that a person looked at: "accepted", or "corrected" if its category was changed."""
CATEGORY_BEFORE = "category_before"
"""Attribute: the category of an annotation before a person corrected it."""


class Mark(BaseModel):
    """One decision: on an image if it names no annotation, else on that annotation. An accepted annotation may get
    another category, by its name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: str = Field(min_length=1)
    annotation: int | None = None
    verdict: Verdict
    category: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_category(self) -> Mark:
        if self.category is not None and (self.annotation is None or self.verdict == "rejected"):
            raise ValueError("only an accepted annotation can have a category")
        return self


class MarkedDataset(BaseModel):
    """The dataset that marks belong to: its name, for people, and its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MarksFile(BaseModel):
    """The content of a file of marks."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    text2seg_marks: Literal[1] = 1
    """Version of the format."""
    dataset: MarkedDataset
    marks: list[Mark]

    @property
    def sha256(self) -> str:
        """Hash of the decisions."""
        return hashlib.sha256(self.model_dump_json().encode("utf-8", "backslashreplace")).hexdigest()

    def with_categories(self, shown: Mapping[int, str]) -> MarksFile:
        """Return the file for a dataset whose corrected categories were not applied, from one where they were. `shown`
        are these categories by annotation id: who accepted such an annotation as it was accepted its category."""

        def told(mark: Mark) -> Mark:
            category = None if mark.annotation is None else shown.get(mark.annotation)
            is_as_shown = category is not None and mark.category is None and mark.verdict == "accepted"
            return mark.model_copy(update={"category": category}) if is_as_shown else mark

        return self.model_copy(update={"marks": [told(each) for each in self.marks]})

    def marks_of(self, dataset: Dataset, name: str) -> Marks:
        """Return the marks of their dataset. The last mark of an image or annotation counts.

        Args:
            dataset: the dataset with the hash of the file.
            name: the file of marks, for messages.

        Raises:
            DatasetError: an image, an annotation or a category is not in the dataset.
        """
        images = {each["id"]: each["file_name"] for each in dataset["images"]}
        known = set(images.values())
        categories = {each["id"]: each["name"] for each in dataset["categories"]}
        annotations = {each["id"]: each for each in dataset["annotations"]}
        marks = Marks()
        for mark in self.marks:
            if mark.image not in known:
                raise DatasetError(f"{name}: {dataset.name} has no image {mark.image!r}")
            if mark.annotation is None:
                marks.images[mark.image] = mark.verdict
                continue
            entry = annotations.get(mark.annotation)
            if entry is None or images.get(entry["image_id"]) != mark.image:
                raise DatasetError(f"{name}: {dataset.name} has no annotation {mark.annotation} of {mark.image!r}")
            if mark.category is not None and mark.category not in categories.values():
                hint = did_you_mean([mark.category], categories.values())
                raise DatasetError(f"{name}: {dataset.name} has no category {mark.category!r}.{hint}")
            marks.decide(mark.annotation, mark.verdict, mark.category, categories[entry["category_id"]])
        return marks


@dataclass(slots=True)
class Marks:
    """Decisions on one dataset: verdicts by file name and by annotation id, and corrected categories by annotation id,
    with the names that these annotations had before."""

    images: dict[str, Verdict] = field(default_factory=dict)
    annotations: dict[int, Verdict] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    before: dict[int, str] = field(default_factory=dict)

    def decide(self, number: int, verdict: Verdict | None, category: str | None, before: str) -> None:
        """Note the decision on an annotation, whose category was `before`. Without a verdict, it loses its mark."""
        for each in (self.annotations, self.categories, self.before):
            each.pop(number, None)
        if verdict is not None:
            self.annotations[number] = verdict
        if verdict == "accepted" and category is not None and category != before:
            self.categories[number], self.before[number] = category, before

    def decide_image(self, file_name: str, verdict: Verdict | None) -> None:
        """Note the decision on a whole image. Without a verdict, it loses its mark."""
        self.images.pop(file_name, None)
        if verdict is not None:
            self.images[file_name] = verdict

    def update(self, other: Marks) -> None:
        """Take over the decisions of another file of the same dataset, which count more."""
        self.images |= other.images
        for number, verdict in other.annotations.items():
            self.annotations[number] = verdict
            for mine, theirs in ((self.categories, other.categories), (self.before, other.before)):
                mine.pop(number, None)
                mine |= {number: theirs[number]} if number in theirs else {}

    @property
    def rejected(self) -> list[int]:
        """Ids of rejected annotations."""
        return sorted(number for number, verdict in self.annotations.items() if verdict == "rejected")

    def images_with(self, verdict: Verdict) -> list[str]:
        """Return the file names of the images with this verdict."""
        return sorted(name for name, each in self.images.items() if each == verdict)

    def entries(self, dataset: Mapping[str, Any]) -> list[Mark]:
        """Return the marks as a file of marks of this dataset has them: images in their order, then annotations."""
        names = {image["id"]: image["file_name"] for image in dataset["images"]}
        images = [Mark(image=name, verdict=self.images[name]) for name in names.values() if name in self.images]
        of_annotations = [
            Mark(
                image=names[each["image_id"]],
                annotation=each["id"],
                verdict=self.annotations[each["id"]],
                category=self.categories.get(each["id"]),
            )
            for each in dataset["annotations"]
            if each["id"] in self.annotations
        ]
        return images + of_annotations

    def count(self) -> str:
        """Return how many annotations were accepted, corrected and rejected, in words."""
        rejected, corrected = len(self.rejected), len(self.categories)
        counts = f"{len(self.annotations) - rejected - corrected} accepted, {corrected} corrected, {rejected} rejected"
        images = f"; of whole images {len(self.images)}" if self.images else ""
        return counts + images

    def is_rejected(self, annotation: Mapping[str, Any], file_name: str | None) -> bool:
        """Return whether an annotation, or the whole image that it is in, was rejected."""
        return self.images.get(file_name or "") == "rejected" or self.annotations.get(annotation["id"]) == "rejected"

    def apply(self, dataset: Mapping[str, Any]) -> Json:
        """Return the reviewed dataset: without rejected images and annotations, with corrected categories, and with the
        attribute `review` of every annotation that was accepted or corrected, itself or with its image. Ids do not
        change. `info.review` lists the decisions."""
        names = {image["id"]: image["file_name"] for image in dataset["images"]}
        ids = {each["name"]: each["id"] for each in dataset["categories"]}
        review = {
            "accepted": self.images_with("accepted"),
            "rejected": self.images_with("rejected"),
            "rejected_annotations": self.rejected,
            "corrected_categories": {str(number): name for number, name in sorted(self.before.items())},
        }
        return {
            **dataset,
            "info": {**dataset["info"], "review": review},
            "images": [each for each in dataset["images"] if self.images.get(each["file_name"]) != "rejected"],
            "annotations": [
                self._reviewed(each, names.get(each["image_id"]), ids)
                for each in dataset["annotations"]
                if not self.is_rejected(each, names.get(each["image_id"]))
            ],
        }

    def _reviewed(self, annotation: Mapping[str, Any], file_name: str | None, ids: Mapping[str, int]) -> Json:
        number = annotation["id"]
        if (category := self.categories.get(number)) is not None:
            before = attributes_of(annotation).get(CATEGORY_BEFORE, self.before[number])
            attributes = {**attributes_of(annotation), REVIEW: "corrected", CATEGORY_BEFORE: before}
            return {**annotation, "category_id": ids[category], "attributes": attributes}
        if number in self.annotations or self.images.get(file_name or "") == "accepted":
            attributes = {REVIEW: "accepted", **attributes_of(annotation)}  # one corrected earlier stays that
            return {**annotation, "attributes": attributes}
        return dict(annotation)


def identity(dataset: Mapping[str, Any]) -> str:
    """Return the hash of a checked dataset that its marks name: SHA-256 of names, ids, categories and masks, in the
    order of the ids. Formatting, `info` and attributes do not count, so accepting annotations does not change it."""
    keys: dict[str, tuple[str, ...]] = {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "segmentation"),
    }
    digest = hashlib.sha256()
    for name, of_each in keys.items():
        for entry in sorted(dataset[name], key=lambda each: each["id"]):
            line = json.dumps([name, *(entry.get(key) for key in of_each)], sort_keys=True)
            digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def read_marks(path: str | os.PathLike[str]) -> MarksFile:
    """Read a file of marks.

    Raises:
        DatasetError: the file is missing, is not JSON, or is not a file of marks.
    """
    content = read_json(path)
    try:
        return MarksFile.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [f"no. {each + 1}" if isinstance(each, int) else str(each) for each in first["loc"]]
        says = fault(first)
        where = " ".join(place) or "it"
        got = f", got {short(first['input'])}" if says.startswith("must") else ""
        raise DatasetError(
            f"{path} is not a file of marks: {where}{'' if says.startswith(('must', 'is ')) else ':'} {says}{got}; "
            "download it from the page of text2seg report or from the app"
        ) from error


def write_marks(path: str | os.PathLike[str], name: str, sha256: str, marks: Iterable[Mark]) -> Path:
    """Write marks for the dataset with this name and hash. Raises `OutputError` if the file cannot be written."""
    content = MarksFile(dataset=MarkedDataset(name=name, sha256=sha256), marks=list(marks))
    return write_json(path, content.model_dump(exclude_none=True))


def find_marked(file: MarksFile, name: str, datasets: Iterable[Dataset]) -> Dataset:
    """Return the dataset that marks belong to.

    Raises:
        DatasetError: it is none of these.
    """
    datasets = list(datasets)
    found = next((each for each in datasets if identity(each) == file.dataset.sha256), None)
    if found is None:
        there = ", ".join(each.name for each in datasets)
        raise DatasetError(
            f"{name} has marks of another dataset, {file.dataset.name} with the hash {file.dataset.sha256[:12]}…, "
            f"not of {there}; give that dataset, or mark a new page of text2seg report"
        )
    return found
