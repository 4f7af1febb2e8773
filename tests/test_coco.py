"""COCO files: both mask encodings are lossless, and pycocotools reads and scores the files."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path, PurePath

import builders
import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from text2seg.coco import polygon, rle
from text2seg.coco.dataset import DatasetBuilder, build_dataset, read_dataset, write_dataset
from text2seg.errors import OutputError, Text2SegError

MASKS = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))
VIEWS = {
    "as it is": lambda mask: mask,
    "a part of a larger one": lambda mask: np.pad(mask, 3)[3:-3, 3:-3],
    "upside down": lambda mask: mask[::-1],
    "every second column": lambda mask: np.repeat(mask, 2, axis=1)[:, ::2],
    "down the columns": np.asfortranarray,
}
KEYS = {"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd", "score", "attributes"}


def blob(seed: int, hw: tuple[int, int] = (61, 83), share: float = 0.5) -> np.ndarray:
    """Random smooth regions, some with holes, some with islands in holes."""
    noise = np.random.default_rng(seed).random(hw, np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1 + seed % 4)
    return smooth > np.quantile(smooth, 1 - share)


def shoelace(corners: list[int]) -> float:
    x, y = np.array(corners).reshape(-1, 2).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A dataclass, as settings are."""

    threshold: float = 0.8


def ring_and_ball() -> list:
    ring = builders.segment("ring", builders.ring_mask())
    ball = builders.segment("ball", builders.box_mask(), sam_score=0.75)
    return [
        builders.segmentation(ring, ball, queries=("ring", "ball", "unicorn"), file_name="a.png", image_id=1),
        builders.segmentation(queries=("ring", "ball", "unicorn"), file_name="b.png", image_id=2),
        builders.segmentation(ball, queries=("ring", "ball", "unicorn"), file_name="c.png", image_id=3),
    ]


# --- masks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@given(st.integers(0, 70), st.integers(0, 70), st.floats(0, 1), st.integers(0, 9))
def test_rle_equals_pycocotools(view, height, width, share, seed):
    mask = view(np.random.default_rng(seed).random((height, width)) < share)
    mask.flags.writeable = False
    encoded = rle.encode(mask)
    assert encoded["counts"].encode() == coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    decoded = rle.decode(encoded)
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.dtype == np.bool_
    assert decoded.flags.c_contiguous
    assert decoded.flags.writeable


@given(MASKS)
def test_rle_is_lossless(mask):
    encoded = rle.encode(mask)
    assert encoded["size"] == list(mask.shape)
    assert isinstance(encoded["counts"], str)
    assert rle.area(encoded) == mask.sum()
    decoded = rle.decode(json.loads(json.dumps(encoded)))
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, mask)


def test_rle_encodes_views_and_decodes_plain_runs_and_bytes():
    mask = builders.ring_mask()
    np.testing.assert_array_equal(rle.decode(rle.encode(mask.T)), mask.T)
    as_bytes = {"size": [24, 32], "counts": rle.encode(mask)["counts"].encode()}
    np.testing.assert_array_equal(rle.decode(as_bytes), mask)
    runs = {"size": [2, 3], "counts": [1, 2, 3]}  # down the columns
    assert rle.decode(runs).tolist() == [[False, True, False], [True, False, False]]
    with pytest.raises(ValueError, match="add up to 5"):
        rle.decode({"size": [2, 3], "counts": [1, 4]})


@pytest.mark.parametrize("encode", [rle.encode, polygon.encode])
@pytest.mark.parametrize("mask", [np.zeros((4, 5), np.uint8), np.zeros((1, 4, 5), np.bool_)])
def test_arrays_that_are_not_masks_are_refused(encode, mask):
    with pytest.raises(ValueError, match=r"bool\[H, W\]"):
        encode(mask)


