"""Render scenes of the demo world and write them as a COCO dataset: `images/` and `dataset.json`.

    python training/render.py --split new-scenes --count 300 --output runs/new_scenes

Splits: `new-scenes` has new scenes with the drawings of the training vendors, `held-out` the drawings of a vendor that
was not used for training, `held-out-styles` these drawings in other styles (see `scenes.restyled`), and `three` three
drawings of one thing in each scene. `validation` and `validation-three` are for tuning. The same split, count and sizes
always give the same images. Several splits become one dataset:

    python training/render.py --split validation validation-three --count 150 40 --output runs/validation
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from drawings import HELD_OUT_VENDOR, TRAINING_VENDORS, Sprite, load_sprites, load_things
from PIL import Image
from pycocotools import mask as coco_mask
from scenes import Scene, SceneSettings, SpriteBank, render_scene
from tqdm import trange

from text2seg.coco import rle
from text2seg.coco.dataset import write_dataset

SIZES = ((240, 320), (320, 240), (256, 384), (300, 400), (360, 270), (288, 512))
TEST_SCENES = SceneSettings(colour=0.3, outline=0.05, degrade=0.15)
THREE_OF_A_KIND = replace(TEST_SCENES, objects=(3, 3), same_kind=1.0, visible=0.95)
SPLITS = {
    "new-scenes": (TRAINING_VENDORS, 1001, TEST_SCENES),
    "held-out": ((HELD_OUT_VENDOR,), 2002, TEST_SCENES),
    "held-out-styles": ((HELD_OUT_VENDOR,), 6006, replace(TEST_SCENES, style=1.0)),
    "validation": (TRAINING_VENDORS, 3003, TEST_SCENES),
    "three": (TRAINING_VENDORS, 4004, THREE_OF_A_KIND),
    "validation-three": (TRAINING_VENDORS, 5005, THREE_OF_A_KIND),
}


def render(counts: Mapping[str, int], drawings: Path, output: Path, *, quality: int | None) -> Path:
    """Write scenes of one or more splits as one dataset; return the path of the dataset file.

    Args:
        counts: the number of scenes of each split.
        drawings: folder of the SVG packages.
        quality: that of JPEG files; None writes PNG files.
    """
    sprites, things = load_sprites(drawings), list(load_things())
    (output / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for split, count in counts.items():
        stem = "scene" if len(counts) == 1 else split
        for number, scene in enumerate(scenes_of(split, count, sprites), start=1):
            name = f"images/{stem}_{number:04d}." + ("png" if quality is None else "jpg")
            Image.fromarray(scene.pixels).save(output / name, **({} if quality is None else {"quality": quality}))
            height, width = scene.owner.shape
            images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
            for k, (thing, vendor) in enumerate(zip(scene.things, scene.vendors, strict=True), start=1):
                visible = rle.encode(scene.owner == k)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": thing + 1,
                        "segmentation": visible,
                        "area": rle.area(visible),
                        "bbox": [float(v) for v in coco_mask.toBbox(visible)],
                        "iscrowd": 0,
                        "attributes": {"vendor": vendor},
                    }
                )
    dataset = {
        "info": {"description": f"text2seg demo world, split {' and '.join(counts)}", "version": "1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "thing"} for i, name in enumerate(things, start=1)],
    }
    return write_dataset(dataset, output / "dataset.json")


def scenes_of(split: str, count: int, sprites: Sequence[Sprite]) -> Iterator[Scene]:
    """Yield the first `count` scenes of a split."""
    vendors, seed, settings = SPLITS[split]
    fewest, most = settings.objects
    exactly = most if fewest == most else 0
    rng = np.random.default_rng(seed)
    bank = SpriteBank(sprites, vendors)
    for _ in trange(count, desc=split, unit="scene"):
        scene = render_scene(rng, bank, SIZES[rng.integers(len(SIZES))], settings)
        while len(scene.things) < exactly:  # a drawing would have been hidden
            scene = render_scene(rng, bank, SIZES[rng.integers(len(SIZES))], settings)
        yield scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", nargs="+", choices=SPLITS, required=True)
    parser.add_argument("--count", nargs="+", type=int, default=[300], help="scenes of each split")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, default=Path("runs/drawings"), help="where the SVG packages are kept")
    parser.add_argument("--jpeg-quality", type=int, help="write JPEG instead of PNG, which is smaller")
    args = parser.parse_args()
    if len(args.count) not in (1, len(args.split)):
        parser.error("give one --count, or one for each split")
    counts = dict(zip(args.split, args.count * (len(args.split) if len(args.count) == 1 else 1), strict=True))
    print(render(counts, args.drawings, args.output, quality=args.jpeg_quality))


if __name__ == "__main__":
    main()
