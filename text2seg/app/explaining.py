"""One run of an explanation tool for a visitor, whether asked for on the page or over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from text2seg.app.fields import read_settings, shown
from text2seg.app.limits import MOST_PICTURES, check_effort, read_picture
from text2seg.app.uploads import Uploads, check_upload
from text2seg.app.workshop import Workshop
from text2seg.errors import ImageError
from text2seg.explain import Exhibit, Tool, Watch, run_tool


def explain(
    workshop: Workshop, tool: Tool, pictures: Sequence[Path], given: Mapping[str, Any], watch: Watch | None = None
) -> Exhibit:
    """Read a visitor's settings and pictures, wait for a turn, and run the tool.

    Args:
        pictures: uploaded files.
        given: what was filled in, by the names of the tool's settings; pictures among them are uploaded files too.

    Raises `SettingsError`, `QueryError` or `ImageError` where these are not as the tool or the limits want them.
    """
    settings = read_settings(tool.settings, given)
    check_effort(settings)
    if len(pictures) > MOST_PICTURES:
        raise ImageError(f"{len(pictures)} pictures are too many; {MOST_PICTURES} is the most here")
    for each in shown(tool.settings):
        if each.kind == "picture" and (place := getattr(settings, each.name)) is not None:
            read_picture(
                check_upload(place), workshop.settings
            )  # the tool reads it again, by itself and without our limits
    images = Uploads(pictures, workshop.settings)
    with workshop.turn():
        return run_tool(tool, workshop.models, images, settings, watch)
