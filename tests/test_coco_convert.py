"""Converted files are read back by the other tools or their libraries: names, counts and pixels agree."""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import get_args

import builders
import numpy as np
import pytest
import yaml
from PIL import Image as PillowImage

from text2seg.cli import main
from text2seg.coco import polygon, rle
from text2seg.coco.convert import FORMATS, convert
from text2seg.coco.dataset import ENCODERS, build_dataset, read_dataset, write_dataset
from text2seg.coco.rle import mask_of
from text2seg.coco.source import source_of
from text2seg.coco.voc import palette
from text2seg.config import Encoding
from text2seg.demo import __file__ as demo_init
from text2seg.errors import ImageError, OutputError, Text2SegError

SCENES = Path(demo_init).parent / "scenes" / "held-out"
FILE_NAMES = ["one.png", "写真/é 2.png", "sub/one.png", "sub/one.jpg", "sub/images/ONE.png"]
STEMS = ["one", "写真/é 2", "sub/one", "sub/one_2", "sub/images/ONE"]
EVERY_FORMAT = pytest.mark.parametrize("to", list(FORMATS))

Images = dict[str, dict[str, np.ndarray]]


def made(encoding: str = "rle") -> dict:
    """Five images with a ring and a ball of two parts that do not overlap; the last is empty."""
    ball = builders.box_mask(left=7, top=9, width=4, height=2) | builders.box_mask(left=25, top=3, width=5, height=8)
    found = (builders.segment("ring", builders.ring_mask()), builders.segment("мяч: a", ball))
    queries = ("unicorn", "ring", "мяч: a")
    return build_dataset(
        [
            builders.segmentation(*(found if number < 5 else ()), queries=queries, file_name=name, image_id=number)
            for number, name in enumerate(FILE_NAMES, start=1)
        ],
        encoding=encoding,
    )


def voc_names(dataset: dict) -> dict:
    """Return names without colons, which a labelmap.txt cannot hold."""
    renamed = copy.deepcopy(dataset)
    for category in renamed["categories"]:
        category["name"] = category["name"].replace(": ", " ")
    return renamed


def saved_images(dataset: dict, folder: Path) -> Path:
    for entry in dataset["images"]:
        path = folder / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(builders.pixels((entry["height"], entry["width"]), seed=entry["id"])).save(path)
    return folder


def unions(dataset: dict) -> Images:
    """Union of each category's masks in each image, by name in the output."""
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    images: Images = {}
    for entry, image in zip(dataset["images"], source_of(dataset).images, strict=True):
        of_names = images.setdefault(image.stem, {})
        for each in dataset["annotations"]:
            if each["image_id"] == entry["id"]:
                name = names[each["category_id"]]
                of_names[name] = of_names.get(name, False) | mask_of(each, (entry["height"], entry["width"]))
    return images


def assert_same(ours: Images, theirs: Images) -> None:
    assert set(ours) == set(theirs)
    for stem, of_names in ours.items():
        assert set(of_names) == set(theirs[stem]), stem
        for name, mask in of_names.items():
            np.testing.assert_array_equal(theirs[stem][name], mask, err_msg=f"{stem} {name}")


def sizes(dataset: dict) -> dict[str, tuple[int, int]]:
    return {image.stem: image.hw for image in source_of(dataset).images}


# --- readers -------------------------------------------------------------------------------------------------------


def read_yolo(folder: Path, hw: dict[str, tuple[int, int]]) -> Images:
    """Read labels as YOLO's loaders do: one polygon per line, corners relative to the image size."""
    names = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))["names"]
    images: Images = {}
    for file in (folder / "labels").rglob("*.txt"):
        stem = file.relative_to(folder / "labels").with_suffix("").as_posix()
        height, width = hw[stem]
        of_names = images.setdefault(stem, {})
        for line in file.read_text().splitlines():
            label, *shares = line.split()
            corners = np.array(shares, float).reshape(-1, 2)
            assert corners.min() >= 0
            assert corners.max() <= 1
            part = polygon.decode([(corners * (width, height)).ravel().tolist()], (height, width))
            of_names[names[int(label)]] = of_names.get(names[int(label)], False) | part
    return images


def read_labelme(folder: Path) -> Images:
    images: Images = {}
    for file in folder.rglob("*.json"):
        document = json.loads(file.read_text(encoding="utf-8"))
        of_names = images.setdefault(file.relative_to(folder).with_suffix("").as_posix(), {})
        for shape in document["shapes"]:
            corners = np.array(shape["points"]).ravel().tolist()
            part = polygon.decode([corners], (document["imageHeight"], document["imageWidth"]))
            of_names[shape["label"]] = of_names.get(shape["label"], False) | part
    return images


