"""How far two computations of one value may lie apart on any processor.

Which processor, which library, how many threads and what else is in the batch decide in which order a sum is added, and
so its last digits. Rounding errors are as good as random: the sum of n products ends about √n roundings away from
another order's, each of the precision eps of the type and the size of the values. A network is a chain of sums, each
of which rounds what the last one left. Every tolerance for such a difference comes from here and names how much is
added; none is a number that one machine happened to keep to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

TINY_NETWORK = 30 * 100
"""Products on the way through a test's random network: some 30 sums in a row, of up to 100 products each."""
DEMO_NETWORK = 50 * 768
"""The same of the demo models, and of a decoder of the official size."""
MARGIN = 8
"""How many times the usual difference is let pass; a fault is hundreds of times as large."""


def rounding(terms: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference that `terms` products, added in another order, explain in values as large as `scale`."""
    return MARGIN * torch.finfo(dtype).eps * terms**0.5 * scale


def assert_close(
    ours: ArrayLike | torch.Tensor,
    theirs: ArrayLike | torch.Tensor,
    *,
    terms: int,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Both have one shape and differ by rounding alone.

    Args:
        terms: how many products are added on the way to a value, such as `TINY_NETWORK`.
        scale: how large the values are that are added; by default the largest of `theirs`. Where large values cancel
            out, as in differences of cosines, they are larger than the result.
        dtype: the coarsest type on the way.
    """
    one, other = _array(ours), _array(theirs)
    assert one.shape == other.shape
    assert np.isfinite(other).all()
    bound = rounding(terms, scale=float(np.abs(other).max(initial=0)) if scale is None else scale, dtype=dtype)
    np.testing.assert_allclose(one, other, rtol=0, atol=bound)


def assert_same_masks(ours: ArrayLike, theirs: ArrayLike) -> None:
    """Both masks are the same but for pixels that lie so near the edge that rounding decides: one in two thousand."""
    assert np.shape(ours) == np.shape(theirs)
    assert np.mean(np.asarray(ours) != np.asarray(theirs)) <= 1 / 2000


def about(value: Any, *, terms: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Any:
    """`pytest.approx` of a number, or a list or dict of them, with the same bound."""
    return pytest.approx(value, rel=0, abs=rounding(terms, scale=scale, dtype=dtype))


def _array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)
