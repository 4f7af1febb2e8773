"""Review page of a dataset: one HTML file that needs nothing else, with thumbnails of images and their segments."""

from __future__ import annotations

import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw
from tqdm import tqdm

from text2seg._version import __version__
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.results import mask_of
from text2seg.errors import Text2SegError
from text2seg.io.files import check_writable, write_atomically
from text2seg.io.images import load_image
from text2seg.render.colours import INK, PAPER, Colour, blend, outline
from text2seg.render.html import render_template
from text2seg.render.lettering import draw_text, text_width
from text2seg.review.contents import CategoryRow, Contents, Item, ReviewImage, contents_of
from text2seg.review.uncertainty import PARTS, nearness

LONG_SIDE, QUALITY = 360, 82
NUMBER = 13  # height of a segment's number, pixels
MOST_ITEMS = 100
"""So many annotations of an image are drawn and listed, the most doubtful ones. No eye tells more apart, and each one
takes memory and time."""
LEAST_NUMBERED = 60  # pixels of the thumbnail; a number would hide a smaller segment


def tile(image: ReviewImage, colours: Mapping[str, Colour], *, finder: ImageFinder) -> tuple[str, tuple[int, int], str]:
    """The thumbnail as a data URL, its width and height, and what is to be said of it; the URL is empty where there is
    nothing to show, and the words say why."""
    try:
        path = finder.find(image.file_name)
        pixels = load_image(path).pixels
    except Text2SegError as error:
        return "", _size(image.hw or (3, 4)), str(error)
    hw = (pixels.shape[0], pixels.shape[1])
    if image.hw and image.hw != hw:
        mine, theirs = f"{hw[1]} x {hw[0]}", f"{image.hw[1]} x {image.hw[0]}"
        return (
            "",
            _size(hw),
            f"{path} is {mine} pixels, in the dataset it is {theirs}: not the image that was labelled",
        )
    width, height = _size(hw)
    how = cv2.INTER_AREA if max(hw) > LONG_SIDE else cv2.INTER_NEAREST
    small = np.asarray(cv2.resize(pixels, (width, height), interpolation=how), dtype=np.uint8)
    painted, unreadable = _painted(small, image.items, colours, hw)
    words = f"no mask that can be read: {', '.join(unreadable)}" if unreadable else ""
    return _data_url(painted), (width, height), words


def _size(hw: tuple[int, int]) -> tuple[int, int]:
    scale = LONG_SIDE / max(hw)
    return max(1, round(hw[1] * scale)), max(1, round(hw[0] * scale))


def _painted(
    small: NDArray[np.uint8], items: Sequence[Item], colours: Mapping[str, Colour], hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], list[str]]:
    """The thumbnail with its first `MOST_ITEMS` segments, large ones below, and those whose mask cannot be read."""
    masks: list[tuple[int, Item, NDArray[np.bool_]]] = []
    unreadable = []
    for number, item in enumerate(items[:MOST_ITEMS], start=1):
        try:
            mask = _mask(item, hw)
        except Text2SegError as error:
            unreadable.append(f"{item.category} ({error})")
            continue
        covered = cv2.resize(mask.view(np.uint8) * 255, small.shape[1::-1], interpolation=cv2.INTER_AREA) > 127
        masks.append((number, item, covered))
    masks.sort(key=lambda each: -np.count_nonzero(each[2]))
    for _, item, mask in masks:
        small = blend(small, mask, colours[item.category], 0.45)
    small = np.ascontiguousarray(small)
    for _, item, mask in masks:
        outline(small, mask, colours[item.category], 2)
    return _numbered(small, [(number, mask) for number, _, mask in masks]), unreadable


