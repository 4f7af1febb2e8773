"""Merging COCO files."""

from __future__ import annotations

import copy
import json

import builders
import numpy as np
import pytest
from PIL import Image as PillowImage

from text2seg.cli import main
from text2seg.coco.dataset import build_dataset, merge, merge_files, read_dataset, write_dataset
from text2seg.coco.provenance import provenance_of
from text2seg.errors import DatasetError

NAMES = ("ball", "ring")


def part(*image_ids: int) -> dict:
    found = [
        builders.segmentation(
            builders.segment("ball"), builders.segment("ring"), image_id=number, file_name=f"{number}.png"
        )
        for number in image_ids
    ]
    return build_dataset(found, queries=NAMES)


def test_merged_shards_equal_the_whole_in_any_order():
    whole = part(1, 2, 3, 4)
    for parts in ([part(1, 3), part(2, 4)], [part(4), part(2, 3), part(1)]):
        before = copy.deepcopy(parts)
        assert merge(parts, names=["a", "b", "c"][: len(parts)]) == whole
        assert parts == before


def test_shared_images_and_different_categories_are_refused():
    with pytest.raises(DatasetError, match=r"image 2 is in a\.json and in b\.json"):
        merge([part(1, 2), part(2, 3)], names=["a.json", "b.json"])
    other = part(2)
    other["categories"][0]["id"] = 7
    with pytest.raises(DatasetError, match=r"b\.json has other categories than a\.json"):
        merge([part(1), other], names=["a.json", "b.json"])


def test_failures_of_all_files_are_kept():
    parts = [part(1), part(2)]
    parts[0]["info"]["failures"] = [{"file_name": "y.png"}]
    parts[1]["info"]["failures"] = [{"file_name": "x.png"}]
    merged = merge(parts, names=["a", "b"])
    assert [failure["file_name"] for failure in merged["info"]["failures"]] == ["x.png", "y.png"]


def test_annotations_keep_the_provenance_of_their_own_file():
    parts = [part(1), part(2), part(3)]
    for each, version in zip(parts, ("1", "2", "1"), strict=True):
        each["info"]["provenance"] = {"text2seg": version}
    parts[1]["annotations"][0]["attributes"]["provenance"] = {"text2seg": "0"}
    merged = merge(parts, names=["a", "b", "c"])
    made_by = [provenance_of(each, merged)["text2seg"] for each in merged["annotations"]]
    assert made_by == ["1", "1", "0", "2", "1", "1"]
    assert "provenance" not in merged["annotations"][0]["attributes"]


def test_the_command(tmp_path, capsys):
    for name, ids in (("a", (1, 3)), ("b", (2,))):
        write_dataset(part(*ids), tmp_path / f"{name}.json")
    command = ["merge", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output", str(tmp_path / "all.json")]
    assert main(command) == 0
    assert read_dataset(tmp_path / "all.json") == json.loads(json.dumps(part(1, 2, 3)))
    assert main(command) == 1
    assert "already exists" in capsys.readouterr().err


def test_the_command_names_missing_shards(tmp_path, capsys):
    files = []
    for number in (1, 2, 3):
        dataset = part(number)
        dataset["info"]["shards"] = [f"{number}/3"]
        files.append(str(tmp_path / f"part{number}.json"))
        write_dataset(dataset, files[-1])
    some, whole = str(tmp_path / "some.json"), str(tmp_path / "whole.json")
    assert main(["merge", files[0], files[2], "--output", some]) == 3
    assert "lacks the images of shard 2/3;" in capsys.readouterr().err
    assert read_dataset(some)["info"]["shards"] == ["1/3", "3/3"]
    assert main(["merge", some, files[1], "--output", whole]) == 0
    assert not capsys.readouterr().err
    assert "shards" not in read_dataset(whole)["info"]
    assert main(["merge", files[1], "--output", some, "--overwrite"]) == 3
    assert "lacks the images of shards 1/3, 3/3;" in capsys.readouterr().err


@pytest.mark.parametrize("recorded", ["1/3", [None, "x", "4/3", "0/2", "1/99999999999"], {"1/3": 1}])
def test_shards_that_cannot_be_read_are_ignored(recorded):
    parts = [part(1), part(2)]
    parts[0]["info"]["shards"] = recorded
    assert "shards" not in merge(parts, names=["a", "b"])["info"]


def test_output_must_not_be_an_input_or_an_image(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_dataset(part(1), "one.json")
    (tmp_path / "things.yaml").write_text("categories: [ball]")
    for image in ("1.png", "2.png"):
        PillowImage.fromarray(np.full((24, 32, 3), 200, np.uint8)).save(image)
    (tmp_path / "linked.json").symlink_to("one.json")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for command in (
        "merge one.json --output one.json",
        "merge one.json --output ./linked.json",
        "merge one.json --output 1.png",
        "report one.json --output one.json",
        "report one.json --output 1.png",
        "evaluate one.json one.json --json linked.json",
        "evaluate one.json one.json --report 1.png",
        "label . --query sheep --output 1.png",
        "label . --query sheep --output one.json --categories-from linked.json",
        "label . --ontology things.yaml --output things.yaml",
        "tune . --ontology things.yaml --plot 1.png",
        "benchmark coco --images . --annotations one.json --predictions one.json",
    ):
        assert main([*command.split(), "--overwrite"]), command
        said = capsys.readouterr().err
        assert "not overwritten" in said, (command, said)
    write_dataset(part(1), tmp_path / "shapes" / "1.json")
    assert main(["convert", "shapes/1.json", "--to", "labelme", "--output", "shapes", "--overwrite"])
    assert "is an input of this command" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
    assert main(["merge", "one.json", "--output", "new.json"]) == 0
    assert main(["merge", "one.json", "--output", "new.json", "--overwrite"]) == 0


def test_shared_file_names_are_refused_only_between_files(tmp_path):
    twins = part(1, 2, 3)
    for image, name in zip(twins["images"], ("\u00e9.png", "e\u0301.png", "\u00e9.png"), strict=True):
        image["file_name"] = name
    assert merge([twins, part(4)], names=["a.json", "b.json"])["images"][:3] == twins["images"]
    other = part(4)
    other["images"][0]["file_name"] = "./e\u0301.png"
    with pytest.raises(DatasetError, match=r"is in a\.json and in b\.json"):
        merge([twins, other], names=["a.json", "b.json"])
    twins["images"][1]["id"] = 1
    with pytest.raises(DatasetError, match=r"^a\.json: two of the images have the id 1; give each its own$"):
        merge([twins], names=["a.json"])


def test_the_merged_file_names_the_folder_of_the_images_from_its_own_place(tmp_path):
    def written(name, number, folder):
        dataset = part(number)
        dataset["info"]["folder"] = folder
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_dataset(dataset, tmp_path / name)
        return tmp_path / name

    paths = [written("a/1.json", 1, "../photos"), written("2.json", 2, "photos")]
    merged, _ = merge_files(paths, tmp_path / "b" / "merged.json")
    assert merged["info"]["folder"] == "../photos"
    merged, _ = merge_files(paths, tmp_path / "merged.json")
    assert merged["info"]["folder"] == "photos"
    merged, _ = merge_files([paths[0], written("3.json", 3, "others")], tmp_path / "merged.json")
    assert "folder" not in merged["info"]
