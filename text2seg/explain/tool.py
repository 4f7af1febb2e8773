"""Explanation tools: the entry of a tool, its result, its progress, and the images it gets."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from text2seg.errors import ImageError
from text2seg.io.files import exists, fitting, is_dir
from text2seg.io.images import load_image
from text2seg.io.outputs import OutputFolder
from text2seg.io.scan import list_images
from text2seg.records import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Cell = str | int | float | None


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """An image uint8[h, w, 3] RGB and the line above it. Sizes may differ from panel to panel."""

    caption: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words and numbers; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {self.title!r} must have {len(self.columns)} cells, got {len(row)}")


@dataclass(frozen=True, slots=True)
class Result:
    """All that one run of a tool shows. `columns` is how many panels stand side by side; 0: as fits."""

    title: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    columns: int = 0

    def image(self) -> NDArray[np.uint8] | None:
        """All panels as one sheet uint8[h, w, 3]; none where there is no panel."""
        from text2seg.render.sheet import sheet

        cells = [(panel.caption, panel.pixels) for panel in self.panels]
        return sheet(cells, title=self.title, columns=self.columns) if cells else None


def save_result(result: Result, folder: Path | OutputFolder, stem: str) -> list[Path]:
    """Write `<stem>.png` (all panels on one sheet) and `<stem>.json` (tables and notes), each where there is something
    to write. Raises `OutputError` where that fails, or one is there that is not as an earlier run left it."""
    import cv2

    files: list[tuple[str, list[bytes]]] = []
    image = result.image()
    if image is not None:
        encoded = cv2.imencode(".png", image[:, :, ::-1])[1]
        files.append((fitting(stem, ".png"), [encoded.tobytes()]))
    if result.tables or result.notes:
        values = {
            "title": result.title,
            "tables": [asdict(table) for table in result.tables],
            "notes": list(result.notes),
        }
        text = json.dumps(values, indent=1, ensure_ascii=False)
        files.append((fitting(stem, ".json"), [text.encode("utf-8", "backslashreplace")]))
    return (folder if isinstance(folder, OutputFolder) else OutputFolder(folder)).write(files)


Item = TypeVar("Item")
Report = Callable[[int, int, str], None]


def _silent(done: int, total: int, note: str) -> None:
    """Nobody watches."""


class Progress:
    """Told of progress; asked whether to go on. A stopped tool shows what it has until then."""

    def __init__(self, report: Report = _silent, stop: threading.Event | None = None) -> None:
        """`report` is called with how much is done, of how much, and a few words on it, from the thread that works."""
        self._report = report
        self._stop = stop or threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def step(self, done: int, total: int, note: str = "") -> None:
        self._report(done, total, note)

    def each(self, items: Iterable[Item], note: str = "", total: int | None = None) -> Iterator[Item]:
        """The items, reporting before each and after the last, until stopped."""
        count = total if total is not None else len(items) if isinstance(items, Sized) else 0
        done = 0
        for item in items:
            if self.stopped:
                return
            self.step(done, count, note)
            yield item
            done += 1
        self.step(done, count, note)


Images = Literal["one", "many", "none"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its name on the command line and in the app, what it shows in one line, a frozen dataclass of settings
    (whose fields become flags and widgets, their docstrings the help), the function that runs it, as
    "module:function" within `text2seg.explain`, and whether it looks at one image, at many or at none that is given
    (it has a dataset of its own).

    The function takes the models (`Text2Seg`), a sequence of `Image`, the settings and a `Watch`, and gives an
    `Result`. It is imported when it runs, so that `--help` stays quick.
    """

    name: str
    summary: str
    settings: type
    function: str
    images: Images = "one"


class ImageFiles(Sequence[Image]):
    """Files, and all images in folders and the folders in them, in the order of their paths.

    Taking one out reads it and raises `ImageError` where that fails.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        """Raises `ImageError` where there is nothing of a name, or no image in a folder."""
        self.paths = tuple(path for place in places for path in _files(place))

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Image: ...
    @overload
    def __getitem__(self, index: slice) -> ImageFiles: ...
    def __getitem__(self, index: int | slice) -> Image | ImageFiles:
        if isinstance(index, slice):
            return ImageFiles(self.paths[index])
        path = self.paths[index]
        return load_image(path, image_id=range(len(self))[index] + 1, file_name=path.name)


def _files(place: Path) -> list[Path]:
    if not is_dir(place, ImageError):
        if not exists(place, ImageError):
            raise ImageError(f"there is no file or folder {place}")
        return [place]
    return [place / file for file in list_images(place).files]
