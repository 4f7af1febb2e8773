from __future__ import annotations

import copy
import io
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import assert_same_masks
from PIL import Image

from tests import builders
from text2seg import weights
from text2seg.cli import main
from text2seg.coco.dataset import build_dataset, write_dataset
from text2seg.config import MapSettings, PointSettings, Settings, settings_from_dict
from text2seg.errors import CheckpointError, ImageError, SettingsError, Text2SegError
from text2seg.io.images import load_image
from text2seg.ontology import ontology_of_queries
from text2seg.queries import parse_query
from text2seg.render.panels import compared
from text2seg.review.replay import replay

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "held-out"
NAME = "images/scene_0008.jpg"
OPENCLIP = "openclip:ViT-B-16/laion2b_s34b_b88k"
QUERIES = ["koala", "alarm clock -sun"]


def demo_clip():
    return weights.fetch("demo", "clip")


def made(demo, encoding="rle", queries=QUERIES):
    """The dataset of a labelling job with one scene, read back from JSON."""
    result = demo.segment(load_image(SCENES / NAME, file_name=NAME), [parse_query(query) for query in queries])
    dataset = build_dataset([result], encoding=encoding, info={"provenance": demo.provenance()})
    dataset["info"]["ontology"] = ontology_of_queries(queries).to_dict()
    return json.loads(json.dumps(dataset))


@pytest.fixture(scope="module")
def dataset(demo):
    return made(demo)


@pytest.fixture
def tampered(dataset):
    return copy.deepcopy(dataset)


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_replay_of_one_query_is_identical(demo, encoding):
    """It is alone in its batch both times, in the same process with the same number of threads."""
    content = made(demo, encoding, ["koala"])
    (annotation,) = content["annotations"]
    again = replay(content, annotation["id"], images=SCENES, models=demo)
    assert again.identical
    assert (again.differing_pixels, again.iou, again.points_distance) == (0, 1.0, 0.0)
    assert again.recorded.sum() == pytest.approx(annotation["area"], rel=0 if encoding == "rle" else 0.02)


def assert_as_recorded(again):
    """SAM decoded the points in a batch with those of other queries, and now alone."""
    assert again.points_identical
    assert again.rebuilt_chosen == again.recorded_chosen
    assert_same_masks(again.rebuilt, again.recorded)


def test_replay_of_queries_found_together_is_identical(demo, dataset):
    assert len(dataset["annotations"]) >= 2
    for annotation in dataset["annotations"]:
        assert_as_recorded(replay(dataset, annotation["id"], images=SCENES, models=demo))


def test_wordings_come_from_the_recorded_ontology(demo, dataset):
    """Another wording of the category gives another map and other points."""
    clock = next(each["id"] for each in dataset["annotations"] if each["attributes"]["query"] == "alarm clock")
    assert replay(dataset, clock, images=SCENES, models=demo).points_identical
    plain = copy.deepcopy(dataset)
    plain["info"]["ontology"]["categories"][1]["queries"] = ["koala"]
    assert not replay(plain, clock, images=SCENES, models=demo).points_identical
    del plain["info"]["ontology"]
    assert_as_recorded(replay(plain, 1, images=SCENES, models=demo))


def test_label_set_includes_the_other_categories(demo):
    settings = Settings(MapSettings(redundancy="label-set"))
    result = demo.segment(load_image(SCENES / NAME, file_name=NAME), ["koala", "dog", "sun"], settings)
    content = json.loads(json.dumps(build_dataset([result], provenance=demo.provenance(settings))))
    assert_as_recorded(replay(content, 1, images=SCENES, models=demo))
    content["categories"][1]["name"] = "maple leaf"
    other = replay(content, 1, images=SCENES, models=demo)
    assert_same_masks(other.rebuilt, other.recorded)


