"""Render scenes: drawings pasted on procedural backgrounds, with the exact visible mask of each.

One function serves the training data and the COCO dataset, so the demo models are trained on the world
that they are tested on; what differs is the drawings, the seeds and how far colours are varied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from demo_world.backgrounds import background, crop_background
from demo_world.sprites import Sprite


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """How scenes vary. Sizes are the longer side of a drawing as a share of the scene's `scale`."""

    objects: tuple[int, int] = (1, 6)
    size: tuple[float, float] = (0.2, 0.55)
    visible: float = 0.6  # a drawing of which less can be seen is taken out of the scene again
    same_kind: float = 0.15  # chance that a drawing repeats the thing (and vendor) of the one before
    rotation: float = 25.0  # degrees, either way
    shear: float = 0.15
    stretch: float = 0.2
    colour: float = 1.0  # 0 keeps the vendors' colours
    outline: float = 0.12  # chance of a drawn outline
    degrade: float = 0.3  # chance each of blur and of noise over the whole scene


@dataclass(frozen=True, slots=True)
class Scene:
    """`pixels` uint8[H, W, 3]; `owner` uint8[H, W], 0 background, k the k-th of `things`."""

    pixels: np.ndarray
    owner: np.ndarray
    things: tuple[int, ...]
    vendors: tuple[str, ...]


class SpriteBank:
    """Drawings by thing, premultiplied, in three sizes so that shrinking does not alias."""

    def __init__(self, sprites: Sequence[Sprite], vendors: Sequence[str]) -> None:
        self._levels: dict[int, list[tuple[str, list[np.ndarray]]]] = defaultdict(list)
        for sprite in sprites:
            if sprite.vendor in vendors:
                self._levels[sprite.thing].append((sprite.vendor, _pyramid(sprite.rgba)))
        if not self._levels:
            raise ValueError(f"no drawings of {', '.join(vendors)}")
        self.things = sorted(self._levels)

    def pick(self, rng: np.random.Generator, thing: int) -> tuple[str, list[np.ndarray]]:
        drawings = self._levels[thing]
        return drawings[rng.integers(len(drawings))]