def read_voc(folder: Path) -> Images:
    lines = (folder / "labelmap.txt").read_text(encoding="utf-8").splitlines()[1:]
    names = [line.split(":")[0] for line in lines]
    images: Images = {}
    for stem in (folder / "ImageSets/Segmentation/train.txt").read_text(encoding="utf-8").splitlines():
        with PillowImage.open(folder / "SegmentationClass" / f"{stem}.png") as opened:
            assert opened.mode == "P"
            numbers = np.asarray(opened)
        images[stem] = {names[number]: numbers == number for number in np.unique(numbers) if number}
    return images


# --- formats -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_yolo(tmp_path, encoding):
    dataset = made(encoding)
    done = convert(
        dataset, "yolo-seg", tmp_path / "out", polygon_tolerance=0, images=saved_images(dataset, tmp_path / "images")
    )
    assert (done.images, done.annotations) == (5, 8)
    assert done.notes == (
        "8 of 8 masks have several parts or holes; each part becomes a line",
        "data.yaml names the same images for training and validation; divide them before you train, or the scores say "
        "nothing about new images",
    )
    stems = [*STEMS[:4], "sub/images_/ONE"]  # readers look for the last folder `images` of a path
    ours = dict(zip(stems, unions(dataset).values(), strict=True))
    assert_same(ours, read_yolo(tmp_path / "out", dict.fromkeys(stems, builders.HW)))
    assert (tmp_path / "out/labels/sub/images_/ONE.txt").read_bytes() == b""
    copied = (tmp_path / "out/images/sub/one_2.jpg").read_bytes()
    assert copied == (tmp_path / "images/sub/one.jpg").read_bytes()
    described = yaml.safe_load((tmp_path / "out/data.yaml").read_text(encoding="utf-8"))
    assert described == {"train": "images", "val": "images", "names": {0: "unicorn", 1: "ring", 2: "мяч: a"}}


def test_yolo_in_supervision(tmp_path):
    """supervision reads only one folder and draws polygons with their outline."""
    import supervision

    dataset = read_dataset(SCENES / "dataset.json")
    convert(dataset, "yolo-seg", tmp_path, images=SCENES, polygon_tolerance=0)
    opened = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml"), force_masks=True
    )
    assert len(opened) == 24
    ours = unions(dataset)
    for path, _, detections in opened:
        theirs: dict[str, np.ndarray] = {}
        for label, mask in zip(detections.class_id, detections.mask, strict=True):
            theirs[opened.classes[label]] = theirs.get(opened.classes[label], False) | mask
        assert set(theirs) == set(ours[Path(path).stem])
        for name, mask in ours[Path(path).stem].items():
            assert (mask <= theirs[name]).all()
            assert (theirs[name] <= builders.grown(mask)).all()


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_voc_in_pillow(tmp_path, encoding):
    dataset = voc_names(made(encoding))
    done = convert(dataset, "voc-png", tmp_path)
    assert done.notes == ()
    assert_same(unions(dataset), read_voc(tmp_path))
    assert not (tmp_path / "JPEGImages").exists()
    with PillowImage.open(tmp_path / "SegmentationObject/sub/one_2.png") as opened:
        things = np.asarray(opened)
        assert opened.getpalette() == palette().ravel().tolist()
    for number, each in enumerate((each for each in dataset["annotations"] if each["image_id"] == 4), start=1):
        np.testing.assert_array_equal(things == number, mask_of(each, builders.HW))


