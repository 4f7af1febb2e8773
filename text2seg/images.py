"""Former name of `text2seg.io.images` (until 0.5). Programs may import from it until 0.7."""

from text2seg.io.images import ImageSource, load_image

__all__ = ["ImageSource", "load_image"]
