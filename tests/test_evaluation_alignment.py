"""Reading of ground truth and predictions, refused files, and the alignment of two files."""

from __future__ import annotations

import copy
import json

import builders
import evaluation_builders as build
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from text2seg.coco import rle
from text2seg.coco.dataset import results_of
from text2seg.coco.rle import checked_rle, run_lengths
from text2seg.coco.truth import iou_outside
from text2seg.errors import DatasetError
from text2seg.evaluation import align, as_json, evaluate, read_predictions, score_pairs
from text2seg.evaluation.evaluate import render_page


def pair() -> tuple[dict, dict]:
    return (
        build.dataset([build.annotation("dog", build.LEFT)], [build.annotation("cat", build.RIGHT)]),
        build.dataset(
            [build.annotation("dog", build.LEFT, score=0.9)], [build.annotation("cat", build.LEFT, score=0.4)]
        ),
    )


@settings(max_examples=60)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_run_lengths_decode_what_rle_encodes(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    flat = mask.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    assert run_lengths(rle.encode(mask)["counts"]).tolist() == runs
    assert (rle.decode(checked_rle(rle.encode(mask), (height, width))) == mask).all()
    assert (rle.decode(checked_rle({"size": [height, width], "counts": runs}, (height, width))) == mask).all()


def test_run_lengths_of_a_large_image():
    mask = np.zeros((2000, 3000), np.bool_)
    mask[1900, 2900] = True
    assert run_lengths(rle.encode(mask)["counts"]).sum() == mask.size


@given(st.integers(0, 2**32 - 1))
def test_iou_outside_equals_a_count_of_pixels(seed):
    random = np.random.default_rng(seed)
    predicted, truth, ignored = random.random((3, *builders.HW)) < 0.4
    kept = predicted & ~(ignored & ~truth)
    wanted = (kept & truth).sum() / (kept | truth).sum()
    assert iou_outside(rle.encode(predicted), rle.encode(truth), rle.encode(ignored)) == pytest.approx(wanted)
    wanted = (predicted & truth).sum() / (predicted | truth).sum()
    assert iou_outside(rle.encode(predicted), rle.encode(truth), None) == pytest.approx(wanted)


BROKEN = {
    "half a corner": ([[1, 1, 5, 1, 5, 5, 3]], "even count of at least 6"),
    "two corners": ([[1, 1, 5, 5]], "even count of at least 6"),
    "no polygons": ([], "no mask"),
    "nothing": (None, "no mask"),
    "no numbers": ([[1, 1, 5, 1, 5, float("nan")]], "not a finite number"),
    "flat": ([1, 1, 5, 1, 5, 5], "should be a list"),
    "another size": ({"size": [32, 24], "counts": rle.encode(build.LEFT.T)["counts"]}, r"size \[32, 24\]"),
    "short runs": ({"size": [24, 32], "counts": [5, 5]}, "add up to 10"),
    "short text": ({"size": [24, 32], "counts": rle.encode(builders.box_mask((9, 9)))["counts"]}, "add up to 81"),
    "cut text": ({"size": [24, 32], "counts": "o"}, "cut short"),
    "no RLE": ({"size": [24, 32], "counts": "~~~"}, "characters"),
    "no counts": ({"size": [24, 32]}, "no counts"),
}


@pytest.mark.parametrize(("segmentation", "message"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("which", [0, 1], ids=["truth", "predictions"])
def test_a_damaged_mask_is_named(segmentation, message, which):
    data = pair()
    data[which]["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(DatasetError, match=f"annotation 2: .*{message}"):
        align(*data)


def change(where: int, key: str, place: int, **values) -> tuple[dict, dict]:
    data = pair()
    data[where][key][place] |= values
    return data


MISFITS = {
    "unknown image": (change(1, "annotations", 0, image_id=99), "annotation 1: its image_id 99"),
    "unknown category": (change(1, "annotations", 0, category_id=99), "annotation 1: its category_id 99"),
    "unknown image in truth": (change(0, "annotations", 0, image_id=99), "ground truth: annotation 1: its image_id 99"),
    "unknown category in truth": (change(0, "annotations", 0, category_id=9), "its category_id 9"),
    "another size": (change(1, "images", 0, height=12), "height is 12 in the predictions and 24"),
    "another image": (change(1, "images", 0, file_name="x/7.png"), "match by file name"),
    "another category": (change(1, "categories", 0, name="cow"), "'cow' in the predictions and 'dog'"),
    "no size": (change(0, "images", 0, height=None), "image 5 needs a height"),
    "double image": (change(0, "images", 0, id=10), "two of the images have the id 10"),
    "double category": (change(0, "categories", 0, id=17), "two of the categories have the id 17"),
    "no score": (change(1, "annotations", 0, score="high"), "score 'high' is not a finite number"),
    "presence": (change(1, "images", 0, attributes={"presence": {"dog": "yes"}}), "presence of 'dog'"),
}


@pytest.mark.parametrize(("data", "message"), MISFITS.values(), ids=MISFITS)
def test_files_that_do_not_fit_are_refused(data, message):
    with pytest.raises(DatasetError, match=message):
        align(*data)


def test_an_empty_truth_is_refused():
    with pytest.raises(DatasetError, match="no annotations"):
        align(build.dataset([]), build.dataset([]))


@pytest.mark.parametrize("protocol", ["all", "instances", "semantic", "category-given", "multilabel"])
def test_evaluate_does_not_change_its_inputs(protocol):
    data = build.random_pair(3)
    before = copy.deepcopy(data)
    evaluate(*data, protocol=protocol)
    assert data == before


def renumbered(predicted: dict) -> dict:
    """The same predictions with other ids and longer file names."""
    data = copy.deepcopy(predicted)
    for entry in data["images"]:
        entry |= {"id": entry["id"] + 1000, "file_name": f"photos/new/{entry['file_name']}"}
    ids = {entry["id"]: number for number, entry in enumerate(data["categories"], start=1)}
    data["categories"] = [entry | {"id": ids[entry["id"]]} for entry in data["categories"]]
    for each in data["annotations"]:
        each |= {"image_id": each["image_id"] + 1000, "category_id": ids[each["category_id"]]}
    return data


def test_matching_by_file_name_ignores_ids():
    truth, predicted = build.random_pair(1)
    wanted = evaluate(truth, predicted)
    ours = evaluate(truth, renumbered(predicted), match="file-name")
    assert (ours.instances, ours.category_given, ours.misses) == (
        wanted.instances,
        wanted.category_given,
        wanted.misses,
    )
    with pytest.raises(DatasetError, match="--match file-name"):
        evaluate(truth, renumbered(predicted))


def test_an_ambiguous_file_name_is_refused():
    truth, predicted = pair()
    truth["images"][0]["file_name"], truth["images"][1]["file_name"] = "a/x.png", "b/x.png"
    predicted["images"][0]["file_name"] = "x.png"
    predicted["images"][1]["file_name"] = "b/x.png"
    with pytest.raises(DatasetError, match="could be any"):
        align(truth, predicted, match="file-name")
    predicted["images"][0]["file_name"] = "c/b/x.png"
    with pytest.raises(DatasetError, match="two images of the predictions"):
        align(truth, predicted, match="file-name")
    predicted["images"][0]["file_name"] = "c/x.png"
    with pytest.raises(DatasetError, match=r"its image_id 5 is not among .* Leave these images out of .*: c/x\.png"):
        align(truth, predicted, match="file-name")


@pytest.mark.parametrize("match", ["id", "file-name"])
def test_datasets_without_a_common_image_name_one_of_each(match):
    truth, predicted = pair()
    for entry in predicted["images"]:
        entry |= {"id": entry["id"] + 1000, "file_name": f"other/{entry['id']}.png"}
    predicted["annotations"] = []
    first = truth["images"][0]["file_name"]
    with pytest.raises(DatasetError, match=rf"no image of .* is in .*: the first ones are other/.* and {first}"):
        align(truth, predicted, match=match)


@pytest.mark.parametrize("match", ["id", "file-name"])
def test_categories_that_the_ground_truth_lacks_are_left_out_and_named(match, caplog):
    truth, predicted = pair()
    expected = evaluate(truth, predicted, match=match)
    more = copy.deepcopy(predicted)
    more["categories"].append({"id": 77, "name": "truck"})
    more["annotations"].append({**more["annotations"][0], "id": 1000, "category_id": 77})
    found = evaluate(truth, more, match=match)
    assert as_json(found) == as_json(expected)
    left_out = "1 annotation of predictions left out of the scores: the ground truth does not have the categories"
    assert f"{left_out} (truck)" in caplog.text


def test_the_same_category_under_another_id_is_not_left_out():
    truth, predicted = pair()
    predicted["categories"][0]["id"] = predicted["annotations"][0]["category_id"] = 77
    with pytest.raises(DatasetError, match=r"its category_id 77 is not among .*--match file-name"):
        align(truth, predicted)


def test_predictions_without_a_common_category_are_refused():
    truth, predicted = pair()
    for place, each in enumerate(predicted["categories"]):
        each["name"] = f"thing {place}"
    with pytest.raises(DatasetError, match="no category of predictions is in ground truth: the first ones are"):
        align(truth, predicted, match="file-name")


def test_a_results_list_scores_like_its_dataset(tmp_path):
    truth, predicted = build.random_pair(2)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results_of(predicted)), encoding="utf-8")
    ours, wanted = evaluate(truth, read_predictions(path)), evaluate(truth, predicted)
    assert (ours.instances, ours.category_given, ours.multilabel) == (
        wanted.instances,
        wanted.category_given,
        wanted.multilabel,
    )
    with pytest.raises(DatasetError, match="no file names"):
        align(truth, read_predictions(path), match="file-name")


def test_rle_counts_may_be_bytes_as_in_pycocotools():
    truth, predicted = pair()
    for each in predicted["annotations"]:
        each["segmentation"] = coco_mask.encode(np.asfortranarray(build.LEFT.astype(np.uint8)))
    assert score_pairs(align(truth, predicted)).by_category == {"cat": 0, "dog": 1}


def test_scores_may_be_in_the_attributes_or_absent(caplog):
    truth, predicted = pair()
    predicted["annotations"][0] |= {"attributes": {"score": predicted["annotations"][0].pop("score")}}
    del predicted["annotations"][1]["score"]
    first, second = align(truth, predicted).scenes
    assert (first.predicted[0].score, second.predicted[0].score) == (0.9, 1.0)
    assert "without a score" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"), [("5", "neither"), ("{", "not a JSON"), (None, "no such file")], ids=["5", "{", "gone"]
)
def test_an_invalid_predictions_file_is_named(tmp_path, text, message):
    path = tmp_path / "found.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=f"found.json.*{message}"):
        read_predictions(path)


def test_images_that_the_predictions_lack_are_counted_in_a_warning(caplog):
    truth, predicted = pair()
    fewer = {**predicted, "images": predicted["images"][:1]}
    fewer["annotations"] = [each for each in predicted["annotations"] if each["image_id"] == fewer["images"][0]["id"]]
    evaluate(truth, predicted)
    assert not caplog.text
    evaluate(truth, fewer)
    assert "1 of 2 images of the ground truth are not in" in caplog.text


def test_categories_that_the_predictions_do_not_list_are_noted():
    truth, predicted = pair()
    first, *others = sorted({each["category_id"] for each in truth["annotations"]})
    names = {each["id"]: each["name"] for each in truth["categories"]}
    fewer = {**predicted, "categories": [each for each in predicted["categories"] if each["id"] == first]}
    fewer["annotations"] = [each for each in predicted["annotations"] if each["category_id"] == first]
    assert others
    assert evaluate(truth, predicted).note == ""
    evaluation = evaluate(truth, fewer)
    assert set(evaluation.not_predicted) == {names[each] for each in others}
    assert evaluation.note.startswith("not among the categories of the predictions, so counted as not found: ")
    assert as_json(evaluation)["not_predicted"] == list(evaluation.not_predicted)
    assert f"{evaluation.note[1:]}." in render_page(evaluation)
    assert evaluate(truth, fewer["annotations"]).note == ""  # a flat list does not tell


def test_files_that_number_their_images_differently_are_told_so_before_sizes_are_compared():
    truth, predicted = pair()
    other = copy.deepcopy(predicted)
    other["images"][0] |= {"file_name": "another.png", "height": other["images"][0]["height"] + 8}
    with pytest.raises(DatasetError, match="--match file-name"):
        evaluate(truth, other)
