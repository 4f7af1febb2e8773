"""The tab "Label a folder": many pictures and an ontology in, a COCO dataset out, with a look at it in between."""

from text2seg.app.folder.tab import build

__all__ = ["build"]
