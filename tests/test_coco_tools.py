"""Common tools open a COCO file of the demo model: counts, names and pixels agree."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import builders
import numpy as np
import pytest
from PIL import Image as PillowImage

from text2seg.coco.dataset import build_dataset, read_dataset, results_of, write_dataset
from text2seg.coco.rle import mask_of
from text2seg.demo import __file__ as demo_init
from text2seg.io.images import load_image
from text2seg.records import Segmentation

SCENES = Path(demo_init).parent / "scenes" / "new-scenes"
IMAGES = {1: "scene_0001.jpg", 2: "写真/é 2.jpg", 3: "sub/scene_0005.jpg", 4: "sub/nothing.png"}


@dataclass(frozen=True)
class Found:
    """Files by encoding, the folder of the images, and the segmentations of the files."""

    files: dict[str, Path]
    images: Path
    segmentations: list[Segmentation]

    @property
    def masks(self) -> dict[int, list[np.ndarray]]:
        """Masks by image id, in the order of the annotations."""
        return {each.image.image_id: [segment.mask for segment in each.segments] for each in self.segmentations}

    @property
    def names(self) -> dict[int, list[str]]:
        return {each.image.image_id: [segment.query for segment in each.segments] for each in self.segmentations}


@pytest.fixture(scope="module")
def found(demo, tmp_path_factory) -> Found:
    """Three scenes with results of the demo model, one with an added ring, and an empty image."""
    folder = tmp_path_factory.mktemp("found")
    images = folder / "images"
    truth = read_dataset(SCENES / "dataset.json")
    names = {category["id"]: category["name"] for category in truth["categories"]}
    segmentations = []
    for number, scene in ((1, 1), (2, 4), (3, 5)):
        entry = truth["images"][scene - 1]
        asked = [names[each["category_id"]] for each in truth["annotations"] if each["image_id"] == entry["id"]]
        image = load_image(SCENES / entry["file_name"], image_id=number, file_name=IMAGES[number])
        segmentations.append(demo.segment(image, tuple(dict.fromkeys(asked))))
    first = segmentations[0]
    ring = builders.segment("ring", builders.ring_mask(first.image.hw), sam_score=0.5)
    segmentations[0] = dataclasses.replace(first, segments=(*first.segments, ring))
    segmentations.append(builders.segmentation(hw=(60, 90), file_name=IMAGES[4], image_id=4))
    for each in segmentations:
        path = images / each.image.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        PillowImage.fromarray(each.image.pixels).save(path)
    queries = list(dict.fromkeys(segment.query for each in segmentations for segment in each.segments))
    files = {
        encoding: write_dataset(
            build_dataset(
                segmentations,
                queries=queries,
                encoding=encoding,
                polygon_tolerance=0,
                provenance=demo.provenance(),
            ),
            folder / f"{encoding}.json",
        )
        for encoding in ("rle", "polygon")
    }
    return Found(files, images, segmentations)


ENCODINGS = pytest.mark.parametrize("encoding", ["rle", "polygon"])


def agree(ours: list[np.ndarray], theirs: list[np.ndarray], same: Callable[[np.ndarray, np.ndarray], bool]) -> None:
    assert len(ours) == len(theirs)
    assert all(same(one, np.asarray(other, bool)) for one, other in zip(ours, theirs, strict=True))


def test_test_file_has_enough_annotations(found):
    """It has several masks in an image, a mask with a hole, an image without masks and a non-ASCII name."""
    assert len(found.masks[1]) >= 3
    assert found.masks[4] == []
    assert found.names[1][-1] == "ring"
    assert not IMAGES[2].isascii()
    rings = [
        each for each in read_dataset(found.files["polygon"])["annotations"] if each["attributes"]["query"] == "ring"
    ]
    assert len(rings[0]["segmentation"]) > 1


@ENCODINGS
def test_pycocotools(found, encoding, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(found.files[encoding]))
    assert {number: entry["file_name"] for number, entry in truth.imgs.items()} == IMAGES
    for number in IMAGES:
        annotations = truth.loadAnns(truth.getAnnIds(imgIds=number))
        agree(found.masks[number], [truth.annToMask(each) for each in annotations], np.array_equal)
        assert [truth.cats[each["category_id"]]["name"] for each in annotations] == found.names[number]
    evaluation = COCOeval(truth, truth.loadRes(results_of(truth.dataset)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[[0, 8]] == pytest.approx([1, 1], rel=1e-12)  # AP and AR, means of ones
    capsys.readouterr()


@ENCODINGS
def test_torchvision(found, encoding, capsys):
    from torchvision.datasets import CocoDetection

    opened = CocoDetection(found.images, str(found.files[encoding]))
    assert opened.ids == list(IMAGES)
    for number, (image, entries) in zip(IMAGES, opened, strict=True):
        assert image.size == found.segmentations[number - 1].image.hw[::-1]
        agree(found.masks[number], [opened.coco.annToMask(each) for each in entries], np.array_equal)
    capsys.readouterr()


@ENCODINGS
def test_loaders_in_the_manner_of_detectron(found, encoding, capsys):
    """Such loaders renumber the categories, refuse ids that occur twice, take boxes as XYWH, and either decode an RLE
    of the size of the image or want polygons of three corners or more."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    coco = COCO(str(found.files[encoding]))
    contiguous = {number: place for place, number in enumerate(sorted(coco.getCatIds()))}
    names = [each["name"] for each in coco.loadCats(sorted(coco.getCatIds()))]
    ids = [each["id"] for number in IMAGES for each in coco.imgToAnns[number]]
    assert len(set(ids)) == len(ids) > 0
    for number in IMAGES:
        height, width = coco.imgs[number]["height"], coco.imgs[number]["width"]
        annotations = coco.imgToAnns[number]
        assert all(each["image_id"] == number and each.get("ignore", 0) == 0 for each in annotations)
        assert [names[contiguous[each["category_id"]]] for each in annotations] == found.names[number]
        masks = []
        for each in annotations:
            if encoding == "rle":
                assert each["segmentation"]["size"] == [height, width]
                masks.append(coco_mask.decode(each["segmentation"]))
            else:
                assert all(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in each["segmentation"])
                masks.append(
                    coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(each["segmentation"], height, width)))
                )
            x, y, columns, rows = (round(side) for side in each["bbox"])
            assert masks[-1][y : y + rows, x : x + columns].sum() == masks[-1].sum() == each["area"]
        agree(found.masks[number], masks, np.array_equal)
    capsys.readouterr()


