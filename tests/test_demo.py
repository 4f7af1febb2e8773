"""The pipeline with the bundled demo checkpoints. Its scores are tested in test_demo_scores.py."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, assert_close
from PIL import Image

from text2seg import MapSettings, Settings, Text2Seg
from text2seg.cli import main
from text2seg.coco.dataset import read_dataset
from text2seg.evaluation import category_given

DEMO = Path(__file__).parents[1] / "text2seg" / "demo"
SCENES = DEMO / "scenes"
SCENE = SCENES / "new-scenes" / "images" / "scene_0019.jpg"


def test_the_demo_run_of_the_readme(tmp_path, capsys):
    """The command of `make demo`, checked by the COCO file that it writes. A second run replaces it."""
    queries = (SCENES / "queries.txt").read_text(encoding="utf-8").strip()
    name = f"images/{SCENE.name}"
    command = re.search(
        r"^demo:.*\n((?:\t.*\n)+)", (DEMO.parents[1] / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert command
    flags = re.findall(r"--(?!queries|model)[a-z]+", command[1])
    assert flags == ["--output", "--overwrite"]
    for _ in range(2):
        status = main(["segment", str(SCENE), "--queries", queries, *flags[1:], *flags[:1], str(tmp_path)])
        assert status == 0, capsys.readouterr().err
    found, truth = read_dataset(tmp_path / "dataset.json"), read_dataset(SCENE.parents[1] / "dataset.json")
    found["images"][0]["file_name"] = name
    truth["images"] = [image for image in truth["images"] if image["file_name"] == name]
    asked = {query.strip() for query in queries.split(",")}
    wanted = {c["id"] for c in truth["categories"] if c["name"] in asked}
    image_id = truth["images"][0]["id"]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] == image_id and a["category_id"] in wanted]
    assert category_given(truth, found).mean_iou >= 0.6
    for photo in ("scene_0019_overlay.png", "scene_0019_why.png"):
        assert Image.open(tmp_path / photo).width >= 400


def test_the_three_lines_of_the_readme(demo):
    result = demo.segment(SCENE, ["sheep", "fire engine"])
    assert [segment.query for segment in result.segments] == ["sheep", "sheep", "fire engine"]
    assert all(segment.mask.shape == result.image.hw and segment.mask.dtype == bool for segment in result.segments)


def test_path_pillow_image_and_array_give_the_same_masks(demo):
    path = SCENE
    image = Image.open(path)
    masks = [demo.segment(source, "sheep").segments[0].mask for source in (path, image, np.asarray(image))]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] == masks[2]).all()


def test_batch_session_and_threads_equal_single_calls(demo):
    paths = sorted((SCENES / "new-scenes" / "images").iterdir())[10:14]
    queries = ["sheep", "monkey"]
    single = [demo.segment(path, queries) for path in paths]
    batch = demo.segment_many(paths, queries)
    with ThreadPoolExecutor(4) as pool:
        threads = list(pool.map(lambda path: demo.segment(path, queries), paths))
    session = demo.open(paths[0])
    session.segment(["pizza"])
    for one, many, thread in zip(single, batch, threads, strict=True):
        assert_close(one.maps.scores, many.maps.scores, terms=DEMO_NETWORK, scale=1)
        for a, b, c in zip(one.segments, many.segments, thread.segments, strict=True):
            assert (a.mask != b.mask).mean() < 1e-3
            assert (a.mask == c.mask).all()
    again = session.segment(queries)
    assert all((a.mask == b.mask).all() for a, b in zip(single[0].segments, again.segments, strict=True))


@pytest.mark.parametrize(
    "maps",
    [
        MapSettings(architecture="raw", redundancy="none"),
        MapSettings(architecture="surgery", redundancy="none"),
        MapSettings(redundancy="empty", input_size=192),
        MapSettings(redundancy="empty", input_size=512),
        MapSettings(redundancy="label-set", labels=("pizza", "dog", "bus"), input_size=(192, 320)),
    ],
    ids=["raw", "surgery", "single at 192", "single at 512", "label set on a rectangle"],
)
def test_every_mode_of_the_original_demo_runs_and_the_map_peaks_on_the_object(demo, maps):
    result = demo.segment(SCENE, ["sheep", "monkey+fire engine"], Settings(maps))
    assert result.maps.scores.shape[0] == 2
    assert np.isfinite(result.maps.scores).all()
    assert {segment.query for segment in result.segments} == {"sheep", "monkey+fire engine"}


def test_clip_load_takes_the_demo_checkpoint():
    """OpenAI's own loader, so that the file is really in the official format."""
    model, preprocess = clip.load(str(DEMO / "clip_demo.pt"), device="cpu")
    image = preprocess(Image.open(SCENE))[None]
    assert torch.isfinite(model.encode_image(image)).all()


def test_bf16_gives_nearly_the_masks_of_fp32(demo):
    half = Text2Seg.load("demo", device="cpu", precision="bf16")
    path = SCENE
    for a, b in zip(demo.segment(path, "sheep").segments, half.segment(path, "sheep").segments, strict=True):
        assert (a.mask & b.mask).sum() / (a.mask | b.mask).sum() > 0.9
    assert half.provenance()["precision"] == "bf16"


def test_provenance_is_plain_json(demo):
    text = json.dumps(demo.provenance())
    assert "sha256" in text
    assert json.loads(text)["settings"]["points"]["threshold"] == 0.8


def test_the_demo_checkpoints_are_at_most_25_mb():
    assert sum(path.stat().st_size for path in DEMO.glob("*.pt*")) <= 25e6
