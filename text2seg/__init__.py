"""Segment objects in images by name: CLIP Surgery finds points, SAM turns them into masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from text2seg._version import __version__
from text2seg.config import AutomaticSettings, MapSettings, MaskSettings, PointSettings, PresenceSettings, Settings
from text2seg.errors import Text2SegError
from text2seg.queries import Query

if TYPE_CHECKING:
    from text2seg.pipeline import Text2Seg
    from text2seg.session import Session

__all__ = [
    "AutomaticSettings",
    "MapSettings",
    "MaskSettings",
    "PointSettings",
    "PresenceSettings",
    "Query",
    "Session",
    "Settings",
    "Text2Seg",
    "Text2SegError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import the pipeline on first use, so that `import text2seg` does not wait for torch."""
    if name in ("Text2Seg", "Session"):
        from text2seg import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
