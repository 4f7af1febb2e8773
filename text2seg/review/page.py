"""The page itself: one HTML file that needs nothing else, written from a template."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from text2seg._version import __version__
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import PictureFinder
from text2seg.errors import Text2SegError
from text2seg.files import check_writable, write_atomically
from text2seg.pages import render_template
from text2seg.render.colours import Colour
from text2seg.review.contents import CategoryRow, Contents, Item, Picture, contents_of
from text2seg.review.tiles import MOST_ITEMS, tile
from text2seg.review.uncertainty import PARTS, nearness

BINS = 20
THREADS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Review:
    """What was written where. `shown` and `left_out` count images, `unseen` those whose picture could not be shown."""

    path: Path
    shown: int
    left_out: int
    unseen: int


def write_review(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str] = "report.html",
    *,
    images: str | os.PathLike[str] | None = None,
    limit: int = 500,
    overwrite: bool = False,
    progress: bool = False,
) -> Review:
    """Write the review page of a COCO dataset of anyone: what is in it, then the `limit` most doubtful pictures.

    Args:
        dataset: the COCO file.
        output: the HTML file.
        images: where the pictures lie; by default as for `text2seg.coco.lookup.PictureFinder`. One that is missing or
            cannot be read has a grey tile that says so.
        overwrite: write over an output that is there.

    Raises:
        OutputError: the output is there already, is the dataset itself, or cannot be written.
        Text2SegError: the dataset cannot be read, or the limit is below 1.
    """
    dataset, output = Path(dataset), Path(output)
    if limit < 1:
        raise Text2SegError(f"the limit must be 1 or more, got {limit}")
    check_writable(output, overwrite=overwrite, inputs=[dataset], text=True)
    content = read_dataset(dataset)
    contents = contents_of(content)
    shown = contents.pictures[:limit]
    show = partial(tile, colours=contents.colours, finder=PictureFinder(dataset, images, content["info"]))
    with ThreadPoolExecutor(THREADS) as pool:
        thumbnails = list(tqdm(pool.map(show, shown), total=len(shown), unit="tile", disable=not progress))
    for url, _, words in thumbnails:
        if not url:
            _log.info("%s", words)
    tiles = [
        _tile(number, picture, contents, *thumbnail)
        for number, (picture, thumbnail) in enumerate(zip(shown, thumbnails, strict=True))
    ]
    html = _render(contents, tiles, title=dataset.name)
    write_atomically(output, [html.encode("utf-8", "backslashreplace")])
    return Review(output, len(shown), len(contents.pictures) - len(shown), sum(not url for url, _, _ in thumbnails))


def _render(contents: Contents, tiles: list[dict[str, Any]], *, title: str) -> str:
    pictures = contents.pictures
    found = sum(bool(picture.items) for picture in pictures)
    rows = sorted(contents.categories, key=lambda row: (-row.annotations, row.name))
    return render_template(
        "text2seg.review",
        {"number": _number, "percent": _percent},
        title=title,
        version=__version__,
        tiles=tiles,
        left_out=len(pictures) - len(tiles),
        headline=[
            ("image", "images", len(pictures)),
            ("with annotations", "with annotations", found),
            ("empty", "empty", len(pictures) - found),
            ("failed", "failed", len(contents.failures)),
            ("annotation", "annotations", sum(row.annotations for row in rows)),
        ],
        rows=[_row(row, contents.colours) for row in rows if row.annotations],
        unused=[row.name for row in rows if not row.annotations],
        bars=_histogram(contents.scores),
        scored=len(contents.scores),
        failures=[
            {key: str(each.get(key, "")) for key in ("file_name", "stage", "message")} for each in contents.failures
        ],
        orphans=contents.orphans,
        reasons=[
            name for name in (*PARTS, "missed") if any(name == item[2] for each in tiles for item in each["data"])
        ],
    )


def _tile(
    number: int, picture: Picture, contents: Contents, url: str, size: tuple[int, int], words: str
) -> dict[str, Any]:
    """What the template needs of one picture. `data` is what the page filters by: for each annotation, and what was
    nearly found, its category, how doubtful it is and why."""
    counts = Counter(item.category for item in picture.items)
    names = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
    items = picture.items[:MOST_ITEMS]
    listed = {item.category for item in items}
    more = {item.category: item for item in reversed(picture.items[MOST_ITEMS:]) if item.category not in listed}
    data = [[i.category, _rounded(i.doubt), i.uncertainty.reason or ""] for i in (*items, *more.values())]
    data += [[near.category, _rounded(nearness(near.presence, near.threshold)), "missed"] for near in picture.near]
    return {
        "number": number,
        "name": picture.file_name,
        "uncertainty": picture.uncertainty,
        "url": url,
        "width": size[0],
        "height": size[1],
        "alt": f"{picture.file_name} with {names} marked"
        if names
        else f"{picture.file_name}, in which nothing was found",
        "words": words,
        "items": [_item(place, item, contents.colours) for place, item in enumerate(items, start=1)],
        "unlisted": len(picture.items) - len(items),
        "near": picture.near,
        "data": data,
    }


def _item(place: int, item: Item, colours: Any) -> dict[str, Any]:
    doubt = item.uncertainty
    return {
        "place": place,
        "id": item.annotation.get("id"),
        "name": item.category,
        "colour": _hex(colours[item.category]),
        "score": item.score,
        "uncertainty": doubt.value,
        "reason": doubt.words[doubt.reason] if doubt.reason else "no score, so its doubt is not known",
        "parts": [(name, doubt.parts[name], doubt.words[name]) for name in PARTS if name in doubt.parts],
    }


def _row(row: CategoryRow, colours: Any) -> dict[str, Any]:
    return {
        "name": row.name,
        "colour": _hex(colours[row.name]),
        "images": row.images,
        "annotations": row.annotations,
        "area": row.area_share,
        "score": row.score,
        "presence": row.presence,
    }


def _histogram(scores: Iterable[float]) -> list[dict[str, Any]]:
    """`BINS` equal steps from 0 to 1, each with its count and its share of the highest."""
    counts = Counter(min(max(int(score * BINS), 0), BINS - 1) for score in scores)
    highest = max(counts.values(), default=1)
    return [
        {"low": place / BINS, "high": (place + 1) / BINS, "count": counts[place], "share": counts[place] / highest}
        for place in range(BINS)
    ]


def _rounded(value: float | None) -> float:
    """As the page compares: unknown is below everything."""
    return -1 if value is None else round(value, 4)


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
