"""Saliency: where in an image CLIP's score for a target comes from. `methods.METHODS` is the table of methods."""
