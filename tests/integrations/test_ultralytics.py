"""The real ultralytics trains on our YOLO export, and reads our masks from it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from text2seg.coco.convert import convert
from text2seg.coco.dataset import read_dataset
from text2seg.coco.polygon import decode as filled
from text2seg.coco.rle import mask_of

SCENES = Path(__file__).parents[2] / "text2seg/demo/scenes/new-scenes"


def test_one_epoch_on_our_export(tool, tmp_path):
    dataset = read_dataset(SCENES / "dataset.json")
    images = dataset["images"][:6]
    chosen = {image["id"] for image in images}
    found = [each for each in dataset["annotations"] if each["image_id"] in chosen]
    part = {**dataset, "images": images, "annotations": found}
    convert(part, "yolo-seg", tmp_path / "yolo", images=SCENES, polygon_tolerance=0)
    program = Path(__file__).parent / "ultralytics_client.py"
    command = [tool("ultralytics"), program, tmp_path / "yolo" / "data.yaml", tmp_path / "runs"]
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "true", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answer = json.loads(done.stdout.partition("\nANSWER ")[2])
    assert answer["finite"]
    assert answer["weights"]
    assert answer["names"] == [category["name"] for category in dataset["categories"]]
    numbers = {category["id"]: number for number, category in enumerate(dataset["categories"])}
    assert set(answer["polygons"]) == {Path(image["file_name"]).name for image in images}
    for image in images:
        name = Path(image["file_name"]).name
        width, height = Image.open(SCENES / image["file_name"]).size
        ours = [each for each in found if each["image_id"] == image["id"]]
        for kind in {numbers[each["category_id"]] for each in ours}:
            expected = [mask_of(each, (height, width)) for each in ours if numbers[each["category_id"]] == kind]
            read = [np.multiply(each, [width, height]).ravel() for cls, each in answer["polygons"][name] if cls == kind]
            drawn = filled([np.round(each).tolist() for each in read], (height, width))
            assert np.array_equal(drawn, np.any(expected, axis=0)), (name, kind)
