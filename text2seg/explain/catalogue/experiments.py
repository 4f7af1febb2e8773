from __future__ import annotations

from text2seg.explain.tool import Tool

TOOLS: tuple[Tool, ...] = ()
