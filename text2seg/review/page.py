"""The review page of a dataset: one HTML file with a summary and thumbnails, the most uncertain first."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from text2seg._version import __version__
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.marks import REVIEW, find_marked, identity, read_marks
from text2seg.coco.reader import Dataset, attributes_of
from text2seg.errors import Text2SegError
from text2seg.io.writing import check_writable, write_atomically
from text2seg.labelling.summary import columns
from text2seg.render.drawing import Colour
from text2seg.render.saving import render_template
from text2seg.review.contents import PARTS, Contents, Item, Near, ReviewImage, contents_of, nearness
from text2seg.review.thumbnail import LONG_SIDE, MAX_ITEMS, Thumbnail, thumbnail

BINS = 20
"""Bars of the histogram of scores."""
SIDES = (16, 4096)
"""Smallest and largest longer side of the images on the page, pixels."""
THREADS = 2
"""Threads that read images and draw thumbnails."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Review:
    """The written page.

    `shown` and `left_out` count images on the page and images beyond the limit, `unseen` those on the page whose
    file could not be shown.
    """

    path: Path
    shown: int
    left_out: int
    unseen: int


def write_review(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str] = "outputs/report.html",
    *,
    images: str | os.PathLike[str] | None = None,
    marks: str | os.PathLike[str] | None = None,
    name: str | None = None,
    limit: int = 500,
    image_side: int = LONG_SIDE,
    overwrite: bool = False,
    progress: bool = False,
) -> Review:
    """Write the review page of any COCO dataset.

    Args:
        dataset: the COCO file.
        output: the HTML file.
        images: folder of the images. Default: see `text2seg.coco.lookup.ImageFinder`. An image that is missing or
            cannot be read has a grey card that says so.
        marks: a file of marks of this dataset that the page begins with.
        name: name of the page and of the marks that are downloaded from it. Default: the file name of the dataset.
        limit: how many images are shown, the most uncertain first; the summary counts all.
        image_side: longer side of the images on the page, pixels. The page shows an image in the whole window.
        overwrite: replace an existing output.
        progress: show a progress bar.

    Raises:
        OutputError: the output exists, is the dataset itself, or cannot be written.
        Text2SegError: the dataset cannot be read, the limit is below 1, or the side is not from 16 to 4096.
    """
    dataset, output = Path(dataset), Path(output)
    if limit < 1:
        raise Text2SegError(f"the limit must be 1 or more, got {limit}")
    if not SIDES[0] <= image_side <= SIDES[1]:
        raise Text2SegError(f"the side of the images must be from {SIDES[0]} to {SIDES[1]}, got {image_side}")
    content = read_dataset(dataset)
    check_writable(output, overwrite=overwrite, inputs=[dataset, *([Path(marks)] if marks else [])], text=True)
    begun, rejected = _begun(content, marks) if marks else ({"marks": [], "begun": ""}, [])
    contents = contents_of(content)
    shown = contents.images[:limit]
    finder = ImageFinder(dataset, images, content["info"])
    draw = partial(thumbnail, colours=contents.colours, finder=finder, long_side=image_side, rejected=rejected)
    with ThreadPoolExecutor(THREADS) as pool:
        thumbnails = list(tqdm(pool.map(draw, shown), total=len(shown), unit="image", disable=not progress))
    for each in thumbnails:
        if not each.url:
            _log.info("%s", each.note)
    cards = [_card(number, *pair, contents) for number, pair in enumerate(zip(shown, thumbnails, strict=True))]
    about = {
        "name": name or dataset.name,
        "file": dataset.name,
        "sha256": identity(content),
        "categories": list(dict.fromkeys(each["name"] for each in content["categories"])),
        **begun,
    }
    html = _render(contents, cards, about)
    write_atomically(output, [html.encode("utf-8", "backslashreplace")])
    return Review(output, len(shown), len(contents.images) - len(shown), sum(not each.url for each in thumbnails))


def _begun(dataset: Dataset, marks: str | os.PathLike[str]) -> tuple[dict[str, Any], list[int]]:
    """Return the marks that the page begins with, with their hash, and the ids of rejected annotations."""
    file = read_marks(marks)
    of_dataset = file.marks_of(find_marked(file, str(marks), [dataset]), str(marks))
    begun = {"marks": [each.model_dump(exclude_none=True) for each in file.marks], "begun": file.sha256}
    return begun, of_dataset.rejected


def _render(contents: Contents, cards: list[dict[str, Any]], about: Mapping[str, Any]) -> str:
    """Return the page. `about` is what its script must know: the name of the page, the dataset's file name, hash and
    categories, and the marks to begin with."""
    images = contents.images
    found = sum(bool(image.items) for image in images)
    rows = sorted(contents.categories, key=lambda row: (-row.segments, row.name))
    shown = columns(rows, calibrated=contents.calibrated)
    return render_template(
        "text2seg.review",
        {"number": _number},
        title=about["name"],
        file=about["file"],
        about=about,
        models=contents.models,
        version=__version__,
        cards=cards,
        left_out=len(images) - len(cards),
        headline=[
            ("image", "images", len(images)),
            ("with annotations", "with annotations", found),
            ("nothing found", "nothing found", len(images) - found),
            ("failed", "failed", len(contents.failures)),
            ("annotation", "annotations", sum(row.segments for row in rows)),
        ],
        columns=tuple(shown.values()),
        rows=[
            {"name": row.name, "colour": _hex(contents.colours[row.name]), "values": row.texts(shown)}
            for row in rows
            if row.segments
        ],
        unused=[row.name for row in rows if not row.segments],
        bars=_histogram(contents.scores),
        scored=len(contents.scores),
        failures=[
            {key: str(each.get(key, "")) for key in ("file_name", "stage", "message")} for each in contents.failures
        ],
        orphans=contents.orphans,
        controls=filter_controls([entry for card in cards for entry in card["entries"]]),
    )


