"""What a negative does, on scenes rendered with both of two things that are easily taken for one another.

    python scripts/compare_negatives.py --scenes 20

One row a pair, asked for the first, three ways: plain; with the second as a negative whose map is taken off, and no
more; and with its peaks as negative points too, which is what text2seg does. `IoU` is that of the union of segments,
`leak` the share of the second thing's pixels that the segments cover.
"""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from demo_world.scenes import SceneSettings, SpriteBank, render_scene
from demo_world.sprites import TRAINING_VENDORS, load_sprites, load_things
from score_demo import show
from tqdm import tqdm

from text2seg import PresenceSettings, Settings, Text2Seg, prompts
from text2seg.pipeline import Session
from text2seg.queries import parse_query

PAIRS = (
    ("mouse", "computer mouse"),
    ("computer mouse", "mouse"),
    ("car", "taxi"),
    ("bear", "panda"),
    ("apple", "tomato"),
    ("fire engine", "ambulance"),
    ("cat", "tiger"),
    ("soccer ball", "basketball"),
)
SCENES = SceneSettings(objects=(2, 4), size=(0.3, 0.6), colour=0.3, outline=0.05, degrade=0.15)


@contextmanager
def no_points():
    """Negatives are taken off the map only."""
    usual = prompts._peaks
    prompts._peaks = lambda maps, settings: np.zeros(0, np.int64)
    try:
        yield
    finally:
        prompts._peaks = usual


def union(session: Session, query: str) -> np.ndarray:
    found = session.segment([parse_query(query)], Settings(presence=PresenceSettings(0)))
    return np.any([np.zeros(session.image.hw, bool), *(segment.mask for segment in found.segments)], axis=0)


def score(models: Text2Seg, scenes: list, wanted: int, unwanted: int, names: list[str]) -> dict[str, float]:
    rows = []
    for scene in scenes:
        session = models.open(scene.pixels)
        plain, query = names[wanted], f"{names[wanted]} -{names[unwanted]}"
        with no_points():
            masks = [union(session, plain), union(session, query)]
        masks.append(union(session, query))
        kinds = np.array((-1, *scene.things))[scene.owner]
        true, other = kinds == wanted, kinds == unwanted
        for mask in masks:
            rows.append((np.count_nonzero(mask & true) / np.count_nonzero(mask | true), mask[other].mean()))
    table = np.array(rows).reshape(len(scenes), 3, 2).mean(0)
    return {
        f"{name} {what}": float(table[k, j])
        for j, what in enumerate(("IoU", "leak"))
        for k, name in enumerate(("plain", "off", "points"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="of each pair")
    parser.add_argument("--drawings", type=Path, default=Path("runs/drawings"), help="where the SVG packages are kept")
    args = parser.parse_args()
    models = Text2Seg.load("demo")
    names, bank = list(load_things()), SpriteBank(load_sprites(args.drawings), TRAINING_VENDORS)
    rows = {}
    for pair in tqdm(PAIRS, unit="pair"):
        wanted, unwanted = (names.index(name) for name in pair)
        bank.things = [wanted, unwanted]
        rng, scenes = np.random.default_rng(6006), []
        while len(scenes) < args.scenes:
            scene = render_scene(rng, bank, (256, 320), SCENES)
            if {wanted, unwanted} <= set(scene.things):
                scenes.append(scene)
        rows[" -".join(pair)[:26]] = score(models, scenes, wanted, unwanted, names)
    rows["mean"] = {column: float(np.mean([row[column] for row in rows.values()])) for column in rows[next(iter(rows))]}
    show({name.ljust(28): row for name, row in rows.items()})


if __name__ == "__main__":
    main()
