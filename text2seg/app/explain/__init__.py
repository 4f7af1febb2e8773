"""The Explain tab: a list of tools, a form for each, and its results."""

from text2seg.app.explain.run import explain
from text2seg.app.explain.tab import build

__all__ = ["build", "explain"]