def _mask(item: Item, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, or the box where a dataset has boxes only."""
    box = item.annotation.get("bbox")
    if item.annotation.get("segmentation") or box is None:
        return mask_of(item.annotation, hw)
    x, y, width, height = box
    mask = np.zeros(hw, np.bool_)
    mask[max(round(y), 0) : max(round(y + height), 0), max(round(x), 0) : max(round(x + width), 0)] = True
    return mask


def _numbered(small: NDArray[np.uint8], masks: Sequence[tuple[int, NDArray[np.bool_]]]) -> NDArray[np.uint8]:
    """Each segment's number where the segment is broadest and no lower number stands."""
    canvas = PillowImage.fromarray(small)
    draw = ImageDraw.Draw(canvas)
    free = np.ones(small.shape[:2], np.uint8)
    for number, mask in sorted(masks, key=lambda each: each[0]):
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1] * free
        y, x = (int(at) for at in np.unravel_index(np.argmax(depth), depth.shape))
        if np.count_nonzero(mask) < LEAST_NUMBERED or not depth[y, x]:
            continue
        half = (round(text_width(str(number), NUMBER) / 2) + 4, NUMBER // 2 + 3)
        x = min(max(x, half[0]), max(canvas.width - half[0] - 1, 0))
        y = min(max(y, half[1]), max(canvas.height - half[1] - 1, 0))
        draw.rounded_rectangle((x - half[0], y - half[1], x + half[0], y + half[1]), 4, fill=PAPER)
        draw_text(draw, (x - half[0] + 4, y), str(number), size=NUMBER, colour=INK, width=100)
        free[max(y - 2 * half[1], 0) : y + 2 * half[1] + 1, max(x - 2 * half[0], 0) : x + 2 * half[0] + 1] = 0
    return np.asarray(canvas)


def _data_url(pixels: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


BINS = 20
THREADS = 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Review:
    """What was written where. `shown` and `left_out` count images, `unseen` those whose image could not be shown."""

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
    """Write the review page of a COCO dataset of anyone: what is in it, then the `limit` most doubtful images.

    Args:
        dataset: the COCO file.
        output: the HTML file.
        images: where the images lie; by default as for `text2seg.coco.lookup.ImageFinder`. One that is missing or
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
    shown = contents.images[:limit]
    show = partial(tile, colours=contents.colours, finder=ImageFinder(dataset, images, content["info"]))
    with ThreadPoolExecutor(THREADS) as pool:
        thumbnails = list(tqdm(pool.map(show, shown), total=len(shown), unit="tile", disable=not progress))
    for url, _, words in thumbnails:
        if not url:
            _log.info("%s", words)
    tiles = [
        _tile(number, image, contents, *thumbnail)
        for number, (image, thumbnail) in enumerate(zip(shown, thumbnails, strict=True))
    ]
    html = _render(contents, tiles, title=dataset.name)
    write_atomically(output, [html.encode("utf-8", "backslashreplace")])
    return Review(output, len(shown), len(contents.images) - len(shown), sum(not url for url, _, _ in thumbnails))


def _render(contents: Contents, tiles: list[dict[str, Any]], *, title: str) -> str:
    images = contents.images
    found = sum(bool(image.items) for image in images)
    rows = sorted(contents.categories, key=lambda row: (-row.annotations, row.name))
    return render_template(
        "text2seg.review",
        {"number": _number, "percent": _percent},
        title=title,
        version=__version__,
        tiles=tiles,
        left_out=len(images) - len(tiles),
        headline=[
            ("image", "images", len(images)),
            ("with annotations", "with annotations", found),
            ("empty", "empty", len(images) - found),
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
    number: int, image: ReviewImage, contents: Contents, url: str, size: tuple[int, int], words: str
) -> dict[str, Any]:
    """What the template needs of one image. `data` is what the page filters by: for each annotation, and what was
    nearly found, its category, how doubtful it is and why."""
    counts = Counter(item.category for item in image.items)
    names = ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
    items = image.items[:MOST_ITEMS]
    listed = {item.category for item in items}
    more = {item.category: item for item in reversed(image.items[MOST_ITEMS:]) if item.category not in listed}
    data = [[i.category, _rounded(i.doubt), i.uncertainty.reason or ""] for i in (*items, *more.values())]
    data += [[near.category, _rounded(nearness(near.presence, near.threshold)), "missed"] for near in image.near]
    return {
        "number": number,
        "name": image.file_name,
        "uncertainty": image.uncertainty,
        "url": url,
        "width": size[0],
        "height": size[1],
        "alt": f"{image.file_name} with {names} marked" if names else f"{image.file_name}, in which nothing was found",
        "words": words,
        "items": [_item(place, item, contents.colours) for place, item in enumerate(items, start=1)],
        "unlisted": len(image.items) - len(items),
        "near": image.near,
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
