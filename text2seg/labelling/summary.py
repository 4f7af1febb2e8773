"""The table of categories that `text2seg label` prints and the page of `text2seg report` shows.

A column of both tables is an entry in `COLUMNS`. A column that needs another value of each segment adds it to
`SegmentValues`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import NamedTuple

from text2seg.records import calibration_note


class SegmentValues(NamedTuple):
    """What the summary uses of one segment. A value that the dataset does not record is None."""

    category: str
    area_share: float | None
    score: float | None
    presence: float | None


@dataclass(slots=True)
class _Values:
    """The values of all segments of one category. Four bytes each: datasets have millions of segments."""

    images: int = 0
    segments: int = 0
    area_shares: array[float] = field(default_factory=lambda: array("f"))
    scores: array[float] = field(default_factory=lambda: array("f"))
    presences: array[float] = field(default_factory=lambda: array("f"))

    def add(self, segment: SegmentValues) -> None:
        self.segments += 1
        for values, value in (
            (self.area_shares, segment.area_share),
            (self.scores, segment.score),
            (self.presences, segment.presence),
        ):
            if value is not None:
                values.append(value)


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, a longer explanation, its value for a category, and the format of that value."""

    heading: str
    meaning: str
    value: Callable[[_Values], float | None]
    form: str

    def text(self, value: float | None) -> str:
        """Return a value as the tables show it."""
        return "–" if value is None else self.form.format(value)


COLUMNS: dict[str, Column] = {
    "images": Column("images", "images with at least one segment", lambda all_: all_.images, "{:,}"),
    "segments": Column("segments", "segments in all images", lambda all_: all_.segments, "{:,}"),
    "area_share": Column(
        "median area",
        "median share of the image that a segment covers",
        lambda all_: median(all_.area_shares) if all_.area_shares else None,
        "{:.1%}",
    ),
    "score": Column(
        "mean score", "mean score of the segments", lambda all_: fmean(all_.scores) if all_.scores else None, "{:.2f}"
    ),
    "presence": Column(
        "mean presence",
        "mean presence of the category, over its segments",
        lambda all_: fmean(all_.presences) if all_.presences else None,
        "{:.2f}",
    ),
}


def columns(rows: Sequence[CategorySummary], *, calibrated: bool) -> dict[str, Column]:
    """Return the columns that have a value in any row with segments, such as no presence if nothing was searched for by
    words; all if there are no segments. The heading of presence says if it is not calibrated."""
    note, found = calibration_note(calibrated), [row for row in rows if row.segments]
    return {
        key: replace(column, heading=column.heading + note) if key == "presence" else column
        for key, column in COLUMNS.items()
        if not found or any(row.values[key] is not None for row in found)
    }


@dataclass(frozen=True, slots=True)
class CategorySummary:
    """One row of the table: a category and its value in each of `COLUMNS`."""

    name: str
    values: dict[str, float | None]

    @property
    def segments(self) -> int:
        """Number of segments."""
        return int(self.values["segments"] or 0)

    def texts(self, shown: Mapping[str, Column]) -> list[str]:
        """Return the values of columns as the tables show them."""
        return [column.text(self.values[key]) for key, column in shown.items()]


class SummaryTally:
    """Collects the values of segments, image by image. `images` counts the images, `found` those with segments."""

    def __init__(self, categories: Iterable[str]) -> None:
        self.images = self.found = 0
        self._categories = {name: _Values() for name in categories}

    def add_image(self, segments: Iterable[SegmentValues]) -> None:
        """Add all segments of one image."""
        seen = set()
        for segment in segments:
            self._categories[segment.category].add(segment)
            seen.add(segment.category)
        for category in seen:
            self._categories[category].images += 1
        self.images += 1
        self.found += bool(seen)

    def summaries(self) -> tuple[CategorySummary, ...]:
        """Return a row for each category, in the order given."""
        return tuple(
            CategorySummary(name, {key: column.value(values) for key, column in COLUMNS.items()})
            for name, values in self._categories.items()
        )
