"""Saliency: where in an image CLIP's score for a target comes from. `METHODS` lists the methods."""

from text2seg.explain.saliency.methods import METHODS, Method, check_method, methods_for, saliency
from text2seg.explain.saliency.targets import Target, image_target, score, text_target, words_target

__all__ = [
    "METHODS",
    "Method",
    "Target",
    "check_method",
    "image_target",
    "methods_for",
    "saliency",
    "score",
    "text_target",
    "words_target",
]
