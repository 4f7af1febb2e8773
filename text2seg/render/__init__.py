"""Draw results: overlays, maps with points and candidates, cut-outs."""

from text2seg.render.drawing import colour_of, colours_of
from text2seg.render.overlays import cut_out, overlay
from text2seg.render.panels import maps_with_points

__all__ = ["colour_of", "colours_of", "cut_out", "maps_with_points", "overlay"]
