"""The first steps of README with `light`, CLIP ViT-B/16 and MobileSAM: random weights of their real size, from servers
on this machine, are downloaded, verified and calibrated, and then give the masks of an image."""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoint_builders import VIT_B_16, clip_module, serving, with_smooth_maps, write_official_archive
from coco_builders import SCENES, coco_of_scenes
from PIL import Image as PillowImage
from test_mobile_sam import published_weights

from text2seg import known_answers, regions, weights
from text2seg.calibration import card, measure
from text2seg.cli import calibrate, main
from text2seg.coco.download import SERVER_VARIABLE
from text2seg.known_answers import Case, verify_answers
from text2seg.weights import registry

IMAGES = 5
PHOTO = SCENES / "images" / "scene_0019.jpg"
FILES = {"ViT-B/16": "ViT-B-16.pt", "mobile_sam": "mobile_sam.pt"}
ASKED = (
    {"weights": "ViT-B/16", "kind": "clip", "measure": "probabilities", "texts": ("a dog", "a cat")},
    {"weights": "mobile_sam", "kind": "sam", "measure": "candidates", "points": ((120, 100),)},
)


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """An empty folder with a photo, and a server that has the weights, COCO's files and the image of the answers."""
    archive, tensors = tmp_path / "clip.pt", io.BytesIO()
    model = with_smooth_maps(clip_module(VIT_B_16))
    write_official_archive(model, archive, image_size=224, context=77, vocabulary=49408)
    torch.save(published_weights(), tensors)
    contents = {"ViT-B/16": archive.read_bytes(), "mobile_sam": tensors.getvalue()}
    archive.unlink()
    with serving(b"") as server:
        base = server.url.removesuffix("/weights.pt")
        server.files = coco_of_scenes(most_things=1) | {"/photo.jpg": PHOTO.read_bytes()}
        server.files |= {f"/{FILES[name]}": content for name, content in contents.items()}
        server.cuts = [100_000_000]
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        here = tuple(
            replace(each, url=f"{base}/{FILES[each.name]}", sha256=hashes[each.name]) if each.name in hashes else each
            for each in registry.CHECKPOINTS
        )
        monkeypatch.setattr(registry, "CHECKPOINTS", here)
        monkeypatch.setattr("text2seg.weights.download.BACKOFF_SECONDS", (0, 0))
        # One image of each fold, and in one of them a few regions: more would only repeat what takes longest.
        monkeypatch.setattr(card, "FEWEST_IMAGES", IMAGES)
        monkeypatch.setattr(calibrate, "FEWEST_IMAGES", IMAGES)
        monkeypatch.setattr(measure, "BOUNDS_IMAGES", 1)
        monkeypatch.setattr(measure, "MOST_IMAGES", 1)
        monkeypatch.setattr(regions, "GRID", replace(regions.GRID, points_per_side=8))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setenv(SERVER_VARIABLE, base)
        home = tmp_path / "home"
        home.mkdir()
        (home / "photo.jpg").write_bytes(PHOTO.read_bytes())
        monkeypatch.chdir(home)
        yield home, server, hashes


def test_from_download_over_answers_and_calibration_to_masks(at_home, monkeypatch, capsys):
    home, server, hashes = at_home

    assert main(["checkpoints", "download", "light"]) == 0
    assert server.ranges[1] == "bytes=100000000-"  # the first connection was cut
    assert main(["checkpoints", "verify", "light"]) == 0
    text = capsys.readouterr().out
    assert all(hash in text for hash in hashes.values())
    assert text.count(" ok ") == 2

    assert main(["checkpoints", "verify", "light", "--answers"]) == 1
    assert "no answers of 'ViT-B/16' or 'mobile_sam' are published" in capsys.readouterr().err
    url = server.url.removesuffix("/weights.pt") + "/photo.jpg"
    more = {"image": "photo.jpg", "url": url, "tolerance": 5e-3, "source": "trained weights"}
    cases = tuple(Case(**each, **more, answer=(0.9, 0.1, 0.05)[: 2 if each["kind"] == "clip" else 3]) for each in ASKED)
    monkeypatch.setattr(known_answers, "published", lambda: cases)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["checkpoints", "verify", "light", "--answers", "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert "2 of 2 answers differ" in text
    assert text.count("0.005: NO") == 2
    assert "a dog, a cat" in text
    assert "point 120, 100" in text
    own = tuple(replace_answer(case, verify_answers([case], device="cpu")[0].ours) for case in cases)
    monkeypatch.setattr(known_answers, "published", lambda: own)
    assert main(["checkpoints", "verify", "light", "--answers", "--device", "cpu"]) == 0
    assert "all answers agree" in capsys.readouterr().out

    assert main(["calibrate", "coco", "--images", str(IMAGES)]) == 0
    text, errors = capsys.readouterr()
    assert "the models are CLIP ViT-B/16 with SAM mobile_sam" in errors
    assert "not calibrated" not in errors
    assert re.search(rf"downloading the annotations of COCO 2017 \(253 MB\) and up to {IMAGES} images", errors)
    assert "fewer than 100 images: the intervals are wide" in errors
    assert re.search(r"^presence: calibrated", text, re.MULTILINE)
    assert "from now on all commands use this card" in text
    (path,) = (weights.folder() / "cards").iterdir()
    assert json.loads(path.read_text())["sam"]["sha256"] == hashes["mobile_sam"]
    assert (home / "outputs" / "calibration.html").exists()
    assert main(["checkpoints", "show", "light"]) == 0
    assert f"calibrated on: COCO val2017, {IMAGES} images drawn at random: {IMAGES} images" in capsys.readouterr().out

    assert main(["segment", "photo.jpg", "--query", "dog", "--save", "overlay,masks,cutouts", "--presence", "0"]) == 0
    text, errors = capsys.readouterr()
    assert "the models are CLIP ViT-B/16 with SAM mobile_sam" in errors
    dataset = json.loads((home / "outputs" / "dataset.json").read_text())
    masks = sorted((home / "outputs" / "masks").glob("photo_dog_*.png"))
    cutouts = sorted((home / "outputs" / "cutouts").glob("photo_dog_*.png"))
    assert len(masks) == len(cutouts) == len(dataset["annotations"]) > 0
    for annotation, path, cutout in zip(dataset["annotations"], masks, cutouts, strict=True):
        assert np.count_nonzero(np.asarray(PillowImage.open(path))) == annotation["area"]
        assert PillowImage.open(cutout).mode == "RGBA"
    provenance = dataset["info"]["provenance"]
    assert {kind: provenance[kind]["sha256"] for kind in ("clip", "sam")} == {
        "clip": hashes["ViT-B/16"],
        "sam": hashes["mobile_sam"],
    }
    assert provenance["presence"]["calibrated"] is True


def replace_answer(case: Case, answer: tuple[float, ...]) -> Case:
    return case.model_copy(update={"answer": answer})
