"""Review of a finished job: its images page by page, what the visitor decides, and the downloads."""

from __future__ import annotations

import secrets
import threading
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from text2seg.coco.dataset import read_dataset, write_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.errors import OutputError, Text2SegError
from text2seg.io.files import reason
from text2seg.io.writing import discard, make_folder, write_atomically
from text2seg.review import write_review
from text2seg.review.contents import Contents, Item, ReviewImage, contents_of
from text2seg.review.thumbnail import Thumbnail, thumbnail

if TYPE_CHECKING:
    from text2seg.app.folder.jobs import Job

Json = Mapping[str, Any]
Verdict = Literal["accepted", "rejected"]


@dataclass(slots=True)
class Decisions:
    """Verdicts by file name, ids of rejected annotations, and what was corrected: ids of annotations whose mask was
    edited or that were added, and the category that text2seg gave by the id of each annotation with another."""

    images: dict[str, Verdict] = field(default_factory=dict)
    segments: set[int] = field(default_factory=set)
    edited: set[int] = field(default_factory=set)
    added: set[int] = field(default_factory=set)
    categories: dict[int, str] = field(default_factory=dict)

    def decide(self, file_name: str, verdict: Verdict | None) -> None:
        """Set the verdict on an image; None removes it."""
        if verdict is None:
            self.images.pop(file_name, None)
        else:
            self.images[file_name] = verdict

    def keep_segment(self, number: int, *, keep: bool) -> None:
        (self.segments.discard if keep else self.segments.add)(number)

    def count(self, verdict: Verdict) -> int:
        return sum(each == verdict for each in self.images.values())

    def apply(self, dataset: Json) -> dict[str, Any]:
        """Return a dataset without rejected images and annotations. Ids do not change; `info.review` lists the
        decisions."""
        names = {image["id"]: image["file_name"] for image in dataset["images"]}
        kept = {number for number, name in names.items() if self.images.get(name) != "rejected"}
        review = {
            "accepted": sorted(name for name, verdict in self.images.items() if verdict == "accepted"),
            "rejected": sorted(name for name, verdict in self.images.items() if verdict == "rejected"),
            "rejected_annotations": sorted(self.segments),
            "edited_annotations": sorted(self.edited),
            "added_annotations": sorted(self.added),
            "corrected_categories": {str(number): name for number, name in sorted(self.categories.items())},
        }
        return {
            **dataset,
            "info": {**dataset["info"], "review": review},
            "images": [image for image in dataset["images"] if image["id"] in kept],
            "annotations": [
                each for each in dataset["annotations"] if each["image_id"] in kept and each["id"] not in self.segments
            ],
        }


Shown = Literal["all", "undecided", "accepted", "rejected"]

PAGE = 12
"""Images on one page, which holds their thumbnails."""
THREADS = 2
LARGE = 1600
"""Longer side of an image in the large view, pixels."""


@dataclass(frozen=True, slots=True)
class SheetPage:
    """One page of the contact sheet. `number` starts at 0; `fitting` counts the images on all pages; `tiles` are values
    for the template, `last` the place of the last one, or -1."""

    number: int
    pages: int
    fitting: int
    tiles: tuple[dict[str, Any], ...]

    @property
    def first(self) -> int:
        """Number of images on the pages before."""
        return self.number * PAGE

    @property
    def last(self) -> int:
        return int(self.tiles[-1]["place"]) if self.tiles else -1


