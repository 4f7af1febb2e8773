"""What a saliency map is asked about: a text, another image, a weighted set of words."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A direction in CLIP's joint space: `features` float32 [C], unit length; the score of an image is its cosine."""

    name: str
    features: Tensor