@settings(max_examples=300)
@given(MASKS)
def test_polygons_are_lossless(mask):
    polygons = polygon.encode(mask)
    np.testing.assert_array_equal(polygon.decode(polygons, mask.shape), mask)
    assert sum(shoelace(corners) for corners in polygons) == mask.sum()
    assert all(len(corners) >= 8 and len(corners) % 2 == 0 for corners in polygons)
    assert all(type(number) is int for corners in polygons for number in corners)


@settings(max_examples=300)
@given(MASKS)
def test_no_polygon_touches_itself(mask):
    polygons = [shapely.Polygon(np.reshape(corners, (-1, 2))) for corners in polygon.encode(mask)]
    assert [shapely.is_valid_reason(each) for each in polygons] == ["Valid Geometry"] * len(polygons)
    assert shapely.union_all(polygons).area == mask.sum()


POCKET = ["####", "#..#", "#.#.", "####"]  # open to the outside at a corner only
CHAIN = ["#####", "#.###", "##.##", "###.#", "####."]  # one pocket opens into the next


@pytest.mark.parametrize("rows", [POCKET, CHAIN])
def test_region_with_pocket_is_cut(rows):
    mask = np.array([[pixel == "#" for pixel in row] for row in rows])
    polygons = polygon.encode(mask)
    assert len(polygons) > 1
    assert all(shapely.Polygon(np.reshape(corners, (-1, 2))).is_valid for corners in polygons)
    np.testing.assert_array_equal(polygon.decode(polygons, mask.shape), mask)


@given(st.integers(0, 10_000), st.floats(0.1, 0.95))
@settings(max_examples=60, deadline=None)
def test_polygons_of_blobs_with_holes_are_lossless(seed, share):
    mask = blob(seed, share=share)
    np.testing.assert_array_equal(polygon.decode(polygon.encode(mask), mask.shape), mask)


def test_box_is_one_polygon_along_pixel_edges():
    assert polygon.encode(builders.box_mask(left=10, top=4, width=12, height=6)) == [[10, 4, 22, 4, 22, 10, 10, 10]]


def test_pixels_touching_at_a_corner_are_separate_polygons():
    assert len(polygon.encode(np.eye(3, dtype=np.bool_))) == 3


def test_hole_splits_only_its_own_region():
    mask = np.zeros((24, 48), np.bool_)
    mask[:, :32] = builders.ring_mask()
    mask[2:4, 40:44] = True
    polygons = polygon.encode(mask)
    assert len(polygons) == 3
    assert [40, 2, 44, 2, 44, 4, 40, 4] in polygons


def test_empty_mask_has_no_polygons():
    assert polygon.encode(np.zeros((4, 5), np.bool_)) == []
    assert not polygon.decode([], (4, 5)).any()


@pytest.mark.parametrize("corners", [[0, 0, 1, 1], [0, 0, 1, 0, 1, 1, 2]])
def test_invalid_polygons_are_refused(corners):
    with pytest.raises(ValueError, match="even count of at least 6"):
        polygon.decode([corners], (4, 5))


# --- datasets ------------------------------------------------------------------------------------------------------


def test_dataset_has_all_keys_with_plain_values():
    dataset = build_dataset(ring_and_ball())
    assert list(dataset) == ["info", "licenses", "images", "annotations", "categories"]
    assert dataset["info"]["exif_orientation"] == "applied"
    assert dataset["images"] == [
        {"id": number, "file_name": name, "width": 32, "height": 24}
        for number, name in ((1, "a.png"), (2, "b.png"), (3, "c.png"))
    ]
    assert [(each["id"], each["name"], each["supercategory"]) for each in dataset["categories"]] == [
        (1, "ring", "thing"),
        (2, "ball", "thing"),
        (3, "unicorn", "thing"),
    ]
    annotations = dataset["annotations"]
    assert [(each["id"], each["image_id"], each["category_id"]) for each in annotations] == [
        (1, 1, 1),
        (2, 1, 2),
        (3, 3, 2),
    ]
    for annotation in annotations:
        assert set(annotation) == KEYS
        assert annotation["iscrowd"] == 0
        assert type(annotation["area"]) is int
    assert annotations[1]["bbox"] == [10, 4, 12, 6]
    assert annotations[1]["area"] == 72
    assert json.loads(json.dumps(dataset)) == dataset