def test_palette_equals_vocs_palette():
    assert palette()[[0, 1, 2, 8, 15, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [64, 0, 0],
        [192, 128, 128],
        [224, 224, 192],
    ]


@pytest.mark.parametrize("which", ["made", "scenes"])
def test_voc_in_datumaro(tmp_path, which):
    from datumaro import AnnotationType, Dataset

    dataset = voc_names(made()) if which == "made" else read_dataset(SCENES / "dataset.json")
    images = saved_images(dataset, tmp_path / "images") if which == "made" else SCENES
    done = convert(dataset, "voc-png", tmp_path / "out", images=images)
    assert done.notes == ()
    opened = Dataset.import_from(str(tmp_path / "out"), "voc_segmentation")
    names = [label.name for label in opened.categories()[AnnotationType.label].items]
    assert names == ["background", *(category["name"] for category in dataset["categories"])]
    theirs: Images = {}
    masks = 0
    for item in opened:
        of_names = theirs.setdefault(item.id, {})
        assert item.media.size == sizes(dataset)[item.id]
        for each in item.annotations:
            masks += 1
            of_names[names[each.label]] = of_names.get(names[each.label], False) | each.image.astype(bool)
    assert masks == len(dataset["annotations"])
    assert_same(unions(dataset), theirs)


def test_voc_gives_overlapping_pixels_to_the_smaller_mask(tmp_path):
    large, small, buried = builders.box_mask(), builders.box_mask(width=3, height=3), builders.box_mask(width=3)
    found = [builders.segment(*each) for each in (("small", small), ("large", large), ("buried", buried & small))]
    done = convert(build_dataset([builders.segmentation(*found)]), "voc-png", tmp_path)
    assert done.annotations == 2
    assert done.notes == (
        "9 pixels belong to several masks; the smallest mask has them",
        "1 of 3 masks are completely covered by smaller ones and are lost",
    )
    painted = read_voc(tmp_path)["one"]
    np.testing.assert_array_equal(painted["buried"], small)
    np.testing.assert_array_equal(painted["large"], large & ~small)


@EVERY_FORMAT
def test_only_one_mask_at_a_time_is_decoded(tmp_path, monkeypatch, to):
    alive: weakref.WeakSet[Held] = weakref.WeakSet()
    most = 0

    class Held(np.ndarray):
        __hash__ = object.__hash__

    def decode(runs: rle.Rle) -> np.ndarray:
        nonlocal most
        mask = genuine(runs).view(Held)
        alive.add(mask)
        most = max(most, len(alive))
        return mask

    genuine = rle.decode
    monkeypatch.setattr("text2seg.coco.source.rle.decode", decode)
    data = voc_names(made())
    data["annotations"] = [{**data["annotations"][0], "id": number} for number in range(1, 30)]
    convert(data, to, tmp_path)
    assert 1 <= most <= 3  # one, the one before it until its name is bound anew, and a view of it


@pytest.mark.parametrize("name", ["a:b", "#1", " ring", "background"])
def test_class_names_that_a_labelmap_cannot_hold_are_refused(tmp_path, name):
    dataset = build_dataset([builders.segmentation(builders.segment(name))])
    with pytest.raises(OutputError, match=f"cannot hold the category {name!r}"):
        convert(dataset, "voc-png", tmp_path)


def test_more_classes_or_masks_than_palette_numbers_are_refused(tmp_path):
    many = [f"thing {number}" for number in range(255)]
    with pytest.raises(OutputError, match="255 categories"):
        convert(build_dataset([], queries=many), "voc-png", tmp_path)
    dataset = build_dataset([builders.segmentation(builders.segment())])
    dataset["annotations"] *= 255
    with pytest.raises(OutputError, match=r"one\.png has 255 masks"):
        convert(dataset, "voc-png", tmp_path / "more")


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_labelme(tmp_path, encoding):
    dataset = made(encoding)
    done = convert(
        dataset, "labelme", tmp_path / "out", polygon_tolerance=0, images=saved_images(dataset, tmp_path / "images")
    )
    assert done.notes == ()
    assert_same(unions(dataset), read_labelme(tmp_path / "out"))
    document = json.loads((tmp_path / "out/sub/one_2.json").read_text(encoding="utf-8"))
    assert set(document) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"}
    assert (document["imagePath"], document["imageData"]) == ("one_2.jpg", None)
    assert (document["imageHeight"], document["imageWidth"]) == builders.HW
    assert {shape["shape_type"] for shape in document["shapes"]} == {"polygon"}
    groups = [(shape["label"], shape["group_id"]) for shape in document["shapes"]]
    assert set(groups) == {("ring", 1), ("мяч: a", 2)}
    assert len(groups) == 4
    with PillowImage.open(tmp_path / "out/sub" / document["imagePath"]) as image:
        assert image.size == (document["imageWidth"], document["imageHeight"])


def test_labelme_in_supervision(tmp_path):
    """supervision joins the parts of a group, draws polygons with their outline and reads only one folder."""
    import supervision

    dataset = read_dataset(SCENES / "dataset.json")
    convert(dataset, "labelme", tmp_path, images=SCENES, polygon_tolerance=0)
    opened = supervision.DetectionDataset.from_labelme(str(tmp_path), str(tmp_path), force_masks=True)
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    assert len(opened) == 24
    for path, _, detections in opened:
        entry = next(each for each in dataset["images"] if Path(each["file_name"]).name == Path(path).name)
        own = [each for each in dataset["annotations"] if each["image_id"] == entry["id"]]
        assert [opened.classes[each] for each in detections.class_id] == [names[each["category_id"]] for each in own]
        for each, mask in zip(own, detections.mask, strict=True):
            mine = mask_of(each, mask.shape)
            assert (mine <= mask.astype(bool)).all()
            assert (mask.astype(bool) <= builders.grown(mine)).all()


def test_labelme_without_images_names_the_original_file(tmp_path):
    convert(made(), "labelme", tmp_path)
    assert json.loads((tmp_path / "sub/one_2.json").read_text())["imagePath"] == "one.jpg"


@EVERY_FORMAT
def test_bundled_scenes_convert_without_loss(tmp_path, to):
    dataset = read_dataset(SCENES / "dataset.json")
    done = convert(dataset, to, tmp_path, images=SCENES, polygon_tolerance=0)
    assert (done.images, done.annotations) == (24, 70)
    read = {
        "yolo-seg": lambda: read_yolo(tmp_path, sizes(dataset)),
        "voc-png": lambda: read_voc(tmp_path),
        "labelme": lambda: read_labelme(tmp_path),
    }[to]
    assert_same(unions(dataset), read())


# --- all formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", FORMATS.values(), ids=list(FORMATS))
def test_the_docs_list_every_format(each):
    docs = (Path(__file__).parents[1] / "docs" / "coco.md").read_text(encoding="utf-8")
    assert f"| `{each.name}` | {each.writes} | {each.loses} |" in docs


def test_every_mask_encoding_has_an_encoder():
    assert list(ENCODERS) == list(get_args(Encoding))


def test_output_names_are_unique_and_inside_the_folder():
    names = ["/data/a/one.png", "../data/a/One.jpg", "data/a/./b/one.png", "data/a/one.v1.png", "data/a/one"]
    entries = [{"id": number, "file_name": name, "width": 4, "height": 3} for number, name in enumerate(names)]
    source = source_of({"images": entries, "annotations": [], "categories": []})
    assert [image.stem for image in source.images] == ["one", "One_2", "b/one", "one.v1", "one_3"]


@EVERY_FORMAT
def test_folder_that_is_not_empty_is_refused(tmp_path, to):
    dataset = voc_names(made())
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        convert(dataset, to, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    convert(dataset, to, tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="is a file"):
        convert(dataset, to, tmp_path / "mine.txt", overwrite=True)


@EVERY_FORMAT
def test_conversion_is_deterministic(tmp_path, to):
    dataset = voc_names(made())
    for name in ("a", "b"):
        convert(dataset, to, tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*") if path.is_file()]
    assert files
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@EVERY_FORMAT
def test_images_of_another_size_are_refused(tmp_path, to):
    dataset = voc_names(made())
    images = saved_images(dataset, tmp_path / "images")
    PillowImage.new("RGB", (24, 32)).save(images / "one.png")
    with pytest.raises(ImageError, match=r"one\.png is 24 x 32 pixels, the dataset says 32 x 24"):
        convert(dataset, to, tmp_path / "out", images=images)
    (images / "one.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"one\.png is not an image"):
        convert(dataset, to, tmp_path / "out", images=images)
    with pytest.raises(ImageError, match="elsewhere, given as --images, is not an existing folder"):
        convert(dataset, to, tmp_path / "out", images=tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ImageError, match=r"one\.png"):
        convert(dataset, to, tmp_path / "out", images=tmp_path / "elsewhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["one.jpg", "one.tif", "one.png", "one.webp"])
def test_rotated_image_is_measured_upright(tmp_path, caplog, name):
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.fromarray(builders.pixels((32, 24))).save(tmp_path / name, exif=exif)
    dataset = build_dataset([builders.segmentation(builders.segment(), file_name=name)])
    with caplog.at_level(logging.WARNING):
        convert(dataset, "labelme", tmp_path / "out", images=tmp_path)
    assert f"{name} is rotated by its EXIF tag" in caplog.text


@pytest.mark.parametrize("tag", [0, 9, 99])
def test_unknown_exif_orientation_is_ignored(tmp_path, caplog, tag):
    exif = PillowImage.Exif()
    exif[0x0112] = tag
    PillowImage.fromarray(builders.pixels((24, 32))).save(tmp_path / "one.jpg", exif=exif)
    dataset = build_dataset([builders.segmentation(builders.segment(), file_name="one.jpg")])
    with caplog.at_level(logging.WARNING):
        convert(dataset, "labelme", tmp_path / "out", images=tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(("to", "suffix"), [("yolo-seg", ".txt"), ("voc-png", ".png"), ("labelme", ".json")])
def test_output_file_and_folder_of_one_name_are_refused_with_both_images(tmp_path, to, suffix):
    data = voc_names(made())
    data["images"][0]["file_name"], data["images"][1]["file_name"] = "one.jpg", f"one{suffix}/two.jpg"
    with pytest.raises(Text2SegError, match=rf"one\.jpg .* one\{suffix}/two\.jpg.*rename"):
        convert(data, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_error_messages_name_the_final_path(tmp_path, monkeypatch):
    def fail(source: object, output: Path) -> list[str]:
        raise OutputError(f"{output / 'labels' / 'one.txt'} cannot be written: no room") from OSError(28, "no room")

    monkeypatch.setitem(FORMATS, "yolo-seg", replace(FORMATS["yolo-seg"], write=fail))
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OutputError) as caught:
            convert(made(), "yolo-seg", folder)
        assert str(caught.value) == f"{folder / 'labels' / 'one.txt'} cannot be written: no room"
        assert isinstance(caught.value.__cause__, OSError)


def test_crowds_are_left_out_with_a_note(tmp_path):
    dataset = made()
    dataset["annotations"][0]["iscrowd"] = 1
    done = convert(dataset, "labelme", tmp_path)
    assert (done.annotations, done.notes) == (7, ("1 crowd annotations are left out",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda it: it["annotations"][0].update(image_id=99), "annotation 1: its image_id 99 is not among"),
        (lambda it: it["annotations"][0].update(category_id=99), "category_id 99"),
        (lambda it: it["annotations"][0].update(segmentation=[]), "annotation 1: its mask"),
        (lambda it: it["images"][0].pop("width"), "width"),
        (lambda it: it["images"][0].update(file_name=".."), "file name"),
        (lambda it: it["categories"].append("ring"), "no|not"),
    ],
)
def test_damaged_datasets_are_refused(tmp_path, damage, message):
    dataset = made()
    damage(dataset)
    with pytest.raises(Text2SegError, match=message):
        convert(dataset, "yolo-seg", tmp_path)


# --- what lies beyond the image ------------------------------------------------------------------------------------


def foreign(*segmentations: list[list[float]], hw: tuple[int, int] = (24, 32)) -> dict:
    return {
        "images": [{"id": 1, "file_name": "one.png", "width": hw[1], "height": hw[0]}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "segmentation": each, "iscrowd": 0}
            for number, each in enumerate(segmentations, start=1)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def test_yolo_without_images_says_that_its_folder_of_images_is_missing(tmp_path):
    dataset = made()
    images = saved_images(dataset, tmp_path / "images")
    note = "data.yaml names the folder images/, which is missing"
    assert note in " ".join(convert(dataset, "yolo-seg", tmp_path / "a").notes)
    assert note not in " ".join(convert(dataset, "yolo-seg", tmp_path / "b", images=images).notes)


OVER = [[-8.0, 6.0, 16.0, 6.0, 16.0, 30.0, -8.0, 30.0]]
INSIDE = [[4.5, 2.25, 9.0, 2.25, 9.0, 7.0]]
OUTSIDE = [[40.0, 2.0, 50.0, 2.0, 50.0, 9.0]]
FLAT = [[1.0, 1.0, 5.0, 5.0, 9.0, 9.0]]


@EVERY_FORMAT
def test_masks_are_clipped_to_the_image_with_a_note(tmp_path, to):
    done = convert(foreign(OVER, INSIDE, OUTSIDE, FLAT), to, tmp_path)
    assert (done.images, done.annotations) == (1, 2)
    assert done.notes[:2] == (
        "1 mask reaches beyond the image; the part outside, 50.0% of the area, is cut off: annotation 1 of one.png",
        "2 masks have no area in the image; left out: annotation 3 of one.png, annotation 4 of one.png",
    )
    if to == "yolo-seg":
        lines = (tmp_path / "labels/one.txt").read_text().splitlines()
        assert lines[0] == "0 0 1 0 0.25 0.5 0.25 0.5 1"
        assert len(lines) == 2
    elif to == "labelme":
        shapes = json.loads((tmp_path / "one.json").read_text())["shapes"]
        assert shapes[0]["points"] == [[0, 24], [0, 6], [16, 6], [16, 24]]
        assert shapes[1]["points"] == [[4.5, 2.25], [9, 2.25], [9, 7]]
        assert len(shapes) == 2
    else:
        assert read_voc(tmp_path)["one"]["thing"][6:24, :16].all()


@EVERY_FORMAT
def test_empty_masks_are_left_out_with_a_note(tmp_path, to):
    dataset = foreign(INSIDE)
    dataset["annotations"][0]["segmentation"] = {"size": [24, 32], "counts": [24 * 32]}
    done = convert(dataset, to, tmp_path)
    assert done.annotations == 0
    assert done.notes[:1] == ("1 mask has no area in the image; left out: annotation 1 of one.png",)


def simple_polygons(count: int) -> list[np.ndarray]:
    """Concave polygons that do not cross themselves: around a centre, or with a base and integer corners, so that they
    have corners on the border."""
    rng = np.random.default_rng(3)
    found = []
    for number in range(count):
        if number % 2:
            angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 30))))
            around = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(2, 40, (len(angles), 1))
            corners = around + np.array([rng.uniform(-10, 42), rng.uniform(-10, 34)])
        else:
            heights = rng.integers(-8, 20, int(rng.integers(3, 20)))
            along = np.arange(len(heights)) * 2 - 4
            corners = np.stack([[along[0], *along, along[-1]], [32, *heights, 32]], 1).astype(float)
            corners = corners[:, ::-1] if number % 4 else corners
        found.append(corners[:: 1 if number % 3 else -1])
    return found


def test_clipped_polygons_cover_the_same_pixels():
    """By the even-odd rule, points of a fine grid are in the same number of polygons before and after."""
    y, x = np.mgrid[0.037:24:0.29, 0.041:32:0.31]

    def covered(corners: np.ndarray) -> np.ndarray:
        odd = np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if ay != by:
                odd ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        return odd

    for given in simple_polygons(300):
        kept = [np.array(part).reshape(-1, 2) for part in polygon.clip([given.ravel().tolist()], (24, 32))]
        for part in kept:
            assert (part >= 0).all()
            assert (part <= (32, 24)).all()
        np.testing.assert_array_equal(sum((covered(part).astype(int) for part in kept), 0 * x), covered(given))


def test_comb_over_the_border_is_clipped_into_its_teeth():
    comb = [-4, 0, 8, 0, 8, 4, -2, 4, -2, 8, 8, 8, 8, 12, -4, 12]
    parts = polygon.clip([[float(each) for each in comb]], (24, 32))
    assert sorted(parts) == [[0, 0, 8, 0, 8, 4, 0, 4], [0, 8, 8, 8, 8, 12, 0, 12]]


def test_polygon_that_crosses_itself_is_clipped_as_pixels():
    bow = [[-4.0, 2.0, 12.0, 18.0, 12.0, 2.0, -4.0, 18.0]]
    parts = polygon.clip(bow, (24, 32))
    np.testing.assert_array_equal(polygon.decode(parts, (24, 32)), polygon.decode(bow, (24, 32)))
    assert min(map(min, parts)) >= 0


def test_polygons_inside_the_image_are_unchanged():
    given = [[0.0, 0.0, 32.0, 0.0, 32.0, 24.0, 0.0, 24.0, 0.0, 0.0], [4, 4, 9, 4, 9, 9]]
    assert polygon.clip(given, (24, 32)) == given


def test_unknown_format_is_refused(tmp_path):
    with pytest.raises(OutputError, match="no format 'coco'; there are yolo-seg, voc-png, labelme"):
        convert(made(), "coco", tmp_path)


# --- command line --------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    path = write_dataset(made(), tmp_path / "dataset.json")
    images = saved_images(made(), tmp_path / "images")
    command = ["convert", str(path), "--to", "yolo-seg", "--output", str(tmp_path / "out"), "--images", str(images)]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "8 masks of 5 images as yolo-seg" in told
    assert "note: 8 of 8 masks" in told
    assert main(command) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_convert_does_not_import_torch(tmp_path):
    path = write_dataset(made(), tmp_path / "dataset.json")
    command = ["convert", str(path), "--to", "labelme", "--output", str(tmp_path / "out")]
    code = f"import sys; from text2seg.cli import main; sys.exit(main({command!r}) or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert len(list((tmp_path / "out").rglob("*.json"))) == 5
