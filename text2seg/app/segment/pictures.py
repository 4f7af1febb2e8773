"""Pixels as files that browsers read."""

from __future__ import annotations

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

Pixels = NDArray[np.uint8]

LONGEST_SHOWN = 2048
"""The long side of a picture in the browser, in pixels; masks are cut from the picture itself all the same."""


def encoded(pixels: Pixels) -> bytes:
    """A PNG of pixels uint8[h, w], [h, w, 3] RGB or [h, w, 4] RGBA."""
    file = io.BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def preview(pixels: Pixels, *, longest: int = LONGEST_SHOWN) -> bytes:
    """A JPEG of RGB pixels uint8[h, w, 3], made smaller where its long side has more pixels than `longest`."""
    scale = min(1.0, longest / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    file = io.BytesIO()
    PillowImage.fromarray(small).save(file, "JPEG", quality=92, subsampling=0)
    return file.getvalue()
