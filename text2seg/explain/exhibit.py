"""What a tool shows: pictures with captions, tables, words. Front ends differ only in where they put it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from text2seg.files import fitting
from text2seg.outputs import OutputFolder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Cell = str | int | float | None


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A picture uint8[h, w, 3] RGB and the line above it. Sizes may differ from panel to panel."""

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
class Exhibit:
    """All that one run of a tool shows. `columns` is how many panels stand side by side; 0: as fits."""

    title: str
    panels: tuple[Panel, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    columns: int = 0

    def picture(self) -> NDArray[np.uint8] | None:
        """All panels as one sheet uint8[h, w, 3]; none where there is no panel."""
        from text2seg.render.sheet import sheet

        cells = [(panel.caption, panel.pixels) for panel in self.panels]
        return sheet(cells, title=self.title, columns=self.columns) if cells else None


def save_exhibit(exhibit: Exhibit, folder: Path | OutputFolder, stem: str) -> list[Path]:
    """Write `<stem>.png` (all panels on one sheet) and `<stem>.json` (tables and notes), each where there is something
    to write. Raises `OutputError` where that fails, or one is there that is not as an earlier run left it."""
    import cv2

    files: list[tuple[str, list[bytes]]] = []
    picture = exhibit.picture()
    if picture is not None:
        encoded = cv2.imencode(".png", picture[:, :, ::-1])[1]
        files.append((fitting(stem, ".png"), [encoded.tobytes()]))
    if exhibit.tables or exhibit.notes:
        values = {
            "title": exhibit.title,
            "tables": [asdict(table) for table in exhibit.tables],
            "notes": list(exhibit.notes),
        }
        text = json.dumps(values, indent=1, ensure_ascii=False)
        files.append((fitting(stem, ".json"), [text.encode("utf-8", "backslashreplace")]))
    return (folder if isinstance(folder, OutputFolder) else OutputFolder(folder)).write(files)
