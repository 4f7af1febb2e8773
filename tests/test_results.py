"""Results in Python: shown in a notebook, plotted, saved, passed to other packages; and the notebook of the docs."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import builders
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from text2seg.coco.dataset import read_dataset, segment_score
from text2seg.coco.rle import mask_of
from text2seg.errors import OutputError, SettingsError
from text2seg.records import Segmentation

ROOT = Path(__file__).parents[1]


@pytest.fixture
def result() -> Segmentation:
    box = builders.box_mask()
    return builders.segmentation(
        builders.segment("<b>ball</b>", box),
        builders.segment("ring", builders.ring_mask()),
        queries=("<b>ball</b>", "ring", "$a_b$"),
    )


def shown(result: Segmentation) -> tuple[str, Image.Image]:
    page = result._repr_html_()
    data = re.search(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert data
    return page, Image.open(io.BytesIO(base64.b64decode(data[1])))


def test_a_notebook_shows_image_and_table(result):
    page, image = shown(result)
    assert image.size == result.image.hw[::-1]
    assert page.count("<tr>") == 4  # the heading, two segments and a query that was not found
    assert "&lt;b&gt;ball&lt;/b&gt;" in page
    assert "<b>ball" not in page
    assert "not found" in page


def test_a_notebook_shows_large_images_smaller():
    _, image = shown(builders.segmentation(queries=("ball",), hw=(1000, 2000)))
    assert image.size == (800, 400)


def test_a_notebook_shows_the_mask_of_a_segment(result):
    (segment,) = result.of("ring")
    shown = np.asarray(Image.open(io.BytesIO(segment._repr_png_())))
    assert np.array_equal(shown == 255, segment.mask)


def test_plot_draws_the_overlay_and_names_each_query(result):
    figure = Figure()
    axes = result.plot(figure.subplots())
    assert axes.images[0].get_array().shape == (*result.image.hw, 3)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{query} {result.verdict(query)}" for query in result.maps.queries]
    figure.savefig(io.BytesIO())  # "$a_b$" is not read as mathematics


def test_a_saved_plot_has_the_whole_legend():
    result = builders.segmentation(queries=[f"thing {number}" for number in range(9)], hw=(360, 270))
    axes = result.plot()
    figure = axes.figure
    figure.canvas.draw()
    legend, page = axes.get_legend().get_window_extent(), figure.bbox
    assert page.x0 <= legend.x0 < legend.x1 <= page.x1
    assert page.y0 <= legend.y0 < legend.y1 <= page.y1
    plt.close(figure)


def test_to_coco_has_masks_and_provenance(result):
    dataset = result.to_coco(provenance={"clip": "mine"})
    assert [category["name"] for category in dataset["categories"]] == list(result.maps.queries)
    for annotation, segment in zip(dataset["annotations"], result.segments, strict=True):
        assert np.array_equal(mask_of(annotation, result.image.hw), segment.mask)
        assert annotation["attributes"]["provenance"] == {"clip": "mine"}
    polygons = result.to_coco(encoding="polygon")["annotations"]
    assert all(isinstance(annotation["segmentation"], list) for annotation in polygons)


def test_to_supervision_has_masks_boxes_and_scores(result):
    detections = result.to_supervision()
    assert np.array_equal(detections.mask, [segment.mask for segment in result.segments])
    assert list(detections["class_name"]) == ["<b>ball</b>", "ring"]
    assert detections.class_id.tolist() == [0, 1]
    assert np.allclose(detections.confidence, [segment_score(segment, result) for segment in result.segments])
    for (left, top, right, bottom), mask in zip(detections.xyxy.astype(int), detections.mask, strict=True):
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert all(edge.any() for edge in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))
    assert len(builders.segmentation(queries=("ball",)).to_supervision()) == 0


def test_without_supervision_the_error_says_what_to_install(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(SettingsError, match=r"pip install .text2seg\[supervision\]"):
        result.to_supervision()


def test_save_writes_image_files_and_a_coco_file(result, tmp_path):
    folder = tmp_path / "new"
    written = result.save(folder, ("overlay", "masks"), provenance={"clip": "mine"})
    names = {path.relative_to(folder).as_posix() for path in written}
    assert names == {"one_coco.json", "one_overlay.png", "masks/one_b-ball-b_1.png", "masks/one_ring_1.png"}
    dataset = read_dataset(folder / "one_coco.json")
    assert np.array_equal(mask_of(dataset["annotations"][1], result.image.hw), result.segments[1].mask)
    saved = np.asarray(Image.open(folder / "masks" / "one_ring_1.png"))
    assert np.array_equal(saved == 255, result.segments[1].mask)
    assert result.save(folder, ("overlay", "masks"), provenance={"clip": "mine"}) == written  # its own files


def test_save_keeps_files_of_others(result, tmp_path):
    (tmp_path / "one_overlay.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="was not written by text2seg"):
            result.save(tmp_path, ("overlay",), overwrite=overwrite)
    assert (tmp_path / "one_overlay.png").read_bytes() == b"mine"


def test_save_writes_nothing_if_one_file_cannot_be_written(result, tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "one_ring_1.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"one_ring_1\.png was not written by text2seg"):
        result.save(tmp_path, ("overlay", "masks"))
    assert [path.name for path in tmp_path.rglob("*.*")] == ["one_ring_1.png"]


def test_save_replaces_the_whole_earlier_result_of_its_image_and_nothing_else(result, tmp_path):
    other = Segmentation(builders.image(file_name="one_b.png"), result.segments, result.maps)
    kept = other.save(tmp_path, ("overlay", "masks"))
    result.save(tmp_path, ("overlay", "masks"))
    (tmp_path / "masks" / "mine.png").write_bytes(b"mine")
    changed = replace(result, segments=result.segments[:1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("one_*")}
    with pytest.raises(OutputError, match=r"one_coco\.json has another result of this image.*overwrite=True"):
        changed.save(tmp_path, ("masks",))
    assert {path: path.read_bytes() for path in tmp_path.rglob("one_*")} == before
    written = changed.save(tmp_path, ("masks",), overwrite=True)
    found = {path for path in tmp_path.rglob("*.*") if path.is_file() and not path.name.startswith(".")}
    assert found == {*kept, *written, tmp_path / "masks" / "mine.png"}
    assert {path.name for path in written} == {"one_coco.json", "one_b-ball-b_1.png"}


def test_save_adds_files_of_other_kinds_to_the_same_result(result, tmp_path):
    first = result.save(tmp_path, ("overlay",))
    again = result.save(tmp_path, ("masks",))
    assert {path.name for path in again} == {"one_coco.json", "one_b-ball-b_1.png", "one_ring_1.png"}
    assert all(path.exists() for path in first)


def test_save_refuses_to_replace_the_result_of_another_image_with_the_same_name(result, tmp_path):
    first = result.save(tmp_path, ("masks",))
    before = [path.read_bytes() for path in first]
    pixels = np.ascontiguousarray(result.image.pixels[::-1])
    for other in (replace(result.image, file_name="one.jpg"), replace(result.image, pixels=pixels)):
        namesake = Segmentation(other, result.segments[:1], result.maps)
        with pytest.raises(OutputError, match=r"one_coco\.json is the result of another image.*overwrite=True"):
            namesake.save(tmp_path, ("masks",))
        assert [path.read_bytes() for path in first] == before
    namesake.save(tmp_path, ("masks",), overwrite=True)
    assert not (tmp_path / "masks" / "one_ring_1.png").exists()


def test_save_replaces_what_somebody_changed_only_if_asked(result, tmp_path):
    written = result.save(tmp_path, ("overlay",))
    (tmp_path / "one_overlay.png").write_bytes(b"changed")
    with pytest.raises(OutputError, match="was changed"):
        result.save(tmp_path, ("overlay",))
    assert result.save(tmp_path, ("overlay",), overwrite=True) == written
    assert (tmp_path / "one_overlay.png").read_bytes() != b"changed"


def test_save_refuses_unknown_kinds_and_images_without_a_name(result, tmp_path):
    with pytest.raises(SettingsError, match="overlay, why, masks, cutouts; got picture"):
        result.save(tmp_path, ("picture",))
    with pytest.raises(SettingsError, match="got pictures"):
        result.save(tmp_path, "overlay,pictures")
    unnamed = Segmentation(builders.image(file_name=""), (), result.maps)
    with pytest.raises(OutputError, match="no file name"):
        unnamed.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_save_takes_kinds_as_the_command_line_does(result, tmp_path):
    one = result.save(tmp_path / "one", "overlay,cutouts")
    other = result.save(tmp_path / "other", ("overlay", "cutouts"))
    assert [path.name for path in one] == [path.name for path in other]


def test_the_notebook_runs(monkeypatch, tmp_path):
    """Its cells in order, as a reader runs them."""
    monkeypatch.chdir(ROOT)
    plt.switch_backend("Agg")
    names: dict[str, object] = {}
    notebook = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, code in enumerate(cells):
        code = code.replace('"outputs/', f'"{tmp_path.as_posix()}/')
        exec(compile(code, f"docs/notebook.ipynb, cell {number}", "exec"), names)
    plt.close("all")
    result, refined = names["result"], names["refined"]
    assert {segment.query for segment in result.segments} == {"sheep", "fire engine"}
    assert np.array_equal(result.segments[-1].mask, refined.mask)
    assert len(names["detections"]) == len(names["coco"]["annotations"]) == len(result.segments)
    assert {path.name for path in names["files"]} >= {"scene_0019_overlay.png", "scene_0019_coco.json"}
    assert not any(cell.get("outputs") for cell in notebook["cells"])  # outputs would be out of date
