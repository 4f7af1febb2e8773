"""The Segment tab: type, see, correct, export."""

from text2seg.app.segment.tab import build

__all__ = ["build"]