class ContactSheet:
    """A dataset for review. Images are addressed by their place, most uncertain first."""

    def __init__(self, dataset: Path, images: Path) -> None:
        """Read a dataset. Raises `DatasetError` if it cannot be read."""
        self.content = read_dataset(dataset)
        self.contents: Contents = contents_of(self.content)
        self._show = partial(thumbnail, colours=self.contents.colours, finder=ImageFinder(images=images))
        self._folder = images
        self._last = max((each["id"] for each in self.content["annotations"]), default=0)
        self._lock = threading.Lock()
        self._versions: Counter[int] = Counter()

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, in the order of the dataset."""
        return tuple(each["name"] for each in self.content["categories"])

    def page(self, decisions: Decisions, shown: Shown, number: int) -> SheetPage:
        """Return one page of the images with this verdict. A number beyond the last page means the last page."""
        fitting = [place for place, each in enumerate(self.contents.images) if _fits(each, decisions, shown)]
        pages = max(1, -(-len(fitting) // PAGE))
        number = min(max(number, 0), pages - 1)
        places = fitting[number * PAGE : (number + 1) * PAGE]
        with ThreadPoolExecutor(THREADS) as pool:
            tiles = tuple(pool.map(partial(self._tile, decisions), places))
        return SheetPage(number, pages, len(fitting), tiles)

    def number_after(self, decisions: Decisions, shown: Shown, last: int) -> int:
        """Return the number of the page with the first image behind the place `last`. Images that do not fit any more
        have moved those behind them to earlier pages."""
        return sum(_fits(each, decisions, shown) for each in self.contents.images[: last + 1]) // PAGE

    def counts(self, decisions: Decisions) -> Counter[str]:
        """Return how many segments each category has, without rejected images and segments."""
        kept = (each for each in self.contents.images if decisions.images.get(each.file_name) != "rejected")
        items = (item for image in kept for item in image.items)
        return Counter(item.category for item in items if item.annotation["id"] not in decisions.segments)

    def decide(self, decisions: Decisions, change: dict[str, Any]) -> None:
        """Record a decision of a page: the `place` of an image and its `verdict`, or one of its segments and whether to
        `keep` it or its `category`. Ignore anything that does not fit the dataset."""
        match change:
            case {"place": int(place), "verdict": "accepted" | "rejected" | None as verdict} if self._has(place):
                decisions.decide(self.contents.images[place].file_name, verdict)
            case {"place": int(place), "segment": int(segment), "keep": bool(keep)} if self._has(place):
                if self._item(place, segment):
                    decisions.keep_segment(segment, keep=keep)
            case {"place": int(place), "segment": int(segment), "category": str(name)} if self._has(place):
                item = self._item(place, segment)
                if item and name in self.categories:
                    first = decisions.categories.setdefault(segment, item.category)
                    if first == name:
                        del decisions.categories[segment]
                    self._put(place, {segment: {**item.annotation, "category_id": self._id_of(name)}})

    def large(self, place: int) -> Thumbnail | None:
        """Return an image with its segments in a size for the whole window; None if there is no such image."""
        return self._show(self.contents.images[place], long_side=LARGE) if self._has(place) else None

    def image(self, place: int) -> ReviewImage | None:
        """Return an image; None if there is no such image."""
        return self.contents.images[place] if self._has(place) else None

    def version(self, place: int) -> int:
        """Return how often an image was edited by hand."""
        return self._versions[place]

    def correct(
        self,
        decisions: Decisions,
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
                decisions.edited.add(number)
        number_of_image = next(each["id"] for each in self.content["images"] if each["file_name"] == image.file_name)
        for annotation in added:
            with self._lock:
                self._last += 1
                number = self._last
            changed[number] = {**annotation, "id": number, "image_id": number_of_image}
            decisions.added.add(number)
        for number in removed:
            if self._item(place, number):
                decisions.keep_segment(number, keep=False)
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

    def _item(self, place: int, number: int) -> Item | None:
        return next((item for item in self.contents.images[place].items if item.annotation["id"] == number), None)

    def _id_of(self, category: str) -> int:
        return next(int(each["id"]) for each in self.content["categories"] if each["name"] == category)

    def _has(self, place: int) -> bool:
        return 0 <= place < len(self.contents.images)

    def _tile(self, decisions: Decisions, place: int) -> dict[str, Any]:
        image = self.contents.images[place]
        small = self._show(image)
        return {
            "place": place,
            "name": image.file_name,
            "verdict": decisions.images.get(image.file_name),
            "uncertainty": image.uncertainty,
            "url": small.url,
            "width": small.width,
            "height": small.height,
            "words": small.note.replace(f"{self._folder}/", ""),
            "segments": [self._segment(number, each, decisions) for number, each in enumerate(image.items, start=1)],
            "near": image.near,
        }

    def _segment(self, number: int, item: Item, decisions: Decisions) -> dict[str, Any]:
        uncertainty, annotation = item.uncertainty, item.annotation["id"]
        return {
            "number": number,
            "id": annotation,
            "name": item.category,
            "colour": "#" + bytes(self.contents.colours[item.category]).hex(),
            "is_kept": annotation not in decisions.segments,
            "marks": [
                word
                for word, those in (("edited", decisions.edited), ("added", decisions.added))
                if annotation in those
            ],
            "uncertainty": uncertainty.value,
            "reason": uncertainty.words[uncertainty.reason] if uncertainty.reason else "",
        }


def _fits(image: ReviewImage, decisions: Decisions, shown: Shown) -> bool:
    verdict = decisions.images.get(image.file_name)
    return shown == "all" or (verdict or "undecided") == shown


# ---- downloads: the dataset without rejected items, the review page, and the failures

README = """\
dataset.json  a COCO dataset, found by text2seg; info.review says what was accepted and rejected by hand
images/       the images, with the file names of the dataset (only in the download with images)
failures.txt  images that failed, one per line, with the reason
"""


def dataset_zip(job: Job, sheet: ContactSheet, *, images: bool) -> Path:
    """Write a zip of the dataset and the failures, with or without the images.

    Raises:
        OutputError: the zip cannot be written.
    """
    dataset = _reviewed(job, sheet)
    target = _downloads(job) / f"{_stem(job)}-coco{'-with-images' if images else ''}.zip"
    part = target.with_name(f"{secrets.token_hex(8)}.part")  # two requests may run at once
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(write_dataset(dataset, _downloads(job) / "dataset.json"), "dataset.json")
            archive.writestr("README.txt", README)
            if job.failures:
                archive.writestr("failures.txt", _failures(job))
            for name in [image["file_name"] for image in dataset["images"]] if images else ():
                archive.write(job.images / name, f"images/{name}", zipfile.ZIP_STORED)  # images are compressed already
        part.replace(target)
    except OSError as error:
        raise OutputError(f"the zip cannot be written: {reason(error)}; try again later") from error
    finally:
        discard(part)
    return target


def review_page(job: Job, sheet: ContactSheet) -> Path:
    """Write the page of `text2seg report` without rejected items. Raises `OutputError` if it cannot be written."""
    dataset = write_dataset(_reviewed(job, sheet), _downloads(job) / f"{_stem(job)}.json")
    target = _downloads(job) / f"{_stem(job)}-review.html"
    return write_review(dataset, target, images=job.images, overwrite=True).path


def failures_text(job: Job) -> Path:
    """Write one line for each failed image. Raises `OutputError` if it cannot be written."""
    return write_atomically(_downloads(job) / f"{_stem(job)}-failures.txt", [_failures(job)])


def _reviewed(job: Job, sheet: ContactSheet) -> dict[str, Any]:
    return job.decisions.apply(sheet.content)


def _failures(job: Job) -> bytes:
    return "".join(f"{line}\n" for line in job.failures).encode("utf-8", "backslashreplace")


def _downloads(job: Job) -> Path:
    folder = job.folder / "downloads"
    make_folder(folder)
    return folder


def _stem(job: Job) -> str:
    """Return the name of a job as a file name of letters, digits and hyphens."""
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in Path(job.name).stem)
    return kept.strip("-")[:60] or "dataset"
