"""Render scenes: drawings on procedural backgrounds, with the exact visible mask of each drawing.

The same function renders the training data and the COCO datasets. They differ only in the drawings, the seeds and the
variation of colours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from drawings import Sprite


@dataclass(frozen=True, slots=True)
class SceneSettings:
    """Variation of scenes. `objects` is the range of their number; `size` is the range of a drawing's longer side as a
    share of the scene's `scale`."""

    objects: tuple[int, int] = (1, 6)
    size: tuple[float, float] = (0.2, 0.55)
    visible: float = 0.6  # lowest visible share of a drawing
    same_kind: float = 0.15  # chance that a drawing repeats the thing (and vendor) of the one before
    rotation: float = 25.0  # largest angle in degrees, in both directions
    shear: float = 0.15
    stretch: float = 0.2
    colour: float = 1.0  # 0 keeps the vendors' colours
    outline: float = 0.12  # chance of a drawn outline
    degrade: float = 0.3  # chance of blur, and chance of noise, over the whole scene
    style: float = 0.0  # chance that a drawing is redrawn in another style (`restyled`)


@dataclass(frozen=True, slots=True)
class Scene:
    """A rendered scene: `pixels` uint8[H, W, 3]; `owner` uint8[H, W], 0 for background and k for the k-th drawing;
    the thing and the vendor of each drawing."""

    pixels: np.ndarray
    owner: np.ndarray
    things: tuple[int, ...]
    vendors: tuple[str, ...]


