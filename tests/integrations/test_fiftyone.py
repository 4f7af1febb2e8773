"""The real FiftyOne, with its own database: it opens our COCO file, and we label a dataset in place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from text2seg.coco.dataset import build_dataset, segment_score, write_dataset
from text2seg.coco.rle import decode
from text2seg.io.images import load_image

ROOT = Path(__file__).parents[2]
SCENES = ROOT / "text2seg/demo/scenes/new-scenes/images"
NAMES = ("scene_0001.jpg", "scene_0019.jpg")
QUERIES = ("sheep", "fire engine")


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_fiftyone_opens_our_coco_file_and_its_datasets_are_labelled_in_place(encoding, tool, demo, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in NAMES:
        shutil.copy(SCENES / name, images)
    (images / "broken.png").write_bytes(b"no image")
    results = [demo.segment(load_image(images / name, image_id=n), QUERIES) for n, name in enumerate(NAMES, start=1)]
    file = write_dataset(build_dataset(results, encoding=encoding, polygon_tolerance=0), tmp_path / "coco.json")
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "FIFTYONE_DATABASE_DIR": str(tmp_path / "database"),
        "FIFTYONE_DO_NOT_TRACK": "true",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [tool("fiftyone"), ROOT / "tests/integrations/fiftyone_client.py", images, file, *QUERIES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answer = json.loads(done.stdout.partition("ANSWER ")[2].partition("\n")[0])
    for name, result in zip(NAMES, results, strict=True):
        for kind in ("opened", "labelled"):
            found = answer[kind][name]
            assert [label for label, *_ in found] == [segment.query for segment in result.segments]
            for (_, rle, _), segment in zip(found, result.segments, strict=True):
                assert np.array_equal(decode(rle), segment.mask), (kind, name, segment)
        scores = [score for *_, score in answer["labelled"][name]]
        assert np.allclose(scores, [segment_score(segment, result) for segment in result.segments])
    assert answer["drawn_elsewhere"] == 0
    (failure,) = answer["failures"]
    assert "broken.png" in failure
