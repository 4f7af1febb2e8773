"""COCO files from any source: odd values are accepted with a warning or refused, in the same way by all commands."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path

import evaluation_builders as build
import numpy as np
import pytest
from PIL import Image

from text2seg.cli import main
from text2seg.coco import rle
from text2seg.coco.convert import convert
from text2seg.coco.dataset import merge, read_dataset
from text2seg.coco.reader import check_dataset, kept_categories
from text2seg.coco.rle import checked_rle
from text2seg.coco.truth import truth_images
from text2seg.errors import DatasetError
from text2seg.evaluation import evaluate, read_predictions, score_pairs
from text2seg.evaluation.alignment import align
from text2seg.io.scan import list_images
from text2seg.labelling.job import assign_ids
from text2seg.ontology import ontology_of_queries
from text2seg.review.contents import contents_of

HW = (24, 32)
PHOTOS = Path(__file__).parents[2] / "shared" / "photos"
DELETED = object()


def dataset() -> dict:
    return build.dataset(
        [build.annotation("dog", build.LEFT, score=0.9), build.annotation("cat", build.RIGHT, score=0.8)],
        [build.annotation("cat", build.LEFT, score=0.7)],
    )


def with_value(key: str, place: int, name: str, value: object) -> dict:
    data = dataset()
    if value is DELETED:
        del data[key][place][name]
    else:
        data[key][place][name] = value
    return data


def readers(path: Path, images: Path, out: Path) -> dict[str, object]:
    """All functions that read a dataset file."""

    def tune() -> object:
        from test_tuning import FakeModels

        from text2seg.calibration.thresholds import tune_by_truth

        models = FakeModels({"dog": 0.5, "cat": 0.5})
        return tune_by_truth(models, ontology_of_queries("dog, cat"), images, read_dataset(path))

    return {
        "evaluate": lambda: evaluate(read_dataset(path), read_predictions(path)),
        "report": lambda: contents_of(read_dataset(path)),
        "merge": lambda: merge([read_dataset(path)], names=["one"]),
        "convert": lambda: convert(read_dataset(path), "labelme", out, overwrite=True),
        "tune": tune,
        "label": lambda: assign_ids(ontology_of_queries("dog, cat"), list_images(images), path),
    }


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("1.png", "2.png"):
        Image.fromarray(np.zeros((*HW, 3), np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


ACCEPTED = {
    "image id as text": (("images", 0, "id", "5"), "image_id|id '5'.* read as 5"),
    "image id as a float": (("images", 0, "id", 5.0), "5.0, which is read as 5"),
    "size as text": (("images", 0, "width", "32"), "image 5 has the width '32', which is read as 32"),
    "size as a float": (("images", 0, "height", 24.0), "image 5 has the height 24.0, which is read as 24"),
    "annotation id -1": (("annotations", 0, "id", -1), "id -1, below 1"),
    "annotation id 0": (("annotations", 0, "id", 0), "id 0, below 1"),
    "annotation without id": (("annotations", 0, "id", DELETED), "no. 1 of the annotations has no number as its id"),
    "annotation id as a word": (("annotations", 0, "id", "a1"), "gets a new one"),
    "annotation id twice": (("annotations", 0, "id", 2), "two annotations have the id 2"),
    "category id as text": (("categories", 0, "id", "10"), "'10', which is read as 10"),
    "category name a number": (("categories", 2, "name", 7), "category 24 has the number 7 as its name"),
    "image of an annotation as text": (("annotations", 0, "image_id", "5"), "annotation 1 has the image_id '5'"),
    "iscrowd as text": (("annotations", 0, "iscrowd", "0"), "iscrowd '0', which is read as 0"),
    "iscrowd false": (("annotations", 0, "iscrowd", False), "iscrowd False, which is read as 0"),
    "score as text": (("annotations", 0, "score", "0.9"), "annotation 1 has the score '0.9'"),
    "area infinite": (("annotations", 0, "area", float("inf")), "annotation 1 has the area inf"),
    "box of NaN": (("annotations", 0, "bbox", [float("nan")] * 4), "annotation 1 has the bbox"),
    "NaN in what is not COCO's": (
        ("annotations", 0, "attributes", {"a": [1, {"b": float("nan")}]}),
        "annotation 1 .*null",
    ),
    "infinity in an image": (("images", 0, "depth", float("-inf")), "image 5 has a number in its 'depth'"),
    "NaN in a category": (("categories", 0, "colour", [1, float("nan")]), "category 10 has a number"),
    "box beyond floats": (("annotations", 0, "bbox", [10**400] * 4), "annotation 1 has the bbox"),
}


@pytest.mark.parametrize(("edit", "sentence"), ACCEPTED.values(), ids=ACCEPTED)
def test_odd_but_clear_values_are_read_by_all_commands_with_one_warning(tmp_path, images, caplog, edit, sentence):
    path, good = tmp_path / "odd.json", tmp_path / "good.json"
    path.write_text(json.dumps(with_value(*edit)), encoding="utf-8")
    good.write_text(json.dumps(dataset()), encoding="utf-8")
    for name, read in readers(path, images, tmp_path / "out").items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read()
        said = [record.getMessage() for record in caplog.records if str(path) in record.getMessage()]
        assert len({*said}) == 1, (name, said)
        assert re.search(sentence, said[0]), (name, said)
    wanted, found = (evaluate(read_dataset(each), read_dataset(each)) for each in (good, path))
    assert found.category_given == wanted.category_given


REFUSED = {
    "image without id": (("images", 0, "id", DELETED), "no. 1 of the images has no id"),
    "image id a list": (("images", 0, "id", [1]), r"no. 1 of the images has the id \[1\], which is not a whole number"),
    "image id too large": (("images", 0, "id", 2**70), "over the limit"),
    "image without file name": (("images", 0, "file_name", DELETED), "image 5 has no file_name"),
    "file name a number": (("images", 0, "file_name", 5), "image 5 has the file_name 5, which is not text"),
    "file name with NUL": (
        ("images", 0, "file_name", "a\0.png"),
        "image 5 has the file_name .* which no file can have",
    ),
    "size negative": (("images", 0, "width", -3), "image 5 has the width -3, which is not a number of pixels"),
    "size half": (("images", 0, "width", 31.5), "image 5 has the width 31.5"),
    "size beyond memory": (
        ("images", 0, "width", 10**9),
        "image 5 is said to be 1000000000 x 24 pixels, over the limit",
    ),
    "size of 400 digits": (("images", 0, "width", 10**400), "of 401 digits"),
    "category without name": (("categories", 0, "name", DELETED), "category 10 has no name"),
    "category without id": (("categories", 0, "id", None), "no. 1 of the categories has no id"),
    "category id of an object": (("categories", 0, "id", {"a": 1}), "not a whole number"),
    "category of an annotation a list": (("annotations", 0, "category_id", [1]), "annotation 1 has the category_id"),
    "category not listed": (("annotations", 0, "category_id", -1), "annotation 1: its category_id -1 is not among"),
    "annotation of no image": (("annotations", 0, "image_id", DELETED), "annotation 1 has no image_id"),
    "annotation id too large": (("annotations", 0, "id", 2**70), "no. 1 of the annotations has the id"),
    "score beyond sums": (
        ("annotations", 0, "score", 1e308),
        r"annotation 1: its score 1e\+308 is not a finite number",
    ),
    "score of 400 digits": (("annotations", 0, "score", 10**400), "annotation 1: its score of 401 digits"),
    "score NaN": (("annotations", 0, "score", float("nan")), "annotation 1: its score nan"),
    "a corner NaN": (
        ("annotations", 0, "segmentation", [[1, 1, float("nan"), 1, 5, 5]]),
        "annotation 1: its mask holds",
    ),
    "iscrowd a word": (("annotations", 0, "iscrowd", "yes"), "annotation 1 has the iscrowd 'yes'"),
}


@pytest.mark.parametrize(("edit", "sentence"), REFUSED.values(), ids=REFUSED)
def test_unclear_values_are_refused_by_all_commands(tmp_path, images, edit, sentence):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(with_value(*edit)), encoding="utf-8")
    for read in readers(path, images, tmp_path / "out").values():
        with pytest.raises(DatasetError, match=f"odd.json: .*{sentence}"):
            read()


@pytest.mark.parametrize("info", ["made by hand", ["x"], 5])
def test_info_of_another_type_is_ignored(tmp_path, images, caplog, info):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({**dataset(), "info": info}), encoding="utf-8")
    for read in readers(path, images, tmp_path / "out").values():
        read()
    assert "its info should be an object" in caplog.text
    assert read_dataset(path)["info"] == ({"description": info} if isinstance(info, str) else {})


@pytest.mark.parametrize("inner", ["x", 5, [1], {"categories": "x"}, {"categories": [1, {"name": []}], "settings": 5}])
def test_entries_of_info_may_have_any_type(tmp_path, images, inner):
    path = tmp_path / "odd.json"
    info = {"ontology": inner, "provenance": inner, "failures": inner, "folder": inner}
    path.write_text(json.dumps({**dataset(), "info": info}), encoding="utf-8")
    for read in readers(path, images, tmp_path / "out").values():
        read()


def test_categories_with_the_same_name_are_read_as_one(caplog):
    """One tool exports the first category only as the supercategory of the other."""
    truth, plain = dataset(), dataset()
    truth["categories"].insert(0, {"id": 0, "name": "dog", "supercategory": "none"})
    assert kept_categories(check_dataset(truth, "it")) == {0: 10, 10: 10, 17: 17, 24: 24}
    assert "categories 0 and 10 are both called 'dog'" in caplog.text
    assert evaluate(truth, plain).instances == evaluate(plain, plain).instances
    predicted = [{**each, "category_id": 0} for each in plain["annotations"] if each["category_id"] == 10]
    assert score_pairs(align(truth, predicted)).by_category == {"cat": 0, "dog": 1}


def test_file_of_only_crowds_is_read_as_single_objects(tmp_path, images, caplog):
    data, path = dataset(), tmp_path / "odd.json"
    plain = evaluate(data, data)
    for each in data["annotations"]:
        each["iscrowd"] = 1
    path.write_text(json.dumps(data), encoding="utf-8")
    for read in readers(path, images, tmp_path / "out").values():
        read()
    assert "every annotation has iscrowd 1" in caplog.text
    assert evaluate(read_dataset(path), dataset()).instances == plain.instances
    assert convert(read_dataset(path), "labelme", tmp_path / "more").annotations == 3


def test_text_ids_become_the_same_number_in_every_file():
    one, other = dataset(), dataset()
    for data in (one, other):
        for entry in (*data["images"], *data["annotations"]):
            key = "id" if "file_name" in entry else "image_id"
            entry[key] = f"image {entry[key]}"
    other["images"].reverse()
    assert evaluate(one, other).category_given.mean_iou == 1


FILES = {
    "utf-8 with a mark": ("\ufeff{}", "utf-8", None),
    "utf-16": ("{}", "utf-16", None),
    "empty": ("", "utf-8", "it is empty"),
    "latin-1": ("{}ä", "latin-1", "not utf-8 text"),
    "lists in lists": ("[" * 200_000, "utf-8", "nested more than 100 deep"),
    "objects in objects": ('{"a":' * 500 + "1" + "}" * 500, "utf-8", "nested more than 100 deep"),
    "a number of 5,000 digits": ("1" * 5000, "utf-8", "over 4300 digits"),
    "two lists of annotations": ('{"annotations": [], "annotations": []}', "utf-8", "the key 'annotations' twice"),
}


@pytest.mark.parametrize(("text", "encoding", "message"), FILES.values(), ids=FILES)
def test_encodings_and_damaged_files(tmp_path, text, encoding, message):
    path = tmp_path / "odd.json"
    body = json.dumps({**dataset(), "note": "[" * 500}) if message is None else ""
    path.write_bytes((text.replace("{}", body) if body else text).encode(encoding))
    if message is None:
        assert read_dataset(path)["annotations"] == json.loads(json.dumps(dataset()))["annotations"]
    else:
        with pytest.raises(DatasetError, match=f"odd.json.*{message}"):
            read_dataset(path)


def test_read_datasets_can_be_written(tmp_path):
    data = dataset()
    data["annotations"][0] |= {"area": float("nan"), "bbox": [float("inf")] * 4, "attributes": {"x": float("nan")}}
    data["annotations"][1]["wide"] = [10**400, 1.5, 1e308, 1e308]
    data |= {"info": {"seen": float("nan")}, "videos": [float("inf")]}
    first, second = check_dataset(data, "it")["annotations"][:2]
    assert not {"area", "bbox"} & first.keys()
    assert first["attributes"] == {"x": None}
    assert second["wide"] == data["annotations"][1]["wide"]
    json.dumps(check_dataset(data, "it"), allow_nan=False)


def test_repeated_keys_are_reported(tmp_path, caplog):
    path = tmp_path / "twice.json"
    text = json.dumps(dataset())
    path.write_text(text.replace('"id": 1,', '"id": 1, "area": 3, "area": 3,').replace('"id": 2,', '"id": 2, "id": 2,'))
    with caplog.at_level(logging.WARNING):
        read_dataset(path)
    (said,) = [record.getMessage() for record in caplog.records if "twice" in record.getMessage()]
    assert re.search("with the id .* the last one counts", said)
    path.write_text(path.read_text()[:-1] + ', "categories": []}')
    with pytest.raises(DatasetError, match=r"twice\.json has the key 'categories' twice"):
        read_dataset(path)


def test_inputs_are_not_changed():
    data = with_value("images", 0, "width", "32")
    before = copy.deepcopy(data)
    assert check_dataset(data, "it")["images"][0]["width"] == 32
    assert data == before


# --- masks before C code sees them ----------------------------------------------------------------------------------

PIXELS = HW[0] * HW[1]
BAD_MASKS = {
    "a far corner": [[1, 1, 2e8, 1, 5, 5]],
    "a corner beyond floats": [[1, 1, 10**400, 1, 5, 5]],
    "a corner at 1e300": [[1, 1, 1e300, 1, 5, 5]],
    "an endless outline": [[0, 0, 1200, 1200] * 2000],
    "many outlines": [[0, 0, 1200, 1200, 0, 1]] * 2000,
    "an infinite corner": [[1, 1, float("inf"), 1, 5, 5]],
    "corners as text": [["1", "1", "5", "1", "5", "5"]],
    "runs of 2^62": {"size": list(HW), "counts": [2**62] * 4},
    "runs of 2^64": {"size": list(HW), "counts": [2**64, PIXELS]},
    "runs that overflow to the right sum": {"size": list(HW), "counts": [2**63 - 1, 2**63 - 1, PIXELS + 2]},
    "a negative run": {"size": list(HW), "counts": [-1, PIXELS + 1]},
    "text beyond ASCII": {"size": list(HW), "counts": "é" * 20},
    "text of endless runs": {"size": list(HW), "counts": "o" * 100_000},
    "another size": {"size": [10**9, 10**9], "counts": [PIXELS]},
}


@pytest.mark.parametrize("segmentation", BAD_MASKS.values(), ids=BAD_MASKS)
def test_extreme_numbers_are_refused_before_c_code(segmentation):
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        checked_rle(segmentation, HW)


def test_image_over_the_size_limit_is_refused():
    with pytest.raises(ValueError, match="memory"):
        checked_rle([[10, 10, 30, 10, 30, 30]], (10**9, 10**9))


@pytest.mark.parametrize("zeros", [1, 2, 99_999, 100_000])
def test_empty_runs_are_joined(zeros):
    full = checked_rle({"size": list(HW), "counts": [0, PIXELS, *[0] * zeros]}, HW)
    assert full == rle.encode(np.ones(HW, np.bool_))
    middle = {"size": list(HW), "counts": [100, *[0] * zeros, 5 + zeros % 2, *[0] * zeros, PIXELS - 105 - zeros % 2]}
    mask = np.zeros(PIXELS, np.bool_)
    if zeros % 2 == 0:
        mask[100:105] = True
    assert (rle.decode(checked_rle(middle, HW)) == mask.reshape(HW, order="F")).all()
    assert (rle.decode(middle) == mask.reshape(HW, order="F")).all()


def test_runs_may_be_floats_with_integer_values():
    runs = [20, 10, PIXELS - 30]
    floats = {"size": list(HW), "counts": [float(run) for run in runs]}
    assert checked_rle(floats, HW) == checked_rle({"size": list(HW), "counts": runs}, HW)
    for wrong in (0.5, float("nan"), float("inf"), -1.0, 1e300, True):
        with pytest.raises(ValueError, match="RLE"):
            checked_rle({"size": list(HW), "counts": [wrong, *runs]}, HW)


def test_many_polygons_are_joined_into_one_mask():
    random = np.random.default_rng(0)
    corners = random.integers(0, 20, (3000, 2))
    polygons = [[int(x), int(y), int(x) + 3, int(y), int(x) + 3, int(y) + 3, int(x), int(y) + 3] for x, y in corners]
    mask = np.zeros(HW, np.bool_)
    for x, y in corners:
        mask[y : y + 3, x : x + 3] = True
    assert (rle.decode(checked_rle(polygons, HW)) == mask).all()


# --- crowds --------------------------------------------------------------------------------------------------------


def test_crowds_make_no_category_present_and_their_pixels_do_not_count():
    data = build.dataset(
        [build.annotation("dog", build.LEFT), build.annotation("dog", np.ones(HW, np.bool_), crowd=True)],
        [build.annotation("cat", build.RIGHT, crowd=True)],
    )
    first, second = truth_images(check_dataset(data, "it"))
    assert (first.present(), second.present()) == ([10], [])
    assert first.true_of(10) == [rle.encode(build.LEFT)]
    assert second.crowds_of(17) == [rle.encode(build.RIGHT)]


def test_tune_and_evaluate_give_the_same_iou(tmp_path, images):
    from test_tuning import FakeModels

    from text2seg.calibration.thresholds import tune_by_truth

    everything = build.annotation("dog", np.ones(HW, np.bool_), crowd=True)
    chosen = []
    for crowds in ([], [everything]):
        truth = build.dataset([build.annotation("dog", build.LEFT), *crowds], [*crowds])
        tuning = tune_by_truth(FakeModels({"dog": 0.5}), ontology_of_queries("dog"), images, truth)
        (dog,) = tuning.categories
        chosen.append((dog.curve.images, dog.curve.scores))
    without, ignored = chosen
    assert without[0] == ignored[0] == 1
    inside = build.LEFT.sum()
    for plain, outside in zip(without[1], ignored[1], strict=True):
        assert outside >= plain  # what lies in the crowd is not held against it
        assert outside * inside == pytest.approx(round(outside * inside))  # the truth's own pixels alone are the union


# --- real files ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photographs are not here")
def test_bundled_masks_pass_every_command_unchanged(tmp_path, caplog, capsys):
    truth = PHOTOS / "instances.json"
    content = json.loads(truth.read_text(encoding="utf-8"))
    assert read_dataset(truth) == content
    assert not caplog.text
    predictions = tmp_path / "predictions.json"
    perfect = [{**each, "score": 1.0} for each in content["annotations"] if not each["iscrowd"]]
    predictions.write_text(json.dumps({**content, "annotations": perfect}), encoding="utf-8")
    assert main(["evaluate", str(truth), str(predictions), "--protocol", "category-given"]) == 0
    assert "1.000" in capsys.readouterr().out
    assert main(["merge", str(truth), "--output", str(tmp_path / "merged.json")]) == 0
    assert len(read_dataset(tmp_path / "merged.json")["annotations"]) == len(content["annotations"])
    for to in ("yolo-seg", "voc-png", "labelme"):
        convert(content, to, tmp_path / to, images=PHOTOS / "images")
    page = ["--images", str(PHOTOS / "images"), "--output", str(tmp_path / "page.html")]
    assert main(["report", str(truth), *page]) == 0
    assert "could not be shown" not in capsys.readouterr().out
