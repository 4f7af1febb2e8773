"""Fit how the best of SAM's candidates is told by its score and the map, and print how often the choice is right.

    python scripts/render_demo_world.py --split validation --count 150 --output runs/validation
    python scripts/fit_choice.py runs/validation runs/validation-three --test runs/new-scenes

Every scene is asked for the things that are in it, region by region. The true IoU of each candidate is regressed on
SAM's score and on the map's separation; the weights belong into text2seg/sam/candidates.py. A choice counts as right
where no other candidate's IoU is more than 0.02 (0.05) higher.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from demo_world.agreement import SHOWS_SOMETHING, SLACK, candidate_ious, scenes_of
from numpy.typing import NDArray

from text2seg import MaskSettings, PointSettings, PresenceSettings, Settings, Text2Seg
from text2seg.grids import minmax, resize
from text2seg.sam.candidates import separation

EVERYTHING = Settings(
    points=PointSettings(instances="regions"),
    presence=PresenceSettings(0.05),
    masks=MaskSettings(overlap=1, quality=-9),
)


def rows_of(models: Text2Seg, folder: Path, limit: int | None) -> list[NDArray[np.float32]]:
    """For each region that found something, float32 [K, 3]: SAM's score, separation and true IoU of each candidate."""
    rows = []
    for session, things in scenes_of(models, folder, limit):
        found = session.segment(list(things), EVERYTHING)
        stretched = dict(zip(found.maps.queries, minmax(found.maps.scores), strict=True))
        for segment in found.segments:
            masks = models.sam.coarse_masks(session.embedding, segment.candidates)
            apart = separation(masks, resize(stretched[segment.query][None], masks.shape[1:])[0])
            ious = candidate_ious(models, session, segment, things[segment.query])
            rows.append(np.stack([segment.candidates.scores, apart, ious], axis=1).astype(np.float32))
    return rows


def report(name: str, rows: NDArray[np.float32], weights: NDArray) -> None:
    """How right the choice is, by SAM's score alone and by both, over regions that show a thing at all."""
    rows = rows[rows[:, :, 2].max(1) >= SHOWS_SOMETHING]
    iou, best = rows[:, :, 2], rows[:, :, 2].max(1)
    for how, quality in (("SAM", rows[:, :, 0]), ("both", rows[:, :, :2] @ weights[:2])):
        chosen = np.take_along_axis(iou, quality.argmax(1)[:, None], 1)[:, 0]
        right = [f"{(chosen >= best - slack).mean():.3f}" for slack in (0.02, SLACK)]
        print(
            f"{name:18} {how:5} IoU {chosen.mean():.3f} of {best.mean():.3f}, right {' / '.join(right)}, n {len(rows)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="rendered splits to fit to")
    parser.add_argument("--test", nargs="*", type=Path, default=[], help="splits to score only")
    parser.add_argument("--limit", type=int, help="only the first so many scenes of each")
    parser.add_argument("--sam", help="another SAM than the bundled one")
    args = parser.parse_args()
    models = Text2Seg.load("demo", sam=args.sam)
    gathered = {folder.name: np.stack(rows_of(models, folder, args.limit)) for folder in (*args.folders, *args.test)}
    fitted = np.concatenate([gathered[folder.name] for folder in args.folders]).reshape(-1, 3).astype(np.float64)
    design = np.column_stack([fitted[:, :2], np.ones(len(fitted))])
    weights = np.linalg.lstsq(design, fitted[:, 2], rcond=None)[0]
    print("SAM_WEIGHT {:.2f}, SEPARATION_WEIGHT {:.2f}, CONSTANT {:.2f}".format(*weights))
    for name, rows in gathered.items():
        report(name, rows, weights)


if __name__ == "__main__":
    main()
