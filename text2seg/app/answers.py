"""What the app answers to programs: COCO datasets, exhibits and itself as plain JSON values. The same for both ways of
asking, see `api`."""

from __future__ import annotations

import base64
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg._version import __version__
from text2seg.app.explaining import explain
from text2seg.app.fields import shown
from text2seg.app.limits import check_request, read_picture, read_pipeline_settings
from text2seg.app.models_panel import name_of
from text2seg.app.uploads import check_upload
from text2seg.app.workshop import Workshop
from text2seg.coco.dataset import Encoding, Json, build_dataset
from text2seg.errors import SettingsError
from text2seg.explain import TOOLS, Exhibit, Watch
from text2seg.ontology import ontology_of_queries
from text2seg.vocabulary import shown as shown_value


def health(workshop: Workshop) -> Json:
    """That the app works, and with what."""
    things = workshop.models.things
    known = sorted(things.names) if things else None
    return {"status": "ok", "text2seg": __version__, "models": name_of(workshop.models), "knows_only": known}


def segment(
    workshop: Workshop,
    picture: Path,
    queries: str | Sequence[str],
    given: Mapping[str, Any],
    *,
    name: str = "",
    encoding: Encoding = "rle",
) -> Json:
    """What the queries name in an uploaded picture, as a COCO dataset; `info.verdicts` says what became of each query.

    Raises `ImageError`, `QueryError` or `SettingsError` where these cannot be used or ask for too much.
    """
    settings = read_pipeline_settings(given)
    models = workshop.models
    parsed = models.check(queries, settings)
    image = read_picture(check_upload(picture), workshop.settings, name=name)
    check_request(parsed, settings, image.hw)
    result = workshop.session(image).segment(parsed, settings)
    names = [query.name for query in parsed]
    info = {
        "verdicts": {each: result.verdict(each) for each in names},
        "ontology": ontology_of_queries(parsed).to_dict(),
    }
    origin = models.provenance(settings)
    return build_dataset([result], queries=names, encoding=encoding, provenance=origin, info=info)


def run_tool(
    workshop: Workshop, tool: str, pictures: Sequence[Path], given: Mapping[str, Any], watch: Watch | None = None
) -> Exhibit:
    """The exhibit of a tool by its name; raises `SettingsError` where there is none, and as `explain` does."""
    if not isinstance(tool, str) or tool not in TOOLS:
        close = difflib.get_close_matches(str(tool), TOOLS, n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise SettingsError(f"there is no tool {shown_value(tool)}; {hint}/api/tools lists all {len(TOOLS)}")
    return explain(workshop, TOOLS[tool], pictures, given, watch)


def tools() -> list[Json]:
    """Every tool with its settings."""
    return [
        {
            "name": tool.name,
            "summary": tool.summary,
            "pictures": tool.pictures,
            "settings": [asdict(setting) for setting in shown(tool.settings)],
        }
        for tool in TOOLS.values()
    ]


def exhibit_json(exhibit: Exhibit) -> Json:
    """An exhibit with its panels as PNG in base64."""
    return {
        "title": exhibit.title,
        "panels": [
            {"caption": each.caption, "png": base64.b64encode(png(each.pixels)).decode()} for each in exhibit.panels
        ],
        "tables": [asdict(table) for table in exhibit.tables],
        "notes": list(exhibit.notes),
    }


def png(pixels: NDArray[np.uint8]) -> bytes:
    """RGB uint8[h, w, 3] as the bytes of a PNG file."""
    return cv2.imencode(".png", np.ascontiguousarray(pixels[:, :, ::-1]))[1].tobytes()
