"""The contact sheet of a job that is done: its pictures, most doubtful first, a page at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from text2seg.app.folder.decisions import Decisions
from text2seg.coco.dataset import read_dataset
from text2seg.coco.lookup import ImageFinder
from text2seg.review.contents import Contents, Item, ReviewImage, contents_of
from text2seg.review.page import tile

Shown = Literal["all", "undecided", "accepted", "rejected"]

PAGE = 12  # pictures; their thumbnails travel with the page
THREADS = 2


@dataclass(frozen=True, slots=True)
class Page:
    """What a page of the sheet shows: `number` counts from 0, `tiles` are what the template needs of each picture."""

    number: int
    pages: int
    fitting: int
    tiles: tuple[dict[str, Any], ...]


class ContactSheet:
    """A dataset read for review. Pictures are known by their place in the order of doubt."""

    def __init__(self, dataset: Path, pictures: Path) -> None:
        """Raises `DatasetError` where the dataset cannot be read."""
        self.content = read_dataset(dataset)
        self.contents: Contents = contents_of(self.content)
        self._show = partial(tile, colours=self.contents.colours, finder=ImageFinder(images=pictures))
        self._folder = pictures
        self._segments = [{item.annotation["id"] for item in each.items} for each in self.contents.images]

    def page(self, decisions: Decisions, shown: Shown, number: int) -> Page:
        """The pictures that fit, `PAGE` at a time; a number beyond the last page is the last page."""
        fitting = [place for place, each in enumerate(self.contents.images) if _fits(each, decisions, shown)]
        pages = max(1, -(-len(fitting) // PAGE))
        number = min(max(number, 0), pages - 1)
        places = fitting[number * PAGE : (number + 1) * PAGE]
        with ThreadPoolExecutor(THREADS) as pool:
            tiles = tuple(pool.map(partial(self._tile, decisions), places))
        return Page(number, pages, len(fitting), tiles)

    def decide(self, decisions: Decisions, change: dict[str, Any]) -> None:
        """Note what a page reports: a picture's `place` and its new `verdict`, or one of its segments and whether to
        `keep` it. What does not fit the dataset comes from no page of ours and changes nothing."""
        match change:
            case {"place": int(place), "verdict": "accepted" | "rejected" | None as verdict} if self._has(place):
                decisions.decide(self.contents.images[place].file_name, verdict)
            case {"place": int(place), "segment": int(segment), "keep": bool(keep)} if self._has(place):
                if segment in self._segments[place]:
                    decisions.keep_segment(segment, keep=keep)

    def _has(self, place: int) -> bool:
        return 0 <= place < len(self.contents.images)

    def _tile(self, decisions: Decisions, place: int) -> dict[str, Any]:
        picture = self.contents.images[place]
        url, (width, height), words = self._show(picture)
        return {
            "place": place,
            "name": picture.file_name,
            "verdict": decisions.pictures.get(picture.file_name),
            "doubt": picture.uncertainty,
            "url": url,
            "width": width,
            "height": height,
            "words": words.replace(f"{self._folder}/", ""),
            "segments": [self._segment(number, each, decisions) for number, each in enumerate(picture.items, start=1)],
            "near": picture.near,
        }

    def _segment(self, number: int, item: Item, decisions: Decisions) -> dict[str, Any]:
        doubt, annotation = item.uncertainty, item.annotation["id"]
        return {
            "number": number,
            "id": annotation,
            "name": item.category,
            "colour": "#" + bytes(self.contents.colours[item.category]).hex(),
            "is_kept": annotation not in decisions.segments,
            "doubt": doubt.value,
            "reason": doubt.words[doubt.reason] if doubt.reason else "",
        }


def _fits(picture: ReviewImage, decisions: Decisions, shown: Shown) -> bool:
    verdict = decisions.pictures.get(picture.file_name)
    return shown == "all" or (verdict or "undecided") == shown
