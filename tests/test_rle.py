"""Run lengths: byte for byte those of pycocotools, however the mask lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from text2seg.coco import rle

VIEWS = {
    "as it is": lambda mask: mask,
    "a part of a larger one": lambda mask: np.pad(mask, 3)[3:-3, 3:-3],
    "upside down": lambda mask: mask[::-1],
    "every second column": lambda mask: np.repeat(mask, 2, axis=1)[:, ::2],
    "down the columns": np.asfortranarray,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@given(st.integers(0, 70), st.integers(0, 70), st.floats(0, 1), st.integers(0, 9))
def test_equal_to_pycocotools(view, height, width, share, seed):
    mask = view(np.random.default_rng(seed).random((height, width)) < share)
    mask.flags.writeable = False
    encoded = rle.encode(mask)
    assert encoded["counts"].encode() == coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    decoded = rle.decode(encoded)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable
