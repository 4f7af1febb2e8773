"""Saliency: where in a picture CLIP's score for a target comes from. One method a file, `METHODS` lists them."""
