"""Every rule of docs/coco.md, in both encodings."""

from __future__ import annotations

import io
import json

import builders
import numpy as np
import pytest
from PIL import Image as PillowImage
from pycocotools import mask as coco_mask

from text2seg.coco.dataset import (
    annotations_of,
    build_dataset,
    image_entry,
    numbered,
    read_dataset,
    results_of,
    write_dataset,
)
from text2seg.coco.rle import mask_of, rle_of
from text2seg.errors import OutputError, Text2SegError
from text2seg.io.images import load_image

HW = builders.HW
NAMES = ["a.png", "写真/é.png", "sub/a.png"]


def masks() -> list[np.ndarray]:
    """Masks with a hole, of two parts, and of one pixel."""
    parts = builders.box_mask(width=4) | builders.box_mask(left=20, top=15, width=3, height=2)
    return [builders.ring_mask(), parts, builders.box_mask(left=31, top=23, width=1, height=1)]


@pytest.fixture(params=["rle", "polygon"])
def encoding(request) -> str:
    return request.param


@pytest.fixture
def dataset(encoding, tmp_path) -> dict:
    """A dataset read back from its file; the second image has only an empty mask."""
    found = [builders.segment(query, mask) for query, mask in zip(("ring", "ball", "dot"), masks(), strict=True)]
    empty = builders.segment("ball", np.zeros(HW, np.bool_))
    queries = ("ring", "ball", "dot", "unicorn")
    segmentations = [
        builders.segmentation(*found, queries=queries, file_name=NAMES[0], image_id=1),
        builders.segmentation(empty, queries=queries, file_name=NAMES[1], image_id=2),
        builders.segmentation(*found[1:], queries=queries, file_name=NAMES[2], image_id=3),
    ]
    built = build_dataset(segmentations, encoding=encoding, provenance={"at": np.float32(0.5)})
    return read_dataset(write_dataset(built, tmp_path / "found.json"))


def test_dataset_and_annotation_keys(dataset):
    assert list(dataset) == ["info", "licenses", "images", "annotations", "categories"]
    wanted = {"id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd"}
    assert all(wanted <= set(each) for each in dataset["annotations"])
    assert all({"id", "name", "supercategory"} == set(each) for each in dataset["categories"])


def test_annotation_ids_count_from_one(dataset):
    assert [each["id"] for each in dataset["annotations"]] == [1, 2, 3, 4, 5]
    assert [each["id"] for each in dataset["categories"]] == [1, 2, 3, 4]
    assert [each["image_id"] for each in dataset["annotations"]] == [1, 1, 1, 3, 3]


def test_images_without_annotations_are_kept(dataset):
    assert [each["file_name"] for each in dataset["images"]] == NAMES
    assert {(each["height"], each["width"]) for each in dataset["images"]} == {HW}
    assert 2 not in {each["image_id"] for each in dataset["annotations"]}


def test_area_bbox_and_iscrowd_match_the_mask(dataset):
    for each, mask in zip(dataset["annotations"], [*masks(), *masks()[1:]], strict=True):
        np.testing.assert_array_equal(mask_of(each, HW), mask)
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert each["bbox"] == box
        assert each["area"] == mask.sum()
        assert each["iscrowd"] == 0
        assert {type(number) for number in (each["area"], *each["bbox"])} == {int}


def test_masks_have_the_form_that_tools_read(dataset, encoding):
    for each in dataset["annotations"]:
        segmentation = each["segmentation"]
        if encoding == "rle":
            assert segmentation["size"] == list(HW)
            assert isinstance(segmentation["counts"], str)
        else:
            assert all(len(corners) >= 6 and len(corners) % 2 == 0 for corners in segmentation)
    assert len(dataset["annotations"][1]["segmentation"]) == 2  # two parts are two polygons; an RLE has two keys


def test_score_is_in_annotation_and_attributes(dataset):
    for each in dataset["annotations"]:
        assert each["score"] == each["attributes"]["score"] == 0.9
        assert each["attributes"]["provenance"] == {"at": 0.5}