def test_changed_mask_is_detected(demo, tampered):
    first = tampered["annotations"][0]
    mask = np.zeros((first["segmentation"]["size"]), bool)
    whole = replay(tampered, 1, images=SCENES, models=demo)
    mask[:] = whole.recorded
    rows, columns = np.nonzero(mask)
    mask[rows[:7], columns[:7]] = False
    first["segmentation"] = build_dataset([builders.segmentation(builders.segment(mask=mask), hw=mask.shape)])[
        "annotations"
    ][0]["segmentation"]
    again = replay(tampered, 1, images=SCENES, models=demo)
    assert again.points_identical
    assert not again.mask_identical
    assert again.differing_pixels == 7 + whole.differing_pixels
    assert again.iou == pytest.approx(1 - 7 / whole.recorded.sum(), abs=1e-3)


def test_changed_point_is_detected_with_its_distance(demo, tampered):
    point = tampered["annotations"][0]["attributes"]["points"][0]
    point[0] = float(np.nextafter(np.float32(point[0]), np.float32(1e6)))  # the very next float32
    again = replay(tampered, 1, images=SCENES, models=demo)
    assert not again.points_identical
    assert 0 < again.points_distance < 1e-3
    del tampered["annotations"][0]["attributes"]["points"][0]
    assert not replay(tampered, 1, images=SCENES, models=demo).points_identical
    tampered["annotations"][0]["attributes"]["points"] = [[5, 5, 1, 0.9]]
    assert replay(tampered, 1, images=SCENES, models=demo).points_distance == np.inf


def test_changed_candidate_is_detected(demo, tampered):
    known = tampered["annotations"][0]["attributes"]
    known["chosen_candidate"] = (known["chosen_candidate"] + 1) % 3
    again = replay(tampered, 1, images=SCENES, models=demo)
    assert again.points_identical
    assert again.rebuilt_chosen != again.recorded_chosen == known["chosen_candidate"]
    assert not again.identical
    assert not again.mask_identical


def test_points_round_trip_through_json(dataset, demo):
    again = replay(dataset, 1, images=SCENES, models=demo)
    result = demo.segment(SCENES / NAME, ["koala"])
    assert again.recorded_points.xy.tobytes() in [segment.points.xy.tobytes() for segment in result.segments]


@pytest.mark.parametrize("kind", ["clip", "sam"])
def test_other_weights_are_refused_before_loading(demo, tampered, kind):
    tampered["info"]["provenance"][kind]["sha256"] = "ab" * 32
    for models in (demo, None):
        with pytest.raises(CheckpointError, match=f"{kind.upper()} 'demo' here is not the one.*recorded is abab"):
            replay(tampered, 1, images=SCENES, models=models)


def test_published_checkpoint_with_another_hash_is_refused_without_download(tampered):
    tampered["info"]["provenance"]["sam"] = {"name": "vit_h", "sha256": "ab" * 32}
    with pytest.raises(CheckpointError, match="--sam FILE"):
        replay(tampered, 1, images=SCENES)


def opened_files(monkeypatch):
    """Paths of all files that Python opens after this call."""
    seen = []
    own = io.open

    def watched(file, *args, **kwargs):
        seen.append(str(file))
        return own(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", watched)
    monkeypatch.setattr("builtins.open", watched)
    return seen


@pytest.mark.parametrize("kind", ["clip", "sam"])
@pytest.mark.parametrize(
    "name",
    ["{file}", "./{base}", "~/x.pt", "openclip:ViT-B-16={file}", "openclip:{folder}", "openclip:a/b", "x" * 5000],
)
def test_path_in_a_dataset_is_not_opened(tampered, tmp_path, monkeypatch, kind, name):
    """Even with the right hash of the file, the file must not be opened: the dataset may be anyone's."""
    file = tmp_path / "secret" / "weights.pt"
    file.parent.mkdir()
    file.write_bytes(b"anything")
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name = name.format(file=file, base="secret/weights.pt", folder=file.parent)
    tampered["info"]["provenance"][kind] = {"name": name, "sha256": weights.sha256_of(file)}
    seen = opened_files(monkeypatch)
    with pytest.raises(CheckpointError, match=rf"A path in a dataset is not opened; .*--{kind} ") as refusal:
        replay(tampered, 1, images=SCENES)
    assert len(str(refusal.value)) < 600
    assert not [path for path in seen if "secret" in path]


@pytest.mark.parametrize(
    "mark", [[], {"name": 1, "sha256": "ab" * 32}, {"name": "demo", "sha256": ["ab"]}, {"name": "demo", "sha256": "ab"}]
)
def test_damaged_checkpoint_record_is_refused(tampered, mark):
    tampered["info"]["provenance"]["sam"] = mark
    with pytest.raises(Text2SegError, match="does not record which SAM made it"):
        replay(tampered, 1, images=SCENES)


def test_weights_are_found_by_hash(tampered, tmp_path, monkeypatch):
    """Bundled weights and those in the folder of checkpoints are found under any recorded name."""
    demo = weights.fetch("demo", "sam")
    tampered["info"]["provenance"]["sam"]["name"] = "/elsewhere/mine.pth"
    assert replay(tampered, 1, images=SCENES).identical
    mark = "ab" * 32
    assert weights.recorded("mine.pth", "sam", mark) is None
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path))
    (tmp_path / "renamed.pth").write_bytes(demo.read_bytes() + b"!")
    (tmp_path / "notes.txt").write_text("no weights")
    own = weights.sha256_of(tmp_path / "renamed.pth")
    assert weights.recorded("/elsewhere/mine.pth", "sam", own) == str(tmp_path / "renamed.pth")
    assert weights.recorded("/elsewhere/mine.pth", "sam", mark) is None
    assert weights.recorded("facebook/sam2.1-hiera-tiny", "sam", mark) == "sam2.1_hiera_tiny"


def test_hash_of_a_given_file_is_checked(tampered, tmp_path):
    own, other = tmp_path / "mine.pth", tmp_path / "other.pth"
    own.write_bytes(weights.fetch("demo", "sam").read_bytes())
    other.write_bytes(own.read_bytes() + b"!")
    tampered["info"]["provenance"]["sam"]["name"] = "/elsewhere/mine.pth"
    assert replay(tampered, 1, images=SCENES, sam=str(own)).identical
    with pytest.raises(CheckpointError, match=f"its sha256 is {weights.sha256_of(other)}, recorded is dc56baa7"):
        replay(tampered, 1, images=SCENES, sam=str(other))


def test_other_precision_is_refused(demo, tampered):
    tampered["info"]["provenance"]["precision"] = "bf16"
    with pytest.raises(SettingsError, match="made in bf16, the models run in fp32"):
        replay(tampered, 1, images=SCENES, models=demo)


def test_compiled_and_uncompiled_sam_are_not_mixed(demo, tampered, monkeypatch):
    tampered["info"]["provenance"]["compiled"] = True
    with pytest.raises(SettingsError, match="made by a compiled SAM, this one is uncompiled"):
        replay(tampered, 1, images=SCENES, models=demo)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)  # really compiling takes minutes
    with pytest.raises(SettingsError, match="made by a compiled SAM; add --compile"):
        replay(tampered, 1, images=SCENES, device="cpu")
    assert_as_recorded(replay(tampered, 1, images=SCENES, device="cpu", compile=True))


@pytest.mark.parametrize(
    ("field", "value"), [("compiled", "yes"), ("compiled", 1), ("compiled", None), ("runtime", "os.system"),
                         ("runtime", ["onnx"]), ("precision", {"fp32": 1})]
)  # fmt: skip
def test_recorded_values_of_wrong_types_are_refused(tampered, field, value):
    tampered["info"]["provenance"][field] = value
    with pytest.raises(SettingsError, match=f"record.* {field}"):
        replay(tampered, 1, images=SCENES)


