"""CLIP opened up: what it looks at, what it says, and how far its explanations can be trusted.

Every tool is one entry in `TOOLS`: a name, its settings, and a function from pictures to an `Exhibit`. The command line
and the app are made from that table.
"""

from text2seg.explain.exhibit import Exhibit, Panel, Table, save_exhibit
from text2seg.explain.tool import Tool
from text2seg.explain.tools import TOOLS, run_tool
from text2seg.explain.watch import Watch

__all__ = ["TOOLS", "Exhibit", "Panel", "Table", "Tool", "Watch", "run_tool", "save_exhibit"]