def test_attributes_record_what_replay_needs():
    provenance = {
        "sam": {"name": "vit_b", "sha256": "ab12"},
        "version": "1.0",
        "points": Stage(),
        "at": np.int64(3),
        "folder": PurePath("a", "b"),
    }
    dataset = build_dataset([builders.segmentation(builders.segment())], provenance=provenance)
    annotation = dataset["annotations"][0]
    attributes = annotation["attributes"]
    assert annotation["score"] == attributes["score"] == attributes["sam_score"] == 0.9
    assert attributes["query"] == "ball"
    assert attributes["points"] == [[15.5, 6.5, 1, 0.9], [2.0, 20.0, 0, 0.1]]
    assert (attributes["map_score"], attributes["presence"]) == (0.5, 0.25)
    assert attributes["chosen_candidate"] == 2
    assert attributes["candidate_scores"] == [0.5, 0.7, 0.9]
    assert attributes["provenance"] == {
        "sam": {"name": "vit_b", "sha256": "ab12"},
        "version": "1.0",
        "points": {"threshold": 0.8},
        "at": 3,
        "folder": "a/b",
    }


@given(st.floats(-1e6, 1e6, width=32))
def test_recorded_points_are_the_same_float32(x):
    segment = builders.segment()
    moved = builders.points((x, 3.0, 1, 0.3))
    segment = type(segment)(segment.query, segment.mask, 0.9, 0.5, 0.25, moved, segment.candidates, 0)
    dataset = json.loads(json.dumps(build_dataset([builders.segmentation(segment)])))
    assert np.float32(dataset["annotations"][0]["attributes"]["points"][0][0]) == np.float32(x)


def test_empty_masks_are_dropped_and_ids_have_no_gaps():
    nothing = builders.segment("nothing", np.zeros(builders.HW, np.bool_))
    dataset = build_dataset([builders.segmentation(nothing, builders.segment("ball"))])
    assert [each["id"] for each in dataset["annotations"]] == [1]
    assert [each["name"] for each in dataset["categories"]] == ["nothing", "ball"]


def test_queries_define_the_categories():
    dataset = build_dataset(ring_and_ball(), queries=("unicorn", "ball", "ring", "cup"), supercategory="toy")
    assert [each["name"] for each in dataset["categories"]] == ["unicorn", "ball", "ring", "cup"]
    assert [each["category_id"] for each in dataset["annotations"]] == [3, 2, 2]
    assert {each["supercategory"] for each in dataset["categories"]} == {"toy"}
    with pytest.raises(OutputError, match="'ring' is not one of the queries"):
        build_dataset(ring_and_ball(), queries=("ball",))


def test_invalid_segmentations_are_refused():
    ball = builders.segment()
    with pytest.raises(OutputError, match="two images have the id 1"):
        build_dataset([builders.segmentation(ball), builders.segmentation(ball, file_name="two.png")])
    with pytest.raises(OutputError, match=r"file name 'one\.png'"):
        build_dataset([builders.segmentation(ball), builders.segmentation(ball, image_id=2)])
    with pytest.raises(OutputError, match="no file name"):
        build_dataset([builders.segmentation(ball, file_name="")])
    with pytest.raises(OutputError, match=r"the mask of 'ball' is \[24, 32\], the image \[32, 24\]"):
        build_dataset([builders.segmentation(ball, hw=(32, 24))])
    with pytest.raises(OutputError, match="provenance cannot be written"):
        build_dataset([], provenance={"model": object()})
    with pytest.raises(OutputError, match="rle or polygon"):
        build_dataset([], encoding="bitmap")


