"""The Segment tab: type queries, see masks, edit and download them."""

from text2seg.app.segment.tab import Editor, build

__all__ = ["Editor", "build"]
