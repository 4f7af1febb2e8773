"""What a search found, as files: one JSON, and for each query a sheet of its pictures."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from text2seg.errors import ImageError
from text2seg.files import fitting
from text2seg.images import load_image
from text2seg.outputs import OutputFolder
from text2seg.records import Failure
from text2seg.render.sheet import sheet
from text2seg.search.rank import Hit
from text2seg.storage import Place

MOST_SHOWN = 60  # pictures on a sheet; the JSON has all
SEARCH_FILE = "search.json"
_DIGITS = 4

_log = logging.getLogger(__name__)


def write_results(
    output: Path, folder: Place, found: Mapping[str, Sequence[Hit]], failures: Sequence[Failure]
) -> list[Path]:
    """`search.json` and a sheet for each query that found something; gives what was written. Raises `OutputError`."""
    content = {
        "folder": str(folder),
        "queries": {
            query: [
                {"file": hit.file, "presence": round(hit.presence, _DIGITS), "cosine": round(hit.cosine, _DIGITS)}
                for hit in hits
            ]
            for query, hits in found.items()
        },
        "failures": [{"file_name": each.file_name, "stage": each.stage, "message": each.message} for each in failures],
    }
    text = json.dumps(content, indent=1) + "\n"
    results = OutputFolder(output)
    written = results.write([(SEARCH_FILE, [text.encode("ascii")])])
    for number, (query, hits) in enumerate(found.items(), start=1):
        name = re.sub(r"[^\w]+", "-", query).strip("-")[:60]
        picture = _sheet(folder, query, hits)
        if picture is not None:
            written += results.write([(fitting(f"{number:02}-{name}", ".png"), [picture])])
    return written


def _sheet(folder: Place, query: str, hits: Sequence[Hit]) -> bytes | None:
    """A PNG of the pictures, the best first; none where none can be read any more."""
    cells = []
    for rank, hit in enumerate(hits[:MOST_SHOWN], start=1):
        try:
            pixels = load_image(folder / hit.file).pixels
        except ImageError as error:
            _log.warning("%s", error)
            continue
        picture = PillowImage.fromarray(pixels)
        picture.thumbnail((300, 300))
        cells.append((f"{rank}. {hit.presence:.2f} {hit.file}", np.asarray(picture)))
    if not cells:
        return None
    buffer = io.BytesIO()
    PillowImage.fromarray(sheet(cells, title=query)).save(buffer, "PNG")
    return buffer.getvalue()