def _pyramid(rgba: np.ndarray) -> list[np.ndarray]:
    alpha = rgba[..., 3:].astype(np.float32) / 255
    level = np.dstack([rgba[..., :3] * alpha, rgba[..., 3]]).round().astype(np.uint8)
    levels = [level]
    for _ in range(2):
        height, width = level.shape[:2]
        level = cv2.resize(level, (max(width // 2, 1), max(height // 2, 1)), interpolation=cv2.INTER_AREA)
        levels.append(level)
    return levels


def render_scene(
    rng: np.random.Generator,
    bank: SpriteBank,
    hw: tuple[int, int],
    settings: SceneSettings,
    *,
    scale: float | None = None,
    backgrounds: Sequence[np.ndarray] = (),
) -> Scene:
    """Render one scene of `hw` pixels. `scale` (default: the shorter side) is what sizes are a share of;
    a scale larger than the canvas gives a crop of a larger scene. `backgrounds` is a bank to draw from
    (fast); without it each background is made anew."""
    height, width = hw
    scale = scale or min(hw)
    pixels = crop_background(rng, backgrounds, hw) if backgrounds else background(rng, hw)
    owner = np.zeros(hw, np.uint8)
    drawn: list[tuple[int, str, int]] = []  # thing, vendor, pixels before anything covered it
    thing, drawing = -1, None
    for _ in range(rng.integers(settings.objects[0], settings.objects[1] + 1)):
        if drawing is None or rng.random() > settings.same_kind:
            thing = bank.things[rng.integers(len(bank.things))]
            drawing = bank.pick(rng, thing)
        size = scale * np.exp(rng.uniform(*np.log(settings.size)))
        sprite = _vary(rng, drawing[1], size, settings)
        rows, columns = sprite.shape[:2]
        top = int(rng.uniform(*sorted((-0.2 * rows, height - 0.8 * rows))))
        left = int(rng.uniform(*sorted((-0.2 * columns, width - 0.8 * columns))))
        full = int((sprite[..., 3] > 127).sum())
        if full and _paste(pixels, owner, sprite, top, left, drawn, settings.visible):
            drawn.append((thing, drawing[0], full))
    _degrade(rng, pixels, settings)
    return Scene(pixels, owner, tuple(d[0] for d in drawn), tuple(d[1] for d in drawn))


def _paste(
    pixels: np.ndarray,
    owner: np.ndarray,
    sprite: np.ndarray,
    top: int,
    left: int,
    drawn: list[tuple[int, str, int]],
    least: float,
) -> bool:
    """Blend the sprite in, unless less than `least` of it or of something below it would then be seen."""
    number = len(drawn) + 1
    height, width = owner.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.shape[0], height), min(left + sprite.shape[1], width)
    if y1 <= y0 or x1 <= x0:
        return False
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    solid = part[..., 3] > 127
    if solid.sum() < max(least * (sprite[..., 3] > 127).sum(), 12):
        return False
    below = owner[y0:y1, x0:x1]
    covered = np.bincount(below[solid], minlength=number)
    visible = np.bincount(owner.ravel(), minlength=number)
    for k, (_, _, full) in enumerate(drawn, start=1):
        if covered[k] and visible[k] - covered[k] < least * full:
            return False
    region = pixels[y0:y1, x0:x1]
    keep = 255 - part[..., 3:].astype(np.uint16)
    region[:] = np.minimum(part[..., :3] + (region * keep + 127) // 255, 255)
    below[solid] = number
    return True


def _vary(rng: np.random.Generator, levels: list[np.ndarray], size: float, settings: SceneSettings) -> np.ndarray:
    """Rotate, flip, shear, stretch, scale, recolour and outline one drawing; RGBA premultiplied."""
    level = levels[0]
    for smaller in levels[1:]:
        if max(smaller.shape[:2]) >= size:
            level = smaller
    height, width = level.shape[:2]
    zoom = size / max(height, width)
    angle = np.deg2rad(rng.uniform(-settings.rotation, settings.rotation))
    stretch = np.exp(rng.uniform(-settings.stretch, settings.stretch) / 2)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array(
        [[flip * stretch, rng.uniform(-settings.shear, settings.shear)], [0.0, 1 / stretch]]
    )
    matrix *= zoom
    corners = np.abs(matrix) @ np.array([width, height])
    out_w, out_h = (int(np.ceil(side)) + 4 for side in corners)
    offset = np.array([out_w, out_h]) / 2 - matrix @ (np.array([width, height]) / 2)
    warp = np.column_stack([matrix, offset])
    sprite = cv2.warpAffine(level, warp, (out_w, out_h), flags=cv2.INTER_LINEAR)
    if settings.colour:
        sprite = cv2.transform(sprite, _colour_matrix(rng, settings.colour))
        sprite[..., :3] = np.minimum(sprite[..., :3], sprite[..., 3:])
    if rng.random() < settings.outline:
        sprite = _outline(rng, sprite, size)
    return sprite


def _colour_matrix(rng: np.random.Generator, strength: float) -> np.ndarray:
    """A 4×4 matrix on premultiplied RGBA: hue, saturation, contrast and brightness at once."""
    hue = np.deg2rad(rng.normal(0, 12 * strength))
    saturation = 0.0 if rng.random() < 0.05 * strength else np.exp(rng.normal(0, 0.25 * strength))
    contrast = np.exp(rng.normal(0, 0.12 * strength))
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    rotate = grey + (np.eye(3) - grey) * np.cos(hue) + cross * np.sin(hue)
    rgb = contrast * (grey + saturation * (np.eye(3) - grey)) @ rotate
    matrix = np.eye(4)
    matrix[:3, :3] = rgb
    matrix[:3, 3] = 0.5 - contrast * 0.5 + rng.normal(0, 0.06 * strength)
    return matrix


def _outline(rng: np.random.Generator, sprite: np.ndarray, size: float) -> np.ndarray:
    width = max(round(size * rng.uniform(0.015, 0.05)), 1)
    padded = cv2.copyMakeBorder(sprite, width, width, width, width, cv2.BORDER_CONSTANT, value=(0, 0, 0, 0))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    alpha = cv2.dilate(padded[..., 3], kernel).astype(np.uint16)
    colour = np.array(_outline_colour(rng), np.uint16)
    room = (alpha - np.minimum(padded[..., 3], alpha))[..., None]
    rgb = np.minimum(padded[..., :3] + colour * room // 255, 255)
    return np.dstack([rgb, alpha]).astype(np.uint8)


def _outline_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    choice = rng.random()
    if choice < 0.4:
        return (255, 255, 255)
    if choice < 0.8:
        return (20, 20, 20)
    return tuple(int(c) for c in rng.integers(0, 256, 3))


def _degrade(rng: np.random.Generator, pixels: np.ndarray, settings: SceneSettings) -> None:
    if rng.random() < settings.degrade:
        pixels[:] = cv2.GaussianBlur(pixels, (0, 0), rng.uniform(0.3, 0.9))
    if rng.random() < settings.degrade:
        noise = np.empty(pixels.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(2**31)))
        cv2.randn(noise, 0, float(rng.uniform(2, 12)))
        pixels[:] = np.clip(pixels + noise, 0, 255)
