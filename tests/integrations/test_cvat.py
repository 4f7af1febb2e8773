"""The real cvat-sdk: its checks of a function, and its driver, which annotates a task with ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from text2seg import Text2Seg
from text2seg.coco.polygon import decode as filled
from text2seg.coco.rle import decode

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "text2seg/demo/scenes/new-scenes/images"
NAMES = ("scene_0001.jpg", "scene_0019.jpg")
ONTOLOGY = "categories:\n- name: Animal\n  queries: [sheep]\n- name: Vehicle\n  queries: [fire engine]\n"


def test_the_driver_of_cvat_uploads_our_masks_and_polygons(tool, tmp_path):
    images, ontology = tmp_path / "images", tmp_path / "things.yaml"
    images.mkdir()
    for name in NAMES:
        shutil.copy(SCENES / name, images)
    ontology.write_text(ONTOLOGY)
    command = [tool("cvat"), ROOT / "tests/integrations/cvat_client.py", images, ontology]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answer = json.loads(done.stdout.partition("ANSWER ")[2])
    models, category = Text2Seg.load("demo", device="cpu"), {"sheep": "Animal", "fire engine": "Vehicle"}
    results = [models.segment(SCENES / name, list(category)) for name in NAMES]
    expected = [(n, category[each.query], each.mask) for n, result in enumerate(results) for each in result.segments]
    assert len(answer["masks"]) == len(expected) > 2
    for (frame, name, rle), (number, label, mask) in zip(answer["masks"], expected, strict=True):
        assert (frame, name) == (number, label)
        assert np.array_equal(decode(rle), mask)
    for number, result in enumerate(results):
        drawn = filled([points for frame, _, points in answer["polygons"] if frame == number], result.image.hw)
        union = np.any([segment.mask for segment in result.segments] or [np.zeros(result.image.hw, np.bool_)], axis=0)
        assert (drawn & union).sum() >= 0.97 * (drawn | union).sum()
    assert answer["confident"] == 0
