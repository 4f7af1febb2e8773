"""Model repository of exported graphs for NVIDIA Triton Inference Server, with its ONNX Runtime backend.

Source: the server's documentation of model repositories and of model configuration (`ModelConfig` in
model_config.proto). The repository was written from that documentation and has not been tested with a Triton server.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from text2seg.errors import CheckpointError, OutputError, SettingsError
from text2seg.io.files import exists, list_folder, read_file
from text2seg.io.writing import check_folder, copy_file, make_folder, temporary_folder_for, write_atomically
from text2seg.onnx.networks import GraphSpec, Manifest, TensorSpec, read_manifest

CONFIG, MODEL = "config.pbtxt", "model.onnx"
QUEUE_MICROSECONDS = 2000  # longest wait of a request for others to share a batch with
TEXTS_AT_ONCE = 128  # enough for one query, which has a text for each template (85 as published)

_DTYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}


TensorRt = Literal["none", "fp32", "fp16"]


def write_repository(
    graphs: Path, output: Path, *, version: int = 1, max_batch: int = 8, tensorrt: TensorRt = "none"
) -> list[Path]:
    """Write a folder for each graph, with its configuration and the graph as the given version; return the folders.

    Args:
        graphs: folder written by `text2seg export onnx`.
        output: the repository. Other models in it and other versions of these are not changed.
        version: number of the new version.
        max_batch: largest batch that the server may form; batches of texts may always have `TEXTS_AT_ONCE` texts.
        tensorrt: the precision in which the server runs the graphs with TensorRT, or "none" to run them without it.

    Raises:
        CheckpointError: the folder has no graphs.
        SettingsError: `version` or `max_batch` is less than 1.
        OutputError: this version exists already, an earlier one has another configuration, or writing fails.
    """
    if version < 1 or max_batch < 1:
        raise SettingsError(f"version and max batch must be 1 or more, got {version} and {max_batch}")
    manifest = read_manifest(graphs)
    configs = {graph.name: config_of(graph, manifest, max_batch, tensorrt) for graph in manifest.graphs}
    for name, config in configs.items():
        _check(output / name, config, version)
    check_folder(output)
    with temporary_folder_for(output) as work:
        for graph in manifest.graphs:
            folder = work / graph.name / str(version)
            make_folder(folder)
            for file in list_folder(graphs, CheckpointError):
                if file.name.startswith(graph.file):  # also the separate file of large weights, which the graph names
                    copy_file(file, folder / (MODEL if file.name == graph.file else file.name))
            write_atomically(work / graph.name / CONFIG, [configs[graph.name].encode()])
    return [output / name for name in configs]


def _check(folder: Path, config: str, version: int) -> None:
    if exists(folder / str(version), OutputError):
        raise OutputError(f"{folder} has a version {version} already; use --version {version + 1}, or another --output")
    earlier = folder / CONFIG
    if exists(earlier, OutputError) and read_file(earlier, OutputError) != config.encode():
        raise OutputError(
            f"{earlier} describes a model with other inputs, precision or weights, but all versions of a model must "
            "share them; choose another --output"
        )


def config_of(graph: GraphSpec, manifest: Manifest, max_batch: int, tensorrt: TensorRt = "none") -> str:
    """Return the `config.pbtxt` of a graph.

    If the first axis of every tensor is "batch", the server batches requests, and the configuration leaves that axis
    out, as Triton requires. The server does not batch requests to SAM's decoder, which has images, sets and points.
    """
    batched = all(tensor.shape[0] == "batch" for tensor in (*graph.inputs, *graph.outputs))
    largest = max(max_batch, TEXTS_AT_ONCE) if graph.name == "clip_text" else max_batch
    parts = [
        f"name: {_quoted(graph.name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {largest if batched else 0}",
        *_tensors("input", graph.inputs, batched),
        *_tensors("output", graph.outputs, batched),
        "version_policy { latest { num_versions: 1 } }",
    ]
    if batched:
        parts.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    if tensorrt != "none":
        mode = f'parameters {{ key: "precision_mode" value: "{tensorrt.upper()}" }}'
        accelerator = f'gpu_execution_accelerator {{ name: "tensorrt" {mode} }}'
        parts.append(f"optimization {{ execution_accelerators {{ {accelerator} }} }}")
    model = manifest.clip if graph.name.startswith("clip") else manifest.sam
    parameters = {"precision": graph.precision, "checkpoint": model["name"], "checkpoint_sha256": model["sha256"]}
    if graph.name == "clip_image":
        parameters["architecture"] = manifest.architecture
    for key, value in parameters.items():
        parts.append(f'parameters {{ key: "text2seg_{key}" value {{ string_value: {_quoted(value)} }} }}')
    return "\n".join(parts) + "\n"


def _tensors(kind: str, tensors: Sequence[TensorSpec], batched: bool) -> list[str]:
    """Return an entry for each tensor; -1 stands for a dynamic axis."""
    entries = []
    for tensor in tensors:
        sides = ", ".join(str(side if isinstance(side, int) else -1) for side in tensor.shape[batched:])
        name, dtype = _quoted(tensor.name), _DTYPES[tensor.dtype]
        entries.append(f"{kind} {{ name: {name} data_type: {dtype} dims: [ {sides} ] }}")
    return entries


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
