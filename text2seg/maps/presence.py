"""How sure we are that a thing is in the picture at all.

A similarity map alone cannot say: stretched from lowest to highest it always has a peak. So every patch is asked what
it shows, the query, the empty text or one of a vocabulary of other things (the distractors), and the patch that is
most sure of the query speaks for the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPLATE = "a photo of a {}."  # one is enough here, and a vocabulary times 85 templates would take long to encode
TOO_CLOSE = 0.7
"""Distractors whose text is this close to the query's, both taken from their mean, are other words for it."""


@dataclass(frozen=True, slots=True)
class PresenceModel:
    """What presence needs to know of one CLIP.

    `distractors` are things that pictures show. A patch's probability p becomes sigmoid(slope · logit(p) + offset):
    slope and offset are fitted so that 0.5 is where as many present things are lost as absent ones are found.
    `threshold` is the presence below which a thing counts as absent, where nobody says otherwise.
    """

    distractors: tuple[str, ...]
    slope: float = 1.0
    offset: float = 0.0
    threshold: float = 0.0

    @classmethod
    def of_demo(cls, things: tuple[str, ...]) -> PresenceModel:
        """As scripts/fit_presence.py fitted it to the demo CLIP's usual maps."""
        return cls(things, slope=0.956, offset=2.47, threshold=0.5)


def evidence(
    patches: Tensor,
    texts: Tensor,
    names: Sequence[Sequence[str]],
    others: Tensor,
    model: PresenceModel,
    *,
    scale: float,
) -> Tensor:
    """How sure each patch is that it shows the query, float32 [N, Q] in [0, 1]; presence is the highest of them.

    Args:
        patches: unit features [N, C] of the picture's patches.
        texts: unit features [Q, C] of the queries.
        names: the wordings of each query, so that it does not compete with itself.
        others: unit features [D + 1, C] of the distractors and, last, of the empty text.
        scale: what CLIP multiplies cosines by (the exponential of its logit scale).
    """
    counted = ~_same_thing(texts, names, others, model.distractors)
    ours = scale * patches @ texts.T
    theirs = scale * patches @ others.T
    # One row of exponentials serves all queries: each leaves out the distractors that mean the same as it.
    highest = torch.maximum(theirs.amax(1, keepdim=True), ours.amax(1, keepdim=True))
    rest = (theirs - highest).exp() @ counted.T.to(theirs.dtype)
    logits = ours - highest - rest.clamp(min=1e-30).log()
    return torch.sigmoid(model.slope * logits + model.offset)


def _same_thing(texts: Tensor, names: Sequence[Sequence[str]], others: Tensor, distractors: Sequence[str]) -> Tensor:
    """bool [Q, D + 1]: which distractors are other words for a query; the empty text never is."""
    mean = others[:-1].mean(0)
    close = F.normalize(texts - mean, dim=-1) @ F.normalize(others - mean, dim=-1).T > TOO_CLOSE
    close[:, :-1] |= _shared_words(tuple(map(tuple, names)), tuple(distractors)).to(close.device)
    close[:, -1] = False
    return close


@lru_cache(maxsize=64)
def _shared_words(names: tuple[tuple[str, ...], ...], distractors: tuple[str, ...]) -> Tensor:
    """bool [Q, D]: which distractors have a word of the query's; the same for every image, and slow for long lists."""
    theirs = [set(other.lower().split()) for other in distractors]
    mine = [{word for name in wordings for word in name.lower().split()} for wordings in names]
    shared = [not words.isdisjoint(others) for words in mine for others in theirs]
    return torch.tensor(shared, dtype=torch.bool, device="cpu").reshape(len(names), len(distractors))
