"""Scenes with point sets, boxes and coarse masks on them, as text2seg makes them: what the demo SAM learns from."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from demo_world.backgrounds import background_bank
from demo_world.scenes import SceneSettings, SpriteBank, render_scene
from text2seg.sam.build import PIXEL_MEAN
from text2seg.sam.decoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, NEGATIVE, NOT_A_POINT, POSITIVE

SIDE, TARGET = 512, 192  # pixels of the model's square input, and of the masks that it is judged on
LARGEST_SCENE = 512  # scenes of other sizes are brought to the model's, as images are
LOW_RESOLUTION = SIDE // 4
PROMPTS = 3  # a scene
BACKGROUNDS = 300


class Prompts(IterableDataset):
    """Endless batches: pixels uint8 [B, SIDE, SIDE, 3]; points float32 [B·3, N, 2] and labels int64 [B·3, N];
    targets uint8 [B·3, TARGET, TARGET], the share of each pixel that is covered; mask logits
    [B·3, 1, SIDE / 4, SIDE / 4] or None."""

    def __init__(self, bank: SpriteBank, batch: int, seed: int, settings: SceneSettings) -> None:
        self.bank, self.batch, self.seed, self.settings = bank, batch, seed, settings

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        backgrounds = background_bank(rng, BACKGROUNDS, LARGEST_SCENE)
        while True:
            yield self.make_batch(rng, backgrounds)
            backgrounds[rng.integers(BACKGROUNDS)] = background_bank(rng, 1, LARGEST_SCENE)[0]

    def make_batch(self, rng: np.random.Generator, backgrounds: list[np.ndarray]) -> tuple:
        kind = rng.choice(["point", "points", "box"], p=[0.4, 0.45, 0.15])
        positives, negatives = (1, 0) if kind == "point" else (int(rng.integers(1, 9)), int(rng.integers(0, 9)))
        with_mask = kind != "point" and rng.random() < 0.2
        pixels, points, labels, targets = [], [], [], []
        while len(pixels) < self.batch:
            canvas, owner, things = self.scene(rng, backgrounds)
            if not things:
                continue
            pixels.append(canvas)
            for _ in range(PROMPTS):
                if kind == "box":
                    xy, label, target = _box_prompt(rng, owner, len(things))
                else:
                    xy, label, target = _point_prompt(rng, owner, things, positives, negatives)
                points.append(xy)
                labels.append(label)
                targets.append(
                    cv2.resize(target.astype(np.uint8) * 255, (TARGET, TARGET), interpolation=cv2.INTER_AREA)
                )
        targets = torch.from_numpy(np.stack(targets))
        masks = _mask_prompts(rng, targets) if with_mask else None
        return (
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack(points)),
            torch.tensor(np.stack(labels)),
            targets,
            masks,
        )

    def scene(self, rng: np.random.Generator, backgrounds: list[np.ndarray]) -> tuple:
        """A square canvas uint8 [SIDE, SIDE, 3], whose drawing covers each pixel [SIDE, SIDE], and what is drawn."""
        long = int(rng.integers(288, LARGEST_SCENE + 1))
        short = round(long * rng.uniform(0.5, 1))
        hw = (short, long) if rng.random() < 0.6 else (long, short)
        scene = render_scene(rng, self.bank, hw, self.settings, backgrounds=backgrounds)
        height, width = (round(side * SIDE / long) for side in scene.owner.shape)
        canvas = np.full((SIDE, SIDE, 3), np.round(PIXEL_MEAN), np.uint8)
        canvas[:height, :width] = cv2.resize(
            scene.pixels, (width, height), interpolation=cv2.INTER_AREA if long > SIDE else cv2.INTER_LINEAR
        )
        owner = np.zeros((SIDE, SIDE), np.uint8)
        owner[:height, :width] = cv2.resize(scene.owner, (width, height), interpolation=cv2.INTER_NEAREST)
        return canvas, owner, scene.things


def _point_prompt(
    rng: np.random.Generator, owner: np.ndarray, things: tuple[int, ...], positives: int, negatives: int
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Points on one drawing, or on all of its kind; the target is every drawing that a point lies on."""
    first = int(rng.integers(len(things)))
    kind = [k + 1 for k, thing in enumerate(things) if thing == things[first]]
    group = kind if positives > 1 and rng.random() < 0.6 else [first + 1]
    area = np.isin(owner, group)
    inside = _pick(rng, area, positives, deep=True)
    target = np.isin(owner, np.unique(owner[inside[:, 1], inside[:, 0]]))
    outside = _pick(rng, ~np.isin(owner, kind), negatives, deep=False)
    xy = np.concatenate([inside, outside, np.zeros((1, 2))]).astype(np.float32)
    return xy, [POSITIVE] * positives + [NEGATIVE] * negatives + [NOT_A_POINT], target


def _pick(rng: np.random.Generator, area: np.ndarray, count: int, *, deep: bool) -> np.ndarray:
    """`count` points xy in the area; `deep` prefers those far from its edge."""
    rows, columns = np.nonzero(area)
    draws = rng.integers(len(rows), size=(3 if deep else 1, count))
    if deep and count:
        depth = cv2.distanceTransform(area.astype(np.uint8), cv2.DIST_L2, 3)[rows, columns]
        draws = draws[: rng.integers(1, 4)]
        draws = np.take_along_axis(draws, depth[draws].argmax(0)[None], axis=0)
    return np.column_stack([columns[draws[0]], rows[draws[0]]])


def _box_prompt(rng: np.random.Generator, owner: np.ndarray, count: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    target = owner == 1 + rng.integers(count)
    left, top, width, height = cv2.boundingRect(target.astype(np.uint8))
    jitter = rng.normal(0, 0.07, 4) * [width, height, width, height]
    corners = np.array([left, top, left + width, top + height]) + jitter
    inside = _pick(rng, target, 1, deep=True)
    xy = np.concatenate([inside, np.clip(corners, 0, SIDE).reshape(2, 2)]).astype(np.float32)
    return xy, [POSITIVE, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], target


def _mask_prompts(rng: np.random.Generator, targets: Tensor) -> Tensor:
    """What a similarity map would give: the target on a coarse grid, shaken and blurred, as logits."""
    coarse = F.adaptive_avg_pool2d(targets[:, None].float() / 255, 16)
    noise = torch.from_numpy(rng.normal(0, 0.2, coarse.shape).astype(np.float32))
    return F.interpolate((2 * (coarse + noise) - 1) * float(rng.uniform(1, 10)), size=LOW_RESOLUTION, mode="bilinear")