class SpriteBank:
    """Drawings by thing, premultiplied, in three sizes, which prevents aliasing when they are reduced."""

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
    """Render one scene.

    Args:
        hw: its height and width in pixels.
        scale: the length that sizes are a share of; default: the shorter side. A larger scale gives a crop of a larger
            scene.
        backgrounds: a bank of backgrounds to choose from, which is fast; without it, make a new background.
    """
    height, width = hw
    scale = scale or min(hw)
    pixels = crop_background(rng, backgrounds, hw) if backgrounds else background(rng, hw)
    owner = np.zeros(hw, np.uint8)
    drawn: list[tuple[int, str, int]] = []  # thing, vendor, area in pixels before others cover it
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
    min_visible: float,
) -> bool:
    """Paste the sprite into the scene, unless the visible share of it or of a drawing below would be less than
    `min_visible`. Return whether it was pasted."""
    number = len(drawn) + 1
    height, width = owner.shape
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + sprite.shape[0], height), min(left + sprite.shape[1], width)
    if y1 <= y0 or x1 <= x0:
        return False
    part = sprite[y0 - top : y1 - top, x0 - left : x1 - left]
    solid = part[..., 3] > 127
    if solid.sum() < max(min_visible * (sprite[..., 3] > 127).sum(), 12):
        return False
    below = owner[y0:y1, x0:x1]
    covered = np.bincount(below[solid], minlength=number)
    visible = np.bincount(owner.ravel(), minlength=number)
    for k, (_, _, full) in enumerate(drawn, start=1):
        if covered[k] and visible[k] - covered[k] < min_visible * full:
            return False
    region = pixels[y0:y1, x0:x1]
    keep = 255 - part[..., 3:].astype(np.uint16)
    region[:] = np.minimum(part[..., :3] + (region * keep + 127) // 255, 255)
    below[solid] = number
    return True


def _vary(rng: np.random.Generator, levels: list[np.ndarray], size: float, settings: SceneSettings) -> np.ndarray:
    """Return one drawing rotated, flipped, sheared, stretched, scaled, recoloured and outlined: RGBA, premultiplied."""
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
    if settings.style and rng.random() < settings.style:
        sprite = restyled(rng, sprite)
    if rng.random() < settings.outline:
        sprite = _outline(rng, sprite, size)
    return sprite


def _colour_matrix(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Return a random 4×4 matrix for premultiplied RGBA that changes hue, saturation, contrast and brightness."""
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


def restyled(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """Return a drawing, uint8[h, w, 4], premultiplied, in one or two styles chosen at random.

    Its alpha is kept, except that a drawing of few pixels has steps along its edge.
    """
    for style in rng.choice(len(STYLES), rng.integers(1, 3), replace=False, p=STYLE_SHARES):
        sprite = STYLES[style](rng, sprite)
        sprite[..., :3] = np.minimum(sprite[..., :3], sprite[..., 3:])
    return sprite


def _shaded(sprite: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return the drawing mixed with white where `light` float[h, w] is positive, with black where it is negative."""
    alpha = sprite[..., 3:].astype(np.float32)
    rgb = sprite[..., :3].astype(np.float32)
    target = np.where(light[..., None] > 0, alpha, 0.0)
    share = np.minimum(np.abs(light), 1.0)[..., None].astype(np.float32)
    return np.dstack([rgb + (target - rgb) * share, alpha]).astype(np.uint8)


def _with_gloss(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """A round highlight with a soft or a sharp edge, and a darker rim on the other side."""
    rows, columns = np.mgrid[: sprite.shape[0], : sprite.shape[1]].astype(np.float32)
    y, x = rows / sprite.shape[0] - rng.uniform(0.15, 0.45), columns / sprite.shape[1] - rng.uniform(0.2, 0.8)
    distance = np.hypot(y * rng.uniform(0.8, 2.0), x)
    radius, edge = rng.uniform(0.15, 0.45), rng.uniform(0.02, 0.3)
    highlight = rng.uniform(0.25, 0.8) * np.clip((radius - distance) / edge, 0, 1)
    return _shaded(sprite, highlight - rng.uniform(0, 0.4) * np.clip(distance - 0.5, 0, 1))


def _with_gradient(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """Light from one side, or a colour that changes from one side to the other."""
    rows, columns = np.mgrid[: sprite.shape[0], : sprite.shape[1]].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (rows / sprite.shape[0] - 0.5) * np.sin(angle) + (columns / sprite.shape[1] - 0.5) * np.cos(angle)
    if rng.random() < 0.6:
        return _shaded(sprite, ramp * rng.uniform(0.4, 1.4))
    alpha = sprite[..., 3:].astype(np.float32)
    share = (np.clip(ramp + 0.5, 0, 1) * rng.uniform(0.3, 0.8))[..., None]
    colour = rng.uniform(0, 1, 3).astype(np.float32) * alpha
    rgb = sprite[..., :3].astype(np.float32)
    return np.dstack([rgb + (colour - rgb) * share, alpha]).astype(np.uint8)


def _as_lines(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """Dark lines along the edges of colour, on paper that keeps none or some of the colour."""
    alpha = sprite[..., 3:].astype(np.float32)
    padded = cv2.copyMakeBorder(sprite, 2, 2, 2, 2, cv2.BORDER_CONSTANT)
    smooth = cv2.GaussianBlur(padded, (0, 0), rng.uniform(0.6, 1.2)).astype(np.float32)
    edges = np.maximum(np.abs(cv2.Sobel(smooth, cv2.CV_32F, 1, 0)), np.abs(cv2.Sobel(smooth, cv2.CV_32F, 0, 1))).max(2)
    edges = cv2.dilate(edges, np.ones((rng.integers(1, 3),) * 2, np.uint8))[2:-2, 2:-2]
    ink = np.clip(edges / rng.uniform(60, 160), 0, 1)[..., None]
    keep = rng.uniform(0.0, 0.6) if rng.random() < 0.6 else 0.0
    paper = alpha * rng.uniform(0.75, 1.0)
    rgb = (sprite[..., :3] * keep + paper * (1 - keep)) * (1 - ink * rng.uniform(0.7, 1.0))
    if rng.random() < 0.15:
        rgb = alpha - rgb  # light lines on a dark ground
    return np.dstack([rgb, alpha]).astype(np.uint8)


def _of_few_pixels(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """Large square pixels, or the blur of an image that was enlarged."""
    height, width = sprite.shape[:2]
    side = rng.uniform(14, 34) / max(height, width)
    if side >= 1:
        return sprite
    small = (max(round(width * side), 2), max(round(height * side), 2))
    enlarge = cv2.INTER_NEAREST if rng.random() < 0.6 else cv2.INTER_CUBIC
    large = cv2.resize(cv2.resize(sprite, small, interpolation=cv2.INTER_AREA), (width, height), interpolation=enlarge)
    if enlarge == cv2.INTER_NEAREST:
        solid = large[..., 3:] > 127
        alpha = np.maximum(large[..., 3:].astype(np.float32), 1)
        large = np.where(solid, np.clip(large * (255 / alpha), 0, 255), 0).astype(np.uint8)
    return large


def _of_few_colours(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """Flat areas of few colours, as in a poster, or one hue with its shades."""
    levels = int(rng.integers(2, 5))
    alpha = sprite[..., 3:].astype(np.float32)
    straight = sprite[..., :3] / np.maximum(alpha, 1)
    if rng.random() < 0.4:
        grey = straight.mean(2, keepdims=True)
        one, two = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
        straight = one * (1 - grey) + two * grey
    else:
        straight = np.round(straight * levels) / levels
    return np.dstack([np.clip(straight, 0, 1) * alpha, alpha]).astype(np.uint8)


def _with_texture(rng: np.random.Generator, sprite: np.ndarray) -> np.ndarray:
    """Grain of pencil, cloth or paint over the drawing."""
    height, width = sprite.shape[:2]
    cells = (max(int(height / rng.uniform(1, 5)), 2), max(int(width / rng.uniform(1, 5)), 2))
    grain = rng.normal(0, rng.uniform(0.05, 0.25), cells).astype(np.float32)
    return _shaded(sprite, cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR))


STYLES = (_with_gloss, _with_gradient, _as_lines, _of_few_pixels, _of_few_colours, _with_texture)
STYLE_SHARES = (0.2, 0.25, 0.2, 0.15, 0.1, 0.1)


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


# --- backgrounds ---


def background(rng: np.random.Generator, hw: tuple[int, int]) -> np.ndarray:
    """Return a procedural background, uint8[H, W, 3]: plain, a gradient, noise, stripes or clutter."""
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
    """Return square backgrounds to crop from. In training, making a background for each scene would take too long."""
    return [background(rng, (side, side)) for _ in range(count)]


def crop_background(rng: np.random.Generator, bank: Sequence[np.ndarray], hw: tuple[int, int]) -> np.ndarray:
    """Return a random crop of a background in the bank, flipped and recoloured at random."""
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