def test_orientation_is_recorded_and_sizes_are_upright(dataset, tmp_path):
    assert dataset["info"]["exif_orientation"] == "applied"
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    PillowImage.fromarray(builders.pixels()).save(file, "JPEG", exif=exif)
    (tmp_path / "turned.jpg").write_bytes(file.getvalue())
    entry = image_entry(load_image(tmp_path / "turned.jpg"))
    assert (entry["height"], entry["width"]) == (HW[1], HW[0])


def test_file_names_have_posix_slashes():
    assert image_entry(builders.image(file_name="sub//a.png"))["file_name"] == "sub/a.png"


def test_ids_of_another_file_can_be_used(encoding):
    """COCO's own ids of images and categories have gaps."""
    found = builders.segmentation(builders.segment("ring"), builders.segment("ball"), image_id=397133)
    annotations = numbered(
        annotations_of(found, {"ball": 90, "ring": 7}, encoding=encoding), first=12, image_id=found.image.image_id
    )
    assert [(each["id"], each["image_id"], each["category_id"]) for each in annotations] == [
        (12, 397133, 7),
        (13, 397133, 90),
    ]
    assert list(annotations[0])[:3] == ["id", "image_id", "category_id"]


def test_annotations_of_equals_the_builder(dataset, encoding):
    segment = builders.segment("ring", builders.ring_mask())
    (alone,) = annotations_of(builders.segmentation(segment), {"ring": 1}, encoding=encoding, provenance={"at": 0.5})
    assert {"id": 1, "image_id": 1} | alone == dataset["annotations"][0]


def test_annotations_of_refuses_invalid_input(encoding):
    found = builders.segmentation(builders.segment("ball"))
    with pytest.raises(OutputError, match=r"'ball' is not one of the queries \['ring'\]"):
        annotations_of(found, {"ring": 1}, encoding=encoding)
    with pytest.raises(OutputError, match="rle or polygon"):
        annotations_of(found, {"ball": 1}, encoding="bitmap")


# --- results -------------------------------------------------------------------------------------------------------


def test_results_have_rle_and_no_bbox(dataset):
    results = results_of(dataset)
    assert json.loads(json.dumps(results)) == results
    assert [set(each) for each in results] == [{"image_id", "category_id", "segmentation", "score"}] * 5
    for result, annotation in zip(results, dataset["annotations"], strict=True):
        assert coco_mask.area(result["segmentation"]) == annotation["area"]
        assert result["category_id"] == annotation["category_id"]


def test_score_may_be_only_in_the_attributes(dataset):
    for each in dataset["annotations"]:
        del each["score"]
    assert [each["score"] for each in results_of(dataset)] == [0.9] * 5
    del dataset["annotations"][1]["attributes"]
    with pytest.raises(Text2SegError, match="annotation 2 has no score"):
        results_of(dataset)


def test_results_refuse_unlisted_images(dataset):
    del dataset["images"][0]
    with pytest.raises(Text2SegError, match="annotation 1: its image_id 1 is not among"):
        results_of(dataset)


def test_masks_are_read_in_every_form():
    mask = builders.ring_mask()
    runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
    plain = np.diff(np.concatenate([[0], edges])).tolist()
    for counts in (runs["counts"], runs["counts"].decode(), plain):
        found = rle_of({"id": 1, "segmentation": {"size": list(HW), "counts": counts}}, HW)
        assert found == {"size": list(HW), "counts": runs["counts"].decode()}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "it has no mask"),
        ([], "its list of polygons is empty"),
        ([[0, 0, 1, 1]], "at least 6"),
        ({"size": [32, 24], "counts": ""}, r"of size \[32, 24\], the image is \[24, 32\]"),
        ({"size": [24, 32], "counts": [1, 2]}, "add up to 3"),
        ({"size": [24, 32]}, "counts"),
        ({"size": [24, 32], "counts": "0"}, "add up to 0"),
    ],
)
def test_invalid_masks_are_refused(segmentation, message):
    with pytest.raises(Text2SegError, match=f"annotation 7: its mask cannot be read: .*{message}"):
        mask_of({"id": 7, "segmentation": segmentation}, HW)
