"""Datasets written piece by piece have the same bytes as those written at once, with constant memory."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import builders
import pytest

from text2seg.coco.dataset import (
    annotations_of,
    build_dataset,
    category_entries,
    dataset_info,
    image_entry,
    numbered,
    read_dataset,
    write_dataset,
    write_json,
    write_stream,
)
from text2seg.errors import OutputError


def segmentations() -> Iterator:
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    for number, name in enumerate(("a.png", "写真/é.png", odd, "empty.png"), start=1):
        found = [builders.segment("ring", builders.ring_mask()), builders.segment("кот")] if name != "empty.png" else []
        yield builders.segmentation(*found, queries=("ring", "кот"), file_name=name, image_id=number)


@pytest.mark.parametrize("encoding", ["rle", "polygon"])
def test_stream_writes_the_same_bytes_as_write_dataset(tmp_path, encoding):
    categories = {"ring": 1, "кот": 2}
    provenance = {"version": "1"}

    def annotations() -> Iterator[dict]:
        number = 1
        for each in segmentations():
            found = annotations_of(each, categories, encoding=encoding, provenance=provenance)
            yield from numbered(found, first=number, image_id=each.image.image_id)
            number += len(found)

    streamed = write_stream(
        tmp_path / "new" / "streamed.json",
        info=dataset_info({"split": "test", **({"polygon_tolerance": 1.0} if encoding == "polygon" else {})}),
        categories=iter(category_entries(categories)),
        images=(image_entry(each.image) for each in segmentations()),
        annotations=annotations(),
    )
    whole = build_dataset(segmentations(), encoding=encoding, provenance=provenance, info={"split": "test"})
    assert streamed.read_bytes() == write_dataset(whole, tmp_path / "whole.json").read_bytes()
    assert read_dataset(streamed) == whole
    assert len(whole["annotations"]) == 6


def test_stream_without_images(tmp_path):
    path = write_stream(tmp_path / "a.json", info={}, categories=[], images=[], annotations=[])
    empty = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": []}
    assert path.read_bytes() == write_dataset(empty, tmp_path / "b.json").read_bytes()
    assert write_json(tmp_path / "c.json", {}).read_bytes() == b"{}\n"


def test_stream_memory_does_not_grow_with_the_file(tmp_path):
    def most_for(count: int) -> int:
        entries = ({"id": number, "segmentation": [[number] * 60]} for number in range(count))
        images = ({"id": number, "file_name": f"{number}.png"} for number in range(count))
        tracemalloc.start()
        try:
            path = write_stream(tmp_path / "a.json", info={}, categories=[], images=images, annotations=entries)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert path.stat().st_size > 100 * count
        return most

    few = most_for(100)
    assert most_for(5000) < few + 200_000


def test_categories_may_depend_on_the_annotations(tmp_path):
    seen: dict[str, int] = {}

    def annotations() -> Iterator[dict]:
        for number, name in enumerate(("b", "a", "b"), start=1):
            yield {"id": number, "image_id": 1, "category_id": seen.setdefault(name, len(seen) + 1)}

    path = write_stream(
        tmp_path / "a.json",
        info={},
        images=[],
        annotations=annotations(),
        categories=(each for seen_now in [seen] for each in category_entries(seen_now)),
    )
    assert [each["name"] for each in read_dataset(path)["categories"]] == ["b", "a"]


@pytest.mark.parametrize("bad", [{"score": float("nan")}, {"path": Path("a")}])
def test_value_that_is_not_json_keeps_the_old_file(tmp_path, bad):
    path = write_dataset(build_dataset([]), tmp_path / "found.json")
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"found\.json: the dataset is not JSON"):
        write_stream(path, info={}, categories=[], images=[], annotations=[{"id": 1}, bad])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["found.json"]


def test_failing_generator_keeps_the_old_file(tmp_path):
    path = write_dataset(build_dataset([]), tmp_path / "found.json")
    before = path.read_bytes()

    def annotations() -> Iterator[dict]:
        yield {"id": 1}
        raise ValueError("a fault of the caller")

    with pytest.raises(ValueError, match="a fault of the caller"):
        write_stream(path, info={}, categories=[], images=[], annotations=annotations())
    assert path.read_bytes() == before
