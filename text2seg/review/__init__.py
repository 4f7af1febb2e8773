"""A page on which a person reviews a dataset: what is in it, and images in the order of how doubtful they are."""

from text2seg.review.page import Review, write_review
from text2seg.review.uncertainty import Uncertainty, uncertainty_of

__all__ = ["Review", "Uncertainty", "uncertainty_of", "write_review"]
