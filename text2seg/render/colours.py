"""One colour per query, the same in every run and image, and the colours of a map."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]

INK: Colour = (33, 37, 41)
FAINT: Colour = (134, 142, 150)
PAPER: Colour = (255, 255, 255)
FRAME: Colour = (222, 226, 230)
POSITIVE: Colour = (34, 197, 94)
NEGATIVE: Colour = (239, 68, 68)

GOLDEN_RATIO = 0.6180339887498949
LIGHTNESS = (0.64, 0.72, 0.80)
CHROMA = 0.17


def colour_of(query: str) -> Colour:
    """The RGB colour of a query, three numbers from 0 to 255: it depends on the query's letters only.

    Hue and lightness come from a hash of the name, in a space (OKLCH) where equal steps look equal, so that all
    colours stand out alike on a photo.
    """
    digest = hashlib.blake2s(query.encode("utf-8", "surrogatepass")).digest()
    number = int.from_bytes(digest[:4], "big")
    hue = 2 * np.pi * (number * GOLDEN_RATIO % 1)
    return _from_oklch(LIGHTNESS[digest[4] % len(LIGHTNESS)], CHROMA, hue)


def _from_oklch(lightness: float, chroma: float, hue: float) -> Colour:
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    to_cone = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ (to_cone @ np.array([lightness, a, b])) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (int(channel) for channel in np.rint(encoded * 255))
    return red, green, blue


def heat(scores: NDArray[np.float32], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map float32[gh, gw], lowest to highest, over an image uint8[h, w, 3], the more opaque the higher; a flat or
    broken map counts as all lowest."""
    low, high = float(scores.min()), float(scores.max())
    spread = high - low
    grid = (scores - low) / spread if np.isfinite(spread) and spread > 0 else np.zeros_like(scores)
    height, width = image.shape[:2]
    level = cv2.resize(grid.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    colours = cv2.applyColorMap(np.rint(level * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[:, :, ::-1]
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[:, :, None].astype(np.float32)
    alpha = 0.35 + 0.45 * level[:, :, None]
    blended: NDArray[np.uint8] = np.rint(grey * (1 - alpha) + colours * alpha).astype(np.uint8)
    return blended


def blend(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, opacity: float) -> NDArray[np.uint8]:
    """An image uint8[h, w, 3] with a colour laid over it where the mask bool[h, w] is."""
    painted = image.copy()
    for channel, shade in enumerate(colour):  # through a table: a float copy of a large photo is a gigabyte
        table = np.rint(np.arange(256) * (1 - opacity) + shade * opacity).astype(np.uint8)
        plane = painted[:, :, channel]
        plane[mask] = table[plane[mask]]
    return painted


def outline(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: Colour, width: int) -> None:
    """Draw a mask's edge into an image, in the query's colour with a white rim that shows on any ground."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, contours, -1, PAPER, width + 2 * max(1, width // 3), cv2.LINE_AA)
    cv2.drawContours(image, contours, -1, colour, width, cv2.LINE_AA)
