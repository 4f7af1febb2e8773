"""The model repository for Triton, against the server's own schema and against the graphs. No server runs here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from triton_builders import check_against_graph, parse

from text2seg.cli import main
from text2seg.errors import OutputError, SettingsError
from text2seg.onnx.graphs import Network, Tower, describe, draw
from text2seg.onnx.networks import GraphSpec, Manifest
from text2seg.onnx.triton import write_repository


def write_graphs(folder: Path) -> Path:
    """Two small graphs that are drawn as the real ones are: one with batches, one with sides of its own."""
    folder.mkdir()
    pixels, index, conv = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1, 1]), nn.Conv2d(3, 4, 2)
    towers = [
        Tower("sam_encoder", Network(conv, conv), {"pixels": (pixels, {0: "batch"})}, {"features": {0: "batch"}}),
        Tower(
            "sam_decoder",
            Network(conv, lambda embeddings, image_index: embeddings[image_index] * 2),
            {"embeddings": (torch.zeros(2, 4, 7, 7), {0: "images"}), "image_index": (index, {0: "sets"})},
            {"logits": {0: "sets"}},
        ),
    ]
    specs = []
    for tower in towers:
        draw(tower, folder / f"{tower.name}.onnx")
        inputs, outputs = describe(folder / f"{tower.name}.onnx")
        specs.append(GraphSpec(tower.name, f"{tower.name}.onnx", "fp32", inputs, outputs, 1e-4, 0.0))
    model = {"name": 'a "näme"', "sha256": "ab" * 32}
    Manifest(model, model, "fp32", "surgery", (8, 8), 18, tuple(specs), {}, {}).write(folder)
    return folder


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    return write_graphs(tmp_path_factory.mktemp("triton") / "graphs")


@pytest.fixture(autouse=True)
def _two_graphs_are_enough(monkeypatch):
    monkeypatch.setattr("text2seg.onnx.networks.GRAPHS", ("sam_encoder", "sam_decoder"))


def test_the_repository_fits_the_schema_and_the_graphs(graphs, tmp_path):
    assert main(["export", "triton", "--graphs", str(graphs), "--output", str(tmp_path / "models")]) == 0
    folders = sorted((tmp_path / "models").iterdir())
    assert [folder.name for folder in folders] == ["sam_decoder", "sam_encoder"]
    for folder in folders:
        check_against_graph(folder)
        assert (folder / "1" / "model.onnx").read_bytes() == (graphs / f"{folder.name}.onnx").read_bytes()
    decoder, encoder = (parse(folder / "config.pbtxt") for folder in folders)
    assert (encoder.max_batch_size, encoder.HasField("dynamic_batching")) == (8, True)
    assert (decoder.max_batch_size, decoder.HasField("dynamic_batching")) == (0, False)
    assert [list(each.dims) for each in decoder.input] == [[-1, 4, 7, 7], [-1]]
    assert encoder.parameters["text2seg_checkpoint"].string_value == 'a "näme"'


def test_tensorrt_is_an_accelerator_of_every_graph(graphs, tmp_path):
    flags = ["--graphs", str(graphs), "--tensorrt", "fp16", "--output", str(tmp_path)]
    assert main(["export", "triton", *flags]) == 0
    for folder in tmp_path.iterdir():
        check_against_graph(folder)
        accelerators = parse(folder / "config.pbtxt").optimization.execution_accelerators
        (chosen,) = accelerators.gpu_execution_accelerator
        assert (chosen.name, dict(chosen.parameters)) == ("tensorrt", {"precision_mode": "FP16"})
    with pytest.raises(OutputError, match="choose another --output"):
        write_repository(graphs, tmp_path, version=2)


def test_versions_are_kept_side_by_side_and_never_overwritten(graphs, tmp_path):
    write_repository(graphs, tmp_path)
    with pytest.raises(OutputError, match="has a version 1 already; use --version 2"):
        write_repository(graphs, tmp_path)
    write_repository(graphs, tmp_path, version=2)
    assert {path.name for path in (tmp_path / "sam_encoder").iterdir()} == {"1", "2", "config.pbtxt"}
    with pytest.raises(OutputError, match="choose another --output"):
        write_repository(graphs, tmp_path, version=3, max_batch=2)
    assert not (tmp_path / "sam_encoder" / "3").exists()
    with pytest.raises(SettingsError, match="1 or more"):
        write_repository(graphs, tmp_path, version=0)