def test_dataset_without_images():
    dataset = build_dataset([])
    assert dataset["images"] == dataset["annotations"] == dataset["categories"] == []


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_pycocotools_scores_the_file_against_itself_as_perfect(tmp_path, capsys, encoding):
    path = write_dataset(build_dataset(ring_and_ball(), encoding=encoding), tmp_path / "found.json")
    truth = COCO(str(path))
    assert (truth.annToMask(truth.anns[1]).astype(bool) == builders.ring_mask()).all()
    results = [  # loadRes itself takes nothing but RLE
        {key: annotation[key] for key in ("image_id", "category_id", "score")}
        | {"segmentation": truth.annToRLE(annotation)}
        for annotation in read_dataset(path)["annotations"]
    ]
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0
    capsys.readouterr()


# --- files ---------------------------------------------------------------------------------------------------------


def test_the_same_dataset_gives_the_same_bytes(tmp_path):
    first = write_dataset(build_dataset(ring_and_ball()), tmp_path / "a.json").read_bytes()
    assert write_dataset(build_dataset(iter(ring_and_ball())), tmp_path / "b.json").read_bytes() == first


def test_unicode_is_written_unescaped_and_reads_back(tmp_path):
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")  # a file name that is not UTF-8
    found = [
        builders.segmentation(builders.segment("кот 猫"), file_name="写真/é.png"),
        builders.segmentation(file_name=odd, image_id=2),
    ]
    dataset = build_dataset(found)
    path = write_dataset(dataset, tmp_path / "ü.json")
    assert "кот 猫".encode() in path.read_bytes()
    assert read_dataset(path) == dataset
    assert COCO(str(path)).imgs[2]["file_name"] == odd


def test_writing_creates_the_folder_replaces_the_file_and_leaves_no_temporary_files(tmp_path):
    path = tmp_path / "new" / "found.json"
    write_dataset({"images": []}, path)
    write_dataset(build_dataset(ring_and_ball()), str(path))
    assert os.listdir(path.parent) == ["found.json"]
    assert len(read_dataset(path)["images"]) == 3


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_dataset(build_dataset([]), tmp_path / "found.json")
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=r"found\.json cannot be written: No space left"):
        write_dataset(build_dataset(ring_and_ball()), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["found.json"]


def test_unwritable_path_raises_output_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        write_dataset({}, tmp_path / "file" / "found.json")
    with pytest.raises(OutputError, match="is not a file"):
        write_dataset({}, tmp_path)
    with pytest.raises(OutputError, match="not JSON"):
        write_dataset({"score": float("nan")}, tmp_path / "found.json")

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="no permission to write"):
        write_dataset({}, tmp_path / "found.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON file"),
        (b"{", "not a JSON file: it ends too early, in line 1"),
        (b'{"a":\n "b" 3}', "not a JSON file: the first error is in line 2, column 6"),
        (b"\xff\xfe{}", "not a JSON file"),
        (b"[" * 100_000, "not a JSON file"),
        (b"[]", "not a list"),
        (b"{}", "no list of images"),
        (b'{"images": [], "annotations": {}}', "no list of annotations"),
    ],
)
def test_files_that_are_not_datasets_are_refused(tmp_path, content, message):
    path = tmp_path / "found.json"
    path.write_bytes(content)
    with pytest.raises(Text2SegError, match=f"found.json.*{message}"):
        read_dataset(path)


def test_reading_a_missing_file(tmp_path):
    with pytest.raises(Text2SegError, match="no such file"):
        read_dataset(tmp_path / "found.json")
    with pytest.raises(Text2SegError, match="cannot be read"):
        read_dataset(tmp_path)


def test_failed_add_leaves_the_builder_unchanged():
    builder = DatasetBuilder()
    good, *_ = ring_and_ball()
    builder.add(good)
    before = builder.build()
    ball = builders.segment()
    bad = builders.segmentation(ball, builders.segment(mask=ball.mask.T), file_name="two.png", image_id=2)
    with pytest.raises(OutputError, match="the mask of 'ball'"):
        builder.add(bad)
    assert builder.build() == before == build_dataset([good])
