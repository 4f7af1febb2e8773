"""All tools, and the one way to run them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from text2seg.errors import SettingsError
from text2seg.explain.catalogue import (
    board,
    experiments,
    faithfulness,
    inside,
    opinion,
    recognition,
    saliency,
    texts,
)
from text2seg.explain.exhibit import Exhibit
from text2seg.explain.tool import Tool
from text2seg.explain.watch import Watch

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.records import Image

GROUPS = (board, saliency, inside, texts, opinion, recognition, experiments, faithfulness)
TOOLS: dict[str, Tool] = {tool.name: tool for group in GROUPS for tool in group.TOOLS}


def check_pictures(tool: Tool, count: int) -> None:
    """Raise `SettingsError` where a tool looks at one picture, at many or at none, and this is another number."""
    if tool.pictures == "one" and count != 1:
        raise SettingsError(f"{tool.name} looks at one picture, got {count}")
    if tool.pictures == "none" and count:
        raise SettingsError(f"{tool.name} looks at a dataset, so it takes no pictures, got {count}")
    if tool.pictures == "many" and not count:
        raise SettingsError(f"{tool.name} looks at pictures: give at least one")


def run_tool(
    tool: Tool, models: Text2Seg, images: Sequence[Image], settings: Any = None, watch: Watch | None = None
) -> Exhibit:
    """Run a tool on pictures; `settings` are of the tool's own kind, by default as they are by default.

    Raises:
        SettingsError: these are more or fewer pictures than it looks at; or as the tool says.
        QueryError: a text is empty or unknown to the models.
    """
    from text2seg.runtime import FULL, autocast

    check_pictures(tool, len(images))
    module, name = tool.function.split(":")
    function = getattr(import_module(f"text2seg.explain.{module}"), name)
    with autocast(models.clip.device, FULL):  # a caller's own must not reach what is computed between the networks
        exhibit: Exhibit = function(models, images, settings or tool.settings(), watch or Watch())
    return exhibit
