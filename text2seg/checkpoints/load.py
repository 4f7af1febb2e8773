"""Former name of `text2seg.weights.tensors` (until 0.5). Programs may import from it until 0.7."""

from text2seg.weights.tensors import load_clip_weights, load_sam_weights, load_tensors

__all__ = ["load_clip_weights", "load_sam_weights", "load_tensors"]
