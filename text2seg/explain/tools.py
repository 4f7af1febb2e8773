"""All tools, and the one way to run them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from text2seg.errors import SettingsError
from text2seg.explain.catalogue import board, experiments, faithfulness, inside, opinion, recognition, saliency, texts
from text2seg.explain.tool import Progress, Result, Tool

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.records import Image

GROUPS = (board, saliency, inside, texts, opinion, recognition, experiments, faithfulness)
TOOLS: dict[str, Tool] = {tool.name: tool for group in GROUPS for tool in group.TOOLS}


def check_images(tool: Tool, count: int) -> None:
    """Raise `SettingsError` where a tool looks at one image, at many or at none, and this is another number."""
    if tool.images == "one" and count != 1:
        raise SettingsError(f"{tool.name} looks at one image, got {count}")
    if tool.images == "none" and count:
        raise SettingsError(f"{tool.name} looks at a dataset, so it takes no images, got {count}")
    if tool.images == "many" and not count:
        raise SettingsError(f"{tool.name} looks at images: give at least one")


def run_tool(
    tool: Tool, models: Text2Seg, images: Sequence[Image], settings: Any = None, progress: Progress | None = None
) -> Result:
    """Run a tool on images; `settings` are of the tool's own kind, by default as they are by default.

    Raises:
        SettingsError: these are more or fewer images than it looks at; or as the tool says.
        QueryError: a text is empty or unknown to the models.
    """
    from text2seg.runtime import FULL, autocast

    check_images(tool, len(images))
    module, name = tool.function.split(":")
    function = getattr(import_module(f"text2seg.explain.{module}"), name)
    with autocast(models.clip.device, FULL):  # a caller's own must not reach what is computed between the networks
        result: Result = function(models, images, settings or tool.settings(), progress or Progress())
    return result
