"""Render scenes of the demo world and write them as a COCO dataset: `images/` and `dataset.json`.

    python training/render.py --split new-scenes --count 300 --output runs/new_scenes

Splits: `new-scenes` has new scenes with the drawings of the training vendors, `held-out` the drawings of a vendor that
was not used for training, and `three` three drawings of one thing in each scene. `validation` and `validation-three`
are for tuning. The same split, count and sizes always give the same images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from drawings import HELD_OUT_VENDOR, TRAINING_VENDORS, load_sprites, load_things
from PIL import Image
from pycocotools import mask as coco_mask
from scenes import SceneSettings, SpriteBank, render_scene
from tqdm import tqdm

from text2seg.coco import rle
from text2seg.coco.dataset import write_dataset

SIZES = ((240, 320), (320, 240), (256, 384), (300, 400), (360, 270), (288, 512))
TEST_SCENES = SceneSettings(colour=0.3, outline=0.05, degrade=0.15)
THREE_OF_A_KIND = replace(TEST_SCENES, objects=(3, 3), same_kind=1.0, visible=0.95)
SPLITS = {
    "new-scenes": (TRAINING_VENDORS, 1001, TEST_SCENES),
    "held-out": ((HELD_OUT_VENDOR,), 2002, TEST_SCENES),
    "validation": (TRAINING_VENDORS, 3003, TEST_SCENES),
    "three": (TRAINING_VENDORS, 4004, THREE_OF_A_KIND),
    "validation-three": (TRAINING_VENDORS, 5005, THREE_OF_A_KIND),
}


def render_split(
    split: str, count: int, drawings: Path, output: Path, *, quality: int | None, stem: str = "scene"
) -> Path:
    """Write `count` scenes of a split; return the path of the dataset file."""
    vendors, seed, settings = SPLITS[split]
    fewest, most = settings.objects
    exactly = most if fewest == most else 0
    rng = np.random.default_rng(seed)
    bank, things = SpriteBank(load_sprites(drawings), vendors), list(load_things())
    (output / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in tqdm(range(1, count + 1), desc=split, unit="scene"):
        scene = render_scene(rng, bank, SIZES[rng.integers(len(SIZES))], settings)
        while len(scene.things) < exactly:  # a drawing would have been hidden
            scene = render_scene(rng, bank, SIZES[rng.integers(len(SIZES))], settings)
        name = f"images/{stem}_{number:04d}." + ("png" if quality is None else "jpg")
        Image.fromarray(scene.pixels).save(output / name, **({} if quality is None else {"quality": quality}))
        height, width = scene.owner.shape
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for k, (thing, vendor) in enumerate(zip(scene.things, scene.vendors, strict=True), start=1):
            visible = rle.encode(scene.owner == k)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": thing + 1,
                    "segmentation": visible,
                    "area": rle.area(visible),
                    "bbox": [float(v) for v in coco_mask.toBbox(visible)],
                    "iscrowd": 0,
                    "attributes": {"vendor": vendor},
                }
            )
    dataset = {
        "info": {"description": f"text2seg demo world, split {split}", "version": "1"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "thing"} for i, name in enumerate(things, start=1)],
    }
    return write_dataset(dataset, output / "dataset.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--drawings", type=Path, default=Path("runs/drawings"), help="where the SVG packages are kept")
    parser.add_argument("--jpeg-quality", type=int, help="write JPEG instead of PNG, which is smaller")
    args = parser.parse_args()
    print(render_split(args.split, args.count, args.drawings, args.output, quality=args.jpeg_quality))


if __name__ == "__main__":
    main()