@ENCODINGS
def test_faster_coco_eval(found, encoding, capsys):
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(str(found.files[encoding]))
    evaluation = COCOeval_faster(truth, truth.loadRes(results_of(truth.dataset)), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0
    capsys.readouterr()


@ENCODINGS
def test_supervision(found, encoding):
    """RLE is exact. supervision draws polygons with their outline, which adds the next pixel to the right and
    below: no more than that may differ."""
    import supervision

    opened = supervision.DetectionDataset.from_coco(
        str(found.images), str(found.files[encoding]), force_masks=True, show_progress=False
    )
    assert len(opened) == len(IMAGES)
    for number, name in IMAGES.items():
        (_, pixels, detections) = next(item for item in opened if Path(item[0]) == found.images / name)
        assert pixels.shape[:2] == found.segmentations[number - 1].image.hw
        assert [opened.classes[each] for each in detections.class_id] == found.names[number]
        masks = [] if detections.mask is None else list(detections.mask)
        if encoding == "rle":
            agree(found.masks[number], masks, np.array_equal)
        else:
            agree(
                found.masks[number],
                masks,
                lambda own, its: bool((own <= its).all() and (its <= builders.grown(own)).all()),
            )


@ENCODINGS
def test_datumaro(found, encoding, tmp_path):
    from datumaro import AnnotationType, Dataset

    (tmp_path / "annotations").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations" / "instances_default.json").write_bytes(found.files[encoding].read_bytes())
    (tmp_path / "images" / "default").symlink_to(found.images, target_is_directory=True)
    opened = Dataset.import_from(str(tmp_path), "coco_instances")
    names = [label.name for label in opened.categories()[AnnotationType.label].items]
    assert len(opened) == len(IMAGES)
    for number, file_name in IMAGES.items():
        item = opened.get(str(Path(file_name).with_suffix("")), "default")
        assert item.media.size == found.segmentations[number - 1].image.hw
        masks, labels = datumaro_masks(item)
        assert [names[each] for each in labels] == found.names[number]
        agree(found.masks[number], masks, np.array_equal)


def datumaro_masks(item) -> tuple[list[np.ndarray], list[int]]:
    """Return masks and labels of an item, with the parts of a group joined."""
    from datumaro import Mask, Polygon
    from pycocotools import mask as coco_mask

    groups: dict[int, np.ndarray] = {}
    labels: dict[int, int] = {}
    for each in item.annotations:
        if isinstance(each, Polygon):
            mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(each.points)], *item.media.size)))
        elif isinstance(each, Mask):
            mask = each.image
        else:
            continue
        groups[each.group] = groups.get(each.group, False) | mask.astype(bool)
        labels[each.group] = each.label
    return [groups[number] for number in sorted(groups)], [labels[number] for number in sorted(groups)]


def test_label_studio_imports_polygons(found, tmp_path, capsys):
    from label_studio_sdk.converter.imports.coco import convert_coco_to_ls

    out = tmp_path / "tasks.json"
    convert_coco_to_ls(str(found.files["polygon"]), str(out), image_root_url="/data")
    tasks = json.loads(out.read_text())
    dataset = read_dataset(found.files["polygon"])
    assert [unquote(task["data"]["image"]) for task in tasks] == [f"/data/{name}" for name in IMAGES.values()]
    for (number, _), task in zip(IMAGES.items(), tasks, strict=True):
        height, width = found.segmentations[number - 1].image.hw
        regions = [each for each in task["annotations"][0]["result"] if each["type"] == "polygonlabels"]
        own = [
            (each["attributes"]["query"], corners)
            for each in dataset["annotations"]
            if each["image_id"] == number
            for corners in each["segmentation"]
        ]
        assert [region["value"]["polygonlabels"] for region in regions] == [[query] for query, _ in own]
        for region, (_, corners) in zip(regions, own, strict=True):
            points = np.array(region["value"]["points"]) * (width, height) / 100
            np.testing.assert_allclose(points, np.array(corners).reshape(-1, 2), atol=1e-6)
    labels = (tmp_path / "tasks.label_config.xml").read_text()
    assert all(f'value="{category["name"]}"' in labels for category in dataset["categories"])
    capsys.readouterr()


@ENCODINGS
def test_text2seg_reader(found, encoding):
    dataset = read_dataset(found.files[encoding])
    for number in IMAGES:
        hw = found.segmentations[number - 1].image.hw
        own = [mask_of(each, hw) for each in dataset["annotations"] if each["image_id"] == number]
        agree(found.masks[number], own, np.array_equal)
