"""Two maps over one image: what speaks for something and what against it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from text2seg.render.colours import Colour

# Told apart by everyone, unlike red and green.
FOR: Colour = (255, 140, 0)
AGAINST: Colour = (20, 110, 255)
MOST = 0.9
"""Opacity of the highest values."""


def signed_heat(
    speaks_for: NDArray[np.float32], speaks_against: NDArray[np.float32], image: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Two maps float32[gh, gw], values from 0 to 1, over an image uint8[h, w, 3] in grey: orange where it is the first
    that is high, blue where the second, in between where both are; what is 0 in both stays grey."""
    height, width = image.shape[:2]
    warm, cool = (
        cv2.resize(each.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)[:, :, None]
        for each in (speaks_for, speaks_against)
    )
    share = warm / np.maximum(warm + cool, 1e-6)
    colour = share * np.array(FOR, np.float32) + (1 - share) * np.array(AGAINST, np.float32)
    alpha = MOST * np.maximum(warm, cool) ** 0.8  # so that weak values show as well
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    blended: NDArray[np.uint8] = np.rint(grey * (1 - alpha) + colour * alpha).astype(np.uint8)
    return blended
