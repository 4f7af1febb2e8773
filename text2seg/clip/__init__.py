"""CLIP: images and words to similarity maps, with surgery on the attention of an unchanged model."""
