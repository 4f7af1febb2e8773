"""Which of SAM's candidates becomes the segment."""

from __future__ import annotations

import numpy as np

from text2seg.records import Candidates


def choose(candidates: Candidates) -> int:
    """The candidate whose predicted IoU is highest; of equal ones the first.

    Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643): the masks are ranked by SAM's own score.

    Raises:
        ValueError: there are no candidates.
    """
    if not len(candidates):
        raise ValueError("there must be at least one candidate")
    return int(np.argmax(candidates.scores))
