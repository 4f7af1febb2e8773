"""CLIP opened up: what it looks at, what it says, and how far its explanations can be trusted.

Every tool is one entry in `TOOLS`: a name, its settings, and a function from images to a `Result`. The command line
and the app are made from that table.
"""

from text2seg.explain.tool import Panel, Progress, Result, Table, Tool, save_result
from text2seg.explain.tools import TOOLS, run_tool

__all__ = ["TOOLS", "Panel", "Progress", "Result", "Table", "Tool", "run_tool", "save_result"]
