"""Segment objects in images by name: CLIP Surgery finds points, SAM turns them into masks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from text2seg._version import __version__

if TYPE_CHECKING:
    from text2seg.config import AutomaticSettings, MapSettings, MaskSettings, PointSettings, PresenceSettings, Settings
    from text2seg.errors import Text2SegError
    from text2seg.pipeline import Text2Seg
    from text2seg.queries import Query
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

_MODULES = {"Text2Seg": "pipeline", "Session": "pipeline", "Text2SegError": "errors", "Query": "queries"}
"""Modules of the names; those of the others are in `config`."""


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Import a name on first use: `import text2seg` does not wait for torch, and the command line is there at once."""
    if name in __all__:
        return getattr(import_module(f"text2seg.{_MODULES.get(name, 'config')}"), name)
    if name in ("config", "errors", "queries"):
        return import_module(f"text2seg.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
