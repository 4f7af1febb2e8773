"""What tiles are good for: small things in large images, with and without them, and a table.

    python scripts/measure_tiling.py          # 10 images of 1600 × 1200, of the drawings in runs/drawings
    python scripts/measure_tiling.py --count 3 --tile 400 512 --size 0.04 0.08

An image shows things of the demo world whose longer side is a share of 1200 pixels between the two sizes. Asked for is
all that it shows (recall at IoU 0.5, of things) and as many things that it does not show (found all the same: shares of
queries). `right` is the share of all segments that have IoU 0.5 with a thing of their query that no better one has.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from demo_world.scenes import Scene, SceneSettings, SpriteBank, render_scene
from demo_world.sprites import TRAINING_VENDORS, load_sprites, load_things
from tqdm import tqdm

from text2seg import Settings, Text2Seg
from text2seg.config import TileSettings
from text2seg.records import Image, Segmentation

HW, THINGS, SEED = (1200, 1600), (12, 12), 6006


@dataclass
class Row:
    things: int = 0
    found: int = 0
    segments: int = 0
    absent: int = 0
    absent_found: int = 0
    seconds: float = 0.0

    def __add__(self, other: Row) -> Row:
        return Row(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def judged(scene: Scene, names: list[str], absent: list[str], result: Segmentation, seconds: float) -> Row:
    """Each segment may find one thing, the best scored first."""
    free = {k: scene.owner == k for k in range(1, len(scene.things) + 1)}
    row = Row(things=len(free), segments=len(result.segments), absent=len(absent), seconds=seconds)
    for segment in sorted(result.segments, key=lambda segment: -segment.sam_score):
        own = [k for k in free if names[scene.things[k - 1]] == segment.query]
        best = max(own, key=lambda k: iou(segment.mask, free[k]), default=None)
        if best is not None and iou(segment.mask, free[best]) >= 0.5:
            row.found += 1
            del free[best]
    row.absent_found = len({segment.query for segment in result.segments} & set(absent))
    return row


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(one & other) / max(np.count_nonzero(one | other), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--tile", type=int, nargs="+", default=[0, 512])
    parser.add_argument("--size", type=float, nargs=2, default=(0.04, 0.08))
    parser.add_argument("--drawings", type=Path, default=Path("runs/drawings"), help="where the SVG packages are kept")
    args = parser.parse_args()
    models = Text2Seg.load("demo")
    rng = np.random.default_rng(SEED)
    bank, names = SpriteBank(load_sprites(args.drawings), TRAINING_VENDORS), list(load_things())
    world = SceneSettings(objects=THINGS, size=tuple(args.size), colour=0.3, outline=0.05, degrade=0.15)
    rows = {tile: Row() for tile in args.tile}
    for number in tqdm(range(args.count), unit="image"):
        scene = render_scene(rng, bank, HW, world)
        present = sorted({names[thing] for thing in scene.things})
        absent = sorted(rng.choice(sorted(set(names) - set(present)), len(present), replace=False).tolist())
        image = Image(scene.pixels, f"scene {number + 1}", number + 1)
        for tile in rows:
            start = time.perf_counter()
            result = models.segment(image, present + absent, Settings(tiles=TileSettings(tile)))
            rows[tile] += judged(scene, names, absent, result, time.perf_counter() - start)
    print("tile".rjust(6), *(name.rjust(14) for name in ("recall@0.5", "right", "absent, found", "s an image")))
    for tile, row in rows.items():
        shares = (row.found / row.things, row.found / max(row.segments, 1), row.absent_found / row.absent)
        print(str(tile or "none").rjust(6), *(f"{n:14.3f}" for n in (*shares, row.seconds / args.count)))


if __name__ == "__main__":
    main()
