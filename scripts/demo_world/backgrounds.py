"""Procedural backgrounds: plain, graded, noisy, striped or cluttered with shapes and letters."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def background(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    """One procedural background, uint8[H, W, 3]: a plain, graded, noisy, striped or cluttered field."""
    kind = rng.choice(["plain", "gradient", "noise", "stripes", "clutter"], p=[0.1, 0.2, 0.3, 0.1, 0.3])
    if kind == "plain":
        field = np.full((*hw, 3), rng.integers(0, 256, 3), np.float32)
    elif kind == "gradient":
        field = _gradient(rng, hw)
    elif kind == "noise":
        field = _noise(rng, hw)
    elif kind == "stripes":
        field = _stripes(rng, hw)
    else:
        field = _clutter(rng, hw)
    return np.clip(field, 0, 255).astype(np.uint8)


def background_bank(rng: np.random.Generator, count: int, side: int) -> list[np.ndarray]:
    """Backgrounds to crop from, for training, where making each anew would take longest of all."""
    return [background(rng, (side, side)) for _ in range(count)]


def crop_background(rng: np.random.Generator, bank: Sequence[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """A piece of one of the bank's backgrounds, flipped and recoloured at random."""
    source = bank[rng.integers(len(bank))]
    top, left = (rng.integers(0, have - want + 1) for have, want in zip(source.shape[:2], hw, strict=True))
    crop = source[top : top + hw[0], left : left + hw[1]]
    crop = crop[:: 1 if rng.random() < 0.5 else -1, :: 1 if rng.random() < 0.5 else -1]
    crop = crop[..., rng.permutation(3)]
    return np.ascontiguousarray(255 - crop if rng.random() < 0.3 else crop)


def _gradient(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.float32)
    return cv2.resize(corners, hw[::-1], interpolation=cv2.INTER_LINEAR)


def _noise(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    field = np.full((*hw, 3), rng.uniform(40, 215, 3), np.float32)
    strength = rng.uniform(20, 90)
    for octave in range(rng.integers(2, 6)):
        cells = 2 ** (octave + 1)
        grain = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        grain = grain.mean(2, keepdims=True) * rng.random() + grain * rng.random()
        field += cv2.resize(grain, hw[::-1], interpolation=cv2.INTER_CUBIC)
        strength *= 0.6
    return field


def _stripes(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[: hw[0], : hw[1]].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 60)
    wave = np.sin((columns * np.cos(angle) + rows * np.sin(angle)) * 2 * np.pi / period)
    if rng.random() < 0.4:
        wave *= np.sin((rows * np.cos(angle) - columns * np.sin(angle)) * 2 * np.pi / period)
    mix = (np.sign(wave) if rng.random() < 0.5 else wave)[..., None] * 0.5 + 0.5
    one, two = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return (one * (1 - mix) + two * mix).astype(np.float32)


def _clutter(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    field = (_gradient if rng.random() < 0.5 else _noise)(rng, hw)
    field = np.clip(field, 0, 255).astype(np.uint8)
    palette = [tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(rng.integers(2, 7))]
    reach = rng.uniform(0.02, 0.15) * min(hw)
    for _ in range(rng.integers(6, 36)):
        colour = palette[rng.integers(len(palette))]
        x, y = (int(rng.integers(0, side)) for side in hw[::-1])
        size = max(int(reach * rng.uniform(0.3, 1.0)), 2)
        thickness = -1 if rng.random() < 0.5 else int(rng.integers(1, 4))
        shape = rng.integers(5)
        if shape == 0:
            cv2.circle(field, (x, y), size, colour, thickness, cv2.LINE_AA)
        elif shape == 1:
            cv2.rectangle(field, (x, y), (x + size, y + int(size * rng.uniform(0.3, 2))), colour, thickness)
        elif shape == 2:
            end = (x + int(rng.integers(-3 * size, 3 * size)), y + int(rng.integers(-3 * size, 3 * size)))
            cv2.line(field, (x, y), end, colour, int(rng.integers(1, 6)), cv2.LINE_AA)
        elif shape == 3:
            corners = (np.array([x, y]) + rng.integers(-size, size + 1, (rng.integers(3, 6), 2))).astype(np.int32)
            cv2.fillPoly(field, [corners], colour, cv2.LINE_AA)
        else:
            letters = "".join(chr(c) for c in rng.integers(65, 91, rng.integers(1, 5)))
            cv2.putText(field, letters, (x, y), cv2.FONT_HERSHEY_SIMPLEX, size / 22, colour, 2, cv2.LINE_AA)
    return field.astype(np.float32)