@pytest.mark.parametrize(("kind", "name"), [("sam", "vit_h"), ("clip", "ViT-B/16"), ("clip", OPENCLIP)])
def test_dataset_does_not_start_a_download(tampered, tmp_path, monkeypatch, kind, name):
    """Only weights that the user names are downloaded; the message says how."""
    if name == OPENCLIP:
        pytest.importorskip("open_clip")
    monkeypatch.setenv("TEXT2SEG_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("text2seg.review.replay.fetch", lambda *_: pytest.fail("fetched"))
    published = weights.find(name, kind).sha256 or ""
    tampered["info"]["provenance"][kind] = {"name": name, "sha256": published + "a" * (64 - len(published))}
    if kind == "sam":
        tampered["info"]["provenance"]["clip"] = {"name": "demo", "sha256": weights.sha256_of(demo_clip())}
        monkeypatch.setattr("text2seg.review.replay.fetch", weights.fetch)
    with pytest.raises(CheckpointError, match=f"not on this machine.*--{kind} {name}.*checkpoints download {name}"):
        replay(tampered, 1, images=SCENES)


def test_error_names_what_is_missing(demo, tampered, tmp_path):
    with pytest.raises(Text2SegError, match=r"no annotation 99 in the dataset; its ids are 1 to \d"):
        replay(tampered, 99, images=SCENES, models=demo)
    with pytest.raises(ImageError, match=f"{re.escape(str(tmp_path))}; name the folder of the images with --images"):
        replay(tampered, 1, images=tmp_path, models=demo)
    (tmp_path / "images").mkdir()
    Image.fromarray(builders.pixels()).save(tmp_path / NAME)
    with pytest.raises(ImageError, match=r"32 x 24 pixels, in the dataset .* not the same image"):
        replay(tampered, 1, images=tmp_path, models=demo)
    del tampered["annotations"][0]["attributes"]["points"]
    with pytest.raises(Text2SegError, match="annotation 1 records no points"):
        replay(tampered, 1, images=SCENES, models=demo)
    del tampered["info"]["provenance"]
    with pytest.raises(Text2SegError, match="annotation 2 does not record how"):
        replay(tampered, 2, images=SCENES, models=demo)


def test_settings_round_trip_through_json():
    settings = Settings(MapSettings(input_size=(192, 320), templates=("a {}.",)), PointSettings("reference", 0.7))
    assert settings_from_dict(json.loads(json.dumps(asdict(settings)))) == settings
    assert settings_from_dict({"points": {"method": "text2points"}}) == Settings()  # its name before 0.5
    for wrong in ({"maps": {"colour": 1}}, {"stage": {}}, {"points": {"threshold": "high"}}, {"points": 3}):
        with pytest.raises(SettingsError):
            settings_from_dict(wrong)


def test_comparison_image_shows_both_masks_and_differences():
    one, other = builders.box_mask(), builders.box_mask(left=11)
    pixels = compared(builders.image(), "ball", (one, builders.points()), (other, None))
    assert pixels.shape[1] > 3 * 520
    for colour, column in (((230, 80, 30), 10), ((40, 110, 240), 22)):
        found = np.argwhere((pixels == colour).all(2))
        scale = 520 / 32
        left = (found[:, 1].min() - 12 - 2 * 532) / scale
        assert (left, len(found) / scale**2) == (pytest.approx(column, abs=0.1), pytest.approx(6, rel=0.1))
    with pytest.raises(ValueError, match="the image size"):
        compared(builders.image(), "ball", (one.T, None), (other, None))


def test_replay_command_exit_status(demo, tmp_path, capsys):
    dataset = made(demo, queries=["koala"])
    file, image = write_dataset(dataset, tmp_path / "d.json"), tmp_path / "both.png"
    command = ["replay", str(file), "--images", str(SCENES)]
    assert main([*command, "--annotation", "1", "--image", str(image)]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    assert "points: identical" in printed
    assert "mask: identical" in printed
    assert Image.open(image).width > 1000
    changed = copy.deepcopy(dataset)
    changed["annotations"][0]["attributes"]["points"][0][0] += 40
    write_dataset(changed, file)
    assert main([*command, "--annotation", "1"]) == 1
    assert "pixels apart" in capsys.readouterr().out
    assert main([*command, "--annotation", "77"]) == 1
    assert "ids are 1 to" in capsys.readouterr().err
