"""From unit features to similarity: cosines, and what feature surgery takes off them.

Source: "A Closer Look at the Explainability of Contrastive Language-Image Pre-training" (arXiv 2304.05653),
section 3.3. The original builds a tokens × queries × channels tensor; the identities here need none.
"""

from __future__ import annotations

from torch import Tensor


def cosines(tokens: Tensor, texts: Tensor) -> Tensor:
    """Cosine of every image token and text: unit features [..., N, C] and [Q, C] give [..., N, Q]."""
    return tokens @ texts.T


def without_empty_text(tokens: Tensor, texts: Tensor, empty: Tensor) -> Tensor:
    """Feature surgery for single queries: what the empty text [C] lights up too is taken off.

    Unit features [..., N, C] and [Q, C] give [..., N, Q]; the queries do not influence one another.
    """
    return tokens @ (texts - empty).T


def without_label_set(tokens: Tensor, texts: Tensor) -> Tensor:
    """Feature surgery with a label set: what all its n ≥ 2 texts light up is taken off.

    `w = softmax(2·cos(CLS, texts))`, divided by its mean over the set; `S' = w·cos − mean of w·cos over the set`.
    Each image weighs the texts by its own CLS.

    Args:
        tokens: unit features [..., N, C], CLS first.
        texts: unit features [n, C].

    Returns:
        float [..., N, n].

    Raises:
        ValueError: the set has fewer than two texts, for which this is 0 everywhere.
    """
    count = texts.shape[0]
    if count < 2:
        raise ValueError(f"label-set feature surgery needs two labels or more, got {count}")
    similarity = cosines(tokens, texts)
    weights = (2 * similarity[..., :1, :]).softmax(-1) * count
    weighted = weights * similarity
    return weighted - weighted.mean(-1, keepdim=True)
