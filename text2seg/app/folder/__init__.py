"""The tab "Label a folder": from images and an ontology to a COCO dataset, with a review."""

from text2seg.app.folder.layout import lay_out_return
from text2seg.app.folder.tab import build

__all__ = ["build", "lay_out_return"]
