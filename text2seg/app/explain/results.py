"""A result of an explanation tool on the page: its panels, its tables, and its files."""

from __future__ import annotations

import csv
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import processing_utils

from text2seg.app.messages import is_of_photographs, note_of
from text2seg.errors import OutputError
from text2seg.explain import Result, Table
from text2seg.explain.tool import cell_text
from text2seg.io.files import reason
from text2seg.io.names import safe_file_name
from text2seg.render.saving import png

MOST_COLUMNS = 5
"""Largest number of panels side by side."""


def panels_of(result: Result, cache: str) -> dict[str, Any] | None:
    """Return the panels of a result for the page (see explain.js). Each panel is a file with an address that nobody
    can guess."""
    if not result.panels:
        return None
    panels: list[dict[str, Any]] = []
    for panel in result.panels:
        height, width = panel.pixels.shape[:2]
        entry: dict[str, Any] = {"caption": panel.caption, "width": width, "height": height, "file": None}
        if panel.pixels.size:
            kept = processing_utils.save_bytes_to_cache(png(panel.pixels), "panel.png", cache)
            entry["file"] = gr.FileData(path=kept).model_dump()
        panels.append(entry)
    return {"columns": min(result.columns or 3, len(panels), MOST_COLUMNS), "panels": panels}


def tables_of(result: Result, cache: str) -> dict[str, Any] | None:
    """Return the tables and notes of a result for the page (see explain.js). Each table is also a CSV file."""
    notes = [note_of(text) for text in result.notes if not is_of_photographs(text)]
    tables = []
    for table in result.tables:
        columns = [*zip(*table.rows, strict=True)] or [() for _ in table.columns]
        kept = processing_utils.save_bytes_to_cache(csv_of(table), "table.csv", cache)
        tables.append(
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [[cell_text(value) for value in row] for row in table.rows],
                "isNumber": [not any(isinstance(value, str) for value in column) for column in columns],
                "name": f"{safe_file_name(table.title) or 'table'}.csv",
                "file": gr.FileData(path=kept).model_dump(),
            }
        )
    return {"tables": tables, "notes": notes} if tables or notes else None


def csv_of(table: Table) -> bytes:
    """Return a table as CSV in UTF-8, with all decimals; a missing value is empty."""
    text = io.StringIO()
    csv.writer(text).writerows([table.columns, *table.rows])
    return text.getvalue().encode("utf-8", "backslashreplace")


def packed(folder: Path) -> str:
    """Pack a folder of files into a zip beside it, delete it, and return the zip."""
    target = folder.with_suffix(".zip")
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    how = zipfile.ZIP_STORED if path.suffix == ".png" else zipfile.ZIP_DEFLATED
                    archive.write(path, f"{folder.name}/{path.relative_to(folder).as_posix()}", how)
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"the files cannot be packed: {reason(error)}; please try again later") from error
    return str(target)
