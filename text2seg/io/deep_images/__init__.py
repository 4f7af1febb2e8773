"""Deep images: samples of more than 8 bits, or signed, or floating point, read exactly and scaled to 8 bits.

Which values are black and white follows from what the file says (a declared depth or range, a no-data value), else from
the values themselves; the size of the container says nothing, because cameras, microscopes and satellites put 10 to 14
bits into 16. What was decided from the values is logged. Images of 8 unsigned bits are never scaled.
"""

from __future__ import annotations

from text2seg.io.deep_images.depth import eight_bits
from text2seg.io.deep_images.formats import open_any, other_kind, read_samples

__all__ = ["eight_bits", "open_any", "other_kind", "read_samples"]
