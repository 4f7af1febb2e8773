"""Review of a finished job: its images page by page, what the visitor decides, and the downloads."""

from __future__ import annotations

import secrets
import threading
import zipfile
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from text2seg.coco.dataset import read_dataset, write_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.marks import Marks, identity, read_marks, write_marks
from text2seg.errors import DatasetError, OutputError, Text2SegError
from text2seg.io.files import reason
from text2seg.io.writing import discard, make_folder, write_atomically
from text2seg.review import write_review
from text2seg.review.contents import Contents, Item, ReviewImage, contents_of
from text2seg.review.thumbnail import LONG_SIDE, Thumbnail, thumbnail

if TYPE_CHECKING:
    from text2seg.app.folder.jobs import Job

Json = Mapping[str, Any]
Shown = Literal["all", "undecided", "accepted", "rejected"]

PAGE = 12
"""Images on one page, which holds their thumbnails."""
THREADS = 2
LARGE = 1600
"""Longer side of an image in the large view, pixels."""


@dataclass(frozen=True, slots=True)
class SheetPage:
    """One page of the contact sheet. `first` counts the images on the pages before, `fitting` those on all pages;
    `tiles` are values for the template."""

    first: int
    fitting: int
    tiles: tuple[dict[str, Any], ...]

    @property
    def number(self) -> int:
        """Number of pages before."""
        return -(-self.first // PAGE)

    @property
    def pages(self) -> int:
        return max(1, self.number - (self.first - self.fitting) // PAGE)

    @property
    def begin(self) -> int:
        """Place of the first image, or 0."""
        return int(self.tiles[0]["place"]) if self.tiles else 0

    @property
    def end(self) -> int:
        """Place after the last image, or 0."""
        return int(self.tiles[-1]["place"]) + 1 if self.tiles else 0


class ContactSheet:
    """A dataset for review. Images are addressed by their place, most uncertain first.

    Marks do not change the `content`; editing by hand does. `edited` and `added` are the ids of annotations whose mask
    was edited or that were added. `colours` are those of the categories, "#rrggbb".
    """

    def __init__(self, dataset: Path, images: Path) -> None:
        """Read a dataset. Raises `DatasetError` if it cannot be read."""
        self.content = read_dataset(dataset)
        self.contents: Contents = contents_of(self.content)
        self._show = partial(thumbnail, colours=self.contents.colours, finder=ImageFinder(images=images))
        self._folder = images
        self.colours = {name: "#" + bytes(self.contents.colours[name]).hex() for name in self.categories}
        self.content.name = "this job"  # in messages
        self.edited: set[int] = set()
        self.added: set[int] = set()
        self._given: dict[str, Mapping[int, str]] = {}
        self._last = max((each["id"] for each in self.content["annotations"]), default=0)
        self._lock = threading.Lock()
        self._versions: Counter[int] = Counter()

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, in the order of the dataset."""
        return tuple(each["name"] for each in self.content["categories"])

    def page(self, marks: Marks, shown: Shown, begin: int) -> SheetPage:
        """Return a page of the images with this verdict, from the place `begin` on. If there is none, the last ones."""
        fitting = self._fitting(marks, shown)
        first = bisect_left(fitting, begin)
        if first == len(fitting):
            first = max(0, first - PAGE)
        with ThreadPoolExecutor(THREADS) as pool:
            tiles = tuple(pool.map(partial(self._tile, marks), fitting[first : first + PAGE]))
        return SheetPage(first, len(fitting), tiles)

    def page_before(self, marks: Marks, shown: Shown, begin: int) -> SheetPage:
        """Return the page with the images before the place `begin`."""
        fitting = self._fitting(marks, shown)
        first = max(0, bisect_left(fitting, begin) - PAGE)
        return self.page(marks, shown, fitting[first] if fitting else 0)

    def counts(self, marks: Marks) -> Counter[str]:
        """Return how many segments each category has, without rejected images and segments."""
        return Counter(
            item.category
            for image in self.contents.images
            for item in _corrected(image, marks).items
            if not marks.is_rejected(item.annotation, image.file_name)
        )

    def found(self, marks: Marks) -> int:
        """Return the number of images with a segment that is not rejected."""
        return sum(
            not all(marks.is_rejected(item.annotation, image.file_name) for item in image.items)
            for image in self.contents.images
        )

    def decide(self, marks: Marks, change: dict[str, Any]) -> None:
        """Record a decision of a page: the `place` of an image and its `verdict`, or one of its segments and whether to
        `keep` it or its `category`. Ignore anything that does not fit the dataset."""
        match change:
            case {"place": int(place), "verdict": "accepted" | "rejected" | None as verdict} if self._has(place):
                marks.decide_image(self.contents.images[place].file_name, verdict)
            case {"place": int(place), "segment": int(segment), "keep": bool(keep)} if self._has(place):
                if item := self._item(place, segment):
                    marks.decide(segment, None if keep else "rejected", None, item.category)
            case {"place": int(place), "segment": int(segment), "category": str(name)} if self._has(place):
                item = self._item(place, segment)
                if item and name in self.categories:
                    marks.decide(segment, "accepted", name, item.category)

    def open_marks(self, marks: Marks, path: Path) -> str:
        """Add the marks of a file to those of this job; where both decide, the file counts. Return what it decides, in
        words.

        Raises:
            DatasetError: it is not a file of marks, or not of this job: of its dataset as it is now, or as it was in a
                download.
        """
        name = path.name
        try:
            file = read_marks(path)
        except DatasetError as error:
            raise DatasetError(str(error).replace(str(path), name)) from error
        shown = {identity(self.content): {}, **self._given}.get(file.dataset.sha256)
        if shown is None:
            raise DatasetError(
                f"{name} has marks of another dataset, {file.dataset.name}; open marks of this job, or of a page or "
                "dataset that was downloaded from it"
            )
        opened = file.with_categories(shown).marks_of(self.content, name)
        marks.update(opened)
        return opened.count()

    def hand_out(self, dataset: Json, marks: Marks | None = None) -> str:
        """Remember a dataset that a visitor gets, so that marks of it can be opened, and return its hash. `marks` were
        applied to it."""
        sha256 = identity(dataset)
        self._given[sha256] = dict(marks.categories) if marks else {}
        return sha256

    def picture(self, marks: Marks, place: int, *, is_large: bool = False) -> Thumbnail | None:
        """Return an image with its segments, if wished in a size for the whole window; None if there is no such
        image."""
        image = self.image(marks, place)
        side = LARGE if is_large else LONG_SIDE
        return self._show(image, rejected=marks.rejected, long_side=side) if image else None

    def image(self, marks: Marks, place: int) -> ReviewImage | None:
        """Return an image with corrected categories; None if there is no such image."""
        return _corrected(self.contents.images[place], marks) if self._has(place) else None

    def version(self, place: int) -> int:
        """Return how often an image was edited by hand."""
        return self._versions[place]

    def correct(
        self,
        marks: Marks,
        place: int,
        version: int,
        edited: Mapping[int, Json],
        added: Sequence[Json],
        removed: Sequence[int],
    ) -> None:
        """Take over what was edited by hand in an image.

        Args:
            version: the version of the image that was edited.
            edited: new annotations by their ids; their category stays as it is.
            added: annotations without an id, which get one.
            removed: ids of annotations to reject.

        Raises:
            Text2SegError: the image has another version by now; nothing is changed.
        """
        if not (edited or added or removed):
            return
        with self._lock:
            if self._versions[place] != version:
                raise Text2SegError(
                    "another window has saved this image since; go back without saving, and edit it again"
                )
            self._versions[place] += 1
        image = self.contents.images[place]
        changed = {}
        for number, annotation in edited.items():
            if item := self._item(place, number):
                ours = {key: item.annotation[key] for key in ("id", "image_id", "category_id")}
                changed[number] = {**annotation, **ours}
                self.edited.add(number)
        number_of_image = next(each["id"] for each in self.content["images"] if each["file_name"] == image.file_name)
        for annotation in added:
            with self._lock:
                self._last += 1
                number = self._last
            changed[number] = {**annotation, "id": number, "image_id": number_of_image}
            self.added.add(number)
        for number in removed:
            if item := self._item(place, number):
                marks.decide(number, "rejected", None, item.category)
        self._put(place, changed)

    def _put(self, place: int, annotations: Mapping[int, Json]) -> None:
        """Replace annotations of an image, or add them."""
        image, names = self.contents.images[place], {each["id"]: each["name"] for each in self.content["categories"]}
        with self._lock:
            items = {item.annotation["id"]: item for item in image.items}
            for number, annotation in annotations.items():
                before = items.get(number)
                threshold = before.threshold if before else None
                items[number] = Item.of(annotation, names[annotation["category_id"]], image.hw, threshold)
            image.items = [*items.values()]
            kept = {**{each["id"]: each for each in self.content["annotations"]}, **annotations}
            self.content["annotations"] = [*kept.values()]

    def _fitting(self, marks: Marks, shown: Shown) -> list[int]:
        """Return the places of the images with this verdict."""
        return [place for place, each in enumerate(self.contents.images) if _fits(each, marks, shown)]

    def _item(self, place: int, number: int) -> Item | None:
        return next((item for item in self.contents.images[place].items if item.annotation["id"] == number), None)

    def _has(self, place: int) -> bool:
        return 0 <= place < len(self.contents.images)

    def _tile(self, marks: Marks, place: int) -> dict[str, Any]:
        image = self.contents.images[place]
        small = self._show(_corrected(image, marks), rejected=marks.rejected)
        return {
            "place": place,
            "name": image.file_name,
            "verdict": marks.images.get(image.file_name),
            "uncertainty": image.uncertainty,
            "url": small.url,
            "width": small.width,
            "height": small.height,
            "words": small.note.replace(f"{self._folder}/", ""),
            "segments": [self._segment(number, each, marks) for number, each in enumerate(image.items, start=1)],
            "near": image.near,
        }

    def _segment(self, number: int, item: Item, marks: Marks) -> dict[str, Any]:
        uncertainty, annotation = item.uncertainty, item.annotation["id"]
        name = marks.categories.get(annotation, item.category)
        verdict = marks.annotations.get(annotation)
        return {
            "number": number,
            "id": annotation,
            "name": name,
            "before": item.category,
            "colour": self.colours[name],
            "is_kept": verdict != "rejected",
            "verdict": "corrected" if annotation in marks.categories else "accepted" if verdict == "accepted" else "",
            "by_hand": [
                word for word, those in (("edited", self.edited), ("added", self.added)) if annotation in those
            ],
            "uncertainty": uncertainty.value,
            "reason": uncertainty.words[uncertainty.reason] if uncertainty.reason else "",
        }


def _corrected(image: ReviewImage, marks: Marks) -> ReviewImage:
    """Return an image with the categories that its annotations have now."""
    if not any(item.annotation["id"] in marks.categories for item in image.items):
        return image
    items = [replace(item, category=marks.categories.get(item.annotation["id"], item.category)) for item in image.items]
    return replace(image, items=items)


def _fits(image: ReviewImage, marks: Marks, shown: Shown) -> bool:
    return shown == "all" or (marks.images.get(image.file_name) or "undecided") == shown


# ---- downloads: the dataset without rejected items, the review page, and the failures

REVIEWED, UNREVIEWED = "dataset.json", "unreviewed.json"

README = """\
dataset.json     a COCO dataset, found by text2seg; info.review says what was accepted and rejected by hand
unreviewed.json  the dataset before the review, and marks.json its marks, for text2seg report and merge (only if
                 something was marked)
images/          the images, with the file names of the dataset (only in the download with images)
failures.txt     images that failed, one per line, with the reason
left_out.txt     what was skipped, left out or not looked for
"""


def dataset_zip(job: Job, sheet: ContactSheet, *, images: bool) -> Path:
    """Write a zip of the dataset, its marks and the failures, with or without the images.

    Raises:
        OutputError: the zip cannot be written.
    """
    dataset, folder = _reviewed(job, sheet), _downloads(job)
    sheet.hand_out(dataset, job.marks)
    target = folder / f"{_stem(job)}-coco{'-with-images' if images else ''}.zip"
    part = target.with_name(f"{secrets.token_hex(8)}.part")  # two requests may run at once
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(write_dataset(dataset, folder / REVIEWED), REVIEWED)
            archive.writestr("README.txt", README)
            if job.marks != Marks():
                archive.write(write_dataset(sheet.content, folder / UNREVIEWED), UNREVIEWED)
                archive.write(marks_file(job, sheet), "marks.json")
            if job.failures:
                archive.writestr("failures.txt", _failures(job))
            if notes := [*job.notes, *job.unknown]:
                archive.writestr("left_out.txt", "".join(f"{line}\n" for line in notes))
            for name in [image["file_name"] for image in dataset["images"]] if images else ():
                archive.write(job.images / name, f"images/{name}", zipfile.ZIP_STORED)  # images are compressed already
        part.replace(target)
    except OSError as error:
        raise OutputError(f"the zip cannot be written: {reason(error)}; try again later") from error
    finally:
        discard(part)
    return target


def marks_file(job: Job, sheet: ContactSheet) -> Path:
    """Write the marks. Raises `OutputError` if there are none or they cannot be written."""
    if job.marks == Marks():
        raise OutputError("nothing is marked yet; accept or reject an image or a segment first")
    target = _downloads(job) / f"{_stem(job)}-marks.json"
    return write_marks(target, UNREVIEWED, sheet.hand_out(sheet.content), job.marks.entries(sheet.content))


def review_page(job: Job, sheet: ContactSheet) -> Path:
    """Write the page of `text2seg report` of the dataset before the review, with the marks. It names the file that this
    dataset is in the other downloads. Raises `OutputError` if it cannot be written."""
    folder = _downloads(job) / "page"  # where no other download writes these names
    make_folder(folder)
    dataset = write_dataset(sheet.content, folder / (REVIEWED if job.marks == Marks() else UNREVIEWED))
    marks = marks_file(job, sheet) if job.marks != Marks() else None
    if marks is None:  # `marks_file` does the same
        sheet.hand_out(sheet.content)
    target = _downloads(job) / f"{_stem(job)}-review.html"
    return write_review(dataset, target, images=job.images, marks=marks, name=_stem(job), overwrite=True).path


def failures_text(job: Job) -> Path:
    """Write one line for each failed image. Raises `OutputError` if it cannot be written."""
    return write_atomically(_downloads(job) / f"{_stem(job)}-failures.txt", [_failures(job)])


def _reviewed(job: Job, sheet: ContactSheet) -> dict[str, Any]:
    dataset = job.marks.apply(sheet.content)
    by_hand = {"edited_annotations": sorted(sheet.edited), "added_annotations": sorted(sheet.added)}
    return {**dataset, "info": {**dataset["info"], "review": dataset["info"]["review"] | by_hand}}


def _failures(job: Job) -> bytes:
    return "".join(f"{line}\n" for line in job.failures).encode("utf-8", "backslashreplace")


def _downloads(job: Job) -> Path:
    folder = job.folder / "downloads"
    make_folder(folder)
    return folder


def _stem(job: Job) -> str:
    """Return the name of a job as a file name of letters, of any script, digits and hyphens."""
    kept = "".join(letter if letter.isalnum() else "-" for letter in Path(job.name).stem)
    return kept.strip("-")[:60] or "dataset"
