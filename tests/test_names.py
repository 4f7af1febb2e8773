"""All commands use one rule to match names to files or to images of another dataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import builders
import pytest
from PIL import Image as PillowImage

from text2seg.calibration.thresholds import tune_by_truth
from text2seg.coco.convert import convert
from text2seg.coco.dataset import merge
from text2seg.coco.lookup import ImageFinder
from text2seg.coco.source import source_of
from text2seg.config import Settings
from text2seg.errors import DatasetError, ImageError, QueryError, Text2SegError
from text2seg.evaluation.alignment import align
from text2seg.evaluation.benchmark import benchmark_coco
from text2seg.explain.labelled import Labelled
from text2seg.io.names import NameIndex, canonical_name, pair_names, parts_of, unique_names
from text2seg.io.scan import Scan
from text2seg.labelling.job import assign_ids
from text2seg.ontology import ontology_of_queries
from text2seg.review import write_review
from text2seg.review.replay import image_of

BOX = [[2, 2, 20, 2, 20, 12, 2, 12]]
TABLE = [
    ("a.png", "a.png", True),
    ("./a.png", "a.png", True),
    ("train/a.png", "a.png", True),
    ("a.png", "train/a.png", True),
    ("a.png", "deep/down/a.png", True),
    ("x\\a.png", "x/a.png", True),
    (".\\x\\a.png", "x/a.png", True),
    ("x//a.png", "x/a.png", True),
    ("y/../x/a.png", "x/a.png", True),
    ("../x/a.png", "x/a.png", True),
    ("/data/x/a.png", "x/a.png", True),
    ("C:\\data\\x\\a.png", "x/a.png", True),
    ("\\\\host\\share\\x\\a.png", "x/a.png", True),
    ("https://host/x/a%20b.png?size=9#top", "x/a b.png", True),
    ("file:///C:/x/a.png", "x/a.png", True),
    ("s3://bucket/x/a%20b.png", "x/a%20b.png", True),
    ("e\u0301.png", "\u00e9.png", True),
    ("\u00e9.png", "e\u0301.png", True),
    ("E\u0301/a.png", "\u00e9/a.png", True),
    ("A.PNG", "a.png", True),
    ("Train/A.png", "train/a.png", True),
    ("D:\\Train\\E\u0301 1.PNG", "train/\u00e9 1.png", True),
    ("train/a.png", "val/a.png", False),
    ("b.png", "a.png", False),
    ("ba.png", "a.png", False),
    ("a.jpg", "a.png", False),
    ("a.png.png", "a.png", False),
    ("x a.png", "x/a.png", False),
    ("s3://bucket/x/a%20b.png", "x/a b.png", False),
]


def dataset_of(*names: str, first: int = 1) -> dict:
    """Return a dataset with one image for each name, each with one annotation."""
    numbers = range(first, first + len(names))
    height, width = builders.HW
    return {
        "info": {},
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name in zip(numbers, names, strict=True)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "segmentation": BOX, "bbox": [2, 2, 18, 10], "area": 180}
            | {"iscrowd": 0, "score": 0.9}
            for n in numbers
        ],
        "categories": [{"id": 1, "name": "sheep"}],
    }


def folder_of(tmp_path: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        path = tmp_path / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(builders.pixels(seed=number)).save(path)
    return tmp_path / "images"


class Opened(QueryError):
    """Raised by models that get an image, which shows that its file was found."""


def models() -> SimpleNamespace:
    def refuse(image):
        raise Opened("the file was opened")

    return SimpleNamespace(
        settings=Settings(), check=lambda queries, settings: None, open=refuse, provenance=lambda settings: {}
    )


def in_evaluate(names, files, tmp_path):
    """The files are the images of the ground truth."""
    try:
        scenes = align(dataset_of(*files), dataset_of(*names, first=9), match="file-name").scenes
    except DatasetError as error:
        if "not among the ground truth's images" in str(error) or str(error).startswith(
            "no image of predictions is in"
        ):
            return False
        raise
    return any(scene.predicted for scene in scenes)


def in_label(names, files, tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(dataset_of(*names)), encoding="utf-8")
    try:
        plan = assign_ids(ontology_of_queries("sheep"), Scan(tmp_path, files), tmp_path / "truth.json")
    except ImageError as error:
        if "has no image" in str(error):
            return False
        raise
    return plan.image_id(0) == 1


def in_convert(names, files, tmp_path):
    try:
        done = convert(dataset_of(*names), "labelme", tmp_path / "out", images=folder_of(tmp_path, *files))
    except ImageError as error:
        if "is not in" in str(error):
            return False
        raise
    return done.images == 1


def in_report(names, files, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_of(*names)), encoding="utf-8")
    page = write_review(tmp_path / "dataset.json", tmp_path / "page.html", images=folder_of(tmp_path, *files))
    if "could be any of" in page.path.read_text(encoding="utf-8"):
        raise ImageError("could be any of")
    return page.unseen == 0


def in_tune(names, files, tmp_path):
    folder = folder_of(tmp_path, *files)
    try:
        tuning = tune_by_truth(models(), ontology_of_queries("sheep"), folder, dataset_of(*names))
    except Text2SegError as error:
        if "no image of the ground truth is there" in str(error):
            return False
        raise
    return tuning.images == 1


def in_benchmark(names, files, tmp_path):
    with pytest.raises(DatasetError) as caught:
        benchmark_coco(models(), dataset_of(*names), folder_of(tmp_path, *files))
    if "could be any of" in str(caught.value):
        raise caught.value
    return "the file was opened" in str(caught.value)


def in_replay(names, files, tmp_path):
    dataset = dataset_of(*names)
    try:
        image_of(dataset["annotations"][0], dataset, tmp_path / "d.json", folder_of(tmp_path, *files))
    except ImageError as error:
        if "is not in" in str(error):
            return False
        raise
    return True


def in_explain(names, files, tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps(dataset_of(*names)), encoding="utf-8")
    labelled = Labelled.read(tmp_path / "dataset.json", folder_of(tmp_path, *files))
    try:
        labelled.image_of(labelled.pairs[0])
    except ImageError as error:
        if "is not in" in str(error):
            return False
        raise
    return True


COMMANDS = [in_evaluate, in_label, in_convert, in_report, in_tune, in_benchmark, in_replay, in_explain]
BY_ALL = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)


@BY_ALL
@pytest.mark.parametrize(("name", "file", "same"), TABLE)
def test_all_commands_match_the_same_pairs_of_name_and_file(tmp_path, command, name, file, same):
    assert command((name,), (file,), tmp_path) is same


@BY_ALL
def test_an_ambiguous_name_is_refused_by_all_commands(tmp_path, command):
    names, files = ("a.png",), ("x/a.png", "y/a.png")
    if command is in_label:  # whose files are looked for in the dataset
        names, files = ("x/a.png", "y/a.png"), ("a.png",)
    with pytest.raises(Text2SegError, match="could be any of"):
        command(names, files, tmp_path)


@BY_ALL
def test_a_name_matches_the_file_with_the_most_common_parts(tmp_path, command):
    """Here `c` is the parent folder."""
    names, files = ("c/b/a.png",), ("a.png", "b/a.png")
    if command is in_label:
        names, files = ("b/a.png", "a.png"), ("c/b/a.png",)
    assert command(names, files, tmp_path)


@pytest.mark.parametrize("command", [in_evaluate, in_tune])
def test_two_names_of_one_file_are_refused(tmp_path, command):
    with pytest.raises(
        Text2SegError, match=r"two images of the predictions|several images of the ground truth match one file"
    ):
        command(("a.png", "./a.png"), ("a.png",), tmp_path)


def test_two_files_of_one_name_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="two images of"):
        in_label(("a.png",), ("x/a.png", "y/a.png"), tmp_path)


def test_matching_by_id_accepts_other_spellings_of_a_name():
    truth = dataset_of("train\\E\u0301.PNG")
    assert align(truth, dataset_of("/val/\u00e9.png")).scenes[0].predicted
    with pytest.raises(DatasetError, match="--match file-name"):
        align(truth, dataset_of("b.png"))


@pytest.mark.parametrize(("one", "other"), [("./a.png", "a.png"), ("x\\a.png", "x/a.png"), ("e\u0301", "\u00e9")])
def test_merge_refuses_one_image_in_two_spellings(one, other):
    with pytest.raises(DatasetError, match="is in a and in b"):
        merge([dataset_of(one), dataset_of(other, first=2)], names=["a", "b"])


def test_merge_keeps_images_that_are_only_possibly_the_same():
    merged = merge([dataset_of("a.png", "A.png"), dataset_of("x/a.png", first=3)], names=["a", "b"])
    assert [image["file_name"] for image in merged["images"]] == ["a.png", "A.png", "x/a.png"]


def test_an_exact_name_comes_before_similar_names():
    names = ["a.png", "A.png", "x/a.png", "y/x/a.png", "X\\b.png"]
    found = {name: [names[place] for place in NameIndex(names).find(name)] for name in ("a.png", "A.png", "./A.png")}
    assert found == {"a.png": ["a.png"], "A.png": ["A.png"], "./A.png": ["A.png"]}
    assert NameIndex(names).find("x/b.png") == [4]
    assert NameIndex(names).find("z/x/a.png") == [2]
    assert NameIndex(names).find("y/x/a.png") == [3]
    assert NameIndex(names).find("z/a.png") == [0]
    assert NameIndex(names).find("z/c.png") == []


@pytest.mark.parametrize("name", ["", ".", "/", "..", "a/..", "\\", "C:\\"])
def test_a_name_without_parts_matches_no_file(tmp_path, name):
    assert parts_of(name) == ()
    assert NameIndex(["a", "", "/"]).find(name) in ([], [1], [2])
    assert ImageFinder(images=folder_of(tmp_path, "a.png")).find_or_none(name) is None


def test_many_paths_with_one_file_name_are_matched_quickly():
    inside = [f"{number:06}/image.png" for number in range(5_000)]
    pairs = pair_names(inside, [f"train/{name}" for name in inside], ours="", theirs="")
    assert len(pairs) == len(inside)
    assert canonical_name("train\\./x.png") == "train/x.png"


def test_unique_names_differ_on_every_file_system():
    name = unique_names()
    assert [name("a", ""), name("A", ""), name("a_2", ""), name("e\u0301", ""), name("\u00e9", "")] == [
        "a",
        "A_2",
        "a_2_2",
        "e\u0301",
        "\u00e9_2",
    ]


# --- files on disk ---------------------------------------------------------------------------------------------------


def test_no_file_outside_the_image_folder_is_opened(tmp_path):
    folder = folder_of(tmp_path, "a.png")
    PillowImage.new("RGB", (3, 3)).save(tmp_path / "private.png")
    finder = ImageFinder(tmp_path / "dataset.json", folder, {"folder": str(tmp_path)})
    for name in ("../private.png", str(tmp_path / "private.png"), "x/../../private.png", "..\\private.png"):
        assert finder.find_or_none(name) is None
        with pytest.raises(ImageError, match="is not in"):
            finder.find(name)


def test_a_name_may_begin_above_the_image_folder(tmp_path):
    folder = folder_of(tmp_path, "a.png", "backup/images/a.png")
    for name in ("images/a.png", str(folder / "a.png"), "C:\\data\\images\\a.png"):
        assert ImageFinder(images=folder).find(name) == folder / "a.png"


@pytest.mark.parametrize("place", ["https://host/images", "//host/share", "\\\\host\\share", "s3://bucket/x", "/data"])
def test_a_folder_elsewhere_in_a_dataset_is_not_opened(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    looked: list[str] = []
    monkeypatch.setattr("text2seg.coco.lookup.is_file", lambda path, _: looked.append(str(path)) and False)
    with pytest.raises(ImageError, match=r"is in .* --images"):
        ImageFinder(tmp_path / "d.json", info={"folder": place}).find(f"{place}/a.png")
    assert all(Path(path).resolve().is_relative_to(tmp_path) for path in looked)


def test_without_an_image_folder_names_are_searched_beside_the_dataset_in_any_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, "X/e\u0301.png", "deep/b.png")
    finder = ImageFinder(tmp_path / "images/dataset.json")
    for name in ("x\\\u00e9.png", "C:\\data\\X\\\u00e9.PNG", "/data/X/e\u0301.png"):
        assert finder.find(name).read_bytes() == (tmp_path / "images/X/e\u0301.png").read_bytes()
    assert finder.find_or_none("b.png") is None  # folders are not looked through
    moved = ImageFinder(tmp_path / "dataset.json", info={"folder": "images"})
    assert moved.find("deep/b.png") == tmp_path / "images/deep/b.png"


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0.png", "\ud800.png", "x/" * 3000 + "a.png", "?*|<>.png"])
def test_names_that_no_file_can_have_are_not_found(tmp_path, name):
    folder = folder_of(tmp_path, "b.png")
    for finder in (ImageFinder(images=folder), ImageFinder(folder / "dataset.json")):
        with pytest.raises(ImageError, match="is not in") as caught:
            finder.find(name)
        assert len(str(caught.value)) < 600


def test_an_absolute_or_escaping_name_is_searched_only_beside_the_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, "in/b.png")
    PillowImage.new("RGB", (3, 3)).save(tmp_path / "private.png")
    finder = ImageFinder(tmp_path / "images/in/dataset.json", info={"folder": "."})
    monkeypatch.chdir(tmp_path / "images")
    for name in (f"{tmp_path}/private.png", "../private.png", "../../private.png"):
        assert finder.find_or_none(name) is None
    assert finder.find_or_none("/somewhere/else/in/b.png") == Path("in/b.png")


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    folder = tmp_path / "images"
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ImageError, match=r"cannot search .*images for a\.png: Permission denied"):
        ImageFinder(images=folder).find("a.png")


def test_cyclic_links_are_followed_once(tmp_path):
    folder = folder_of(tmp_path, "x/a.png")
    (folder / "x/up").symlink_to(folder, target_is_directory=True)
    assert ImageFinder(images=folder).find("a.png") == folder / "x/a.png"


def test_output_names_are_made_of_the_parts_of_a_name():
    images = source_of(dataset_of("x\\a.png", "./x/A.jpg", "https://host/x/b%20c.png?s=1")).images
    assert [image.stem for image in images] == ["x/a", "x/A_2", "host/x/b c"]
    assert [image.suffix for image in images] == [".png", ".jpg", ".png"]


@pytest.mark.parametrize("to", ["yolo-seg", "voc-png", "labelme"])
def test_invalid_characters_in_output_names_are_replaced(tmp_path, to):
    convert(dataset_of("x\na.png", "b\x7f.png"), to, tmp_path / "out")
    stems = {path.stem for path in tmp_path.rglob("*") if path.is_file()}
    assert {"x_a", "b_"} <= stems
    for name in ("b\0.png", "\ud800.png"):
        with pytest.raises(DatasetError, match="which no file can have"):
            convert(dataset_of(name), to, tmp_path / "none")