def _card(number: int, image: ReviewImage, small: Thumbnail, contents: Contents) -> dict[str, Any]:
    """Return what the template needs of one image. `entries` is what the page filters by."""
    counts = Counter(item.category for item in image.items)
    names = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
    items = image.items[:MAX_ITEMS]
    return {
        "number": number,
        "name": image.file_name,
        "uncertainty": image.uncertainty,
        "thumbnail": small,
        "alt": f"{image.file_name} with {names} marked" if names else f"{image.file_name}, in which nothing was found",
        "annotations": [_annotation(place, item, contents.colours) for place, item in enumerate(items, start=1)],
        "unlisted": len(image.items) - len(items),
        "near": image.near,
        "entries": filter_entries(image, MAX_ITEMS),
    }


def _annotation(place: int, item: Item, colours: Mapping[str, Colour]) -> dict[str, Any]:
    uncertainty, parts = item.uncertainty, item.uncertainty.parts
    return {
        "place": place,
        "id": item.annotation.get("id"),
        "name": item.category,
        "colour": _hex(colours[item.category]),
        "review": attributes_of(item.annotation).get(REVIEW),
        "score": item.score,
        "uncertainty": uncertainty.value,
        "reason": uncertainty.words[uncertainty.reason] if uncertainty.reason else "no score: uncertainty unknown",
        "parts": [(name, parts[name], uncertainty.words[name]) for name in PARTS if name in parts],
    }


def _histogram(scores: Iterable[float]) -> list[dict[str, Any]]:
    """Return `BINS` equal bins from 0 to 1, each with its count and the count relative to the highest."""
    counts = Counter(min(max(int(score * BINS), 0), BINS - 1) for score in scores)
    highest = max(counts.values(), default=1)
    return [
        {"low": place / BINS, "high": (place + 1) / BINS, "count": counts[place], "share": counts[place] / highest}
        for place in range(BINS)
    ]


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


# ---- filters of the page; a new one needs a row in `FILTERS`; page and script handle each by its kind

NEARLY_FOUND = "nearly found"


@dataclass(frozen=True, slots=True)
class Filter:
    """One control above the images. An image is shown if one of its entries passes all filters.

    Entries are the image's annotations and its nearly found categories. Entries of nearly found categories count only
    if the image has no annotation or the main reason `NEARLY_FOUND` is chosen.
    """

    id: str
    """Name in the page's address."""
    label: str
    kind: Literal["choice", "minimum", "text"]
    """choice: the value must be the chosen one; minimum: a value in [0, 1] must not be below the slider; text: the
    value must contain the text, in any letter case."""
    value: Callable[[Item | Near], str | float] | None
    """Value of an entry. None: the file name of the image."""
    all_label: str = ""
    """What a choice says when it filters nothing."""


def _uncertainty(entry: Item | Near) -> float:
    """Return the uncertainty in [0, 1], or -1 if it is unknown."""
    if isinstance(entry, Near):
        return round(nearness(entry.presence, entry.threshold), 4)
    return -1 if entry.uncertainty_value is None else round(entry.uncertainty_value, 4)


def _reason(entry: Item | Near) -> str:
    return NEARLY_FOUND if isinstance(entry, Near) else entry.uncertainty.reason or "unknown"


FILTERS = (
    Filter("category", "Category", "choice", lambda entry: entry.category, all_label="all"),
    Filter("reason", "Main reason", "choice", _reason, all_label="any"),
    Filter("uncertainty", "Uncertainty at least", "minimum", _uncertainty),
    Filter("name", "File name", "text", None),
)


def filter_entries(image: ReviewImage, limit: int) -> list[list[Any]]:
    """Return the entries of an image as the page's script reads them.

    Args:
        limit: number of annotations that are listed on the page; of the others, one per further category is kept.

    Returns:
        One list per entry: its uncertainty, whether it is nearly found (0 or 1), and the values of `FILTERS` in order.
    """
    listed = image.items[:limit]
    categories = {item.category for item in listed}
    further = {item.category: item for item in reversed(image.items[limit:]) if item.category not in categories}
    entries: list[Item | Near] = [*listed, *further.values(), *image.near]
    return [
        [
            _uncertainty(entry),
            int(isinstance(entry, Near)),
            *(each.value(entry) if each.value else 0 for each in FILTERS),
        ]
        for entry in entries
    ]


def filter_controls(entries: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return what the template needs to draw the controls, with the values that occur as choices."""
    return [
        {
            "id": each.id,
            "label": each.label,
            "kind": each.kind,
            "all_label": each.all_label,
            "choices": sorted({str(entry[column]) for entry in entries}) if each.kind == "choice" else [],
        }
        for column, each in enumerate(FILTERS, start=2)
    ]
