"""Review of datasets: a page that shows the most uncertain images first, and `replay`, which reproduces a mask."""

from text2seg.review.contents import Uncertainty, uncertainty_of
from text2seg.review.page import Review, write_review

__all__ = ["Review", "Uncertainty", "uncertainty_of", "write_review"]
