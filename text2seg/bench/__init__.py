"""How fast and how true: text2seg beside the original flow, on the same weights and pictures, in one process."""
