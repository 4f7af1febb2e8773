"""Tolerances for two computations of one value on any processor.

The processor, the library, the number of threads and the batch determine the order in which a sum is added, and so its
last digits. Rounding errors are nearly random: two orders of a sum of n products differ by about √n roundings, each of
the size eps of the dtype times the values. A network is a chain of such sums. All tolerances for these differences are
computed here from the number of products; none was tuned on one machine.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

TINY_NETWORK = 30 * 100
"""Products in a test's random network: about 30 sums in a row, of up to 100 products each."""
DEMO_NETWORK = 50 * 768
"""Products in the demo models, and in a decoder of the official size."""
MARGIN = 8
"""Factor of the allowed difference to the usual one; faults are hundreds of times as large."""


def rounding(terms: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> float:
    """Return the allowed difference of a sum of `terms` products in another order, for values up to `scale`."""
    return MARGIN * torch.finfo(dtype).eps * terms**0.5 * scale


def assert_close(
    ours: ArrayLike | torch.Tensor,
    theirs: ArrayLike | torch.Tensor,
    *,
    terms: int,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Assert that two arrays have the same shape and differ by rounding only.

    Args:
        terms: number of products that are added for a value, such as `TINY_NETWORK`.
        scale: size of the added values; by default the largest of `theirs`. If large values cancel
            out, as in differences of cosines, they are larger than the result.
        dtype: the dtype with the lowest precision in the computation.
    """
    one, other = _array(ours), _array(theirs)
    assert one.shape == other.shape
    assert np.isfinite(other).all()
    bound = rounding(terms, scale=float(np.abs(other).max(initial=0)) if scale is None else scale, dtype=dtype)
    np.testing.assert_allclose(one, other, rtol=0, atol=bound)


def assert_same_masks(ours: ArrayLike, theirs: ArrayLike) -> None:
    """Assert that masks are equal except for one in two thousand pixels, near edges, where rounding decides."""
    assert np.shape(ours) == np.shape(theirs)
    assert np.mean(np.asarray(ours) != np.asarray(theirs)) <= 1 / 2000


def about(value: Any, *, terms: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Any:
    """Return `pytest.approx` of a number, or a list or dict of numbers, with this tolerance."""
    return pytest.approx(value, rel=0, abs=rounding(terms, scale=scale, dtype=dtype))


def _array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, np.float64)
