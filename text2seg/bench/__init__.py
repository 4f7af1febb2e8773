"""How fast and how true: text2seg beside the original flow, on the same weights and images, in one process."""
