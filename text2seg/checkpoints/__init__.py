"""Former name of `text2seg.weights` (until 0.5). Programs may import from it until 0.7."""
